"""A Dask cluster on machines that a service starts: the scheduler runs here, in the task's own process.

The machines connect back to it, over TLS with certificates that are made for this cluster and for its time alone; who
has none is refused. A worker ends when the scheduler is gone, and its machine with it: of a task that was killed
nothing stays, and its next try removes what is still ending. Machines must reach ``host`` at ``port`` (any, when 0),
and each other at any port; what XGBoost itself exchanges between workers is not encrypted.

A service is a ``Fleet``; EC2, Compute Engine and others are in modules of their own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_sml.cloud.machine_script import FOLDER, THREADS
from airflow_provider_sml.errors import JobError, SmlError, require

if TYPE_CHECKING:
    from distributed import Security

#: Seconds between two requests for machines after one that was not met.
_AGAIN = 30.0
#: Machines that are started in vain, for each worker that is wanted, before no more are.
_IN_VAIN = 3
_TRIES = 3


@dataclass(frozen=True)
class Bootstrap:
    """What a machine runs to become a worker.

    :param command: program and arguments; ``{folder}`` stands for the folder of the files, ``{threads}`` for the
        threads of one worker.
    :param files: certificates and key by name; secret.
    :param env: variables; nothing secret.
    """

    command: Sequence[str]
    files: Mapping[str, str]
    env: Mapping[str, str] = field(default_factory=dict)


class Fleet(Protocol):
    """Machines of one label at a service."""

    def launch(self, count: int, spot: bool, bootstrap: Bootstrap) -> int:
        """Start machines; gives how many the service took on.

        :param count: how many.
        :param spot: on spare capacity.
        :param bootstrap: what each runs.
        """

    def alive(self) -> list[str]:
        """Names of those that run or are about to."""

    def remove(self) -> list[str]:
        """End all of this label, also those of earlier tries; gives their names."""

    def why(self) -> str:
        """What keeps machines from coming; empty when nothing is known."""


@dataclass(frozen=True, kw_only=True)
class FleetPlace:
    """Makes clusters of a fleet, for ``ml.training.cluster``.

    :param fleet: where machines come from.
    :param host: address of this process that the machines reach; the one by which it reaches others when empty.
    :param bind: address that the scheduler listens on; ``host`` when empty.
    :param port: of the scheduler; a free one when 0.
    :param workers_per_machine: one, or one for each GPU of a machine.
    :param python: of the machines; the program that starts a worker.
    :param death_timeout: seconds that a worker which cannot reach the scheduler goes on trying.
    :param hours: that the certificates are valid.
    :param patience: seconds that machines have to become workers.
    :param machine: what tells that a machine is about to go, for ``ml.training.interruption``.
    :param env: variables of the workers; nothing secret.
    """

    fleet: Fleet
    host: str = ""
    bind: str = ""
    port: int = 0
    workers_per_machine: int = 1
    python: str = "python3"
    death_timeout: float = 60.0
    hours: float = 24.0
    patience: float = 600.0
    machine: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    def end(self) -> None:
        """End the machines at once, and start no more; for a task that is killed while it goes on."""
        self._over.set()
        self.fleet.remove()

    @contextlib.contextmanager
    def open(self, workers: int, spot: bool = False) -> Iterator[FleetMade]:
        """Make a cluster, after leftovers of this label are gone; its machines are ended on leaving.

        :param workers: how many are asked for.
        :param spot: on spare capacity.
        :raises JobError: when the scheduler does not start, or the machines cannot be ended.
        """
        require("distributed", "dask")
        if self._over.is_set():
            raise JobError("the cluster was ended with its task")
        self.fleet.remove()
        credentials = Credentials.made(self.hours)
        with contextlib.ExitStack() as held:
            held.callback(_removed, self.fleet)
            scheduler = held.enter_context(self._scheduler(credentials))
            bootstrap = Bootstrap(self._command(scheduler), credentials.worker_files, self.env)
            made = FleetMade(self, scheduler, credentials.security(), bootstrap, workers, spot)
            made.replenish()
            yield made

    @contextlib.contextmanager
    def _scheduler(self, credentials: Credentials) -> Iterator[Any]:
        from distributed import Scheduler, SpecCluster
        from distributed.utils import get_ip

        host = self.host or get_ip()
        security = credentials.security()
        options = {
            "host": self.bind or host, "port": self.port, "protocol": "tls", "security": security, "dashboard": False,
            # Its HTTP server starts in any case; it has no certificate and shall not be reached from elsewhere.
            "dashboard_address": "127.0.0.1:0",
        }  # fmt: skip
        try:
            started = SpecCluster(
                workers={}, scheduler={"cls": Scheduler, "options": options}, security=security, silence_logs=False
            )
        except (OSError, RuntimeError) as error:
            raise JobError(
                f"the scheduler cannot listen on {self.bind or host}:{self.port}", found=error,
                todo="give host, bind and port of the cluster so that they fit the machine that the task runs on",
            ) from error  # fmt: skip
        with contextlib.closing(started):
            yield started

    def _command(self, scheduler: Any) -> list[str]:
        from distributed.utils import get_ip

        port = scheduler.scheduler_address.rpartition(":")[2]
        threads = ["--nthreads", THREADS] if self.workers_per_machine > 1 else []
        tls = [
            word
            for name in ("ca-file", "cert", "key")
            for word in (f"--tls-{name}", f"{FOLDER}/{name.removesuffix('-file')}.pem")
        ]
        return [
            self.python, "-m", "distributed.cli.dask_worker", f"tls://{self.host or get_ip()}:{port}", *tls,
            "--no-nanny", "--dashboard-address", "127.0.0.1:0", "--memory-limit", "0",
            "--death-timeout", f"{self.death_timeout:g}", *threads,
        ]  # fmt: skip


class FleetMade:
    """A cluster whose scheduler runs here.

    :param place: that made it.
    :param scheduler: the scheduler.
    :param security: what a client needs to be let in.
    :param bootstrap: what a machine runs.
    :param workers: how many are wanted.
    :param spot: on spare capacity.
    """

    def __init__(
        self, place: FleetPlace, scheduler: Any, security: Security, bootstrap: Bootstrap, workers: int, spot: bool
    ) -> None:
        self.address: str = scheduler.scheduler_address
        self.security = security
        self._place, self._scheduler, self._bootstrap = place, scheduler, bootstrap
        self._workers, self._spot = workers, spot
        self._launched, self._not_before = 0, 0.0
        self._came: list[str] = []
        scheduler.scheduler.add_plugin(_arrivals(self._came))

    def replenish(self) -> None:
        """Start machines in place of those that are gone; not often, and not for ever when none becomes a worker."""
        now = time.monotonic()
        wanted = -(-self._workers // self._place.workers_per_machine)
        if self._place._over.is_set() or now < self._not_before or self._in_vain() >= wanted * _IN_VAIN:
            return
        missing = wanted - len(self._place.fleet.alive())
        if missing > 0:
            came = self._place.fleet.launch(missing, self._spot, self._bootstrap)
            self._launched += came
            if came < missing:
                self._not_before = now + _AGAIN

    def why(self) -> str:
        """What keeps machines from coming; empty when nothing is known."""
        told = self._place.fleet.why()
        if not told and (vain := self._in_vain()) > 0:
            told = f"{vain} machines were started of which no worker has connected to {self.address}"
        return told

    def _in_vain(self) -> int:
        """Machines that were started and have not become workers, or not yet."""
        return self._launched - len(self._came) // self._place.workers_per_machine


def _arrivals(came: list[str]) -> Any:
    """A plugin of the scheduler that writes down each worker that connects."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    class Arrivals(SchedulerPlugin):
        name = "sml-arrivals"

        def add_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            came.append(worker)

    return Arrivals()


