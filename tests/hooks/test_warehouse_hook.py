"""Which warehouse a name means, and where clients of it may lead."""

from pathlib import Path

import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.warehouse import (
    BigQueryPlace,
    RedshiftPlace,
    WarehouseHook,
    WarehouseOptions,
    bigquery_client,
    bigquery_write_client,
)
from airflow_provider_sml.ml.warehouse.duckdb import DuckDBWarehouse

pytestmark = pytest.mark.usefixtures("airflow_db")


@pytest.mark.parametrize(
    "path", ["/data/warehouse.duckdb", "file:///data/warehouse.duckdb", "data/x", "x.duckdb", "x.db"]
)
def test_a_path_is_a_duckdb_file(path):
    found = WarehouseHook(path).get_conn()
    assert isinstance(found, DuckDBWarehouse) and found.path == Path(path.removeprefix("file://"))


def test_an_address_of_bigquery(connect):
    options = WarehouseOptions("EU", "k", {"team": "ops"}, 5, "write_api")
    found = WarehouseHook("bigquery://proj/sales", options).get_conn()
    assert found == BigQueryPlace("proj", "sales", "google_cloud_default", options)
    found = WarehouseHook("bigquery://my_google@example.com:proj/sales").get_conn()
    assert (found.project, found.dataset, found.connection) == ("example.com:proj", "sales", "my_google")


@pytest.mark.parametrize(
    "address",
    ["bigquery://proj", "bigquery:///sales", "bigquery://proj/sales/orders", "postgres://host/db", "s3://b/w"],
)
def test_what_is_no_warehouse(address):
    with pytest.raises(ConfigurationError, match=r"is no warehouse(.|\n)*bigquery://PROJECT/DATASET"):
        WarehouseHook(address).get_conn()


def test_connections(connect):
    connect("google", conn_type="google_cloud_platform", extra={"project": "proj", "dataset": "sales"})
    found = WarehouseHook("google").get_conn()
    assert (found.project, found.dataset, found.connection) == ("proj", "sales", "google")
    extra = {"cluster_identifier": "prod", "iam_role": "arn:aws:iam::1:role/copy", "db_schema": "sales"}
    connect("redshift", conn_type="redshift", schema="shop", login="etl", extra=extra)
    assert WarehouseHook("redshift").get_conn() == RedshiftPlace(
        "redshift", "shop", "sales", "arn:aws:iam::1:role/copy", "prod", None, "etl", None
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conn_type": "google_cloud_platform", "extra": {"dataset": "sales"}}, "names no project"),
        ({"conn_type": "gcpbigquery", "extra": {"project": "proj"}}, "names no dataset"),
        ({"conn_type": "redshift"}, "cluster_identifier and workgroup_name; found: none"),
        ({"conn_type": "redshift", "extra": {"cluster_identifier": "a", "workgroup_name": "b"}}, "found: both"),
        ({"conn_type": "postgres"}, "is no warehouse"),
    ],
)
def test_a_connection_that_lacks_something(connect, fields, said):
    connect("warehouse", **fields)
    with pytest.raises(ConfigurationError, match=said):
        WarehouseHook("warehouse").get_conn()


@pytest.mark.parametrize("address", ["http://evil.example:9050", "bigquery.internal:9050", "10.0.0.7:9060", "//"])
def test_credentials_are_sent_to_no_emulator_elsewhere(connect, monkeypatch, address):
    connect("google", conn_type="google_cloud_platform", extra={"is_anonymous": True})
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", address)
    monkeypatch.setenv("BIGQUERY_WRITE_EMULATOR_HOST", address)
    with pytest.raises(ConfigurationError, match=r"BIGQUERY_EMULATOR_HOST leads away(.|\n)*unset"):
        bigquery_client("google", "proj", None)
    with pytest.raises(ConfigurationError, match=r"BIGQUERY_WRITE_EMULATOR_HOST leads away(.|\n)*unset"):
        bigquery_write_client("google")


@pytest.mark.parametrize("address", ["127.0.0.1:9060", "localhost:9060", "[::1]:9060"])
def test_an_emulator_on_this_machine_is_used(connect, monkeypatch, address):
    connect("google", conn_type="google_cloud_platform", extra={"is_anonymous": True})
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://{address}")
    monkeypatch.setenv("BIGQUERY_WRITE_EMULATOR_HOST", address)
    assert address in bigquery_client("google", "proj", None)._connection.API_BASE_URL
    assert bigquery_write_client("google").transport is not None
    monkeypatch.delenv("BIGQUERY_WRITE_EMULATOR_HOST")
    assert bigquery_write_client("google").transport.host == "bigquerystorage.googleapis.com:443"


def test_an_unknown_way_to_load():
    with pytest.raises(ConfigurationError, match=r"load_job or write_api; found: write-api; did you mean write_api\?"):
        WarehouseOptions(load="write-api")
