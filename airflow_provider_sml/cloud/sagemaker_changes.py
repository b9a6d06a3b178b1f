"""Changes to a SageMaker endpoint that are no deployments: other weights, and its removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.cloud.aws import AwsJob, AwsRefused
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.cloud.sagemaker_endpoint import ENDPOINT_TAG, find_endpoint
from airflow_provider_sml.cloud.sagemaker_spec import name_start
from airflow_provider_sml.errors import ConfigurationError, JobError

_SERVICE = "sagemaker"


@dataclass(frozen=True, kw_only=True)
class _EndpointChange(AwsJob):
    """Base: a change of the endpoint ``name``."""

    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    def endpoint(self) -> Any:
        """The endpoint as SageMaker describes it, or None."""
        return find_endpoint(self)

    def page(self, job_id: str) -> str:
        """The endpoint's page in the console."""
        return self.console(f"sagemaker/home?region={{region}}#/endpoints/{quote(self.name, safe='')}")

    def cancel(self, job_id: str) -> None:
        """A change of an endpoint cannot be cancelled.

        :raises JobError: always while it runs.
        """
        found = self.endpoint()
        if found and found["EndpointStatus"] not in ("InService", "Failed", "OutOfService"):
            raise JobError(f"SageMaker cannot cancel the change of endpoint {self.name}", found=found["EndpointStatus"])


@dataclass(frozen=True, kw_only=True)
class SageMakerTraffic(_EndpointChange):
    """Other weights of the variants of an endpoint.

    :param weights: by variant, such as ``{"champion": 80, "challenger": 20}``; only their proportions count.
    """

    weights: Mapping[str, float]

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Set the weights, unless they are as wanted.

        :raises ConfigurationError: when the endpoint or a variant is not there.
        """
        for service, operation, params in self.plan():
            self.call(service, operation, **params)
        return self.name

    def plan(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The calls that are left to make: service, operation and parameters.

        :raises ConfigurationError: when the endpoint or a variant is not there.
        """
        found = self.endpoint()
        if found is None:
            raise ConfigurationError(f"there is no endpoint {self.name}", expected="an endpoint", found="none")
        variants = {item["VariantName"]: item.get("DesiredWeight") for item in found.get("ProductionVariants", [])}
        strange = sorted(set(self.weights) - set(variants))
        if strange or not any(weight > 0 for weight in self.weights.values()) or min(self.weights.values()) < 0:
            raise ConfigurationError(
                f"the traffic of endpoint {self.name} cannot be set so", expected=f"weights of {', '.join(variants)}",
                found=", ".join(f"{name}: {weight}" for name, weight in self.weights.items()),
            )  # fmt: skip
        if self._reached(found):
            return []
        if found["EndpointStatus"] != "InService":
            raise JobError(f"endpoint {self.name} is {found['EndpointStatus']}", todo="wait for it; a retry goes on")
        wanted = [{"VariantName": name, "DesiredWeight": float(weight)} for name, weight in self.weights.items()]
        params = {"EndpointName": self.name, "DesiredWeightsAndCapacities": wanted}
        return [(_SERVICE, "update_endpoint_weights_and_capacities", params)]

    def status(self, job_id: str) -> JobStatus:
        """Done is when the endpoint serves with the weights."""
        found = self.endpoint()
        if found is None:
            return JobStatus(JobState.FAILED, f"endpoint {self.name} is gone")
        if found["EndpointStatus"] == "Updating":
            return JobStatus(JobState.RUNNING, "Updating")
        if self._reached(found):
            return JobStatus(JobState.SUCCEEDED)
        return JobStatus(JobState.FAILED, found.get("FailureReason") or f"its weights stay as they were: {found}"[:500])

    def result(self, job_id: str) -> dict[str, Any]:
        """The weights."""
        return {"endpoint": self.name, "weights": dict(self.weights)}

    def _reached(self, found: Mapping[str, Any]) -> bool:
        now = {item["VariantName"]: item.get("CurrentWeight") for item in found.get("ProductionVariants", [])}
        return found["EndpointStatus"] == "InService" and all(
            abs((now.get(name) or 0.0) - weight) < 1e-6 for name, weight in self.weights.items()
        )


