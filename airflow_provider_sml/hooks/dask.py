"""The connection to a Dask scheduler."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.places import find_connection, is_location

#: Clusters that need no connection.
EMBEDDED = ("local", "processes")


class DaskHook(BaseHook):
    """Says where a cluster is.

    :param cluster: ``local``, ``processes``, a scheduler's address, or the id of a connection of type ``dask``.
    """

    conn_name_attr = "cluster"
    default_conn_name = "dask"
    conn_type = "dask"
    hook_name = "Dask scheduler"

    def __init__(self, cluster: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster

    def get_conn(self) -> str:
        """What ``ml.training.cluster`` takes: ``local``, ``processes`` or an address."""
        if self.cluster in EMBEDDED or is_location(self.cluster):
            return self.cluster
        connection = find_connection(self.cluster, "")
        assert connection is not None
        if not connection.host:
            raise ConfigurationError(
                f"the connection {self.cluster} has no host", expected="the scheduler's host", found="none"
            )
        return f"{connection.schema or 'tcp'}://{connection.host}:{connection.port or 8786}"

    def test_connection(self) -> tuple[bool, str]:
        """Whether the scheduler answers, for the button in the UI."""
        if self.cluster in EMBEDDED:
            return True, f"{self.cluster}: workers are started for each task"
        try:
            from distributed import Client

            with Client(self.get_conn(), timeout=10, set_as_default=False) as client:
                workers = len(client.scheduler_info(n_workers=-1)["workers"])
        except Exception as error:
            return False, str(error)
        return True, f"{self.get_conn()}: {workers} workers"
