"""The spec of one model's life: what stands in its YAML file.

Models only; reading the file with its lines is in ``loader``. A stage's own settings are those of the stage's operator,
so everything here can also be given to an operator in one's own DAG.
"""

from __future__ import annotations

import datetime as dt
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from airflow_provider_sml.ml.contract.dataset import Dataset, Place
from airflow_provider_sml.ml.contract.model import Contract, Name, Source, Strict
from airflow_provider_sml.ml.contract.quantities import Duration, Share


class Places(Strict):
    """Where things are. Relative paths start at the project's root, where dags/ and include/ lie.

    A value without a slash is the id of an Airflow connection. Paths of the source may name each place in braces.

    :param landing: folder that upstream systems write to.
    :param lake: folder of the lake, or a connection of type ``sml_lake``.
    :param warehouse: DuckDB file.
    :param mlflow: folder of the embedded store, a server's address, or a connection of type ``mlflow``.
    :param endpoints: folder for the state, logs and prediction logs of local endpoints.
    :param reports: folder of the HTML reports.
    """

    landing: str = "include/data/landing"
    lake: str = "include/data/lake"
    warehouse: str | None = "include/data/warehouse.duckdb"
    mlflow: str = "include/data/mlflow"
    endpoints: str = "include/data/endpoints"
    reports: str = "include/reports"


class Sample(Strict):
    """Which rows of the training window are trained on.

    :param method: ``all``; ``uniform`` for single rows; ``hash`` to keep whole entities; ``stratified`` for the exact
        share of each stratum; ``decay`` to weigh rows by their age; ``negatives`` to thin the rows with label 0 only.
    :param by: the columns that name an entity (``hash``) or a stratum (``stratified``).
    :param rate: share to keep, or ``auto``: the smallest that costs no more AUC than ``tolerance``.
    :param tolerance: AUC that ``auto`` may lose against training on all rows.
    :param half_life: time after which a row weighs half, for ``decay``.
    :param seed: another seed keeps others.
    """

    method: Literal["all", "uniform", "hash", "stratified", "decay", "negatives"] = "all"
    by: list[Name] = []
    rate: Share | Literal["auto"] = 1.0
    tolerance: float = Field(default=0.002, gt=0, lt=0.5)
    half_life: Duration | None = None
    seed: int = 7

    @model_validator(mode="after")
    def _fits(self) -> Sample:
        if self.method in ("hash", "stratified") and not self.by:
            raise ValueError(f"method {self.method} needs by: [columns]")
        if self.rate == 0:
            raise ValueError("rate: expected a share above 0, or auto")
        if self.method == "all" and self.rate != 1:
            raise ValueError("method all keeps every row; leave rate out, or take method: uniform or hash")
        if (self.method == "decay") != (self.half_life is not None):
            raise ValueError("half_life belongs to method decay, which needs it, such as half_life: 30 days")
        return self


class Train(Strict):
    """How a model is trained.

    :param window: days of training data.
    :param validate: days after them, for early stopping.
    :param test: days after those, for the evaluation.
    :param params: XGBoost's parameters, with ``rounds`` and ``early_stopping``.
    :param cluster: ``local`` (in the task's own process), ``processes`` (worker processes on this machine), or the id
        of a connection of type ``dask``.
    :param workers: workers that the rows are split over.
    """

    window: Duration
    validate_: Duration = Field(alias="validate")
    test: Duration
    params: dict[str, int | float | str | bool] = {}
    cluster: str = "local"
    workers: int = Field(default=1, ge=1, le=8)

    @model_validator(mode="after")
    def _whole(self) -> Train:
        for name, value in (("window", self.window), ("validate", self.validate_), ("test", self.test)):
            if value < dt.timedelta(days=1) or value % dt.timedelta(days=1):
                raise ValueError(f"{name}: expected whole days, such as 14 days, found {value}")
        if self.cluster == "local" and self.workers != 1:
            raise ValueError("cluster local has one worker with all cores; leave workers out")
        return self


class AucCheck(Strict):
    """Area under the ROC curve.

    :param min: the lower end of its interval must reach this.
    :param not_worse_than: the version in production, compared on the same rows.
    :param margin: how much worse it may be.
    """

    min: Share = 0.5
    not_worse_than: Literal["champion"] | None = None
    margin: Share = 0.0


class MaxCheck(Strict):
    """A measure that may not exceed a limit.

    :param max: the limit.
    """

    max: Share


class BaselineCheck(Strict):
    """The AUC of plain rates by a few columns, which the model must beat.

    :param by: the columns.
    :param margin: by how much; the lower end of the difference's interval must reach this.
    """

    by: list[Name] = Field(min_length=1)
    margin: Share = 0.0


class SliceCheck(Strict):
    """The AUC within each slice.

    :param by: the columns whose values make the slices.
    :param min_rows: smallest slice that is judged.
    :param min_auc: what each must reach.
    """

    by: list[Name] = Field(min_length=1)
    min_rows: int = Field(default=500, ge=2)
    min_auc: Share = 0.5


