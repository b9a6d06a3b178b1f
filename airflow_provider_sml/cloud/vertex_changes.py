"""Changes to a Vertex AI endpoint that are no deployments: other shares of the traffic, and its removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleRefused, label
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.cloud.vertex_model import ENDPOINT_LABEL, VertexJob, endpoint_page, resource_id
from airflow_provider_sml.cloud.vertex_spec import whole_shares
from airflow_provider_sml.errors import ConfigurationError, JobError

#: A call of a plan: service, method and request.
Call = tuple[str, str, dict[str, Any]]


def shares(endpoint: Any) -> dict[str, int]:
    """Percent of the traffic of each version on an endpoint: its number, or a deployed model's id without one.

    :param endpoint: as Vertex AI describes it.
    """
    found: dict[str, int] = {}
    for deployed in endpoint.deployed_models:
        name = _version(deployed)
        found[name] = found.get(name, 0) + endpoint.traffic_split.get(deployed.id, 0)
    return found


@dataclass(frozen=True, kw_only=True)
class _EndpointChange(VertexJob):
    """Base: a change of the endpoint ``name``."""

    labels: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    def endpoint(self) -> Any:
        """The endpoint as Vertex AI describes it, or None."""
        return self.find("endpoints", "get_endpoint", self.path)

    @property
    def path(self) -> str:
        """The endpoint's full name."""
        return f"{self.parent}/endpoints/{resource_id(self.name)}"

    def page(self, job_id: str) -> str:
        """The endpoint's page in the console."""
        return endpoint_page(self.project, self.region, self.name)

    def cancel(self, job_id: str) -> None:
        """Nothing: what is done is done, and nothing further is begun."""

    def _at_rest(self) -> None:
        if any(not operation.done for operation in self.operations("endpoints", self.path)):
            raise JobError(f"endpoint {self.name} is being changed", todo="wait for it; a retry goes on")


