"""Where a training's workers run: this machine, a scheduler that stands, or a cluster that is made for the task.

One mapping, one place out of it; what differs between the services is in the adapters of ``cloud``. A made cluster has
the task's label, the same for each try, by which a retry finds and removes what an earlier try left. Settings are
checked without Airflow, so that a spec can be checked without it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.dask_fleet import FleetPlace
from airflow_provider_sml.cloud.dask_gateway import DaskGateway
from airflow_provider_sml.cloud.machine_script import MachineFleet, MachineScript
from airflow_provider_sml.cloud.remote_job import job_name
from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.hooks.clients import connected, google_project
from airflow_provider_sml.operators.settings import check_types

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.training.cluster import Place

#: Seconds to wait for workers of a cluster that is not made, and after the loss of one.
_PATIENCE, _REPLACEMENT = 60.0, 300.0
#: Seconds that ending a cluster may take when the task is killed; Airflow's supervisor waits 5 before it uses force.
_KILL_SECONDS = 4.0
#: What is given to a machine's script, and to the place.
_SCRIPT, _PLACE = ("image", "gpus", "prepare", "hours"), ("host", "bind", "port", "python", "death_timeout", "hours",
                                                          "patience", "env")  # fmt: skip
#: Of an adapter, not to be set by a person.
_INNER = ("name", "connection", "prices", "fleet", "machine", "label", "connect", "workers_per_machine")


@dataclass(frozen=True)
class Where:
    """Where workers run.

    :param cluster: what ``ml.training.cluster.Cluster`` takes.
    :param patience: seconds to wait for the first workers.
    :param replacement: seconds to wait for others in place of lost ones.
    :param machine: what tells that a machine is about to go: ``ec2``, ``gce`` or empty.
    """

    cluster: str | Place
    patience: float = _PATIENCE
    replacement: float = _REPLACEMENT
    machine: str = ""


@dataclass(frozen=True)
class _Task:
    """For whom a cluster is made.

    :param label: of the task.
    :param tags: where it comes from.
    """

    label: str
    tags: Mapping[str, str]


def where(cluster: str | Mapping[str, Any], context: Context) -> Where:
    """Where the workers of a task run.

    :param cluster: ``local``, ``processes``, ``cuda``, a scheduler's address, the id of its connection; or ``on`` with
        the settings of a service that makes a cluster. A Dask Gateway takes ``{"on": "gateway", "connection": ...}``
        and the other values of ``cloud.dask_gateway.DaskGateway``. Kubernetes takes ``{"on": "kubernetes", "image":
        ...}`` and the other values of ``cloud.dask_kubernetes.KubernetesWorkers``. EC2 takes ``{"on": "ec2", "types":
        [...], "ami": ...}`` and the other values of ``cloud.dask_ec2.Ec2Machines``, ``aws_conn_id``, ``region``,
        ``tags``; Compute Engine ``{"on": "gce", "region": ..., "zones": [...], "types": [...], "disk_image": ...}`` and
        the other values of ``cloud.dask_gce.GceMachines``, ``gcp_conn_id`` and ``project``. Both take ``image``,
        ``gpus`` and ``prepare`` of ``cloud.machine_script.MachineScript``. All but a gateway take ``host``, ``bind``,
        ``port``, ``python``, ``env``, ``death_timeout``, ``hours`` and ``patience`` of ``cloud.dask_fleet.FleetPlace``.
    :param context: of the task.
    :raises ConfigurationError: when there is no such service, or a setting is wrong.
    """
    from airflow_provider_sml.hooks.dask import DaskHook
    from airflow_provider_sml.operators.base import lineage, run_key

    if isinstance(cluster, str):
        return Where(DaskHook(cluster).get_conn())
    tags = {"dag_id": lineage(context)["dag_id"], "run_id": lineage(context)["run_id"]}
    place = _made(cluster, _Task(job_name("sml", *run_key(context)), tags), connect=True)
    return Where(place, place.patience, place.patience, getattr(place, "machine", ""))


def end_made(place: Where | None) -> None:
    """End a cluster that was made for a task which is killed: Airflow leaves it a few seconds, in which it goes on.

    :param place: where the task runs; None before it does.
    """
    end = getattr(place.cluster, "end", None) if place else None
    if end is not None:
        # The main thread, in whose signal handler this runs, may hold a client of the cloud.
        ending = threading.Thread(target=end, daemon=True, name="sml-cluster-end")
        ending.start()
        ending.join(_KILL_SECONDS)


def check_cluster(cluster: Mapping[str, Any]) -> None:
    """Refuse the settings of a cluster, as far as they can be judged without the service.

    :param cluster: ``on`` with the settings.
    :raises ConfigurationError: when there is no such service, or a setting is wrong.
    """
    _made(cluster, _Task("check", {}), connect=False)


def _made(cluster: Mapping[str, Any], task: _Task, connect: bool) -> Any:
    settings = dict(cluster)
    kind = settings.pop("on", None)
    if kind not in KINDS:
        raise ConfigurationError(
            f"there is no service for clusters named {kind!r}", expected=f"on: {', '.join(KINDS)}", found=kind,
            todo=did_you_mean(kind, KINDS),
        )  # fmt: skip
    try:
        return KINDS[kind](settings, task, connect)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the settings of the cluster on {kind} are wrong", found=str(error)) from error


def _gateway(settings: dict[str, Any], task: _Task, connect: bool) -> DaskGateway:
    connection = str(settings.pop("connection", "dask"))
    _refuse("gateway", settings, [*_settable(DaskGateway), "connection"])
    check_types("gateway", DaskGateway, settings)
    return DaskGateway(label=task.label, connect=lambda: _open_gateway(connection), **settings)


def _open_gateway(connection: str) -> Any:
    from airflow_provider_sml.hooks.dask_gateway import DaskGatewayHook

    return DaskGatewayHook(connection).get_conn()


def _ec2(settings: dict[str, Any], task: _Task, connect: bool) -> FleetPlace:
    from airflow_provider_sml.cloud.dask_ec2 import Ec2Machines

    own = _own("ec2", settings, Ec2Machines, "aws_conn_id")
    own["tags"] = {**task.tags, **own.get("tags", {})}
    own["connection"] = own.pop("aws_conn_id", "aws_default")
    machines = Ec2Machines(**{"name": task.label, "types": [], **own})
    return _fleet(connected(machines) if connect else machines, settings, "ec2")


def _gce(settings: dict[str, Any], task: _Task, connect: bool) -> FleetPlace:
    from airflow_provider_sml.cloud.dask_gce import GceMachines

    own = _own("gce", settings, GceMachines, "gcp_conn_id")
    own["labels"] = {**task.tags, **own.get("labels", {})}
    connection = own["connection"] = own.pop("gcp_conn_id", "google_cloud_default")
    if not own.get("project"):
        own["project"] = google_project(connection) if connect else "-"
    machines = GceMachines(**{"name": task.label, "zones": [], "types": [], **own})
    return _fleet(connected(machines) if connect else machines, settings, "gce")


def _kubernetes(settings: dict[str, Any], task: _Task, connect: bool) -> FleetPlace:
    from airflow_provider_sml.cloud.dask_kubernetes import KubernetesWorkers

    names = [*_settable(KubernetesWorkers), "connection"]
    _refuse("kubernetes", settings, [*names, *_PLACE])
    for part in (KubernetesWorkers, FleetPlace):
        check_types("kubernetes", part, settings)
    own = {name: value for name, value in settings.items() if name in names}
    own["labels"] = {**task.tags, **own.get("labels", {})}
    pods = KubernetesWorkers(**{"name": task.label, "image": "", **own})
    given = {name: settings[name] for name in _PLACE if name in settings}
    return FleetPlace(fleet=connected(pods) if connect else pods, **given)


#: What makes a place of settings, by the value of ``on``.
KINDS: dict[str, Callable[[dict[str, Any], _Task, bool], Any]] = {
    "gateway": _gateway, "kubernetes": _kubernetes, "ec2": _ec2, "gce": _gce,
}  # fmt: skip


def _fleet(machines: Any, settings: Mapping[str, Any], machine: str) -> FleetPlace:
    for part in (MachineScript, FleetPlace):
        check_types(machine, part, settings)
    script = MachineScript([], **{name: settings[name] for name in _SCRIPT if name in settings})
    return FleetPlace(
        fleet=MachineFleet(machines, script), machine=machine, workers_per_machine=max(1, script.gpus),
        **{name: settings[name] for name in _PLACE if name in settings},
    )  # fmt: skip


def _own(kind: str, settings: Mapping[str, Any], adapter: type, connection: str) -> dict[str, Any]:
    """The settings of the machines themselves."""
    names = [*_settable(adapter), connection]
    _refuse(kind, settings, [*names, *_SCRIPT, *_PLACE])
    check_types(kind, adapter, settings)
    return {name: value for name, value in settings.items() if name in names}


def _settable(adapter: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(adapter)]
    return [name for name in names if name not in _INNER and not name.startswith("_")]


def _refuse(kind: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    names = sorted(set(known))
    for name in settings:
        if name not in names:
            raise ConfigurationError(
                f"the cluster on {kind} has no setting {name}", expected=", ".join(names), found=name,
                todo=did_you_mean(name, names),
            )  # fmt: skip
