"""Where training runs: a Dask cluster, made for the run and torn down after it, or one that stands already."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import ConfigurationError, JobError, require

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

_LOOPBACK = "127.0.0.1"


@contextmanager
def cluster(where: str, workers: int = 1, patience: float = 60.0) -> Iterator[Client]:
    """A client of a cluster with its workers up; what was made for it is gone afterwards.

    :param where: ``local`` for one worker inside this process with all cores (the quickest on one machine),
        ``processes`` for worker processes on this machine, or the address of a scheduler, such as ``tcp://host:8786``.
    :param workers: worker processes, for ``processes``; how many to wait for, for a scheduler.
    :param patience: seconds to wait for the scheduler, and again for its workers.
    :raises ConfigurationError: when ``where`` is none of these, or the workers do not fit it.
    :raises JobError: when the scheduler does not answer or the workers do not come up.
    """
    require("distributed", "dask")
    _check(where, workers)
    made = None if "://" in where else _start(where, workers)
    try:
        with _connect(made or where, where, patience) as client:
            wait_for_workers(client, workers, patience)
            yield client
    finally:
        if made is not None:
            made.close()


def wait_for_workers(client: Client, workers: int, patience: float) -> None:
    """Wait until a cluster has its workers again.

    :param client: of the cluster.
    :param workers: how many.
    :param patience: seconds to wait.
    :raises JobError: when they do not come.
    """
    until = time.monotonic() + patience
    while (up := len(addresses(client))) < workers:
        if time.monotonic() > until:
            raise JobError(
                "the cluster has too few workers",
                expected=f"{workers} within {patience:g} s",
                found=up,
                todo="start workers, or ask for fewer",
            )
        time.sleep(0.1)


def addresses(client: Client) -> list[str]:
    """Addresses of the workers that are up, in a fixed order.

    The scheduler itself is asked: what the client remembers may be old.

    :raises JobError: when the scheduler does not answer.
    """
    try:
        return list(client.run_on_scheduler(_worker_addresses))
    except (OSError, TimeoutError, RuntimeError) as error:
        raise JobError("the scheduler of the training cluster is gone", found=error) from error


def _worker_addresses(dask_scheduler: object = None) -> list[str]:
    return sorted(dask_scheduler.workers)  # type: ignore[attr-defined]


def _check(where: str, workers: int) -> None:
    if where not in ("local", "processes") and "://" not in where:
        raise ConfigurationError(
            "the training cluster is unknown",
            expected="local, processes, or a scheduler's address such as tcp://host:8786",
            found=where,
        )
    most = 1 if where == "local" else None
    if workers < 1 or (most and workers > most):
        raise ConfigurationError(
            f"the number of workers does not fit the cluster {where}",
            expected="1, which has all cores" if most else "at least 1",
            found=workers,
        )


def _start(where: str, workers: int) -> LocalCluster:
    """A cluster on this machine that listens on the loopback interface alone."""
    from distributed import LocalCluster

    cores = os.cpu_count() or 1
    threads = cores if where == "local" else max(1, cores // workers)
    # Without addresses of their own the diagnostic servers of an in-process cluster listen on every interface.
    quiet = {
        "dashboard_address": f"{_LOOPBACK}:0",
        "worker_dashboard_address": f"{_LOOPBACK}:0",
        "scheduler_kwargs": {"dashboard": False},
    }
    try:
        if where == "local":
            return LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, **quiet)
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            host=_LOOPBACK,
            # The nanny would otherwise hold each worker to one core, whatever nthread says.
            env={"OMP_NUM_THREADS": str(threads)},
            **quiet,
        )
    except (RuntimeError, OSError) as error:
        raise JobError(f"the cluster {where} does not start", expected=f"{workers} workers", found=error) from error


def _connect(place: LocalCluster | str, where: str, patience: float) -> Client:
    from distributed import Client

    try:
        return Client(place, timeout=patience, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise JobError(
            f"the scheduler {where} does not answer",
            expected=f"an answer within {patience:g} s",
            found=error,
            todo="check that it runs and can be reached from here",
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{where} is no scheduler's address", found=error) from error
