"""The model bundle: a folder with everything that scoring needs, and nothing that runs code when it is read.

``model.ubj`` is XGBoost's own format; ``bundle.json`` holds the dataset (its contract, features and their categories),
ids and digests. The trainer writes it, MLflow stores it, the scoring server and the batch scorer read it, so that what
trained is what serves. No pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.expressions.vectors import Vector

MODEL_FILE = "model.ubj"
BUNDLE_FILE = "bundle.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A model with all that scoring needs.

    :param name: of the model.
    :param model_id: hash of what decided the model.
    :param dataset: the dataset as it was when the model was trained.
    :param rounds: boosting rounds in ``model``.
    :param lineage: ids of what it was made from: table, snapshot, sample, code version.
    :param model: the booster as UBJSON bytes.
    :param recalibration: what the booster's odds must be multiplied by, because of how its sample was drawn; 1 where
        nothing must be; None where nobody recorded it, which the gate refuses.
    """

    name: str
    model_id: str
    dataset: Dataset
    rounds: int
    lineage: dict[str, Any]
    model: bytes = field(repr=False)
    recalibration: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes."""
        return hashlib.sha256(self.model).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the bundle into a folder; ``bundle.json`` comes last, so a folder that has it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self.model)
        described = {key: value for key, value in asdict(self).items() if key not in ("model", "dataset")}
        described |= {"format": FORMAT, "digest": self.digest, "dataset": self.dataset.model_dump(mode="json")}
        (folder / BUNDLE_FILE).write_text(json.dumps(described, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read a bundle back.

        :raises IntegrityError: when it is no bundle, is of another format, or the model's bytes have changed.
        """
        try:
            described = json.loads((folder / BUNDLE_FILE).read_text())
            model = (folder / MODEL_FILE).read_bytes()
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{folder} holds no model bundle", expected=f"{MODEL_FILE} and {BUNDLE_FILE}", found=str(error)
            ) from error
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise IntegrityError(
                f"{folder} is of another format",
                expected=f"format {FORMAT}",
                found=described.get("format") if isinstance(described, dict) else type(described).__name__,
                todo="install the version of airflow-provider-sml that wrote it",
            )
        found = hashlib.sha256(model).hexdigest()
        if found != described.get("digest"):
            raise IntegrityError(f"the model in {folder} has changed", expected=described.get("digest"), found=found)
        try:
            return cls(
                name=described["name"],
                model_id=described["model_id"],
                dataset=Dataset(**described["dataset"]),
                rounds=described["rounds"],
                lineage=described["lineage"],
                model=model,
                recalibration=described.get("recalibration"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{folder / BUNDLE_FILE} is damaged", expected="what write() wrote", found=str(error)[:400]
            ) from error


def recalibrate(scores: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities with their odds multiplied: ``p w / (p w + 1 - p)`` (Elkan 2001, theorem 2).

    :param scores: shape (n,), 0 to 1.
    :param factor: ``w``, above 0; of a sample of negatives the share that was kept (``sampling.methods``).
    """
    return scores if factor == 1 else scores * factor / (scores * factor + 1 - scores)


class Scorer:
    """Scores rows with a bundle: computes the features and asks the booster.

    :param bundle: the model.
    :param threads: threads that XGBoost may use; 0 means all cores.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        import xgboost

        self.bundle = bundle
        self.features: list[Feature] = bundle.dataset.feature_list
        self._booster = xgboost.Booster({"nthread": threads} if threads else {})
        self._booster.load_model(bytearray(bundle.model))

    @cached_property
    def columns(self) -> dict[str, str]:
        """Type of each raw column that scoring needs; joined ones as ``join.column``."""
        return {name: values.type for name, values in self.bundle.dataset.request_columns.items()}

    def score(self, rows: Mapping[str, Vector]) -> np.ndarray:
        """Probability of the label for each row.

        :param rows: a vector for each of ``columns``.
        :returns: float64 array of shape (rows,).
        """
        return self.score_features(self.encode(rows))

    def importance(self) -> dict[str, float]:
        """What each feature contributes, largest first: the share of all splits' loss reduction that its splits have
        (XGBoost's ``total_gain``, over their sum); 0 for a feature that no split asks."""
        gains = self._booster.get_score(importance_type="total_gain")
        total = sum(float(gain) for gain in gains.values()) or 1.0
        shares = {feature.name: float(gains.get(feature.name, 0.0)) / total for feature in self.features}
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def encode(self, rows: Mapping[str, Vector]) -> np.ndarray:
        """The features of raw rows: float64 of shape (rows, features), NaN for NULL, categories as codes."""
        size = len(next(iter(rows.values())).null)
        return np.column_stack([encode_feature(f, f.expression.evaluate(rows, size)) for f in self.features])

    def score_features(self, matrix: np.ndarray) -> np.ndarray:
        """Probability of the label from encoded features, shape (rows, features), recalibrated for the sample."""
        return recalibrate(self.raw_scores(matrix), self.bundle.recalibration or 1.0)

    def raw_scores(self, matrix: np.ndarray) -> np.ndarray:
        """What the booster itself gives for encoded features, shape (rows, features)."""
        import xgboost

        data = xgboost.DMatrix(
            matrix.astype(np.float32),
            feature_names=[f.name for f in self.features],
            feature_types=feature_types(self.features),
            enable_categorical=True,
        )
        return self._booster.predict(data).astype(np.float64)


def encode_feature(feature: Feature, vector: Vector) -> np.ndarray:
    """One feature as float64: numbers as they are, categories as their position in the contract, NaN for NULL.

    A value that is not one of the categories is NaN; the contract keeps such rows out of training and of serving.
    """
    if feature.categories is None:
        return vector.as_double()
    codes = {value: float(position) for position, value in enumerate(feature.categories)}
    return np.array(
        [np.nan if null else codes.get(value, np.nan) for value, null in zip(vector.values, vector.null, strict=True)],
        dtype=np.float64,
    )


def feature_types(features: Sequence[Feature]) -> list[str]:
    """XGBoost's types of the features: ``c`` for a category, ``q`` for a number."""
    return ["q" if feature.categories is None else "c" for feature in features]
