"""SageMaker's hosting: models, endpoint configurations, and endpoints with their roll-outs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.aws.errors import invalid
from airflow_provider_sml.testing.aws.fleet import Fleet, plan_update
from airflow_provider_sml.testing.core import Behaviour, Timeline
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_"
_GUARDS = "https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-blue-green.html"
_NOT_HEALTHY = (
    "The primary container for production variant {variant} did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)
#: Phases of a roll-out in which both fleets are up; other phases have the endpoint's own states.
BAKING = "Baking"
_STATUS = {BAKING: "Updating", "Shifting": "Updating"}


@dataclass
class Endpoint:
    """An endpoint.

    :param name: of it.
    :param fleet: what serves, or is being made.
    :param timeline: of its status.
    :param created: seconds since the epoch.
    :param pending: what an update brings.
    :param previous: what served before the last update that ended well.
    :param alarms: the alarms whose state rolls the update back.
    :param rolls_back: whether the update that runs ends on the old configuration.
    :param reason: what the service says about the last failure.
    """

    name: str
    fleet: Fleet
    timeline: Timeline
    created: float
    pending: Fleet | None = None
    alarms: list[str] = field(default_factory=list)
    rolls_back: bool = False
    reason: str = ""
    deployment: dict[str, Any] | None = None
    tags: list[dict[str, str]] = field(default_factory=list)


class Hosting:
    """The operations on models, endpoint configurations and endpoints.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("sagemaker", "An update that is rolled back ends InService on the old configuration.",
                  DOCUMENTED, _GUARDS),
        Behaviour("sagemaker", "FailureReason may be empty after a roll-back.", REPORTED,
                  "https://github.com/aws/sagemaker-python-sdk/issues: roll-backs without a reason"),
        Behaviour("sagemaker", "An alarm of AutoRollbackConfiguration in ALARM during the roll-out rolls it back.",
                  DOCUMENTED, _GUARDS),
        Behaviour("sagemaker", "Canary: CanarySize first, WaitIntervalInSeconds, then all; linear in LinearStepSize; "
                  "the old fleet ends after TerminationWaitInSeconds.", DOCUMENTED, _GUARDS),
        Behaviour("sagemaker", "While an endpoint is being made or updated, an update or a deletion is refused.",
                  REPORTED, "the message is: Cannot update in-progress endpoint"),
        Behaviour("sagemaker", "During an update DescribeEndpoint names the old configuration, and the new one in "
                  "PendingDeploymentSummary.", DOCUMENTED, f"{_API}PendingDeploymentSummary.html"),
        Behaviour("sagemaker", "An endpoint that is not there is ValidationException: Could not find endpoint.",
                  REPORTED, "https://github.com/aws/aws-cli/issues: Could not find endpoint"),
        Behaviour("sagemaker", "A configuration may be deleted while an endpoint serves it.", DOCUMENTED,
                  f"{_API}DeleteEndpointConfig.html"),
        Behaviour("sagemaker", "A shadow needs exactly one production and one shadow variant, neither serverless nor "
                  "asynchronous.", DOCUMENTED, f"{_API}CreateEndpointConfig.html"),
        Behaviour("sagemaker", "There are no spot machines for endpoints: no member of the model asks for them.",
                  DOCUMENTED, f"{_API}ProductionVariant.html"),
        Behaviour("sagemaker", "Creating takes 300 s, serverless 60 s; a new fleet 240 s; a roll-back 120 s.", ASSUMED,
                  "round figures in the range that users see"),
        Behaviour("sagemaker", "A fleet that cannot be scaled down bills for each machine until its endpoint is "
                  "deleted; an asynchronous one with a minimum of 0 bills only 15 minutes past the last request.",
                  ASSUMED, "the delay follows the scale-in cooldown"),
    )  # fmt: skip

    #: Seconds until an endpoint serves, until a new fleet is up, and that a roll-back takes.
    creating_seconds, fleet_seconds, rollback_seconds = 300.0, 240.0, 120.0

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self._made: dict[str, float] = {}

    # --- models ---------------------------------------------------------------------------------------------------

    def create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ModelName"]
        if name in self.models:
            raise invalid(f'Cannot create already existing model "{self._arn("model", name)}".')
        if "PrimaryContainer" not in request and "Containers" not in request:
            raise invalid("A model needs a primary container or containers")
        if "ExecutionRoleArn" not in request:
            raise invalid("ExecutionRoleArn is required")
        self.models[name] = self._keep("model", name, request)
        return {"ModelArn": self._arn("model", name)}

    def describe_model(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ModelName"]
        found = _find(self.models, name, f'Could not find model "{self._arn("model", name)}".')
        return _without_tags(found) | {
            "ModelArn": self._arn("model", name),
            "CreationTime": moment(self._made["model/" + name]),
        }

    def delete_model(self, request: dict[str, Any]) -> None:
        name = request["ModelName"]
        _find(self.models, name, f'Could not find model "{self._arn("model", name)}".')
        del self.models[name]

    def list_models(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Models": self._summaries("Model", self.models, request)}

    # --- endpoint configurations ----------------------------------------------------------------------------------

    def create_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        arn = self._arn("endpoint-config", name)
        if name in self.configs:
            raise invalid(f'Cannot create already existing endpoint configuration "{arn}".')
        self._check_config(request)
        self.configs[name] = self._keep("endpoint-config", name, request)
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        arn = self._arn("endpoint-config", name)
        found = _find(self.configs, name, f'Could not find endpoint configuration "{arn}".')
        return _without_tags(found) | {
            "EndpointConfigArn": arn,
            "CreationTime": moment(self._made["endpoint-config/" + name]),
        }

    def delete_endpoint_config(self, request: dict[str, Any]) -> None:
        name = request["EndpointConfigName"]
        _find(self.configs, name, f'Could not find endpoint configuration "{self._arn("endpoint-config", name)}".')
        del self.configs[name]

    def list_endpoint_configs(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"EndpointConfigs": self._summaries("EndpointConfig", self.configs, request)}

    # --- endpoints ------------------------------------------------------------------------------------------------

    def create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, now = request["EndpointName"], self.cloud.clock.now()
        if self._settled(name) is not None:
            raise invalid(f'Cannot create already existing endpoint "{self._arn("endpoint", name)}".')
        fleet = self._fleet(name, request["EndpointConfigName"])
        seconds = 60.0 if fleet.serverless else self.creating_seconds
        faults = self.cloud.faults
        if slow := faults.take(["slow"], "CreateEndpoint", name):
            seconds += float(slow.detail.get("seconds", 1800))
        fault = faults.take(["fail", "no_capacity"], "CreateEndpoint", name)
        endpoint = Endpoint(name, fleet, Timeline(now, [("Creating", seconds, ""), ("InService", 0, "")]), now)
        endpoint.tags = list(request.get("Tags", []))
        if fault:
            endpoint.reason = _reason(fault.kind, fault.detail, fleet)
            endpoint.timeline = Timeline(now, [("Creating", seconds, ""), ("Failed", 0, "")])
        else:
            fleet.open(now + seconds)
        self.endpoints[name] = endpoint
        return {"EndpointArn": self._arn("endpoint", name)}

    def update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, now = request["EndpointName"], self.cloud.clock.now()
        endpoint = self.in_peace(name)
        fleet = self._fleet(name, request["EndpointConfigName"])
        deployment = request.get("DeploymentConfig")
        faults = self.cloud.faults
        fault = faults.take(["roll_back", "fail", "no_capacity"], "UpdateEndpoint", name)
        endpoint.pending, endpoint.deployment, endpoint.reason = fleet, deployment, ""
        rollback = (deployment or {}).get("AutoRollbackConfiguration", {})
        endpoint.alarms = [alarm["AlarmName"] for alarm in rollback.get("Alarms", [])]
        self._check_alarms(endpoint.alarms)
        slow = faults.take(["slow"], "UpdateEndpoint", name)
        fleet.opened = now + self.fleet_seconds + (float(slow.detail.get("seconds", 1800)) if slow else 0)
        steps = plan_update(fleet, deployment, fleet.opened - now)
        if fault is None:
            endpoint.timeline.change(now, [*steps, ("InService", 0, "")])
            if any(self.cloud.cloudwatch.in_alarm(alarm) for alarm in endpoint.alarms):
                self._roll_back(endpoint, fleet.opened)
        else:
            endpoint.reason = "" if fault.kind == "roll_back" else _reason(fault.kind, fault.detail, fleet)
            endpoint.reason = str(fault.detail.get("reason", endpoint.reason))
            if fault.kind == "roll_back":
                self.cloud.cloudwatch.will_alarm(endpoint.alarms[:1], fleet.opened + 1)
            endpoint.rolls_back = True
            endpoint.timeline.change(
                now, [*steps[:2], ("RollingBack", self.rollback_seconds, ""), ("InService", 0, "")]
            )
        return {"EndpointArn": self._arn("endpoint", name)}

    def alarm_raised(self, alarm: str) -> None:
        """Roll back what is being rolled out under an alarm."""
        now = self.cloud.clock.now()
        for endpoint in self.endpoints.values():
            self._settled(endpoint.name)
            updating = endpoint.timeline.at(now).state in ("Updating", *_STATUS)
            if endpoint.pending is not None and alarm in endpoint.alarms and updating and not endpoint.rolls_back:
                self._roll_back(endpoint, max(now, endpoint.pending.opened))

    def update_endpoint_weights_and_capacities(self, request: dict[str, Any]) -> dict[str, Any]:
        name, now = request["EndpointName"], self.cloud.clock.now()
        endpoint = self.in_peace(name)
        for wanted in request["DesiredWeightsAndCapacities"]:
            variant = endpoint.fleet.variants.get(wanted["VariantName"])
            if variant is None:
                raise invalid(f"The variant name(s) {wanted['VariantName']!r} is not present within endpoint {name}")
            variant.weight = wanted.get("DesiredWeight", variant.weight)
            endpoint.fleet.resize(wanted["VariantName"], wanted.get("DesiredInstanceCount", variant.count), now)
        endpoint.timeline.change(now, [("Updating", 60, ""), ("InService", 0, "")])
        return {"EndpointArn": self._arn("endpoint", name)}

    def describe_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointName"]
        endpoint, now = self.endpoint(name), self.cloud.clock.now()
        phase = endpoint.timeline.at(now)
        found = {
            "EndpointName": name,
            "EndpointArn": self._arn("endpoint", name),
            "EndpointConfigName": endpoint.fleet.config,
            "EndpointStatus": _STATUS.get(phase.state, phase.state),
            "CreationTime": moment(endpoint.created),
            "LastModifiedTime": moment(phase.start),
        }
        if phase.state not in ("Creating", "Failed"):
            found["ProductionVariants"] = endpoint.fleet.summaries(now)
            if shadows := endpoint.fleet.summaries(now, shadow=True):
                found["ShadowProductionVariants"] = shadows
        config = self.configs.get(endpoint.fleet.config, {})
        if "AsyncInferenceConfig" in config:
            found["AsyncInferenceConfig"] = config["AsyncInferenceConfig"]
        if capture := config.get("DataCaptureConfig"):
            found["DataCaptureConfig"] = {
                "EnableCapture": capture.get("EnableCapture", True), "CaptureStatus": "Started",
                "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
                "DestinationS3Uri": capture["DestinationS3Uri"], "KmsKeyId": capture.get("KmsKeyId", ""),
            }  # fmt: skip
        if endpoint.reason and phase.state in ("Failed", "InService"):
            found["FailureReason"] = endpoint.reason
        if endpoint.pending is not None:
            found["PendingDeploymentSummary"] = {
                "EndpointConfigName": endpoint.pending.config,
                "StartTime": moment(endpoint.timeline.began(("Updating",), now) or now),
            }
        if endpoint.deployment:
            found["LastDeploymentConfig"] = endpoint.deployment
        return found

    def delete_endpoint(self, request: dict[str, Any]) -> None:
        name, now = request["EndpointName"], self.cloud.clock.now()
        endpoint = self.in_peace(name, also=("Failed", "OutOfService"))
        endpoint.fleet.close(now)
        endpoint.timeline.change(now, [("Deleting", 30, ""), ("Deleted", 0, "")])

    def list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        now, found = self.cloud.clock.now(), []
        for name in list(self.endpoints):
            endpoint = self._settled(name)
            if endpoint is None or request.get("NameContains", "") not in name:
                continue
            phase = endpoint.timeline.at(now)
            status = _STATUS.get(phase.state, phase.state)
            if request.get("StatusEquals", status) == status:
                found.append(
                    {
                        "EndpointName": name, "EndpointArn": self._arn("endpoint", name), "EndpointStatus": status,
                        "CreationTime": moment(endpoint.created), "LastModifiedTime": moment(phase.start),
                    }
                )  # fmt: skip
        return {"Endpoints": found[: request.get("MaxResults", 100)]}

    # --- what the other services ask ------------------------------------------------------------------------------

    def endpoint(self, name: str) -> Endpoint:
        """An endpoint as it is now.

        :raises AwsError: when there is none.
        """
        endpoint = self._settled(name)
        if endpoint is None:
            raise invalid(f'Could not find endpoint "{self._arn("endpoint", name)}".')
        return endpoint

    def in_peace(self, name: str, also: tuple[str, ...] = ()) -> Endpoint:
        """An endpoint that nothing is being done to.

        :raises AwsError: when there is none, or something is.
        """
        endpoint = self.endpoint(name)
        if endpoint.timeline.at(self.cloud.clock.now()).state not in ("InService", *also):
            raise invalid(f'Cannot update in-progress endpoint "{self._arn("endpoint", name)}".')
        return endpoint

    def tags_of(self, kind: str, name: str) -> list[dict[str, str]]:
        """Tags of a model, a configuration or an endpoint."""
        if kind == "endpoint":
            return self.endpoint(name).tags
        kept = {"model": self.models, "endpoint-config": self.configs}.get(kind, {})
        return list(_find(kept, name, "Requested resource not found.").get("Tags", []))

    # --- the parts ------------------------------------------------------------------------------------------------

    def _settled(self, name: str) -> Endpoint | None:
        """The endpoint, with what has ended by now brought to its end."""
        endpoint, now = self.endpoints.get(name), self.cloud.clock.now()
        if endpoint is None:
            return None
        state = endpoint.timeline.at(now).state
        if state == "Deleted":
            del self.endpoints[name]
            self.cloud.autoscaling.forget(name)
            return None
        if state == "InService" and endpoint.pending is not None:
            end = endpoint.timeline.at(now).start
            if endpoint.rolls_back:
                endpoint.pending.close(end)
            else:
                endpoint.fleet.close(end)
                endpoint.fleet = endpoint.pending
            endpoint.pending, endpoint.rolls_back = None, False
        return endpoint

    def _roll_back(self, endpoint: Endpoint, at: float) -> None:
        """Go back to the old configuration from a time on."""
        now = self.cloud.clock.now()
        endpoint.rolls_back = True
        before = [("Updating", at - now, "")] if at > now else []
        endpoint.timeline.change(now, [*before, ("RollingBack", self.rollback_seconds, ""), ("InService", 0, "")])

    def _fleet(self, endpoint: str, config_name: str) -> Fleet:
        missing = f'Could not find endpoint configuration "{self._arn("endpoint-config", config_name)}".'
        config = _find(self.configs, config_name, missing)
        return Fleet(config_name, config, endpoint, self.cloud)

    def _check_config(self, request: dict[str, Any]) -> None:
        variants, shadows = request["ProductionVariants"], request.get("ShadowProductionVariants", [])
        for variant in [*variants, *shadows]:
            if (name := variant.get("ModelName")) is not None:
                _find(self.models, name, f'Could not find model "{self._arn("model", name)}".')
            if "ServerlessConfig" in variant and ("InstanceType" in variant or "InitialInstanceCount" in variant):
                raise invalid("A serverless variant takes no InstanceType and no InitialInstanceCount")
            if "ServerlessConfig" not in variant and not {"InstanceType", "InstancePools"} & set(variant):
                raise invalid(f"Variant {variant['VariantName']} needs an InstanceType or a ServerlessConfig")
        if shadows:
            serverless = any("ServerlessConfig" in variant for variant in [*variants, *shadows])
            if len(variants) != 1 or len(shadows) != 1 or serverless or "AsyncInferenceConfig" in request:
                raise invalid(
                    "Shadow tests need exactly one production and one shadow variant, not serverless, not asynchronous"
                )

    def _check_alarms(self, names: list[str]) -> None:
        for name in names:
            if name not in self.cloud.cloudwatch.alarms:
                raise invalid(f"Could not find CloudWatch alarm {name}")

    def _keep(self, kind: str, name: str, request: dict[str, Any]) -> dict[str, Any]:
        self._made[f"{kind}/{name}"] = self.cloud.clock.now()
        return request

    def _summaries(self, kind: str, kept: dict[str, Any], request: dict[str, Any]) -> list[dict[str, Any]]:
        place = {"Model": "model", "EndpointConfig": "endpoint-config"}[kind]
        found = [
            {
                f"{kind}Name": name, f"{kind}Arn": self._arn(place, name),
                "CreationTime": moment(self._made[f"{place}/{name}"]),
            }
            for name in kept
            if request.get("NameContains", "") in name
        ]  # fmt: skip
        return found[: request.get("MaxResults", 100)]

    def _arn(self, kind: str, name: str) -> str:
        return self.cloud.arn("sagemaker", f"{kind}/{name}")


def _find(kept: dict[str, Any], name: str, message: str) -> dict[str, Any]:
    if name not in kept:
        raise invalid(message)
    return dict(kept[name])


def _without_tags(request: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key != "Tags"}


def _reason(kind: str, detail: dict[str, Any], fleet: Fleet) -> str:
    variant = next(iter(fleet.variants))
    standard = (
        f"Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error for {variant}. "
        "Please retry using a different ML instance type or after some time."
        if kind == "no_capacity"
        else _NOT_HEALTHY.format(variant=variant)
    )
    return str(detail.get("reason", standard))
