"""Machines of a fake cloud as processes of this machine: what an instance's script says really runs.

``Machines`` watches the instances of a cloud and runs a script for each that is there, in a process group of its own;
an instance that is terminated ends its processes, and a script that shuts the machine down terminates the instance.
``interrupt`` takes a machine away as spot capacity is: a notice of its metadata server, then SIGTERM, then SIGKILL.

Stand-ins in the script's ``PATH``: ``shutdown`` ends the machine, ``docker run`` runs the command without a container.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

_SHUTDOWN = """#!/bin/bash
case "$2" in now) touch "$SML_MACHINE/off";; esac
"""
_DOCKER = """#!/bin/bash
[ "$1" = run ] && shift
while [[ "$1" == --* ]]; do case "$1" in --env=*) export "${1#--env=}";; esac; shift; done
shift
exec "$@"
"""
_PULSE = 0.2


class Instances(Protocol):
    """The instances of a cloud."""

    def scripts(self) -> dict[str, str]:
        """The script of each instance that is there, by its id."""

    def terminate(self, name: str) -> None:
        """End an instance."""


class Machines:
    """Runs the machines of a cloud until it is closed.

    :param instances: of the cloud.
    :param grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, instances: Instances, grace: float = 3.0) -> None:
        self.instances, self.grace = instances, grace
        self.started: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="sml-machines-"))
        for name, text in (("shutdown", _SHUTDOWN), ("docker", _DOCKER)):
            (self._folder / "bin" / name).parent.mkdir(exist_ok=True)
            (self._folder / "bin" / name).write_text(text)
            (self._folder / "bin" / name).chmod(0o755)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.metadata = Metadata()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sml-machines")
        self._thread.start()

    def running(self) -> list[str]:
        """The machines whose script runs."""
        with self._lock:
            return [name for name, process in self._running.items() if process.poll() is None]

    def log(self, name: str) -> str:
        """What a machine's script wrote."""
        return (self._folder / name / "log").read_text(errors="replace")

    def interrupt(self, name: str, notice: float = 0.0) -> None:
        """Take a machine away.

        :param name: its id.
        :param notice: seconds between the notice of its metadata server and SIGTERM.
        """
        self.metadata.notices.add(name)
        time.sleep(notice)
        with self._lock:
            process = self._running.get(name)
        if process is not None:
            _stop(process, self.grace)
        self.instances.terminate(name)

    def close(self) -> None:
        """End all machines."""
        self._ended.set()
        self._thread.join(30)
        for process in self._running.values():
            _stop(process, 0)
        self.metadata.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        while not self._ended.wait(_PULSE):
            with contextlib.suppress(Exception):  # the cloud may be away for a moment; what is wrong shows in the test
                self._settle(self.instances.scripts())

    def _settle(self, scripts: Mapping[str, str]) -> None:
        for name, script in scripts.items():
            if name not in self.started:
                self.started.append(name)
                with self._lock:
                    self._running[name] = self._start(name, script)
        for name, process in list(self._running.items()):
            off = process.poll() is not None or (self._folder / name / "off").exists()
            if name not in scripts or off:
                _stop(process, self.grace)
                with self._lock:
                    del self._running[name]
                if name in scripts:
                    self.instances.terminate(name)

    def _start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        home = self._folder / name
        home.mkdir()
        (home / "script").write_text(script)
        address = f"{self.metadata.address}/{name}"
        env = os.environ | {
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}", "SML_MACHINE": str(home),
            "SML_EC2_METADATA": address, "SML_GCE_METADATA": address,
        }  # fmt: skip
        with (home / "log").open("wb") as output:
            return subprocess.Popen(
                ["bash", str(home / "script")], cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """End all processes of a machine."""
    with contextlib.suppress(ProcessLookupError):
        if grace and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


class Metadata:
    """The metadata servers of all machines, each below its id, with the notices of EC2 and Compute Engine."""

    def __init__(self) -> None:
        self.notices: set[str] = set()
        notices = self.notices

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.answer(200, "token")

            def do_GET(self) -> None:
                _, name, *path = self.path.split("/")
                if path[-1] == "preempted":
                    self.answer(200, "TRUE" if name in notices else "FALSE")
                else:
                    self.answer(200 if name in notices else 404, '{"action": "terminate"}')

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End them."""
        self._server.shutdown()
        self._server.server_close()


class MotoInstances:
    """The instances of a moto server.

    :param client: boto3's client of EC2 there.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._scripts: dict[str, str] = {}

    def scripts(self) -> dict[str, str]:
        """The user data of each instance that is there."""
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        found = self.client.describe_instances(Filters=states)["Reservations"]
        names = [instance["InstanceId"] for reservation in found for instance in reservation["Instances"]]
        return {name: self._script(name) for name in names}

    def terminate(self, name: str) -> None:
        """End an instance."""
        self.client.terminate_instances(InstanceIds=[name])

    def _script(self, name: str) -> str:
        from airflow_provider_sml.cloud.dask_ec2 import user_data

        if name not in self._scripts:
            told = self.client.describe_instance_attribute(InstanceId=name, Attribute="userData")
            self._scripts[name] = user_data(told["UserData"]["Value"])
        return self._scripts[name]


class Ec2Door:
    """Stands before a moto server's EC2: writes requests down, has no room for some types, and loses replies.

    :param target: address of the moto server.
    """

    def __init__(self, target: str) -> None:
        self.requests: list[dict[str, list[str]]] = []
        #: What RunInstances answers for a type of instance, by type or by ``type subnet``.
        self.full: dict[str, str] = {}
        #: Replies of RunInstances that are lost.
        self.lost = 0
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import requests

                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = parse_qs(body.decode())
                door.requests.append(asked)
                if code := door._refusal(asked):
                    status = 500 if code.startswith("Insufficient") else 400
                    return self.answer(status, _error(code).encode(), "text/xml")
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                reply = requests.post(target + self.path, data=body, headers=headers, timeout=30)
                if asked["Action"] == ["RunInstances"] and door.lost:
                    door.lost -= 1
                    self.connection.close()
                    self.close_connection = True
                    return None
                return self.answer(reply.status_code, reply.content, reply.headers.get("Content-Type", "text/xml"))

            def answer(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _refusal(self, asked: Mapping[str, list[str]]) -> str:
        if asked["Action"] != ["RunInstances"]:
            return ""
        kind, subnet = asked["InstanceType"][0], asked.get("SubnetId", [""])[0]
        return self.full.get(f"{kind} {subnet}") or self.full.get(kind) or ""

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


def _error(code: str) -> str:
    inside = f"<Error><Code>{code}</Code><Message>There is no room.</Message></Error>"
    return f'<?xml version="1.0"?><Response><Errors>{inside}</Errors><RequestID>0</RequestID></Response>'


@contextlib.contextmanager
def machines(instances: Instances, grace: float = 3.0) -> Iterator[Machines]:
    """``Machines`` that end with the context."""
    found = Machines(instances, grace)
    try:
        yield found
    finally:
        found.close()
