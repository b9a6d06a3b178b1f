"""Small questions about servers on this machine: who answers, who holds a port, what a log says last.

They look and change nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import airflow_provider_sml
from airflow_provider_sml.ml.serving.state import ServerRecord

LOOPBACK = "127.0.0.1"

# A server needs nothing else of the environment; secrets that the caller holds there stay with the caller.
_ENVIRONMENT = re.compile(r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|VIRTUAL_ENV|PYTHON.*|(DY)?LD_LIBRARY_PATH|OMP_.*")


def until(timeout: float) -> Iterator[None]:
    """Yield twenty times a second until the seconds are over."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def reached(host: str) -> str:
    """The address at which this machine reaches a server that is bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def base(host: str, port: int) -> str:
    """The address of a server's root, as this machine reaches it."""
    address = reached(host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def answers(host: str, port: int, record: ServerRecord) -> bool:
    """Whether a server answers there with the version of the record."""
    # http.client, because it minds no proxies of the environment and makes no TLS context for each question.
    connection = http.client.HTTPConnection(reached(host), port, timeout=2.0)
    try:
        connection.request("GET", "/ping", headers={"Connection": "close"})
        told: Any = json.loads(connection.getresponse().read(10_000))
        return (told["version"], told["model_id"]) == (record.version, record.model_id)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return False
    finally:
        connection.close()


def environment() -> dict[str, str]:
    """The environment of a server process: it finds this package, and gets nothing that it does not need."""
    kept = {name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)}
    package = str(Path(airflow_provider_sml.__file__).parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [package, kept.get("PYTHONPATH")]))
    return kept


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace").strip()
    except OSError:
        return f"no log at {log}"
    return f"the end of {log}:\n" + ("\n".join(text.splitlines()[-lines:]) or "(it is empty)")


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid:
                    return f"the process {connection.pid} ({psutil.Process(connection.pid).name()}) listens on it"
                return "a process that this user may not see listens on it"
    return "it is taken or not permitted"
