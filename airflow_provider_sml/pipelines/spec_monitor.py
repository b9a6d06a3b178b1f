"""What a spec says of performance in production, and of what follows what the nights find."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from airflow_provider_sml.ml.contract.model import Strict, Whole, misfit
from airflow_provider_sml.ml.contract.quantities import EXPECTED, Duration, Share

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
