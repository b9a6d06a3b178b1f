"""A Dask cluster of a Dask Gateway, made for one task and stopped with it.

A gateway gives clusters random names, so a task's cluster carries the task's label in two places:

- in a cluster option, where the gateway's administrator offers one for it (``tag_option``): seen from the moment that
  the cluster is asked for;
- at the cluster's scheduler, from the moment that it runs.

Whoever opens a cluster stops those of the same label first: what an earlier try of the task left when it was killed.
Nor does that wait for a retry: the scheduler itself watches whether the task that made it is connected, and shuts the
cluster down when it has been gone for ``grace`` seconds. Left is the moment between the request and the scheduler's
start, if there is no ``tag_option``: for that, set ``c.ClusterConfig.idle_timeout`` at the gateway.

The gateway starts workers anew in place of those that died. How many threads a worker has is the gateway's matter:
one worker a host with all its threads trains quickest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, JobError, SmlError, require

#: Seconds between two looks at a cluster that starts or stops.
_PULSE = 0.5
#: Seconds that a stopped cluster has to be gone.
_STOPPING = 30.0
#: Seconds that the scheduler of another cluster has to tell its label.
_ASKING = 10.0
_TRIES = 3


def open_gateway(address: str, proxy_address: str | None = None, auth: Any = None) -> Any:
    """A ``dask_gateway.Gateway``; whoever opened it closes it.

    :param address: of its API, such as ``https://gateway.example.com``.
    :param proxy_address: of its proxy of schedulers, where that is another one.
    :param auth: a ``dask_gateway.auth.GatewayAuth``.
    """
    require("dask_gateway", "gateway")
    from dask_gateway import Gateway

    class Closed(Gateway):
        def __del__(self) -> None:
            """The library's own closes what is closed again, and complains."""

    return Closed(address, proxy_address=proxy_address, auth=auth)


@dataclass(frozen=True, kw_only=True)
class DaskGateway:
    """Makes a cluster at a gateway.

    :param label: of the task, the same for each of its tries.
    :param connect: opens a ``dask_gateway.Gateway``; it holds what logs in there.
    :param options: cluster options that the gateway offers, by name.
    :param spot_options: over these, for spare capacity.
    :param tag_option: a text option that takes the label; none when empty.
    :param minimum: fewest workers that the gateway keeps; a training needs at least all that it asks for.
    :param maximum: most workers that the gateway adapts to the load; 0 for a fixed number.
    :param patience: seconds that a cluster has to start.
    :param grace: seconds after which a cluster shuts down whose task is gone.
    """

    label: str
    connect: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    spot_options: Mapping[str, Any] = field(default_factory=dict)
    tag_option: str = ""
    minimum: int = 0
    maximum: int = 0
    patience: float = 300.0
    grace: float = 60.0

    def __post_init__(self) -> None:
        if self.maximum and self.maximum < self.minimum:
            raise ConfigurationError(
                "the bounds of the cluster's workers are the wrong way round",
                expected=f"a maximum of at least {self.minimum}", found=self.maximum,
            )  # fmt: skip

    def end(self) -> None:
        """Stop the cluster at once; for a task that is killed while it goes on."""
        with contextlib.closing(self.connect()) as gateway:
            self.remove(gateway)

    @contextlib.contextmanager
    def open(self, workers: int, spot: bool = False) -> Iterator[GatewayMade]:
        """Make a cluster, after leftovers of this task are gone; it is stopped on leaving.

        :param workers: how many are asked for.
        :param spot: with ``spot_options``.
        :raises ConfigurationError: when the gateway refuses the log-in or an option.
        :raises JobError: when it does not answer, or the cluster does not start or stop.
        """
        require("dask_gateway", "gateway")
        with _told("open the gateway"):
            gateway = self.connect()
        with contextlib.closing(gateway), contextlib.ExitStack() as held:
            self.remove(gateway)
            wanted = {**self.options, **(self.spot_options if spot else {})}
            if self.tag_option:
                wanted[self.tag_option] = self.label
            # Its answer may get lost: what was made then is found by its tag.
            held.callback(self._clean, gateway, named := [])
            with _told("make a cluster", options=wanted):
                named.append(gateway.submit(**wanted))
            report = self._started(gateway, named[0])
            made = GatewayMade(gateway, report, max(workers, self.minimum), self.maximum and max(workers, self.maximum))
            held.callback(made.client.close)
            made.client.run_on_scheduler(_guard, owner=made.client.id, label=self.label, grace=self.grace)
            made.replenish()
            yield made

    def remove(self, gateway: Any) -> list[str]:
        """Stop the clusters of this label; gives their names.

        :param gateway: the gateway.
        """
        with _told("list the clusters"):
            found = gateway.list_clusters(status=["pending", "running"])
        gone = [report.name for report in found if self._is_ours(gateway, report)]
        for name in gone:
            self._stop(gateway, name)
        return gone

    def _is_ours(self, gateway: Any, report: Any) -> bool:
        if self.tag_option:
            return bool(report.options.get(self.tag_option) == self.label)
        try:
            full = gateway.get_cluster(report.name)
            if full.security is None:
                return False
            with _client(full, _ASKING) as client:
                return bool(client.run_on_scheduler(_label) == self.label)
        except Exception:  # somebody else's that comes or goes at this moment
            return False

    def _started(self, gateway: Any, name: str) -> Any:
        until = time.monotonic() + self.patience
        while True:
            with _told("look at the cluster", name):
                report = gateway.get_cluster(name)
            state = report.status.name
            if state == "RUNNING":
                return report
            if state != "PENDING" or time.monotonic() > until:
                raise JobError(
                    f"the gateway's cluster {name} does not start",
                    expected=f"that it runs within {self.patience:g} s", found=state.lower(),
                    todo="look for its scheduler in the gateway's log",
                )  # fmt: skip
            time.sleep(_PULSE)

    def _clean(self, gateway: Any, named: list[str]) -> None:
        for name in named:
            self._stop(gateway, name)
        if not named and self.tag_option:
            self.remove(gateway)

    def _stop(self, gateway: Any, name: str) -> None:
        for number in range(_TRIES):
            try:
                with _told("stop the cluster", name):
                    gateway.stop_cluster(name)
                break
            except JobError as error:
                if number == _TRIES - 1:
                    todo = f"stop {name} at the gateway; without its task it shuts down after {self.grace:g} s"
                    raise JobError(f"the cluster {name} could not be stopped", found=error, todo=todo) from error
                time.sleep(1 + number)
        until = time.monotonic() + _STOPPING
        while time.monotonic() < until:  # a new one may need the room that this one has
            with contextlib.suppress(Exception):
                if gateway.get_cluster(name).status.name in ("STOPPED", "FAILED"):
                    return
            time.sleep(_PULSE)


