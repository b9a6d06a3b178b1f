"""Training: a gradient-boosted model on a sample, on the workers of a Dask cluster.

Each worker reads its own files of the sample, a fixed list per rank, straight from the lake; nothing but the model
passes through the client. With one worker XGBoost runs as it is; with more they meet over a tracker that one of them
starts. The same sample, parameters, seed and number of workers give the same bytes. Boosting stops when the log loss
on the validation window has not fallen for ``early_stopping`` rounds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, DataError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import ModelRef, SampleRef

if TYPE_CHECKING:
    from distributed import Client

#: Parameters of ours beside XGBoost's.
OWN = ("rounds", "early_stopping")
DEFAULTS: dict[str, Any] = {
    "objective": "binary:logistic", "tree_method": "hist", "max_depth": 6, "learning_rate": 0.1, "max_bin": 256,
    "seed": 7, "rounds": 300, "early_stopping": 30,
}  # fmt: skip
TOPIC = "sml-training"


@dataclass(frozen=True)
class Training:
    """What decides a model.

    :param dataset: features and label.
    :param sample: the rows.
    :param params: XGBoost's parameters, with ``rounds`` (most boosting rounds) and ``early_stopping`` (rounds without
        improvement); what is missing comes from ``DEFAULTS``.
    :param workers: number of workers the rows are split over.
    """

    dataset: Dataset
    sample: SampleRef
    params: dict[str, Any] = field(default_factory=dict)
    workers: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """All parameters."""
        return DEFAULTS | self.params

    @property
    def model_id(self) -> str:
        """Hash of everything that decides the model's bytes."""
        import xgboost

        features = {
            feature.name: [feature.expression.text, feature.categories] for feature in self.dataset.feature_list
        }
        decides = [
            self.sample.sample_id,
            features,
            self.dataset.label,
            self.settings,
            self.workers,
            xgboost.__version__,
        ]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def train(training: Training, client: Client, models: Path, log: Callable[[str], None]) -> ModelRef:
    """Train a model, or find the one trained before.

    :param training: what to train.
    :param client: of the cluster.
    :param models: folder that holds the bundles.
    :param log: takes a line of progress at least every ten seconds.
    :raises DataError: when the rows do not allow a model.
    """
    require("xgboost", "xgboost")
    name = models / training.model_id
    folder = storage.find_folder(name)
    if folder is None:
        started = time.monotonic()
        model, rounds = _run(training, client, log)
        bundle = Bundle(
            name=training.dataset.name,
            model_id=training.model_id,
            dataset=training.dataset,
            rounds=rounds,
            lineage={
                "table": training.sample.table,
                "snapshot_id": training.sample.snapshot_id,
                "sample_id": training.sample.sample_id,
                "contract": training.dataset.hash,
                "params": training.settings,
                "workers": training.workers,
                "seconds": round(time.monotonic() - started, 1),
            },
            model=model,
            recalibration=float(read_manifest(training.sample).get("recalibration", 1.0)),
        )
        filled = storage.fresh_folder(name)
        bundle.write(filled)
        folder = storage.settle(filled, name)
    else:
        log(f"model {training.model_id} was trained before and is used again")
    bundle = Bundle.read(folder)
    return ModelRef(
        uri=str(folder),
        model_id=bundle.model_id,
        digest=bundle.digest,
        sample_id=training.sample.sample_id,
        rounds=bundle.rounds,
        lake=training.sample.lake,
    )


def _run(training: Training, client: Client, log: Callable[[str], None]) -> tuple[bytes, int]:
    """Run the ranks on the cluster; gives the model's bytes and its rounds."""
    train_files, validate_files = split_files(training.sample, "train"), split_files(training.sample, "validate")
    if len(train_files) < training.workers:
        raise ConfigurationError(
            "more workers than files of the sample", expected=f"at most {len(train_files)}", found=training.workers
        )
    addresses = sorted(client.scheduler_info(n_workers=-1)["workers"])[: training.workers]
    client.subscribe_topic(TOPIC, lambda event: log(event[1]))
    tracker: dict[str, Any] | None = None
    first = {"workers": [addresses[0]], "allow_other_workers": False, "pure": False}
    try:
        if training.workers > 1:
            tracker = client.submit(_start_tracker, training.workers, **first).result()
        futures = [
            client.submit(
                _rank, rank, train_files[rank :: training.workers], validate_files[rank :: training.workers],
                training.dataset.feature_list, training.settings, tracker,
                workers=[address], allow_other_workers=False, pure=False, retries=0,
            )
            for rank, address in enumerate(addresses)
        ]  # fmt: skip
        results = client.gather(futures)
    finally:
        client.unsubscribe_topic(TOPIC)
        if tracker is not None:
            client.submit(_stop_tracker, **first)
    return results[0]


