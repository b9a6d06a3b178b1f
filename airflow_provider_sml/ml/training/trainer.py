"""Training: a gradient-boosted model on a sample, on the workers of a Dask cluster.

Each worker reads its own files of the sample, a fixed list per rank, straight from the lake; nothing but the model
passes through the client. With one worker XGBoost runs as it is; with more they meet over a tracker that one of them
starts. The same sample, parameters, seed and number of workers give the same bytes. Boosting stops when the log loss
on the validation window has not fallen for ``early_stopping`` rounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, DataError, JobError, SmlError, require
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle, feature_types
from airflow_provider_sml.ml.contract import Dataset, Feature
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.cluster import addresses
from airflow_provider_sml.refs import ModelRef, SampleRef

if TYPE_CHECKING:
    from distributed import Client

#: Parameters of ours beside XGBoost's.
OWN = ("rounds", "early_stopping")
OBJECTIVE = "binary:logistic"
DEFAULTS: dict[str, Any] = {
    "objective": OBJECTIVE, "tree_method": "hist", "max_depth": 6, "learning_rate": 0.1, "max_bin": 256,
    "seed": 7, "rounds": 300, "early_stopping": 30,
}  # fmt: skip
#: Seconds between two looks at the cluster.
_PULSE = 2.0


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
        """Hash of everything that decides the bundle: the model's bytes, and the dataset that it is served with."""
        import xgboost

        decides = [
            self.sample.sample_id,
            self.dataset.hash,
            list(self.dataset.features),  # their order decides the model too, and is not in the hash
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
    :raises ConfigurationError: when the parameters or the number of workers do not fit.
    :raises DataError: when the rows do not allow a model.
    :raises JobError: when the training failed on the cluster, or a worker was lost.
    """
    require("xgboost", "xgboost")
    check_settings(training)
    folder = models / training.model_id
    if not (folder / BUNDLE_FILE).exists():
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
        _keep(bundle, folder)
    else:
        log(f"model {training.model_id} was trained before and is used again")
    bundle = Bundle.read(folder)
    return ModelRef(
        uri=str(folder),
        model_id=bundle.model_id,
        digest=bundle.digest,
        sample_id=training.sample.sample_id,
        rounds=bundle.rounds,
    )


def check_settings(training: Training) -> None:
    """Refuse parameters that XGBoost does not know or whose values it refuses, before a cluster works on them.

    XGBoost checks them when it trains, so one round is trained on two rows. It only warns of an unknown one.

    :raises ConfigurationError: for the first wrong one.
    """
    import numpy as np
    import xgboost

    settings = training.settings
    for name in OWN:
        if isinstance(settings[name], bool) or not isinstance(settings[name], int) or settings[name] < 1:
            raise ConfigurationError(f"train.params.{name}", expected="a whole number from 1", found=settings[name])
    if settings["objective"] != OBJECTIVE:
        raise ConfigurationError("train.params.objective", expected=OBJECTIVE, found=settings["objective"])
    params = {key: value for key, value in settings.items() if key not in OWN} | {"nthread": 1, "device": "cpu"}
    features = training.dataset.feature_list
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            rows = xgboost.DMatrix(
                np.zeros((2, len(features))), [0, 1], feature_names=[feature.name for feature in features],
                feature_types=feature_types(features), enable_categorical=True,
            )  # fmt: skip
            xgboost.train(params, rows, 1)
        except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
            raise ConfigurationError("XGBoost refuses train.params", found=str(error).strip()[:400]) from error
    for warning in told:
        if unknown := re.search(r"Parameters: \{ (.*?) \} are not used", str(warning.message)):
            raise ConfigurationError(
                "XGBoost does not know a parameter of train.params",
                expected="rounds, early_stopping and the parameters of XGBoost's hist trees",
                found=unknown[1],
            )


def _keep(bundle: Bundle, folder: Path) -> None:
    """Put a bundle into its place, whole or not at all; of two trainers that end together the first one's stays."""
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        bundle.write(temporary)
        if folder.exists() and not (folder / BUNDLE_FILE).exists():
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / BUNDLE_FILE).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(training: Training, client: Client, log: Callable[[str], None]) -> tuple[Outcome, dict[str, Any]]:
    """Train on the cluster, and go on from the checkpoint when workers are lost; gives what it cost besides."""
    checkpoint = Checkpoint(training.checkpoint / f"{training.model_id}.ubj", training.model_id) if training.checkpoint else None
    work = _work(training, checkpoint)
    cost: dict[str, Any] = {"interruptions": 0, "rounds_lost": 0, "seconds_waited": 0.0}
    while True:
        start = checkpoint.read() if checkpoint else None
        begun = start[1].rounds if start else 0
        if start:
            log(f"going on from the checkpoint of round {begun}")
        told = _Told(log)
        try:
            outcome = _attempt(training, client, replace(work, start=start), told)
        except LostWorkerError as error:
            cost["interruptions"] += 1
            if checkpoint is None or cost["interruptions"] > training.interruptions:
                raise
            reached = checkpoint.read()
            kept = reached[1].rounds if reached else 0
            cost["rounds_lost"] += max(told.rounds - kept, 0)
            log(f"{error.message}; {max(told.rounds - kept, 0)} rounds are lost, waiting for {training.workers} workers")
            waited = time.monotonic()
            wait_for_workers(client, training.workers, training.patience)
            cost["seconds_waited"] += round(time.monotonic() - waited, 1)
        else:
            if checkpoint:
                checkpoint.remove()
            return outcome, cost


