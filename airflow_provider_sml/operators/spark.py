"""Where a Spark application runs: this machine's spark-submit, Kubernetes, YARN, EMR Serverless, Dataproc.

One description of the run, one adapter out of it; what differs between the places is in the adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.hooks.clients import connected, google_project


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
