"""The example DAGs load, and the operators' example runs on a table of the embedded lake."""

import datetime as dt
import importlib
import os
import random
import socket
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml import example_dags


@pytest.fixture
def churn(tmp_path, monkeypatch):
    """An embedded home with the table churn in its lake, and the endpoint that the example starts."""
    from airflow_provider_sml.ml.contract import Dataset
    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.serving.local import LocalEndpoint

    monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path))
    example = importlib.import_module("airflow_provider_sml.example_dags.example_churn")
    dataset = Dataset(**example.CHURN)
    lake, chance = Lake(str(tmp_path / "lake")), random.Random(1)
    rows = []
    for number in range(90):
        day = dt.date(2026, 1, 1) + dt.timedelta(days=number)
        for customer in range(40):
            visits = chance.randrange(20)
            plan = chance.choice(["free", "plus", "team"])
            rows.append(
                {
                    "customer": customer, "seen": dt.datetime.combine(day, dt.time(chance.randrange(24))), "plan": plan,
                    "visits": visits, "left_later": chance.random() < 0.6 - 0.025 * visits,
                    "weekday": float(day.weekday()), "event_date": day,
                }
            )  # fmt: skip
            rows[-1]["label"] = int(rows[-1]["left_later"])
    schema = {"int": pa.int64(), "string": pa.string(), "double": pa.float64(), "boolean": pa.bool_(),
              "timestamp": pa.timestamp("us"), "date": pa.date32()}  # fmt: skip
    table = pa.Table.from_pylist(rows, pa.schema([(name, schema[kind]) for name, kind in dataset.table_columns]))
    folder = lake.stage("churn", "test")
    folder.mkdir(parents=True)
    days = sorted(set(table.column("event_date").to_pylist()))
    paths = [folder / f"{day}.parquet" for day in days]
    for day, path in zip(days, paths, strict=True):
        pq.write_table(table.filter(pc.equal(table.column("event_date"), day)), path)
    lake.publish("churn", dataset.table_columns, paths, days[0], days[-1], {})
    yield Path(example.__file__)
    LocalEndpoint(tmp_path / "endpoints", "churn", 8510).stop()


def test_every_example_loads(dag_project):
    for path in Path(example_dags.__file__).parent.glob("example_*.py"):
        assert dag_project.load(path)


def test_the_operators_of_ones_own_dag_train_and_deploy(dag_project, churn, tmp_path):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8510)) == 0:
            pytest.skip("port 8510 is taken on this machine")
    file = dag_project.write("example_churn.py", churn.read_text())
    result = dag_project.run(file, "example_churn")
    assert result.state == "success", result.tasks
    assert result.results["deploy"]["version"] == "1"
    assert result.results["evaluate"]["auc"] > 0.6
    check_lineage(tmp_path, result.results["register"], result.results["deploy"])


def check_lineage(home, version, endpoint):
    """The version says of what it was made, whole."""
    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.registry import Registry, report
    from airflow_provider_sml.refs import ModelVersionRef

    registry, lake = Registry(str(home / "mlflow")), Lake(str(home / "lake"))
    found = report.of_version(registry, ModelVersionRef.load(version), lake)
    assert found["missing"] == [] and found["aliases"] == ["challenger", "champion"]
    assert found["content"]["state"] == "same" and found["content"]["rows"] == 88 * 40
    assert found["tags"]["dag_id"] == "example_churn" and found["tags"]["cost_usd"] == "0.0000"
    challenger, champion = found["moves"]
    assert challenger["by"].startswith("example_churn/register/") and champion["by"].startswith("example_churn/deploy/")
    assert champion["evidence"]["gate"] == "passed" and champion["evidence"]["endpoint"] == endpoint["url"]
    saw = report.of_data(registry, "churn", day=dt.date(2026, 3, 31), lake=lake)
    assert [(one["version"], one["splits"]) for one in saw["versions"]] == [("1", ["test"])]
    assert registry.verify("churn") == []


def test_a_file_that_is_written_again_in_the_same_second_is_read_anew(dag_project, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name in ("one", "two"):
        path = dag_project.write("again.py", f'from airflow.sdk import DAG\n\nwith DAG("{name}"):\n    pass\n')
        os.utime(path, (1e9, 1e9))
        assert list(dag_project.load(path)) == [name]
