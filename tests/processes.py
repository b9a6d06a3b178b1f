"""Child processes of tests: forked from one that has imported the heavy libraries, which each would spend seconds on.

They are processes like any other, with an end of their own, and no copies of the test's process with its threads.
"""

import multiprocessing
import os
from multiprocessing import forkserver

PROCESSES = multiprocessing.get_context("forkserver")
_LIBRARIES = [
    "pytest", "psutil", "pandas", "duckdb", "pyarrow.parquet", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "s3fs",
    "psycopg2", "xgboost", "distributed", "airflow_provider_sml.ml.lake", "airflow_provider_sml.ml.training.trainer",
    "tests.trained",
]  # fmt: skip
PROCESSES.set_forkserver_preload(_LIBRARIES)


def preload(*modules):
    """Have further modules imported beforehand; before any process has been started."""
    _LIBRARIES.extend(modules)
    PROCESSES.set_forkserver_preload(_LIBRARIES)


def start(target, *arguments):
    """Start a function of a module in a process that has the environment of this moment, which a fork does not."""
    process = PROCESSES.Process(target=_run, args=(dict(os.environ), target, arguments))
    process.start()
    return process


def _run(environment, target, arguments):
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


def fork_dask_workers():
    """Let the worker processes of Dask's local clusters be forked too, each with the environment of its moment."""
    import dask
    import distributed.nanny
    import distributed.utils

    forkserver.ensure_running()  # before a test changes the environment
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils._forkserver_preload_set = True  # with what is above, rather than with Dask's own choice
    begin = distributed.nanny.Nanny.__init__

    def with_environment(self, *arguments, env=None, **keywords):
        begin(self, *arguments, env={**os.environ, **(env or {})}, **keywords)

    distributed.nanny.Nanny.__init__ = with_environment
