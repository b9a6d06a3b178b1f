"""Expressions over NumPy arrays: what the scoring server and the sampler run, without a database.

A column is a :class:`Vector`: values and a mask of nulls. The meaning of every name is that of ``functions``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DTYPES: dict[str, Any] = {
    "int": np.int64,
    "double": np.float64,
    "string": object,
    "boolean": np.bool_,
    "timestamp": "datetime64[us]",
    "date": "datetime64[D]",
}
_FILL: dict[str, Any] = {
    "int": 0, "double": 0.0, "string": "", "boolean": False, "timestamp": dt.datetime(1970, 1, 1),
    "date": dt.date(1970, 1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Vector:
    """A column of values.

    :param values: array of shape (n,); what stands where ``null`` is true means nothing.
    :param null: boolean array of shape (n,).
    """

    values: np.ndarray
    null: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Any], kind: str) -> Vector:
        """Make a column from Python values, None for null.

        :param items: the values, already of the Python type that belongs to ``kind``.
        :param kind: type of the language, such as ``"double"``.
        """
        null = np.fromiter((item is None for item in items), dtype=bool, count=len(items))
        fill = _FILL[kind]
        filled = [fill if item is None else item for item in items]
        if kind == "string":
            values = np.empty(len(filled), dtype=object)
            values[:] = filled
        else:
            values = np.array(filled, dtype=_DTYPES[kind])
        return cls(values, null)

    def tolist(self) -> list[Any]:
        """The values as Python objects, None for null."""
        return [None if null else value for value, null in zip(self.values.tolist(), self.null, strict=True)]

    def as_double(self) -> np.ndarray:
        """Numbers and booleans as float64 with NaN for null."""
        out = self.values.astype(np.float64)
        out[self.null] = np.nan
        return out


def convert(vector: Vector, kind: str) -> Vector:
    """Convert to another type, as ``functions`` converts arguments: whole numbers to double, null to anything."""
    if vector.null.all():
        return Vector(constant(_FILL[kind], kind, len(vector.null)).values, vector.null)
    return Vector(vector.values.astype(_DTYPES[kind]), vector.null)


def constant(value: Any, kind: str, size: int) -> Vector:
    """A column of one value."""
    if kind == "null":
        return Vector(np.zeros(size), np.ones(size, dtype=bool))
    values = np.empty(size, dtype=_DTYPES[kind])
    values[:] = value
    return Vector(values, np.zeros(size, dtype=bool))


def _strict(compute: Callable[..., np.ndarray]) -> Callable[..., Vector]:
    """A function that is null where any argument is."""

    def apply(*arguments: Vector) -> Vector:
        null = arguments[0].null
        for argument in arguments[1:]:
            null = null | argument.null
        with np.errstate(all="ignore"):
            return Vector(compute(*(argument.values for argument in arguments)), null)

    return apply


def _text(compute: Callable[..., Any], dtype: Any = object) -> Callable[..., Vector]:
    """A strict function of texts, one by one."""
    return _strict(
        lambda *columns: np.fromiter(
            (compute(*row) for row in zip(*columns, strict=True)), dtype=dtype, count=len(columns[0])
        )
    )


def _less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a < b, with NaN above every number."""
    if a.dtype.kind == "f":
        return (a < b) | (np.isnan(b) & ~np.isnan(a))
    return np.asarray(a < b, dtype=bool)


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(a == b, dtype=bool)


def _divide(a: Vector, b: Vector) -> Vector:
    null = a.null | b.null | (b.values == 0)
    with np.errstate(all="ignore"):
        return Vector(a.values / b.values, null)


def _sqrt(a: Vector) -> Vector:
    with np.errstate(all="ignore"):
        return Vector(np.sqrt(a.values), a.null | (a.values < 0))


