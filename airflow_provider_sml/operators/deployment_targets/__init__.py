"""Where versions are deployed: one module per target, each with the same few verbs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from airflow_provider_sml.cloud.remote_job import Adapter
from airflow_provider_sml.errors import ConfigurationError

#: Target -> the class that deploys there; ``local`` is the operator's own.
TARGETS = {
    "sagemaker": "airflow_provider_sml.operators.deployment_targets.sagemaker.SageMakerTarget",
    "vertex": "airflow_provider_sml.operators.deployment_targets.vertex.VertexTarget",
}


@dataclass(frozen=True)
class Deployment:
    """What is to be deployed.

    :param endpoint: name of the endpoint.
    :param model: registered model.
    :param version: version number.
    :param model_id: id of the trained model.
    :param settings: of the target, as the DAG gives them.
    :param tags: lineage, for everything that is made.
    :param bundle: folder on this machine that the model bundle is brought to.
    """

    endpoint: str
    model: str
    version: str
    model_id: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    bundle: Path = Path()


class Target(Protocol):
    """A place that serves models; made from a ``Deployment``."""

    #: Whether the version becomes the one that serves, and not one beside it.
    replaces: bool

    def __init__(self, deployment: Deployment) -> None: ...

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be right, without asking anyone.

        :raises ConfigurationError: naming what is wrong.
        """

    def upload(self, bundle: Path) -> None:
        """Bring the model where the target reads it; a repeat finds it there."""

    def rollout(self) -> Adapter:
        """The roll-out as a remote job."""

    def plan(self) -> tuple[list[tuple[str, str, dict[str, Any]]], str]:
        """The exact calls, and the estimated cost in words; changes nothing."""

    def address(self) -> str:
        """Where the endpoint is reached, for a person."""

    def score(self, rows: list[dict[str, Any]]) -> list[float] | None:
        """Scores of the new version through the endpoint; None when it answers nobody."""

    def complete(self, result: Mapping[str, Any]) -> None:
        """After the alias has moved: remove what was kept for a way back. A repeat is well.

        :param result: of the roll-out.
        """

    def rejected(self, reason: str) -> None:
        """Note in the target's own registry, where it has one, that the version was taken back. A repeat is well.

        :param reason: in words.
        """

    def undo(self, result: Mapping[str, Any]) -> str:
        """Take a roll-out back that ended well; tells what became of the endpoint.

        :param result: of the roll-out.
        """


def target(name: str, deployment: Deployment) -> Target:
    """The target of a name.

    :raises ConfigurationError: when there is none.
    """
    return _kind(name)(deployment)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that do not fit a target, without asking anyone; ``local`` takes none.

    :param name: of the target.
    :raises ConfigurationError: naming what is wrong.
    """
    if name != "local":
        _kind(name).check(settings)
    elif settings:
        raise ConfigurationError(
            "a local deployment takes no settings", expected="none with target local", found=", ".join(settings)
        )


def told(name: str, settings: Mapping[str, Any], address: str) -> dict[str, Any]:
    """What a deployment writes on the version, for those who ask what is live where: plain, short JSON.

    :param name: of the target.
    :param settings: of that target.
    :param address: where the endpoint is reached.
    """
    mode = str(settings.get("mode", "replace"))
    share = {"replace": 100.0, "shadow": 0.0}
    return {
        "target": name,
        "address": address,
        "mode": mode,
        "percent": share[mode] if mode in share else float(settings.get("percent", 10)),
        "spot": bool(settings.get("spot")),
        "machine": _machine(settings),
    }


def _machine(settings: Mapping[str, Any]) -> str:
    """What an endpoint runs on, in words; empty for this machine."""
    if settings.get("serverless"):
        return "serverless"
    machine = settings.get("instance") or settings.get("machine") or ""
    kind = machine.get("type", "") if isinstance(machine, Mapping) else str(machine)
    number = settings.get("count") or settings.get("min_replicas") or 1
    least = f"{number} x {kind}" if kind and number != 1 else kind
    floor = settings.get("floor") or {}
    return f"{least}, {floor.get('percent', 0)} % on demand" if floor else least


def _kind(name: str) -> type[Target]:
    if name not in TARGETS:
        raise ConfigurationError(
            f"there is no deployment target {name!r}", expected=", ".join(("local", *TARGETS)), found=name
        )
    module, _, kind = TARGETS[name].rpartition(".")
    made: type[Target] = getattr(importlib.import_module(module), kind)
    return made
