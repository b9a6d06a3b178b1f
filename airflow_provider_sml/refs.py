"""What passes between tasks: small frozen value objects that name exactly what was made.

Each is a few hundred bytes of JSON in XCom; the data itself lies in the lake, in MLflow or on disk. ``to_xcom`` gives a
plain dictionary, which every XCom backend stores; ``load`` takes one back, whether it comes as the object, as that
dictionary, or as JSON text out of a template.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from airflow_provider_sml.errors import ConfigurationError


@dataclass(frozen=True)
class Ref:
    """Base of the value objects."""

    kind: ClassVar[str] = "ref"

    def to_xcom(self) -> dict[str, Any]:
        """The object as a dictionary of plain JSON values, with its kind."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def load(cls, value: Any) -> Self:
        """Take an object back from XCom.

        :param value: the object itself, its dictionary, or that dictionary as JSON text.
        :raises ConfigurationError: when the value is something else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, Mapping) and value.get("kind") == cls.kind:
            names = {each.name for each in fields(cls)}
            if names >= set(value) - {"kind"}:
                return cls(**{key: item for key, item in value.items() if key != "kind"})
        found = f"a {value['kind']}" if isinstance(value, Mapping) and "kind" in value else repr(value)[:200]
        raise ConfigurationError(
            f"a {cls.kind} was asked for",
            expected=f"the output of a task that makes a {cls.kind}",
            found=found,
            todo="pass the .output of that task",
        )


@dataclass(frozen=True)
class StagedRef(Ref):
    """Files written to a fresh place, checked by nobody yet and visible to no reader.

    :param lake: the lake as the operator was given it: a connection's id or a location, never a credential.
    :param table: name of the table they are meant for.
    :param uri: the folder of the run: ``data/``, ``quarantine/`` and ``report.json`` lie in it.
    :param first: first day of the interval, ``YYYY-MM-DD``.
    :param last: last day of the interval, inclusive.
    :param rows_in: rows read from the source.
    :param rows_good: rows that fulfil the contract.
    :param rows_bad: rows in quarantine.
    """

    kind: ClassVar[str] = "staged"
    lake: str
    table: str
    uri: str
    first: str
    last: str
    rows_in: int
    rows_good: int
    rows_bad: int


@dataclass(frozen=True)
class SnapshotRef(Ref):
    """One state of a lake table.

    :param lake: the lake as the operator was given it: a connection's id or a location, never a credential.
    :param table: name of the table.
    :param snapshot_id: Iceberg's id of the snapshot: the version of the data.
    :param first: first day that this publish replaced.
    :param last: last day that it replaced, inclusive.
    :param rows: rows of those days.
    :param total_rows: rows of the whole table at this snapshot.
    """

    kind: ClassVar[str] = "snapshot"
    lake: str
    table: str
    snapshot_id: int
    first: str
    last: str
    rows: int
    total_rows: int


@dataclass(frozen=True)
class TagRef(Ref):
    """A name that keeps a snapshot.

    :param lake: the lake as the operator was given it.
    :param table: name of the table.
    :param tag: the name.
    :param snapshot_id: what it names.
    """

    kind: ClassVar[str] = "tag"
    lake: str
    table: str
    tag: str
    snapshot_id: int


@dataclass(frozen=True)
class DifferenceRef(Ref):
    """What two snapshots of a table differ in.

    :param lake: the lake as the operator was given it.
    :param table: name of the table.
    :param before: the first snapshot.
    :param after: the second one.
    :param days_added: number of days that only the second one has.
    :param days_removed: number of days that only the first one has.
    :param days_changed: number of days of both with other files.
    :param rows_added: rows that only the second one has.
    :param rows_removed: rows that only the first one has.
    :param rows_changed: rows of the same key with other values.
    """

    kind: ClassVar[str] = "difference"
    lake: str
    table: str
    before: int
    after: int
    days_added: int
    days_removed: int
    days_changed: int
    rows_added: int
    rows_removed: int
    rows_changed: int


@dataclass(frozen=True)
class MaintenanceRef(Ref):
    """What one upkeep of a lake did.

    :param lake: the lake as the operator was given it.
    :param files_merged: how many files fewer the tables have.
    :param snapshots_expired: snapshots that went.
    :param files_deleted: orphans deleted.
    :param bytes_deleted: their size.
    :param skipped: days and folders left for the next time, because somebody was at work on them.
    """

    kind: ClassVar[str] = "maintenance"
    lake: str
    files_merged: int
    snapshots_expired: int
    files_deleted: int
    bytes_deleted: int
    skipped: list[str]


@dataclass(frozen=True)
class WarehouseRef(Ref):
    """Days of a lake table that a warehouse took over, with as many rows of the same checksum.

    :param warehouse: where, as the operator was told.
    :param table: name of the table.
    :param snapshot_id: the snapshot of the lake that the rows are of.
    :param first: first day.
    :param last: last day, inclusive.
    :param rows: rows of those days.
    :param cost: what it took, as far as the warehouse tells: ``bytes_billed``, ``slot_ms``, ``run_ms``, the remote
        ``job``; of DuckDB ``total_rows``, the rows of the whole table.
    """

    kind: ClassVar[str] = "warehouse"
    warehouse: str
    table: str
    snapshot_id: int
    first: str
    last: str
    rows: int
    cost: dict[str, Any]


@dataclass(frozen=True)
class SampleRef(Ref):
    """A drawn sample: parquet files by split, with a manifest.

    :param uri: folder of the sample; ``manifest.json`` and a folder per split lie in it.
    :param sample_id: hash of everything that decides its content.
    :param table: the table it was drawn from.
    :param snapshot_id: the snapshot it was drawn from.
    :param method: how the training rows were chosen, such as ``hash``.
    :param rate: share of the rows (of the entities, of the negatives) kept in the training split, 0 to 1.
    :param rows: rows of each split.
    :param lake: the lake that it lies in, as the operator was given it.
    """

    kind: ClassVar[str] = "sample"
    uri: str
    sample_id: str
    table: str
    snapshot_id: int
    method: str
    rate: float
    rows: dict[str, int]
    lake: str = ""


@dataclass(frozen=True)
class SamplePlanRef(Ref):
    """The sampling rate that the planner found.

    :param uri: folder with ``plan.json`` and ``plan.html``.
    :param rate: share of the rows to train on; 1.0 when none below it was good enough.
    :param found: whether a rate below 1 was good enough.
    :param loss: AUC expected to be lost against all rows; None where all are used.
    :param loss_low: lower end of its 95 % interval.
    :param loss_high: upper end.
    """

    kind: ClassVar[str] = "sample_plan"
    uri: str
    rate: float
    found: bool
    loss: float | None
    loss_low: float | None
    loss_high: float | None


@dataclass(frozen=True)
class SearchRef(Ref):
    """What a search for hyper-parameters found; a training takes it in place of its hyper-parameters.

    :param uri: folder with ``trials/`` and ``search.json``.
    :param search_id: hash of everything that decides the trials.
    :param hyperparameters: all of the best trial's, the fixed ones too.
    :param best: those of them that were searched.
    :param metric: metric of the validation rows that decided.
    :param value: of the best trial.
    :param done: trials that came to their end.
    :param pruned: trials that were ended early.
    :param failed: trials that failed.
    :param seconds: in which trials ran, over all starts of the search.
    :param usd: what the trials' workers cost; None when no price is known.
    :param lake: the lake whose store it lies on, as the operator was given it.
    """

    kind: ClassVar[str] = "search"
    uri: str
    search_id: str
    hyperparameters: dict[str, Any]
    best: dict[str, Any]
    metric: str
    value: float
    done: int
    pruned: int
    failed: int
    seconds: float
    usd: float | None
    lake: str = ""


@dataclass(frozen=True)
class ModelRef(Ref):
    """A trained model that is not registered yet.

    :param uri: folder of the model bundle (``bundle.json`` and the model's file, such as ``model.ubj``).
    :param model_id: hash of what decides the model: sample, features, parameters.
    :param digest: SHA-256 of the model's bytes.
    :param sample_id: the sample it was trained on.
    :param rounds: number of boosting rounds kept; 0 of models that are not boosted here.
    :param lake: the lake whose store it lies on, as the operator was given it.
    :param toll: what interruptions cost and checkpoints spared: ``interruptions``, and rounds, seconds and USD, each
        ``..._lost`` and ``..._regained``, and ``seconds_waited``; without what is 0.
    """

    kind: ClassVar[str] = "model"
    uri: str
    model_id: str
    digest: str
    sample_id: str
    rounds: int
    lake: str = ""
    toll: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRef(Ref):
    """The evaluation of a model on rows it has not seen.

    :param uri: folder with ``evaluation.json`` and ``evaluation.html``.
    :param model_id: the model that was evaluated.
    :param rows: number of rows.
    :param auc: area under the ROC curve.
    :param auc_low: lower end of its 95 % bootstrap interval.
    :param auc_high: upper end.
    :param baseline_auc: the AUC of the plain baseline on the same rows.
    :param ece: expected calibration error, 0 to 1.
    """

    kind: ClassVar[str] = "evaluation"
    uri: str
    model_id: str
    rows: int
    auc: float
    auc_low: float
    auc_high: float
    baseline_auc: float | None
    ece: float


@dataclass(frozen=True)
class ModelVersionRef(Ref):
    """A version in the MLflow registry.

    :param registry: tracking URI of the registry, without any secret.
    :param name: registered model.
    :param version: version number, as MLflow's text.
    :param run_id: the MLflow run that logged it.
    :param model_id: the trained model's id.
    """

    kind: ClassVar[str] = "model_version"
    registry: str
    name: str
    version: str
    run_id: str
    model_id: str


@dataclass(frozen=True)
class LineageRef(Ref):
    """A report on lineage.

    :param uri: folder with ``lineage.json`` and ``lineage.html``.
    :param name: the registered model, or the table.
    :param subject: the version, or the snapshot and the day, as a folder's name.
    :param versions: how many versions it names.
    """

    kind: ClassVar[str] = "lineage"
    uri: str
    name: str
    subject: str
    versions: int


@dataclass(frozen=True)
class ReproductionRef(Ref):
    """A registered version, trained again from its lineage, beside what is registered.

    :param name: registered model.
    :param version: version number.
    :param equal: whether the model's bytes are the same.
    :param digest: SHA-256 of the bytes of the model that was trained again.
    :param rounds: its boosting rounds.
    :param rows: test rows of the sample, on which the two are compared.
    :param max_difference: largest absolute difference of two scores of a row, 0 to 1.
    :param auc_difference: its AUC minus the registered one's; None where the rows have one label only.
    :param log_loss_difference: its log loss minus the registered one's.
    :param moved: what is not as it was: the versions of this package and of XGBoost.
    """

    kind: ClassVar[str] = "reproduction"
    name: str
    version: str
    equal: bool
    digest: str
    rounds: int
    rows: int
    max_difference: float
    auc_difference: float | None
    log_loss_difference: float
    moved: list[str]


@dataclass(frozen=True)
class VerdictRef(Ref):
    """What the gate said of a version.

    :param name: registered model.
    :param version: version number.
    :param passed: whether every check passed.
    :param checks: number of checks.
    :param failed: names of the failed ones.
    :param uri: folder with ``gate.json`` and ``gate.html``.
    """

    kind: ClassVar[str] = "verdict"
    name: str
    version: str
    passed: bool
    checks: int
    failed: list[str]
    uri: str


@dataclass(frozen=True)
class ApprovalRef(Ref):
    """What a person decided on a version that passed its gate.

    :param name: registered model.
    :param version: version number.
    :param decision: ``approved``, ``rejected``, or ``unanswered``.
    :param by: name of the user; empty when nobody answered in time.
    :param time: of the decision, ISO 8601.
    :param comment: what the user wrote with it.
    """

    kind: ClassVar[str] = "approval"
    name: str
    version: str
    decision: str
    by: str
    time: str
    comment: str


@dataclass(frozen=True)
class EndpointRef(Ref):
    """An endpoint that serves a version.

    :param name: endpoint.
    :param target: where it runs: ``local``, ``sagemaker`` or ``vertex``.
    :param url: address of ``POST /invocations``.
    :param model: registered model.
    :param version: the version it serves.
    :param parity_rows: stored rows on which the endpoint and the stored model gave the same score.
    """

    kind: ClassVar[str] = "endpoint"
    name: str
    target: str
    url: str
    model: str
    version: str
    parity_rows: int


@dataclass(frozen=True)
class CostReportRef(Ref):
    """What a DAG run cost; estimates, in USD.

    :param uri: folder with ``costs.json`` and ``costs.html``.
    :param name: what the report stands with: a model, or the DAG.
    :param run: the run's id as a folder's name.
    :param dag_id: of the run.
    :param run_id: of the run.
    :param usd: what its tasks cost, as far as prices are known.
    :param saved_usd: what they would have cost more on demand.
    :param unknown: costs without a price.
    :param usd_per_hour: what was deployed and goes on costing.
    """

    kind: ClassVar[str] = "costs"
    uri: str
    name: str
    run: str
    dag_id: str
    run_id: str
    usd: float
    saved_usd: float
    unknown: int
    usd_per_hour: float


@dataclass(frozen=True)
class TrainingJobRef(Ref):
    """A training job that ended well in a cloud, with what it cost.

    :param job: its name.
    :param model: address of the artefact that it left.
    :param instance: machine type.
    :param count: machines.
    :param spot: whether they were spot machines.
    :param started: when training began, ISO 8601.
    :param ended: when it ended.
    :param training_seconds: seconds of training.
    :param billable_seconds: seconds that are billed; where the service does not tell them, the most that they can be.
    :param interruptions: how often spot machines were taken away; None where the service does not tell.
    :param savings_percent: of SageMaker ``(1 - billable / training) x 100``, AWS's formula; of Vertex AI what the table
        of prices says of spot machines, None when it says nothing.
    :param cost_usd: estimate from the table of prices; None when it holds no price for the machine.
    """

    kind: ClassVar[str] = "training_job"
    job: str
    model: str
    instance: str
    count: int
    spot: bool
    started: str
    ended: str
    training_seconds: int
    billable_seconds: int
    interruptions: int | None
    savings_percent: float | None
    cost_usd: float | None


@dataclass(frozen=True)
class PerformanceRef(Ref):
    """One night's report of performance.

    :param model: model that was monitored.
    :param day: the last day that had ended, ``YYYY-MM-DD``.
    :param findings: what is worth telling, the gravest first, five at most.
    :param realised_day: the last day whose labels are known; None where there is none.
    :param realised_auc: its AUC.
    :param estimated_auc: what is estimated of ``day``; None where it was not scored.
    :param uri: the HTML report; the same path ending in ``.json`` holds the numbers.
    """

    kind: ClassVar[str] = "performance"
    model: str
    day: str
    findings: list[str]
    realised_day: str | None
    realised_auc: float | None
    estimated_auc: float | None
    uri: str


@dataclass(frozen=True)
class ProfilesRef(Ref):
    """Profiles of days that a Spark job made.

    :param model: model that they are for.
    :param table: table whose days they are of.
    :param features: days whose features were profiled, ``YYYY-MM-DD``; those that had a profile are not among them.
    :param scores: days whose scores were profiled.
    """

    kind: ClassVar[str] = "profiles"
    model: str
    table: str
    features: list[str]
    scores: list[str]


@dataclass(frozen=True)
class ReportRef(Ref):
    """One night's monitoring report.

    :param model: model that was monitored.
    :param day: the day of the data, ``YYYY-MM-DD``.
    :param verdict: ``quiet`` or ``drift``.
    :param share: share of the columns that drifted, 0 to 1.
    :param drifted: columns that drifted, the furthest first.
    :param rows: rows of the day.
    :param uri: the HTML report; the same path ending in ``.json`` holds the numbers.
    """

    kind: ClassVar[str] = "report"
    model: str
    day: str
    verdict: str
    share: float
    drifted: list[str]
    rows: int
    uri: str
