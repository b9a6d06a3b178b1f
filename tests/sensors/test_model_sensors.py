"""The sensors of the registry: they wait for a newer version, and for an alias that moves; and the alias is set."""

import json
import textwrap
import threading

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.sensors.model import ModelAliasSensor, ModelVersionSensor
from tests.mlflow_server import PASSWORD, USER

DAG_FILE = """
    from airflow.sdk import DAG
    from airflow_provider_sml.sensors.model import {sensor}

    with DAG("wait"):
        {sensor}(task_id="wait", {arguments}, mlflow={mlflow!r}, deferrable={deferrable}, poke_interval=0.2, timeout=20)
"""
ALIAS = """
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.registry import SetAliasOperator

    with DAG("alias"):
        SetAliasOperator(task_id="set", name="flights", alias={alias!r}, version={version!r}, mlflow={mlflow!r})
"""


@pytest.fixture
def registry(tmp_path):
    """Three versions of a model, the second of which failed its gate, and one of somebody else's."""
    registry = Registry(str(tmp_path / "mlflow"))
    with registry._client() as client:
        client.create_registered_model("flights")
    for gate in ("passed", "failed", "passed"):
        add(registry, gate)
    with registry._client() as client:
        client.create_model_version("flights", source="/somewhere/else")
    return registry


def add(registry, gate):
    with registry._client() as client:
        tags = {"sml.model_id": f"of {gate}", "sml.gate": gate}
        client.create_model_version("flights", source="/somewhere", run_id="r", tags=tags)


def newest(registry, tmp_path, **arguments):
    found = ModelVersionSensor(task_id="w", name="flights", mlflow=str(tmp_path / "mlflow"), **arguments).poke({})
    return found.xcom_value["version"] if found.is_done else None


def alias(tmp_path, **arguments):
    found = ModelAliasSensor(task_id="w", name="flights", mlflow=str(tmp_path / "mlflow"), **arguments).poke({})
    return found.xcom_value["version"] if found.is_done else None


def test_a_newer_version_is_waited_for(registry, tmp_path):
    assert newest(registry, tmp_path) == "3"  # the fourth is somebody else's
    assert newest(registry, tmp_path, newer_than="2") == "3" and newest(registry, tmp_path, newer_than=3) is None
    assert newest(registry, tmp_path, gate="failed") == "2"
    assert newest(registry, tmp_path, gate="failed", newer_than=2) is None
    for _ in range(8):  # numbers, not texts, are compared
        add(registry, "passed")
    assert newest(registry, tmp_path, newer_than="9") == "12"
    found = ModelVersionSensor(task_id="w", name="nobody", mlflow=str(tmp_path / "mlflow")).poke({})
    assert not found.is_done


def test_an_alias_that_moves_is_waited_for(registry, tmp_path):
    assert alias(tmp_path) is None
    registry.set_alias(registry.version("flights", "1"), CHAMPION)
    assert alias(tmp_path) == "1" and alias(tmp_path, other_than="1") is None and alias(tmp_path, version=3) is None
    registry.set_alias(registry.version("flights", "3"), CHAMPION)
    assert alias(tmp_path, other_than="1") == "3" and alias(tmp_path, version=3) == "3"
    assert alias(tmp_path, alias="staging") is None


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (ModelVersionSensor, {"newer_than": "one"}, "newer_than is no number of a version"),
        (ModelVersionSensor, {"gate": "open"}, "expected: passed or failed; found: open"),
        (ModelAliasSensor, {"version": "latest"}, "version is no number of a version"),
        (ModelAliasSensor, {"version": 2, "other_than": "2"}, "and not to it"),
    ],
)
def test_what_waiting_does_not_mend_fails_at_once(tmp_path, kind, arguments, said):
    with pytest.raises(AirflowFailException, match=said):
        kind(task_id="w", name="flights", mlflow=str(tmp_path / "mlflow"), **arguments).poke({})


def test_a_server_behind_a_log_in_is_asked_alike(mlflow_server, dag_project, monkeypatch):
    """Deferred, in a DAG, with the credentials of the connection; and the alias is set there."""
    door = {"conn_type": "mlflow", "login": USER, "password": PASSWORD, "extra": {"tracking_uri": mlflow_server.uri}}
    monkeypatch.setenv("AIRFLOW_CONN_DOOR", json.dumps(door))
    registry = Registry(mlflow_server.uri, {"username": USER, "password": PASSWORD})
    with registry._client() as client:
        client.create_registered_model("flights-of-sensors")
        for _ in range(2):
            client.create_model_version("flights-of-sensors", "s3://nowhere/x", "r", tags={"sml.model_id": "m"})
    text = """
        from airflow.sdk import DAG
        from airflow_provider_sml.operators.registry import SetAliasOperator
        from airflow_provider_sml.sensors.model import ModelAliasSensor, ModelVersionSensor

        at = {"name": "flights-of-sensors", "mlflow": "door"}
        wait = {"deferrable": True, "poke_interval": 0.2, "timeout": 30} | at
        with DAG("server"):
            ModelVersionSensor(task_id="newer", newer_than=1, **wait) >> SetAliasOperator(
                task_id="set", alias="staging", version=2, **at
            ) >> ModelAliasSensor(task_id="pointed", alias="staging", **wait)
    """
    run = dag_project.run(dag_project.write("server.py", text), "server")
    assert run.state == "success" and {run.results[task]["version"] for task in ("newer", "set", "pointed")} == {"2"}


@pytest.mark.parametrize("deferrable", [False, True])
def test_in_a_dag_the_version_is_the_result(registry, dag_project, tmp_path, deferrable):
    place = str(tmp_path / "mlflow")
    text = textwrap.dedent(DAG_FILE).format(
        sensor="ModelAliasSensor", arguments="name='flights', other_than='1'", mlflow=place, deferrable=deferrable
    )
    registry.set_alias(registry.version("flights", "1"), CHAMPION)
    mover = threading.Timer(1.5, lambda: registry.set_alias(registry.version("flights", "3"), CHAMPION))
    mover.start()
    try:
        run = dag_project.run(dag_project.write("wait.py", text), "wait")
    finally:
        mover.join()
    assert run.state == "success" and run.results["wait"]["version"] == "3"
    assert run.results["wait"]["kind"] == "model_version"


def test_an_alias_is_set_once_and_for_a_version_that_is_there(registry, dag_project, tmp_path):
    def run(alias, version):
        text = textwrap.dedent(ALIAS).format(alias=alias, version=version, mlflow=str(tmp_path / "mlflow"))
        return dag_project.run(dag_project.write("alias.py", text), "alias")

    for version in ("1", "1", "3"):
        assert run("staging", version).results["set"]["version"] == version
        assert registry.aliases("flights") == {"staging": version}
    assert run("shadow", "staging").results["set"]["version"] == "3"  # by another alias
    for alias, version in (("staging", "9"), ("champion", "1")):
        assert run(alias, version).state == "failed"
    assert registry.aliases("flights") == {"staging": "3", "shadow": "3"}
