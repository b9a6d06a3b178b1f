"""XGBoost's booster, as UBJSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from airflow_provider_sml.errors import ConfigurationError

if TYPE_CHECKING:
    import xgboost

    from airflow_provider_sml.ml.contract import Feature


def feature_types(features: Sequence[Feature]) -> list[str]:
    """XGBoost's types of the features: ``c`` for a category, ``q`` for a number."""
    return ["q" if feature.categories is None else "c" for feature in features]


def adopt(content: bytes, trusted: Sequence[str] = ()) -> bytes:
    """A booster as UBJSON, from UBJSON or JSON.

    :param content: of the file.
    :param trusted: means nothing here: a booster names no types.
    :raises ConfigurationError: when it is no booster of a binary label.
    """
    booster = _read(content)
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective != "binary:logistic":
        raise ConfigurationError(
            "the booster does not give the probability of a label", expected="binary:logistic", found=objective
        )
    return bytes(booster.save_raw("ubj"))


def load(content: bytes, features: Sequence[Feature], threads: int = 0, trusted: Sequence[str] = ()) -> BoosterModel:
    """The booster of some bytes; see ``Flavour.load``."""
    return BoosterModel(_read(content, threads), features)


class BoosterModel:
    """A booster that scores.

    :param booster: the booster.
    :param features: its features, in their order.
    """

    def __init__(self, booster: xgboost.Booster, features: Sequence[Feature]) -> None:
        names = [feature.name for feature in features]
        if booster.feature_names not in (None, names):
            raise ConfigurationError(
                "the booster was trained on other features, or in another order", expected=", ".join(names),
                found=", ".join(booster.feature_names),
            )  # fmt: skip
        self.booster = booster
        self._names, self._types = names, feature_types(features)

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """See ``Model``."""
        import xgboost

        data = xgboost.DMatrix(
            matrix.astype(np.float32), feature_names=self._names, feature_types=self._types, enable_categorical=True
        )
        return self.booster.predict(data).astype(np.float64)

    def importance(self) -> dict[str, float]:
        """The share of all splits' loss reduction that a feature's splits have (``total_gain``, over their sum),
        largest first; 0 for a feature that no split asks."""
        gains = self.booster.get_score(importance_type="total_gain")
        total = sum(float(gain) for gain in gains.values()) or 1.0
        shares = {name: float(gains.get(name, 0.0)) / total for name in self._names}
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _read(content: bytes, threads: int = 0) -> xgboost.Booster:
    import xgboost

    booster = xgboost.Booster({"nthread": threads} if threads else {})
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise ConfigurationError(
            "the file is no XGBoost model", expected="what Booster.save_model wrote as .ubj or .json",
            found=f"{type(error).__name__}: {str(error).partition('Stack trace:')[0].strip()[:300]}",
        ) from error  # fmt: skip
    return booster