class Gate(Strict):
    """What a version must fulfil to be deployed."""

    auc: AucCheck = AucCheck()
    ece: MaxCheck | None = None
    baseline: BaselineCheck | None = None
    slices: SliceCheck | None = None


class Deploy(Strict):
    """Where a version that passed is served.

    :param target: ``local``: a scoring server on this machine.
    :param port: its port on the loopback interface.
    :param parity_rows: stored rows whose scores must agree before the version takes over.
    """

    target: Literal["local"] = "local"
    port: int = Field(default=8500, ge=1, le=65535)
    parity_rows: int = Field(default=200, ge=1, le=10_000)


def _nights(value: Any) -> Any:
    if isinstance(value, str):
        parts = value.split(" of ")
        if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
            return [int(part) for part in parts]
        raise ValueError("expected how many of how many, such as 3 of 5")
    return value


class Drift(Strict):
    """When a night counts as drift.

    :param share: share of the columns that must have drifted.
    :param numeric: limit for numbers: Wasserstein distance in standard deviations of the reference.
    :param category: limit for categories: Jensen-Shannon distance, 0 to 1.
    :param nights: how many of the last nights must have drifted before something is done, such as ``3 of 5``.
    """

    share: Share = 0.3
    numeric: float = Field(default=0.1, gt=0)
    category: Share = 0.1
    nights: Annotated[
        tuple[int, int],
        BeforeValidator(_nights),
        WithJsonSchema({"type": "string", "pattern": r"^\d+ of \d+$", "examples": ["3 of 5"]}),
    ] = (1, 1)

    @model_validator(mode="after")
    def _possible(self) -> Drift:
        if not 1 <= self.nights[0] <= self.nights[1]:
            raise ValueError("nights: expected n of m with 1 <= n <= m")
        return self


class LeaveOut(Strict):
    """Columns that are not compared.

    :param leave_out: their names.
    """

    leave_out: list[Name] = []


class Monitor(Strict):
    """How each night is judged.

    :param reference: what a day is compared with: the rows the model was trained on.
    :param rows: largest number of rows drawn from each side for the report.
    :param columns: which features are compared; the score always is.
    :param drift: when a night counts as drift.
    :param then: what follows enough nights of drift: ``alert``, or ``retrain``, which starts training as well.
    """

    reference: Literal["training"] = "training"
    rows: int = Field(default=5_000, ge=100, le=100_000)
    columns: LeaveOut = LeaveOut()
    drift: Drift = Drift()
    then: Literal["alert", "retrain"] = "alert"


class EmailAlert(Strict):
    """Mail through the connection ``smtp_default``.

    :param email: the recipients.
    """

    email: list[str] = Field(min_length=1)


class SlackAlert(Strict):
    """A message through a Slack webhook.

    :param slack: id of the ``slackwebhook`` connection.
    """

    slack: str


Cron = Annotated[str, StringConstraints(pattern=r"^(daily|weekly|monthly|\S+ \S+ \S+ \S+ \S+)$")]
"""A word, or a cron expression of five fields."""


class Schedule(Strict):
    """When the DAGs run: a cron expression or one of the words; null for never by itself.

    :param ingest: ``daily`` or cron; each run takes the day that has just ended.
    :param train: ``weekly``, ``daily``, ``monthly`` or cron; drift can start it besides.
    :param monitor: ``nightly``: as soon as a day has been published.
    """

    ingest: Cron | None = "daily"
    train: Cron | None = "weekly"
    monitor: Literal["nightly"] | None = "nightly"


class PipelineSpec(Strict):
    """One model's life."""

    name: Name
    description: str = ""
    owner: str = "airflow"
    places: Places = Places()
    source: Source
    contract: Contract
    label: str
    label_known_after: Duration = Field(default=dt.timedelta())
    features: dict[Name, str] = Field(min_length=1)
    sample: Sample = Sample()
    train: Train
    gate: Gate = Gate()
    deploy: Deploy = Deploy()
    monitor: Monitor = Monitor()
    alerts: list[EmailAlert | SlackAlert] = []
    schedule: Schedule = Schedule()

    @cached_property
    def dataset(self) -> Dataset:
        """The part that the engine knows: source, contract, features and label."""
        return Dataset.model_construct(
            name=self.name, source=self.source, contract=self.contract, features=self.features, label=self.label
        )

    def column_uses(self) -> list[tuple[Place, str, set[str]]]:
        """Where stages name columns: the place, the name, and what is allowed there."""
        stored = {name for name, _ in self.dataset.table_columns}
        features = set(self.features)
        uses: list[tuple[Place, str, set[str]]] = []
        uses += [(("sample", "by", n), name, stored) for n, name in enumerate(self.sample.by)]
        if self.gate.baseline:
            uses += [(("gate", "baseline", "by", n), name, stored) for n, name in enumerate(self.gate.baseline.by)]
        if self.gate.slices:
            uses += [(("gate", "slices", "by", n), name, stored) for n, name in enumerate(self.gate.slices.by)]
        left_out = self.monitor.columns.leave_out
        uses += [(("monitor", "columns", "leave_out", n), name, features) for n, name in enumerate(left_out)]
        return uses
