"""The ranks of a training on a Dask cluster: one pinned task a worker, watched until all have ended.

They meet over XGBoost's tracker, which one of the workers starts; one worker alone needs none. Whatever happens, no
task and no tracker is left behind.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import JobError, SmlError
from airflow_provider_sml.ml.training.cluster import addresses
from airflow_provider_sml.ml.training.runner import Outcome, Work, run_rank

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two looks at the cluster.
_PULSE = 2.0


class LostWorkerError(JobError):
    """A worker went away; what it had reached may be in a checkpoint."""


def attempt(client: Client, work: Work, told: Told) -> Outcome:
    """Run the ranks on the cluster once.

    :param client: of the cluster.
    :param work: what each rank does; the number of its file lists is the number of ranks.
    :param told: the log.
    :raises LostWorkerError: when a worker went away; a checkpoint may go on.
    :raises JobError: when the training failed otherwise.
    """
    workers = len(work.train_files)
    up = addresses(client)[:workers]
    if len(up) < workers:
        raise LostWorkerError("the cluster has too few workers", expected=workers, found=len(up))
    key = f"sml-training-{uuid.uuid4().hex[:12]}"
    client.subscribe_topic(key, lambda event: told(event[1]))
    futures: list[Any] = []
    try:
        tracker = _on(client, up[0], _start_tracker, key, workers).result() if workers > 1 else None
        futures = [_on(client, address, _rank, rank, work, tracker, key) for rank, address in enumerate(up)]
        return _wait(client, futures, up, told)
    finally:
        client.unsubscribe_topic(key)
        if workers > 1:
            # Ends the ranks that still wait for a lost one; its worker may be the one that is gone.
            with contextlib.suppress(Exception):
                _on(client, up[0], _stop_tracker, key).result(timeout=_PULSE)
        with contextlib.suppress(Exception):
            client.cancel(futures, force=True)


def _on(client: Client, address: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Give a task to one worker and to no other, once."""
    return client.submit(work, *arguments, workers=[address], allow_other_workers=False, pure=False, retries=0)


class Told:
    """The log, when it was written to last, and the round that it told of last."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.rounds = 0
        self.started = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        self.last = time.monotonic()
        if match := re.match(r"round (\d+) ", line):
            self.rounds = int(match[1])
        self._log(line)


def _wait(client: Client, futures: list[Any], up: list[str], told: Told) -> Outcome:
    """Wait for all ranks; a task of a worker that is gone would wait for ever, so the workers are watched."""
    while any(not future.done() for future in futures):
        _pause(client, [future for future in futures if not future.done()], "FIRST_COMPLETED")
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
    errors = [future.exception() for future in futures if future.status == "error"]
    # XGBoost's own error is mostly that of the ranks that were left alone.
    errors.sort(key=lambda error: (not isinstance(error, SmlError), type(error).__name__ == "XGBoostError"))
    first = errors[0] if errors else None
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


def _lost(up: list[str], lost: list[str]) -> LostWorkerError:
    return LostWorkerError(
        "a worker was lost during training",
        expected=f"{len(up)} workers to the end",
        found=f"{', '.join(lost)} gone",
        todo="look for its end in its log, such as for want of memory; a retry goes on from the last checkpoint",
    )


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
