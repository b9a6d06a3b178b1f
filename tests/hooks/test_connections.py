"""Connections: where a place comes from, the forms in the UI, the test buttons, secrets that stay put."""

import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.get_provider_info import get_provider_info
from airflow_provider_sml.hooks.dask import DaskHook
from airflow_provider_sml.hooks.dask_gateway import DaskGatewayHook
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.testing.processes import free_port

pytestmark = pytest.mark.usefixtures("airflow_db")


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- the lake ---------------------------------------------------------------------------------------------------------


def test_a_lake_is_a_location_a_connection_or_the_embedded_one(connect, home):
    assert LakeHook("/data/lake").location() == "/data/lake"
    assert LakeHook().location() == f"{home}/lake"
    connect("sml_lake", conn_type="sml_lake", extra={"location": "/shared/lake"})
    assert LakeHook().location() == "/shared/lake"
    connect("other", conn_type="sml_lake", extra={"location": "/other/lake"})
    assert LakeHook("other").location() == "/other/lake"


def test_the_button_of_a_lake_counts_its_tables_or_says_why_not(connect, tmp_path):
    connect("good", conn_type="sml_lake", extra={"location": str(tmp_path / "lake")})
    assert LakeHook("good").test_connection() == (True, f"{tmp_path}/lake: 0 tables")
    (tmp_path / "file").write_text("")
    connect("bad", conn_type="sml_lake", extra={"location": str(tmp_path / "file")})
    worked, said = LakeHook("bad").test_connection()
    assert not worked and said


# --- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "uri", "credentials"),
    [
        ({"extra": {"tracking_uri": "https://mlflow.example.com"}}, "https://mlflow.example.com", {}),
        ({"host": "mlflow.example.com", "port": 5000}, "https://mlflow.example.com:5000", {}),
        ({"host": "mlflow.example.com", "schema": "http"}, "http://mlflow.example.com", {}),
        ({"host": "http://mlflow.example.com"}, "http://mlflow.example.com", {}),
        ({"extra": {"tracking_uri": "/data/mlflow"}}, "/data/mlflow", {}),
        (
            {"host": "m.example.com", "login": "ada", "password": "hunter2"},
            "https://m.example.com",
            {"username": "ada", "password": "hunter2"},
        ),
        ({"host": "m.example.com", "password": "hunter2"}, "https://m.example.com", {"token": "hunter2"}),
    ],
)
def test_the_forms_of_an_mlflow_connection(connect, fields, uri, credentials):
    connect("mine", conn_type="mlflow", **fields)
    found, given = MlflowHook("mine")._place()
    assert (found, {key: value for key, value in given.items() if value}) == (uri, credentials)
    assert "hunter2" not in found


def test_mlflow_is_embedded_where_nothing_is_defined(home):
    assert MlflowHook()._place() == (f"{home}/mlflow", {})
    assert MlflowHook("https://mlflow.example.com")._place() == ("https://mlflow.example.com", {})


def test_an_mlflow_connection_without_an_address_is_refused(connect):
    connect("empty", conn_type="mlflow", password="hunter2")
    with pytest.raises(ConfigurationError, match="the connection empty has no address") as error:
        MlflowHook("empty").get_conn()
    assert "hunter2" not in str(error.value)


def test_the_button_of_mlflow_counts_models_or_says_why_not(connect, tmp_path, monkeypatch):
    connect("good", conn_type="mlflow", extra={"tracking_uri": str(tmp_path / "mlflow")})
    worked, said = MlflowHook("good").test_connection()
    assert worked and said.endswith("/mlflow: 0 registered models")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    connect("bad", conn_type="mlflow", host="127.0.0.1", schema="http", port=free_port(), password="hunter2")
    worked, said = MlflowHook("bad").test_connection()
    assert not worked and said and "hunter2" not in said


# --- Dask -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["local", "processes", "tcp://10.0.0.1:8786"])
def test_a_cluster_needs_no_connection(cluster):
    assert DaskHook(cluster).get_conn() == cluster


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"host": "dask.example.com"}, "tcp://dask.example.com:8786"),
        ({"host": "dask.example.com", "port": 9000, "schema": "tls"}, "tls://dask.example.com:9000"),
    ],
)
def test_the_forms_of_a_dask_connection(connect, fields, address):
    connect("cluster", conn_type="dask", **fields)
    assert DaskHook("cluster").get_conn() == address


