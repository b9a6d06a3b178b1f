"""Metrics of one's own: in the rounds, for early stopping, over several workers, and in the evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.checkpoint import Checkpoint
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.evaluation import evaluate
from airflow_provider_sml.ml.training.runner import InterruptedTraining
from airflow_provider_sml.ml.training.trainer import Training, train
from tests import own_metrics
from tests.ml.test_interruptions import PLAIN, RANDOM, boost, go_after, resumed, work
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

LOSS, TOP = "tests.own_metrics:loss", "tests.own_metrics:top_rate"
RISING = {"function": TOP, "higher_is_better": True}


def rows(sample, split):
    read = [data.read(path, DATASET.feature_list) for path in split_files(sample, split)]
    return np.concatenate([part for part, _ in read]), np.concatenate([part for _, part in read])


def test_each_round_is_measured_and_early_stopping_may_go_by_it(shop_sample, tmp_path):
    settings = {"rounds": 40, "early_stopping": 6}
    plain = boost(work(shop_sample, tmp_path / "a", settings))
    same = boost(work(shop_sample, tmp_path / "b", settings | {"metrics": [LOSS, TOP], "stop_on": LOSS}))
    history = same.state.history
    assert list(history) == ["auc", "logloss", LOSS, TOP]
    assert history[LOSS] == pytest.approx(history["logloss"], abs=2e-5)  # XGBoost tells five digits or so
    assert same.model == plain.model  # the same loss stops in the same round
    top = boost(work(shop_sample, tmp_path / "c", settings | {"metrics": [RISING], "stop_on": TOP}))
    values = top.state.history[TOP]
    assert top.state.best_round == int(np.argmax(values)) and len(values) == top.state.best_round + 7
    worst = boost(work(shop_sample, tmp_path / "d", settings | {"metrics": [TOP], "stop_on": TOP}))
    assert worst.state.best_round == int(np.argmin(worst.state.history[TOP]))
    # The scores are those of the model of that round.
    values, labels = rows(shop_sample, "validate")
    scores = Scorer(Bundle("t", "t", DATASET, top.state.best_round + 1, {}, top.model)).raw_scores(values)
    assert top.state.history[TOP][top.state.best_round] == pytest.approx(own_metrics.top_rate(labels, scores, None))


@pytest.mark.parametrize("settings", [RANDOM, PLAIN], ids=["random", "plain"])
def test_an_interruption_changes_neither_its_history_nor_the_model(shop_sample, tmp_path, settings, monkeypatch):
    settings = settings | {"metrics": [RISING, LOSS], "stop_on": TOP}
    whole = boost(work(shop_sample, tmp_path, settings))
    todo = work(shop_sample, tmp_path / "spot", settings)
    go_after(monkeypatch, 13)
    with pytest.raises(InterruptedTraining):
        boost(todo)
    assert Checkpoint(todo.checkpoint, "t1").read() is not None
    again = boost(resumed(todo))
    assert (again.model, again.state.history) == (whole.model, whole.state.history)


def test_workers_import_it_and_measure_all_rows_together(shop_sample, tmp_path):
    lines = []
    params = PARAMS | {"metrics": [LOSS, RISING], "stop_on": TOP, "class_weights": {"negative": 1, "positive": 3}}
    failing = PARAMS | {"metrics": ["tests.own_metrics:few_rows_only"]}
    with cluster("processes", workers=2) as client:
        model = train(Training(DATASET, shop_sample, params, 2), client, tmp_path, lines.append)
        again = train(Training(DATASET, shop_sample, params, 2), client, tmp_path / "again", lines.append)
        with pytest.raises(DataError, match=r"few_rows_only gives no number for 180 rows(.|\n)*found: inf"):
            train(Training(DATASET, shop_sample, failing, 2), client, tmp_path, lines.append)
        plain = train(Training(DATASET, shop_sample, PARAMS, 2), client, tmp_path, lines.append)  # fit for the next
    assert again.digest == model.digest and plain.digest != model.digest
    bundle = Bundle.read(Path(model.uri))
    history = bundle.lineage["history"]
    # A mean over rows is that of all rows in their weights, as XGBoost's own is.
    assert history[LOSS] == pytest.approx(history["logloss"], abs=2e-5)
    assert bundle.rounds == int(np.argmax(history[TOP])) + 1
    # Of a measure of ranks, the mean of the workers' own values by the sums of their weights.
    parts = []
    for rank in range(2):
        read = [data.read(path, DATASET.feature_list) for path in split_files(shop_sample, "validate")[rank::2]]
        values, labels = np.concatenate([part for part, _ in read]), np.concatenate([part for _, part in read])
        scores = Scorer(bundle).raw_scores(values)
        parts.append((own_metrics.top_rate(labels, scores, None), np.where(labels == 1, 3, 1).sum()))
    each, weights = np.transpose(parts)
    assert history[TOP][bundle.rounds - 1] == pytest.approx(np.average(each, weights=weights))
    assert any(f"{TOP} 0." in line for line in lines)


def test_it_decides_the_model_id(shop_sample):
    ids = {Training(DATASET, shop_sample, PARAMS | more).model_id
           for more in ({}, {"metrics": [LOSS]}, {"metrics": [TOP]}, {"metrics": [RISING]})}  # fmt: skip
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["tests.own_metrics.loss"], "found: tests.own_metrics.loss"),
        (["tests.no_such_module:loss"], r"cannot be imported(.|\n)*ModuleNotFoundError"),
        (["tests.own_metrics:lost"], "found: nothing of that name"),
        (["tests.own_metrics:SOMETHING"], "found: int"),
        (["tests.own_metrics:text"], r"text gives no number(.|\n)*found: '0.5'"),
        (["tests.own_metrics:nothing"], r"nothing gives no number(.|\n)*found: nan"),
        (["tests.own_metrics:raises"], r"raises gives no number(.|\n)*KeyError: 'no such column'"),
        ([{"function": LOSS, "rising": True}], "or {function: package.module:function, higher_is_better: true}"),
        ([{"function": LOSS, "higher_is_better": "yes"}], "higher_is_better: true}"),
        (LOSS, "train.metrics is no list"),
        ([LOSS, {"function": LOSS}], "names a function twice"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(shop_sample, tmp_path, told, words):
    with pytest.raises(ConfigurationError, match=words):
        train(Training(DATASET, shop_sample, PARAMS | {"metrics": told}), None, tmp_path, print)  # no cluster is asked
    assert not list(tmp_path.iterdir())


def test_early_stopping_by_a_metric_that_is_not_measured(shop_sample, tmp_path):
    for given, allowed in (([LOSS], LOSS), ([], "metrics, which is empty")):
        with pytest.raises(
            ConfigurationError, match=rf"expected: one of {allowed}; found: {TOP}(.|\n)*add it to metrics"
        ):
            train(Training(DATASET, shop_sample, PARAMS | {"metrics": given, "stop_on": TOP}), None, tmp_path, print)
    with pytest.raises(ConfigurationError, match=r"auc, logloss, tests.own_metrics:loss(.|\n)*or to metrics"):
        boost(work(shop_sample, tmp_path, {"metrics": [LOSS], "stop_on": TOP}))


def test_the_evaluation_measures_the_test_rows_by_it(shop_sample, shop_model, tmp_path):
    outcome = boost(work(shop_sample, tmp_path, {"metrics": [RISING, LOSS]}))
    lineage = {"params": {"metrics": [RISING, LOSS]}, "history": outcome.state.history}
    bundle = Bundle("orders", "m", DATASET, outcome.state.best_round + 1, lineage, outcome.model, recalibration=1.0)
    champion = Bundle.read(Path(shop_model.uri))
    evaluate(bundle, shop_sample, tmp_path / "out", champion=("3", champion))
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    values, labels = rows(shop_sample, "test")
    ours, theirs = (Scorer(each).raw_scores(values) for each in (bundle, champion))
    top, loss = result["own"]
    assert (top["function"], top["higher_is_better"], loss["higher_is_better"]) == (TOP, True, False)
    assert top["value"] == pytest.approx(own_metrics.top_rate(labels, ours, None))
    assert loss["value"] == pytest.approx(result["log_loss"]["value"])
    assert loss["low"] == pytest.approx(result["log_loss"]["low"]) and top["low"] < top["value"] < top["high"]
    gap = result["champion"]["difference"][TOP]["value"]
    assert gap == pytest.approx(top["value"] - own_metrics.top_rate(labels, theirs, None))
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert f"{TOP} (higher is better)" in page and f"Learning curve, {TOP}" in page
    assert (tmp_path / "out" / "learning_curve_tests_own_metrics_top_rate.svg").exists()
