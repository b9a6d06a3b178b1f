"""The report of what a DAG run cost, by ``dag.test()``: it adds up what tasks told, and counts what has no price."""

import json
from pathlib import Path

import pytest

from airflow_provider_sml.operators.cost import Cost
from airflow_provider_sml.operators.costs import total

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow_provider_sml.operators.costs import CostReportOperator
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator

WHERE = dict(
    image="123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1", role="arn:aws:iam::123456789012:role/sagemaker",
    output_path="s3://models/churn", poll_interval=0.01, deferrable={deferrable},
)
with DAG("churn_train", default_args={{"retries": 0}}):
    spot = SageMakerTrainOperator(task_id="spot", instances=["ml.m5.xlarge"], spot=True,
                                  checkpoint="s3://models/checkpoints", **WHERE)
    several = SageMakerTrainOperator.partial(task_id="several", instances=["ml.m5.xlarge"], **WHERE).expand(
        hyperparameters=[{{"depth": 1}}, {{"depth": 2}}])
    unknown = SageMakerTrainOperator(task_id="unknown", instances=["ml.p5.48xlarge"], **WHERE)

    @task
    def fails():
        raise ValueError("on purpose")

    report = CostReportOperator(task_id="costs", name="churn", reports={reports!r})
    spot >> several >> unknown >> fails() >> report.as_teardown()
"""


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_tasks_are_added_up_and_what_has_no_price_is_counted(dag_project, cloud, tmp_path, deferrable):
    cloud.faults.add("interrupt", count=2)
    text = DAG_FILE.format(reports=str(tmp_path), deferrable=deferrable)
    run = dag_project.run(dag_project.write("churn.py", text), "churn_train")
    assert run.state == "failed"  # by the task that fails; the report is made all the same
    told, spot = run.results["costs"], run.results["spot"]
    assert told["unknown"] == 1 and told["usd_per_hour"] == 0 and len(json.dumps(told)) < 1000
    kept = json.loads((Path(told["uri"]) / "costs.json").read_text())
    assert [row["task"] for row in kept["tasks"]] == ["several", "several", "spot", "unknown"]
    assert told["usd"] == pytest.approx(sum(row["usd"] or 0 for row in kept["tasks"]), abs=1e-6)
    # 70 percent were saved: without spot it would have cost the price of all the training's seconds
    assert spot["savings_percent"] == 70.0
    assert told["saved_usd"] == pytest.approx(spot["cost_usd"] * 7 / 3, abs=1e-3)
    page = (Path(told["uri"]) / "costs.html").read_text()
    assert "1 costs have no price" in page and "70.0 %" in page and "2 x" not in page
    assert Path(told["uri"]).parent == tmp_path / "churn" / "costs"


def test_what_goes_on_is_no_sum():
    costs = [Cost("a", usd=1.5, saved_usd=0.5), Cost("an endpoint", usd_per_hour=0.23), Cost("b")]
    assert total(costs) == {"usd": 1.5, "saved_usd": 0.5, "unknown": 1, "usd_per_hour": 0.23}
    assert [str(cost).partition(": ")[2] for cost in costs] == [
        "1.5000 USD", "0.2300 USD an hour", "no price is known",
    ]  # fmt: skip
