"""Durations, shares and sizes as people write them in YAML: ``36h``, ``120 days``, ``20ms``, ``1%``, ``50 MB``."""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

#: Key of the JSON schema under which a type says in words what it takes.
EXPECTED = "x-expected"
_A_DURATION = "a number and a unit, such as 10m, 36h or 120 days"
_A_SHARE = "a share from 0 to 1, such as 0.01 or 1%"
_A_SIZE = "a number of bytes, or a number and a unit, such as 50 MB or 1.5 GiB"
_UNITS = {
    "ms": 0.001,
    "s": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_BYTES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def whole_days(span: dt.timedelta) -> int:
    """How many whole days a span of time takes, rounded up."""
    return math.ceil(span / dt.timedelta(days=1))


def duration(value: Any) -> dt.timedelta:
    """Read a duration.

    :param value: text such as ``"36h"`` or ``"120 days"``, or a timedelta.
    :raises ValueError: when it is neither.
    """
    if isinstance(value, dt.timedelta):
        return value
    match = _DURATION.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"expected {_A_DURATION}")
    try:
        return dt.timedelta(seconds=float(match.group(1)) * _UNITS[match.group(2)])
    except OverflowError:
        raise ValueError(f"expected {_A_DURATION}") from None


def share(value: Any) -> float:
    """Read a share of a whole.

    :param value: text such as ``"1%"``, or a number from 0 to 1.
    :raises ValueError: when it is neither.
    """
    if isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        value = float(match.group(1)) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"expected {_A_SHARE}")
    return float(value)


def size(value: Any) -> int:
    """Read a number of bytes.

    :param value: text such as ``"50 MB"``, or a whole number of bytes above 0.
    :raises ValueError: when it is neither.
    """
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip().lower())) and match.group(2) in _BYTES:
        value = int(float(match.group(1)) * _BYTES[match.group(2)])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {_A_SIZE}")
    return value


def _write_duration(value: dt.timedelta) -> str:
    seconds = value.total_seconds()
    return f"{int(seconds)}s" if seconds.is_integer() else f"{seconds:.6f}s"


Duration = Annotated[
    dt.timedelta,
    BeforeValidator(duration),
    PlainSerializer(_write_duration, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\s*\d+(\.\d+)?\s*[a-zA-Z]+\s*$",
            "examples": ["10m", "36h", "120 days"],
            EXPECTED: _A_DURATION,
        }
    ),
]
Share = Annotated[
    float,
    BeforeValidator(share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\s*(100(\.0+)?|\d{1,2}(\.\d+)?)\s*%\s*$"},
            ],
            EXPECTED: _A_SHARE,
        }
    ),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgG][iI]?)?[bB]\s*$"},
            ],
            EXPECTED: _A_SIZE,
        }
    ),
]
