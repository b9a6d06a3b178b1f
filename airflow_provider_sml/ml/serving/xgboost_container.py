"""How the vendors' own XGBoost images are given a model, and asked.

SageMaker's takes features as CSV, an empty field for a missing one, and answers scores by commas; Vertex AI's takes
lists of features, null for a missing one, and answers ``predictions``. Both know a booster and nothing of raw columns,
contracts or recalibration: who asks computes the features, in the order of the dataset, categories as their codes.

Sources: github.com/aws/sagemaker-xgboost-container, ``encoder.py`` and ``algorithm_mode/handler_service.py``; for
Vertex AI "Export model artifacts" (cloud.google.com/vertex-ai/docs/training/exporting-model-artifacts: the file is
``model.bst``) and Google's own server of such models, ``google/cloud/aiplatform/prediction/xgboost/predictor.py`` of
github.com/googleapis/python-aiplatform.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.flavours import XGBOOST, xgboost_model
from airflow_provider_sml.ml.serving.requests import RequestChecker

#: The file of the archive that holds the booster, and the content type of questions and answers.
MODEL_FILE, CONTENT = "xgboost-model", "text/csv"
#: The file that Vertex AI's image reads.
VERTEX_MODEL_FILE = "model.bst"


def booster_of(bundle: Bundle, image: str = "SageMaker's XGBoost image") -> bytes:
    """The booster as the image takes it.

    :param image: whose it is, for messages.
    :raises ConfigurationError: when it is no booster, or its own scores are not the model's.
    """
    bundle.require(XGBOOST, f"{image[0].upper()}{image[1:]}")
    if bundle.recalibration not in (None, 1, 1.0):
        raise ConfigurationError(
            f"model {bundle.model_id} recalibrates its scores, which {image} does not",
            expected="a model whose sample kept the share of its label", found=f"a factor of {bundle.recalibration:g}",
            todo="deploy it with this package's scoring image (container: ours), or train on another sample",
        )  # fmt: skip
    return bundle.model


def nameless_booster_of(bundle: Bundle) -> bytes:
    """The booster as Vertex AI's image takes it: its data have no names, and XGBoost refuses those for a booster that
    has some.

    :raises ConfigurationError: when the booster's own scores are not the model's.
    """
    content = booster_of(bundle, "Google's XGBoost image")
    booster = xgboost_model.load(content, bundle.dataset.feature_list, 1).booster
    booster.feature_names = booster.feature_types = None
    return bytes(booster.save_raw("ubj"))


def list_request(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> list[list[float | None]]:
    """The features of raw rows as Vertex AI's image takes them: ``instances`` of a request.

    :param bundle: the model.
    :param rows: raw columns as JSON values.
    """
    return [[None if np.isnan(value) else float(value) for value in row] for row in _features(bundle, rows)]


def csv_request(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> bytes:
    """The features of raw rows as SageMaker's image takes them.

    :param bundle: the model.
    :param rows: raw columns as JSON values.
    """
    matrix = _features(bundle, rows)
    lines = (",".join("" if np.isnan(value) else repr(float(value)) for value in row) for row in matrix)
    return "\n".join(lines).encode()


def _features(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Encoded features of raw rows, float32 of shape (rows, features), NaN for a missing one."""
    return Scorer(bundle, 1).encode(RequestChecker(bundle).check(rows).rows).astype(np.float32)


def csv_scores(what: str, answer: bytes, rows: int) -> list[float]:
    """The scores in an answer of the image.

    :param what: answers, for messages.
    :param rows: that were asked.
    :raises DeploymentError: when it does not hold one for each row.
    """
    try:
        scores = [float(text) for text in re.split(r"[,\s]+", answer.decode().strip())]
    except ValueError:
        scores = []
    if len(scores) != rows:
        raise DeploymentError(f"{what} gives no score for each row", expected=rows, found=repr(answer[:200]))
    return scores
