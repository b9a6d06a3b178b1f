"""A Spark cluster for tests: a standalone master and workers, each a process of its own, on the loopback interface.

Use it from the top of a ``conftest.py``::

    pytest_plugins = ["airflow_provider_sml.testing.plugin", "airflow_provider_sml.testing.spark"]

``spark_cluster`` gives a ``SparkCluster``: its address for ``master``, and its executors, for tests that kill one. All
of it is on one machine, so the drivers' files are the executors' too; a cluster of several hosts needs a store or a
file system that they share.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_sml.cloud.spark_submit import find_spark_submit, java_options
from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, server

if TYPE_CHECKING:
    import psutil

_EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"


@dataclass(frozen=True)
class SparkCluster:
    """A running standalone cluster.

    :param master: its address, ``spark://127.0.0.1:PORT``.
    :param page: address of the master's page.
    :param workers: process ids of its workers.
    """

    master: str
    page: str
    workers: tuple[int, ...]

    @property
    def conf(self) -> dict[str, str]:
        """Spark settings of an application that shall stay on this machine."""
        java = java_options(find_spark_submit())
        return {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.extraJavaOptions": java,
            "spark.executor.extraJavaOptions": java,
            "spark.executor.memory": "600m",
            "spark.cores.max": "2",
            "spark.sql.shuffle.partitions": "2",
        }

    def executors(self) -> list[psutil.Process]:
        """The executors that run now."""
        import psutil

        found = []
        for worker in self.workers:
            for process in psutil.Process(worker).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if _EXECUTOR in process.cmdline():
                        found.append(process)
        return found

    def applications(self, field: str = "activeapps") -> list[str]:
        """Names of the applications that the master knows.

        :param field: ``activeapps`` or ``completedapps``.
        """
        return [app["name"] for app in _page(self.page)[field]]


@contextlib.contextmanager
def standalone(workers: int = 1, cores: int = 2, memory: str = "1g") -> Iterator[SparkCluster]:
    """Run a master and workers for as long as the context is open.

    :param workers: how many.
    :param cores: of each worker.
    :param memory: of each worker, for its executors.
    :raises ServerUnavailableError: when pyspark is not installed, or one of them does not start.
    """
    try:
        import pyspark
    except ImportError:
        raise ServerUnavailableError("pyspark is not installed: pip install 'airflow-provider-sml[spark]'") from None
    home = Path(pyspark.__file__).parent
    command = [str(home / "bin" / "spark-class")]
    port, page = free_port(), free_port()
    master, address = f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{page}/json/"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spark-"))
        own = {
            "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_PUBLIC_DNS": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": java_options(str(home / "bin" / "spark-submit")), "SPARK_LOG_DIR": folder,
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",  # it would listen on a fixed port
        }  # fmt: skip
        env = os.environ | own
        where = ["--host", "127.0.0.1"]
        started = [*command, "org.apache.spark.deploy.master.Master", *where, "--port", str(port)]
        stack.enter_context(server([*started, "--webui-port", str(page)], lambda: _alive(address) is not None, env))
        found = []
        for number in range(1, workers + 1):
            worker = [
                *command, "org.apache.spark.deploy.worker.Worker", *where, "--cores", str(cores), "--memory", memory,
                "--webui-port", "0", "--work-dir", f"{folder}/{number}", master,
            ]  # fmt: skip
            running = stack.enter_context(server(worker, partial(_has, address, number), env))
            found.append(running.pid)
        yield SparkCluster(master, address, tuple(found))


def _page(address: str) -> dict[str, list[dict[str, str]]]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return dict(json.load(answer))


def _has(address: str, workers: int) -> bool:
    return _alive(address) == workers


def _alive(address: str) -> int | None:
    """How many workers the master has; None while it does not answer."""
    with contextlib.suppress(OSError, ValueError):
        return sum(worker["state"] == "ALIVE" for worker in _page(address)["workers"])
    return None


@pytest.fixture(scope="session")
def spark_cluster() -> Iterator[SparkCluster]:
    """A standalone cluster of one worker with two cores; one for the whole run."""
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(standalone())
        except ServerUnavailableError as error:
            pytest.skip(str(error))
        yield cluster