def _start_tracker(workers: int) -> dict[str, Any]:
    """Start XGBoost's rendezvous on this worker; gives what the ranks need to find it."""
    from distributed import get_worker
    from xgboost.tracker import RabitTracker

    worker = get_worker()
    host = worker.address.split("://")[1].rsplit(":", 1)[0]
    tracker = RabitTracker(n_workers=workers, host_ip=host, sortby="task")
    tracker.start()
    worker.sml_tracker = tracker  # must outlive this task
    return dict(tracker.worker_args())


def _stop_tracker() -> None:
    from distributed import get_worker

    worker = get_worker()
    worker.sml_tracker.free()
    del worker.sml_tracker


def _rank(
    rank: int,
    train_files: list[Path],
    validate_files: list[Path],
    features: list[Feature],
    settings: dict[str, Any],
    tracker: dict[str, Any] | None,
) -> tuple[bytes, int]:
    """One worker's part: build the matrices from its files and boost."""
    import contextlib

    import xgboost
    from distributed import get_worker

    worker = get_worker()
    params = {key: value for key, value in settings.items() if key not in OWN}
    params |= {"nthread": worker.state.nthreads, "eval_metric": ["auc", "logloss"]}
    context: Any = contextlib.nullcontext()
    if tracker is not None:
        context = xgboost.collective.CommunicatorContext(**tracker, dmlc_task_id=f"{rank:05d}")
    with context:
        matrix = xgboost.QuantileDMatrix(
            data.iterator(train_files, features), max_bin=settings["max_bin"], enable_categorical=True
        )
        _check_labels(matrix.get_label(), alone=tracker is None)
        validate = xgboost.QuantileDMatrix(
            data.iterator(validate_files, features),
            ref=matrix,
            max_bin=settings["max_bin"],
            enable_categorical=True,
        )
        rows = matrix.num_row()
        callbacks = [xgboost.callback.EarlyStopping(rounds=settings["early_stopping"], metric_name="logloss")]
        if rank == 0:
            callbacks.append(_progress(rows, settings["rounds"], lambda line: worker.log_event(TOPIC, line)))
        booster = xgboost.train(
            params,
            matrix,
            num_boost_round=settings["rounds"],
            evals=[(validate, "validate")],
            callbacks=callbacks,
            verbose_eval=False,
        )
    rounds = booster.best_iteration + 1
    best = booster[:rounds]
    best.set_attr(best_iteration=None, best_score=None)
    return bytes(best.save_raw("ubj")), rounds


def _check_labels(labels: Any, alone: bool) -> None:
    """Refuse labels that no model can be fitted to; with several workers one may rightly lack a class."""
    import numpy as np

    found = np.unique(labels)
    if not np.isin(found, (0.0, 1.0)).all() or (alone and len(found) < 2):
        raise DataError(
            "the training labels do not allow a model",
            expected="both 0 and 1",
            found=", ".join(f"{value:g}" for value in found[:5]) or "no rows",
            todo="check the label's expression, or train on a longer window",
        )


def _progress(rows: int, rounds: int, log: Callable[[str], None]) -> Any:
    """A callback that tells the round, the metric, the speed and the time left, every five seconds."""
    import xgboost

    class Progress(xgboost.callback.TrainingCallback):
        def __init__(self) -> None:
            self.started = self.told = time.monotonic()

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            now = time.monotonic()
            if epoch == 0 or now - self.told >= 5 or epoch + 1 == rounds:
                self.told = now
                taken = max(now - self.started, 1e-9)
                last = {name: values[-1] for name, values in evals_log["validate"].items()}
                left = taken / (epoch + 1) * (rounds - epoch - 1)
                log(
                    f"round {epoch + 1} of at most {rounds}: AUC {last['auc']:.4f}, log loss {last['logloss']:.4f}, "
                    f"{rows * (epoch + 1) / taken:,.0f} rows/s, at most {left:.0f} s left"
                )
            return False

    return Progress()
