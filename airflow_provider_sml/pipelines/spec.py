"""The spec of one model's life: what stands in its YAML file.

Models only; reading the file with its lines is in ``loader``. A stage's own settings are those of the stage's operator,
so everything here can also be given to an operator in one's own DAG.
"""

from __future__ import annotations

import datetime as dt
import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.ml.contract.model import Contract, Formula, Name, Number, Source, Strict, Whole, misfit
from airflow_provider_sml.ml.contract.quantities import EXPECTED, Duration, Share
from airflow_provider_sml.ml.training.custom import PATH
from airflow_provider_sml.operators.clusters import KINDS, check_cluster
from airflow_provider_sml.operators.deployment_targets import check_settings
from airflow_provider_sml.operators.training_services import SERVICES, check_service
from airflow_provider_sml.pipelines.spec_gate import Gate
from airflow_provider_sml.pipelines.spec_monitor import Compared, Days, Decide, Performance, Segments
from airflow_provider_sml.pipelines.spec_search import Search

#: Clusters that later versions may have; they are no ids of connections.
_NOT_YET = ("emr", "dataproc")


class Places(Strict):
    """Where things are. Relative paths start at the project's root, where dags/ and include/ lie.

    A value without a slash is the id of an Airflow connection. Paths of the source name ``{landing}`` or ``{lake}``.

    :param landing: folder that upstream systems write to.
    :param lake: folder of the lake, or a connection of type ``sml_lake``.
    :param warehouse: DuckDB file, ``bigquery://PROJECT/DATASET``, or the id of a connection to BigQuery or Redshift;
        null for none.
    :param mlflow: folder of the embedded store, a server's address, or a connection of type ``mlflow``.
    :param endpoints: folder for the state, logs and prediction logs of local endpoints.
    :param reports: folder of the reports, on a disk or at an ``s3://`` or ``gs://`` address.
    """

    landing: str = "include/data/landing"
    lake: str = "include/data/lake"
    warehouse: str | None = "include/data/warehouse.duckdb"
    mlflow: str = "include/data/mlflow"
    endpoints: str = "include/data/endpoints"
    reports: str = "include/reports"


class Warehouse(Strict):
    """How the warehouse's table is made; where it is stands in ``places.warehouse``.

    :param cluster_by: columns that readers filter by, the most used first: BigQuery's clustering (the first four),
        Redshift's sort key, the order of rows in DuckDB.
    :param location: region of the BigQuery dataset, such as ``EU``; BigQuery finds it out when null.
    :param kms: full name of the Cloud KMS key that encrypts BigQuery's tables.
    :param labels: on BigQuery's tables and jobs, for the bill.
    :param max_bytes: a publish to BigQuery fails before it is billed more bytes than this.
    :param load: how rows reach BigQuery: ``load_job`` (free; a lake that is not on Cloud Storage is uploaded as one
        file from the worker's disk) or ``write_api`` (the Storage Write API, without a file; billed from 2 TiB a month
        on).
    """

    cluster_by: list[Name] = []
    location: str | None = None
    kms: str | None = None
    labels: dict[str, str] = {}
    max_bytes: Whole | None = Field(default=None, ge=1)
    load: Literal["load_job", "write_api"] = "load_job"


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
    tolerance: Number = Field(default=0.002, gt=0, lt=0.5)
    half_life: Duration | None = None
    seed: Whole = 7

    @model_validator(mode="after")
    def _fits(self) -> Sample:
        if self.method in ("hash", "stratified") and not self.by:
            what = "an entity" if self.method == "hash" else "a stratum"
            raise misfit("by", f"the columns that name {what}, because method is {self.method}", "none")
        if self.rate == 0:
            raise misfit("rate", "a share above 0, or auto", self.rate)
        if self.method == "all" and self.rate != 1:
            todo = "leave rate out, or take method: uniform or hash"
            raise misfit("rate", "no rate, because method is all", self.rate, todo)
        if self.method == "decay" and self.half_life is None:
            raise misfit("half_life", "a duration such as 30 days, because method is decay", "none")
        if self.method != "decay" and self.half_life is not None:
            raise misfit("half_life", f"no half_life, because method is {self.method}", self.half_life)
        return self


def _cluster(value: str) -> str:
    if value in _NOT_YET or not value or not all(c.isalnum() or c in "_-." for c in value):
        raise misfit(None, _A_CLUSTER, value)
    return value