def _removed(fleet: Fleet) -> None:
    """End the machines; a failure that passes is waited for."""
    for number in range(_TRIES):
        try:
            fleet.remove()
            return
        except SmlError as error:
            if number == _TRIES - 1:
                raise JobError(
                    "the machines of the cluster could not be ended", found=error,
                    todo="they end by themselves without their scheduler; look at the service whether they have",
                ) from error  # fmt: skip
            time.sleep(2.0**number)


@dataclass(frozen=True)
class Credentials:
    """Certificates of one cluster, signed by an authority whose key is thrown away.

    :param ca: certificate of the authority; all are PEM.
    :param own: certificate and key of scheduler and client.
    :param worker: certificate and key of the workers.
    """

    ca: str
    own: tuple[str, str] = field(repr=False)
    worker: tuple[str, str] = field(repr=False)

    @classmethod
    def made(cls, hours: float) -> Credentials:
        """Fresh ones.

        :param hours: that they are valid.
        """
        key = _key()
        ca = _certificate("sml-cluster", key, None, hours)
        pairs = []
        for name in ("sml-scheduler", "sml-worker"):
            own = _key()
            pairs.append((_pem(_certificate(name, own, (ca, key), hours)), _pem(own)))
        return cls(_pem(ca), pairs[0], pairs[1])

    @property
    def worker_files(self) -> dict[str, str]:
        """What a worker reads."""
        return {"ca.pem": self.ca, "cert.pem": self.worker[0], "key.pem": self.worker[1]}

    def security(self) -> Security:
        """Of the scheduler and its clients."""
        from distributed import Security

        cert, key = self.own
        return Security(
            require_encryption=True, tls_ca_file=self.ca, tls_client_cert=cert, tls_client_key=key,
            tls_scheduler_cert=cert, tls_scheduler_key=key, tls_worker_cert=cert, tls_worker_key=key,
        )  # fmt: skip


def _key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _certificate(name: str, key: Any, signer: tuple[Any, Any] | None, hours: float) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    build = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=10))  # clocks differ
        .not_valid_after(now + dt.timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    authority = (signer[1] if signer else key).public_key()
    build = build.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    return build.sign(signer[1] if signer else key, hashes.SHA256())


def _pem(what: Any) -> str:
    from cryptography.hazmat.primitives import serialization as form

    if hasattr(what, "public_bytes"):
        return str(what.public_bytes(form.Encoding.PEM).decode())
    return str(what.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode())
