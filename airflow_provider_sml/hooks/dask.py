"""The connection to a Dask scheduler; that to a Dask Gateway is of the same type, and opened in ``dask_gateway``."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.places import find_connection, is_location

#: Clusters that need no connection.
EMBEDDED = ("local", "processes", "cuda")


class DaskHook(BaseHook):
    """Says where a cluster is.

    :param cluster: ``local``, ``processes``, ``cuda``, a scheduler's address, or the id of a connection of type
        ``dask``.
    """

    conn_name_attr = "cluster"
    default_conn_name = "dask"
    conn_type = "dask"
    hook_name = "Dask scheduler or gateway"

    def __init__(self, cluster: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster

    def get_conn(self) -> str:
        """What ``ml.training.cluster`` takes: ``local``, ``processes``, ``cuda`` or an address."""
        if self.cluster in EMBEDDED or is_location(self.cluster):
            return self.cluster
        connection = find_connection(self.cluster, "")
        assert connection is not None
        if not connection.host:
            raise ConfigurationError(
                f"the connection {self.cluster} has no host", expected="the scheduler's host", found="none"
            )
        if connection.schema in ("http", "https"):
            raise ConfigurationError(
                f"the connection {self.cluster} is one to a Dask Gateway, which is no cluster itself",
                expected="tcp or tls as its protocol", found=connection.schema,
                todo=f'give the cluster as {{"on": "gateway", "connection": "{self.cluster}"}}',
            )  # fmt: skip
        return f"{connection.schema or 'tcp'}://{connection.host}:{connection.port or 8786}"

    def test_connection(self) -> tuple[bool, str]:
        """Whether the scheduler answers, for the button in the UI."""
        if self.cluster in EMBEDDED:
            return True, f"{self.cluster}: workers are started for each task"
        try:
            if self._is_gateway():
                return True, f"{self.cluster}: {self._clusters()} clusters of this user"
            from distributed import Client

            with Client(self.get_conn(), timeout=10, set_as_default=False) as client:
                workers = len(client.scheduler_info(n_workers=-1)["workers"])
        except Exception as error:
            return False, str(error)
        return True, f"{self.get_conn()}: {workers} workers"

    def _is_gateway(self) -> bool:
        connection = None if is_location(self.cluster) else find_connection(self.cluster, "")
        return connection is not None and connection.schema in ("http", "https")

    def _clusters(self) -> int:
        from airflow_provider_sml.hooks.dask_gateway import DaskGatewayHook

        with DaskGatewayHook(self.cluster).get_conn() as gateway:
            return len(gateway.list_clusters())
