"""How server processes pass the public listening socket on: file descriptors over a Unix socket.

The old and the new server share one listening socket, and so one queue of connections: when the old one closes its
copy, whatever waits in the queue is answered by the new one. (Two sockets by SO_REUSEPORT have a queue each, and the
kernel resets what waits in a queue whose socket closes.)

A control socket takes one byte per connection: ``G`` gives a copy of the listener, ``T`` takes one and listens, ``C``
ceases to listen. It does not stop processes; signals do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from airflow_provider_sml.errors import DeploymentError

GIVE, TAKE, CEASE = b"G", b"T", b"C"
OK = b"ok"
#: The address of a Unix socket holds 104 bytes on macOS and 108 on Linux.
MAX_ADDRESS = 100

_log = logging.getLogger(__name__)


def control_path(folder: Path) -> Path:
    """A new path for a control socket, in the folder or, where its name is too long for a socket, in a private one."""
    path = folder.absolute() / f"control-{uuid.uuid4().hex[:8]}.sock"
    if len(os.fsencode(path)) > MAX_ADDRESS:
        path = Path(tempfile.mkdtemp(prefix="sml-", dir="/tmp")) / path.name
    return path


def remove_control(path: Path) -> None:
    """Remove a control socket, and the private folder that was made for it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent.name.startswith("sml-") and path.parent.parent == Path("/tmp"):
            path.parent.rmdir()


class ControlServer:
    """Answers on a control socket, in a thread of its own.

    :param path: of the socket; only this user may connect.
    :param give: the listening socket, or None.
    :param take: listen on a socket; returns when it does.
    :param cease: stop listening on the public socket.
    """

    def __init__(
        self,
        path: Path,
        give: Callable[[], socket.socket | None],
        take: Callable[[socket.socket], None],
        cease: Callable[[], None],
    ) -> None:
        self.path, self._give, self._take, self._cease = path, give, take, cease
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        self._socket.listen(8)
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def close(self) -> None:
        """Remove the socket; the thread ends with the process."""
        remove_control(self.path)

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(5)
                try:
                    self._serve(connection)
                except Exception as error:
                    _log.exception("a command on the control socket failed")
                    with contextlib.suppress(OSError):
                        connection.sendall(f"{type(error).__name__}: {error}".encode()[:500])

    def _serve(self, connection: socket.socket) -> None:
        command, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        passed = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if command == GIVE:
            listener = self._give()
            if listener is None:
                connection.sendall(b"there is no listener here")
            else:
                socket.send_fds(connection, [OK], [listener.fileno()])
        elif command == TAKE and passed:
            self._take(passed[0])
            connection.sendall(OK)
        elif command == CEASE:
            self._cease()
            connection.sendall(OK)


def ask_listener(path: Path) -> socket.socket | None:
    """A copy of the listening socket of a server; None when it has none or does not answer."""
    try:
        answer, descriptors = _ask(path, GIVE, [])
    except OSError:
        return None
    return socket.socket(fileno=descriptors[0]) if answer == OK and descriptors else None


def pass_listener(path: Path, listener: socket.socket) -> None:
    """Let a server listen on a socket; returns when it does.

    :raises DeploymentError: when it does not.
    """
    _command(path, TAKE, [listener.fileno()], "listen on the public port")


def cease_listening(path: Path) -> None:
    """Let a server accept nothing more on the public socket; open connections stay.

    :raises DeploymentError: when it does not.
    """
    _command(path, CEASE, [], "stop listening")


def _command(path: Path, command: bytes, descriptors: list[int], what: str) -> None:
    try:
        answer, _ = _ask(path, command, descriptors)
    except OSError as error:
        raise DeploymentError(f"the server did not {what}", found=f"{type(error).__name__}: {error}") from error
    if answer != OK:
        raise DeploymentError(f"the server did not {what}", found=answer.decode(errors="replace") or "no answer")


def _ask(path: Path, command: bytes, descriptors: list[int]) -> tuple[bytes, list[int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        socket.send_fds(connection, [command], descriptors)
        answer, received, _, _ = socket.recv_fds(connection, 1024, 1)
        return answer, received