_A_CLUSTER = f"local, processes, cuda, {', '.join((*KINDS, *SERVICES))}, or the id of a connection of type dask"
Cluster = Annotated[str, AfterValidator(_cluster), Field(json_schema_extra={EXPECTED: _A_CLUSTER})]


def _sign(value: int) -> int:
    if value not in (1, -1):
        raise misfit(None, _A_SIGN, value)
    return value


_A_SIGN = "1 or -1"
Sign = Annotated[Whole, AfterValidator(_sign), WithJsonSchema({"enum": [1, -1], EXPECTED: _A_SIGN})]


def _function(value: str) -> str:
    if not re.fullmatch(PATH, value):
        raise misfit(None, _A_FUNCTION, value)
    return value


_A_FUNCTION = "a function by its import path, such as include.metrics:cost"
Function = Annotated[str, AfterValidator(_function), Field(json_schema_extra={EXPECTED: _A_FUNCTION})]


class OwnMetric(Strict):
    """A metric of your own.

    :param function: its import path, ``package.module:function``.
    :param higher_is_better: whether early stopping looks for its highest value.
    """

    function: Function
    higher_is_better: bool = False


class ClassWeights(Strict):
    """What the rows weigh by their label; only the proportion of the two moves the scores.

    :param negative: weight of a row with label 0.
    :param positive: weight of a row with label 1.
    """

    negative: Number = Field(gt=0)
    positive: Number = Field(gt=0)


_SOME_INTERRUPTIONS = "a number of interruptions, such as 2 interruptions"


def _interruptions(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s+interruptions?\s*", value)):
        return int(match[1])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {_SOME_INTERRUPTIONS}")
    return value


Interruptions = Annotated[
    int,
    BeforeValidator(_interruptions),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\s*\d+\s+interruptions?\s*$"}],
         EXPECTED: _SOME_INTERRUPTIONS}
    ),
]  # fmt: skip


class Spot(Strict):
    """Training on spare capacity, whose machines may be taken away at any time.

    A cluster that is made for the training begins on spare capacity; where the machine of the task itself may go
    (``cluster: local``), only the checkpoints matter. The model is the same however often it was interrupted.

    :param checkpoint: folder of the checkpoints, which all workers reach; beside the lake's tables when null, but to be
        given for ``sagemaker`` and ``vertex``. May name ``{lake}``.
    :param every: most time between two checkpoints.
    :param on_demand_after: interruptions after which machines on demand take the place of spare capacity; they do too
        where it does not come in time.
    :param deadline: time after the start of the training from which on it goes on with machines on demand.
    :param usd_per_hour: what one worker costs there in an hour.
    """

    checkpoint: str | None = None
    every: Duration = dt.timedelta(minutes=1)
    on_demand_after: Interruptions | None = None
    deadline: Duration | None = None
    usd_per_hour: Number = Field(default=0, ge=0)


