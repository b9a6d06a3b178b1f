"""A training on top of a registered version, by ``dag.test()``: registered, trained again, or refused."""

import pytest

from airflow_provider_sml.ml.registry import CHAMPION, Registry
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

LIFE = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.reproduction import ReproduceModelOperator
    from airflow_provider_sml.operators.training import RegisterModelOperator, TrainXGBoostOperator

    ROWS = dict(sample={sample!r})
    REGISTRY = dict(name="orders", mlflow={mlflow!r})

    with DAG("warm", schedule=None, start_date=datetime(2026, 1, 1)):
        cold = TrainXGBoostOperator(task_id="cold", **ROWS, dataset={dataset!r}, models={models!r},
                                    hyperparameters={params!r}, warm_start="champion", **REGISTRY)
        first = RegisterModelOperator(task_id="first", model=cold.output, **ROWS, **REGISTRY)
        warm = TrainXGBoostOperator(task_id="warm", **ROWS, dataset={dataset!r}, models={models!r},
                                    hyperparameters={more!r}, warm_start=first.output, **REGISTRY)
        second = RegisterModelOperator(task_id="second", model=warm.output, **ROWS, **REGISTRY)
        ReproduceModelOperator(task_id="again", version=second.output, **REGISTRY)
"""
ONE = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.training import TrainXGBoostOperator

    with DAG("one", schedule=None, start_date=datetime(2026, 1, 1)):
        TrainXGBoostOperator(task_id="train", sample={sample!r}, dataset={dataset!r}, models={models!r},
                             hyperparameters={more!r}, warm_start={warm_start!r}, mlflow={mlflow!r})
"""


@pytest.fixture
def settings(shop_sample, tmp_path):
    return {
        "sample": shop_sample.to_xcom(), "dataset": DATASET.model_dump(mode="json"), "mlflow": str(tmp_path / "mlflow"),
        "models": str(tmp_path / "models"), "params": PARAMS | {"rounds": 6},
        "more": PARAMS | {"rounds": 5, "subsample": 0.5},
    }  # fmt: skip


def test_a_version_is_trained_on_registered_and_trained_again(dag_project, settings):
    result = dag_project.run(dag_project.write("warm.py", LIFE.format(**settings)), "warm")
    assert result.state == "success", result.tasks
    cold, warm = result.results["cold"], result.results["warm"]
    assert cold["rounds"] <= 6, "without a champion the training starts from nothing"
    assert cold["rounds"] < warm["rounds"] <= cold["rounds"] + 5
    assert result.results["again"]["equal"] and result.results["again"]["rounds"] == warm["rounds"]

    registry = Registry(settings["mlflow"])
    second = registry.version("orders", "2")
    assert registry.tags(second)["warm_start"] == "1" and "warm_start" not in registry.tags(
        registry.version("orders", "1")
    )
    registry.set_alias(second, CHAMPION)

    def one(warm_start):
        file = dag_project.write("one.py", ONE.format(**settings | {"warm_start": warm_start}))
        return dag_project.run(file, "one")

    onto = one("champion")
    assert warm["rounds"] < onto.results["train"]["rounds"] <= warm["rounds"] + 5
    assert one("1").results["train"] == warm, "the same version and rows give the model that is there"
    assert one("7").state == "failed"

    with registry._client() as client:
        client.delete_model_version("orders", "1")
    file = dag_project.write("again.py", AGAIN.format(**settings))
    assert dag_project.run(file, "again").state == "failed"


AGAIN = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.reproduction import ReproduceModelOperator

    with DAG("again", schedule=None, start_date=datetime(2026, 1, 1)):
        ReproduceModelOperator(task_id="again", name="orders", version="2", mlflow={mlflow!r})
"""
