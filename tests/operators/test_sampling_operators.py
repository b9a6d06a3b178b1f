"""The sampling operators by ``dag.test()``: a rate is planned, a sample drawn at it, and a repeat changes nothing."""

import json
from pathlib import Path

import pytest

from airflow_provider_sml.ml import sampling
from airflow_provider_sml.refs import SampleRef
from tests.ml.test_lake_shops import DATASET

DAG_FILE = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.sampling import PlanSampleOperator, SampleOperator

    DATASET = {dataset!r}
    ROWS = dict(table="orders", lake={lake!r}, train="{train} days", validate="3 days", test="3 days",
                method={method!r}, key=["order"], by={by!r})

    with DAG("sampling", schedule=None, start_date=datetime(2026, 1, 1)):
        plan = PlanSampleOperator(
            task_id="plan", **ROWS, dataset=DATASET, hyperparameters={{"max_depth": 3, "rounds": 20, "subsample": 0.8}},
            tolerance={tolerance}, rate={rate!r}, reports={reports!r},
        )
        SampleOperator(task_id="sample", **ROWS, rate=plan.output, dataset=DATASET)
"""


@pytest.fixture
def run(dag_project, shop_lake, tmp_path):
    """Writes the DAG and runs it; gives the result."""
    settings = {
        "dataset": DATASET.model_dump(mode="json"), "lake": shop_lake.location, "train": 11, "method": "uniform",
        "by": [], "tolerance": 0.2, "rate": "", "reports": str(tmp_path / "reports"),
    }  # fmt: skip
    return lambda **changes: dag_project.run(
        dag_project.write("sampling.py", DAG_FILE.format(**settings | changes)), "sampling"
    )


def samples(lake):
    return {path.name for path in (Path(lake.location) / "samples" / "orders").iterdir()}


def test_a_rate_is_planned_and_drawn_and_a_repeat_finds_the_same(run, shop_lake, shop_sample, tmp_path):
    before = samples(shop_lake)
    found = run()
    assert found.state == "success", found.tasks
    plan, sample = found.results["plan"], SampleRef.load(found.results["sample"])
    assert plan["found"] and plan["rate"] < 1 and plan["loss"] <= 0.2
    assert sample.rate == plan["rate"] and 0 < sample.rows["train"] < shop_sample.rows["train"]
    assert {split: sample.rows[split] for split in ("validate", "test")} == {
        split: shop_sample.rows[split] for split in ("validate", "test")
    }
    assert samples(shop_lake) == before | {sample.sample_id}  # none of the planner's own samples is left
    page, told = Path(plan["uri"], "plan.html").read_text(), json.loads(Path(plan["uri"], "plan.json").read_text())
    points = told["points"]
    assert page.count("<circle") == len(points)  # the curve as a picture
    assert told["seconds"] == pytest.approx(sum(point["seconds"] for point in points))
    assert told["total_seconds"] == pytest.approx(told["seconds"] + plan["rate"] * told["full_seconds"])
    assert f"{told['seconds']:.1f} s of training; one training on all rows would take about" in page
    assert f"together: {told['total_seconds']:.1f} s" in page
    assert len(points) >= 4 and all(point["seconds"] > 0 and 0 < point["auc"] < 1 for point in points)
    fidelity = json.loads(Path(sample.uri, "fidelity.json").read_text())
    assert {column["name"] for column in fidelity["columns"]} == set(DATASET.features)
    again = run()
    assert again.results["sample"] == found.results["sample"] and again.results["plan"] == plan


def test_a_rate_that_a_person_chose_is_taken_and_nothing_is_trained(run, tmp_path):
    found = run(rate="0.5")
    assert found.state == "success"
    assert found.results["plan"]["rate"] == found.results["sample"]["rate"] == 0.5
    assert not (tmp_path / "reports").exists()


def test_negatives_are_thinned_and_the_sample_says_so(run):
    found = run(rate="0.25", method="negatives")
    assert sampling.read_manifest(SampleRef.load(found.results["sample"]))["recalibration"] == 0.25


@pytest.mark.parametrize(
    "wrong",
    [{"train": 3}, {"rate": "half"}, {"method": "all"}, {"method": "hash", "by": ["colour"]}, {"method": "some"}],
    ids=["a short window", "a rate that is no number", "a method without a rate", "an unknown column", "a method"],
)
def test_what_does_not_fit_fails_and_draws_nothing(run, shop_lake, wrong):
    before = samples(shop_lake)
    found = run(**wrong)
    assert found.tasks == {"plan": "failed", "sample": "upstream_failed"}
    assert samples(shop_lake) == before
