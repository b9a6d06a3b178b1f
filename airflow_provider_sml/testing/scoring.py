"""Our scoring server as a process of this machine, as the containers of the fake clouds run it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress

#: What a container inherits of this process: enough to start Python, and nothing secret.
KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
# Proxies of the environment are for the outside world.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def container_environment() -> dict[str, str]:
    """The environment that a container's process begins with."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {"PYTHONUNBUFFERED": "1"}


class ScoringProcess:
    """A scoring server that answers when it is made, and ends with ``close``.

    :param port: that its environment tells it to listen on.
    :param environment: its whole environment.
    :param arguments: of ``airflow_provider_sml.ml.serving``.
    :param routes: of requests and of health.
    :param within: seconds until it must answer.
    :raises RuntimeError: with what it printed, when it does not.
    """

    def __init__(
        self,
        port: int,
        environment: Mapping[str, str],
        arguments: Sequence[str] = ("serve",),
        routes: tuple[str, str] = ("/invocations", "/ping"),
        within: float = 60.0,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_sml.ml.serving", *arguments], env=dict(environment),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._url = f"http://127.0.0.1:{port}{routes[0]}"
        end = time.monotonic() + within
        while not _healthy(f"http://127.0.0.1:{port}{routes[1]}"):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                self.process.wait()
                self._log.seek(0)
                raise RuntimeError(self._log.read().decode(errors="replace")[-2000:])
            time.sleep(0.05)

    def ask(self, body: bytes, kind: str, accept: str = "*/*") -> tuple[int, bytes, str]:
        """Status, body and content type of the answer to a request.

        :param body: of the request.
        :param kind: its content type.
        :param accept: what is to be answered.
        """
        request = urllib.request.Request(self._url, body, {"Content-Type": kind, "Accept": accept})
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers.get("Content-Type", "")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self._log.close()


def _healthy(url: str) -> bool:
    try:
        with _OPENER.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
