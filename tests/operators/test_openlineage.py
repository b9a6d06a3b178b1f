"""What OpenLineage is told of finished tasks, by its provider's own extractor and classes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.operators.deployment import DeployModelOperator
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from airflow_provider_sml.operators.lake import RollbackTableOperator
from airflow_provider_sml.operators.monitoring import DriftReportOperator, ScorePartitionsOperator
from airflow_provider_sml.operators.openlineage import Data, drawn
from airflow_provider_sml.operators.performance import PerformanceReportOperator
from airflow_provider_sml.operators.reproduction import ReproduceModelOperator
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator
from airflow_provider_sml.operators.sampling import SampleOperator
from airflow_provider_sml.operators.training import (
    EvaluateModelOperator,
    RegisterModelOperator,
    TrainXGBoostOperator,
)
from airflow_provider_sml.operators.vertex import VertexTrainOperator
from airflow_provider_sml.operators.warehouse import PublishWarehouseOperator
from airflow_provider_sml.refs import (
    EvaluationRef,
    ModelRef,
    ModelVersionRef,
    PerformanceRef,
    ReportRef,
    ReproductionRef,
    SampleRef,
    SnapshotRef,
    StagedRef,
    TrainingJobRef,
)
from tests import shops

STAGED = StagedRef("/lake", "orders", "/lake/lake/orders/data/run-1", "2026-03-01", "2026-03-01", 10, 9, 1)
SNAPSHOT = SnapshotRef("/lake", "orders", 7, "2026-03-01", "2026-03-01", 9, 90)
SCORES = SnapshotRef("/lake", "orders_predictions", 8, "2026-03-01", "2026-03-01", 9, 9)
SAMPLE = SampleRef("/lake/samples/orders/s1", "s1", "orders", 7, "all", 1.0, {"train": 5, "validate": 2, "test": 1})
MODEL = ModelRef("/lake/models/orders/m1", "m1", "d", "s1", 3)
VERSION = ModelVersionRef("https://mlflow.example.com", "orders", "2", "run", "m1")


@pytest.fixture
def told(tmp_path):
    """Lets an operator give a result, and returns what the provider's extractor makes of it."""
    from airflow.providers.openlineage.extractors.base import DefaultExtractor, OperatorLineage

    def told(operator, result):
        operator.run = lambda context: result
        operator.execute({"ti": SimpleNamespace(xcom_push=lambda **told: None)})
        found = DefaultExtractor(operator).extract_on_complete(SimpleNamespace())
        assert isinstance(found, OperatorLineage)
        return [describe(data) for data in found.inputs], [describe(data) for data in found.outputs]

    return told


def describe(data):
    """Address, rows and version of a dataset, as OpenLineage's client would send it."""
    from openlineage.client.serde import Serde

    sent = json.loads(Serde.to_json(data))
    counts = sent.get("inputFacets") or sent.get("outputFacets") or {}
    rows = next((facet["rowCount"] for facet in counts.values()), None)
    version = sent["facets"].get("version", {}).get("datasetVersion")
    return sent["namespace"], sent["name"], rows, version


def test_etl_reads_the_landed_files_and_stages_the_table(told):
    dataset = shops.make_spec(Path("/x")).dataset
    operator = SparkEtlOperator(task_id="t", dataset=dataset, first="", last="", places={"landing": "s3a://raw/shop"})
    assert told(operator, STAGED) == (
        [
            ("s3://raw", "shop/orders", 10, None),
            ("s3://raw", "shop/weather", None, None),
            ("s3://raw", "shop/shops.csv", None, None),
        ],
        [("file", "/lake/lake/orders/data", 9, None)],
    )


def test_publishing_makes_a_snapshot_of_the_table(told):
    dataset = shops.make_spec(Path("/x")).dataset
    operator = PublishPartitionsOperator(task_id="t", staged=STAGED.to_xcom(), dataset=dataset)
    assert told(operator, SNAPSHOT) == (
        [("file", "/lake/lake/orders/data", 9, None)],
        [("file", "/lake/lake/orders", 9, "7")],
    )
    [table] = operator.get_openlineage_facets_on_complete(None).outputs
    fields = [(field.name, field.type) for field in table.facets["schema"].fields]
    assert fields == dataset.table_columns


