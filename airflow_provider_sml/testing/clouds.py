"""Pytest fixtures of the fake clouds.

Use it from the top of a ``conftest.py``::

    pytest_plugins = ["airflow_provider_sml.testing.plugin", "airflow_provider_sml.testing.clouds"]

``fake_aws`` is a fresh account for each test; the environment points every client of the test at it, so that DAGs and
scripts run unchanged. Its buckets are moto's. ``fake_google`` is a fresh project, likewise; its buckets are those of
fake-gcs-server, where ``make servers`` has built it, and there are none elsewhere.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from airflow_provider_sml.errors import require

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws import FakeAws
    from airflow_provider_sml.testing.google.cloud import FakeGoogle


@pytest.fixture(scope="session")
def fake_s3() -> Iterator[str]:
    """Address of a moto server for S3, EC2, IAM, STS and KMS; one for the whole run."""
    from moto.server import ThreadedMotoServer

    from airflow_provider_sml.testing.stores import quieten_moto

    quieten_moto()
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def fake_aws(fake_s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    """A fake AWS account whose clock stands still until the test moves it; the environment points at it."""
    from airflow_provider_sml.testing.aws import FakeAws

    with urllib.request.urlopen(urllib.request.Request(f"{fake_s3}/moto-api/reset", b""), timeout=30):
        pass  # no bucket of an earlier test is left
    with FakeAws(s3=fake_s3) as cloud:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (cloud.environment() | cloud.connections()).items():
            monkeypatch.setenv(name, value)
        yield cloud


@pytest.fixture(scope="session")
def fake_gcs_address() -> Iterator[str | None]:
    """Address of a fake-gcs-server, one for the whole run; None where it is not built."""
    from airflow_provider_sml.testing.processes import ServerUnavailableError
    from airflow_provider_sml.testing.stores import fake_gcs

    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(fake_gcs())
        except ServerUnavailableError:
            yield None
        else:
            yield store.store.endpoint


@pytest.fixture
def fake_google(fake_gcs_address: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGoogle]:
    """A fake project whose clock stands still until the test moves it; environment and connection point at it."""
    require("google.cloud.dataproc_v1", "google")
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

    with FakeGoogle(gcs=fake_gcs_address) as cloud:
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        for name, value in (cloud.environment() | cloud.connections()).items():
            monkeypatch.setenv(name, value)
        yield cloud
