"""Training: a gradient-boosted model on a sample, on the workers of a Dask cluster.

Each worker reads its own files of the sample, a fixed list per rank, straight from the lake; nothing but the model
passes through the client. The same sample, parameters, seed and number of workers give the same bytes, also after an
interruption: a lost worker is waited for and the training goes on from its checkpoint, and so does a retry after the
driver itself was lost. How a rank boosts is in ``runner``, how ranks are put on the cluster in ``ranks``.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, SmlError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle, feature_types
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training.checkpoint import Checkpoint
from airflow_provider_sml.ml.training.cluster import Cluster, TooFewWorkersError
from airflow_provider_sml.ml.training.params import CLASSES, booster_params, check_own
from airflow_provider_sml.ml.training.ranks import LostWorkerError, Told, attempt
from airflow_provider_sml.ml.training.runner import InterruptedTraining, Outcome, Work, draws_at_random
from airflow_provider_sml.ml.training.toll import TOLL, Ledger, Toll
from airflow_provider_sml.ml.training.warm_start import WarmStart
from airflow_provider_sml.refs import ModelRef, SampleRef

if TYPE_CHECKING:
    from distributed import Client

OBJECTIVE = "binary:logistic"
DEFAULTS: dict[str, Any] = {
    "objective": OBJECTIVE, "tree_method": "hist", "max_depth": 6, "learning_rate": 0.1, "max_bin": 256,
    "seed": 7, "rounds": 300, "early_stopping": 30, "eval_metric": ["auc", "logloss"], "stop_on": "logloss",
    "device": "auto",
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What decides a model.

    :param dataset: features and label.
    :param sample: the rows.
    :param params: XGBoost's parameters, with ``rounds`` (most boosting rounds), ``early_stopping`` (rounds without
        improvement) and those of ``params.OWN``; what is missing comes from ``DEFAULTS``.
    :param workers: number of workers the rows are split over.
    :param checkpoint: folder of the checkpoints; None for none.
    :param every: rounds between checkpoints; where rows or columns are drawn at random, it decides the model too.
    :param seconds: seconds between checkpoints, whichever comes first; 0 for rounds only.
    :param interruptions: lost workers that are survived before the training fails.
    :param patience: seconds to wait for new workers after an interruption.
    :param machine: where the workers run, for notices of interruption: ``ec2``, ``gce`` or empty.
    :param warm_start: the version that the rounds come on top of; None to start from nothing.
    :param usd_per_hour: what one worker costs in an hour, for what interruptions cost; 0 when it is not known. On
        spare capacity, the price there.
    :param on_demand_usd_per_hour: what one costs that is not on spare capacity; ``usd_per_hour`` when 0.
    :param on_demand_after: interruptions, over all tries of the task, after which a cluster on spare capacity gives way
        to one on demand; 0 for never.
    :param on_demand_deadline: seconds after the start of the first try until that happens at the latest; 0 for never.
    """

    dataset: Dataset
    sample: SampleRef
    params: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    checkpoint: Path | None = None
    every: int = 50
    seconds: float = 60.0
    interruptions: int = 3
    patience: float = 300.0
    machine: str = ""
    warm_start: WarmStart | None = None
    usd_per_hour: float = 0.0
    on_demand_usd_per_hour: float = 0.0
    on_demand_after: int = 0
    on_demand_deadline: float = 0.0

    def price(self, spot: bool) -> float:
        """USD of all workers in an hour; 0 when it is not known."""
        one = self.usd_per_hour if spot else self.on_demand_usd_per_hour or self.usd_per_hour
        return one * self.workers

    @property
    def kept(self) -> Checkpoint | None:
        """Its checkpoint, which need not be there yet; None without a folder."""
        return Checkpoint(self.checkpoint / f"{self.model_id}.ubj", self.model_id) if self.checkpoint else None

    @property
    def toll_file(self) -> Path | None:
        """Where its tries keep what interruptions cost; None without a folder."""
        return self.checkpoint / f"{self.model_id}.toll.json" if self.checkpoint else None

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
            self.every if draws_at_random(self.settings) else None,
            xgboost.__version__,
            *([self.warm_start.bundle.digest] if self.warm_start else []),
        ]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def train(training: Training, on: Client | Cluster, models: Path, log: Callable[[str], None]) -> ModelRef:
    """Train a model, or find the one trained before.

    :param training: what to train.
    :param on: the cluster, or the client of one that stays as it is.
    :param models: folder that holds the bundles.
    :param log: takes a line of progress at least every ten seconds.
    :raises ConfigurationError: when the parameters or the number of workers do not fit.
    :raises DataError: when the rows do not allow a model.
    :raises JobError: when the training failed on the cluster, or a worker was lost.
    """
    check_settings(training)
    name = models / training.model_id
    folder = storage.find_folder(name)
    if folder is not None and not (folder / BUNDLE_FILE).exists():
        storage.remove_folder(folder)  # somebody's half of a model
        folder = None
    if folder is None:
        bundle = fit(training, on, log)
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
        toll={name: value for name in TOLL if (value := bundle.lineage.get(name))},
    )


