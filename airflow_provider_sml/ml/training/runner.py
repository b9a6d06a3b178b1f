"""One worker's part of a training: build the matrices from its own files, and boost round by round.

A loop of our own rather than ``xgboost.train``, because a training must go on after an interruption and end in the very
bytes that an undisturbed one gives:

- early stopping and the history are part of the checkpoint, which rank 0 writes every ``every`` rounds or seconds;
- where rows or columns are drawn at random, the booster is made anew with the seed ``seed + round`` at every
  ``every``-th round, interrupted or not, because the state of XGBoost's generators cannot be stored; checkpoints then
  lie on those rounds only;
- a notice that this machine goes away ends all ranks together, after a checkpoint where one may be written.

It knows no cluster and no store of models: the trainer starts it, on a Dask worker or in the task's own process.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, DataError, JobError
from airflow_provider_sml.ml.contract import Feature
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.checkpoint import Checkpoint, State
from airflow_provider_sml.ml.training.custom import Metric, custom_metrics, measured_together
from airflow_provider_sml.ml.training.devices import agreed_device, gpu_memory, to_device
from airflow_provider_sml.ml.training.interruption import Interruption, watching
from airflow_provider_sml.ml.training.memory import MemoryPlan, Sharing, memory_limit, plan_gpu_memory, plan_memory
from airflow_provider_sml.ml.training.params import booster_params, label_weights
from airflow_provider_sml.ml.training.warm_start import joined, margins

if TYPE_CHECKING:
    import numpy as np
    import xgboost

#: Metrics of which more is better.
_RISING = ("auc", "aucpr", "map", "ndcg", "pre")
#: The notice of a rank whose own machine stays.
ELSEWHERE = "a notice to another worker"
_RANDOM = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")


class InterruptedTraining(JobError):
    """A machine is about to be taken away; what was reached is in the checkpoint, and a retry goes on from it."""


class StoppedTraining(JobError):
    """Whoever watches the training has told it to stop; all ranks have ended with the same round."""


@dataclass(frozen=True)
class Watch:
    """How somebody follows a training and ends it.

    :param measured: takes the number of a round, from 0, and the loss of the validation rows after it; rank 0 tells.
    :param stop: whether the training shall end; every rank asks after each round.
    """

    measured: Callable[[int, float], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Work:
    """What every rank of a training is told.

    :param training: id of the training.
    :param features: in the order of the model.
    :param settings: XGBoost's parameters and ours.
    :param train_files: files of each rank.
    :param validate_files: files of each rank.
    :param rows: rows of each rank, training and validation together, for the plan of memory.
    :param checkpoint: path of the checkpoint's object; None for none.
    :param every: rounds between checkpoints.
    :param seconds: seconds between checkpoints, whichever comes first; 0 for rounds only.
    :param machine: where the workers run, for notices: ``ec2``, ``gce`` or empty.
    :param start: the checkpoint to go on from.
    :param base: model of the version that the rounds come on top of, as UBJSON.
    :param sharing: who shares the machine and its memory.
    """

    training: str
    features: Sequence[Feature]
    settings: dict[str, Any]
    train_files: list[list[Path]]
    validate_files: list[list[Path]]
    rows: list[int]
    checkpoint: Path | None = None
    every: int = 50
    seconds: float = 60.0
    machine: str = ""
    start: tuple[bytes, State] | None = None
    base: bytes | None = None
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def random(self) -> bool:
        """Whether rows or columns are drawn at random."""
        return draws_at_random(self.settings)


@dataclass(frozen=True)
class Outcome:
    """What a rank gives back; the model is the same on every rank.

    :param model: the best rounds as UBJSON bytes.
    :param state: where boosting ended.
    :param memory: how the rows were held.
    :param label_weights: what a row with label 0 and one with label 1 weighed; None where all weighed the same.
    :param device: that was trained on: ``cpu`` or ``cuda``.
    """

    model: bytes
    state: State
    memory: MemoryPlan
    label_weights: tuple[float, float] | None = None
    device: str = "cpu"


def rises(metric: str, settings: Mapping[str, Any]) -> bool:
    """Whether more of a metric is better; its loss is then its negative.

    :param metric: its name in the history.
    :param settings: that may hold metrics of one's own.
    """
    own = {found.name: found.higher_is_better for found in custom_metrics(settings)}
    return own.get(metric, metric.split("@")[0] in _RISING)


def draws_at_random(settings: Mapping[str, Any]) -> bool:
    """Whether parameters make XGBoost draw rows or columns at random."""
    return any(float(settings.get(name, 1)) < 1 for name in _RANDOM)


def run_rank(
    rank: int,
    work: Work,
    tracker: dict[str, Any] | None,
    threads: int,
    log: Callable[[str], None],
    watch: Watch | None = None,
) -> Outcome:
    """Do one rank's part.

    :param rank: number of the rank.
    :param work: what to do.
    :param tracker: where the ranks meet; None for a rank that is alone.
    :param threads: threads of this worker.
    :param log: takes a line of progress; only rank 0 tells.
    :param watch: of who follows it; on all ranks or on none.
    :raises DataError: when the labels allow no model.
    :raises InterruptedTraining: when this machine, or another rank's, is about to be taken away.
    :raises StoppedTraining: when who watches has told it to stop.
    """
    import xgboost

    context: Any = contextlib.nullcontext()
    if tracker is not None:
        context = xgboost.collective.CommunicatorContext(**tracker, dmlc_task_id=f"{rank:05d}")
    cache = Path(tempfile.mkdtemp(prefix="sml-xgboost-"))
    try:
        # Outside of the communicator, where a matrix for scoring would wait for all ranks to make one.
        files = [*work.train_files[rank], *work.validate_files[rank]]
        scores = margins(work.base, files, work.features, threads) if work.base is not None else None
        with watching(work.machine) as notice, context:
            return _boost(rank, work, cache, _Surroundings(threads, tracker is not None, notice, log, scores, watch))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@dataclass(frozen=True)
class _Surroundings:
    """Where a rank runs."""

    threads: int
    distributed: bool
    notice: Interruption
    log: Callable[[str], None]
    margins: Mapping[Path, np.ndarray] | None = None
    watch: Watch | None = None


def _boost(rank: int, work: Work, cache: Path, around: _Surroundings) -> Outcome:
    """The matrices are gone when this returns, and with them their hold on the cache."""
    if around.distributed:
        work = _of_one_start(work)
    device = agreed_device(str(work.settings.get("device", "auto")))
    plan = _plan(rank, work, cache, device)
    if rank == 0 and (plan.mode == "external" or device != "cpu"):
        around.log(f"device {device}, memory: {plan}")
    zeros, ones = _check_labels(data.label_counts(work.train_files[rank]))
    weights = label_weights(work.settings.get("class_weights"), zeros, ones)
    matrices = _matrices(rank, work, plan, cache, weights, around.margins)
    loop = _Loop(work, rank, *matrices, zeros + ones, around, device)
    return Outcome(loop.run(), loop.state, plan, weights, device)


def _of_one_start(work: Work) -> Work:
    """The work from the checkpoint of rank 0, which wrote it: a machine that keeps checkpoints on a disk of its own, as
    those of SageMaker do, may have an older one, or none."""
    import numpy as np
    import xgboost

    rounds = work.start[1].rounds if work.start else -1
    most, least = xgboost.collective.allreduce(np.array([rounds, -rounds]), xgboost.collective.Op.MAX)
    if most == -least:
        return work
    [start] = xgboost.collective.broadcast([work.start], 0)  # None alone is refused
    return replace(work, start=start)


def _plan(rank: int, work: Work, cache: Path, device: str) -> MemoryPlan:
    rows, features, limit = work.rows[rank], len(work.features), memory_limit(work.sharing)
    if device != "cuda":
        return plan_memory(rows, features, limit, shutil.disk_usage(cache).free // work.sharing.together)
    files = len(work.train_files[rank]) + len(work.validate_files[rank])
    return plan_gpu_memory(
        rows, features, limit, gpu_memory() // work.sharing.here, batch=-(-rows // max(1, files)),
        direct=to_device(device) is not None,
    )  # fmt: skip


def _matrices(
    rank: int,
    work: Work,
    plan: MemoryPlan,
    cache: Path,
    weights: tuple[float, float] | None,
    margins: Mapping[Path, np.ndarray] | None,
) -> tuple[xgboost.DMatrix, xgboost.DMatrix]:
    """Both are weighed: early stopping would otherwise look for the best round of another loss."""
    import xgboost

    make: Any = xgboost.QuantileDMatrix if plan.mode == "memory" else xgboost.ExtMemQuantileDMatrix
    settings: dict[str, Any] = {"max_bin": work.settings["max_bin"], "enable_categorical": True}
    found: list[Any] = []
    for name, files in (("train", work.train_files[rank]), ("validate", work.validate_files[rank])):
        prefix = str(cache / name) if plan.mode == "external" else None
        rows = data.iterator(files, work.features, prefix, weights, margins, to_device(plan.device))
        found.append(make(rows, ref=found[0] if found else None, **settings))
    return found[0], found[1]


def _check_labels(counts: Any) -> tuple[int, int]:
    """Refuse labels that no model can be fitted to, on all ranks alike; gives the rows of each label of all ranks."""
    from xgboost import collective

    zeros, ones, others = (int(count) for count in collective.allreduce(counts, collective.Op.SUM))
    if others or not zeros or not ones:
        raise DataError(
            "the training labels do not allow a model",
            expected="both 0 and 1, and nothing else",
            found=f"{zeros:,} rows with 0, {ones:,} with 1, {others:,} with another value or none",
            todo="check the label's expression, or train on a longer window",
        )
    return zeros, ones


@dataclass
class _Loop:
    """The rounds; ``rows`` are the training rows of all ranks, of which ``train`` holds this one's."""

    work: Work
    rank: int
    train: Any
    validate: Any
    rows: int
    around: _Surroundings
    device: str = "cpu"
    state: State = field(init=False)
    custom: list[Metric] = field(init=False)

    def __post_init__(self) -> None:
        self.custom = custom_metrics(self.work.settings)

    def run(self) -> bytes:
        """Boost to the end; gives the best rounds."""
        settings, work = self.work.settings, self.work
        booster = self._begin()
        told = saved = began = time.monotonic()
        before, first = self.state.seconds, self.state.rounds
        while self.state.rounds < settings["rounds"] and not self._stalled():
            number = self.state.rounds
            if work.random and number and number % work.every == 0 and number != first:
                booster = self._renewed(bytes(booster.save_raw("ubj")), number)
            booster.update(self.train, number)
            self._measure(booster, number)
            now = time.monotonic()
            self.state = replace(self.state, rounds=number + 1, seconds=before + now - began)
            if self.rank == 0 and (number == first or now - told >= 5):
                told = now
                self._tell(now - began, number + 1 - first)
            gone, stopped = self._gone()
            due = self.state.rounds % work.every == 0 or (work.seconds and now - saved >= work.seconds)
            if self._may_save() and (due or gone):
                saved = now
                self._save(booster)
            if gone:
                raise self._interrupted(gone)
            if stopped:
                raise StoppedTraining(f"the training {work.training} was stopped in round {self.state.rounds}")
        if self.rank == 0:
            self._tell(max(time.monotonic() - began, 1e-9), max(self.state.rounds - first, 1))
        model = bytes(booster[: self.state.best_round + 1].save_raw("ubj"))
        return model if work.base is None else joined(work.base, model)

    def _begin(self) -> xgboost.Booster:
        if self.work.start is None:
            self.state = State(self.work.training)
            return self._renewed(None, 0)
        raw, self.state = self.work.start
        return self._renewed(raw, self.state.rounds)

    def _renewed(self, raw: bytes | None, number: int) -> xgboost.Booster:
        """A booster with fresh generators, seeded for a round."""
        import xgboost

        params = booster_params(self.work.settings, self.work.features)
        params["device"] = self.device
        params |= {"nthread": self.around.threads, "seed": int(params["seed"]) + (number if self.work.random else 0)}
        model = None if raw is None else bytearray(raw)
        return xgboost.Booster(params, cache=[self.train, self.validate], model_file=model)

    def _measure(self, booster: xgboost.Booster, number: int) -> None:
        """Metrics of the validation rows, and the best round so far."""
        told = booster.eval_set([(self.validate, "validate")], number)
        values = {part.split(":")[0].removeprefix("validate-"): float(part.split(":")[1]) for part in told.split()[1:]}
        if self.custom:
            scores = booster.predict(self.validate)  # of the cache that eval_set filled
            rows = self.validate.get_label(), scores, self.validate.get_weight()
            for metric in self.custom:
                values[metric.name] = measured_together(metric, *rows, self.around.distributed)
        for name, value in values.items():
            self.state.history.setdefault(name, []).append(value)
        value = self._loss(values)
        if self.rank == 0 and self.around.watch:
            self.around.watch.measured(number, value)
        if value < self.state.best_value:
            self.state = replace(self.state, best_value=value, best_round=number)

    def _loss(self, values: dict[str, float]) -> float:
        name = self.work.settings.get("stop_on", "logloss")
        if name not in values:
            raise ConfigurationError(
                "stop_on is no metric of this training", expected=f"one of {', '.join(values)}", found=name,
                todo="add it to eval_metric, or to metrics when it is a function",
            )  # fmt: skip
        value = values[name]
        return -value if rises(name, self.work.settings) else value

    def _stalled(self) -> bool:
        patience = self.work.settings["early_stopping"]
        return bool(patience) and self.state.rounds - 1 - self.state.best_round >= patience

    def _may_save(self) -> bool:
        boundary = not self.work.random or self.state.rounds % self.work.every == 0
        return self.rank == 0 and self.work.checkpoint is not None and boundary

    def _save(self, booster: xgboost.Booster) -> None:
        assert self.work.checkpoint is not None
        Checkpoint(self.work.checkpoint, self.work.training).write(bytes(booster.save_raw("ubj")), self.state)

    def _gone(self) -> tuple[str | None, bool]:
        """A notice to this rank, or to any other, and whether they shall stop; all ranks agree on both."""
        notice, watch = self.around.notice.notice, self.around.watch
        stop = watch is not None and watch.stop()
        if not self.around.distributed:
            return notice, stop
        import numpy as np
        import xgboost

        flags = np.array([1 if notice else 0, 1 if stop else 0], dtype=np.int32)
        gone, stopped = xgboost.collective.allreduce(flags, xgboost.collective.Op.MAX)
        return (notice or ELSEWHERE) if gone else None, bool(stopped)

    def _interrupted(self, notice: str) -> InterruptedTraining:
        return InterruptedTraining(
            f"the training {self.work.training} was interrupted in round {self.state.rounds}",
            found=notice,
            todo="let the task retry: it goes on from the last checkpoint"
            if self.work.checkpoint
            else "give the training a checkpoint; without one a retry starts from the first round",
        )

    def _tell(self, taken: float, rounds: int) -> None:
        last = {name: values[-1] for name, values in self.state.history.items()}
        speed = rounds / taken
        most = self.work.settings["rounds"]
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in last.items())
        self.around.log(
            f"round {self.state.rounds} of at most {most}: {metrics}, {self.rows * speed:,.0f} rows/s, "
            f"at most {(most - self.state.rounds) / speed:.0f} s left"
        )
