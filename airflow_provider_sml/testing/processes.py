"""Servers that tests start: a process on a free loopback port, ready when the fixture gives it, and ended with it."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path


class ServerUnavailableError(Exception):
    """A server cannot be started here; a fixture skips with this reason."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment.

    One below those that systems give to outgoing connections (from 32768 on Linux), which might take it before the
    server does.
    """
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            port = random.SystemRandom().randint(20_000, 32_000)  # tests seed the other generator
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def server(
    command: Sequence[str],
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    patience: float = 60.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for as long as the context is open.

    :param command: program and arguments.
    :param ready: whether it answers; asked until it says yes.
    :param env: its whole environment; this process's when None.
    :param user: whom it runs as.
    :param patience: seconds to wait for the first answer.
    :raises ServerUnavailableError: when it ends, or does not answer in that time; with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="server-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env, user=user)
        try:
            until = time.monotonic() + patience
            while not ready():
                if process.poll() is not None or time.monotonic() > until:
                    told = log.read_text(errors="replace")[-2000:]
                    raise ServerUnavailableError(f"{command[0]} did not start: {told}")
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(3)


def listens(port: int) -> bool:
    """Whether something takes connections on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
