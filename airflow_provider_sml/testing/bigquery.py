"""BigQuery for tests: the emulator ``bqemulator`` in a process of its own, behind a gateway that is strict and fails on
demand.

The emulator runs SQL, load jobs and scripts. What BigQuery has and it lacks, the gateway adds: a job's name can be used
once (409), a job may take its time, a running one can be cancelled, parquet columns are matched by name, and files come
from Cloud Storage, real or faked. It writes down every request, and injects faults: a lost reply, an error, a job that
waits. The client is google-cloud-bigquery itself, led here by ``BIGQUERY_EMULATOR_HOST``.

Not here: quotas, costs (every query is billed the least that BigQuery bills), encryption keys other than that
they were asked for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_sml.testing.google.bigquery_write import write_gateway
from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, listens, server

PROJECT = "sml-test"
#: Bytes that a query is billed at least (BigQuery, "Pricing").
LEAST_BILLED = 10 * 1024 * 1024
#: The emulator translates SQL by recursion and goes on without a word, half done, where Python's limit stops it: the
#: tally of a table with thirty columns needs more.
_START = "import sys; sys.setrecursionlimit(20_000); from bqemulator.cli import main; sys.exit(main())"
_BUILD = Path(__file__).resolve().parents[2] / "scripts" / "bqemulator.sh"


@dataclass(frozen=True)
class Request:
    """One request that the gateway received.

    :param method: of HTTP.
    :param path: without the query.
    :param body: the JSON of it; empty where there is none.
    """

    method: str
    path: str
    body: dict[str, Any]


@dataclass
class Fault:
    """What goes wrong with the next request that fits.

    :param path: pattern of its path.
    :param method: of HTTP.
    :param body: pattern that its body must hold.
    :param kind: ``lost`` (it is carried out, the connection breaks before the reply) or ``error``.
    :param status: of the error.
    :param reason: of the error.
    """

    path: str
    method: str = "POST"
    body: str = ""
    kind: str = "lost"
    status: int = 503
    reason: str = "backendError"

    def fits(self, method: str, path: str, body: bytes) -> bool:
        """Whether a request is the one."""
        return method == self.method and bool(re.search(self.path, path)) and self.body.encode() in body


@dataclass
class BigQueryServer:
    """The gateway.

    :param url: its address.
    :param emulator: address of the emulator behind it.
    :param root: folder that ``gs://BUCKET/NAME`` is looked for in, where there is no ``storage``.
    :param storage: address of a Cloud Storage that files are taken from.
    :param writes: the gateway of the Storage Write API.
    """

    url: str
    emulator: str
    root: Path
    storage: str | None = None
    writes: Any = None
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    failing: dict[str, dict[str, str]] = field(default_factory=dict)
    _jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    _waiting: dict[str, tuple[str, dict[str, str], bytes]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def hold(self, ending: str) -> None:
        """Jobs whose names end like this wait as RUNNING until ``release``."""
        self.held.add(ending)

    def fail(self, ending: str, reason: str, message: str) -> None:
        """The next job whose name ends like this is taken and fails.

        :param ending: of the job's name.
        :param reason: BigQuery's word for it, such as ``invalid`` or ``backendError``.
        :param message: what BigQuery says.
        """
        self.failing[ending] = {"reason": reason, "message": message}

    def release(self) -> None:
        """Let waiting jobs go on when they are looked at next."""
        self.held.clear()

    def jobs(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The jobs that were taken, in their order; ``kind`` is ``load`` or ``query``."""
        return [job for job in self._jobs.values() if kind is None or kind in job.get("configuration", {})]

    def reset(self) -> None:
        """Forget requests, faults and what is held; jobs' names stay used."""
        self.requests.clear()
        self.faults.clear()
        self.held.clear()
        self.failing.clear()
        self.writes.reset()

    # --- what the handler asks ------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The reply to a request."""
        plain = path.split("?")[0]
        with contextlib.suppress(ValueError):
            self.requests.append(Request(method, plain, json.loads(body) if body else {}))
        fault = next((fault for fault in self.faults if fault.fits(method, plain, body)), None)
        if fault:
            self.faults.remove(fault)
            if fault.kind == "error":
                return _error(fault.status, fault.reason, "injected")
        reply = self._answer(method, path, headers, body)
        return (0, {}, b"") if fault else reply

    def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        plain = path.split("?")[0]
        with self._lock:
            if method == "POST" and plain.endswith("/jobs"):
                return self._insert(path, headers, body)
            if found := re.search(r"/(?:jobs|queries)/([^/]+?)(/cancel)?$", plain):
                job_id = found.group(1)
                if job_id in self._waiting:
                    if found.group(2):
                        return self._stop(job_id)
                    if any(job_id.endswith(ending) for ending in self.held):
                        return _json(200, self._jobs[job_id])
                    self._jobs[job_id] = json.loads(self._run(job_id, *self._waiting.pop(job_id))[2])
                elif found.group(2):
                    return _json(200, {"kind": "bigquery#jobCancelResponse", "job": self._jobs.get(job_id, {})})
                if method == "GET" and "/jobs/" in plain and job_id in self._jobs:
                    return _json(200, self._jobs[job_id])
            if method == "PUT" and plain.endswith("/jobs"):
                return self._piece(path, headers, body)
        return self._forward(method, path, headers, body)

    def _insert(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        described = _described(headers, body)
        job_id = described.get("jobReference", {}).get("jobId")
        if job_id in self._jobs:
            return _error(409, "duplicate", f"Already Exists: Job {PROJECT}:US.{job_id}")
        if "resumable" not in path and self._fails(job_id, described):
            return _json(200, self._jobs[job_id])
        if not job_id or "resumable" in path:
            reply = self._forward("POST", path, headers, body)
            if where := next((value for key, value in reply[1].items() if key.lower() == "location"), None):
                kept = {"jobReference": described["jobReference"] | {"location": "US"}}
                self._uploads[_upload(where)] = kept | {"configuration": described["configuration"]}
            return reply
        if any(job_id.endswith(ending) for ending in self.held):
            job = self._taken(job_id, described, {"state": "RUNNING"})
            self._jobs[job_id], self._waiting[job_id] = job, (path, headers, body)
            return _json(200, job)
        reply = self._run(job_id, path, headers, body)
        if reply[0] == 200:
            self._jobs[job_id] = json.loads(reply[2])
        return reply

    def _fails(self, job_id: str | None, described: dict[str, Any]) -> bool:
        """Whether a job is one that was to fail; it has failed then."""
        ending = next((ending for ending in self.failing if job_id and job_id.endswith(ending)), None)
        if not job_id or ending is None:
            return False
        error = self.failing.pop(ending)
        status = {"state": "DONE", "errorResult": error, "errors": [error]}
        self._jobs[job_id] = self._taken(job_id, described, status)
        return True

    def _taken(self, job_id: str, described: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        """A job that the emulator has not seen."""
        return {
            "kind": "bigquery#job", "id": f"{PROJECT}:US.{job_id}", "configuration": described["configuration"],
            "jobReference": {"projectId": PROJECT, "jobId": job_id, "location": "US"},
            "status": status, "statistics": {},
        }  # fmt: skip

    def _piece(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """A piece of an upload. The emulator names its job itself, and forgets an upload that has come to its end."""
        upload = self._uploads[_upload(path)]
        job_id = upload["jobReference"]["jobId"]
        if job_id not in self._jobs and not self._fails(job_id, upload):
            reply = self._forward("PUT", path, headers, body)
            if reply[0] != 200:
                return reply
            self._jobs[job_id] = json.loads(reply[2]) | upload
        return _json(200, self._jobs[job_id])

    def _run(self, job_id: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        described = _described(headers, body)
        load = described.get("configuration", {}).get("load", {})
        if load.get("sourceUris"):
            load["sourceUris"] = [self._fetched(uri, load, job_id) for uri in load["sourceUris"]]
            body = json.dumps(described).encode()
        status, kept, data = self._forward("POST", path, headers, body)
        if status == 200:
            job = json.loads(data)
            job["configuration"] = described["configuration"] | {
                key: value for key, value in job.get("configuration", {}).items() if key not in ("load",)
            }
            if "query" in described["configuration"]:
                query = job.setdefault("statistics", {}).setdefault("query", {})
                query["totalBytesBilled"] = str(LEAST_BILLED)
            data = json.dumps(job).encode()
        return status, kept, data

    def _stop(self, job_id: str) -> tuple[int, dict[str, str], bytes]:
        self._waiting.pop(job_id)
        stopped = {"reason": "stopped", "message": "Job execution was cancelled: User requested cancellation"}
        self._jobs[job_id]["status"] = {"state": "DONE", "errorResult": stopped, "errors": [stopped]}
        return _json(200, {"kind": "bigquery#jobCancelResponse", "job": self._jobs[job_id]})

    def _fetched(self, uri: str, load: dict[str, Any], job_id: str) -> str:
        """The file at an address, brought to where the emulator reads it, with its columns in the table's order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        bucket, _, name = uri.removeprefix("gs://").partition("/")
        if self.storage:
            address = f"{self.storage}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
            with urllib.request.urlopen(address) as reply:
                rows = pq.read_table(pa.BufferReader(reply.read()))
        else:
            rows = pq.ParquetFile(self.root / bucket / name).read()
        names = [column["name"] for column in load.get("schema", {}).get("fields", [])] or rows.column_names
        size = rows.num_rows
        columns = [rows.column(n) if n in rows.column_names else pa.nulls(size) for n in names]
        target = self.root / "fetched" / job_id / f"{abs(hash(uri)):x}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), target)
        return f"file://{target}"

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        host = urllib.parse.urlsplit(self.emulator)
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=120)
        kept = {k: v for k, v in headers.items() if k.lower() not in ("host", "content-length", "accept-encoding")}
        try:
            connection.request(method, path, body or None, kept)
            reply = connection.getresponse()
            data = reply.read()
            passed = {
                k: v.replace(self.emulator, self.url)
                for k, v in reply.getheaders()
                if k.lower() in ("content-type", "location", "range", "x-goog-upload-status")
            }
            return reply.status, passed, data
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    gateway: BigQueryServer
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, data = self.gateway.answer(self.command, self.path, dict(self.headers), body)
        if status == 0:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in ``requests``; nothing is printed."""


def _upload(address: str) -> str:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(address).query)["upload_id"][0]


def _described(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """The job in the body of a request: JSON, or the first part of an upload."""
    kind = next((value for key, value in headers.items() if key.lower() == "content-type"), "")
    if "multipart" in kind:
        boundary = kind.split("boundary=")[1].strip('"').encode()
        body = body.split(b"--" + boundary)[1].split(b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n", 1)[1]
    try:
        return dict(json.loads(body))
    except ValueError:
        return {}


def _json(status: int, content: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int, reason: str, message: str) -> tuple[int, dict[str, str], bytes]:
    errors = [{"reason": reason, "message": message, "domain": "global"}]
    return _json(status, {"error": {"code": status, "message": message, "errors": errors, "status": reason}})


def emulator_program() -> str:
    """The emulator's program, built on the first call.

    :raises ServerUnavailableError: when it cannot be had.
    """
    if not _BUILD.exists():
        raise ServerUnavailableError("scripts/bqemulator.sh is part of the repository, not of the installed package")
    made = subprocess.run([str(_BUILD)], capture_output=True, text=True, timeout=600)
    if made.returncode:
        raise ServerUnavailableError(f"bqemulator cannot be built: {made.stderr.strip()[-500:]}")
    return made.stdout.strip().splitlines()[-1]


@contextlib.contextmanager
def bigquery_server(storage: str | None = None) -> Iterator[BigQueryServer]:
    """An empty BigQuery on the loopback interface; ``BIGQUERY_EMULATOR_HOST`` leads clients to it, and
    ``BIGQUERY_WRITE_EMULATOR_HOST`` this package's clients of the Storage Write API.

    :param storage: address of a Cloud Storage that load jobs read.
    :raises ServerUnavailableError: when the emulator cannot be had or does not start.
    """
    program = emulator_program()
    rest, grpc = free_port(), free_port()
    root = Path(tempfile.mkdtemp(prefix="bigquery-"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("BQEMU_") and k != "PYTHONPATH"}
    env |= {
        "BQEMU_GCS_LOCAL_ROOT": str(root),
        "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false",
        "BQEMU_METRICS_ENABLED": "false",
    }
    command = [
        str(Path(program).with_name("python")), "-c", _START, "start",
        "--rest-port", str(rest), "--grpc-port", str(grpc), "--ephemeral", "--project", PROJECT,
        "--log-level", "error",
    ]  # fmt: skip
    with (
        server(command, lambda: listens(rest) and listens(grpc), env=env),
        write_gateway(f"127.0.0.1:{grpc}") as writes,
        pytest.MonkeyPatch.context() as patch,
    ):
        gateway = BigQueryServer("", f"http://127.0.0.1:{rest}", root, storage, writes)
        listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"gateway": gateway}))
        listener.daemon_threads = True
        gateway.url = f"http://127.0.0.1:{listener.server_port}"
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        patch.setenv("BIGQUERY_EMULATOR_HOST", gateway.url)
        patch.setenv("BIGQUERY_WRITE_EMULATOR_HOST", writes.address)
        try:
            yield gateway
        finally:
            listener.shutdown()
            listener.server_close()
            shutil.rmtree(root, ignore_errors=True)


def bigquery_client() -> Any:
    """A client of the server that ``BIGQUERY_EMULATOR_HOST`` names."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    return bigquery.Client(project=PROJECT, credentials=AnonymousCredentials())
