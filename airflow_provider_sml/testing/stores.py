"""Object stores for tests: real S3 and Google Cloud Storage protocols on the loopback interface.

Use it from the top of a ``conftest.py``::

    pytest_plugins = ["airflow_provider_sml.testing.plugin", "airflow_provider_sml.testing.stores"]

``moto_store`` (moto: encryption headers, fast), ``versity_store`` (versitygw: strict conditional writes, multipart and
signatures) and ``gcs_store`` (fake-gcs-server) each give an ``ObjectStore``. The last two are Go programs that
``make servers`` builds once; a test that needs a missing one is skipped with that reason. ``s3_store`` is versitygw
where it is there and moto elsewhere.

What they do not show: moto checks no signature; versitygw ignores encryption; fake-gcs-server checks neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_sml.ml.storage import Store
from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, listens, server

VERSIONS = {"versitygw": "v1.8.0", "fake-gcs-server": "v1.56.1"}
REGION = "eu-west-1"


@dataclass(frozen=True)
class ObjectStore:
    """A running store.

    :param scheme: ``s3`` or ``gs``.
    :param store: how it is reached; endpoint and keys included.
    """

    scheme: str
    store: Store

    def bucket(self) -> str:
        """Make a bucket of a new name; gives its address, such as ``s3://test-0a1b2c3d``."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        if self.scheme == "s3":
            self.client().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        else:
            import urllib.request

            request = urllib.request.Request(
                f"{self.store.endpoint}/storage/v1/b?project={self.store.project}",
                data=f'{{"name": "{name}"}}'.encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request).close()
        return f"{self.scheme}://{name}"

    def client(self) -> Any:
        """boto3's client of an S3 store."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.store.endpoint,
            region_name=REGION,
            aws_access_key_id=self.store.access_key,
            aws_secret_access_key=self.store.secret_key,
        )

    def objects(self, bucket: str) -> dict[str, dict[str, Any]]:
        """What an S3 bucket holds: key and the headers of each object."""
        client, name = self.client(), bucket.split("://")[-1]
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key: client.head_object(Bucket=name, Key=key) for key in keys}

    def connection(self, bucket: str, **fields: Any) -> dict[str, Any]:
        """An Airflow connection of type ``sml_lake`` for a lake in a bucket.

        :param fields: further fields, such as ``catalog``.
        """
        own = {
            "location": f"{bucket}/lake",
            "endpoint": self.store.endpoint,
            "region": self.store.region,
            "access_key": self.store.access_key or "anonymous",
            "secret_key": self.store.secret_key,
            "project": self.store.project,
            "kms_key": self.store.kms_key,
        }
        return {"conn_type": "sml_lake", "extra": {key: value for key, value in (own | fields).items() if value}}


def program(name: str) -> str:
    """The path of a server that ``make servers`` built.

    :raises ServerUnavailableError: when it is not there.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "airflow-provider-sml" / "servers"
    path = Path(os.environ.get("SML_SERVERS", default)) / f"{name}-{VERSIONS[name]}"
    if not path.exists():
        raise ServerUnavailableError(f"{name} {VERSIONS[name]} is not built: make servers (needs Go)")
    return str(path)


def quieten_moto() -> None:
    """Keep a line for each of moto's requests, of which there are thousands, out of the log."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)


@contextlib.contextmanager
def moto() -> Iterator[ObjectStore]:
    """moto's server in this process, for S3 and Glue."""
    from moto.server import ThreadedMotoServer

    quieten_moto()
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        yield ObjectStore("s3", Store(f"http://{host}:{port}", REGION, "moto", "moto-secret"))
    finally:
        running.stop()


@contextlib.contextmanager
def versitygw() -> Iterator[ObjectStore]:
    """versitygw on a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="versitygw-") as folder:
        for name in ("iam", "versions", "data"):
            (Path(folder) / name).mkdir()
        port, secret = free_port(), uuid.uuid4().hex
        command = [
            program("versitygw"), "--port", f"127.0.0.1:{port}", "--region", REGION, "--quiet",
            "--iam-dir", f"{folder}/iam", "posix", "--versioning-dir", f"{folder}/versions", f"{folder}/data",
        ]  # fmt: skip
        keys = {"ROOT_ACCESS_KEY": "versity", "ROOT_SECRET_KEY": secret}
        with server(command, lambda: listens(port), env=os.environ | keys):
            yield ObjectStore("s3", Store(f"http://127.0.0.1:{port}", REGION, "versity", secret))


@contextlib.contextmanager
def fake_gcs() -> Iterator[ObjectStore]:
    """fake-gcs-server, in memory."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [
        program("fake-gcs-server"), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
        "-public-host", address, "-external-url", f"http://{address}", "-log-level", "error",
    ]  # fmt: skip
    with server(command, lambda: listens(port)):
        yield ObjectStore("gs", Store(f"http://{address}", project="test", google="anon"))


def _or_skip(opened: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(opened)
        except ServerUnavailableError as error:
            pytest.skip(str(error))
        yield started


@pytest.fixture(scope="session")
def moto_store() -> Iterator[ObjectStore]:
    """S3 and Glue by moto."""
    yield from _or_skip(moto())


@pytest.fixture(scope="session")
def versity_store() -> Iterator[ObjectStore]:
    """S3 by versitygw."""
    yield from _or_skip(versitygw())


@pytest.fixture(scope="session")
def gcs_store() -> Iterator[ObjectStore]:
    """Google Cloud Storage by fake-gcs-server."""
    yield from _or_skip(fake_gcs())


@pytest.fixture(scope="session")
def s3_store(request: pytest.FixtureRequest) -> ObjectStore:
    """S3 by the strictest server that is there."""
    try:
        program("versitygw")
    except ServerUnavailableError:
        return request.getfixturevalue("moto_store")
    return request.getfixturevalue("versity_store")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL for catalogs: its connection string for psycopg2."""
    from airflow_provider_sml.testing.postgres import postgres

    yield from _or_skip(postgres())
