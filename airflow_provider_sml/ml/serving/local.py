"""A local endpoint: one public port on this machine, served by one detached process per deployed version.

A roll-out starts the new version beside the old one on a private port. Once the caller is content with it, it gets the
listening socket of the public port, the old process stops accepting and finishes what it has, and at no moment does
nothing listen. Every step is recorded, so that a caller that dies in between leaves something the next one mends.

It does not restart a server that crashed, and does not scale over machines.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

import psutil

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.serving.handover import (
    ask_listener,
    cease_listening,
    control_path,
    pass_listener,
)
from airflow_provider_sml.ml.serving.probes import LOOPBACK, answers, base, environment, holder, tail, until
from airflow_provider_sml.ml.serving.process import BACKLOG, bind
from airflow_provider_sml.ml.serving.state import ServerRecord

LIVE_FILE, CANDIDATE_FILE, PORT_FILE, LOCK_FILE = "endpoint.json", "candidate.json", "candidate.port", "lock"
PREDICTIONS = "predictions"
GRACE_SECONDS = 10.0
START_SECONDS = 60.0
RELEASE_SECONDS = 1.0
KEPT_LOGS = 5

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# A Popen that is collected while its process runs complains, and one that is never asked leaves a zombie.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class EndpointStatus:
    """What an endpoint is doing.

    :param name: of the endpoint.
    :param url: address of ``POST /invocations``; None when it was never deployed.
    :param live: the server that is recorded as live and runs.
    :param healthy: whether the public port answers with that server's version.
    :param candidate: a server that is being rolled out, or was left over by a caller that died.
    """

    name: str
    url: str | None
    live: ServerRecord | None
    healthy: bool
    candidate: ServerRecord | None


class LocalEndpoint:
    """An endpoint on this machine.

    :param root: folder of all endpoints; this one's files lie in ``root/name``.
    :param name: of the endpoint.
    :param port: public port.
    :param host: address that the public port is bound to.
    """

    def __init__(self, root: Path, name: str, port: int, host: str = LOOPBACK) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} cannot name an endpoint", expected="letters, digits, _ . and -, at most 64", found=name
            )
        if not 0 < port < 65536:
            raise ConfigurationError(f"{port} is no port", expected="1 to 65535", found=port)
        self.name, self.port, self.host = name, port, host
        self.folder = Path(root).absolute() / name

    @classmethod
    def load(cls, root: Path, name: str) -> Self | None:
        """The endpoint as it was deployed last; None when it was not."""
        folder = Path(root) / name
        record = ServerRecord.read(folder / LIVE_FILE) or ServerRecord.read(folder / CANDIDATE_FILE)
        return cls(root, name, record.port, record.host) if record else None

    @property
    def url(self) -> str:
        """Address of ``POST /invocations``."""
        return f"{base(self.host, self.port)}/invocations"

    @property
    def predictions(self) -> Path:
        """Folder of the prediction log."""
        return self.folder / PREDICTIONS

    def status(self) -> EndpointStatus:
        """What is live, and what is left over; changes nothing."""
        recorded, candidate = self._recorded()
        live = recorded if recorded and recorded.process else None
        healthy = live is not None and answers(live.host, live.port, live)
        url = f"{base(recorded.host, recorded.port)}/invocations" if recorded else None
        return EndpointStatus(self.name, url, live, healthy, candidate if candidate and candidate.process else None)

    def serves(self, version: str, model_id: str) -> bool:
        """Whether the live server is healthy and serves this version of this model on this port."""
        status = self.status()
        live = status.live
        return (
            live is not None
            and status.healthy
            and (live.version, live.model_id, live.host, live.port) == (version, model_id, self.host, self.port)
        )

    def start_candidate(
        self, bundle_folder: Path, model: str, version: str, *, timeout: float = START_SECONDS, threads: int = 1
    ) -> Candidate:
        """Start a version beside the live one, on a private port; what serves now is not touched.

        A candidate that nobody makes public ends by itself after a quarter of an hour.

        :param bundle_folder: the model bundle.
        :param model: name of the registered model.
        :param version: its version.
        :param timeout: seconds until it must answer.
        :param threads: threads that XGBoost and onnxruntime may use for one request.
        :raises DeploymentError: when it dies or does not answer in time, another roll-out of this endpoint is under
            way, or the public port is held by something else.
        """
        bundle = Bundle.read(bundle_folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self._lock()
        try:
            self._mend()
            live = ServerRecord.read(self.folder / LIVE_FILE)
            if live is None or live.process is None or (live.host, live.port) != (self.host, self.port):
                self._bind().close()  # tells of a foreign listener before anything is started
            record = self._start(bundle_folder.absolute(), bundle.model_id, model, version, threads)
            candidate = Candidate(self, record, lock)
        except BaseException:
            lock.close()
            raise
        try:
            candidate._await_health(timeout)
        except BaseException:
            candidate.stop()
            raise
        return candidate

    def stop(self, grace: float = GRACE_SECONDS) -> bool:
        """End all servers of this endpoint.

        :param grace: seconds they have to finish their requests.
        :returns: whether one was running.
        """
        if not self.folder.is_dir():
            return False
        with self._lock():
            recorded, candidate = self._recorded()
            records = [r for r in (candidate, recorded, recorded.previous if recorded else None) if r is not None]
            running = [r for r in records if r.process]
            for record in records:
                record.end(grace)
            (self.folder / CANDIDATE_FILE).unlink(missing_ok=True)
            if recorded is not None and recorded.previous is not None:
                replace(recorded, previous=None).write(self.folder / LIVE_FILE)
        return bool(running)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _recorded(self) -> tuple[ServerRecord | None, ServerRecord | None]:
        """The records of the live server and of the candidate; a candidate that has become the live one is none."""
        live = ServerRecord.read(self.folder / LIVE_FILE)
        candidate = ServerRecord.read(self.folder / CANDIDATE_FILE)
        return live, None if candidate is None or candidate.same_process(live) else candidate

    def _lock(self) -> IO[bytes]:
        """Hold the endpoint for one roll-out; the system lets go of it when this process dies."""
        lock = open(self.folder / LOCK_FILE, "wb")  # noqa: SIM115 - held on purpose
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise DeploymentError(
                f"another roll-out of the endpoint {self.name} is under way", todo="wait until it has ended"
            ) from error
        return lock

    def _bind(self) -> socket.socket:
        failure: OSError | None = None
        # A process that was killed is gone a moment before its sockets are.
        for _ in until(RELEASE_SECONDS):
            try:
                return bind(self.host, self.port)
            except OSError as error:
                failure = error
                if error.errno != errno.EADDRINUSE:
                    break
        raise DeploymentError(
            f"the port {self.port} of {self.host} cannot be used for the endpoint {self.name}: {failure}",
            expected="a free port, or one that this endpoint serves",
            found=holder(self.port),
            todo="end that process, or give the endpoint another port",
        ) from failure

    def _mend(self) -> None:
        """End what a caller that died in the middle of a roll-out left over."""
        live, candidate = self._recorded()
        path = self.folder / LIVE_FILE
        if live is not None and live.previous is not None:
            live.previous.end(GRACE_SECONDS)
            replace(live, previous=None).write(path)
        if candidate is not None and candidate.process:
            listener = ask_listener(Path(candidate.control))
            if listener is not None and live is not None and live.process:
                with listener:
                    pass_listener(Path(live.control), listener)
                candidate.end(GRACE_SECONDS)
            elif listener is not None:  # it alone serves, so it is the live one
                listener.close()
                candidate.write(path)
            else:
                candidate.end(GRACE_SECONDS)
        (self.folder / CANDIDATE_FILE).unlink(missing_ok=True)

    def _start(self, bundle: Path, model_id: str, model: str, version: str, threads: int) -> ServerRecord:
        now = dt.datetime.now(dt.UTC)
        log, control = self.folder / f"server-{now:%Y%m%dT%H%M%S%f}.log", control_path(self.folder)
        (self.folder / PORT_FILE).unlink(missing_ok=True)
        for old in sorted(self.folder.glob("server-*.log"))[: -KEPT_LOGS + 1]:
            old.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "airflow_provider_sml.ml.serving", "serve",
            "--bundle", str(bundle), "--model", model, "--version", version, "--threads", str(threads),
            "--log-dir", str(self.predictions), "--control", str(control),
            "--private-port-file", str(self.folder / PORT_FILE),
        ]  # fmt: skip
        with open(log, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(),
            )
        _children[:] = [other for other in _children if other.poll() is None]
        _children.append(child)
        with contextlib.suppress(psutil.Error):
            record = ServerRecord(
                child.pid, psutil.Process(child.pid).create_time(), self.host, self.port, 0, model, version, model_id,
                str(bundle), now.isoformat(timespec="seconds"), str(control), str(log),
            )  # fmt: skip
            record.write(self.folder / CANDIDATE_FILE)
            return record
        raise DeploymentError(f"the server of {model} {version} could not be started", found=tail(log))


class Candidate:
    """A version that runs beside the live one; made by :meth:`LocalEndpoint.start_candidate`.

    As a context manager it ends the candidate unless it has gone live.

    :param endpoint: the endpoint it is meant for.
    :param record: its process.
    :param lock: holds the endpoint until the roll-out has ended.
    """

    def __init__(self, endpoint: LocalEndpoint, record: ServerRecord, lock: IO[bytes]) -> None:
        self.endpoint, self.record, self._lock = endpoint, record, lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of ``POST /invocations`` on its private port."""
        return f"{base(LOOPBACK, self.record.private_port)}/invocations"

    def go_live(self, timeout: float = 10.0, grace: float = GRACE_SECONDS) -> None:
        """Put the candidate on the public port and end what served before; no request is lost.

        :param timeout: seconds until the public port must answer with this version.
        :param grace: seconds the old server has to finish its requests.
        :raises DeploymentError: when it cannot; then the old one serves on and the candidate is ended.
        """
        folder = self.endpoint.folder
        recorded = ServerRecord.read(folder / LIVE_FILE)
        old = replace(recorded, previous=None) if recorded and recorded.process else None
        try:
            self._take_over(old, timeout)
        except BaseException:
            self.stop()
            raise
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        live = replace(self.record, since=now, previous=old)
        live.write(folder / LIVE_FILE)  # from here on it is the live one, whatever happens to this caller
        (folder / CANDIDATE_FILE).unlink(missing_ok=True)
        if old is not None:
            old.end(grace)
            replace(live, previous=None).write(folder / LIVE_FILE)
        self._lock.close()

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """End the candidate and its roll-out; nothing happens when it has gone live or was ended."""
        if self._lock.closed:
            return
        if not self.record.same_process(ServerRecord.read(self.endpoint.folder / LIVE_FILE)):
            self.record.end(grace)
            (self.endpoint.folder / CANDIDATE_FILE).unlink(missing_ok=True)
        self._lock.close()

    def _take_over(self, old: ServerRecord | None, timeout: float) -> None:
        endpoint, control = self.endpoint, Path(self.record.control)
        same_port = old is not None and (old.host, old.port) == (endpoint.host, endpoint.port)
        listener = ask_listener(Path(old.control)) if old and same_port else None
        shared = listener is not None
        if listener is None:
            if old and same_port:  # it runs but does not answer, so it serves nobody and only holds the port
                old.end(GRACE_SECONDS)
            listener = endpoint._bind()
            listener.listen(BACKLOG)
        with listener:
            try:
                pass_listener(control, listener)
                if shared and old:
                    cease_listening(Path(old.control))
                self._await_public(timeout)
            except BaseException:
                if shared and old:
                    with contextlib.suppress(DeploymentError):
                        pass_listener(Path(old.control), listener)
                raise

    def _await_public(self, timeout: float) -> None:
        endpoint = self.endpoint
        for _ in until(timeout):
            if answers(endpoint.host, endpoint.port, self.record):
                return
            if self.record.process is None:
                break
        raise DeploymentError(
            f"{endpoint.url} does not answer with version {self.record.version} of {self.record.model}",
            found=tail(Path(self.record.log)),
        )

    def _await_health(self, timeout: float) -> None:
        port_file = self.endpoint.folder / PORT_FILE
        what = f"the server of {self.record.model} version {self.record.version}"
        for _ in until(timeout):
            if not self.record.private_port and port_file.exists():
                self.record = replace(self.record, private_port=int(port_file.read_text()))
                self.record.write(self.endpoint.folder / CANDIDATE_FILE)
            if self.record.private_port and answers(LOOPBACK, self.record.private_port, self.record):
                return
            if self.record.process is None:
                raise DeploymentError(f"{what} died while it was starting", found=tail(Path(self.record.log)))
        raise DeploymentError(
            f"{what} did not answer within {timeout:g} s",
            found=tail(Path(self.record.log)),
            todo="look at the machine's load, or allow more time",
        )


def endpoints(root: Path) -> list[LocalEndpoint]:
    """The endpoints that were deployed under a folder."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [LocalEndpoint.load(root, name) for name in names if _NAME.fullmatch(name)]
    return [endpoint for endpoint in found if endpoint is not None]
