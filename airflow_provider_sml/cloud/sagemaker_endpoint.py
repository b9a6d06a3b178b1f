"""A version on a SageMaker endpoint: model, configuration and roll-out under versioned names.

The names hold the version and a hash of what is deployed, so a repeat finds what it made. Whether a roll-out went well
is told by the configuration that the endpoint serves in the end, not by its status: after a roll-back SageMaker is
InService again, on the old one. What a failed roll-out made is deleted; the old version serves on.

SageMaker has no way to cancel a roll-out that runs; what is cancelled then is left, and told so, and a retry attaches.
Endpoints cannot run on spot machines: see ``EndpointSpec``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.cloud.aws import AwsJob, AwsRefused
from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.cloud.sagemaker_spec import CHAMPION, EndpointSpec, versioned
from airflow_provider_sml.errors import DeploymentError, JobError

_SERVICE, _SCALING = "sagemaker", "application-autoscaling"
_BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_PREVIOUS = "sml-previous"
#: Tag of a model and a configuration: the endpoint that they were made for.
ENDPOINT_TAG = "sml-endpoint"
#: Seconds between looks where something is waited for inside a verb.
POLL_SECONDS = 5.0


def find_endpoint(job: AwsJob) -> Any:
    """The endpoint of a job's name as SageMaker describes it, or None."""
    try:
        return job.call(_SERVICE, "describe_endpoint", EndpointName=job.name)
    except AwsRefused as error:
        if "Could not find" in error.said:
            return None
        raise


