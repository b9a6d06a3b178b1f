"""The connection to the lake."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.places import find_connection, home, is_location

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Connection

    from airflow_provider_sml.ml.lake import CatalogSettings, Lake
    from airflow_provider_sml.ml.storage import Store


class LakeHook(BaseHook):
    """Opens the lake.

    The connection's fields: ``location``; of the store ``storage_conn_id`` (an ``aws`` or ``google_cloud_platform``
    connection) or ``access_key`` and ``secret_key``, else the environment's own credentials, ``endpoint``, ``region``,
    ``kms_key``; of the catalog ``catalog``, ``catalog_uri``, ``namespace``, ``catalog_properties``, and the
    connection's own login and password.

    :param lake: its location, or the id of a connection of type ``sml_lake``; the default connection when empty.
    """

    conn_name_attr = "lake"
    default_conn_name = "sml_lake"
    conn_type = "sml_lake"
    hook_name = "SML lake"

    def __init__(self, lake: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lake = lake or self.default_conn_name

    def get_conn(self) -> Lake:
        """The lake. Its store is mounted, so that ``storage.place`` reaches everything below it from now on."""
        from airflow_provider_sml.ml.lake import Lake

        connection = self._connection()
        if connection is None:
            return Lake(self.location())
        values = connection.extra_dejson
        location = values.get("location") or f"{home()}/lake"
        return Lake(location, _store(values), _catalog(connection), name=self.lake)

    def location(self) -> str:
        """Where the lake is."""
        if is_location(self.lake):
            return self.lake
        connection = self._connection()
        location = connection.extra_dejson.get("location") if connection else None
        return location or f"{home()}/lake"

    def place(self, uri: str) -> Path:
        """A place that belongs to the lake, such as a sample's or a model's folder, ready to be read.

        :param uri: its path or address.
        """
        from airflow_provider_sml.ml import storage

        if storage.is_remote(uri):
            self.get_conn()
        return storage.place(uri)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the lake can be read and written, for the button in the UI."""
        from airflow_provider_sml.ml import storage

        try:
            lake = self.get_conn()
            tables = lake.tables()
            probe = lake.root / f".test-{uuid.uuid4().hex[:8]}"
            storage.write(probe, "")
            probe.unlink()
        except Exception as error:
            return False, str(error)
        return True, f"{lake.location}: {len(tables)} tables"

    def _connection(self) -> Connection | None:
        return None if is_location(self.lake) else find_connection(self.lake, self.default_conn_name)


def mount_store(location: str, connection: str = "") -> Path:
    """A place on an object store that is reached through a connection, unless it can be reached already.

    :param location: an ``s3://`` or ``gs://`` address.
    :param connection: id of an ``aws`` or ``google_cloud_platform`` connection; the default one, which may be missing,
        when empty.
    """
    from airflow_provider_sml.ml import storage
    from airflow_provider_sml.ml.storage import Store

    if not storage.is_reached(location):
        google = location.startswith(("gs://", "gcs://"))
        default = "google_cloud_default" if google else "aws_default"
        found = find_connection(connection or default, default)
        if found:
            storage.mount(location, Store(**(_google if google else _aws)(connection or default)))
    return storage.place(location)


def _store(values: dict[str, Any]) -> Store:
    """How the store is reached, from the connection's fields and the connection that they may name."""
    from airflow_provider_sml.ml.storage import Store

    own = {name: values.get(name) or None for name in ("endpoint", "region", "project", "access_key", "secret_key")}
    found: dict[str, Any] = {}
    if conn_id := values.get("storage_conn_id"):
        connection = find_connection(conn_id, "")
        assert connection is not None
        if connection.conn_type == "aws":
            found = _aws(conn_id)
        elif connection.conn_type == "google_cloud_platform":
            found = _google(conn_id)
        else:
            raise ConfigurationError(
                f"the connection {conn_id} gives no access to an object store",
                expected="one of type aws or google_cloud_platform",
                found=connection.conn_type,
            )
    if own["access_key"] == "anonymous":
        own |= {"access_key": None, "secret_key": None}
        found["google"] = "anon"
    return Store(**found | {key: value for key, value in own.items() if value}, kms_key=values.get("kms_key") or None)


def _aws(conn_id: str) -> dict[str, Any]:
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

    hook = AwsBaseHook(aws_conn_id=conn_id, client_type="s3")
    keys = hook.get_credentials()
    return {
        "access_key": keys.access_key,
        "secret_key": keys.secret_key,
        "session_token": keys.token,
        "region": hook.region_name,
        "endpoint": hook.conn_config.get_service_endpoint_url("s3"),
    }


def _google(conn_id: str) -> dict[str, Any]:
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

    hook = GoogleBaseHook(gcp_conn_id=conn_id)
    credentials, project = hook.get_credentials_and_project_id()
    anonymous = type(credentials).__name__ == "AnonymousCredentials"
    return {"google": "anon" if anonymous else credentials, "project": project or None}


def _catalog(connection: Connection) -> CatalogSettings:
    from airflow_provider_sml.ml.lake import CatalogSettings

    values = connection.extra_dejson
    properties = values.get("catalog_properties") or {}
    if isinstance(properties, str):
        try:
            properties = json.loads(properties)
        except ValueError as error:
            raise ConfigurationError(
                "the lake's catalog properties are no JSON", expected='{"warehouse": "prod"}', found=properties
            ) from error
    return CatalogSettings(
        type=values.get("catalog") or "sqlite",
        uri=values.get("catalog_uri") or None,
        user=connection.login or None,
        password=connection.password or None,
        namespace=values.get("namespace") or "lake",
        properties={str(key): str(value) for key, value in properties.items()},
    )
