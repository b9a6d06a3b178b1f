"""Where a Spark application runs: this machine's spark-submit, Kubernetes, YARN, EMR Serverless, Dataproc.

One description of the run, one adapter out of it; what differs between the places is in the adapters. And the base of
the operators that run this package's application by a plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.remote_job import Adapter, job_name
from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.hooks.clients import connected, google_project
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.places import home
from airflow_provider_sml.operators.base import lineage, run_key
from airflow_provider_sml.operators.cost import Cost, usage_cost
from airflow_provider_sml.operators.remote_job import RemoteJobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.lake import Lake


@dataclass(frozen=True)
class SparkRun:
    """One run of an application.

    :param name: of the job.
    :param application: the Python file.
    :param arguments: of the application.
    :param conf: Spark settings.
    :param output: what the job gives back.
    :param work: folder for the records and logs of a driver on this machine.
    :param master: Spark master of spark-submit.
    :param tags: lineage, for what is made in a cloud.
    :param input_bytes: what it reads, as far as that is known cheaply.
    """

    name: str
    application: Path
    arguments: list[str]
    conf: Mapping[str, str]
    output: Mapping[str, Any]
    work: str
    master: str
    tags: Mapping[str, str]
    input_bytes: int = 0


def spark_job(run: SparkRun, spark: str | Mapping[str, Any]) -> Adapter:
    """The adapter that runs it.

    :param run: what is run.
    :param spark: ``spark-submit``; or ``on`` with the settings of the place. EMR Serverless takes ``{"on":
        "emr-serverless", "application_id": ..., "role": ..., "code": "s3://folder/for/the/application"}`` and the
        other values of ``cloud.emr_serverless.EmrServerlessJob``, ``aws_conn_id`` and ``region``. Dataproc takes
        ``{"on": "dataproc", "region": ..., "code": "gs://folder/for/the/application"}`` and the other values of
        ``cloud.dataproc.DataprocBatchJob``, ``gcp_conn_id`` and ``project`` (the connection's when there is none).
        Kubernetes takes ``{"on": "kubernetes", "image": ..., "code": "s3://folder/for/the/application"}`` and the
        other values of ``cloud.spark_kubernetes.SparkKubernetesJob``. YARN takes ``{"on": "yarn", "resource_manager":
        "https://..."}`` and the other values of ``cloud.spark_yarn.SparkYarnJob``.
    :raises ConfigurationError: when there is no such place, or a setting is wrong.
    """
    settings = {"on": spark} if isinstance(spark, str) else dict(spark)
    place = settings.pop("on", "spark-submit")
    if place not in _PLACES:
        raise ConfigurationError(
            f"there is no place for Spark named {place!r}", expected=", ".join(_PLACES), found=place,
            todo=did_you_mean(place, _PLACES),
        )  # fmt: skip
    try:
        return _PLACES[place](run, settings)
    except TypeError as error:
        raise ConfigurationError(f"the settings of {place} are wrong", found=str(error)) from error


def _spark_submit(run: SparkRun, settings: dict[str, Any]) -> Adapter:
    from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob

    return SparkSubmitJob(
        name=run.name, application=str(run.application), arguments=run.arguments, work=run.work, master=run.master,
        conf=dict(run.conf), output=dict(run.output), input_bytes=run.input_bytes, **settings,
    )  # fmt: skip


def _emr_serverless(run: SparkRun, settings: dict[str, Any]) -> Adapter:
    from airflow_provider_sml.cloud.emr_serverless import EmrServerlessJob

    entry_point, content = _code(run, settings, "s3://", "EMR Serverless")
    job: EmrServerlessJob = connected(
        EmrServerlessJob(
            name=run.name, entry_point=entry_point, arguments=run.arguments,
            connection=settings.pop("aws_conn_id", "aws_default"), output=dict(run.output),
            conf=dict(run.conf) | dict(settings.pop("conf", {})),
            tags=dict(run.tags) | dict(settings.pop("tags", {})), **settings,
        )
    )  # fmt: skip
    target = urlsplit(entry_point)
    job.call("s3", "put_object", Bucket=target.netloc, Key=target.path.lstrip("/"), Body=content)
    return job


def _kubernetes(run: SparkRun, settings: dict[str, Any]) -> Adapter:
    from airflow_provider_sml.cloud.spark_kubernetes import SparkKubernetesJob
    from airflow_provider_sml.ml import storage

    entry_point, content = _code(run, settings, "", "Spark on Kubernetes")
    storage.write(storage.place(entry_point), content)
    return SparkKubernetesJob(
        name=run.name, entry_point=entry_point, arguments=run.arguments, output=dict(run.output),
        conf=dict(run.conf) | dict(settings.pop("conf", {})), tags=dict(run.tags) | dict(settings.pop("tags", {})),
        **settings,
    )  # fmt: skip


def _yarn(run: SparkRun, settings: dict[str, Any]) -> Adapter:
    from airflow_provider_sml.cloud.spark_yarn import SparkYarnJob

    return SparkYarnJob(
        name=run.name, entry_point=str(run.application), arguments=run.arguments, output=dict(run.output),
        conf=dict(run.conf) | dict(settings.pop("conf", {})), tags=dict(run.tags) | dict(settings.pop("tags", {})),
        **settings,
    )  # fmt: skip


def _dataproc(run: SparkRun, settings: dict[str, Any]) -> Adapter:
    from airflow_provider_sml.cloud.dataproc import DataprocBatchJob

    entry_point, content = _code(run, settings, "gs://", "Dataproc Serverless")
    connection = settings.pop("gcp_conn_id", "google_cloud_default")
    job: DataprocBatchJob = connected(
        DataprocBatchJob(
            name=run.name, entry_point=entry_point, arguments=run.arguments, connection=connection,
            project=settings.pop("project", "") or google_project(connection), output=dict(run.output),
            conf=dict(run.conf) | dict(settings.pop("conf", {})),
            labels=dict(run.tags) | dict(settings.pop("labels", {})), **settings,
        )
    )  # fmt: skip
    job.keep(entry_point, content, job.kms_key)
    return job


def _code(run: SparkRun, settings: dict[str, Any], scheme: str, place: str) -> tuple[str, bytes]:
    """Where the application is to lie, and its content."""
    code = str(settings.pop("code", ""))
    if not code or not code.startswith(scheme):
        where = scheme or "a store or volume that the cluster reaches"
        raise ConfigurationError(
            f"{place} reads the application from {where}", expected=f"code: a folder in {where}", found=code or "none"
        )
    content = run.application.read_bytes()
    # Named by its content: another version of this package never changes the code of a job that runs.
    name = f"{run.application.stem}-{hashlib.sha256(content).hexdigest()[:12]}.py"
    return f"{code.rstrip('/')}/{name}", content


_PLACES: dict[str, Callable[[SparkRun, dict[str, Any]], Adapter]] = {
    "spark-submit": _spark_submit,
    "kubernetes": _kubernetes,
    "yarn": _yarn,
    "emr-serverless": _emr_serverless,
    "dataproc": _dataproc,
}


class SparkPlanOperator(RemoteJobOperator):
    """Runs this package's Spark application by a plan. A retry after a crash attaches to the driver that still runs.

    :param spark: where Spark runs: ``spark-submit``, or a place in a cloud as ``operators.spark.spark_job`` takes it.
    :param master: Spark master of spark-submit.
    :param spark_conf: Spark settings, over those that the plan needs.
    """

    template_fields: Sequence[str] = ("spark", "master", "spark_conf")
    ui_color = "#fbe9c6"
    #: Location of the lake, or the id of its connection.
    lake: str
    #: What the service told of the job's resources and their price.
    _usage: Mapping[str, Any] | None = None

    def __init__(
        self,
        *,
        spark: str | Mapping[str, Any] = "spark-submit",
        master: str = "local[*]",
        spark_conf: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spark = spark
        self.master = master
        self.spark_conf = spark_conf or {}

    def stage(self, context: Context, lake: Lake, table: str) -> Path:
        """A fresh folder for the plan and what comes of it, named after the job."""
        return lake.stage(table, job_name(*run_key(context)))

    def application(
        self, context: Context, lake: Lake, output: Path, conf: Mapping[str, str], facts: Mapping[str, Any], size: int
    ) -> Adapter:
        """The job that executes the plan ``output/plan.json``.

        :param lake: which the plan is about.
        :param output: what ``stage`` gave.
        :param conf: Spark settings that the plan needs.
        :param facts: what the job gives back beside the folder, as ``uri``.
        :param size: bytes that it reads, as far as that is known cheaply.
        """
        from airflow_provider_sml.ml.etl import plan

        run = SparkRun(
            name=job_name(*run_key(context)),
            application=Path(plan.__file__).with_name("application.py"),
            arguments=[str(output / "plan.json")],
            work=f"{home()}/jobs" if lake.is_remote else f"{lake.location}/jobs",
            master=self.master,
            conf=dict(conf) | lake.spark_conf() | dict(self.spark_conf),
            output={"uri": str(output), **facts},
            tags=lineage(context),
            input_bytes=size,
        )
        return spark_job(run, self.spark)

    def secrets(self) -> dict[str, str]:
        """On this machine the credentials of the lake's store; elsewhere the job's own role reads the lake."""
        place = self.spark if isinstance(self.spark, str) else self.spark.get("on", "spark-submit")
        return LakeHook(self.lake).get_conn().spark_env() if place == "spark-submit" else {}

    def finish(self, context: Context, result: dict[str, Any]) -> Any:
        """Tell what the job used; a subclass goes on from there."""
        self._usage = result.get("usage")
        if usage := self._usage:
            cost = "" if usage["cost_usd"] is None else f", about {usage['cost_usd']:.4f} USD"
            self.log.info(
                "%s: %.2f vCPU-hours, %.2f GB-hours%s", usage["job"], usage["vcpu_hours"], usage["gb_hours"], cost
            )
        return result

    def costs(self, result: Any) -> list[Cost]:
        """What the job cost, where it ran at a service that tells."""
        return usage_cost(self._usage)
