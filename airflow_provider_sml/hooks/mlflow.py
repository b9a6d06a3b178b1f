"""The connection to MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.places import find_connection, home, is_location

if TYPE_CHECKING:
    from airflow_provider_sml.ml.registry import Registry


class MlflowHook(BaseHook):
    """Opens the registry.

    :param mlflow: a server's address, a folder for the embedded store, or the id of a connection of type ``mlflow``.
    """

    conn_name_attr = "mlflow"
    default_conn_name = "mlflow"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow = mlflow

    def get_conn(self) -> Registry:
        """The registry."""
        from airflow_provider_sml.ml.registry import Registry

        uri, credentials = self._place()
        return Registry(uri, credentials)

    def location(self) -> str:
        """Where MLflow is; no secret is in it."""
        return self._place()[0]

    def _place(self) -> tuple[str, dict[str, str]]:
        """Tracking URI and credentials, which are kept apart so that no secret gets into an address."""
        if is_location(self.mlflow):
            return self.mlflow, {}
        connection = find_connection(self.mlflow, self.default_conn_name)
        if connection is None:
            return f"{home()}/mlflow", {}
        uri = connection.extra_dejson.get("tracking_uri") or connection.host or ""
        if not uri:
            raise ConfigurationError(
                f"the connection {self.mlflow} has no address",
                expected="a tracking URI, such as https://mlflow.example.com, or a host",
                found="none",
                todo="fill it in under Admin > Connections",
            )
        if "://" not in uri and not is_location(uri):
            uri = f"{connection.schema or 'https'}://{uri}"
        if connection.port:
            uri = f"{uri}:{connection.port}"
        if connection.login:
            return uri, {"username": connection.login, "password": connection.password or ""}
        return uri, {"token": connection.password or ""}

    def test_connection(self) -> tuple[bool, str]:
        """Whether MLflow answers, for the button in the UI."""
        try:
            names = self.get_conn().models()
        except Exception as error:
            return False, str(error)
        return True, f"{self._place()[0]}: {len(names)} registered models"