@dataclass(frozen=True, kw_only=True)
class SageMakerRollout(AwsJob):
    """The roll-out of one version to one endpoint; ``name`` is the endpoint's.

    :param version: of the model.
    :param spec: what is deployed and how: the values of an ``EndpointSpec``.
    """

    version: str
    spec: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the roll-out, or attach to it; gives its configuration's name and the one that served before.

        :raises JobError: when another roll-out runs on the endpoint.
        """
        current = self.endpoint()
        if current and current["EndpointStatus"] == "Failed":  # it serves nothing, and cannot be updated
            self._delete_failed()
            current = None
        config = self.config(current)
        serving = current["EndpointConfigName"] if current else ""
        if serving == config:
            return f"{config}/{self._previous()}"
        pending = (current or {}).get("PendingDeploymentSummary", {}).get("EndpointConfigName")
        if pending == config:
            return f"{config}/{serving}"
        if current and current["EndpointStatus"] in _BUSY:
            raise JobError(
                f"endpoint {self.name} is {current['EndpointStatus']}", expected="an endpoint at rest",
                found=f"a change to {pending or serving}", todo="wait for it; a retry tries again",
            )  # fmt: skip
        for service, operation, params in self.calls(current):
            self._make(service, operation, params)
        return f"{config}/{serving}"

    def status(self, job_id: str) -> JobStatus:
        """Where the roll-out stands; done is when the endpoint serves this configuration."""
        config = job_id.partition("/")[0]
        found = self.endpoint()
        if found is None:
            return JobStatus(JobState.FAILED, f"endpoint {self.name} is gone", leftover=True)
        state, serving = found["EndpointStatus"], found.get("EndpointConfigName", "")
        if state in _BUSY:
            return JobStatus(JobState.RUNNING, state, (f"endpoint {self.name}: {state}, serves {serving}",))
        if state == "InService" and serving == config:
            return JobStatus(JobState.SUCCEEDED)
        reason = found.get("FailureReason") or "SageMaker gave no reason"
        capacity = "capacity" in reason.lower()
        if state == "InService":
            alarms = self._alarms()
            said = (
                f"endpoint {self.name} serves config {serving} again, not {config} ({reason})\n"
                f"  alarms in ALARM during the roll-out: {', '.join(alarms) or 'none'}. "
                f"Version {self.version} got no alias; config {config} was deleted, nothing bills.\n"
                f"  to do: read the container's log (/aws/sagemaker/Endpoints/{self.name}), fix, and clear this task; "
                "it starts a new roll-out."
            )
            return JobStatus(JobState.FAILED, said, configuration=not capacity, leftover=True)
        return JobStatus(JobState.FAILED, f"endpoint {self.name} is {state}: {reason}", leftover=True)

    def result(self, job_id: str) -> dict[str, Any]:
        """What serves now; the scaling of the spec is brought in place first, which a repeat does again."""
        config, _, previous = job_id.partition("/")
        self._scale(config)
        return {
            "endpoint": self.name,
            "config": config,
            "previous": previous,
            "model": config,
            "version": self.version,
            "cost_usd_per_hour": self.hourly_cost(),
        }

    def page(self, job_id: str) -> str:
        """The endpoint's page in the console."""
        return self.console(f"sagemaker/home?region={{region}}#/endpoints/{quote(self.name, safe='')}")

    def cancel(self, job_id: str) -> None:
        """Delete what a failed roll-out made; one that runs cannot be cancelled.

        :raises JobError: when it runs.
        """
        config = job_id.partition("/")[0]
        found = self.endpoint()
        if found and found["EndpointStatus"] in _BUSY:
            raise JobError(
                f"SageMaker cannot cancel the roll-out of {config} on endpoint {self.name}",
                found=found["EndpointStatus"], todo="a retry attaches to it; no alias has moved",
            )  # fmt: skip
        if found and found["EndpointStatus"] == "Failed":
            self._delete_failed()
        elif found and found.get("EndpointConfigName") == config:
            return  # it serves
        self._quietly("delete_endpoint_config", EndpointConfigName=config)
        self._quietly("delete_model", ModelName=config)

    # --- more than the verbs --------------------------------------------------------------------------------------

    def undo(self, job_id: str, within: float = 3600.0, sleep: Callable[[float], None] = time.sleep) -> str:
        """Take the version back: serve the previous configuration again, or delete an endpoint that had none.

        :param job_id: of the roll-out.
        :param within: seconds that it may take.
        :param sleep: waits between polls.
        :returns: what became of the endpoint, for a message.
        :raises DeploymentError: when it does not end.
        """
        config, _, previous = job_id.partition("/")
        found = self.endpoint()
        if found and found.get("EndpointConfigName") == config:
            if previous:
                self.call(_SERVICE, "update_endpoint", EndpointName=self.name, EndpointConfigName=previous)
            else:
                self.call(_SERVICE, "delete_endpoint", EndpointName=self.name)
        for _ in range(max(1, int(within / POLL_SECONDS))):
            found = self.endpoint()
            if found is None or found["EndpointStatus"] not in _BUSY:
                break
            sleep(POLL_SECONDS)
        serving = found["EndpointConfigName"] if found else ""
        if serving != previous:
            raise DeploymentError(
                f"endpoint {self.name} did not go back to {previous or 'nothing'}", found=serving or "no endpoint",
                todo=f"in the console: update the endpoint to {previous}, then delete config and model {config}",
            )  # fmt: skip
        self._quietly("delete_endpoint_config", EndpointConfigName=config)
        self._quietly("delete_model", ModelName=config)
        return f"serves {previous} again" if previous else "was deleted, for it had served nothing before"

    @cached_property
    def what(self) -> EndpointSpec:
        """The spec, checked."""
        return EndpointSpec.load(self.spec)

    def config(self, current: Mapping[str, Any] | None) -> str:
        """Name of the model and of the configuration."""
        beside = self._beside(current)
        return versioned(self.name, self.version, self.what, beside or "")

    def calls(self, current: Mapping[str, Any] | None) -> list[tuple[str, str, dict[str, Any]]]:
        """The exact calls of the roll-out: service, operation and parameters each.

        :param current: the endpoint as it is described, or None.
        """
        beside = self._beside(current)
        name = versioned(self.name, self.version, self.what, beside or "")
        serving = current["EndpointConfigName"] if current else ""
        config = self.what.config(name, beside)
        own = {"sml-version": self.version, ENDPOINT_TAG: self.name}
        config["Tags"] = self.aws_tags(**own, **{_PREVIOUS: serving})
        model = self.what.model(name, self.version) | {"Tags": self.aws_tags(**own)}
        made = [(_SERVICE, "create_model", model), (_SERVICE, "create_endpoint_config", config)]
        names = {"EndpointName": self.name, "EndpointConfigName": name}
        if current is None:
            return [*made, (_SERVICE, "create_endpoint", names | {"Tags": self.aws_tags()})]
        return [*made, (_SERVICE, "update_endpoint", names | self.what.deployment())]

    def scaling_calls(self, config: str) -> list[tuple[str, str, dict[str, Any]]]:
        """The calls that bring the scaling in place."""
        return [(_SCALING, operation, params) for operation, params in self.what.scaling_calls(self.name)]

    def hourly_cost(self) -> float | None:
        """USD per hour of what is made new; None when the price is not known or depends on use."""
        found = price(self.what.instance, self.prices) if self.what.instance else None
        return None if found is None else round(found * self.what.count, 4)

    def endpoint(self) -> Any:
        """The endpoint as SageMaker describes it, or None."""
        return find_endpoint(self)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _beside(self, current: Mapping[str, Any] | None) -> str | None:
        """The model that serves on beside the new one: the champion of an A/B test or of a shadow."""
        if self.what.mode == "replace":
            return None
        if not current:
            raise DeploymentError(
                f"endpoint {self.name} serves nothing that a {self.what.mode} test could be held against",
                expected="an endpoint with a champion", found="no endpoint", todo="deploy a champion first",
            )  # fmt: skip
        config = self.call(_SERVICE, "describe_endpoint_config", EndpointConfigName=current["EndpointConfigName"])
        variants = {item["VariantName"]: item["ModelName"] for item in config["ProductionVariants"]}
        return str(variants.get(CHAMPION) or next(iter(variants.values())))

    def _make(self, service: str, operation: str, params: dict[str, Any]) -> None:
        """Make one thing; one that our own call has made already, its reply lost, is taken as it is."""
        try:
            self.call(service, operation, **params)
        except AwsRefused as error:
            if operation in ("create_model", "create_endpoint_config") and "already existing" in error.said:
                return
            if operation in ("create_endpoint", "update_endpoint") and self._runs(params["EndpointConfigName"]):
                return
            raise

    def _runs(self, config: str) -> bool:
        found = self.endpoint() or {}
        pending = found.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
        return config in (pending, found.get("EndpointConfigName"))

    def _previous(self) -> str:
        """What served before a configuration that serves already, as its tags tell."""
        arn = self.call(
            _SERVICE, "describe_endpoint_config", EndpointConfigName=(self.endpoint() or {})["EndpointConfigName"]
        )["EndpointConfigArn"]
        tags = self.call(_SERVICE, "list_tags", ResourceArn=arn)["Tags"]
        return next((tag["Value"] for tag in tags if tag["Key"] == _PREVIOUS), "")

    def _alarms(self) -> list[str]:
        names = list(self.what.alarms)
        if not names:
            return []
        found = self.call("cloudwatch", "describe_alarms", AlarmNames=names, StateValue="ALARM")
        return [alarm["AlarmName"] for alarm in found["MetricAlarms"]]

    def _scale(self, config: str) -> None:
        for service, operation, params in self.scaling_calls(config):
            self.call(service, operation, **params)

    def _delete_failed(self) -> None:
        """Delete an endpoint that failed, and wait until it is gone."""
        self._quietly("delete_endpoint", EndpointName=self.name)
        for _ in range(60):
            if self.endpoint() is None:
                return
            time.sleep(POLL_SECONDS)
        raise JobError(f"the failed endpoint {self.name} is still being deleted", todo="a retry goes on")

    def _quietly(self, operation: str, **params: Any) -> None:
        """Delete something that may be gone already."""
        try:
            self.call(_SERVICE, operation, **params)
        except AwsRefused as error:
            if "Could not find" not in error.said:
                raise