class Train(Strict):
    """How a model is trained.

    :param window: days of training data.
    :param validate: days after them, for early stopping.
    :param test: days after those, for the evaluation.
    :param params: XGBoost's parameters, with ``rounds`` and ``early_stopping``.
    :param monotone: numeric features with which the score may only rise (``1``) or only fall (``-1``).
    :param class_weights: what rows weigh by their label: ``balanced``, so that both labels weigh the same in sum, or
        ``{negative: 1, positive: 4}``. Scores stay probabilities: they are recalibrated for it.
    :param metrics: functions of your own, by import path (``package.module:function``), that every round is measured
        by on the validation rows: they take labels, scores and weights and give one number. ``params.stop_on`` may
        name one of them.
    :param warm_start: the registered version on top of whose rounds ``params.rounds`` come at most: ``champion``, or
        its number.
    :param cluster: ``local`` (in the task's own process), ``processes`` (worker processes on this machine), ``cuda``
        (one for each of its GPUs), the id of a connection of type ``dask``, a service that makes a cluster for the
        training: ``gateway`` (a Dask Gateway), ``kubernetes``, ``ec2`` or ``gce`` (Compute Engine), or one that trains
        as a job of its own: ``sagemaker`` or ``vertex``.
    :param cluster_settings: of such a service, such as the ``image`` of Kubernetes, or ``image``, ``role`` and
        ``instances`` of SageMaker, ``image``, ``region`` and ``machines`` of Vertex AI.
    :param workers: workers that the rows are split over; of SageMaker and Vertex AI, machines.
    :param min_workers: workers to go on with where all do not come in time; all of them when null.
    :param spot: training on spare capacity.
    :param usd_per_hour: what one worker costs in an hour, for what interruptions and a search cost.
    :param search: of hyper-parameters, before each training.
    """

    window: Days
    validate_: Days = Field(alias="validate")
    test: Days
    params: dict[str, Whole | Number | str | bool] = {}
    monotone: dict[Name, Sign] = {}
    class_weights: Literal["balanced"] | ClassWeights | None = None
    metrics: list[Function | OwnMetric] = []
    warm_start: Literal["champion"] | Annotated[Whole, Field(ge=1)] | None = None
    cluster: Cluster = "local"
    cluster_settings: dict[str, Any] = {}
    workers: Whole = Field(default=1, ge=1, le=8)
    min_workers: Whole | None = Field(default=None, ge=1)
    spot: Spot | None = None
    usd_per_hour: Number = Field(default=0, ge=0)
    search: Search | None = None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the operators take: XGBoost's parameters and ours."""
        own = self.model_dump(include={"monotone", "class_weights", "metrics"}, exclude_defaults=True)
        return {**self.params, **own}

    @property
    def place(self) -> str | dict[str, Any]:
        """What the operators take as their cluster."""
        return {"on": self.cluster, **self.cluster_settings} if self.cluster in KINDS else self.cluster

    @model_validator(mode="after")
    def _cluster_fits(self) -> Train:
        if self.cluster in SERVICES:
            return self._service_fits()
        if self.cluster not in KINDS:
            if self.cluster_settings:
                found = ", ".join(self.cluster_settings)
                raise misfit("cluster_settings", f"no settings, because cluster is {self.cluster}", found)
            return self
        try:
            check_cluster({"on": self.cluster, **self.cluster_settings})
        except ConfigurationError as error:
            raise misfit("cluster_settings", str(error.expected), error.found, error.todo or error.message) from error
        return self

    def _service_fits(self) -> Train:
        title, spot = SERVICES[self.cluster].title, self.spot
        if self.min_workers:
            raise misfit("min_workers", f"no min_workers, because {title} waits for all machines", self.min_workers)
        if self.search:
            todo = "search on a cluster, or on this machine, and write what it found to params"
            raise misfit("search", f"no search, because {title} trains one model a job", "a search", todo)
        if spot and (spot.on_demand_after or spot.deadline):
            expected = f"neither on_demand_after nor deadline, because {title} starts machines again by itself"
            todo = "take cluster_settings.on_demand_last and max_wait"
            raise misfit("spot", expected, "on_demand_after or deadline", todo)
        try:
            check_service(
                self.cluster, self.cluster_settings, workers=self.workers, spot=spot is not None,
                checkpoint=spot.checkpoint if spot else None,
            )  # fmt: skip
        except ConfigurationError as error:
            key = "spot" if "checkpoint" in error.message else "cluster_settings"
            raise misfit(key, str(error.expected), error.found, error.todo or error.message) from error
        return self

    @model_validator(mode="after")
    def _told_once(self) -> Train:
        if self.monotone and "monotone_constraints" in self.params:
            raise misfit("monotone", "no monotone, because params has monotone_constraints", "both")
        if self.class_weights and "scale_pos_weight" in self.params:
            raise misfit("class_weights", "no class_weights, because params has scale_pos_weight", "both")
        return self

    @model_validator(mode="after")
    def _one_worker(self) -> Train:
        if self.cluster == "local" and self.workers != 1:
            todo = "leave workers out, or take cluster: processes"
            raise misfit("workers", "1: cluster local has one worker with all cores", self.workers, todo)
        if self.min_workers and self.min_workers > self.workers:
            raise misfit("min_workers", f"at most workers, which is {self.workers}", self.min_workers)
        return self


class Deploy(Strict):
    """Where a version that passed is served.

    :param target: ``local``: a scoring server on this machine; ``sagemaker``, ``vertex``: an endpoint there.
    :param port: port of a local server on the loopback interface.
    :param parity_rows: stored rows whose scores must agree before the version is the champion.
    :param settings: of a target in a cloud: where, on which machines, how the traffic moves.
    """

    target: Literal["local", "sagemaker", "vertex"] = "local"
    port: Whole = Field(default=8500, ge=1, le=65535)
    parity_rows: Whole = Field(default=200, ge=1, le=10_000)
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _settings_fit(self) -> Deploy:
        try:
            check_settings(self.target, self.settings)
        except ConfigurationError as error:
            raise misfit("settings", str(error.expected), error.found, error.todo or error.message) from error
        return self