def test_the_warehouse_gets_the_snapshot(told):
    dataset = shops.make_spec(Path("/x")).dataset
    operator = PublishWarehouseOperator(task_id="t", snapshot=SNAPSHOT, dataset=dataset, warehouse="/w/w.duckdb")
    assert told(operator, {"rows": 9}) == (
        [("file", "/lake/lake/orders", 9, "7")],
        [("file", "/w/w.duckdb/orders", 9, "7")],
    )


def test_a_sample_comes_from_its_snapshot(told):
    operator = SampleOperator(task_id="t", table="orders", lake="/lake")
    assert told(operator, SAMPLE) == (
        [("file", "/lake/lake/orders", None, "7")],
        [("file", "/lake/samples/orders", 8, "s1")],
    )


def test_a_table_is_named_by_where_its_lake_lies_and_not_by_the_connection(told, monkeypatch):
    connection = {"conn_type": "sml_lake", "extra": {"location": "s3://bucket/lake", "secret_key": "hunter2"}}
    monkeypatch.setenv("AIRFLOW_CONN_MY_LAKE", json.dumps(connection))
    monkeypatch.setattr(storage, "_mounts", {})  # what is mounted here must not reach the tests that follow
    operator = SampleOperator(task_id="t", table="orders", lake="my_lake")
    assert told(operator, SAMPLE)[0] == [("s3://bucket", "lake/lake/orders", None, "7")]


def test_a_model_comes_from_its_sample(told):
    operator = TrainXGBoostOperator(task_id="t", sample=SAMPLE, dataset={})
    assert told(operator, MODEL) == (
        [("file", "/lake/samples/orders", 7, "s1")],
        [("file", "/lake/models/orders", None, "m1")],
    )


@pytest.mark.parametrize(
    ("registry", "namespace", "name"),
    [
        ("https://mlflow.example.com", "https://mlflow.example.com", "models/orders"),
        ("https://ada:hunter2@mlflow.example.com/base", "https://mlflow.example.com", "base/models/orders"),
        ("sqlite:////data/mlflow.db", "file", "/data/mlflow.db/models/orders"),
    ],
)
def test_a_version_comes_from_its_model(told, registry, namespace, name):
    operator = RegisterModelOperator(task_id="t", model=MODEL, sample=SAMPLE, name="orders")
    version = ModelVersionRef(registry, "orders", "2", "run", "m1")
    assert told(operator, version) == ([("file", "/lake/models/orders", None, "m1")], [(namespace, name, None, "2")])


def test_a_job_in_a_cloud_reads_its_channels_and_writes_its_model(told):
    job = {"job": "churn-1", "model": "m", "instance": "i", "count": 1, "spot": False, "started": "", "ended": "",
           "training_seconds": 1, "billable_seconds": 1, "interruptions": 0, "savings_percent": 0.0,
           "cost_usd": None}  # fmt: skip
    sagemaker = SageMakerTrainOperator(
        task_id="t", image="i", role="r", output_path="s3://models/churn", instances=["ml.m5.large"],
        inputs={"train": "s3://lake/churn"},
    )  # fmt: skip
    assert told(sagemaker, TrainingJobRef(**job)) == (
        [("s3://lake", "churn", None, None)], [("s3://models", "churn", None, "churn-1")],
    )  # fmt: skip
    vertex = VertexTrainOperator(task_id="t", image="i", region="r", output_path="gs://models/churn", machines=["m"])
    assert told(vertex, TrainingJobRef(**job)) == ([], [("gs://models", "churn", None, "churn-1")])
    assert told(vertex, {"kind": "plan"}) == ([], [])


def test_a_roll_back_writes_the_table(told):
    operator = RollbackTableOperator(task_id="t", table="orders", lake="/lake", to=7)
    assert told(operator, SNAPSHOT) == ([], [("file", "/lake/lake/orders", 9, "7")])


def test_predictions_come_from_the_table_and_the_version(told):
    operator = ScorePartitionsOperator(task_id="t", name="orders")
    operator._used, operator._scored = VERSION, 18
    assert told(operator, SCORES) == (
        [("file", "/lake/lake/orders", 18, None), ("https://mlflow.example.com", "models/orders", None, "2")],
        [("file", "/lake/lake/orders_predictions", 18, "8")],
    )


def test_a_task_that_failed_or_moves_no_data_tells_nothing(told):
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    failed = PublishPartitionsOperator(task_id="t", staged="nothing", dataset={})
    assert DefaultExtractor(failed).extract_on_failure(SimpleNamespace()) is None
    assert told(DeployModelOperator(task_id="t", name="orders"), {"a": "plan"}) == ([], [])


