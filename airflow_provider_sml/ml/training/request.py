"""A training as a file: what a job of a service is told, so that it trains what the task would have trained.

The task writes the request beside the lake's tables, and the job reads it there, or from a copy on its own disk. It
holds no credential and no row: the job reads the sample from the lake by the role or account that it runs as. Where the
job was given a copy of the sample as well, it needs no network at all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, IntegrityError
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.storage import Store
from airflow_provider_sml.ml.training.trainer import Training
from airflow_provider_sml.ml.training.warm_start import WarmStart
from airflow_provider_sml.refs import SampleRef

REQUEST_FILE = "request.json"
_BASE = "base"
_FORMAT = 1
_STORE = ("endpoint", "region", "project", "kms_key")
#: Of a training, as they are.
_PLAIN = ("params", "workers", "every", "seconds", "usd_per_hour", "on_demand_usd_per_hour")


def write_request(training: Training, folder: Path) -> None:
    """Write a request; a repeat writes the same.

    :param training: what the job trains.
    :param folder: of the request alone; the version to start from is put there too.
    """
    start = training.warm_start
    if start:
        start.bundle.write(folder / _BASE)
    described = {
        "format": _FORMAT, "model_id": training.model_id, "dataset": training.dataset.model_dump(mode="json"),
        "sample": training.sample.to_xcom(), **{name: getattr(training, name) for name in _PLAIN},
        "warm_start": {"name": start.name, "version": start.version} if start else None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUEST_FILE).write_text(json.dumps(described, indent=1))


def read_request(folder: Path, sample: Path | None = None) -> Training:
    """Read a request back.

    :param folder: that ``write_request`` filled.
    :param sample: a copy of the sample on this machine; the sample's own place when None.
    :raises IntegrityError: when it is damaged, or trains another model here than where it was written.
    """
    path = folder / REQUEST_FILE
    try:
        told = json.loads(path.read_text())
        if told["format"] != _FORMAT:
            raise ValueError(f"format {told['format']}")
        ref = SampleRef.load(told["sample"])
        dataset = Dataset(**told["dataset"])
        plain = {name: told[name] for name in _PLAIN}
        expected, named = told["model_id"], told["warm_start"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the request {path} cannot be read", expected=f"a request of the form {_FORMAT}", found=str(error)[:400],
            todo="give the job an image of the same version of airflow-provider-sml as the task's",
        ) from error  # fmt: skip
    start = WarmStart(named["name"], named["version"], Bundle.read(folder / _BASE)) if named else None
    training = Training(dataset, replace(ref, uri=str(sample)) if sample else ref, **plain, warm_start=start)
    if training.model_id != expected:
        import xgboost

        raise IntegrityError(
            "this image would train another model than the task asks for", expected=f"model {expected}",
            found=f"model {training.model_id}, by XGBoost {xgboost.__version__}",
            todo="build the image from the constraints.txt of the task's environment: XGBoost has to be the same",
        )  # fmt: skip
    return training


def store_settings(store: Store) -> dict[str, str]:
    """How a lake's store is reached, without credentials.

    :param store: of the lake.
    """
    return {name: value for name in _STORE if (value := getattr(store, name))}


def store_of(settings: dict[str, Any], anonymous: bool = False) -> Store:
    """The store of such settings; credentials are the machine's own.

    :param settings: that ``store_settings`` gave.
    :param anonymous: Google Cloud Storage is asked without credentials, as an emulator is.
    """
    if unknown := sorted(set(settings) - set(_STORE)):
        raise ConfigurationError("there are no such settings of a store", expected=", ".join(_STORE), found=unknown)
    return Store(**settings, google="anon" if anonymous else None)
