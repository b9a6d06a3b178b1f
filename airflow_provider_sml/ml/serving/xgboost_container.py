"""How SageMaker's own XGBoost image is asked: features as CSV, an empty field for a missing one; scores by commas.

That image knows a booster and nothing of raw columns, contracts or recalibration: who asks it computes the features, in
the order of the dataset, categories as their codes. Source: github.com/aws/sagemaker-xgboost-container, ``encoder.py``
and ``algorithm_mode/handler_service.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.serving.requests import RequestChecker

#: The file of the archive that holds the booster, and the content type of questions and answers.
MODEL_FILE, CONTENT = "xgboost-model", "text/csv"


def booster_of(bundle: Bundle) -> bytes:
    """The booster as the image takes it.

    :raises ConfigurationError: when the booster's own scores are not the model's.
    """
    if bundle.recalibration not in (None, 1, 1.0):
        raise ConfigurationError(
            f"model {bundle.model_id} recalibrates its scores, which SageMaker's XGBoost image does not",
            expected="a model whose sample kept the share of its label", found=f"a factor of {bundle.recalibration:g}",
            todo="deploy it with this package's scoring image (container: ours), or train on another sample",
        )  # fmt: skip
    return bundle.model


def csv_request(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> bytes:
    """The features of raw rows as the image takes them.

    :param bundle: the model.
    :param rows: raw columns as JSON values.
    """
    matrix = Scorer(bundle, 1).encode(RequestChecker(bundle).check(rows).rows).astype(np.float32)
    lines = (",".join("" if np.isnan(value) else repr(float(value)) for value in row) for row in matrix)
    return "\n".join(lines).encode()


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
