"""What a spec says of performance in production, and of what follows what the nights find."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.model import Name, Strict, Whole, misfit
from airflow_provider_sml.ml.contract.quantities import EXPECTED, Duration, Share
from airflow_provider_sml.ml.monitoring.reference import EXPECTED as REFERENCES
from airflow_provider_sml.ml.monitoring.reference import PATTERN, Reference

_SOME_DAYS = "one or more whole days, such as 14 days"


def _whole_days(value: dt.timedelta) -> dt.timedelta:
    if value < dt.timedelta(days=1) or value % dt.timedelta(days=1):
        raise misfit(None, _SOME_DAYS, value)
    return value


Days = Annotated[
    dt.timedelta,
    *Duration.__metadata__,
    AfterValidator(_whole_days),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[a-zA-Z]+\s*$", EXPECTED: _SOME_DAYS}),
]


def _reference(value: Any) -> Any:
    try:
        return str(Reference.parse(value))
    except ConfigurationError as error:
        raise misfit(None, str(error.expected), value) from error


Compared = Annotated[
    str,
    BeforeValidator(_reference),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^({PATTERN})$",
            "examples": ["training", "trailing 28 days", "season 15 days"],
            EXPECTED: REFERENCES,
        }
    ),
]


class Segments(Strict):
    """Parts of each night that are judged apart as well.

    :param by: a stored column of few values, known before the event.
    :param min_rows: parts of fewer rows on a side are not judged.
    """

    by: Name
    min_rows: Whole = Field(default=200, ge=20)


class Performance(Strict):
    """When the scores' worth is a finding, by labels as they arrive and by estimates before.

    :param window: how far back days are measured anew as labels come, and calibrate the estimates.
    :param auc_drop: how far below the AUC of the rows it was tested on a day's whole interval may lie.
    :param calibration: how far the mean score of the window may lie from the label's rate.
    :param coverage: share of a day's scored rows that must have a label once they are due.
    :param skew: share of the rows that may have been served with another value of a feature than the lake holds.
    :param min_rows: days of fewer labelled rows are shown, and are no finding.
    """

    window: Days = Field(default="28 days", validate_default=True)
    auc_drop: Share = 0.05
    calibration: Share = 0.05
    coverage: Share = 0.5
    skew: Share = 0.05
    min_rows: Whole = Field(default=200, ge=2)


_NO_OR_DAYS = "whole days, such as 7 days, or 0 days for none"


def _no_or_days(value: dt.timedelta) -> dt.timedelta:
    if value % dt.timedelta(days=1):
        raise misfit(None, _NO_OR_DAYS, value)
    return value


_A_BUDGET = "how many trainings in how many days, such as 2 in 30 days, or none"


def _budget(value: Any) -> Any:
    if value is None or value == "none":
        return None
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d+) in (\d+) days?\s*", value)):
        value = (int(found[1]), int(found[2]))
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError(f"expected {_A_BUDGET}")
    return numbers


Budget = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_budget),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": r"^(none|\d+ in \d+ days?)$"}, {"type": "null"}],
            "examples": ["2 in 30 days"],
            EXPECTED: _A_BUDGET,
        }
    ),
]


class Decide(Strict):
    """When what the nights found is acted upon; how many nights must count stands in ``drift.nights``.

    :param severity: from which on a night counts: ``warning`` (drift, a bad estimate, skew, calibration) or
        ``critical`` (labels show that the model has become worse); ``info``: any column that drifted.
    :param cool_down: after training was asked for, it is not asked for again for so long.
    :param budget: most trainings that are asked for in a sliding window, such as ``2 in 30 days``; ``none`` for any.
    """

    severity: Literal["info", "warning", "critical"] = "warning"
    cool_down: Annotated[Duration, AfterValidator(_no_or_days)] = Field(default="7 days", validate_default=True)
    budget: Budget = (4, 30)
