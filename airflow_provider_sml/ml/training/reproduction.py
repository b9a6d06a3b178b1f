"""A registered version trained again from its recorded lineage, and how far the two models lie apart.

Everything that decides a model's bytes is in its bundle and on its version: the snapshot and the sample, the dataset,
the parameters with their seed, the number of workers, and the rounds between two seedings where rows or columns are
drawn at random. What is missing of it is refused by name. Another version of the code or of XGBoost does not stop a
training; the result says so. Nothing is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml._version import __version__
from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.flavours import XGBOOST
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data, metrics
from airflow_provider_sml.ml.training.runner import draws_at_random
from airflow_provider_sml.ml.training.trainer import Training
from airflow_provider_sml.refs import SampleRef

if TYPE_CHECKING:
    from airflow_provider_sml.ml.lake import Lake


def training_of(what: str, bundle: Bundle, tags: Mapping[str, str], lake: Lake) -> Training:
    """The training that made a version.

    :param what: the version in words, for errors.
    :param bundle: its bundle.
    :param tags: its tags.
    :param lake: the lake of its table.
    :raises ConfigurationError: when it was trained elsewhere, its lineage is not whole, or its snapshot or its sample
        is gone.
    :raises IntegrityError: when the sample is not the one that it was trained on.
    """
    bundle.require(XGBOOST, "Training a version again")
    told = bundle.lineage
    if "imported_from" in told:
        raise ConfigurationError(
            f"{what} was trained elsewhere", expected="a version that was trained by this package",
            found=f"imported from {told['imported_from']}",
        )  # fmt: skip
    needed = ["table", "snapshot_id", "sample_id", "params", "workers"]
    if draws_at_random(told.get("params", {})):
        needed.append("checkpoint_rounds")
    missing = [key for key in needed if key not in told]
    missing += [] if "seed" in told.get("params", {"seed": None}) else ["params.seed"]
    missing += [] if "sample_uri" in tags else ["the tag sml.sample_uri"]
    if missing:
        raise ConfigurationError(
            f"the lineage of {what} is not whole",
            expected=f"{', '.join(needed)}, params.seed, the tag sml.sample_uri",
            found=f"no {', '.join(missing)}",
            todo="train it anew and register it by RegisterModelOperator",
        )
    _check_snapshot(what, told, lake)
    sample = _sample(what, told, tags, lake.name)
    return Training(
        bundle.dataset, sample, dict(told["params"]), told["workers"], every=told.get("checkpoint_rounds", 50)
    )


def _check_snapshot(what: str, told: Mapping[str, Any], lake: Lake) -> None:
    """The sample stands for rows of this snapshot; without it nobody can tell whether it still does."""
    table, wanted = told["table"], int(told["snapshot_id"])
    there = [one["snapshot_id"] for one in lake.snapshots(table)] if lake.exists(table) else None
    if there is None or wanted not in there:
        raise ConfigurationError(
            f"the snapshot that {what} was trained on is gone",
            expected=f"snapshot {wanted} of {table} in {lake.name}",
            found="no such table" if there is None else f"{len(there)} other snapshots",
            todo="keep snapshots of models by TagSnapshotOperator; this version cannot be trained again",
        )


def _sample(what: str, told: Mapping[str, Any], tags: Mapping[str, str], lake: str) -> SampleRef:
    """The sample, whose files are still the very bytes that its manifest names."""
    sample = SampleRef(
        tags["sample_uri"], told["sample_id"], told["table"], int(told["snapshot_id"]), "", 1.0, {}, lake
    )
    folder = storage.place(sample.uri)
    try:
        manifest = read_manifest(sample)
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the sample that {what} was trained on is gone",
            expected=f"sample {sample.sample_id} in {sample.uri}",
            found=error,
            todo="bring it back from a backup; without it this version cannot be trained again",
        ) from error
    changed = [name for name, digest in manifest["files"].items() if found[name] != digest]
    if changed or manifest["snapshot_id"] != sample.snapshot_id:
        raise IntegrityError(
            f"the sample in {sample.uri} is not the one that {what} was trained on",
            expected=f"the files that its manifest names, drawn from snapshot {sample.snapshot_id}",
            found=f"{', '.join(changed)} changed" if changed else f"snapshot {manifest['snapshot_id']}",
            todo="bring it back from a backup; without it this version cannot be trained again",
        )
    return SampleRef(
        sample.uri, sample.sample_id, sample.table, sample.snapshot_id, manifest["method"], manifest["rate"],
        manifest["rows"], lake,
    )  # fmt: skip


def surroundings(bundle: Bundle, tags: Mapping[str, str]) -> list[str]:
    """What is not as it was when the version was trained: ``name: recorded, now found`` for each."""
    import xgboost

    recorded = {"code_version": tags.get("code_version"), "xgboost": bundle.lineage.get("xgboost")}
    now = {"code_version": __version__, "xgboost": xgboost.__version__}
    return [
        f"{name}: {value or 'not recorded'}, now {now[name]}" for name, value in recorded.items() if value != now[name]
    ]


def other_device(bundle: Bundle, again: Bundle) -> list[str]:
    """That it was trained on a processor and now on a GPU, or the other way round; in the words of ``surroundings``."""
    was, now = (one.lineage.get("device") for one in (bundle, again))
    return [f"device: {was}, now {now}"] if was and was != now else []


@dataclass(frozen=True)
class Distance:
    """How far a model lies from the registered one, on the test rows of their sample.

    :param rows: test rows.
    :param score: largest absolute difference of two scores of a row, 0 to 1.
    :param auc: of the model minus that of the registered one; None where the rows have one label only.
    :param log_loss: of the model minus that of the registered one.
    """

    rows: int
    score: float = 0.0
    auc: float | None = 0.0
    log_loss: float = 0.0


def distance(registered: Bundle, again: Bundle, sample: SampleRef) -> Distance:
    """How far two models lie apart; nothing is scored where they are the same bytes.

    :param registered: the version's bundle.
    :param again: the one that was trained again.
    :param sample: the sample of both.
    :raises DataError: when the sample has no test row.
    """
    if (registered.digest, registered.recalibration) == (again.digest, again.recalibration):
        return Distance(sample.rows["test"])
    labels, before = _scored(registered, sample)
    _, after = _scored(again, sample)
    moved = metrics.auc(labels, after) - metrics.auc(labels, before)
    return Distance(
        len(labels),
        float(np.max(np.abs(after - before))),
        None if np.isnan(moved) else moved,
        metrics.log_loss(labels, after) - metrics.log_loss(labels, before),
    )


def _scored(bundle: Bundle, sample: SampleRef) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the test rows, file by file."""
    scorer, features = Scorer(bundle), bundle.dataset.feature_list
    labels, scores = [], []
    for path in split_files(sample, "test"):
        values, found = data.read(path, features)
        labels.append(found)
        scores.append(scorer.score_features(values))
    if not sum(map(len, labels)):
        raise DataError(
            "the models cannot be compared", expected=f"test rows in {sample.uri}", found="none",
            todo="draw a sample with a test window",
        )  # fmt: skip
    return np.concatenate(labels), np.concatenate(scores)
