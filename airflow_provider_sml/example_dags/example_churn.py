"""Operators in one's own DAG, without any YAML: train a model on a lake table and serve it.

The table ``churn`` must have been published to the lake, with the columns named below.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag

from airflow_provider_sml.operators.deployment import DeployModelOperator
from airflow_provider_sml.operators.gate import GateOperator
from airflow_provider_sml.operators.sampling import SampleOperator
from airflow_provider_sml.operators.training import (
    EvaluateModelOperator,
    RegisterModelOperator,
    TrainXGBoostOperator,
)

CHURN = {
    "name": "churn",
    "source": {"path": "/data/landing/churn/{date}.csv"},
    "contract": {
        "key": ["customer"],
        "event_time": "seen",
        "columns": {
            "customer": {"type": "int", "required": True},
            "seen": {"type": "timestamp", "required": True},
            "plan": {"type": "string", "required": True, "values": ["free", "plus", "team"]},
            "visits": {"type": "int", "required": True, "range": [0, 10_000]},
            "left_later": {"type": "boolean", "known": "after"},
        },
    },
    "features": {"plan": "plan", "visits": "visits", "weekday": "weekday(seen)"},
    "label": "left_later",
}


# [START churn]
@dag(schedule="@weekly", start_date=datetime(2026, 1, 1), catchup=False, tags=["sml", "example"])
def example_churn() -> None:
    sample = SampleOperator(task_id="sample", table="churn", method="hash", by=["customer"], rate=0.5, train="60 days")
    model = TrainXGBoostOperator(
        task_id="train", sample=sample.output, dataset=CHURN, hyperparameters={"max_depth": 4, "rounds": 200}
    )
    evaluation = EvaluateModelOperator(task_id="evaluate", model=model.output, sample=sample.output, baseline=["plan"])
    version = RegisterModelOperator(task_id="register", model=model.output, sample=sample.output, name="churn")
    gate = GateOperator(
        task_id="gate", version=version.output, evaluation=evaluation.output, checks={"auc": {"min": 0.6}}
    )
    gate >> DeployModelOperator(task_id="deploy", name="churn", version=version.output, port=8510)


# [END churn]
example_churn()
