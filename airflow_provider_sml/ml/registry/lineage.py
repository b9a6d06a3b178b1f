"""What a version was made of, as tags with the prefix ``sml.``; ``TAGS`` is the whole list.

``RegisterModelOperator`` writes them when the version is made; later ones (the gate's verdict, when it was deployed)
are added by those who know. ``lineage_report`` walks them both ways.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.refs import EvaluationRef, SampleRef

#: Prefix of every tag of ours.
TAG = "sml."
#: Environment variable that names the container image of this process by its digest; an image does not know its own.
IMAGE = "SML_IMAGE_DIGEST"
SPLITS = ("train", "validate", "test")

#: Every tag of a version, without the prefix: what it says.
TAGS: dict[str, str] = {
    "model_id": "hash of what decides the model: sample, features, parameters",
    "digest": "SHA-256 of the model's bytes",
    "flavour": "kind of the model: xgboost, sklearn or onnx",
    "library": "what scores it, `xgboost==3.2.0`; of a model that was trained elsewhere: when it was taken",
    "imported_from": "file that it was taken from; absent when it was trained here",
    "recalibration": "what the model's odds are multiplied by, because of how the sample was drawn",
    "warm_start": "version that the training started from; absent when it started from nothing",
    "lake": "lake of the table, as the operator was given it",
    "table": "table of the lake",
    "snapshot_id": "Iceberg's id of the snapshot that the sample was drawn from",
    "contract": "hash of the dataset: contract, features, label",
    "sample_id": "hash of everything that decides the sample",
    "sample_uri": "folder of the sample",
    "sample_rate": "share of the rows that it keeps in the training split",
    "sample_manifest": "SHA-256 of the sample's manifest, which holds the SHA-256 of each of its files",
    "days_train": "first and last day of the training split, `2026-01-01/2026-01-31`",
    "days_validate": "of the split that ends the training early",
    "days_test": "of the split that it was evaluated on",
    "seed": "seed of the training; absent when it was trained elsewhere, as all that only a training here has",
    "params": "SHA-256 of all hyper-parameters; they themselves are parameters of the run",
    "workers": "number of workers of the training",
    "device": "what it was trained on: cpu or cuda",
    "code_version": "version of this package",
    "bundle_version": "version of the DAG's bundle, such as a commit of git; absent where Airflow has none",
    "xgboost": "version of XGBoost",
    "python": "version of Python",
    "environment": "SHA-256 of the names and versions of all installed distributions",
    "image_digest": f"the environment variable {IMAGE} of the task that registers; absent where it is not set",
    "dag_id": "DAG that registered it",
    "run_id": "run of that DAG",
    "auc": "area under the ROC curve on the test rows",
    "auc_low": "lower end of its 95 % interval",
    "auc_high": "upper end",
    "ece": "expected calibration error on the test rows",
    "baseline_auc": "of the plain baseline on the same rows; absent without one",
    "test_rows": "number of test rows",
    "evaluation": "folder of the evaluation",
    "seconds": "seconds that the training took",
    "interruptions": "how often it was interrupted; absent when never",
    "cost_usd": "what the tasks before the registration told of costs, in USD: an estimate; 0 where none told any",
    "cost_unknown": "how many of those costs have no price",
    "gate": "`passed` or `failed`",
    "gate.NAME": "what the gate said of the check NAME",
    "approval": "what became of the approval that the gate asks for",
    "going_live": "endpoint that it goes live on while its alias is to follow; empty again when it has",
    "endpoint.TARGET.NAME": "its last deployment to an endpoint: address, mode, percent, spot, since, run; JSON",
    "deployed": "when it was deployed last, ISO 8601",
    "withdrawn_by": "the task that took it back",
    "withdrawn_for": "the version that it was taken back for",
    "alias.NAME": "hash of the line of the history by which the alias NAME was moved to it",
}


def version_tags(bundle: Bundle, evaluation: EvaluationRef | None, given: Mapping[str, str]) -> dict[str, str]:
    """The tags of a new version, with their prefix.

    :param bundle: the model.
    :param evaluation: its evaluation.
    :param given: what the caller knows besides; it has the last word.
    """
    made = bundle.lineage
    params = made.get("params", {})
    known: dict[str, Any] = {
        "model_id": bundle.model_id,
        "digest": bundle.digest,
        "contract": bundle.dataset.hash,
        "recalibration": bundle.recalibration,
        **{key: made.get(key) for key in ("table", "snapshot_id", "sample_id", "workers", "device", "xgboost")},
        **{key: made.get(key) for key in ("seconds", "interruptions", "library", "imported_from")},
        "flavour": bundle.flavour,
        "seed": params.get("seed"),
        "params": hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest(),
        "warm_start": made["warm_start"]["version"] if "warm_start" in made else None,
        "python": platform.python_version(),
        "environment": environment(),
        "image_digest": os.environ.get(IMAGE) or None,
        **metrics_of(evaluation, ""),
        "test_rows": evaluation.rows if evaluation else None,
        "evaluation": evaluation.uri if evaluation else None,
    }
    said = {key: str(value) for key, value in known.items() if value is not None} | dict(given)
    return {f"{TAG}{key}": value for key, value in said.items()}


def metrics_of(evaluation: EvaluationRef | None, prefix: str = "test_") -> dict[str, float]:
    """The measures of an evaluation by name; none without one.

    :param evaluation: the evaluation.
    :param prefix: of the names, but of the baseline's.
    """
    if evaluation is None:
        return {}
    values: dict[str, float | None] = {
        f"{prefix}auc": evaluation.auc,
        f"{prefix}auc_low": evaluation.auc_low,
        f"{prefix}auc_high": evaluation.auc_high,
        f"{prefix}ece": evaluation.ece,
        "baseline_auc": evaluation.baseline_auc,
    }
    return {key: value for key, value in values.items() if value is not None}


def sample_tags(sample: SampleRef) -> dict[str, str]:
    """What a sample says of a version: where it lies, its manifest, and the days of its splits.

    :param sample: the sample; its store can be reached.
    """
    text = (storage.place(sample.uri) / "manifest.json").read_bytes()
    manifest = json.loads(text)
    windows = {split: window for split, window in manifest.get("windows", {}).items() if split in SPLITS}
    if manifest.get("groups"):  # the splits are of entities, and each is of all days
        days = [day for window in windows.values() for day in window]
        windows = {split: [min(days), max(days)] for split in windows}
    return {
        "lake": sample.lake,
        "sample_uri": sample.uri,
        "sample_rate": str(sample.rate),
        "sample_manifest": hashlib.sha256(text).hexdigest(),
        **{f"days_{split}": "/".join(str(day) for day in window) for split, window in windows.items()},
    }


def splits_with(tags: Mapping[str, str], day: dt.date) -> list[str] | None:
    """The splits of a version's sample whose days include a day; None when its tags do not say.

    :param tags: of the version, without the prefix.
    :param day: the day.
    """
    told = {split: tags[f"days_{split}"] for split in SPLITS if tags.get(f"days_{split}")}
    if not told:
        return None
    found = []
    for split, window in told.items():
        try:
            first, last = (dt.date.fromisoformat(text) for text in window.split("/"))
        except ValueError as error:
            raise ConfigurationError(
                f"the tag {TAG}days_{split} says no days", expected="2026-01-01/2026-01-31", found=window
            ) from error
        if first <= day <= last:
            found.append(split)
    return found


@functools.cache
def environment() -> str:
    """SHA-256 of the installed distributions, name and version each: the same software gives the same hash."""
    names = {f"{one.metadata['Name'].lower()}=={one.version}" for one in importlib.metadata.distributions()
             if one.metadata["Name"]}  # fmt: skip
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
