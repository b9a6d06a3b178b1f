"""The links of the operators lead to pages that the plugin really serves, and MLflow's to its server."""

import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import pytest
from airflow.sdk import BaseOperator

from airflow_provider_sml import operators, sensors
from airflow_provider_sml.get_provider_info import get_provider_info
from airflow_provider_sml.links import pages
from airflow_provider_sml.operators.approval import ApproveModelOperator
from airflow_provider_sml.operators.costs import CostReportOperator
from airflow_provider_sml.operators.decision import RequestRetrainingOperator
from airflow_provider_sml.operators.deployment import DeployModelOperator
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from airflow_provider_sml.operators.gate import GateOperator
from airflow_provider_sml.operators.lineage import LineageReportOperator
from airflow_provider_sml.operators.monitoring import (
    DriftReportOperator,
    ScorePartitionsOperator,
)
from airflow_provider_sml.operators.performance import PerformanceReportOperator
from airflow_provider_sml.operators.sampling import PlanSampleOperator, SampleOperator
from airflow_provider_sml.operators.search import SearchHyperparametersOperator
from airflow_provider_sml.operators.training import (
    EvaluateModelOperator,
    RegisterModelOperator,
    TrainXGBoostOperator,
)
from airflow_provider_sml.operators.warehouse import PublishWarehouseOperator
from airflow_provider_sml.refs import (
    CostReportRef,
    EndpointRef,
    EvaluationRef,
    LineageRef,
    ModelRef,
    ModelVersionRef,
    PerformanceRef,
    ReportRef,
    SamplePlanRef,
    SampleRef,
    SearchRef,
    SnapshotRef,
    StagedRef,
    VerdictRef,
)
from airflow_provider_sml.sensors.table import PublishedDaysSensor
from airflow_provider_sml.ui.plugin import PREFIX

STAGED = StagedRef("/lake", "flights", "/lake/x", "2013-04-01", "2013-04-01", 10, 9, 1).to_xcom()
SNAPSHOT = SnapshotRef("/lake", "flights", 7, "2013-04-01", "2013-04-01", 9, 9).to_xcom()
SCORES = SnapshotRef("/lake", "flights_predictions", 8, "2013-04-01", "2013-04-01", 9, 9).to_xcom()
SAMPLE = SampleRef("/lake/samples/flights/s", "s", "flights", 7, "all", 1.0, {"train": 5}).to_xcom()
SEARCH = SearchRef("/lake/searches/flights/5ea7c4", "5ea7c4", {}, {}, "logloss", 0.5, 3, 1, 0, 9.5, None).to_xcom()
MODEL = ModelRef("/lake/models/flights/abc10", "abc10", "d", "s", 3).to_xcom()
EVALUATION = EvaluationRef("/r", "abc10", 5, 0.7, 0.6, 0.8, None, 0.01).to_xcom()
VERSION = ModelVersionRef("https://mlflow.example.com:5000", "flights", "10", "run", "abc10").to_xcom()
VERDICT = VerdictRef("flights", "10", True, 1, [], "/r").to_xcom()
ENDPOINT = EndpointRef("flights", "local", "http://127.0.0.1:1/invocations", "flights", "10", 5).to_xcom()
PERFORMANCE = PerformanceRef("flights", "2013-04-02", [], "2013-04-01", 0.7, 0.7, "/r").to_xcom()
REPORT = ReportRef("flights", "2013-04-02", "drift", 0.5, ["a"], 9, "/r").to_xcom()

MODEL_PAGE, EVALUATION_PAGE = "/sml/models/flights", "/sml/models/flights/evaluation/abc10"
GATE_PAGE, NIGHT_PAGE = "/sml/models/flights/gate/10", "/sml/models/flights/nights/2013-04-02"
MLFLOW_PAGE = "https://mlflow.example.com:5000/#/models/flights/versions/10"

