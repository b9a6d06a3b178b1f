"""A model that was trained elsewhere, brought into a bundle, so that all that follows a training takes it.

Nothing is believed of it: its file is read without running anything that it holds (``ml.flavours``), it has to fit the
dataset's features, and it has to give a probability for rows of the sample, and for a row whose features are all
missing, because a request may leave out what the contract does not require.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DataError, SmlError, did_you_mean
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle, Scorer
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.flavours import FLAVOURS, XGBOOST, flavour
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import ModelRef, SampleRef

#: Endings of files by flavour, beside that of the flavour's own file.
_ENDINGS = {".json": XGBOOST}


def flavour_of(path: Path, name: str = "") -> str:
    """The flavour of a file.

    :param path: of the file.
    :param name: of the flavour; by the file's ending when empty.
    :raises ConfigurationError: when the ending says none, or there is no such flavour.
    """
    if name:
        return flavour(name).name
    endings = {Path(one.file).suffix: one.name for one in FLAVOURS.values()} | _ENDINGS
    if path.suffix not in endings:
        raise ConfigurationError(
            f"the ending of {path} says no flavour", expected=", ".join(endings), found=path.suffix or "none",
            todo=did_you_mean(path.suffix, endings) or f"name the flavour: {', '.join(FLAVOURS)}",
        )  # fmt: skip
    return endings[path.suffix]


def take(
    path: Path,
    dataset: Dataset,
    sample: SampleRef,
    models: Path,
    *,
    kind: str = "",
    trusted: Sequence[str] = (),
    hyperparameters: Mapping[str, Any] | None = None,
    recalibration: float | None = None,
) -> ModelRef:
    """Bring a model's file into a bundle, or find the bundle that was made of it before.

    :param path: of the file.
    :param dataset: features and label.
    :param sample: whose training rows it was fitted to; on its test rows it will be evaluated.
    :param models: folder that holds the bundles.
    :param kind: its flavour; by the file's ending when empty.
    :param trusted: types that the file may name beside those that skops trusts by itself.
    :param hyperparameters: what is to be told of its training.
    :param recalibration: what its odds must be multiplied by; that of the sample when None.
    :raises ConfigurationError: when the file is no such model, or does not fit the features.
    :raises DataError: when it gives no probability for rows of the sample.
    """
    found = flavour(flavour_of(path, kind))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            "the model's file cannot be read", expected=path, found=f"{type(error).__name__}: {error}"
        ) from error
    kept = found.adopt(content, trusted)
    factor = float(read_manifest(sample).get("recalibration", 1.0)) if recalibration is None else recalibration
    if not 0 < factor < float("inf"):
        raise ConfigurationError("recalibration multiplies odds", expected="a number above 0", found=factor)
    params = dict(hyperparameters or {})
    decides = [
        hashlib.sha256(content).hexdigest(), found.name, sorted(trusted), sample.sample_id, dataset.hash,
        list(dataset.features), factor, params,
    ]  # fmt: skip
    model_id = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:12]
    bundle = Bundle(
        name=dataset.name,
        model_id=model_id,
        dataset=dataset,
        rounds=0,
        lineage={
            "table": sample.table,
            "snapshot_id": sample.snapshot_id,
            "sample_id": sample.sample_id,
            "contract": dataset.hash,
            "params": params,
            "library": found.version(),
            "imported_from": str(path),
            "imported_sha256": hashlib.sha256(content).hexdigest(),
        },
        model=kept,
        recalibration=factor,
        flavour=found.name,
        trusted=tuple(sorted(trusted)),
    )
    _check(bundle, sample)
    name = models / model_id
    folder = storage.find_folder(name)
    if folder is None or not (folder / BUNDLE_FILE).exists():
        if folder is not None:
            storage.remove_folder(folder)  # somebody's half of a model
        filled = storage.fresh_folder(name)
        bundle.write(filled)
        folder = storage.settle(filled, name)
    return ModelRef(
        uri=str(folder), model_id=model_id, digest=bundle.digest, sample_id=sample.sample_id, rounds=0, lake=sample.lake
    )


def _check(bundle: Bundle, sample: SampleRef) -> None:
    """Score rows of the sample, and one that has nothing."""
    scorer = Scorer(bundle)
    files = split_files(sample, "test")
    rows = next((found for path in files if len(found := data.read(path, scorer.features)[0])), None)
    if rows is None:
        raise DataError(
            "the sample has no test row to try the model on", expected=f"rows in {sample.uri}/test", found="none",
            todo="clear the sampling task",
        )  # fmt: skip
    nothing = np.full((1, len(scorer.features)), np.nan)
    for what, matrix in (("rows of the sample", rows), ("a row whose features are all missing", nothing)):
        try:
            scores = scorer.raw_scores(matrix)
        except SmlError:
            raise
        except Exception as error:  # of scikit-learn's or onnxruntime's own
            raise DataError(
                f"the model does not score {what}", expected=f"the features {', '.join(bundle.dataset.features)}",
                found=f"{type(error).__name__}: {error}"[:400],
                todo="let it deal with missing values, such as by an imputer before it",
            ) from error  # fmt: skip
        if scores.shape != (len(matrix),):
            raise DataError(f"the model does not score {what}", expected=(len(matrix),), found=scores.shape)
