"""One model's whole life through ``dag.test()``: every DAG, and what each leaves behind."""

import datetime as dt
import json
import urllib.request
from pathlib import Path

import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.serving.local import LocalEndpoint
from airflow_provider_sml.testing.processes import free_port
from tests import shops

DAG_FILE = """
from airflow_provider_sml.pipelines import build_dags

build_dags({path!r}, into=globals(), default_args={{"retries": 0}})
"""
TRAINED = shops.days(17)
NIGHT, STORM = shops.days(2, TRAINED[-1] + dt.timedelta(days=1))


@pytest.fixture(scope="module")
def life(airflow_db, tmp_path_factory):
    """The model's project, with its endpoint stopped at the end."""
    from airflow_provider_sml.testing.plugin import Project

    root = tmp_path_factory.mktemp("life")
    port = free_port()
    project = Project(Path(airflow_db) / "dags")
    spec = root / "include" / "pipelines" / "orders.yaml"
    spec.parent.mkdir(parents=True)
    spec.write_text(shops.spec_text(root, port))
    file = project.write("orders.py", DAG_FILE.format(path=str(spec)))
    for day in TRAINED:
        shops.write_day(root / "landing", day)
    endpoint = LocalEndpoint(root / "endpoints", "orders", port)
    yield project, file, root, endpoint
    endpoint.stop()
    file.unlink()


def ingest(life, first, last=None):
    project, file, _, _ = life
    conf = {"first_day": first.isoformat(), "last_day": (last or first).isoformat()}
    return project.run(file, "orders_ingest", conf, last or first)


@pytest.fixture(scope="module")
def ingested(life):
    return ingest(life, TRAINED[0], TRAINED[-1])


@pytest.fixture(scope="module")
def trained(life, ingested):
    project, file, _, _ = life
    return project.run(file, "orders_train", {}, TRAINED[-1])


@pytest.fixture(scope="module")
def deployed(life, trained):
    project, file, _, _ = life
    return project.run(file, "orders_deploy", {}, TRAINED[-1])


def test_a_range_of_days_is_ingested_in_one_run(life, ingested):
    _, _, root, _ = life
    assert ingested.state == "success"
    lake = Lake(str(root / "lake"))
    assert set(lake.days("orders")) == set(TRAINED)
    assert sum(lake.days("orders").values()) == 200 * len(TRAINED) == ingested.results["publish_lake"]["rows"]
    assert ingested.results["publish_warehouse"]["cost"]["total_rows"] == 200 * len(TRAINED)
    assert len(lake.snapshots("orders")) == 1
    assert lake.snapshots("orders")[0]["lineage"]["dag_id"] == "orders_ingest"
    [(uri, extra)] = ingested.events
    assert uri == "x-sml://orders/published"
    assert extra["first"] == str(TRAINED[0])


def test_training_registers_a_version_that_passed(life, trained):
    _, _, root, _ = life
    assert trained.state == "success", trained.tasks
    assert trained.results["gate"]["passed"]
    registry = Registry(str(root / "mlflow"))
    version = registry.version("orders", alias="challenger")
    tags = registry.tags(version)
    assert tags["gate"] == "passed" and "approval" not in tags
    assert tags["gate.parity"].endswith("scores of the serving process within 1e-06 of training's")
    assert tags["gate.latency_p99"].endswith("ms for one row; asked for: at most 5000 ms")
    assert tags["gate.slices.city"] == "passed: 3 of 3" and tags["gate.size"].startswith("passed: ")
    assert tags["run_id"] and tags["dag_id"] == "orders_train"
    assert tags["snapshot_id"] == str(Lake(str(root / "lake")).snapshot_id("orders"))
    evaluation = json.loads((Path(trained.results["evaluate"]["uri"]) / "evaluation.json").read_text())
    assert evaluation["auc"]["low"] > evaluation["baseline"]["auc"]
    assert (root / "reports" / "orders" / "gate" / version.version / "gate.html").exists()
    assert ("x-sml://orders/passed", {"version": version.version}) in trained.events


def test_a_dry_run_of_the_deployment_says_what_it_would_do_and_changes_nothing(life, trained, capfd):
    project, file, root, endpoint = life
    dry = project.run(file, "orders_deploy", {"dry_run": True}, TRAINED[-1] + dt.timedelta(days=90))
    assert (dry.state, dry.tasks, dry.events) == ("success", {"deploy": "skipped"}, [])
    assert "plan for endpoint orders: 4 calls, nothing is changed" in capfd.readouterr().out
    registry = Registry(str(root / "mlflow"))
    assert registry.version("orders", alias=CHAMPION) is None and endpoint.status().live is None
    assert not {"deployed", "going_live"} & set(registry.tags(registry.version("orders", alias="challenger")))


def test_deployment_serves_and_moves_the_alias(life, deployed):
    _, _, root, endpoint = life
    assert deployed.state == "success", deployed.tasks
    registry = Registry(str(root / "mlflow"))
    champion = registry.version("orders", alias=CHAMPION)
    assert champion.version == deployed.results["deploy"]["version"]
    told = json.loads(registry.tags(champion)["endpoint.local.orders"])
    assert (told["address"], told["percent"], told["spot"]) == (endpoint.url, 100.0, False)
    assert told["run"].startswith("orders_deploy/deploy/")
    assert deployed.results["deploy"]["parity_rows"] == 50
    instance = {
        "ordered": "2026-03-20T17:05:00Z", "weight": 29.0, "weather.rain": 18.0, "shops.opened": 2004, "city": "Rome",
    }  # fmt: skip
    calm = instance | {"ordered": "2026-03-20T03:05:00Z", "weight": 1.0, "weather.rain": 0.0}
    high, low = post(endpoint.url, [instance, calm])["predictions"]
    assert 0 <= low < high <= 1


