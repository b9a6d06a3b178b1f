"""MLflow fails in the middle of a promotion: alias and endpoint never disagree for good, and no move is lost."""

import json

import pytest

from airflow_provider_sml.ml import registry as module
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.serving.local import LocalEndpoint
from airflow_provider_sml.testing.processes import free_port
from tests.mlflow_server import PASSWORD, USER
from tests.toy import register_versions

DAG_FILE = """
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.deployment import DeployModelOperator, RollbackModelOperator

    with DAG({dag!r}):
        {operator}(
            task_id="go", name="toy", version={version!r}, port={port}, parity_rows=20, mlflow="door",
            endpoints={root!r},
        )
"""


@pytest.fixture
def promote(mlflow_server, dag_project, tmp_path, monkeypatch):
    """Runs a promotion as a DAG; tells its state, and what endpoint and alias are at then."""
    monkeypatch.setitem(module._ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setitem(module._ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    connection = {
        "conn_type": "mlflow",
        "login": USER,
        "password": PASSWORD,
        "extra": {"tracking_uri": mlflow_server.uri},
    }
    monkeypatch.setenv("AIRFLOW_CONN_DOOR", json.dumps(connection))
    registry = Registry(mlflow_server.uri, {"username": USER, "password": PASSWORD})
    register_versions(tmp_path, 2, registry)
    port = free_port()
    endpoint = LocalEndpoint(tmp_path / "endpoints", "toy", port)

    def run(dag, version="", operator="DeployModelOperator"):
        text = DAG_FILE.format(dag=dag, operator=operator, version=version, port=port, root=str(tmp_path / "endpoints"))
        state = dag_project.run(dag_project.write("promotion.py", text), dag).state
        mlflow_server.mend()
        live = endpoint.status().live
        return state, live and live.version, registry.aliases("toy").get(CHAMPION)

    run.registry = registry
    yield run
    endpoint.stop()


def test_mlflow_fails_in_the_middle_of_a_promotion(mlflow_server, promote):
    assert promote("first", "1") == ("success", "1", "1")

    def at(path):
        return lambda method, where: method == "POST" and path in where

    mlflow_server.code, mlflow_server.before = 500, at("model-versions/set-tag")
    assert promote("unmarked", "2") == ("failed", "1", "1")  # nothing has begun
    mlflow_server.code, mlflow_server.before = 500, at("registered-models/alias")
    assert promote("unmoved", "2") == ("failed", "2", "1")  # for now
    mlflow_server.code, mlflow_server.before = 500, lambda method, where: True
    assert promote("down", "1") == ("failed", "2", "1")
    mlflow_server.slow = lambda method, where: 6.0 * at("registered-models/alias")(method, where)
    assert promote("late", "2") == ("failed", "2", "2")  # carried out, and nobody has heard of it
    assert [line.after for line in promote.registry.history("toy").lines if line.alias == CHAMPION] == ["1"]
    # the next run is none of the retries: it finds what is undone, does it, and only then its own work
    assert promote("back", operator="RollbackModelOperator") == ("success", "1", "1")
    lines = [line for line in promote.registry.history("toy").lines if line.alias == CHAMPION]
    assert [(line.before, line.after, line.by.split("/")[0]) for line in lines] == [
        ("", "1", "first"), ("1", "2", "late"), ("2", "1", "back"),
    ]  # fmt: skip
    assert "back/go" in lines[1].recorded and lines[1].evidence["settled"]
    assert lines[2].evidence["parity_rows"] == "20" and lines[2].evidence["gate"] == "passed"
    assert lines[2].evidence["operator"] == "RollbackModelOperator"
    assert promote.registry.verify("toy") == []