class GatewayMade:
    """A cluster that runs at a gateway.

    :param gateway: the gateway.
    :param report: what the gateway tells about it, with what a client needs to be let in.
    :param workers: how many are asked for.
    :param maximum: most that the gateway adapts to the load; 0 for a fixed number.
    """

    def __init__(self, gateway: Any, report: Any, workers: int, maximum: int = 0) -> None:
        self.address: str = report.scheduler_address
        self.security = report.security
        self.name: str = report.name
        self.client = _client(report)
        self._gateway, self._workers, self._maximum = gateway, workers, maximum
        self._asked = False

    def replenish(self) -> None:
        """Say how many workers are wanted; the gateway itself replaces those that die."""
        if self._asked:
            return
        with _told("scale the cluster", self.name):
            if self._maximum:
                self._gateway.adapt_cluster(self.name, minimum=self._workers, maximum=self._maximum)
            else:
                self._gateway.scale_cluster(self.name, self._workers)
        self._asked = True

    def why(self) -> str:
        """A gateway does not tell."""
        return ""


def _client(report: Any, patience: float = 60.0) -> Any:
    from distributed import Client

    try:
        return Client(report.scheduler_address, security=report.security, timeout=patience, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise JobError(
            f"the scheduler of the gateway's cluster {report.name} does not answer",
            expected=f"an answer within {patience:g} s", found=error,
            todo="check that the gateway's proxy of schedulers can be reached from here (proxy_address)",
        ) from error  # fmt: skip


async def _guard(dask_scheduler: Any = None, *, owner: str, label: str, grace: float) -> None:
    """Runs at the scheduler: shuts the cluster down when its owner has been gone for so many seconds."""
    import asyncio
    import time

    from dask_gateway.scheduler_preload import make_gateway_client

    async def watch() -> None:
        seen = time.monotonic()
        while time.monotonic() - seen < grace:
            await asyncio.sleep(min(grace / 4, 5.0))
            if owner in dask_scheduler.clients:
                seen = time.monotonic()
        try:
            await make_gateway_client().shutdown()
        finally:  # without its scheduler the gateway takes the cluster for failed, and stops the workers
            await asyncio.sleep(5)
            await dask_scheduler.close()

    dask_scheduler.sml_label = label
    dask_scheduler.sml_guard = asyncio.ensure_future(watch())


def _label(dask_scheduler: Any = None) -> str:
    """Runs at the scheduler: the label of the task that made the cluster."""
    return getattr(dask_scheduler, "sml_label", "")


@contextlib.contextmanager
def _told(action: str, name: str = "", options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Errors of the gateway's library as ours."""
    import aiohttp
    from dask_gateway import GatewayClusterError, GatewayServerError

    what = f"the gateway would not {action} {name}".strip()
    try:
        yield
    except SmlError:
        raise
    except aiohttp.ClientResponseError as error:
        if error.status in (401, 403):
            raise ConfigurationError(
                what, expected="a log-in that it takes", found=f"{error.status} {error.message}",
                todo="check login, password and auth of the connection",
            ) from error  # fmt: skip
        raise JobError(what, found=f"{error.status} {error.message}") from error
    except ValueError as error:  # the library's words for 404 and 422
        todo = "see the options that it offers: dask_gateway.Gateway(...).cluster_options()"
        raise ConfigurationError(what, found=error, todo=todo if options is not None else None) from error
    except (GatewayClusterError, GatewayServerError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise JobError(what, found=f"{type(error).__name__}: {error}") from error