def post(url, instances):
    body = json.dumps({"instances": instances}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def test_deploying_again_changes_nothing(life, deployed):
    project, file, _, endpoint = life
    before = endpoint.status()
    again = project.run(file, "orders_deploy", {}, TRAINED[-1])
    assert again.state == "success"
    assert endpoint.status() == before


def test_nights_are_scored_reported_and_a_storm_starts_training(life, deployed):
    project, file, root, _ = life
    shops.write_day(root / "landing", NIGHT)
    shops.write_day(root / "landing", STORM, stormy=True)
    assert ingest(life, NIGHT).state == "success"
    quiet = project.run(file, "orders_monitor", {"day": str(NIGHT)}, NIGHT)
    assert quiet.state == "success", quiet.tasks
    assert quiet.results["drift"]["verdict"] == "quiet"
    assert quiet.tasks["request_retraining"] == "skipped"
    assert quiet.events == []
    assert ingest(life, STORM).state == "success"
    stormy = project.run(file, "orders_monitor", {"day": str(STORM)}, STORM)
    assert stormy.state == "success", stormy.tasks
    assert stormy.results["drift"]["verdict"] == "drift"
    assert "rain" in stormy.results["drift"]["drifted"]
    [(uri, reasons)] = stormy.events
    assert uri == "x-sml://orders/drift"
    assert (reasons["day"], reasons["nights"]) == (str(STORM), str(STORM)) and reasons["severity"] != "info", reasons
    assert reasons["causes"][0].startswith("rain (") and "rain" in reasons["drifted"]
    decided = json.loads((root / "reports" / "orders" / "decisions" / f"{STORM}.json").read_text())
    assert decided["decision"]["action"] == "retrain" and decided["policy"]["nights"] == [1, 2]
    assert Lake(str(root / "lake")).days("orders_predictions") == {NIGHT: 200, STORM: 200}
    night = json.loads((root / "reports" / "orders" / "nights" / f"{STORM}.json").read_text())
    assert [known["day"] for known in night["performance"]] == [str(NIGHT)]
    assert 0.5 < night["performance"][0]["auc"] <= 1
    assert (root / "reports" / "orders" / "nights" / f"{STORM}.html").stat().st_size > 100_000
    worth = json.loads((root / "reports" / "orders" / "performance" / f"{STORM}.json").read_text())
    assert [day["day"] for day in worth["realised"]] == [str(NIGHT)], "the storm's labels are not due yet"
    assert [day["day"] for day in worth["estimated"]] == [str(STORM)]
    assert worth["realised"] == night["performance"] and worth["reference"]["rows"] > 100
    assert stormy.results["performance"]["realised_auc"] == round(worth["realised"][0]["auc"], 4)


def test_the_same_day_again_gives_the_same_rows_and_one_snapshot_more(life, ingested):
    import duckdb

    _, _, root, _ = life
    lake = Lake(str(root / "lake"))

    def content():
        files = [file.path for file in lake.files("orders", first=TRAINED[3], last=TRAINED[3])]
        return duckdb.execute("SELECT * FROM read_parquet(?, hive_partitioning=false) ORDER BY ALL", [files]).fetchall()

    before, snapshots, total = content(), len(lake.snapshots("orders")), sum(lake.days("orders").values())
    assert ingest(life, TRAINED[3]).state == "success"
    assert content() == before
    assert len(lake.snapshots("orders")) == snapshots + 1
    assert sum(lake.days("orders").values()) == total


def test_a_day_whose_file_is_late_holds_back_no_other_day(life):
    project, file, _, _ = life
    ingest_dag = project.load(file)["orders_ingest"]
    assert ingest_dag.max_active_runs > 1
    assert {task.max_active_tis_per_dag for task in ingest_dag.tasks} == {1}, "one Spark driver at a time"


def test_two_lines_of_the_spec_bring_the_version_to_sagemaker(life, deployed, fake_aws, monkeypatch, tmp_path):
    """The same model and registry; the endpoint is the fake SageMaker's, with our scoring application behind it."""
    import boto3

    from airflow_provider_sml.hooks.clients import forget_clients

    project, _, root, _ = life
    forget_clients()
    fake_aws.clock.per_call = 60
    boto3.client("s3").create_bucket(Bucket="models")
    settings = (
        "{artifacts: 's3://models', instance: ml.m5.large, "
        "image: '123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1', "
        "role: 'arn:aws:iam::123456789012:role/sagemaker'}"
    )
    text = shops.spec_text(root, 8599)
    deploy = "deploy: {port: 8599, parity_rows: 50}"
    assert deploy in text
    spec = tmp_path / "include" / "pipelines" / "orders.yaml"
    spec.parent.mkdir(parents=True)
    spec.write_text(text.replace(deploy, f"deploy:\n  parity_rows: 50\n  target: sagemaker\n  settings: {settings}"))
    dag_file = DAG_FILE.replace('{{"retries": 0}}', '{{"retries": 0, "poll_interval": 0.05}}')
    file = project.write("orders_sagemaker.py", dag_file.format(path=str(spec)))
    try:
        result = project.run(file, "orders_deploy", {"version": "1"}, TRAINED[-1])
    finally:
        file.unlink()
        forget_clients()
    assert result.state == "success", result.tasks
    assert (result.results["deploy"]["target"], result.results["deploy"]["parity_rows"]) == ("sagemaker", 50)
    assert fake_aws.sagemaker.endpoint("orders").fleet.config.startswith("orders-v1-")