def fit(training: Training, on: Client | Cluster, log: Callable[[str], None]) -> Bundle:
    """Train a model and give it back; nothing is stored but the checkpoints, which are removed at the end.

    :param training: what to train.
    :param on: the cluster, or the client of one that stays as it is.
    :param log: takes a line of progress at least every ten seconds.
    :raises ConfigurationError: when the parameters or the number of workers do not fit.
    :raises DataError: when the rows do not allow a model.
    :raises JobError: when the training failed on the cluster, or a worker was lost.
    """
    check_settings(training)
    started = time.monotonic()
    cluster = on if isinstance(on, Cluster) else Cluster.of(on, training.workers)
    outcome, cost = _run(training, cluster, log)
    return bundle_of(training, outcome, cost, time.monotonic() - started)


def bundle_of(training: Training, outcome: Outcome, cost: dict[str, Any], seconds: float) -> Bundle:
    """The bundle of a training that has come to its end.

    :param training: what was trained.
    :param outcome: of the first rank.
    :param cost: the figures of its toll.
    :param seconds: that it took.
    """
    import xgboost

    return Bundle(
        name=training.dataset.name,
        model_id=training.model_id,
        dataset=training.dataset,
        rounds=(training.warm_start.bundle.rounds if training.warm_start else 0) + outcome.state.best_round + 1,
        lineage={
            "table": training.sample.table,
            "snapshot_id": training.sample.snapshot_id,
            "sample_id": training.sample.sample_id,
            "contract": training.dataset.hash,
            "params": training.settings,
            "workers": training.workers,
            "checkpoint_rounds": training.every,
            "xgboost": xgboost.__version__,
            "library": f"xgboost=={xgboost.__version__}",
            "seconds": round(seconds, 1),
            "boosting_seconds": round(outcome.state.seconds, 1),
            "device": outcome.device,
            "memory": str(outcome.memory),
            "class_weights": dict(zip(CLASSES, outcome.label_weights, strict=True)) if outcome.label_weights else None,
            "history": outcome.state.history,
            **({"warm_start": training.warm_start.lineage} if training.warm_start else {}),
            **cost,
        },
        model=outcome.model,
        recalibration=_recalibration(training, outcome),
    )


def _recalibration(training: Training, outcome: Outcome) -> float:
    """What the model's odds must be multiplied by: for the sample's thinning, and for a weight of the positives, which
    multiplies the odds that the loss is smallest at by itself."""
    negative, positive = outcome.label_weights or (1.0, float(training.settings.get("scale_pos_weight", 1)))
    weight = positive / negative
    return float(read_manifest(training.sample).get("recalibration", 1.0)) / weight