@dataclass(frozen=True, kw_only=True)
class VertexTraffic(_EndpointChange):
    """Other shares of the traffic for the versions that are deployed on an endpoint.

    :param weights: by version (``"2"``) or id of a deployed model, such as ``{"1": 80, "2": 20}``; only their
        proportions count, and what is not named gets nothing.
    """

    weights: Mapping[str, float]

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Set the shares, unless they are as wanted.

        :raises ConfigurationError: when the endpoint or a version is not there.
        """
        endpoint = self._endpoint()
        wanted = self._wanted(endpoint)
        if dict(endpoint.traffic_split) != wanted:
            self._at_rest()
            self.call("endpoints", "update_endpoint", **self._request(wanted))
        return self.name

    def status(self, job_id: str) -> JobStatus:
        """Done is when the endpoint shares its traffic so."""
        endpoint = self.endpoint()
        if endpoint is None:
            return JobStatus(JobState.FAILED, f"endpoint {self.name} is gone")
        if dict(endpoint.traffic_split) == self._wanted(endpoint):
            return JobStatus(JobState.SUCCEEDED)
        return JobStatus(JobState.FAILED, f"the traffic of endpoint {self.name} was changed since: {shares(endpoint)}")

    def result(self, job_id: str) -> dict[str, Any]:
        """The shares in percent."""
        return {"endpoint": self.name, "weights": shares(self._endpoint())}

    def plan(self) -> list[Call]:
        """The calls that are left to make."""
        endpoint = self._endpoint()
        wanted = self._wanted(endpoint)
        if dict(endpoint.traffic_split) == wanted:
            return []
        return [("aiplatform", "update_endpoint", self._request(wanted))]

    def _endpoint(self) -> Any:
        endpoint = self.endpoint()
        if endpoint is None:
            raise ConfigurationError(f"there is no endpoint {self.name}", expected="an endpoint", found="none")
        return endpoint

    def _request(self, wanted: Mapping[str, int]) -> dict[str, Any]:
        mask = {"paths": ["traffic_split"]}
        return {"endpoint": {"name": self.path, "traffic_split": dict(wanted)}, "update_mask": mask}

    def _wanted(self, endpoint: Any) -> dict[str, int]:
        """The split in percent by deployed model; a version of several parts keeps their proportions."""
        parts: dict[str, list[str]] = {}
        for deployed in endpoint.deployed_models:
            parts.setdefault(_version(deployed), []).append(deployed.id)
        known = parts | {key: [key] for ids in parts.values() for key in ids}
        weights = {str(name).removeprefix("v"): float(weight) for name, weight in self.weights.items()}
        strange = sorted(set(weights) - set(known))
        if strange or not any(weight > 0 for weight in weights.values()) or min(weights.values()) < 0:
            raise ConfigurationError(
                f"the traffic of endpoint {self.name} cannot be set so", expected=f"weights of {', '.join(parts)}",
                found=", ".join(f"{name}: {weight}" for name, weight in self.weights.items()),
            )  # fmt: skip
        now, split = dict(endpoint.traffic_split), dict[str, float]()
        for name, weight in weights.items():
            part = {key: float(now.get(key, 0)) for key in known[name]}
            if not sum(part.values()):
                part = dict.fromkeys(part, 1.0)
            for key, share in part.items():
                split[key] = split.get(key, 0.0) + weight * share / sum(part.values())
        thousandths = {key: round(1000 * weight) for key, weight in split.items()}
        return {key: share for key, share in whole_shares(100, thousandths).items() if share}


@dataclass(frozen=True, kw_only=True)
class VertexRemoval(_EndpointChange):
    """The removal of an endpoint with all that is deployed on it and, where wanted, the versions of models that were
    uploaded for it.

    It is driven by the looks at it: each does the next step, so that another worker can go on. The versions are found
    by their label, also once the endpoint is gone; one that another endpoint serves is left.
    """

    models: bool = True

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Begin; an endpoint that is gone already is well. Gives the versions that are deleted with it."""
        endpoint = self.endpoint()
        if endpoint is None:
            return ""
        self._at_rest()
        return ",".join(sorted({_model(deployed) for deployed in endpoint.deployed_models}))

    def status(self, job_id: str) -> JobStatus:
        """Undeploy one after the other, then delete; done is when the endpoint is gone."""
        if any(not operation.done for operation in self.operations("endpoints", self.path)):
            return JobStatus(JobState.RUNNING, "undeploying")
        endpoint = self.endpoint()
        if endpoint is None:
            return JobStatus(JobState.SUCCEEDED)
        try:
            if endpoint.deployed_models:
                if endpoint.traffic_split:
                    empty = {"endpoint": {"name": self.path}, "update_mask": {"paths": ["traffic_split"]}}
                    self.call("endpoints", "update_endpoint", **empty)
                key = endpoint.deployed_models[0].id
                self.call("endpoints", "undeploy_model", endpoint=self.path, deployed_model_id=key)
            else:
                self.call("endpoints", "delete_endpoint", name=self.path)
        except GoogleRefused as error:
            if error.code != "NOT_FOUND":  # by a call whose reply was lost
                return JobStatus(JobState.FAILED, str(error), configuration=True)
        return JobStatus(JobState.RUNNING, "undeploying" if endpoint.deployed_models else "deleting")

    def result(self, job_id: str) -> dict[str, Any]:
        """Delete the versions of the models, too, and tell what was deleted."""
        deleted = [self.name]
        for version in self._versions_left(job_id.split(",") if job_id else []):
            model, _, number = version.rpartition("@")
            self.remove_version(model, number)
            deleted.append(version.rpartition("/")[2])
        return {"endpoint": self.name, "deleted": sorted(deleted)}

    def plan(self) -> list[Call]:
        """The calls that are left to make."""
        endpoint, found = self.endpoint(), list[Call]()
        deployed_models = endpoint.deployed_models if endpoint is not None else []
        if deployed_models and endpoint.traffic_split:
            empty = {"endpoint": {"name": self.path}, "update_mask": {"paths": ["traffic_split"]}}
            found.append(("aiplatform", "update_endpoint", empty))
        for deployed in deployed_models:
            undeployed = {"endpoint": self.path, "deployed_model_id": deployed.id}
            found.append(("aiplatform", "undeploy_model", undeployed))
        if endpoint is not None:
            found.append(("aiplatform", "delete_endpoint", {"name": self.path}))
        versions = self._versions_left({_model(deployed) for deployed in deployed_models})
        for model, group in groupby(versions, key=lambda version: version.rpartition("@")[0]):
            going = list(group)
            last = len(going) == len(self._versions(model))  # a model goes with its only version
            for version in going[: len(going) - last]:
                found.append(("aiplatform", "delete_model_version", {"name": version}))
            found += [("aiplatform", "delete_model", {"name": model})] if last else []
        return found

    def _versions_left(self, deployed: Iterable[str]) -> list[str]:
        """Full names of the versions to be deleted: those that were deployed here, and those uploaded for it that no
        other endpoint serves. None where models are to stay."""
        if not self.models:
            return []
        ours = label(resource_id(self.name))
        request = {"parent": self.parent, "filter": f"labels.{ENDPOINT_LABEL}={ours}"}
        question: Callable[[Any], Any] = lambda client: list(  # noqa: E731
            client.list_models(request=request, timeout=CALL_SECONDS, retry=None)
        )
        names = {model.name for model in self.ask("vertex_models", "aiplatform.models.list", question)}
        found = set(deployed)
        for name in {*names, *(version.rpartition("@")[0] for version in found)}:
            for version in self._versions(name):
                elsewhere = {item.endpoint for item in version.deployed_models} - {self.path}
                if version.labels.get(ENDPOINT_LABEL) == ours and not elsewhere:
                    found.add(f"{name}@{version.version_id}")
        return sorted(found)


def _model(deployed: Any) -> str:
    """Full name of the version of a model that is deployed."""
    return f"{deployed.model.partition('@')[0]}@{deployed.model_version_id}"


def _version(deployed: Any) -> str:
    """Version of the registered model, as ``VertexRollout`` names what it deploys; the deployed model's id else."""
    _, known, key = deployed.display_name.rpartition(" v")
    number = key.partition("-")[0]
    return number if known and number.isdigit() else str(deployed.id)
