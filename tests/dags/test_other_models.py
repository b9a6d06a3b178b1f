"""Models that were trained elsewhere go the same way as XGBoost's: judged, registered, deployed, watched at night."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.registry.report import of_version
from airflow_provider_sml.ml.serving.local import LocalEndpoint
from airflow_provider_sml.ml.serving.stored import stored_rows
from airflow_provider_sml.testing.processes import free_port
from tests.ml.test_lake_shops import DATASET, publish, stored_day
from tests.trained import DAYS, NIGHT, STORM

DAG_FILE = """
    from datetime import datetime
    from airflow.sdk import dag, task
    from airflow_provider_sml.operators.deployment import DeployModelOperator
    from airflow_provider_sml.operators.gate import GateOperator
    from airflow_provider_sml.operators.imports import ImportModelOperator
    from airflow_provider_sml.operators.monitoring import DriftReportOperator, ScorePartitionsOperator
    from airflow_provider_sml.operators.performance import PerformanceReportOperator
    from airflow_provider_sml.operators.sampling import SampleOperator
    from airflow_provider_sml.operators.training import EvaluateModelOperator, RegisterModelOperator

    ROOT, LAKE, MLFLOW, REPORTS = {root!r}, {root!r} + "/lake", {root!r} + "/mlflow", {root!r} + "/reports"
    GATE = {{"auc": {{"min": 0.6}}, "parity": {{"rows": 40}}, "latency": {{"p99": "5s", "requests": 20}},
             "size": {{"max": "1 MB"}}, "baseline": {{"by": ["city"]}}}}
    NIGHTS = {{"name": {kind!r}, "table": "orders", "first": {first!r}, "last": {last!r}, "lake": LAKE,
              "mlflow": MLFLOW}}

    @task
    def fit(sample):
        from tests.others import write_model
        return write_model({kind!r}, ROOT, sample)

    @dag(schedule=None, start_date=datetime(2026, 1, 1))
    def life_of_{kind}():
        sample = SampleOperator(task_id="sample", table="orders", lake=LAKE, as_of={as_of!r}, train="11 days",
                                validate="3 days", test="3 days")
        model = ImportModelOperator(task_id="take", path=fit(sample.output), sample=sample.output,
                                    dataset={dataset!r}, hyperparameters={{"C": 1.0}})
        evaluation = EvaluateModelOperator(task_id="evaluate", model=model.output, sample=sample.output,
                                           baseline=["city"], reports=REPORTS)
        version = RegisterModelOperator(task_id="register", model=model.output, sample=sample.output, name={kind!r},
                                        evaluation=evaluation.output, mlflow=MLFLOW)
        gate = GateOperator(task_id="gate", version=version.output, evaluation=evaluation.output, checks=GATE,
                            mlflow=MLFLOW, reports=REPORTS)
        deploy = DeployModelOperator(task_id="deploy", name={kind!r}, version=version.output, port={port},
                                     parity_rows=30, mlflow=MLFLOW, endpoints=ROOT + "/endpoints")
        score = ScorePartitionsOperator(task_id="score", **NIGHTS)
        drift = DriftReportOperator(task_id="drift", share=0.15, numeric=0.5, category=0.2, reports=REPORTS, **NIGHTS)
        performance = PerformanceReportOperator(task_id="performance", reports=REPORTS, **NIGHTS)
        gate >> deploy >> score >> drift >> performance

    life_of_{kind}()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the lake: seventeen ordinary days, a quiet one and a stormy one."""
    folder = tmp_path_factory.mktemp("others")
    tables = {day: stored_day(day, 120) for day in DAYS}
    publish(Lake(str(folder / "lake")), tables | {NIGHT: stored_day(NIGHT, 120), STORM: stored_day(STORM, 120, True)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sklearn", "onnx"])
def test_a_model_from_elsewhere_lives_like_any_other(dag_project, root, kind):
    port = free_port()
    endpoint = LocalEndpoint(root / "endpoints", kind, port)
    text = DAG_FILE.format(
        root=str(root), kind=kind, port=port, as_of=str(DAYS[-1]), first=str(NIGHT), last=str(STORM),
        dataset=DATASET.model_dump(mode="json"),
    )  # fmt: skip
    try:
        run = dag_project.run(dag_project.write(f"life_of_{kind}.py", text), f"life_of_{kind}")
        assert run.state == "success", run.tasks
        check_version(root, kind, run.results)
        check_scores(root, kind, endpoint)
    finally:
        endpoint.stop()
    assert run.results["drift"]["verdict"] == "drift" and "rain" in run.results["drift"]["drifted"]
    assert Lake(str(root / "lake")).days("orders_predictions") == {NIGHT: 120, STORM: 120}
    worth = json.loads((root / "reports" / kind / "performance" / f"{STORM}.json").read_text())
    assert [day["day"] for day in worth["realised"]] == [str(NIGHT), str(STORM)] and worth["importance"] == {}
    assert worth["realised"][0]["auc"] > 0.5


def check_version(root, kind, results):
    """What the registry has, for us and for everyone's tools."""
    import mlflow

    registry = Registry(str(root / "mlflow"))
    champion = registry.version(kind, alias=CHAMPION)
    tags = registry.tags(champion)
    library = {"sklearn": "scikit-learn==", "onnx": "onnxruntime=="}[kind]
    assert tags["flavour"] == kind and tags["library"].startswith(library) and tags["recalibration"] == "1.0"
    assert tags["imported_from"].startswith(str(root)) and "seed" not in tags and tags["gate"] == "passed"
    assert tags["gate.parity"].endswith("scores of the serving process within 1e-06 of training's")
    found = of_version(registry, champion)
    assert found["missing"] == [] and found["aliases"] == ["challenger", "champion"]
    evaluation = json.loads((Path(results["evaluate"]["uri"]) / "evaluation.json").read_text())
    assert evaluation["importance"] == {} and evaluation["auc"]["low"] > evaluation["baseline"]["auc"]
    page = (Path(results["evaluate"]["uri"]) / "evaluation.html").read_text()
    assert "Calibration" in page and "Importance" not in page
    with registry._client():
        info = mlflow.models.get_model_info(f"models:/{kind}/{champion.version}")
        assert kind in info.flavors and info.flavors.get(kind, {}).get("serialization_format", "skops") == "skops"
        assert mlflow.MlflowClient().get_run(champion.run_id).data.params["C"] == "1.0"