def _whole(rounded: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.where(np.abs(values) < 2.0**53, rounded(values), values)


def _and(a: Vector, b: Vector) -> Vector:
    false = (~a.null & ~a.values) | (~b.null & ~b.values)
    return Vector(a.values & b.values & ~false, (a.null | b.null) & ~false)


def _or(a: Vector, b: Vector) -> Vector:
    true = (~a.null & a.values) | (~b.null & b.values)
    return Vector(true, (a.null | b.null) & ~true)


def _in(value: Vector, *choices: Vector) -> Vector:
    hit = np.zeros(len(value.null), dtype=bool)
    unknown = value.null
    for choice in choices:
        hit |= _equal(value.values, choice.values) & ~value.null & ~choice.null
        unknown = unknown | choice.null
    return Vector(hit, unknown & ~hit)


def _case(*parts: Vector) -> Vector:
    values, null = parts[-1].values.copy(), parts[-1].null.copy()
    open_ = np.ones(len(null), dtype=bool)
    for condition, result in zip(parts[:-1:2], parts[1:-1:2], strict=True):
        taken = open_ & condition.values & ~condition.null
        values[taken], null[taken] = result.values[taken], result.null[taken]
        open_ &= ~taken
    return Vector(values, null)


def _coalesce(*parts: Vector) -> Vector:
    values, null = parts[0].values.copy(), parts[0].null.copy()
    for part in parts[1:]:
        values[null], null[null] = part.values[null], part.null[null]
    return Vector(values, null)


def _field(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    def compute(values: np.ndarray) -> np.ndarray:
        years = values.astype("datetime64[Y]")
        months = values.astype("datetime64[M]")
        days = values.astype("datetime64[D]")
        if kind == "year":
            return years.astype(np.int64) + 1970
        if kind == "month":
            return (months - years.astype("datetime64[M]")).astype(np.int64) + 1
        if kind == "day":
            return (days - months.astype("datetime64[D]")).astype(np.int64) + 1
        if kind == "weekday":  # day 0 of the epoch was a Thursday
            return (days.astype(np.int64) + 3) % 7
        unit, base = {"hour": ("datetime64[h]", days), "minute": ("datetime64[m]", values.astype("datetime64[h]"))}[
            kind
        ]
        return (values.astype(unit) - base.astype(unit)).astype(np.int64)

    return compute


_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}
_ASCII_UPPER = {code + 32: code for code in range(65, 91)}

FUNCTIONS: dict[str, Callable[..., Vector]] = {
    "add": _strict(lambda a, b: a + b),
    "subtract": _strict(lambda a, b: a - b),
    "multiply": _strict(lambda a, b: a * b),
    "divide": _divide,
    "negate": _strict(lambda a: -a),
    "abs": _strict(np.abs),
    "floor": _strict(_whole(np.floor)),
    "ceil": _strict(_whole(np.ceil)),
    "sqrt": _sqrt,
    "eq": _strict(_equal),
    "ne": _strict(lambda a, b: ~_equal(a, b)),
    "lt": _strict(_less),
    "le": _strict(lambda a, b: ~_less(b, a)),
    "gt": _strict(lambda a, b: _less(b, a)),
    "ge": _strict(lambda a, b: ~_less(a, b)),
    "and": _and,
    "or": _or,
    "not": _strict(lambda a: ~a),
    "is_null": lambda a: Vector(a.null.copy(), np.zeros(len(a.null), dtype=bool)),
    "in": _in,
    "case": _case,
    "coalesce": _coalesce,
    "concat": _text(lambda a, b: a + b),
    "length": _text(len, np.int64),
    "lower": _text(lambda a: a.translate(_ASCII_LOWER)),
    "upper": _text(lambda a: a.translate(_ASCII_UPPER)),
    "trim": _text(lambda a: a.strip(" ")),
    "substr": _text(lambda a, first, count: a[first - 1 : first - 1 + count]),
    "starts_with": _text(lambda a, b: a.startswith(b), np.bool_),
    "contains": _text(lambda a, b: b in a, np.bool_),
    **{name: _strict(_field(name)) for name in ("year", "month", "day", "hour", "minute", "weekday")},
    "date": _strict(lambda a: a.astype("datetime64[D]")),
    "days_between": _strict(lambda a, b: (b - a).astype(np.int64)),
    "hours_between": _strict(lambda a, b: (b - a).astype(np.int64) / 3.6e9),
}
