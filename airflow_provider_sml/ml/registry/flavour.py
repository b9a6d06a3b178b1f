"""A model in a flavour of MLflow's own, so that everyone's tools load it; its scores are held against the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from airflow_provider_sml.errors import IntegrityError, require
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.flavours import FLAVOURS
from airflow_provider_sml.ml.flavours.sklearn_model import TRUSTED

#: Score of the stored example by MLflow's flavour and by ours may differ by this much: both are float32.
_SAME = 1e-6


def log_flavour(bundle: Bundle, example: np.ndarray) -> Any:
    """Log the model in MLflow's own flavour, load it back, and hold its scores against the bundle's.

    :param bundle: the model.
    :param example: encoded feature rows, shape (rows, features).
    :returns: what MLflow tells of the logged model.
    :raises IntegrityError: when the stored model scores the example differently, or the example was not stored.
    """
    import mlflow
    import pandas as pd

    names = [feature.name for feature in bundle.dataset.feature_list]
    frame = pd.DataFrame(example.astype(np.float32), columns=names)
    scorer = Scorer(bundle)
    scores = scorer.raw_scores(example)  # MLflow's flavour holds the model alone, without recalibration
    shared = {
        "name": "model",
        # Given, because guessing them imports the model in a fresh environment and takes half a minute.
        "pip_requirements": [
            *_requirements(bundle.flavour), f"pandas=={pd.__version__}", f"numpy=={np.__version__}",
        ],
        "metadata": {"sml_model_id": bundle.model_id, "sml_digest": bundle.digest},
    }  # fmt: skip
    logged = _LOGGED[bundle.flavour](bundle, scorer, frame, scores, shared)
    # MLflow only warns when it cannot store the example, so what it stored is read back and scored.
    stored = mlflow.pyfunc.load_model(logged.model_uri)
    kept = stored.input_example
    told = list(getattr(kept, "columns", names))
    if kept is None or told != names or len(kept) != len(frame):
        raise IntegrityError(
            f"MLflow did not store the input example of {bundle.model_id}",
            expected=f"{len(frame)} rows of {', '.join(names)}",
            found="none" if kept is None else f"{len(kept)} rows of {', '.join(map(str, told))}",
        )
    found = _probabilities(stored.predict(kept.astype(np.float32)))
    worst = float(np.max(np.abs(found - scores))) if len(found) == len(scores) else np.inf
    if not worst <= _SAME:
        raise IntegrityError(
            f"the stored model {bundle.model_id} scores its example differently",
            expected=f"a difference of at most {_SAME:g}",
            found=worst,
        )
    return logged


def _xgboost(bundle: Bundle, scorer: Scorer, frame: Any, scores: np.ndarray, shared: Mapping[str, Any]) -> Any:
    import mlflow

    model: Any = scorer.model
    signature = mlflow.models.infer_signature(frame, scores.astype(np.float32))
    return mlflow.xgboost.log_model(
        model.booster, model_format="ubj", signature=signature, input_example=frame, **shared
    )


def _sklearn(bundle: Bundle, scorer: Scorer, frame: Any, scores: np.ndarray, shared: Mapping[str, Any]) -> Any:
    """In the format of skops, as in the bundle; MLflow would otherwise be free to take a pickle."""
    import mlflow

    signature = mlflow.models.infer_signature(frame, np.column_stack([1 - scores, scores]))
    model: Any = scorer.model
    return mlflow.sklearn.log_model(
        model.classifier, serialization_format="skops", skops_trusted_types=[*TRUSTED, *bundle.trusted],
        pyfunc_predict_fn="predict_proba", signature=signature, input_example=frame, **shared,
    )  # fmt: skip


def _onnx(bundle: Bundle, scorer: Scorer, frame: Any, scores: np.ndarray, shared: Mapping[str, Any]) -> Any:
    """As a graph of tensors: MLflow cannot give the outputs of a classifier, a label and two probabilities, as the
    columns of one data frame."""
    import mlflow

    require("onnx", "onnx")
    import onnx

    example = frame.to_numpy()
    return mlflow.onnx.log_model(
        onnx.load_model_from_string(bundle.model), save_as_external_data=False,
        signature=mlflow.models.infer_signature(example), input_example=example, **shared,
    )  # fmt: skip


_LOGGED = {"xgboost": _xgboost, "sklearn": _sklearn, "onnx": _onnx}


def _requirements(name: str) -> list[str]:
    """What loads the model, at the versions of this environment."""
    import importlib.metadata

    besides = {"sklearn": ["skops"], "onnx": ["onnx"]}.get(name, [])
    return [FLAVOURS[name].version(), *(f"{one}=={importlib.metadata.version(one)}" for one in besides)]


def _probabilities(answer: Any) -> np.ndarray:
    """The label's probability in what MLflow's model answers: scores, those of both labels, or outputs by name."""
    if isinstance(answer, dict):
        answer = next(values for values in answer.values() if np.asarray(values).dtype.kind == "f")
    found = np.asarray(answer, dtype=float)
    return found if found.ndim == 1 else found[:, -1]