def test_an_evaluation_reads_the_model_and_the_test_rows(told):
    operator = EvaluateModelOperator(task_id="t", model=MODEL, sample=SAMPLE)
    found = EvaluationRef("/home/reports/orders/evaluation/m1", "m1", 1, 0.7, 0.6, 0.8, None, 0.01)
    assert told(operator, found) == (
        [("file", "/lake/models/orders", None, "m1"), ("file", "/lake/samples/orders", 1, "s1")],
        [("file", "/home/reports/orders/evaluation", None, "m1")],
    )


def test_reports_of_a_night_read_the_table_and_the_version(told):
    read = [("file", "/lake/lake/orders", 9, None), ("https://mlflow.example.com", "models/orders", None, "2")]
    drift = DriftReportOperator(task_id="t", name="orders", lake="/lake")
    drift._used, drift._drawn = VERSION, "/lake/samples/orders/s1"
    night = ReportRef("orders", "2026-03-01", "quiet", 0.0, [], 9, "/home/reports/orders/nights/2026-03-01.html")
    assert told(drift, night) == (
        [*read, ("file", "/lake/samples/orders", None, "s1")],
        [("file", "/home/reports/orders/nights", None, "2026-03-01")],
    )
    performance = PerformanceReportOperator(task_id="t", name="orders", lake="/lake")
    performance._used = VERSION
    found = PerformanceRef("orders", "2026-03-01", [], None, None, None, "/home/performance/2026-03-01.html")
    assert told(performance, found) == (
        [("file", "/lake/lake/orders", None, None), ("file", "/lake/lake/orders_predictions", None, None), read[1]],
        [("file", "/home/performance", None, "2026-03-01")],
    )


def test_a_reproduction_reads_the_version_and_its_sample(told):
    operator = ReproduceModelOperator(task_id="t", name="orders")
    operator._used, operator._drawn = VERSION, drawn(SAMPLE.uri, 8)
    found = ReproductionRef("orders", "2", True, "d", 3, 1, 0.0, None, 0.0, [])
    assert told(operator, found) == (
        [("https://mlflow.example.com", "models/orders", None, "2"), ("file", "/lake/samples/orders", 8, "s1")], []
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "url", "namespace", "name"),
    [
        ("local", "http://127.0.0.1:8500/invocations", "http://127.0.0.1:8500", "invocations"),
        ("sagemaker", "sagemaker://orders", "sagemaker://endpoints", "orders"),
        ("vertex", "vertex://projects/p/locations/l/endpoints/orders", "vertex://projects",
         "p/locations/l/endpoints/orders"),
    ],
)  # fmt: skip
def test_a_deployment_brings_the_version_to_its_endpoint(told, target, url, namespace, name):
    operator = DeployModelOperator(task_id="t", name="orders", target=target)
    endpoint = operator._ref(VERSION, url, 9)
    assert told(operator, endpoint) == (
        [("https://mlflow.example.com", "models/orders", None, "2")], [(namespace, name, None, "2")],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("location", "name", "expected"),
    [
        ("/data/lake", "", ("file", "/data/lake")),
        ("file:///data/lake/", "t", ("file", "/data/lake/t")),
        ("gs://bucket/lake", "lake/t", ("gs://bucket", "lake/lake/t")),
        ("s3://bucket", "", ("s3://bucket", "/")),
        ("s3n://bucket/a/", "", ("s3://bucket", "a")),
    ],
)
def test_names_follow_openlineages_naming(location, name, expected):
    assert Data(location, name).named() == expected


def test_nothing_is_told_and_nothing_breaks_without_the_provider():
    code = """
import sys
from airflow_provider_sml.operators.sampling import SampleOperator
from airflow_provider_sml.refs import SampleRef
operator = SampleOperator(task_id="t", table="orders", lake="/lake")
operator.run = lambda context: SampleRef("/lake/s", "s", "orders", 7, "all", 1.0, {"train": 1})
assert operator.execute({})["sample_id"] == "s"
assert not any(name.startswith("openlineage") for name in sys.modules)
sys.modules["airflow.providers.openlineage.extractors"] = None  # as if it was not installed
assert operator.get_openlineage_facets_on_complete(None) is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