FLIGHTS = {"name": "flights"}
#: Operator, what it gave, and the links that follow.
CASES = {
    "etl": (SparkEtlOperator(task_id="t", dataset=FLIGHTS, first="", last=""), STAGED, {"Model": MODEL_PAGE}),
    "etl that failed": (SparkEtlOperator(task_id="t", dataset=FLIGHTS, first="", last=""), None, {"Model": MODEL_PAGE}),
    "publish": (PublishPartitionsOperator(task_id="t", staged=STAGED, dataset={}), SNAPSHOT, {"Model": MODEL_PAGE}),
    "warehouse": (
        PublishWarehouseOperator(task_id="t", snapshot=SNAPSHOT, dataset={}, warehouse="/w"),
        {"table": "flights"},
        {"Model": MODEL_PAGE},
    ),
    "sample": (SampleOperator(task_id="t", table="flights"), SAMPLE, {"Model": MODEL_PAGE}),
    "plan of a sample": (
        PlanSampleOperator(task_id="t", table="flights", dataset=FLIGHTS),
        SamplePlanRef("/r/flights/sample/2013-04-30", 0.25, True, 0.001, 0.0, 0.002).to_xcom(),
        {"Model": MODEL_PAGE, "Sampling curve": "/sml/models/flights/sample/2013-04-30"},
    ),
    "sensor of a table": (
        PublishedDaysSensor(task_id="t", table="flights"),
        None,
        {"Model": MODEL_PAGE},
    ),
    "train": (TrainXGBoostOperator(task_id="t", sample=SAMPLE, dataset={}), MODEL, {"Model": MODEL_PAGE}),
    "search": (
        SearchHyperparametersOperator(task_id="t", sample=SAMPLE, dataset={}, space={}),
        SEARCH,
        {"Model": MODEL_PAGE, "Search": "/sml/models/flights/search/5ea7c4"},
    ),
    "costs": (
        CostReportOperator(task_id="t", name="flights"),
        CostReportRef("/r", "flights", "manual-2026", "d", "manual__2026", 1.0, 0.0, 0, 0.0).to_xcom(),
        {"Costs": "/sml/models/flights/costs/manual-2026"},
    ),
    "lineage": (
        LineageReportOperator(task_id="t", name="flights"),
        LineageRef("/r", "flights", "10", 1).to_xcom(),
        {"Model": MODEL_PAGE, "Lineage": "/sml/models/flights/lineage/10"},
    ),
    "evaluate": (
        EvaluateModelOperator(task_id="t", model=MODEL, sample=SAMPLE),
        EVALUATION,
        {"Model": MODEL_PAGE, "Evaluation": EVALUATION_PAGE},
    ),
    "register": (
        RegisterModelOperator(task_id="t", model=MODEL, sample=SAMPLE, name="flights", evaluation=EVALUATION),
        VERSION,
        {"Model": MODEL_PAGE, "Evaluation": EVALUATION_PAGE, "MLflow": MLFLOW_PAGE},
    ),
    "gate": (
        GateOperator(task_id="t", version=VERSION, evaluation=EVALUATION),
        VERDICT,
        {"Model": MODEL_PAGE, "Gate": GATE_PAGE, "Evaluation": EVALUATION_PAGE, "MLflow": MLFLOW_PAGE},
    ),
    "gate that failed": (
        GateOperator(task_id="t", version=VERSION, evaluation=EVALUATION),
        None,
        {"Model": MODEL_PAGE, "Gate": GATE_PAGE, "Evaluation": EVALUATION_PAGE, "MLflow": MLFLOW_PAGE},
    ),
    "approval": (
        ApproveModelOperator(task_id="t", version=VERSION),
        None,
        {"Model": MODEL_PAGE, "Gate": GATE_PAGE, "MLflow": MLFLOW_PAGE},
    ),
    "deploy": (
        DeployModelOperator(task_id="t", name="flights", version="10"),
        ENDPOINT,
        {"Model": MODEL_PAGE, "Gate": GATE_PAGE, "MLflow": ""},
    ),
    "score": (ScorePartitionsOperator(task_id="t", name="flights"), SCORES, {"Model": MODEL_PAGE}),
    "drift": (
        DriftReportOperator(task_id="t", name="flights"),
        REPORT,
        {"Model": MODEL_PAGE, "Drift report": NIGHT_PAGE},
    ),
    "drift that failed": (
        DriftReportOperator(task_id="t", name="flights"),
        None,
        {"Model": MODEL_PAGE, "Drift report": ""},
    ),
    "performance": (
        PerformanceReportOperator(task_id="t", name="flights"),
        PERFORMANCE,
        {"Model": MODEL_PAGE, "Performance": "/sml/models/flights/performance/2013-04-02"},
    ),
    "retraining": (
        RequestRetrainingOperator(task_id="t", report=REPORT),
        None,
        {
            "Model": MODEL_PAGE,
            "Drift report": NIGHT_PAGE,
            "Decision": "/sml/models/flights/decisions/2013-04-02",
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_link_leads_to_a_page_that_is_served(browse, case):
    operator, result, expected = CASES[case]
    of_pages = [link for link in operator.operator_extra_links if not isinstance(link, pages.ConsoleLink)]
    found = {link.name: link.address(pages.facts(operator, result)) for link in of_pages}
    assert found == expected
    for address in found.values():
        if address.startswith("/"):
            answer = browse(address)
            assert answer.status_code == 200, address
            assert "flights" in answer.text


def test_every_link_of_an_operator_is_registered():
    used = {f"{type(link).__module__}.{type(link).__name__}" for case in CASES.values() for link in links(case)}
    assert used == set(get_provider_info()["extra-links"])
    assert pages.PREFIX == PREFIX


def kinds():
    """Every operator and sensor of this package."""
    found = {}
    for package in (operators, sensors):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(kind, BaseOperator) and kind.__module__ == module.name and not name.startswith("_"):
                    found[f"{module.name}.{name}"] = kind
    return found


def test_every_operator_and_sensor_has_a_link_that_is_registered():
    registered, found = set(get_provider_info()["extra-links"]), kinds()
    assert len(found) > 35
    for name, kind in found.items():
        used = {f"{type(link).__module__}.{type(link).__name__}" for link in kind.operator_extra_links}
        assert used and used <= registered, name


def links(case):
    return case[0].operator_extra_links


def test_airflow_takes_the_links_for_registered_ones(dag_project, monkeypatch):
    """What is not registered is dropped with a warning when a DAG comes back from its serialized form."""
    from airflow.serialization.serialized_objects import DagSerialization

    # Airflow's scheduler, which another test may have run, turns links off for the whole process.
    monkeypatch.setattr(DagSerialization, "_load_operator_extra_links", True)

    path = dag_project.write(
        "with_links.py",
        """
        from airflow.sdk import DAG
        from airflow_provider_sml.operators.monitoring import DriftReportOperator

        with DAG("with_links"):
            DriftReportOperator(task_id="drift", name="flights")
        """,
    )
    dag = dag_project.load(path)["with_links"]
    task = DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_dict["drift"]
    assert {link.name for link in task.operator_extra_links} == {"Model", "Drift report"}


def test_airflows_own_address_comes_first(monkeypatch):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/prod/")
    assert pages.ModelLink().address({"name": "flights"}) == "https://airflow.example.com/prod/sml/models/flights"


def test_odd_names_stay_within_their_part_of_the_address():
    assert pages.GateLink().address({"name": "../x?y", "version": "1/2"}) == "/sml/models/..%2Fx%3Fy/gate/1%2F2"


@pytest.mark.parametrize(
    ("registry", "page"),
    [
        ("https://ada:hunter2@mlflow.example.com/base/", "https://mlflow.example.com/base/#/models/m/versions/1"),
        ("http://[::1]:5000", "http://[::1]:5000/#/models/m/versions/1"),
        ("sqlite:////data/mlflow.db", ""),
        ("/data/mlflow", ""),
        ("javascript://alert(1)", ""),
        ("https://host:port", ""),
    ],
)
def test_mlflows_page_is_there_for_servers_only(registry, page):
    assert pages.MlflowLink().address({"registry": registry, "name": "m", "version": "1"}) == page


def test_references_are_read_in_every_form():
    operator = SimpleNamespace(
        template_fields=["a", "b", "c", "d"], a=ReportRef.load(REPORT), b="{not json", c=3, d=None
    )
    assert pages.facts(operator, None) == {"name": "flights", "day": "2013-04-02"}
    operator.a = '{"kind": "report", "model": "m", "day": "2013-01-01"}'
    assert pages.facts(operator, None) == {"name": "m", "day": "2013-01-01"}
    operator.a = {"kind": "something else"}
    assert pages.facts(operator, None) == {}
