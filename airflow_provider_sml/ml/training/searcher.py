"""A search for hyper-parameters: many trainings of one sample, each with values that Optuna proposes.

How it works: a trial is an attempt of the training's own runner on workers of its own; ``parallel`` of them run at
once. Each round's loss of the validation rows goes to Optuna's median pruner: a trial whose best loss so far is worse
than the median of the completed trials at the same round ends, and all its ranks with it. The median rather than
successive halving, because early stopping decides how many rounds a trial has, and halving needs to know that ahead.
It asks no question before ``warmup`` rounds, as low learning rates begin slowly.

Every trial that has ended is stored (``trials``). A search that starts again takes what is stored for its own and goes
on; what was spent counts. The sampler (TPE; Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization") is
seeded anew for each trial with ``seed`` and the trial's number, so that, one at a time, a search that was interrupted
makes the trials of one that was not. With several at once the order in which they end decides what is proposed.

Only the rows of the splits ``train`` and ``validate`` are read. The value that is found was chosen on the validation
rows, and is for that too good; the evaluation on the test window says what the model is worth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.ml.training.cluster import Cluster, addresses
from airflow_provider_sml.ml.training.ranks import LostWorkerError, Told, attempt
from airflow_provider_sml.ml.training.runner import InterruptedTraining, Outcome, StoppedTraining
from airflow_provider_sml.ml.training.search import Found, Search, check_search
from airflow_provider_sml.ml.training.space import distributions, load_space
from airflow_provider_sml.ml.training.trainer import work_of
from airflow_provider_sml.ml.training.trials import TrialRecord, Trials, clock, frozen, seen

if TYPE_CHECKING:
    import optuna
    from distributed import Client

#: How often a trial is tried before it counts as failed, because its workers were lost.
_TRIES = 2
#: Trials that fail before a search in which none has succeeded gives up.
_FAILURES = 3
_USED_UP = "the budget was used up"
_GIVEN_UP = "the search was given up"


def search_for(
    search: Search,
    on: Client | Cluster,
    folder: Path,
    log: Callable[[str], None],
    given_up: Callable[[], bool] = lambda: False,
) -> Found:
    """Search, or go on with a search, until its budget is used up.

    :param search: what to search.
    :param on: the cluster, or the client of one that stays as it is; with ``parallel * workers`` workers.
    :param folder: where searches are stored, each in a folder with its id; on any store.
    :param log: takes a line of progress at least every ten seconds.
    :param given_up: whether to end at once; the trials that are under way end, and are run again by the next start.
    :raises ConfigurationError: when space, budget or parameters do not fit, or no trial ends within the budget.
    :raises JobError: when no trial succeeds, workers do not come, or the search was given up.
    """
    check_search(search)
    search_id = search.search_id
    needed = search.workers * search.parallel
    cluster = on if isinstance(on, Cluster) else Cluster.of(on, needed)
    run = _Run(search, cluster, Trials(folder / search_id, search_id, load_space(search.space)), log, given_up)
    run.all()
    found = Found(search, search_id, tuple(run.records[number] for number in sorted(run.records)))
    if not found.count("complete"):
        failed = [trial for trial in found.trials if trial.state == "failed"]
        if failed:
            raise JobError("no trial of the search succeeded", expected="one or more", found=failed[0].reason)
        raise ConfigurationError(
            "no trial came to its end within the budget of the search", expected="one or more",
            found=f"{len(found.trials)} in {found.seconds:.0f} s", todo="give it a larger budget, or fewer rounds",
        )  # fmt: skip
    return found


class _Run:
    """One start of a search: asks, tries and tells until the budget is used up."""

    def __init__(
        self,
        search: Search,
        cluster: Cluster,
        trials: Trials,
        log: Callable[[str], None],
        given_up: Callable[[], bool],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.search, self.cluster, self.log = search, cluster, log
        self._trials, self._distributions = trials, distributions(load_space(search.space))
        pruner = optuna.pruners.MedianPruner(search.startup, search.warmup) if search.prune else None
        self._study = optuna.create_study(pruner=pruner or optuna.pruners.NopPruner())
        self.records = trials.read(log)
        self._before = frozenset(self.records)
        #: When each trial that is under way began.
        self._running: dict[int, float] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._ended = False
        self._given_up = given_up

    def all(self) -> None:
        """Run trials until the budget is used up."""
        for number in sorted(self.records):
            self._study.add_trial(frozen(self.records[number], self._distributions))
        if self.records:
            self.log(f"going on with {len(self.records)} trials that were made before: {self._spent()}")
        if self.used_up(starting=True):
            return
        self.cluster.wait(self.search.patience)
        under_way: set[Future[TrialRecord]] = set()
        with ThreadPoolExecutor(self.search.parallel, "sml-trial") as pool:
            try:
                while True:
                    while len(under_way) < self.search.parallel and not self.used_up(starting=True):
                        under_way.add(pool.submit(self._ask().run))
                    if not under_way:
                        return
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    if self._given_up():
                        raise JobError(_GIVEN_UP, todo="start it again: it goes on with the trials that have ended")
                    for future in done:
                        self._keep(future.result())
                    self._check_failures()
            finally:
                self._ended = True  # whatever ended this ends the trials that are under way

    def _check_failures(self) -> None:
        """Give up where trials fail one after the other and none succeeds: not the values are to blame then.

        :raises JobError: when that is so.
        """
        ended = [trial for number, trial in self.records.items() if number not in self._before]
        failed = [trial for trial in ended if trial.state == "failed"]
        if len(failed) == len(ended) >= _FAILURES:
            raise JobError("all trials of the search fail", expected="one that succeeds", found=failed[-1].reason)

    def used_up(self, starting: bool = False) -> bool:
        """Whether a part of the budget is used up.

        :param starting: by trials, too: those that are under way go to their end.
        """
        search, now = self.search, time.time()
        with self._lock:
            running, ended = list(self._running.values()), list(self.records.values())
        if starting and search.trials is not None and len(running) + len(ended) >= search.trials:
            return True
        spans = [(trial.started, trial.ended) for trial in ended] + [(began, now) for began in running]
        if search.minutes is not None and clock(spans) >= 60 * search.minutes:
            return True
        spent = sum(trial.usd or 0.0 for trial in ended) + sum(self.price(now - began) for began in running)
        return search.usd is not None and spent >= search.usd

    @property
    def ending(self) -> str:
        """Why trials that are under way shall end; empty when they shall not."""
        if self._ended or self._given_up():
            return _GIVEN_UP
        return _USED_UP if self.used_up() else ""

    def price(self, seconds: float) -> float:
        """USD of a trial's workers.

        :param seconds: that they are kept busy.
        """
        return self.search.usd_per_hour * self.search.workers * seconds / 3600

    def _ask(self) -> _Trial:
        import optuna

        with self._lock:
            number = next(n for n in range(10**6) if n not in self.records and n not in self._running)
            self._running[number] = time.time()
        self._study.sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=self.search.parallel > 1, seed=self.search.seed + number
        )
        return _Trial(self, number, self._study.ask(self._distributions))

    def _keep(self, record: TrialRecord) -> None:
        """Store a trial that has ended; the study was told by itself."""
        self._trials.write(record)
        with self._lock:
            self.records[record.number] = record
            del self._running[record.number]
        found = Found(self.search, "", tuple(self.records.values()))
        value = "" if record.loss is None else f", {self.search.metric} {found.value(record):.5f}"
        why = f" ({record.reason})" if record.reason else ""
        best = f"best is trial {found.best.number}" if found.count("complete") else "none has come to its end yet"
        self.log(
            f"trial {record.number} {record.state}{why} after {len(record.losses)} rounds and {record.seconds:.1f} s"
            f"{value}: {_told(record.params)}; {best}; {self._spent()}"
        )

    def _spent(self) -> str:
        found = Found(self.search, "", tuple(self.records.values()))
        usd = "" if found.usd is None else f", USD {found.usd:.4f}"
        return f"spent: {len(found.trials)} trials, {found.seconds / 60:.1f} minutes{usd}"

    def tell(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Let the study know of the end of a trial."""
        value = record.loss if record.state == "complete" else None
        self._study.tell(trial, value, frozen(record, self._distributions).state)

    def take(self) -> list[str]:
        """Workers for one trial, which no other trial has."""
        workers = self.search.workers
        while True:
            if self._ended or self._given_up():
                raise StoppedTraining(_GIVEN_UP)
            with self._lock:
                free = [address for address in addresses(self.cluster.client) if address not in self._busy][:workers]
                if len(free) == workers:
                    self._busy |= set(free)
                    return free
            self.cluster.wait(self.search.patience)
            time.sleep(0.1)

    def give_back(self, taken: Sequence[str]) -> None:
        """Let other trials have the workers of one."""
        with self._lock:
            self._busy -= set(taken)


