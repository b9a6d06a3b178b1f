"""What SageMaker's own XGBoost image is given, and how its answers are read."""

from dataclasses import replace

import numpy as np
import pytest

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.serving.requests import RequestChecker
from airflow_provider_sml.ml.serving.xgboost_container import booster_of, csv_request, csv_scores
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
    with pytest.raises(ConfigurationError, match="recalibrates its scores"):
        booster_of(replace(make_bundle(1), recalibration=0.25))


@pytest.mark.parametrize("answer", [b"", b"0.5", b"0.5,0.5,0.5", b"{}", b"\xff"])
def test_an_answer_without_a_score_for_each_row_is_refused(answer):
    with pytest.raises(DeploymentError, match="no score for each row"):
        csv_scores("it", answer, 2)
