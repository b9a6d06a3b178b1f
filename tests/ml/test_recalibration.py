"""Thinned negatives from the draw to the scoring server: scores are recalibrated everywhere, or the gate refuses."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from airflow_provider_sml.ml import sampling, storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.gate import judge
from airflow_provider_sml.ml.serving.local import LocalEndpoint
from airflow_provider_sml.ml.serving.stored import stored_rows
from airflow_provider_sml.ml.training import metrics
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.evaluation import evaluate
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.refs import ModelVersionRef
from airflow_provider_sml.testing.processes import free_port
from tests.ml.test_lake_shops import DATASET
from tests.trained import DAYS, PARAMS

RATE = 0.25


@pytest.fixture(scope="module")
def thinned(shop_lake, tmp_path_factory):
    """A sample with a quarter of the negative rows, and the bundle that was trained on it."""
    windows = sampling.windows(DAYS[-1], 11, 3, 3, dt.timedelta(0))
    sample = sampling.draw(shop_lake, "orders", windows, method="negatives", rate=RATE, key=["order"])
    with cluster("local") as client:
        training = Training(DATASET, sample, PARAMS | {"learning_rate": 0.2})
        model = train(training, client, tmp_path_factory.mktemp("models"), lambda line: None)
    return sample, Bundle.read(Path(model.uri))


def evaluated(bundle, sample, folder):
    evaluate(bundle, sample, folder)
    return json.loads((folder / "evaluation.json").read_text())


def verdict(bundle, evaluation, folder):
    version = ModelVersionRef("sqlite:///x", "orders", "1", "run", bundle.model_id)
    return judge(version, evaluation, {}, folder)


def test_the_rate_is_in_the_metadata_and_the_evaluation_shows_both_calibrations(thinned, tmp_path):
    sample, bundle = thinned
    assert bundle.recalibration == RATE
    found = evaluated(bundle, sample, tmp_path / "out")
    told, rate = found["recalibration"], found["label_rate"]
    assert (told["model"], told["sample"]) == (RATE, RATE)
    # Before, the scores are far too high; after, they are the rates of the rows that nobody thinned.
    assert told["mean_score_before"] > rate + 0.1 and abs(found["mean_score"] - rate) < 0.05
    assert told["ece_before"] > 0.1 and found["ece"]["value"] < told["ece_before"] / 2
    assert found["log_loss"]["value"] < told["log_loss_before"]
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "ECE before recalibration by 0.25" in page and f"{told['ece_before']:.4f}" in page
    assert "After recalibration, which multiplied the odds by 0.25:" in page and "Before it:" in page
    assert verdict(bundle, found, tmp_path / "gate").passed


def test_a_scoring_server_gives_recalibrated_probabilities(thinned, tmp_path):
    sample, bundle = thinned
    rows = pa.concat_tables([storage.read_table(path) for path in sampling.split_files(sample, "test")])
    labels = rows.column(LABEL).to_numpy().astype(float)
    instances, expected = stored_rows(bundle, Path(sample.uri), len(labels))
    answers = {}
    for name, kept in (("after", bundle), ("before", replace(bundle, recalibration=1.0))):
        kept.write(tmp_path / name)
        endpoint = LocalEndpoint(tmp_path / f"endpoint-{name}", "orders", free_port())
        try:
            with endpoint.start_candidate(tmp_path / name, "orders", "1") as candidate:
                candidate.go_live()
            parts = [instances[n : n + 100] for n in range(0, len(instances), 100)]
            with httpx.Client(trust_env=False, timeout=20) as client:
                given = [client.post(endpoint.url, json={"instances": part}).json()["predictions"] for part in parts]
        finally:
            endpoint.stop()
        answers[name] = np.concatenate(given)
    after, before = answers["after"], answers["before"]
    assert after == pytest.approx(expected, abs=1e-6)
    assert after == pytest.approx(before * RATE / (1 - before + before * RATE), abs=1e-6)  # odds times the rate
    assert metrics.ece(labels, before) > 0.1 and metrics.ece(labels, after) < metrics.ece(labels, before) / 2
    assert metrics.auc(labels, after) == pytest.approx(metrics.auc(labels, before))


@pytest.mark.parametrize("said", [None, 1.0])
def test_a_model_without_the_metadata_is_refused_at_the_gate(thinned, tmp_path, said):
    sample, bundle = thinned
    bundle = replace(bundle, recalibration=said)
    found = verdict(bundle, evaluated(bundle, sample, tmp_path / "out"), tmp_path / "gate")
    assert not found.passed and found.failed == ["recalibration"]
    assert "odds times 0.25, as the sample was drawn" in (tmp_path / "gate" / "gate.html").read_text()


def test_scoring_recalibrates_by_itself(thinned):
    _, bundle = thinned
    values = np.array([[8.0, 5.0, 1.0, 2.0, 30.0][: len(DATASET.feature_list)]])
    raw, scored = Scorer(bundle).raw_scores(values), Scorer(bundle).score_features(values)
    assert scored / (1 - scored) == pytest.approx(RATE * raw / (1 - raw))
