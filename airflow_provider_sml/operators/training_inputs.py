"""What a training is given by other tasks: hyper-parameters of a search, a registered version to start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.operators.base import find_version
from airflow_provider_sml.operators.openlineage import Data, parent
from airflow_provider_sml.refs import ModelRef, SampleRef, SearchRef

if TYPE_CHECKING:
    from airflow_provider_sml.ml.training.warm_start import WarmStart

_log = logging.getLogger(__name__)


def searched(hyperparameters: Any) -> Mapping[str, Any]:
    """Hyper-parameters as a training takes them, from themselves or from what a search gave in their place.

    :param hyperparameters: a mapping, or the output of ``SearchHyperparametersOperator``.
    """
    if isinstance(hyperparameters, Mapping) and hyperparameters.get("kind") != SearchRef.kind:
        return hyperparameters
    return SearchRef.load(hyperparameters).hyperparameters


def start_version(warm_start: Any, name: str, mlflow: str) -> WarmStart | None:
    """The version that a training starts from; None where it starts from nothing.

    :param warm_start: its number, ``champion``, or the output of a task that registered it; empty for none. While there
        is no champion yet, the training starts from nothing as well.
    :param name: registered model.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """
    from airflow_provider_sml.ml.registry import CHAMPION
    from airflow_provider_sml.ml.training.warm_start import WarmStart

    if not warm_start:
        return None
    registry = MlflowHook(mlflow).get_conn()
    if warm_start == CHAMPION and registry.version(name, alias=CHAMPION) is None:
        _log.info("%s has no champion yet; the training starts from nothing", name)
        return None
    version = find_version(registry, name, warm_start)
    return WarmStart(name, version.version, registry.bundle(version))


def training_datasets(given: Any, model: ModelRef) -> tuple[list[Data], list[Data]]:
    """What a training read and wrote, for OpenLineage: the rows for training and early stopping, and the model.

    :param given: its sample.
    :param model: that it gave.
    """
    sample = SampleRef.load(given)
    rows = sample.rows["train"] + sample.rows["validate"]
    return (
        [Data(parent(sample.uri), rows=rows, version=sample.sample_id)],
        [Data(parent(model.uri), version=model.model_id)],
    )
