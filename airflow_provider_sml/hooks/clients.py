"""Clients of the clouds for adapters, made from Airflow's connections by the official providers' public hooks.

An adapter holds the id of a connection and nothing of its secrets. Clients are kept for some minutes, because making
one takes a tenth of a second of a processor and a triggerer may watch a thousand jobs; a changed connection is noticed
after that time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from airflow_provider_sml.cloud.google import COMPUTE, compute_client, regional_client
from airflow_provider_sml.cloud.remote_job import Adapter, Clients
from airflow_provider_sml.errors import ConfigurationError, require
from airflow_provider_sml.hooks.places import local_emulator

_KEPT_SECONDS = 600.0
_lock = threading.Lock()
_kept: dict[tuple[str, str, str], tuple[float, Any]] = {}


class _HookClients:
    """Clients of a connection.

    :param connection: its id.
    :param region: the region; the connection's when empty.
    """

    def __init__(self, connection: str, region: str = "") -> None:
        self.connection, self.region = connection, region

    def client(self, service: str, fresh: bool = False) -> Any:
        """A client, kept for some minutes.

        :param service: its name in the vendor's library.
        :param fresh: make it anew, with new credentials.
        """
        key, now = (self.connection, self.region, service), time.monotonic()
        with _lock:
            made, client = _kept.get(key, (-_KEPT_SECONDS, None))
            if fresh or client is None or now - made > _KEPT_SECONDS:
                client = self._make(service)
                _kept[key] = (now, client)
        return client

    def _make(self, service: str) -> Any:
        raise NotImplementedError


class AwsHookClients(_HookClients):
    """Clients of boto3, of an AWS connection."""

    def _make(self, service: str) -> Any:
        require("airflow.providers.amazon", "amazon")
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

        hook = AwsBaseHook(aws_conn_id=self.connection or None, client_type=service, region_name=self.region or None)
        return hook.get_client_type()


class GoogleHookClients(_HookClients):
    """Clients of Google Cloud of a connection of type ``google_cloud_platform``: those of ``GoogleClients``."""

    def _make(self, service: str) -> Any:
        require("airflow.providers.google", "google")
        if service == "storage":
            local_emulator("STORAGE_EMULATOR_HOST")
            from airflow.providers.google.cloud.hooks.gcs import GCSHook

            return GCSHook(gcp_conn_id=self.connection).get_conn()
        if service in COMPUTE:
            from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

            credentials = GoogleBaseHook(gcp_conn_id=self.connection).get_credentials()
            return compute_client(service, credentials, local_emulator("SML_COMPUTE_EMULATOR"))
        if service.startswith(("vertex_", "monitoring")):  # the official hooks import Google's whole SDK, for seconds
            from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

            credentials = GoogleBaseHook(gcp_conn_id=self.connection).get_credentials()
            return regional_client(service, self.region, credentials)
        require("google.cloud.dataproc_v1", "google")
        from airflow.providers.google.cloud.hooks.dataproc import DataprocHook

        return DataprocHook(gcp_conn_id=self.connection).get_batch_client(region=self.region)


class KubernetesHookClients(_HookClients):
    """Clients of a Kubernetes cluster, of a connection to it: ``core`` for pods and what belongs to them, ``batch``."""

    def _make(self, service: str) -> Any:
        try:
            from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
            from kubernetes.client import BatchV1Api, CoreV1Api
        except ImportError as error:
            raise ConfigurationError(
                "Kubernetes cannot be reached",
                expected="Airflow's provider for it",
                found=error,
                todo="pip install apache-airflow-providers-cncf-kubernetes",
            ) from error
        api = {"core": CoreV1Api, "batch": BatchV1Api}[service]
        return api(KubernetesHook(conn_id=self.connection or None).get_conn())


class YarnHookClients(_HookClients):
    """Sessions of HTTP for YARN: ``yarn`` for the ResourceManager, ``node`` for its nodes, which get no password."""

    def _make(self, service: str) -> Any:
        from airflow_provider_sml.hooks.yarn import yarn_session

        return yarn_session(self.connection, secrets=service == "yarn")


_PROVIDERS = {
    "aws": AwsHookClients, "google": GoogleHookClients, "kubernetes": KubernetesHookClients, "yarn": YarnHookClients,
}  # fmt: skip


def connected(job: Any) -> Any:
    """An adapter with the clients of its connection; one that needs none is given back as it is.

    :param job: the adapter.
    """
    if isinstance(job, Adapter) and job.provider in _PROVIDERS:
        clients: Clients = _PROVIDERS[job.provider](getattr(job, "connection", ""), getattr(job, "region", ""))
        return job.connect(clients)
    return job


def google_project(connection: str) -> str:
    """The project of a connection: the one that it names, else that of its credentials.

    :param connection: its id.
    :raises ConfigurationError: when it has none.
    """
    require("airflow.providers.google", "google")
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

    project = GoogleBaseHook(gcp_conn_id=connection).project_id
    if not project:
        raise ConfigurationError(
            f"the connection {connection} names no project", expected="the extra project, or a setting project",
            found="none",
        )  # fmt: skip
    return str(project)


def forget_clients() -> None:
    """Drop the clients that are kept, for tests whose servers come and go."""
    with _lock:
        _kept.clear()
