"""The ranks of a training on a Dask cluster: one pinned task a worker, watched until all have ended.

They meet over XGBoost's tracker, which one of the workers starts; one worker alone needs none. Whatever happens, no
task and no tracker is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_sml.errors import JobError, SmlError
from airflow_provider_sml.ml.training.cluster import addresses
from airflow_provider_sml.ml.training.memory import Sharing
from airflow_provider_sml.ml.training.runner import ELSEWHERE, InterruptedTraining, Outcome, Watch, Work, run_rank

if TYPE_CHECKING:
    from distributed import Client, Worker

#: Seconds between two looks at the cluster.
_PULSE = 2.0
#: The same while somebody may stop the training, and between two messages with its losses.
_WATCHED_PULSE = 0.2


class LostWorkerError(JobError):
    """A worker went away; what it had reached may be in a checkpoint."""


class Watcher(Protocol):
    """Who follows an attempt round by round and may end it."""

    def measured(self, first: int, losses: Sequence[float]) -> None:
        """Take losses of the validation rows; called on the client's own thread, so it must not wait.

        :param first: the round of the first of them, from 0.
        :param losses: of that round and those after it.
        """

    def stop(self) -> bool:
        """Whether the ranks shall end; asked until they have."""


def attempt(
    client: Client,
    work: Work,
    told: Told,
    least: int = 0,
    on: Sequence[str] | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Run the ranks on the cluster once.

    :param client: of the cluster.
    :param work: what each rank does; the number of its file lists is the number of ranks.
    :param told: the log.
    :param least: workers to do with where there is not one for each rank; some then do the part of several. 0 for all.
    :param on: addresses of the workers to take; those that are up when None.
    :param watcher: who follows it.
    :raises LostWorkerError: when a worker went away; a checkpoint may go on.
    :raises StoppedTraining: when the watcher ended it; no rank goes on.
    :raises JobError: when the training failed otherwise.
    """
    ranks = len(work.train_files)
    up = list(addresses(client) if on is None else on)[:ranks]
    if len(up) < (least or ranks):
        raise LostWorkerError("the cluster has too few workers", expected=least or ranks, found=len(up))
    key = f"sml-training-{uuid.uuid4().hex[:12]}"
    client.subscribe_topic(key, lambda event: _hear(event[1], told, watcher))
    futures: list[Any] = []
    try:
        tracker = _on(client, up[0], _start_tracker, key, ranks).result() if ranks > 1 else None
        shares = {address: range(number, ranks, len(up)) for number, address in enumerate(up)}
        sharing = _sharing(shares, addresses(client))
        futures = [
            _on(
                client,
                address,
                _ranks,
                share,
                replace(work, sharing=sharing[address]),
                tracker,
                key,
                watcher is not None,
            )
            for address, share in shares.items()
        ]
        return _wait(client, futures, up, told, _Stopper(client, up, key, watcher) if watcher else None)
    finally:
        client.unsubscribe_topic(key)
        if ranks > 1:
            # Ends the ranks that still wait for a lost one; its worker may be the one that is gone.
            with contextlib.suppress(Exception):
                _on(client, up[0], _stop_tracker, key).result(timeout=_PULSE)
        with contextlib.suppress(Exception):
            client.cancel(futures, force=True)


def _sharing(shares: Mapping[str, Sequence[int]], workers: Sequence[str]) -> dict[str, Sharing]:
    """Who shares a machine with each worker's ranks.

    :param shares: the ranks of each worker that takes part.
    :param workers: addresses of all workers of the cluster.
    """
    together: Counter[str | None] = Counter()
    for address, share in shares.items():
        together[_host(address)] += len(share)
    there = Counter(_host(address) for address in workers)
    return {
        address: Sharing(len(share), together[_host(address)], len(share) * there[_host(address)])
        for address, share in shares.items()
    }


def _host(address: str) -> str | None:
    return urlsplit(address).hostname


