"""A search and the training after it, by ``dag.test()``: the best values are trained, a repeat searches nothing."""

import json
from pathlib import Path

import pytest

from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.operators.search import SearchHyperparametersOperator
from airflow_provider_sml.refs import SearchRef
from tests.links import pushed
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

DAG_FILE = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.search import SearchHyperparametersOperator
    from airflow_provider_sml.operators.training import TrainXGBoostOperator

    ROWS = dict(sample={sample!r}, dataset={dataset!r})

    with DAG("searched", schedule=None, start_date=datetime(2026, 1, 1)):
        search = SearchHyperparametersOperator(
            task_id="search", **ROWS, space={space!r}, hyperparameters={params!r}, trials={trials!r}, usd_per_hour=1.0,
            searches={searches!r}, reports={reports!r},
        )
        TrainXGBoostOperator(task_id="train", **ROWS, hyperparameters=search.output, models={models!r})
"""
SPACE = {"max_depth": {"min": 1, "max": 8}, "learning_rate": {"min": 0.001, "max": 0.5, "log": True}}


@pytest.fixture
def run(dag_project, shop_sample, tmp_path):
    """Writes the DAG and runs it; gives the result."""
    settings = {
        "sample": shop_sample.to_xcom(), "dataset": DATASET.model_dump(mode="json"), "space": SPACE, "trials": 4,
        "params": PARAMS | {"rounds": 15, "monotone": {"rain": 1}}, "searches": str(tmp_path / "searches"),
        "reports": str(tmp_path / "reports"), "models": str(tmp_path / "models"),
    }  # fmt: skip
    return lambda **changes: dag_project.run(
        dag_project.write("searched.py", DAG_FILE.format(**settings | changes)), "searched"
    )


def test_the_best_values_are_trained_with_and_a_repeat_searches_nothing(run, shop_sample, tmp_path):
    found = run()
    assert found.state == "success", found.tasks
    search, model = SearchRef.load(found.results["search"]), found.results["train"]
    assert (search.done + search.pruned, search.failed, search.metric) == (4, 0, "logloss")
    assert set(search.best) == set(SPACE) and search.usd > 0 and search.seconds > 0
    trained = Bundle.read(Path(model["uri"])).lineage
    assert {name: trained["params"][name] for name in search.hyperparameters} == search.hyperparameters
    assert trained["params"]["monotone"] == {"rain": 1} and trained["params"]["rounds"] == 15
    assert min(trained["history"]["logloss"]) == pytest.approx(search.value, abs=1e-9), "the best trial once more"

    trials = sorted(Path(search.uri, "trials").iterdir())
    stamps = [path.stat().st_mtime_ns for path in trials]
    page = tmp_path / "reports" / "orders" / "search" / search.search_id / "search.html"
    assert len(trials) == 4 and "<svg" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["hyperparameters"] == search.hyperparameters
    [cost] = pushed("searched", "sml_costs")
    assert cost["usd"] == pytest.approx(search.usd, abs=1e-3) and "4 trials in this run" in cost["what"]
    again = run()
    [cost] = pushed("searched", "sml_costs")
    assert cost["usd"] == 0, "each trial is paid once, and told once"
    assert again.results["search"] == found.results["search"] and again.results["train"] == model
    assert [path.stat().st_mtime_ns for path in trials] == stamps

    read, written = SearchHyperparametersOperator(
        task_id="t", sample=shop_sample.to_xcom(), dataset=DATASET, space=SPACE
    ).datasets(search)
    assert read[0].version == shop_sample.sample_id and written[0].version == search.search_id


@pytest.mark.parametrize(
    "wrong", [{"trials": None}, {"space": {"max_dept": [3, 4]}}], ids=["no budget", "an unknown parameter"]
)
def test_what_does_not_fit_fails_and_trains_nothing(run, tmp_path, wrong):
    assert run(**wrong).tasks == {"search": "failed", "train": "upstream_failed"}
    assert not list(tmp_path.glob("searches/*/trials/*")) and not (tmp_path / "models").exists()
