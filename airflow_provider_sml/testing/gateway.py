"""A gateway before an object store of the S3 protocol that lets calls fail as S3 lets them fail.

::

    with gateway(versity_store) as between:
        between.faults.add("throttle", "PutObject", times=3)          # 503 SlowDown
        between.faults.add("server_error", "Complete*", name="*.parquet")  # 500 InternalError
        between.faults.add("drop_after", "PutObject")                 # written, but the reply is lost
        lake = Lake(f"{bucket}/lake", between.store.store, ...)

The operations are those of S3's API: PutObject, CopyObject, GetObject, HeadObject, DeleteObject, DeleteObjects,
ListObjects, CreateMultipartUpload, UploadPart, CompleteMultipartUpload, AbortMultipartUpload; buckets' own calls are
named Bucket. A fault's name is a pattern of the object's key. Requests are passed on as they come, so signatures stay
valid; TLS is not spoken.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airflow_provider_sml.testing.core.faults import Faults
from airflow_provider_sml.testing.stores import ObjectStore

_KINDS = ("throttle", "server_error", "denied", "drop_before", "drop_after")
_ANSWERS = {
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "server_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
_BY_METHOD = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}


@dataclass
class Gateway:
    """A running gateway.

    :param store: the store behind it, to be reached through it.
    :param faults: what calls meet.
    :param calls: how often each operation was asked for.
    :param failed: how often each operation met a fault.
    :param watch: is told operation and key of every call before it is passed on.
    """

    store: ObjectStore
    faults: Faults = field(default_factory=Faults)
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    watch: Callable[[str, str], None] = lambda operation, key: None


@contextlib.contextmanager
def gateway(store: ObjectStore) -> Iterator[Gateway]:
    """Run a gateway before a store for as long as the context is open.

    :param store: the store behind it.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}"
    made = Gateway(ObjectStore(store.scheme, replace(store.store, endpoint=address)))
    server.gateway = made  # type: ignore[attr-defined]
    server.target = urlsplit(store.store.endpoint or "").netloc  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def operation(method: str, path: str, headers: Any) -> tuple[str, str]:
    """The operation of S3 that a request is, and the object's key."""
    parts = urlsplit(path)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    asked = parse_qs(parts.query, keep_blank_values=True)
    if not key:
        if method == "POST" and "delete" in asked:
            return "DeleteObjects", key
        return ("ListObjects" if method == "GET" and not {"location", "uploads"} & set(asked) else "Bucket"), key
    if "uploads" in asked:
        return "CreateMultipartUpload", key
    if "uploadId" in asked:
        found = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return found.get(method, "ListParts"), key
    if method == "PUT" and headers.get("x-amz-copy-source"):
        return "CopyObject", key
    return _BY_METHOD.get(method, method), key


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def _serve(self) -> None:
        made: Gateway = self.server.gateway
        body = self._body()
        name, key = operation(self.command, self.path, self.headers)
        made.calls[name] += 1
        made.watch(name, key)
        fault = made.faults.take(_KINDS, name, key)
        if fault is not None:
            made.failed[name] += 1
        if fault is not None and fault.kind == "drop_before":
            self._drop()
        elif fault is not None and fault.kind in _ANSWERS:
            status, code, message = _ANSWERS[fault.kind]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], text.encode())
        else:
            status, headers, data = self._pass(body)
            if fault is not None:
                self._drop()
            else:
                self._answer(status, headers, data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in self.headers.items():
                if key.lower() not in ("connection", "expect", "content-length", "transfer-encoding"):
                    connection.putheader(key, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for key, value in headers:
            if key.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif key.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            with contextlib.suppress(OSError):  # the client may be gone
                self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet; the calls are counted."""