def _work(training: Training, checkpoint: Checkpoint | None) -> Work:
    """What the ranks are told; each has a fixed list of files."""
    files = {split: split_files(training.sample, split) for split in ("train", "validate")}
    if not 1 <= training.workers <= len(files["train"]):
        raise ConfigurationError(
            "the number of workers does not fit the sample's files",
            expected=f"1 to {len(files['train'])}",
            found=training.workers,
        )
    rows = -(-(training.sample.rows["train"] + training.sample.rows["validate"]) // training.workers)
    return Work(
        training.model_id,
        training.dataset.feature_list,
        training.settings,
        [files["train"][rank :: training.workers] for rank in range(training.workers)],
        [files["validate"][rank :: training.workers] for rank in range(training.workers)],
        [rows] * training.workers,
        checkpoint.path if checkpoint else None,
        training.every,
        training.seconds,
        training.machine,
    )


def _attempt(training: Training, client: Client, work: Work, told: _Told) -> Outcome:
    """Run the ranks on the cluster once."""
    up = addresses(client)[: training.workers]
    if len(up) < training.workers:
        raise JobError("the cluster has too few workers", expected=training.workers, found=len(up))
    key = f"sml-training-{uuid.uuid4().hex[:12]}"
    client.subscribe_topic(key, lambda event: told(event[1]))
    futures: list[Any] = []
    try:
        tracker = _on(client, up[0], _start_tracker, key, training.workers).result() if training.workers > 1 else None
        futures = [_on(client, address, _rank, rank, work, tracker, key) for rank, address in enumerate(up)]
        return _wait(client, futures, up, told)
    finally:
        client.unsubscribe_topic(key)
        if training.workers > 1:
            # Ends the ranks that still wait for a lost one; its worker may be the one that is gone.
            with contextlib.suppress(Exception):
                _on(client, up[0], _stop_tracker, key).result(timeout=_PULSE)
        with contextlib.suppress(Exception):
            client.cancel(futures, force=True)


def _on(client: Client, address: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Give a task to one worker and to no other, once."""
    return client.submit(work, *arguments, workers=[address], allow_other_workers=False, pure=False, retries=0)


class _Told:
    """The log, and when it was written to last."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.started = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        self.last = time.monotonic()
        self._log(line)


def _wait(client: Client, futures: list[Any], up: list[str], told: _Told) -> tuple[bytes, int]:
    """Wait for all ranks; a task of a worker that is gone would wait for ever, so the workers are watched."""
    while any(not future.done() for future in futures):
        _pause(client, [future for future in futures if not future.done()], "FIRST_COMPLETED")
        if any(future.done() and future.status != "finished" for future in futures):
            break
        if lost := [address for address in up if address not in addresses(client)]:
            raise JobError(
                "a worker was lost during training",
                expected=f"{len(up)} workers to the end",
                found=f"{', '.join(lost)} gone",
                todo="look for its end in its log, such as for want of memory; a retry trains from the beginning",
            )
        if time.monotonic() - told.last >= 10:
            told(f"still at work after {time.monotonic() - told.started:.0f} s")
    if all(future.status == "finished" for future in futures):
        return tuple(client.gather(futures)[0])
    # The others end by themselves, because the one that failed has left them.
    _pause(client, futures, "ALL_COMPLETED")
    errors = [future.exception() for future in futures if future.status == "error"]
    # XGBoost's own error is mostly that of the ranks that were left alone.
    errors.sort(key=lambda error: (not isinstance(error, SmlError), type(error).__name__ == "XGBoostError"))
    first = errors[0] if errors else None
    if isinstance(first, SmlError):
        raise first
    raise JobError(
        "training failed on the cluster",
        found=f"{type(first).__name__}: {str(first).partition('Stack trace')[0].strip()[:600]}"
        if first
        else "cancelled",
    ) from first


def _pause(client: Client, futures: list[Any], until: str) -> None:
    """Wait for tasks, but not long."""
    from distributed import wait

    with contextlib.suppress(TimeoutError), client.as_current():
        wait(futures, timeout=_PULSE, return_when=until)


def _start_tracker(key: str, workers: int) -> dict[str, Any]:
    """Start XGBoost's rendezvous on this worker; gives what the ranks need to find it."""
    from distributed import get_worker
    from xgboost.tracker import RabitTracker

    worker = get_worker()
    host = worker.address.split("://")[1].rsplit(":", 1)[0]
    tracker = RabitTracker(n_workers=workers, host_ip=host, sortby="task")
    tracker.start()
    # Must outlive this task; several trainings may share the worker.
    worker.sml_trackers = getattr(worker, "sml_trackers", {}) | {key: tracker}
    return dict(tracker.worker_args())


def _stop_tracker(key: str) -> None:
    from distributed import get_worker

    get_worker().sml_trackers.pop(key).free()


def _rank(rank: int, work: Work, tracker: dict[str, Any] | None, topic: str) -> Outcome:
    """One worker's part, on a Dask worker."""
    from distributed import get_worker

    worker = get_worker()
    return run_rank(rank, work, tracker, worker.state.nthreads, lambda line: worker.log_event(topic, line))
