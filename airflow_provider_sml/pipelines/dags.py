"""The DAGs of one model, from its spec.

``NAME_ingest`` publishes days, ``NAME_train`` makes and judges versions, ``NAME_deploy`` brings a version that passed
to its target, ``NAME_monitor`` looks at each night. Assets link them: a published day starts monitoring, a version that
passed starts deployment, enough nights of drift start training.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, Param

try:
    from airflow.sdk import AssetOrTimeSchedule, CronDataIntervalTimetable, CronTriggerTimetable
except ImportError:  # Airflow 3.1
    from airflow.timetables.assets import AssetOrTimeSchedule
    from airflow.timetables.interval import CronDataIntervalTimetable
    from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_sml.hooks.places import is_location
from airflow_provider_sml.notifications.alert import AlertNotifier
from airflow_provider_sml.operators.clusters import KINDS
from airflow_provider_sml.operators.costs import CostReportOperator
from airflow_provider_sml.operators.decision import RequestRetrainingOperator
from airflow_provider_sml.operators.deployment import DeployModelOperator
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from airflow_provider_sml.operators.gate import GateOperator
from airflow_provider_sml.operators.monitoring import DriftReportOperator, ScorePartitionsOperator
from airflow_provider_sml.operators.performance import PerformanceReportOperator
from airflow_provider_sml.operators.profiles import ProfilePartitionsOperator
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator
from airflow_provider_sml.operators.sampling import PlanSampleOperator, SampleOperator
from airflow_provider_sml.operators.search import SearchHyperparametersOperator
from airflow_provider_sml.operators.training import (
    EvaluateModelOperator,
    RegisterModelOperator,
    TrainXGBoostOperator,
)
from airflow_provider_sml.operators.training_services import SERVICES, job_arguments
from airflow_provider_sml.operators.vertex import VertexTrainOperator
from airflow_provider_sml.operators.warehouse import PublishWarehouseOperator
from airflow_provider_sml.pipelines.checks import PATH_PLACES
from airflow_provider_sml.pipelines.forms import (
    deploy_params,
    ingest_params,
    monitor_params,
    train_params,
    training_clusters,
)
from airflow_provider_sml.pipelines.interval import MACROS
from airflow_provider_sml.pipelines.loader import PipelineSpecError, load_spec
from airflow_provider_sml.pipelines.pictures import compared_with, picture
from airflow_provider_sml.pipelines.spec import PipelineSpec
from airflow_provider_sml.sensors.landing import LandedFilesSensor

_WORDS = {"daily": "0 0 * * *", "weekly": "0 3 * * 1", "monthly": "0 3 1 * *"}
#: Days that may wait for their files at once.
_WAITING_DAYS = 7
# Early, because a task of a run before its start date would silently not exist; nothing is caught up.
_START = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def build_dags(
    path: str | Path,
    into: MutableMapping[str, Any] | None = None,
    profile: str | None = None,
    default_args: Mapping[str, Any] | None = None,
) -> dict[str, DAG]:
    """Build the DAGs of a spec.

    :param path: of the spec, from the project's root: the folder that dags/ and include/ lie in.
    :param into: ``globals()`` of the DAG file, where Airflow looks for DAGs.
    :param profile: name of a profile beside the spec; the environment variable ``SML_PROFILE`` when None.
    :param default_args: over those that every task gets, such as ``{"retries": 5}``.
    :returns: the DAGs by id.
    :raises PipelineSpecError: when the spec is wrong.
    """
    caller = (into or {}).get("__file__") or sys._getframe(1).f_globals.get("__file__")
    found, root = locate(path, Path(caller) if caller else None)
    spec = load_spec(found, profile)
    dags = {dag.dag_id: dag for dag in _Builder(spec, root, default_args or {}).all()}
    if into is not None:
        into.update(dags)
    return dags


def locate(path: str | Path, caller: Path | None) -> tuple[Path, Path]:
    """The spec's file and the project's root.

    :param path: as given.
    :param caller: the DAG file; its folder and the folders above are tried, then the current one.
    """
    path = Path(path)
    if path.is_absolute():
        folders = [parent for parent in path.parents if parent.name == "include"]
        return path, folders[0].parent if folders else path.parent
    tried = [*(caller.resolve().parents if caller else ()), Path.cwd()]
    for root in tried:
        if (root / path).is_file():
            return root / path, root
    raise PipelineSpecError(
        f"{path} is not there",
        expected="a spec file, given from the project's root",
        found=f"none in {', '.join(str(folder) for folder in tried[:3])}",
        todo="give the path from the folder that dags/ and include/ lie in",
    )


def train_is_paid(spec: PipelineSpec) -> bool:
    """Whether training takes what somebody bills by the hour, as far as the spec says."""
    train = spec.train
    priced = bool(train.usd_per_hour or (train.spot and train.spot.usd_per_hour))
    return priced or train.cluster in (*KINDS, *SERVICES)


class _Builder:
    """Builds the four DAGs of a spec whose places start at a root."""

    def __init__(self, spec: PipelineSpec, root: Path, default_args: Mapping[str, Any]) -> None:
        self.spec = spec
        self.default_args = default_args
        self.root = root
        places = spec.places
        self.lake = self.place(places.lake)
        self.mlflow = self.place(places.mlflow)
        self.reports = self.place(places.reports)
        self.places = {name: self.place(getattr(places, name)) for name in PATH_PLACES}
        self.channels = [alert.model_dump() for alert in spec.alerts]
        # A scheme of one's own starts with x-: for any other Airflow imports the URI handlers of all providers at
        # parsing, those of Amazon and Google with all their libraries.
        self.published = Asset(f"x-sml://{spec.name}/published")
        self.passed = Asset(f"x-sml://{spec.name}/passed")
        self.deployed = Asset(f"x-sml://{spec.name}/deployed")
        self.drift = Asset(f"x-sml://{spec.name}/drift")

    def place(self, value: str) -> str:
        """A place as operators take it: relative paths start at the root."""
        return str(self.root / value) if is_location(value) and "://" not in value else value

    def all(self) -> list[DAG]:
        """The DAGs."""
        return [self.ingest(), self.train(), self.deploy(), self.monitor()]

    def dag(self, stage: str, schedule: Any, doc: str, params: dict[str, Param], runs: int = 1) -> DAG:
        """A DAG of the model with what all have in common.

        :param runs: how many may go on at once; each of their tasks still runs one at a time.
        """
        spec = self.spec
        return DAG(
            f"{spec.name}_{stage}",
            schedule=schedule,
            start_date=_START,
            catchup=False,
            max_active_runs=runs,
            params=params,
            tags=["sml", spec.name, stage],
            description=f"{spec.name}: {doc.splitlines()[0]}",
            doc_md=f"### {spec.name}: {stage}\n{spec.description}\n\n{doc}\n\n```text\n{picture(stage, spec)}\n```",
            user_defined_macros=MACROS,
            default_args={
                "owner": spec.owner,
                "retries": 2,
                "max_active_tis_per_dag": 1,
                "retry_delay": dt.timedelta(minutes=1),
                "on_failure_callback": self.alert(),
                "encryption": spec.encryption,
                **self.default_args,
            },
        )

    def alert(self) -> AlertNotifier:
        """What happens when a task has failed for good."""
        return AlertNotifier(
            title=f"{self.spec.name}: {{{{ ti.task_id }}}} failed",
            body="{{ dag.dag_id }}, run {{ run_id }}: {{ exception | default('see the log') }}",
            severity="critical",
            channels=self.channels,
            runbook=self.spec.runbook or "",
        )

    # --- the DAGs -------------------------------------------------------------------------------------------------

    def ingest(self) -> DAG:
        """Landed files to lake and warehouse."""
        spec = self.spec
        cron = spec.schedule.ingest
        schedule = CronDataIntervalTimetable(_WORDS.get(cron, cron), timezone="UTC") if cron else None
        doc = "Landed files go through Spark, are checked against the contract, and are published day by day."
        first, last = (f"{{{{ ingest_day('{which}', params, dag_run) }}}}" for which in ("first", "last"))
        # A day whose file is late must not hold back the days after it.
        with self.dag("ingest", schedule, doc, ingest_params(), runs=_WAITING_DAYS) as dag:
            landed = LandedFilesSensor(
                task_id="wait_for_landing", dataset=spec.dataset, places=self.places, lake=self.lake, first=first,
                last=last, mode="reschedule", poke_interval=60, timeout=dt.timedelta(hours=20).total_seconds(),
            )  # fmt: skip
            staged = SparkEtlOperator(
                task_id="etl", dataset=spec.dataset, places=self.places, lake=self.lake, first=first, last=last,
                spark=self.spark(),
            )  # fmt: skip
            snapshot = PublishPartitionsOperator(
                task_id="publish_lake", staged=staged.output, dataset=spec.dataset, outlets=[self.published]
            )
            landed >> staged
            if spec.places.warehouse:
                PublishWarehouseOperator(
                    task_id="publish_warehouse", snapshot=snapshot.output, dataset=spec.dataset,
                    warehouse=self.place(spec.places.warehouse), cluster_by=spec.warehouse.cluster_by,
                    location=spec.warehouse.location, kms_key=spec.warehouse.kms, labels=spec.warehouse.labels,
                    max_bytes_billed=spec.warehouse.max_bytes, load=spec.warehouse.load,
                )  # fmt: skip
        return dag

    def train(self) -> DAG:
        """Sample to a judged version."""
        spec = self.spec
        gate = spec.gate
        cron = spec.schedule.train
        schedule: Any = self.drift if spec.monitor.then == "retrain" else None
        if cron:
            timetable = CronTriggerTimetable(_WORDS.get(cron, cron), timezone="UTC")
            schedule = AssetOrTimeSchedule(timetable=timetable, assets=schedule) if schedule else timetable
        auto = spec.sample.rate == "auto"
        doc = (
            "A sample is drawn, a model trained, evaluated on later days, registered, and judged against the champion."
        )
        with self.dag("train", schedule, doc, train_params(spec)) as dag:
            rows: dict[str, Any] = {
                "table": spec.name, "as_of": "{{ params.as_of or '' }}", "train": spec.train.window,
                "validate": spec.train.validate_, "test": spec.train.test, "label_known_after": spec.label_known_after,
                "method": spec.sample.method, "by": spec.sample.by, "key": spec.contract.key,
                "half_life": spec.sample.half_life, "seed": spec.sample.seed, "lake": self.lake,
            }  # fmt: skip
            rate: Any = "{{ params.get('rate', 1) }}"
            if auto:
                rate = PlanSampleOperator(
                    task_id="plan_sample", **rows, dataset=spec.dataset, hyperparameters=spec.train.hyperparameters,
                    tolerance=spec.sample.tolerance, rate="{{ params.rate or '' }}", reports=self.reports,
                ).output  # fmt: skip
            sample = SampleOperator(task_id="sample", **rows, rate=rate, dataset=spec.dataset)
            model = self.trained(sample)
            evaluation = EvaluateModelOperator(
                task_id="evaluate", model=model.output, sample=sample.output, name=spec.name, mlflow=self.mlflow,
                baseline=gate.baseline.by if gate.baseline else [], slices=gate.slices.by if gate.slices else [],
                min_rows=gate.slices.min_rows if gate.slices else 500, reports=self.reports,
            )  # fmt: skip
            version = RegisterModelOperator(
                task_id="register", model=model.output, sample=sample.output, name=spec.name,
                evaluation=evaluation.output, mlflow=self.mlflow,
            )  # fmt: skip
            asked = gate.approval != "none"
            judged = GateOperator(
                task_id="gate", version=version.output, evaluation=evaluation.output, checks=gate.checks,
                approval=asked, mlflow=self.mlflow, reports=self.reports, outlets=[] if asked else [self.passed],
            )  # fmt: skip
            if asked:
                judged >> self.approval(version)
            if train_is_paid(spec):
                judged >> self.costs()  # which waits for no person
        return dag

    def approval(self, version: RegisterModelOperator) -> Any:
        """The person who is asked after the gate."""
        # Imported where it is used: Airflow's forms cost every other DAG file time at parsing.
        from airflow_provider_sml.operators.approval import ApproveModelOperator

        approval = self.spec.gate.approval
        if approval == "none":
            raise TypeError("nobody is asked")
        return ApproveModelOperator(
            task_id="approve", version=version.output, **approval.arguments, mlflow=self.mlflow, reports=self.reports,
            notifiers=[
                AlertNotifier(
                    title=f"{self.spec.name}: a version waits for approval",
                    body="Answer under Required Actions of {{ dag.dag_id }}, run {{ run_id }}.",
                    severity="info", channels=self.channels,
                )
            ],
            outlets=[self.passed],
        )  # fmt: skip

    def trained(self, sample: SampleOperator) -> Any:
        """The task that trains: here, on a cluster, or as a job of a service."""
        spec, train = self.spec, self.spec.train
        if train.cluster not in SERVICES:
            return TrainXGBoostOperator(
                task_id="train", sample=sample.output, dataset=spec.dataset, hyperparameters=self.searched(sample),
                cluster=self.cluster(), workers=train.workers, name=spec.name, mlflow=self.mlflow,
                warm_start=str(train.warm_start or ""), min_workers=train.min_workers or 0, **self.capacity(),
            )  # fmt: skip
        spot, kinds = train.spot, {"sagemaker": SageMakerTrainOperator, "vertex": VertexTrainOperator}
        operator: Any = kinds[train.cluster]
        return operator(
            task_id="train", dataset=spec.dataset,
            training={
                "sample": sample.output, "hyperparameters": train.hyperparameters, "workers": train.workers,
                "name": spec.name, "mlflow": self.mlflow, "warm_start": str(train.warm_start or ""),
                "usd_per_hour": (spot and spot.usd_per_hour) or train.usd_per_hour,
                **({"checkpoint_seconds": spot.every.total_seconds()} if spot else {}),
            },
            **job_arguments(
                train.cluster, train.cluster_settings, spot=spot is not None,
                checkpoint=spot.checkpoint if spot else None,
            ),
        )  # fmt: skip

    def cluster(self) -> str | dict[str, Any]:
        """Where the workers of training and search run: as the form says, where it asks."""
        return "{{ params.cluster }}" if training_clusters(self.spec.train) else self.spec.train.place

    def costs(self) -> Any:
        """The report of what the run cost; it also comes after a task that failed, and the run still counts as such."""
        report = CostReportOperator(task_id="costs", name=self.spec.name, reports=self.reports)
        return report.as_teardown()

    def searched(self, sample: SampleOperator) -> Any:
        """The training's hyper-parameters, which a task searches where the spec says so."""
        spec, train = self.spec, self.spec.train
        if train.search is None:
            return train.hyperparameters
        capacity = self.capacity()
        return SearchHyperparametersOperator(
            task_id="search", sample=sample.output, dataset=spec.dataset, hyperparameters=train.hyperparameters,
            **train.search.model_dump(mode="json"), cluster=self.cluster(), workers=train.workers,
            usd_per_hour=capacity["usd_per_hour"], spot=capacity.get("spot", False), reports=self.reports,
        ).output  # fmt: skip

    def capacity(self) -> dict[str, Any]:
        """What ``TrainXGBoostOperator`` is told of spare capacity and of prices."""
        price, spot = self.spec.train.usd_per_hour, self.spec.train.spot
        if spot is None:
            return {"usd_per_hour": price}
        return {
            "spot": True, "usd_per_hour": spot.usd_per_hour or price, "on_demand_usd_per_hour": price,
            "checkpoint": spot.checkpoint and self.place(spot.checkpoint.replace("{lake}", self.lake)),
            "checkpoint_seconds": spot.every.total_seconds(), "on_demand_after": spot.on_demand_after or 0,
            "on_demand_deadline": spot.deadline.total_seconds() if spot.deadline else 0.0,
        }  # fmt: skip

    def deploy(self) -> DAG:
        """A version that passed to its target."""
        spec = self.spec
        doc = "The version is started beside the serving one, compared with stored scores, put live, and made champion."
        with self.dag("deploy", [self.passed], doc, deploy_params(spec)) as dag:
            deployed = DeployModelOperator(
                task_id="deploy", name=spec.name, port=spec.deploy.port, parity_rows=spec.deploy.parity_rows,
                version="{{ deploy_version(params, triggering_asset_events) }}", mlflow=self.mlflow,
                endpoints=self.place(spec.places.endpoints), outlets=[self.deployed], target="{{ params.target }}",
                settings=spec.deploy.settings, plan="{{ params.dry_run }}",
            )  # fmt: skip
            if spec.deploy.target != "local":
                deployed >> self.costs()
        return dag

    def served(self) -> str | dict[str, Any]:
        """Where the answers of the endpoint are logged."""
        deploy = self.spec.deploy
        if deploy.target == "local":
            return f"{self.place(self.spec.places.endpoints)}/{self.spec.name}/predictions"
        return {"target": deploy.target, "endpoint": self.spec.name, "settings": deploy.settings}

    def spark(self) -> dict[str, Any]:
        """Where Spark runs."""
        return {"on": self.spec.spark.on, **self.spec.spark.settings}

    def drift_parts(self) -> dict[str, Any]:
        """What ``DriftReportOperator`` is told of segments, and of where profiles are made."""
        monitor, warehouse = self.spec.monitor, self.spec.places.warehouse
        parts: dict[str, Any] = {}
        if monitor.segments:
            parts |= {"segment": monitor.segments.by, "min_rows": monitor.segments.min_rows}
        if monitor.profile_in == "warehouse" and warehouse:
            parts["warehouse"] = self.place(warehouse)
        return parts

    def profiled(self, scores: ScorePartitionsOperator, days: Mapping[str, Any]) -> Any:
        """What the report of drift waits for: the scores, or the job that profiles the days after them."""
        spec, monitor = self.spec, self.spec.monitor
        if monitor.profile_in != "spark":
            return scores
        segment = monitor.segments.by if monitor.segments else None
        profiles = ProfilePartitionsOperator(
            task_id="profile", name=spec.name, lake=self.lake, mlflow=self.mlflow, **days, spark=self.spark(),
            reference=monitor.reference, segment=segment, leave_out=spec.left_out,
        )  # fmt: skip
        scores >> profiles
        return profiles

    def monitor(self) -> DAG:
        """Each night."""
        spec = self.spec
        drift = spec.monitor.drift
        doc = f"The day is scored, the predictions are kept, and the day is compared with {compared_with(spec)}."
        days: dict[str, Any] = {
            "first": "{{ monitor_day('first', params, triggering_asset_events) }}",
            "last": "{{ monitor_day('last', params, triggering_asset_events) }}",
        }
        schedule = [self.published] if spec.schedule.monitor else None
        with self.dag("monitor", schedule, doc, monitor_params()) as dag:
            scores = ScorePartitionsOperator(
                task_id="score", name=spec.name, lake=self.lake, mlflow=self.mlflow, **days
            )
            report = DriftReportOperator(
                task_id="drift", name=spec.name, lake=self.lake, mlflow=self.mlflow, **days, share=drift.share,
                numeric=drift.numeric, category=drift.category, rows=spec.monitor.rows,
                source=spec.monitor.report, false_discovery=spec.monitor.false_discovery, keep=spec.monitor.keep,
                leave_out=spec.left_out, label_known_after=spec.label_known_after,
                reference=spec.monitor.reference, reports=self.reports, **self.drift_parts(),
            )  # fmt: skip
            performance = PerformanceReportOperator(
                task_id="performance", name=spec.name, lake=self.lake, mlflow=self.mlflow, **days,
                label_known_after=spec.label_known_after, **spec.monitor.performance.model_dump(),
                served=self.served(), reports=self.reports,
            )  # fmt: skip
            decide, retrain = spec.monitor.decide, spec.monitor.then == "retrain"
            decision = RequestRetrainingOperator(
                task_id="request_retraining", report=report.output, nights=drift.nights, severity=decide.severity,
                cool_down=decide.cool_down, budget=decide.budget, override="{{ params.retraining or '' }}",
                follows="Training starts." if retrain else "Nothing else happens by itself.",
                alert=AlertNotifier(
                    title=f"{spec.name}: drift", channels=self.channels, runbook=spec.runbook or "",
                    state=f"{self.reports}/{spec.name}/alerts",
                    again_after=spec.alert_again_after.total_seconds(),
                ), outlets=[self.drift],
            )  # fmt: skip
            self.profiled(scores, days) >> report
            scores >> performance
            [report, performance] >> decision
        return dag
