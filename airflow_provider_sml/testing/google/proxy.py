"""A small CONNECT proxy on the loopback interface that takes calls for Google's hosts to the fake, and no others.

Unmodified clients go through it by the environment variable ``grpc_proxy``; it neither reads nor changes what passes.
It can cut a tunnel, which a client sees as a lost connection. The verbs of the command line come here too.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sml.testing.core import FakeCloud

_HOSTS = ".googleapis.com:443"


class Proxy:
    """Serves until it is closed.

    :param cloud: what the verbs of the command line are for.
    :param target: port of the fake's gRPC server.
    :param port: port on the loopback interface; 0 takes a free one.
    """

    def __init__(self, cloud: FakeCloud, target: int, port: int = 0) -> None:
        self.cloud, self.target = cloud, target
        self.refused: list[str] = []
        self._lock = threading.Lock()
        self._tunnels: dict[int, list[socket.socket]] = {}
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def cut(self, peer: str) -> bool:
        """Close the tunnel behind a connection of the gRPC server; whether there was one.

        :param peer: as gRPC names it, such as ``ipv4:127.0.0.1:40312``.
        """
        with self._lock:
            ends = self._tunnels.pop(int(peer.rpartition(":")[2]), [])
        _shut(ends)
        return bool(ends)

    def close(self) -> None:
        """End it with all its tunnels."""
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            ends = [end for pair in self._tunnels.values() for end in pair]
            self._tunnels.clear()
        _shut(ends)
        self._thread.join(5)

    def carry(self, client: socket.socket) -> None:
        """Carry bytes between a client and the server until one of them ends."""
        server = socket.create_connection(("127.0.0.1", self.target), timeout=30)
        server.settimeout(None)
        port = server.getsockname()[1]
        with self._lock:
            self._tunnels[port] = [client, server]
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in ready.select():
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)
        except OSError:  # cut
            return
        finally:
            with self._lock:
                self._tunnels.pop(port, None)
            _shut([client, server])
            server.close()


def _shut(ends: list[socket.socket]) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_CONNECT(self) -> None:
        """Open a tunnel."""
        self.close_connection = True
        if not self.path.endswith(_HOSTS):
            self.proxy.refused.append(self.path)
            self.send_error(403, "only Google's services are faked here")
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        self.wfile.flush()
        self.proxy.carry(self.connection)

    def do_POST(self) -> None:
        """A verb of the command line."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found: Any
        try:
            verb = self.path.removeprefix("/_fake/")
            found, status = self.proxy.cloud.control(verb, json.loads(body or b"{}")), 200
        except (ValueError, TypeError, KeyError) as error:
            found, status = {"message": str(error)}, 400
        answer = json.dumps(found, default=str).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet; the calls are recorded."""
