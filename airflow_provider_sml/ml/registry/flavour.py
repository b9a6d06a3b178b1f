"""A model in a flavour of MLflow's own, so that everyone's tools load it; its scores are held against the bundle's."""

from __future__ import annotations

from typing import Any

import numpy as np

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml.bundle import Bundle, Scorer

#: Score of the stored example by MLflow's flavour and by ours may differ by this much: both are float32.
_SAME = 1e-6


def log_flavour(bundle: Bundle, example: np.ndarray) -> Any:
    """Log the model in MLflow's XGBoost flavour, load it back, and hold its scores against the bundle's.

    :param bundle: the model.
    :param example: encoded feature rows, shape (rows, features).
    :returns: what MLflow tells of the logged model.
    :raises IntegrityError: when the stored model scores the example differently, or the example was not stored.
    """
    import mlflow
    import pandas as pd
    import xgboost

    names = [feature.name for feature in bundle.dataset.feature_list]
    frame = pd.DataFrame(example.astype(np.float32), columns=names)
    scores = Scorer(bundle).raw_scores(example)  # the flavour holds the booster alone
    booster = xgboost.Booster()
    booster.load_model(bytearray(bundle.model))
    logged = mlflow.xgboost.log_model(
        booster,
        name="model",
        model_format="ubj",
        signature=mlflow.models.infer_signature(frame, scores.astype(np.float32)),
        input_example=frame,
        # Given, because guessing them imports the model in a fresh environment and takes half a minute.
        pip_requirements=[
            f"xgboost=={xgboost.__version__}",
            f"pandas=={pd.__version__}",
            f"numpy=={np.__version__}",
        ],
        metadata={"sml_model_id": bundle.model_id, "sml_digest": bundle.digest},
    )
    # MLflow only warns when it cannot store the example, so what it stored is read back and scored.
    stored = mlflow.pyfunc.load_model(logged.model_uri)
    kept = stored.input_example
    if kept is None or list(kept.columns) != names or len(kept) != len(frame):
        raise IntegrityError(
            f"MLflow did not store the input example of {bundle.model_id}",
            expected=f"{len(frame)} rows of {', '.join(names)}",
            found="none" if kept is None else f"{len(kept)} rows of {', '.join(map(str, kept.columns))}",
        )
    found = np.asarray(stored.predict(kept.astype(np.float32)), dtype=float)
    worst = float(np.max(np.abs(found - scores)))
    if not worst <= _SAME:
        raise IntegrityError(
            f"the stored model {bundle.model_id} scores its example differently",
            expected=f"a difference of at most {_SAME:g}",
            found=worst,
        )
    return logged