def test_a_dask_connection_without_a_host_is_refused(connect):
    connect("cluster", conn_type="dask")
    with pytest.raises(ConfigurationError, match="the connection cluster has no host"):
        DaskHook("cluster").get_conn()


def test_a_gateway_is_no_cluster_itself(connect):
    connect("gate", conn_type="dask", host="gateway.example.com", schema="https")
    with pytest.raises(ConfigurationError, match=r'Dask Gateway(.|\n)*{"on": "gateway", "connection": "gate"}'):
        DaskHook("gate").get_conn()
    worked, said = DaskHook("gate").test_connection()
    assert not worked and "gateway.example.com" in said


@pytest.mark.parametrize(
    ("fields", "address", "header"),
    [
        ({"login": "ada", "password": "sesame"}, "https://g.example.com", "Basic YWRhOnNlc2FtZQ=="),
        ({"port": 8000, "schema": "http", "extra": {"auth": "jupyterhub"}, "password": "t1"},
         "http://g.example.com:8000", "jupyterhub t1"),
        ({"extra": {"auth": "token", "prefix": "/gateway"}, "password": "t2"}, "https://g.example.com/gateway",
         "Bearer t2"),
    ],
    ids=["basic", "jupyterhub", "token"],
)  # fmt: skip
def test_a_connection_says_how_to_log_in_at_a_gateway(connect, fields, address, header):
    connect("gate", conn_type="dask", host="g.example.com", **fields)
    with DaskGatewayHook("gate").get_conn() as gateway:
        assert gateway.address == address
        assert gateway.auth.pre_request(None)[0] == {"Authorization": header}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema": "tcp"}, "not one to a gateway"),
        ({"extra": {"auth": "magic"}}, "basic, kerberos, jupyterhub, token"),
        ({"login": "ada"}, "login and password"),
        ({"extra": {"auth": "token"}}, "the token as its password"),
        ({"extra": {"auth": "kerberos"}}, "pip install kerberos"),
        ({"host": ""}, "has no host"),
    ],
)
def test_an_incomplete_connection_to_a_gateway_is_refused(connect, fields, said):
    connect("gate", **({"conn_type": "dask", "host": "g.example.com"} | fields))
    with pytest.raises(ConfigurationError, match=said):
        DaskGatewayHook("gate").get_conn()


def test_the_button_of_dask_counts_workers_or_says_why_not(connect):
    from distributed import LocalCluster

    local = {"processes": False, "dashboard_address": None, "host": "127.0.0.1", "protocol": "tcp"}
    with LocalCluster(n_workers=1, **local) as cluster:
        host, port = cluster.scheduler_address.removeprefix("tcp://").split(":")
        connect("good", conn_type="dask", host=host, port=int(port))
        assert DaskHook("good").test_connection() == (True, f"tcp://{host}:{port}: 1 workers")
    connect("bad", conn_type="dask")
    worked, said = DaskHook("bad").test_connection()
    assert not worked and "has no host" in said
    assert DaskHook("local").test_connection()[0]


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda: LakeHook("nobody").location(),
        lambda: MlflowHook("nobody").get_conn(),
        lambda: DaskHook("nobody").get_conn(),
    ],
    ids=["lake", "mlflow", "dask"],
)
def test_an_unknown_connection_is_named_with_what_to_do(ask):
    with pytest.raises(ConfigurationError, match="there is no connection nobody") as error:
        ask()
    assert "AIRFLOW_CONN_NOBODY" in str(error.value)


def test_airflow_finds_the_forms_and_hooks_of_the_connection_types():
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    for described in get_provider_info()["connection-types"]:
        kind = described["connection-type"]
        hook = manager.hooks[kind]
        assert hook is not None and hook.hook_name == described["hook-name"]
        loaded = {"sml_lake": LakeHook, "mlflow": MlflowHook, "dask": DaskHook}[kind]
        assert described["hook-class-name"] == f"{loaded.__module__}.{loaded.__name__}"
        assert (loaded.conn_type, loaded.hook_name) == (kind, described["hook-name"])
        shown = {"host", "port", "login", "password", "schema", "extra"} - set(
            described["ui-field-behaviour"]["hidden-fields"]
        )
        assert shown | set(described["conn-fields"])
