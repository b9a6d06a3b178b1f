"""Dask's worker processes start quickly."""

import pytest

from tests.processes import fork_dask_workers


@pytest.fixture(scope="session", autouse=True)
def forked_workers():
    fork_dask_workers()
