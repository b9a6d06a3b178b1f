"""What SageMaker's and Google's own XGBoost images are given, and how their answers are read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.serving.requests import RequestChecker
from airflow_provider_sml.ml.serving.xgboost_container import (
    booster_of,
    csv_request,
    csv_scores,
    list_request,
    nameless_booster_of,
)
from airflow_provider_sml.testing.aws.containers import xgboost_container
from tests.toy import make_bundle

ROWS = [
    {"at": "2026-01-02T03:00:00", "weight": 25.5, "fuel": 0.1},
    {"at": "2026-01-02T13:00:00", "weight": 1.0, "fuel": None},
]


def test_the_image_gives_the_model_s_scores():
    bundle = make_bundle(2)
    request = csv_request(bundle, ROWS)
    assert request.split(b"\n")[1] == b"13.0,1.0,"
    status, answer, _ = xgboost_container(booster_of(bundle))(request, "text/csv", "text/csv")
    wanted = Scorer(bundle).score(RequestChecker(bundle).check(ROWS).rows)
    assert status == 200 and np.allclose(csv_scores("it", answer, 2), wanted, atol=1e-9)
    assert xgboost_container(booster_of(bundle))(request, "application/json", "text/csv")[0] == 415


def test_a_model_that_recalibrates_is_not_for_it():
    for booster in (booster_of, nameless_booster_of):
        with pytest.raises(ConfigurationError, match="recalibrates its scores"):
            booster(replace(make_bundle(1), recalibration=0.25))


def test_google_s_own_predictor_gives_the_model_s_scores(tmp_path, monkeypatch):
    """The server of Google's SDK, on the request as it comes over the wire; categories are sent as their codes."""
    predictor = pytest.importorskip("google.cloud.aiplatform.prediction.xgboost.predictor").XgboostPredictor()
    bundle = make_bundle(2, category=True)
    (tmp_path / "model.bst").write_bytes(nameless_booster_of(bundle))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("google.cloud.aiplatform.utils.prediction_utils.download_model_artifacts", lambda uri: None)
    predictor.load("gs://b/toy", allowed_extensions=[".bst"])
    rows = [row | {"port": port} for row, port in zip(ROWS, ("north", "south"), strict=True)]
    request = json.loads(json.dumps({"instances": list_request(bundle, rows)}))
    assert request["instances"][1] == [13.0, 1.0, None, 1.0]
    answer = predictor.postprocess(predictor.predict(predictor.preprocess(request)))
    wanted = Scorer(bundle).score(RequestChecker(bundle).check(rows).rows)
    assert np.allclose(answer["predictions"], wanted, atol=1e-9)
    assert len(set(answer["predictions"])) == 2


@pytest.mark.parametrize("answer", [b"", b"0.5", b"0.5,0.5,0.5", b"{}", b"\xff"])
def test_an_answer_without_a_score_for_each_row_is_refused(answer):
    with pytest.raises(DeploymentError, match="no score for each row"):
        csv_scores("it", answer, 2)
