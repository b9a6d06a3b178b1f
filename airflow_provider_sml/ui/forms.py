"""What the pages take from the small JSON files of a model's reports; everything else in them is left out."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pydantic import AliasPath, BaseModel, Field


class Column(BaseModel):
    """One column of a night, compared with its reference."""

    name: str
    method: str = ""
    value: float | None = None
    threshold: float | None = None
    drifted: bool = False


class Performance(BaseModel):
    """How well a day was predicted: realised once its labels had arrived, or estimated before."""

    day: dt.date
    rows: int = 0
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    log_loss: float | None = None
    ece: float | None = None
    version: str | int | None = None


class Day(Performance):
    """The performance of a day as the latest night told it.

    :param night: that night.
    """

    night: dt.date


class Night(BaseModel):
    """One night's drift."""

    day: dt.date
    version: str | int | None = None
    verdict: str
    share: float | None = None
    drifted: list[str] = []
    columns: list[Column] = []
    rows: int | None = None
    performance: list[Performance] = []


class Finding(BaseModel):
    """What a night found worth telling."""

    severity: str = "info"
    text: str


class Worth(BaseModel):
    """One night's report of performance; its days are kept apart, each as the latest night told it."""

    day: dt.date
    version: str | int | None = None
    findings: list[Finding] = []
    realised: list[Performance] = []
    estimated: list[Performance] = []


class Decision(BaseModel):
    """What followed a night."""

    action: str = Field("none", validation_alias=AliasPath("decision", "action"))
    severity: str = Field("quiet", validation_alias=AliasPath("decision", "severity"))
    because: str = Field("", validation_alias=AliasPath("decision", "because"))


class Check(BaseModel):
    """One check of the gate."""

    name: str
    passed: bool
    value: str | float | None = None
    limit: str | float | None = None
    todo: str | None = None


class Gate(BaseModel):
    """What the gate said of a version."""

    version: str | int
    model_id: str | None = None
    passed: bool
    checks: list[Check] = []
    time: str | None = None


class Totals(BaseModel):
    """The sums of a cost report, in USD."""

    usd: float = 0.0
    saved_usd: float = 0.0
    unknown: int = 0
    usd_per_hour: float = 0.0


class Costs(BaseModel):
    """What a run cost."""

    totals: Totals
    dag_id: str = ""
    run_id: str = ""


class Point(BaseModel):
    """One rate of a sampling curve."""

    rate: float
    rows: float = 0.0
    auc: float
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    seconds: float | None = None


class Plan(BaseModel):
    """A sampling curve, and the rate that was chosen by it."""

    rate: float
    found: bool = True
    tolerance: float | None = None
    population: int | None = None
    points: list[Point] = []
    full_seconds: float | None = None
    total_seconds: float | None = None


@dataclass(frozen=True)
class Damaged:
    """A report whose numbers cannot be read.

    :param key: its day or version.
    :param error: why.
    """

    key: str
    error: str