def check_scores(root, kind, endpoint):
    """The server's scores of raw rows are those of the file that was brought in, whatever a row leaves out."""
    registry = Registry(str(root / "mlflow"))
    bundle = registry.bundle(registry.version(kind, alias=CHAMPION))
    sample = Path(registry.tags(registry.version(kind, alias=CHAMPION))["sample_uri"])
    rows, expected = stored_rows(bundle, sample, 20)
    found = post(endpoint.url, rows)
    assert np.allclose(found, expected, atol=1e-6) and len({round(score, 6) for score in found}) > 10
    rows[0]["weather.rain"] = None
    assert 0 < post(endpoint.url, rows[:1])[0] < 1
    other = {"sklearn": "model.onnx", "onnx": "model.skops"}[kind]
    if (root / other).exists():  # the second of the two: the same model in both files, but for float32's rounding
        theirs = Scorer(registry.bundle(registry.version({"sklearn": "onnx", "onnx": "sklearn"}[kind], alias=CHAMPION)))
        matrix = np.random.default_rng(0).random((50, len(DATASET.features))).astype(np.float32)
        assert np.allclose(theirs.score_features(matrix), Scorer(bundle).score_features(matrix), atol=1e-5)
    assert isinstance(bundle, Bundle) and bundle.flavour == kind


def post(url, instances):
    request = urllib.request.Request(
        url, json.dumps({"instances": instances}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())["predictions"]