class _Failed(Exception):
    """A trial failed by itself; others may not."""


class _Trial:
    """One trial, in a thread of its own; it follows the ranks and says when they shall end."""

    def __init__(self, run: _Run, number: int, trial: optuna.Trial) -> None:
        self._run, self._number, self._trial = run, number, trial
        self._losses: list[float] = []
        self._judged = 0
        self._bad = False

    def run(self) -> TrialRecord:
        """Train; gives what became of it."""
        began, search = time.time(), self._run.search
        state, reason = "complete", ""
        try:
            history = self._outcome().state.history[search.metric]
            # What decides is the losses, not how soon the ranks hear of it: a search repeats itself.
            self.measured(0, [-value if search.rising else value for value in history])
            self._judge()
        except StoppedTraining:
            state, reason = "pruned", self._run.ending
        except _Failed as error:
            state, reason = "failed", str(error)
        losses = list(self._losses)
        if self._bad:
            state, reason, losses = "pruned", "worse than the median", losses[: self._judged]
        ended, loss = time.time(), min(losses, default=None)
        rounds = 0 if loss is None else losses.index(loss) + 1
        record = TrialRecord(
            self._number, state, dict(self._trial.params), loss, losses, rounds,
            began, ended, ended - began, self._run.price(ended - began) if search.usd_per_hour else None, reason,
        )  # fmt: skip
        self._run.tell(self._trial, record)
        return record

    def measured(self, first: int, losses: Sequence[float]) -> None:
        """Remember the losses."""
        self._losses[first : first + len(losses)] = losses

    def stop(self) -> bool:
        """Whether nothing is left to spend, or the trial is worse than others."""
        return bool(self._run.ending) or self._judge()

    def _judge(self) -> bool:
        """Ask the pruner of every round that it has not seen and shall see."""
        while not self._bad and self._judged < len(self._losses):
            number, self._judged = self._judged, self._judged + 1
            if seen(number):
                self._trial.report(self._losses[number], number)
                self._bad = self._trial.should_prune()
        return self._bad

    def _outcome(self) -> Outcome:
        run = self._run
        work = work_of(run.search.training(self._trial.params), None)
        told = Told(lambda line: run.log(f"trial {self._number}: {line}"))
        for number in range(1, _TRIES + 1):
            taken = run.take()
            try:
                return attempt(run.cluster.client, work, told, on=taken, watcher=self)
            except (LostWorkerError, InterruptedTraining) as error:
                run.log(f"trial {self._number}: {error.message}; it was tried {number} of {_TRIES} times")
                reason = error.message
            except StoppedTraining:
                raise
            except JobError as error:
                addresses(run.cluster.client)  # raises when it is the scheduler that is gone
                raise _Failed(f"{error.message}: {error.found}") from error
            finally:
                run.give_back(taken)
        raise _Failed(f"{reason}, {_TRIES} times")


def _told(values: Mapping[str, Any]) -> str:
    """Parameters in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
