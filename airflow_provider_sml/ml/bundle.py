"""The model bundle: a folder with everything that scoring needs, and nothing that runs code when it is read.

The model's file is in its flavour's own format (``model.ubj`` of XGBoost, see ``ml.flavours``); ``bundle.json`` holds
the dataset (its contract, features and their categories), ids and digests. The trainer writes it, MLflow stores it, the
scoring server and the batch scorer read it, so that what trained is what serves. No pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.flavours import FLAVOURS, XGBOOST
from airflow_provider_sml.ml.flavours.xgboost_model import feature_types as feature_types

#: The model's file of XGBoost; ``Bundle.file`` is that of any flavour.
MODEL_FILE = FLAVOURS[XGBOOST].file
BUNDLE_FILE = "bundle.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A model with all that scoring needs.

    :param name: of the model.
    :param model_id: hash of what decided the model.
    :param dataset: the dataset as it was when the model was trained.
    :param rounds: boosting rounds in ``model``; 0 of other flavours than XGBoost.
    :param lineage: ids of what it was made from: table, snapshot, sample, code version.
    :param model: the bytes of the model's file.
    :param recalibration: what the model's odds must be multiplied by, because of how its sample was drawn; 1 where
        nothing must be; None where nobody recorded it, which the gate refuses.
    :param flavour: kind of the model, one of ``FLAVOURS``.
    :param trusted: types that the model's file may name, of scikit-learn only.
    """

    name: str
    model_id: str
    dataset: Dataset
    rounds: int
    lineage: dict[str, Any]
    model: bytes = field(repr=False)
    recalibration: float | None = None
    flavour: str = XGBOOST
    trusted: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes, and of what its file is trusted to name, where that is anything."""
        found = hashlib.sha256(self.model)
        if self.trusted:  # otherwise whoever can change a stored bundle could trust more than was registered
            found.update(json.dumps(self.trusted).encode())
        return found.hexdigest()

    @property
    def file(self) -> str:
        """Name of the model's file."""
        return FLAVOURS[self.flavour].file

    def require(self, flavour: str, what: str) -> None:
        """Refuse what only one flavour can do.

        :param flavour: the flavour.
        :param what: what is asked of it, as the beginning of a sentence.
        :raises ConfigurationError: when the model is of another one.
        """
        if self.flavour != flavour:
            raise ConfigurationError(
                f"{what} is of {flavour} models alone", expected=f"a model of the flavour {flavour}",
                found=f"model {self.model_id} of the flavour {self.flavour}",
            )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write the bundle into a folder; ``bundle.json`` comes last, so a folder that has it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(self.model)
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
            model = (folder / file_of(described)).read_bytes()
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{folder} holds no model bundle",
                expected=f"a file such as {MODEL_FILE} and {BUNDLE_FILE}",
                found=str(error),
            ) from error
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise IntegrityError(
                f"{folder} is of another format",
                expected=f"format {FORMAT}",
                found=described.get("format") if isinstance(described, dict) else type(described).__name__,
                todo="install the version of airflow-provider-sml that wrote it",
            )
        try:
            bundle = cls(
                name=described["name"],
                model_id=described["model_id"],
                dataset=Dataset(**described["dataset"]),
                rounds=described["rounds"],
                lineage=described["lineage"],
                model=model,
                recalibration=described.get("recalibration"),
                flavour=described.get("flavour", XGBOOST),
                trusted=tuple(described.get("trusted", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{folder / BUNDLE_FILE} is damaged", expected="what write() wrote", found=str(error)[:400]
            ) from error
        if bundle.digest != described.get("digest"):
            raise IntegrityError(
                f"the model in {folder} has changed", expected=described.get("digest"), found=bundle.digest
            )
        return bundle


def file_of(described: Any) -> str:
    """Name of the model's file of a bundle.

    :param described: the content of ``bundle.json``.
    :raises ValueError: when it is of a flavour that this version does not know.
    """
    name = str(described.get("flavour", XGBOOST)) if isinstance(described, dict) else XGBOOST
    if name not in FLAVOURS:
        raise ValueError(f"its flavour is {name}; this version knows {', '.join(FLAVOURS)}")
    return FLAVOURS[name].file


def recalibrate(scores: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities with their odds multiplied: ``p w / (p w + 1 - p)`` (Elkan 2001, theorem 2).

    :param scores: shape (n,), 0 to 1.
    :param factor: ``w``, above 0; of a sample of negatives the share that was kept (``sampling.methods``).
    """
    return scores if factor == 1 else scores * factor / (scores * factor + 1 - scores)


class Scorer:
    """Scores rows with a bundle: computes the features and asks the model.

    :param bundle: the model.
    :param threads: threads that XGBoost and onnxruntime may use; 0 means all cores.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self.bundle = bundle
        self.features: list[Feature] = bundle.dataset.feature_list
        self.model = FLAVOURS[bundle.flavour].load(bundle.model, self.features, threads, bundle.trusted)

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
        """What each feature contributes, largest first, as shares of the whole; nothing where the model's flavour has
        no measure of it. See the flavour's ``importance``."""
        return self.model.importance()

    def encode(self, rows: Mapping[str, Vector]) -> np.ndarray:
        """The features of raw rows: float64 of shape (rows, features), NaN for NULL, categories as codes."""
        size = len(next(iter(rows.values())).null)
        return np.column_stack([encode_feature(f, f.expression.evaluate(rows, size)) for f in self.features])

    def score_features(self, matrix: np.ndarray) -> np.ndarray:
        """Probability of the label from encoded features, shape (rows, features), recalibrated for the sample."""
        return recalibrate(self.raw_scores(matrix), self.bundle.recalibration or 1.0)

    def raw_scores(self, matrix: np.ndarray) -> np.ndarray:
        """What the model itself gives for encoded features, shape (rows, features).

        :raises DataError: when it gives no probability for a row.
        """
        scores = self.model.predict(matrix)
        if not bool(np.all((scores >= 0) & (scores <= 1))):  # false for NaN too
            wrong = scores[~((scores >= 0) & (scores <= 1))]
            raise DataError(
                f"model {self.bundle.model_id} gives no probability for {len(wrong):,} of {len(scores):,} rows",
                expected="numbers from 0 to 1", found=f"{wrong[0]:g}",
                todo="where values are missing, put an imputer before the model",
            )  # fmt: skip
        return scores


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
