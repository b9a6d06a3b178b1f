"""Application Auto Scaling: targets and policies of endpoints; nothing scales but an idle asynchronous fleet to 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.aws.errors import AwsError, invalid
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/autoscaling/application/APIReference/API_"


class Autoscaling:
    """Scalable targets and scaling policies.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("application-autoscaling", "A policy needs a registered target.", DOCUMENTED,
                  f"{_API}PutScalingPolicy.html"),
        Behaviour("application-autoscaling", "Registering a target again changes its limits.", DOCUMENTED,
                  f"{_API}RegisterScalableTarget.html"),
        Behaviour("application-autoscaling", "Only an asynchronous endpoint may have a minimum of 0.", DOCUMENTED,
                  "https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html"),
        Behaviour("application-autoscaling", "Targets go with their endpoint.", ASSUMED, "keeps the fake tidy"),
    )  # fmt: skip

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}

    def register_scalable_target(self, request: dict[str, Any]) -> dict[str, Any]:
        resource = request["ResourceId"]
        fleet = self._fleet(resource)
        known = self.targets.get(resource, {})
        least, most = (request.get(key, known.get(key)) for key in ("MinCapacity", "MaxCapacity"))
        if least is None or most is None or least > most:
            raise invalid("MinCapacity and MaxCapacity are needed, MinCapacity not above MaxCapacity")
        if least == 0 and not fleet.asynchronous:
            raise invalid("Minimum capacity can only be zero for asynchronous endpoints")
        arn = self.cloud.arn("application-autoscaling", f"scalable-target/{abs(hash(resource)) % 10**12:012d}")
        self.targets[resource] = {
            "ServiceNamespace": request["ServiceNamespace"], "ResourceId": resource, "MinCapacity": least,
            "ScalableDimension": request["ScalableDimension"], "MaxCapacity": most, "ScalableTargetARN": arn,
            "RoleARN": request.get("RoleARN", self.cloud.arn("iam", "role/aws-service-role/sagemaker")),
            "CreationTime": self.cloud.clock.moment(),
        }  # fmt: skip
        return {"ScalableTargetARN": arn}

    def deregister_scalable_target(self, request: dict[str, Any]) -> None:
        if self.targets.pop(request["ResourceId"], None) is None:
            raise AwsError("ObjectNotFoundException", f"No scalable target found for {request['ResourceId']}")
        self.policies = {key: value for key, value in self.policies.items() if key[0] != request["ResourceId"]}

    def describe_scalable_targets(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("ResourceIds")
        return {"ScalableTargets": [value for key, value in self.targets.items() if not wanted or key in wanted]}

    def put_scaling_policy(self, request: dict[str, Any]) -> dict[str, Any]:
        resource = request["ResourceId"]
        if resource not in self.targets:
            raise AwsError("ObjectNotFoundException", f"No scalable target registered for {resource}")
        arn = self.cloud.arn("autoscaling", f"scalingPolicy:0:resource/sagemaker/{resource}:{request['PolicyName']}")
        kept = {"PolicyARN": arn, "CreationTime": self.cloud.clock.moment(), "PolicyType": "TargetTrackingScaling"}
        self.policies[resource, request["PolicyName"]] = kept | request
        return {"PolicyARN": arn, "Alarms": []}

    def describe_scaling_policies(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("ResourceId")
        return {"ScalingPolicies": [value for (key, _), value in self.policies.items() if wanted in (None, key)]}

    def delete_scaling_policy(self, request: dict[str, Any]) -> None:
        if self.policies.pop((request["ResourceId"], request["PolicyName"]), None) is None:
            raise AwsError("ObjectNotFoundException", f"No scaling policy found for {request['ResourceId']}")

    def minimum(self, endpoint: str) -> int | None:
        """The lowest number of machines of an endpoint's variant, when a target says so."""
        found = [value for key, value in self.targets.items() if key.startswith(f"endpoint/{endpoint}/")]
        return min((int(value["MinCapacity"]) for value in found), default=None)

    def forget(self, endpoint: str) -> None:
        """The endpoint is gone."""
        self.targets = {k: v for k, v in self.targets.items() if not k.startswith(f"endpoint/{endpoint}/")}
        self.policies = {k: v for k, v in self.policies.items() if not k[0].startswith(f"endpoint/{endpoint}/")}

    def _fleet(self, resource: str) -> Any:
        parts = resource.split("/")
        if len(parts) != 4 or parts[0] != "endpoint" or parts[2] != "variant":
            raise invalid(f"{resource} is not endpoint/NAME/variant/NAME")
        fleet = self.cloud.sagemaker.endpoint(parts[1]).fleet
        if parts[3] not in fleet.variants:
            raise invalid(f"endpoint {parts[1]} has no variant {parts[3]}")
        return fleet
