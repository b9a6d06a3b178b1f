"""A real MLflow server for tests, behind a door that asks for a password and can break a request on purpose; a plugin.

MLflow's own basic authentication needs a further package;
to a client, a proxy that asks for the same header is the same.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from airflow_provider_sml.testing.processes import free_port

USER, PASSWORD, TOKEN = "trainer", "s3cret-mlflow-word", "t0ken-of-the-trainer"


@dataclass
class Door:
    """The proxy.

    :param uri: its address.
    :param behind: port of the server.
    :param seen: method and path of each request, and the header it was let in or sent away with.
    :param before: a request that it is true for is refused before the server sees it.
    :param after: a request that it is true for is carried out, and its answer is an error all the same.
    :param code: of such an error; MLflow's client repeats a request that met a 500 by itself.
    :param slow: seconds by which the answer of a request is late.
    """

    uri: str
    behind: int
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    before: Callable[[str, str], bool] = lambda method, path: False
    after: Callable[[str, str], bool] = lambda method, path: False
    code: int = 400
    slow: Callable[[str, str], float] = lambda method, path: 0.0

    def mend(self) -> None:
        """Break nothing any more."""
        self.before = self.after = lambda method, path: False
        self.code, self.slow = 400, lambda method, path: 0.0


def _handler(door: Door) -> type[BaseHTTPRequestHandler]:
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            given = self.headers.get("authorization", "")
            door.seen.append((self.command, self.path, given))
            if given not in (f"Basic {basic}", f"Bearer {TOKEN}"):
                self._answer(401, b"You are not authenticated.", {})
            elif door.before(self.command, self.path):
                content = json.dumps({"error_code": "BAD_REQUEST", "message": "broken before"}).encode()
                self._answer(door.code, content, {})
            else:
                connection = http.client.HTTPConnection("127.0.0.1", door.behind, timeout=60)
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
                connection.request(self.command, self.path, body, kept)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                time.sleep(door.slow(self.command, self.path))
                if door.after(self.command, self.path):
                    content = json.dumps({"error_code": "BAD_REQUEST", "message": "broken after"}).encode()
                    self._answer(door.code, content, {})
                else:
                    self._answer(answer.status, content, {"content-type": answer.headers.get("content-type", "")})

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"content-length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has not waited
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def served(folder: Path, store: str) -> Iterator[Door]:
    """A server with its door; ended with its children by their process group.

    :param folder: for its artefacts and its log.
    :param store: address of its back end: SQLAlchemy's, of SQLite or PostgreSQL.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"),
        "--gunicorn-opts", "--timeout 120 --log-level warning",  # its plain server starts in a third of the time
    ]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
        # webhooks to this machine, without TLS
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(bytes(range(32))).decode(),
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true", "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    front = None
    try:
        _wait(server, port, folder / "log")
        door = Door("", port)
        front = ThreadingHTTPServer(("127.0.0.1", 0), _handler(door))
        door.uri = f"http://127.0.0.1:{front.server_port}"
        Thread(target=front.serve_forever, daemon=True).start()
        yield door
    finally:
        if front is not None:
            front.shutdown()
            front.server_close()
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def mlflow_on_postgres(tmp_path_factory, postgres_dsn):
    """A server whose back end is a database of PostgreSQL, which it makes its tables in; one for the whole run."""
    import psycopg2

    with contextlib.closing(psycopg2.connect(postgres_dsn)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
    at = dict(field.split("=") for field in postgres_dsn.split())
    store = f"postgresql+psycopg2://{at['user']}@{at['host']}:{at['port']}/mlflow"
    with served(Path(tmp_path_factory.mktemp("mlflow-postgres")), store) as door:
        yield door


@pytest.fixture(scope="session")
def mlflow_door(tmp_path_factory, tables_of_mlflow, request):
    """The server that all tests share, on SQLite; SML_MLFLOW_STORE=postgres puts it on PostgreSQL."""
    if os.environ.get("SML_MLFLOW_STORE") == "postgres":
        yield request.getfixturevalue("mlflow_on_postgres")
        return
    folder = Path(tmp_path_factory.mktemp("mlflow-server"))
    shutil.copyfile(tables_of_mlflow(), folder / "mlflow.db")
    with served(folder, f"sqlite:///{folder}/mlflow.db") as door:
        yield door


def _wait(server: subprocess.Popen, port: int, log: Path, patience: float = 240) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server does not start: {log.read_text()[-2000:]}")


@pytest.fixture
def mlflow_server(mlflow_door):
    """The door, whole and with nothing seen yet."""
    mlflow_door.mend()
    mlflow_door.seen.clear()
    yield mlflow_door
    mlflow_door.mend()
