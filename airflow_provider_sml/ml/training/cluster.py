"""Where training runs: a Dask cluster, made for the run and torn down after it, or one that stands already."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from airflow_provider_sml.errors import ConfigurationError, JobError, require
from airflow_provider_sml.ml.training.devices import gpus

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, Security

_LOOPBACK = "127.0.0.1"
#: What a cluster on this machine leaves out: Dask's profiler looks a hundred times a second, its loops tick fifty times
#: each, and every time a thread of XGBoost loses its core while the others wait for it.
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
#: Seconds between two questions to a service whether machines are missing.
_REPLENISH_SECONDS = 5.0


class Made(Protocol):
    """A cluster that a place has made.

    :param address: of its scheduler.
    :param security: what a client needs to be let in; None where nothing is asked for.
    """

    address: str
    security: Security | None

    def replenish(self) -> None:
        """Ask for machines in place of those that are gone; does not wait for them."""

    def why(self) -> str:
        """What keeps machines from coming, as far as the service tells; empty when it does not."""


class Place(Protocol):
    """A service that makes a cluster for one task, such as Kubernetes; adapters of services are in ``cloud``."""

    def open(self, workers: int, spot: bool) -> AbstractContextManager[Made]:
        """Make a cluster; on leaving, nothing of it is left, nor of one that an earlier try of the task left.

        :param workers: how many machines are asked for.
        :param spot: on spare capacity that may be taken away.
        """


class Cluster:
    """A client of a cluster with its workers up; what was made for it is gone on leaving.

    :param where: ``local`` for one worker inside this process with all cores (the quickest on one machine),
        ``processes`` for worker processes on this machine, ``cuda`` for one for each of its GPUs, the address of a
        scheduler, such as ``tcp://host:8786``, or a place that makes clusters.
    :param workers: worker processes, for ``processes``; machines, for a place; how many to wait for, for a scheduler.
    :param patience: seconds to wait for the scheduler, and again for its workers.
    :param spot: of a place: begin on spare capacity, which the first ``wait`` asks for.
    :param least: workers to go on with where all do not come in time; all of them when 0.
    :raises ConfigurationError: when ``where`` is none of these, or the workers do not fit it.
    :raises JobError: when the scheduler does not answer or the workers do not come up.
    """

    def __init__(
        self, where: str | Place, workers: int = 1, patience: float = 60.0, spot: bool = False, least: int = 0
    ) -> None:
        require("distributed", "dask")
        if isinstance(where, str):
            _check(where, workers)
        self.where, self.workers, self.patience = where, workers, patience
        self.spot = spot and not isinstance(where, str)  # nothing else is made anew on other capacity
        self.least = least or workers
        #: Whether the workers' machines are others than this one, and may go while it stays.
        self.elsewhere = not isinstance(where, str) or "://" in where
        self._made: Made | None = None
        self._client: Client | None = None
        self._held = ExitStack()

    @classmethod
    def of(cls, client: Client, workers: int) -> Cluster:
        """A cluster that stands already and stays.

        :param client: of it.
        :param workers: how many are needed.
        """
        found = cls(client.scheduler.address, workers)
        found._client, found.elsewhere = client, False
        return found

    @property
    def client(self) -> Client:
        """The client; another one after ``on_demand``."""
        assert self._client is not None, "wait() opens a cluster on spare capacity"
        return self._client

    def __enter__(self) -> Cluster:
        if not self.spot:  # the caller decides whether to ask for spare capacity at all
            try:
                self.wait(self.patience)
            except BaseException:
                self._held.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def wait(self, patience: float) -> int:
        """Wait until all workers are up, in place of those that are gone.

        :param patience: seconds to wait for all of them; then fewer will do, if they are not fewer than ``least``.
        :returns: the workers that are up.
        :raises TooFewWorkersError: when not enough of them come.
        """
        if self._client is None:
            self._open()
        now = asked = time.monotonic()
        until = now + patience
        while (up := len(addresses(self.client))) < self.workers:
            if (now := time.monotonic()) > until:
                if up >= self.least:
                    break
                why = self._made.why() if self._made else ""
                raise TooFewWorkersError(
                    "the cluster has too few workers",
                    expected=f"{self.least} within {patience:g} s",
                    found=f"{up} ({why})" if why else up,
                    todo="start workers, or ask for fewer",
                )
            if self._made and now >= asked:
                self._made.replenish()
                asked = now + _REPLENISH_SECONDS
            time.sleep(0.1)
        return up

    def on_demand(self) -> None:
        """Give the machines of spare capacity back, and go on with as many that stay."""
        self._held.close()
        self.spot, self._made, self._client = False, None, None
        self.wait(self.patience)

    def _open(self) -> None:
        place: LocalCluster | str
        security = None
        if isinstance(self.where, str):
            place = self.where if "://" in self.where else _start(self.where, self.workers)
            if not isinstance(place, str):
                self._held.callback(place.close)
        else:
            self._made = self._held.enter_context(self.where.open(self.workers, self.spot))
            place, security = self._made.address, self._made.security
        name = self.where if isinstance(self.where, str) else str(place)
        self._client = self._held.enter_context(_connect(place, name, self.patience, security))


@contextmanager
def cluster(where: str | Place, workers: int = 1, patience: float = 60.0) -> Iterator[Client]:
    """The client of a ``Cluster`` alone, for what needs no spare capacity; the parameters are those of ``Cluster``."""
    with Cluster(where, workers, patience) as made:
        yield made.client


class TooFewWorkersError(JobError):
    """Workers did not come in time."""


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
    if where not in ("local", "processes", "cuda") and "://" not in where:
        raise ConfigurationError(
            "the training cluster is unknown",
            expected="local, processes, cuda, or a scheduler's address such as tcp://host:8786",
            found=where,
        )
    most = 1 if where == "local" else None
    if workers < 1 or (most and workers > most):
        raise ConfigurationError(
            f"the number of workers does not fit the cluster {where}",
            expected="1, which has all cores" if most else "at least 1",
            found=workers,
        )
    if where == "cuda":
        _check_gpus(workers)


def _check_gpus(workers: int) -> None:
    if workers > len(seen := gpus()):
        raise ConfigurationError(
            "this machine has too few GPUs for the cluster cuda", expected=f"{workers}, one a worker",
            found=len(seen), todo="ask for fewer workers, or look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    try:
        import dask_cuda  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "the cluster cuda needs dask-cuda", expected="dask-cuda beside the Dask that it was made for", found=error,
            todo="pip install 'airflow-provider-sml[xgboost-gpu]', which may take Dask back to dask-cuda's own",
        ) from error  # fmt: skip


def _start(where: str, workers: int) -> LocalCluster:
    """A cluster on this machine that listens on the loopback interface alone."""
    import dask
    import distributed  # noqa: F401 - its defaults have to be there before they are set otherwise

    cores = os.cpu_count() or 1
    threads = cores if where == "local" else max(1, cores // workers)
    try:
        with dask.config.set(_QUIET):
            return _local_cluster(where, workers, threads)
    except (RuntimeError, OSError) as error:
        raise JobError(f"the cluster {where} does not start", expected=f"{workers} workers", found=error) from error


def _local_cluster(where: str, workers: int, threads: int) -> LocalCluster:
    from distributed import LocalCluster

    # Without addresses of their own the diagnostic servers of an in-process cluster listen on every interface.
    silent = {
        "dashboard_address": f"{_LOOPBACK}:0",
        "worker_dashboard_address": f"{_LOOPBACK}:0",
        "scheduler_kwargs": {"dashboard": False},
    }
    if where == "cuda":
        from dask_cuda import LocalCUDACluster

        # The rows lie in XGBoost's memory, not in Dask's: nothing to spill.
        return LocalCUDACluster(
            n_workers=workers, threads_per_worker=threads, host=_LOOPBACK, device_memory_limit=0, **silent
        )
    if where == "local":
        return LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, **silent)
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        host=_LOOPBACK,
        # The nanny would otherwise hold each worker to one core, whatever nthread says.
        env={"OMP_NUM_THREADS": str(threads)},
        **silent,
    )


def _connect(place: LocalCluster | str, where: str, patience: float, security: Security | None) -> Client:
    from distributed import Client

    try:
        return Client(place, timeout=patience, set_as_default=False, security=security)
    except (OSError, TimeoutError) as error:
        raise JobError(
            f"the scheduler {where} does not answer",
            expected=f"an answer within {patience:g} s",
            found=error,
            todo="check that it runs and can be reached from here",
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{where} is no scheduler's address", found=error) from error
