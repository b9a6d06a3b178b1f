"""Services that train a model as a job of their own, by the settings of a spec: SageMaker and Vertex AI.

The settings are those of the operators and of the adapters in ``cloud``, under one roof. They are checked without
Airflow and without asking anyone, so that a spec can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, did_you_mean
from airflow_provider_sml.operators.settings import check_types

#: How a service is waited for, whichever it is.
_WAITING = ("deferrable", "poll_interval")


@dataclass(frozen=True)
class Service:
    """A service that trains.

    :param title: its name for people.
    :param scheme: of the stores that it reaches.
    :param adapter: gives the class of its jobs.
    :param own: settings that are the operator's, with an example of each.
    :param needed: settings that have no default, with words for what is expected.
    :param decided: values of the adapter that the training decides, or the operator sets.
    """

    title: str
    scheme: str
    adapter: Callable[[], Any]
    own: Mapping[str, Any]
    needed: Mapping[str, str]
    decided: Sequence[str]

    @property
    def settable(self) -> list[str]:
        """Every setting that there is."""
        known = {item.name for item in dataclasses.fields(self.adapter())} - set(self.decided)
        return sorted({*known, *self.own, *self.needed, *_WAITING})


def _sagemaker_job() -> Any:
    from airflow_provider_sml.cloud.sagemaker_training import SageMakerTrainingJob

    return SageMakerTrainingJob


def _vertex_job() -> Any:
    from airflow_provider_sml.cloud.vertex_training import VertexTrainingJob

    return VertexTrainingJob


SERVICES = {
    "sagemaker": Service(
        title="SageMaker", scheme="s3", adapter=_sagemaker_job, own={"aws_conn_id": "aws_default"},
        needed={"image": "image: the container, built from docker/scoring.Dockerfile",
                "role": "role: ARN of the role that the job runs as",
                "instances": "instances: machine types, the preferred one first"},
        decided=("name", "connection", "count", "inputs", "hyperparameters", "spot", "checkpoint", "entrypoint",
                 "arguments", "script", "entry"),
    ),
    "vertex": Service(
        title="Vertex AI", scheme="gs", adapter=_vertex_job, own={"gcp_conn_id": "google_cloud_default"},
        needed={"image": "image: the container, built from docker/scoring.Dockerfile",
                "region": "region: such as europe-west1",
                "machines": "machines: the preferred one first"},
        decided=("name", "connection", "count", "checkpoint", "command", "arguments"),
    ),
}  # fmt: skip


def check_service(
    kind: str, settings: Mapping[str, Any], *, workers: int = 1, spot: bool = False, checkpoint: str | None = None
) -> None:
    """Refuse settings of a service that cannot be right.

    :param kind: one of ``SERVICES``.
    :param settings: of it.
    :param workers: machines.
    :param spot: whether spot machines are wanted.
    :param checkpoint: folder of the checkpoints; may name ``{lake}``.
    :raises ConfigurationError: naming what is wrong.
    """
    service = SERVICES[kind]
    for name in settings:
        if name in ("spot", "checkpoint", "count"):
            todo = {"count": "train.workers"}.get(name, "train.spot: {checkpoint: ...}")
            raise ConfigurationError(
                f"{name} is no setting of {service.title}", expected=f"{todo} for it", found=settings[name],
                todo=f"write {todo} beside cluster_settings",
            )  # fmt: skip
        if name not in service.settable:
            raise ConfigurationError(
                f"training on {service.title} has no setting {name}", expected=", ".join(service.settable), found=name,
                todo=did_you_mean(name, service.settable),
            )  # fmt: skip
    missing = [words for name, words in service.needed.items() if not settings.get(name)]
    if missing:
        raise ConfigurationError(f"{service.title} lacks settings", expected="; ".join(missing), found="none")
    if spot and not checkpoint:
        raise ConfigurationError(
            f"spot training on {service.title} needs a place for checkpoints",
            expected=f'train.spot.checkpoint: a folder in {service.scheme}://, or "{{lake}}/checkpoints"', found="none",
            todo="without one an interruption loses all that was trained",
        )  # fmt: skip
    check_types(service.title, service.adapter(), settings)
    for name in ("output", *(("checkpoint",) if checkpoint else ())):
        address = str(checkpoint if name == "checkpoint" else settings.get("output", "{lake}"))
        if not address.startswith((f"{service.scheme}://", "{lake}")):
            raise ConfigurationError(
                f"{service.title} cannot reach the folder for {name}", found=address,
                expected=f"an address in {service.scheme}://, or one that starts with {{lake}}",
            )  # fmt: skip
    _job(kind, settings, workers, spot).check()


def _job(kind: str, settings: Mapping[str, Any], workers: int, spot: bool) -> Any:
    """The adapter of settings, made for its checks alone."""
    service = SERVICES[kind]
    example = f"{service.scheme}://bucket/folder"
    given = {key: value for key, value in settings.items() if key not in (*service.own, *_WAITING)}
    given |= {"name": "check", "output": example, "count": workers, "checkpoint": example if spot else ""}
    if kind == "sagemaker":
        given["spot"] = spot
        given.setdefault("tags", {})
        given.setdefault("prices", {})
    else:
        given.setdefault("project", "-")
        if spot:
            given["strategy"] = "spot"
    return service.adapter()(**given)


def job_arguments(
    kind: str, settings: Mapping[str, Any], *, spot: bool = False, checkpoint: str | None = None
) -> dict[str, Any]:
    """What the operator of a service takes, but for the training itself.

    :param kind: one of ``SERVICES``.
    :param settings: of it, checked.
    :param spot: whether spot machines are wanted.
    :param checkpoint: folder of the checkpoints; may name ``{lake}``.
    """
    service, given = SERVICES[kind], dict(settings)
    direct = ["image", "region", *service.own, *_WAITING]
    direct += ["role", "instances"] if kind == "sagemaker" else ["machines", "project", "strategy"]
    found = {name: given.pop(name) for name in direct if name in given}
    found |= {"output_path": given.pop("output", "{lake}/jobs"), "checkpoint": checkpoint or "", "options": given}
    if spot:
        found |= {"spot": True} if kind == "sagemaker" else {"strategy": "spot"}
    return found
