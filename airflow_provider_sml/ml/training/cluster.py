"""Where training runs: a Dask cluster, made for the run and torn down after it, or one that stands already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import ConfigurationError, JobError, require

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def cluster(where: str, workers: int = 1, patience: float = 60.0) -> Iterator[Client]:
    """A client of a cluster with its workers up; what was made for it is gone afterwards.

    :param where: ``local`` for one worker inside this process with all cores (the quickest on one machine),
        ``processes`` for worker processes on this machine, or the address of a scheduler, such as ``tcp://host:8786``.
    :param workers: worker processes, for ``processes``; how many to wait for, for a scheduler.
    :param patience: seconds to wait for workers.
    :raises ConfigurationError: when ``where`` is none of these.
    :raises JobError: when the workers do not come up.
    """
    require("distributed", "dask")
    import dask
    from distributed import Client, LocalCluster

    cores = os.cpu_count() or 1
    with dask.config.set({"distributed.admin.log-format": "%(message)s"}):
        if where == "local":
            made = LocalCluster(n_workers=1, threads_per_worker=cores, processes=False, dashboard_address=None)
        elif where == "processes":
            threads = max(1, cores // workers)
            made = LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                host="127.0.0.1",
                dashboard_address=None,
                # The nanny would otherwise hold each worker to one core, whatever nthread says.
                env={"OMP_NUM_THREADS": str(threads)},
            )
        elif "://" in where:
            made = None
        else:
            raise ConfigurationError(
                "the training cluster is unknown",
                expected="local, processes, or a scheduler's address such as tcp://host:8786",
                found=where,
            )
        try:
            with Client(made or where, timeout=patience, set_as_default=False) as client:
                try:
                    client.wait_for_workers(workers, timeout=patience)
                except TimeoutError:
                    raise JobError(
                        f"the cluster {where} has too few workers",
                        expected=f"{workers} within {patience:g} s",
                        found=len(client.scheduler_info(n_workers=-1)["workers"]),
                    ) from None
                yield client
        finally:
            if made is not None:
                made.close()