def check_settings(training: Training) -> None:
    """Refuse parameters that XGBoost does not know or whose values it refuses, and a version to start from that does
    not fit, before a cluster works on them.

    XGBoost checks them when it trains, so one round is trained on two rows. It only warns of an unknown one.

    :raises ConfigurationError: for the first wrong one.
    """
    require("xgboost", "xgboost")
    import numpy as np
    import xgboost

    settings = training.settings
    for name in ("rounds", "early_stopping"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], int) or settings[name] < 1:
            raise ConfigurationError(f"train.params.{name}", expected="a whole number from 1", found=settings[name])
    if settings["objective"] != OBJECTIVE:
        raise ConfigurationError("train.params.objective", expected=OBJECTIVE, found=settings["objective"])
    features = training.dataset.feature_list
    check_own(settings, features)
    if training.warm_start:
        training.warm_start.check(training.dataset, settings)
    # One thread: a team that waits in this thread would slow the training's own down, as ``ranks`` explains.
    params = booster_params(settings, features) | {"nthread": 1, "device": "cpu"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            rows = xgboost.DMatrix(
                np.zeros((2, len(features))), [0, 1], feature_names=[feature.name for feature in features],
                feature_types=feature_types(features), enable_categorical=True, nthread=1,
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


def _run(training: Training, cluster: Cluster, log: Callable[[str], None]) -> tuple[Outcome, dict[str, Any]]:
    """Train on the cluster, and go on from the checkpoint when workers are lost; gives what that cost besides."""
    checkpoint = training.kept
    work = work_of(training, checkpoint)
    start = checkpoint.read() if checkpoint else None
    ledger = Ledger(training.toll_file, start[1] if start else None)
    borne = 0
    while True:
        _have_workers(training, cluster, ledger.toll, log)
        start = checkpoint.read() if checkpoint else None
        if start:
            log(f"going on from the checkpoint of round {start[1].rounds}")
        elif version := training.warm_start:
            log(f"starting from the {version.bundle.rounds} rounds of {version.name} version {version.version}")
        ledger.start(start[1] if start else None, training.price(cluster.spot))
        try:
            outcome = attempt(cluster.client, replace(work, start=start), Told(log, ledger.tell), cluster.least)
        except (LostWorkerError, InterruptedTraining) as error:
            reached = checkpoint.read() if checkpoint else None
            ledger.interrupted(reached[1] if reached else None)
            borne += 1
            here = isinstance(error, InterruptedTraining) and not cluster.elsewhere
            if here or checkpoint is None or borne > training.interruptions:
                raise
            log(f"{error.message}; {ledger.toll}; waiting for {training.workers} workers")
        except SmlError:  # no interruption; of any other end the next try learns by what the ledger holds
            ledger.end()
            raise
        else:
            ledger.end()
            if checkpoint:
                checkpoint.remove()
            ledger.remove()
            if ledger.toll.interruptions or ledger.toll.rounds_regained:
                log(f"{ledger.toll.interruptions} interruptions survived; {ledger.toll}")
            return outcome, ledger.toll.figures()


def _have_workers(training: Training, cluster: Cluster, toll: Toll, log: Callable[[str], None]) -> None:
    """Wait until the cluster has its workers, on demand where spare capacity was taken away often enough, or is late.

    :raises TooFewWorkersError: when not enough workers come.
    """
    patience, since = training.patience, time.monotonic()
    if cluster.spot:
        why = ""
        if 0 < training.on_demand_after <= toll.interruptions:
            why = f"after {toll.interruptions} interruptions"
        elif training.on_demand_deadline:
            left = training.on_demand_deadline - (time.time() - toll.began if toll.began else 0.0)
            patience, why = min(patience, left), "" if left > 0 else "because its deadline has passed"
        if not why:
            try:
                cluster.wait(patience)
            except TooFewWorkersError as error:
                if not (training.on_demand_after or training.on_demand_deadline):
                    raise
                why = f"because it did not come: {error.found}"
            toll.wait(time.monotonic() - since if toll.began else 0.0, training.price(True))
        if why:
            log(f"spare capacity gives way to machines on demand {why}")
            cluster.on_demand()
    else:
        cluster.wait(patience)
        toll.wait(time.monotonic() - since if toll.began else 0.0, training.price(False))


def work_of(training: Training, checkpoint: Checkpoint | None) -> Work:
    """What the ranks are told; each has a fixed list of files.

    :param training: what to train.
    :param checkpoint: where its checkpoint lies; None for none.
    :raises ConfigurationError: when there are fewer files than workers.
    """
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
        base=training.warm_start.bundle.model if training.warm_start else None,
    )