@dataclass(frozen=True, kw_only=True)
class SageMakerRemoval(_EndpointChange):
    """The removal of an endpoint with its scaling, its configurations and, where wanted, the models.

    What was made for the endpoint is found by its name and its tag, so that a try that ended once the endpoint was gone
    is gone on with.
    """

    models: bool = True

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Delete the endpoint; one that is gone already is well. Gives the names of what is deleted with it."""
        found = self.endpoint()
        if found is None:
            return ""
        if found["EndpointStatus"] in ("Creating", "Updating", "RollingBack", "SystemUpdating"):
            raise JobError(f"endpoint {self.name} is {found['EndpointStatus']}", todo="wait for it; a retry goes on")
        for service, operation, params in self._first_calls(found):
            self._quietly(service, operation, **params)
        return str(found["EndpointConfigName"])

    def plan(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The calls that are left to make: service, operation and parameters."""
        found = self.endpoint()
        if found is None:
            return self._last_calls("")
        return self._first_calls(found) + self._last_calls(found["EndpointConfigName"])

    def status(self, job_id: str) -> JobStatus:
        """Done is when the endpoint is gone."""
        found = self.endpoint()
        if found is None:
            return JobStatus(JobState.SUCCEEDED)
        gone = found["EndpointStatus"] == "Deleting"
        return JobStatus(JobState.RUNNING if gone else JobState.FAILED, found["EndpointStatus"])

    def result(self, job_id: str) -> dict[str, Any]:
        """Delete the configurations and the models, too, and tell what was deleted."""
        deleted = [self.name]
        for service, operation, params in self._last_calls(job_id):
            self._quietly(service, operation, **params)
            deleted += params.values()
        return {"endpoint": self.name, "deleted": sorted(set(deleted))}

    def _first_calls(self, found: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
        """The scaling goes, and the endpoint."""
        calls: list[tuple[str, str, dict[str, Any]]] = []
        for variant in found.get("ProductionVariants", []):
            target = {
                "ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{self.name}/variant/{variant['VariantName']}",
                "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
            }  # fmt: skip
            calls.append(("application-autoscaling", "deregister_scalable_target", target))
        if found["EndpointStatus"] != "Deleting":
            calls.append((_SERVICE, "delete_endpoint", {"EndpointName": self.name}))
        return calls

    def _last_calls(self, name: str) -> list[tuple[str, str, dict[str, Any]]]:
        """The configurations go when the endpoint is gone, and the models where that is wanted.

        :param name: of the configuration that it served last; empty when nobody knows any more.
        """
        configs, models = self._made("endpoint_config"), self._made("model")
        if name:
            try:
                config = self.call(_SERVICE, "describe_endpoint_config", EndpointConfigName=name)
            except AwsRefused as error:
                if "Could not find" not in error.said:
                    raise
            else:
                variants = config["ProductionVariants"] + config.get("ShadowProductionVariants", [])
                configs, models = configs | {name}, models | {variant["ModelName"] for variant in variants}
        return [
            *((_SERVICE, "delete_endpoint_config", {"EndpointConfigName": each}) for each in sorted(configs)),
            *((_SERVICE, "delete_model", {"ModelName": each}) for each in sorted(models) if self.models),
        ]

    def _made(self, kind: str) -> set[str]:
        """What was made for this endpoint: its names begin with the endpoint's, and its tag names it.

        :param kind: ``endpoint_config`` or ``model``.
        """
        key = {"endpoint_config": "EndpointConfig", "model": "Model"}[kind]
        found, more = set[str](), dict[str, str]()
        while True:
            page = self.call(_SERVICE, f"list_{kind}s", NameContains=name_start(self.name), MaxResults=100, **more)
            for item in page[f"{key}s"]:
                if not item[f"{key}Name"].startswith(name_start(self.name)):
                    continue
                tags = self.call(_SERVICE, "list_tags", ResourceArn=item[f"{key}Arn"])["Tags"]
                if {"Key": ENDPOINT_TAG, "Value": self.name} in tags:
                    found.add(item[f"{key}Name"])
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    def _quietly(self, service: str, operation: str, **params: Any) -> None:
        try:
            self.call(service, operation, **params)
        except AwsRefused as error:
            if "Could not find" not in error.said and error.code != "ObjectNotFoundException":
                raise