class Spark(Strict):
    """Where Spark runs.

    :param on: ``spark-submit`` on this machine, ``kubernetes``, ``yarn``, ``emr-serverless``, or ``dataproc`` (Dataproc
        Serverless).
    :param settings: of a place in a cloud, such as ``application_id``, ``role`` and ``code``, or, of Dataproc,
        ``region``, ``code`` and ``service_account``, or, of Kubernetes, ``image`` and ``code``, or, of YARN,
        ``resource_manager``.
    """

    on: Literal["spark-submit", "kubernetes", "yarn", "emr-serverless", "dataproc"] = "spark-submit"
    settings: dict[str, Any] = {}


_SOME_NIGHTS = "how many of how many nights, such as 3 of 5"


def _nights(value: Any) -> Any:
    if isinstance(value, str):
        parts = value.split(" of ")
        value = [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else ()
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or any(type(number) is not int for number in numbers) or not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(f"expected {_SOME_NIGHTS}")
    return numbers


Nights = Annotated[
    tuple[int, int],
    BeforeValidator(_nights),
    WithJsonSchema({"type": "string", "pattern": r"^\d+ of \d+$", "examples": ["3 of 5"], EXPECTED: _SOME_NIGHTS}),
]


class Drift(Strict):
    """When a night counts as drift.

    :param share: share of the columns that must have drifted.
    :param numeric: limit for numbers: Wasserstein distance in standard deviations of the reference.
    :param category: limit for categories: Jensen-Shannon distance, 0 to 1.
    :param nights: how many of the last nights must have drifted before something is done, such as ``3 of 5``.
    """

    share: Share = 0.3
    numeric: Number = Field(default=0.1, gt=0)
    category: Share = 0.1
    nights: Nights = (1, 1)


class CompareOnly(Strict):
    """The features that are compared.

    :param only: their names.
    """

    only: list[Name] = Field(min_length=1)


class LeaveOut(Strict):
    """Features that are not compared.

    :param leave_out: their names.
    """

    leave_out: list[Name] = []


class Monitor(Strict):
    """How each night is judged.

    :param reference: what a day is compared with: ``training``, the rows that the model was trained on;
        ``trailing 28 days``, the days before; ``season 15 days``, those around the same weekday a year ago.
    :param report: ``profiles`` compares all rows of the night, by profiles that are kept in the lake; ``sample`` gives
        a drawn sample to Evidently's own preset.
    :param rows: largest number of rows drawn from each side; of ``sample`` only.
    :param false_discovery: share of the columns told as drifted that may be so by chance (Benjamini-Hochberg); null
        leaves that control out. Of ``profiles`` only.
    :param segments: parts of each night that are judged apart as well. Of ``profiles`` only.
    :param profile_in: where nights are profiled: over the files of the ``lake`` in the task; the features in
        the ``warehouse``, where that is BigQuery; or in ``spark``, by a job of its own where the spec's Spark runs,
        for days too large for one machine. Of ``profiles`` only.
    :param keep: days that the reports of nights and the profiles of days are kept; null for ever.
    :param columns: which features are compared, as ``leave_out: [...]`` or ``only: [...]``; the score always is.
    :param drift: when a night counts as drift.
    :param performance: when the scores' worth is a finding.
    :param decide: when the findings of nights are acted upon.
    :param then: what follows enough nights of drift: ``alert``, or ``retrain``, which starts training as well.
    """

    reference: Compared = "training"
    report: Literal["profiles", "sample"] = "profiles"
    rows: Whole = Field(default=5_000, ge=100, le=100_000)
    false_discovery: Number | None = Field(default=0.05, gt=0, lt=1)
    segments: Segments | None = None
    profile_in: Literal["lake", "warehouse", "spark"] = "lake"
    keep: Whole | None = Field(default=None, ge=7)
    columns: LeaveOut | CompareOnly = LeaveOut()
    drift: Drift = Drift()
    performance: Performance = Performance()
    decide: Decide = Decide()
    then: Literal["alert", "retrain"] = "alert"

    @model_validator(mode="after")
    def _whole_nights(self) -> Monitor:
        if self.report == "sample":
            for name, value in (("reference", self.reference != "training"), ("segments", self.segments),
                                ("profile_in", self.profile_in != "lake")):  # fmt: skip
                if value:
                    todo = "take report: profiles"
                    raise misfit(name, f"no {name}, because report is sample", getattr(self, name), todo)
        return self


Gravity = Literal["info", "warning", "critical"]


class EmailAlert(Strict):
    """Mail through the connection ``smtp_default``.

    :param email: the recipients.
    :param at: alerts that are less grave are not sent.
    """

    email: list[str] = Field(min_length=1)
    at: Gravity = "info"


class SlackAlert(Strict):
    """A message through a Slack webhook.

    :param slack: id of the ``slackwebhook`` connection.
    :param at: alerts that are less grave are not sent.
    """

    slack: str
    at: Gravity = "info"


class PagerDutyAlert(Strict):
    """An event of PagerDuty; what repeats joins the open incident.

    :param pagerduty: id of the ``pagerduty_events`` connection.
    :param at: alerts that are less grave are not sent.
    """

    pagerduty: str
    at: Gravity = "critical"


_A_SCHEDULE = "daily, weekly, monthly, or a cron expression of five fields, such as 30 2 * * 1"


def _cron(value: str) -> str:
    if value not in ("daily", "weekly", "monthly"):
        from croniter import croniter

        if len(value.split()) != 5 or not croniter.is_valid(value):
            raise misfit(None, _A_SCHEDULE, value)
    return value


Cron = Annotated[str, AfterValidator(_cron), Field(json_schema_extra={EXPECTED: _A_SCHEDULE})]


class Schedule(Strict):
    """When the DAGs run: a cron expression (UTC) or one of the words; null for never by itself.

    :param ingest: ``daily`` or cron; each run takes the days that have ended since the run before.
    :param train: ``weekly``, ``daily``, ``monthly`` or cron; drift can start it besides.
    :param monitor: ``nightly``: as soon as a day has been published.
    """

    ingest: Cron | None = "daily"
    train: Cron | None = "weekly"
    monitor: Literal["nightly"] | None = "nightly"


class PipelineSpec(Strict):
    """One model's life.

    :param name: of the model, its table and its DAGs.
    :param description: the question that the model answers, for readers.
    :param owner: of the DAGs.
    :param places: where things are.
    :param encryption: ``required`` refuses to write to a lake whose connection names no KMS key.
    :param spark: where Spark runs.
    :param source: where the raw rows are.
    :param contract: what the rows promise.
    :param label: what is predicted: a condition over the contract's columns, such as ``arr_delay > 15``.
    :param label_known_after: how long after its event a row's label is known.
    :param features: expressions over columns that are known before the event, by feature name.
    :param sample: which rows are trained on.
    :param train: how a model is trained.
    :param gate: what a version must fulfil to be deployed.
    :param deploy: where a version that passed is served.
    :param monitor: how each night is judged.
    :param warehouse: how the warehouse's table is made.
    :param alerts: who is told when a task has failed, or when nights have drifted.
    :param alert_again_after: the same finding of nights is not sent to a channel again for so long.
    :param runbook: address of what to do, in every alert.
    :param schedule: when the DAGs run.
    """

    name: Name
    description: str = ""
    owner: str = "airflow"
    places: Places = Places()
    encryption: Literal["none", "required"] = "none"
    spark: Spark = Spark()
    source: Source
    contract: Contract
    label: Formula
    label_known_after: Duration = Field(default="0s", validate_default=True)
    features: dict[Name, Formula] = Field(min_length=1)
    sample: Sample = Sample()
    train: Train
    gate: Gate = Gate()
    deploy: Deploy = Deploy()
    monitor: Monitor = Monitor()
    warehouse: Warehouse = Warehouse()
    alerts: list[EmailAlert | SlackAlert | PagerDutyAlert] = []
    alert_again_after: Duration = Field(default="3 days", validate_default=True)
    runbook: str | None = None
    schedule: Schedule = Schedule()

    @cached_property
    def dataset(self) -> Dataset:
        """The part that the engine knows: source, contract, features and label."""
        return Dataset.model_construct(
            name=self.name, source=self.source, contract=self.contract, features=self.features, label=self.label
        )

    @property
    def left_out(self) -> list[str]:
        """The features that monitoring does not compare."""
        columns = self.monitor.columns
        if isinstance(columns, LeaveOut):
            return list(columns.leave_out)
        return [name for name in self.features if name not in columns.only]