def _on(client: Client, address: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Give a task to one worker and to no other, once."""
    return client.submit(work, *arguments, workers=[address], allow_other_workers=False, pure=False, retries=0)


class Told:
    """The log, and when it was written to last.

    :param log: takes a line.
    :param reached: takes the round that a line tells of.
    """

    def __init__(self, log: Callable[[str], None], reached: Callable[[int], None] = lambda rounds: None) -> None:
        self._log = log
        self._reached = reached
        self.started = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        self.last = time.monotonic()
        if match := re.match(r"round (\d+) ", line):
            self._reached(int(match[1]))
        self._log(line)


def _hear(message: Any, told: Told, watcher: Watcher | None) -> None:
    """Take a line of the log, or losses."""
    if isinstance(message, str):
        told(message)
    elif watcher:
        watcher.measured(message["first"], message["losses"])


class _Stopper:
    """Tells the ranks to end, once their watcher wants it."""

    def __init__(self, client: Client, up: list[str], key: str, watcher: Watcher) -> None:
        self._client, self._up, self._key, self._watcher = client, up, key, watcher
        self._stopped = False

    def __call__(self) -> None:
        if not self._stopped and self._watcher.stop():
            with contextlib.suppress(Exception):  # a worker that is gone is found by who watches the workers
                self._stopped = any(self._client.run(_stop, self._key, workers=self._up).values())


def _stop(key: str, dask_worker: Any = None) -> bool:
    """Let the ranks of a training on this worker, and so all of them, end after their round; whether one is here."""
    here = key in getattr(dask_worker, "sml_stops", {})
    if here:
        dask_worker.sml_stops[key] = True
    return here


def _wait(
    client: Client, futures: list[Any], up: list[str], told: Told, stopper: Callable[[], None] | None = None
) -> Outcome:
    """Wait for all ranks; a task of a worker that is gone would wait for ever, so the workers are watched."""
    pulse = _WATCHED_PULSE if stopper else _PULSE
    while any(not future.done() for future in futures):
        _pause(client, [future for future in futures if not future.done()], "FIRST_COMPLETED", pulse)
        if stopper:
            stopper()
        if any(future.done() and future.status != "finished" for future in futures):
            break
        if lost := [address for address in up if address not in addresses(client)]:
            raise _lost(up, lost)
        if time.monotonic() - told.last >= 10:
            told(f"still at work after {time.monotonic() - told.started:.0f} s")
    if all(future.status == "finished" for future in futures):
        outcome: Outcome = client.gather(futures)[0]
        return outcome
    # The others end by themselves, because the one that failed has left them.
    _pause(client, futures, "ALL_COMPLETED")
    failed = {up[rank]: future.exception() for rank, future in enumerate(futures) if future.status == "error"}
    # XGBoost's own error is mostly that of the ranks that were left alone.
    errors = sorted(
        failed.values(), key=lambda error: (not isinstance(error, SmlError), type(error).__name__ == "XGBoostError")
    )
    first = errors[0] if errors else None
    if isinstance(first, InterruptedTraining):
        _part(client, {address for address, error in failed.items() if _told_to_go(error)})
    if isinstance(first, SmlError):
        raise first
    if lost := [address for address in up if address not in addresses(client)]:
        raise _lost(up, lost) from first
    raise JobError(
        "training failed on the cluster",
        found=f"{type(first).__name__}: {str(first).partition('Stack trace')[0].strip()[:600]}"
        if first
        else "cancelled",
    ) from first


async def _leave(worker: Worker) -> None:
    """Take a worker out of its cluster, once it has told how its part ended."""
    await asyncio.sleep(_PULSE / 2)
    await worker.close_gracefully(restart=False, reason="sml-interruption")


def _told_to_go(error: BaseException) -> bool:
    """Whether a part ended because of a notice to its own machine."""
    return isinstance(error, InterruptedTraining) and error.found != ELSEWHERE


def _part(client: Client, leaving: set[str]) -> None:
    """Wait, but not long, until the workers whose machines go have left, all of them: the next attempt would be lost
    with one that is still there."""
    until = time.monotonic() + 5 * _PULSE
    while time.monotonic() < until and leaving & set(addresses(client)):
        time.sleep(_PULSE / 10)


def _lost(up: list[str], lost: list[str]) -> LostWorkerError:
    return LostWorkerError(
        "a worker was lost during training",
        expected=f"{len(up)} workers to the end",
        found=f"{', '.join(lost)} gone",
        todo="look for its end in its log, such as for want of memory; a retry goes on from the last checkpoint",
    )


def _pause(client: Client, futures: list[Any], until: str, pulse: float = _PULSE) -> None:
    """Wait for tasks, but not long."""
    from distributed import wait

    with contextlib.suppress(TimeoutError), client.as_current():
        wait(futures, timeout=pulse, return_when=until)


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


@contextlib.contextmanager
def _watch(worker: Worker, topic: str) -> Iterator[Watch]:
    """Tell the client of losses, some together, and hear from it whether to stop."""
    stops = worker.sml_stops = getattr(worker, "sml_stops", {})
    stops[topic] = False
    losses: list[float] = []
    sent = time.monotonic()

    def measured(number: int, loss: float) -> None:
        nonlocal sent
        losses.append(loss)
        if (now := time.monotonic()) - sent >= _WATCHED_PULSE:
            sent = now
            worker.log_event(topic, {"first": number + 1 - len(losses), "losses": losses.copy()})
            losses.clear()

    try:
        yield Watch(measured, lambda: stops[topic])
    finally:
        del stops[topic]


def _ranks(ranks: Sequence[int], work: Work, tracker: dict[str, Any] | None, topic: str, watched: bool) -> Outcome:
    """One worker's part, on a Dask worker: that of one rank, or of several, each in a thread of its own.

    XGBoost's communicator belongs to a thread, so that ranks of one process meet as those of several do. The threads
    end with the ranks, and their teams of OpenMP's threads with them: libgomp counts the teams of all threads, and
    while they have more members than there are cores, a member that waits sleeps at once, at a hundred barriers a
    round (``gomp_throttled_spin_count_var`` in its wait.h). A Dask worker's own threads would keep theirs.
    """
    from distributed import get_worker

    worker = get_worker()
    threads = max(1, worker.state.nthreads // len(ranks))
    watching = _watch(worker, topic) if watched else contextlib.nullcontext()

    def one(rank: int) -> Outcome:
        try:
            return run_rank(rank, work, tracker, threads, lambda line: worker.log_event(topic, line), watch)
        except InterruptedTraining as error:
            if _told_to_go(error):  # no further attempt shall count on this machine
                worker.loop.add_callback(_leave, worker)
            raise

    with watching as watch, ThreadPoolExecutor(len(ranks)) as pool:
        outcomes = [pool.submit(one, rank) for rank in ranks]
        # The error of the rank that failed, not of those that it left alone.
        errors = [error for each in outcomes if (error := each.exception())]
        for error in sorted(errors, key=lambda error: (not _told_to_go(error), not isinstance(error, SmlError))):
            raise error
        return outcomes[0].result()
