"""The prediction log of a model's endpoint, by where it was deployed."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow_provider_sml.ml.monitoring.served import ServedLog
    from airflow_provider_sml.refs import ModelVersionRef

log = logging.getLogger(__name__)


def served_log(served: str | Mapping[str, Any], version: ModelVersionRef, model_id: str) -> ServedLog | None:
    """The log; None where requests are not logged.

    :param served: as ``PerformanceReportOperator`` takes it.
    :param version: the version in production.
    :param model_id: of it.
    :raises ConfigurationError: for a target that has none.
    """
    from airflow_provider_sml.ml.monitoring.served import LocalLog

    if not served:
        return None
    if not isinstance(served, Mapping):
        return LocalLog(Path(served))
    settings, endpoint = served.get("settings") or {}, str(served.get("endpoint") or version.name)
    if served.get("target") == "sagemaker":
        return _sagemaker(settings, endpoint)
    if served.get("target") == "vertex":
        return _vertex(settings, endpoint, version, model_id)
    raise ConfigurationError(
        "there is no such prediction log", expected="a folder, or the target sagemaker or vertex", found=served
    )


def _sagemaker(settings: Mapping[str, Any], endpoint: str) -> ServedLog | None:
    from airflow_provider_sml.hooks.lake import mount_store
    from airflow_provider_sml.ml.monitoring.served import SageMakerCapture

    uri = str((settings.get("capture") or {}).get("uri", "")).rstrip("/")
    if not uri:
        return None
    return SageMakerCapture(mount_store(f"{uri}/{endpoint}", settings.get("aws_conn_id", "")))


def _vertex(settings: Mapping[str, Any], endpoint: str, version: ModelVersionRef, model_id: str) -> ServedLog | None:
    from airflow_provider_sml.hooks.warehouse import GOOGLE, bigquery_client
    from airflow_provider_sml.ml.monitoring.served import VertexRequests, vertex_sql
    from airflow_provider_sml.operators.deployment_targets import Deployment
    from airflow_provider_sml.operators.deployment_targets.vertex import deployed_ids

    table = str((settings.get("logging") or {}).get("table", "")).removeprefix("bq://")
    if not table:
        return None
    if table.count(".") != 2:
        log.warning("The requests of %s are logged to %s; only project.dataset.table is read here", endpoint, table)
        return None
    client = bigquery_client(settings.get("gcp_conn_id", GOOGLE), settings.get("project") or table.split(".")[0], None)

    def rows(start: dt.datetime, end: dt.datetime) -> Iterable[Mapping[str, Any]]:
        return (dict(row.items()) for row in client.query_and_wait(vertex_sql(table, start, end)))

    deployment = Deployment(endpoint, version.name, version.version, model_id, settings, {})
    return VertexRequests(rows, dict.fromkeys(deployed_ids(deployment), version.version))
