"""What is deployed to a SageMaker endpoint, and how: one checked value, compiled into the parts of API requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from airflow_provider_sml.cloud.remote_job import spec_hash
from airflow_provider_sml.errors import ConfigurationError

#: Names of the variants: the one that serves, and the one that is tried beside it.
CHAMPION, CHALLENGER = "champion", "challenger"
_ROLLOUTS = ("canary", "linear", "blue-green", "rolling", "all-at-once")
CONTAINERS = ("ours", "xgboost")
_MODES = ("replace", "ab", "shadow")
_DIMENSION = "sagemaker:variant:DesiredInstanceCount"


@dataclass(frozen=True, kw_only=True)
class EndpointSpec:
    """One version on an endpoint. Exactly one of ``instance`` and ``serverless`` says where it runs.

    :param image: the scoring container.
    :param container: what it is: ``ours``, built of ``docker/scoring.Dockerfile``, or ``xgboost``, SageMaker's own
        XGBoost image, which takes encoded features as CSV and does not recalibrate.
    :param model_data: S3 address of the model.tar.gz.
    :param role: ARN of the role that it runs as.
    :param instance: machine type.
    :param count: machines at the start.
    :param serverless: ``{"memory_mb": 2048, "concurrency": 5}``, and ``"provisioned"`` where wanted.
    :param asynchronous: requests come from S3: ``{"output": "s3://...", "failures": "s3://..."}``.
    :param scaling: ``{"min": 1, "max": 4, "target": 1000}``: requests per minute and machine, or for asynchronous
        endpoints waiting requests per machine; a minimum of 0 for asynchronous ones only.
    :param rollout: ``canary``, ``linear``, ``blue-green``, ``rolling`` or ``all-at-once``.
    :param step: percent of the machines in the canary, in a linear step, or in a rolling batch.
    :param wait: seconds between steps.
    :param terminate_after: seconds that the old machines stay after the last step.
    :param alarms: CloudWatch alarms that roll the roll-out back.
    :param mode: ``replace`` the version that serves; ``ab``: share the traffic with it; ``shadow``: see a copy of it.
    :param percent: of the traffic for the new version with ``ab``.
    :param capture: log requests: ``{"uri": "s3://...", "percent": 100}``.
    :param environment: variables of the container.
    :param kms_key: encrypts the disks, and what is captured.
    :param subnets: of the VPC that it runs in.
    :param security_groups: in that VPC.
    :param network_isolation: the container reaches no network.
    """

    image: str
    model_data: str
    role: str
    container: str = "ours"
    instance: str = ""
    count: int = 1
    serverless: Mapping[str, int] = field(default_factory=dict)
    asynchronous: Mapping[str, str] = field(default_factory=dict)
    scaling: Mapping[str, float] = field(default_factory=dict)
    rollout: str = "canary"
    step: int = 10
    wait: int = 600
    terminate_after: int = 120
    alarms: tuple[str, ...] = ()
    mode: str = "replace"
    percent: float = 10.0
    capture: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    kms_key: str = ""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    network_isolation: bool = False

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Check values and take them.

        :raises ConfigurationError: naming what is wrong.
        """
        known = {item.name for item in fields(cls)}
        if "spot" in values:
            raise ConfigurationError(
                "a SageMaker endpoint cannot run on spot machines: spot is for training",
                expected="serverless, asynchronous with a minimum of 0, or scaling with a low minimum",
                found=f"spot: {values['spot']}", todo="take one of these; on Vertex AI endpoints can be spot",
            )  # fmt: skip
        unknown = sorted(set(values) - known)
        missing = [name for name in ("image", "model_data", "role") if not values.get(name)]
        if unknown or missing:
            raise ConfigurationError(
                "the deployment to SageMaker is not described rightly", expected=", ".join(sorted(known)),
                found=f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}",
            )  # fmt: skip
        listed = {key: tuple(values[key]) for key in ("alarms", "subnets", "security_groups") if key in values}
        spec = cls(**{**values, **listed})
        for wrong, expected, found in spec._wrongs():
            if wrong:
                raise ConfigurationError(
                    "the deployment to SageMaker cannot be made", expected=expected, found=str(found)
                )
        return spec

    def _wrongs(self) -> list[tuple[bool, str, Any]]:
        few = self.scaling.get("min", 1)
        special = bool(self.serverless or self.asynchronous)
        return [
            (bool(self.instance) == bool(self.serverless), "either instance or serverless",
             f"instance {self.instance!r}, serverless {dict(self.serverless)}"),
            (self.container not in CONTAINERS, f"container: one of {', '.join(CONTAINERS)}", self.container),
            (self.rollout not in _ROLLOUTS, f"rollout: one of {', '.join(_ROLLOUTS)}", self.rollout),
            (self.mode not in _MODES, f"mode: one of {', '.join(_MODES)}", self.mode),
            (not 1 <= self.step <= 100, "step: 1 to 100 percent", self.step),
            (self.rollout == "canary" and self.step > 50, "step: at most 50 percent for a canary", self.step),
            (self.rollout == "linear" and not 10 <= self.step <= 50, "step: 10 to 50 percent if linear", self.step),
            (self.rollout == "rolling" and not 5 <= self.step <= 50, "step: 5 to 50 percent if rolling", self.step),
            (not 0 < self.percent < 100, "percent: more than 0 and less than 100", self.percent),
            (self.mode == "shadow" and special, "machines that answer at once, for a shadow", "others"),
            (bool(self.serverless) and bool(self.asynchronous), "serverless or asynchronous", "both"),
            (bool(self.serverless) and bool(self.scaling), "serverless without scaling; it scales by itself", "both"),
            (few < 0 or (few == 0 and not self.asynchronous), "scaling.min: 1 or more; 0 if asynchronous", few),
            (bool(self.scaling) and not few <= self.scaling.get("max", 0), "scaling.max: at least scaling.min",
             dict(self.scaling)),
            (bool(self.subnets) != bool(self.security_groups), "subnets and security_groups", "one of them alone"),
        ]  # fmt: skip

    # --- the parts of requests ------------------------------------------------------------------------------------

    def model(self, name: str, version: str) -> dict[str, Any]:
        """The request of CreateModel."""
        own = {"SML_SERVE_HOST": "0.0.0.0", "SML_MODEL_VERSION": version} if self.container == "ours" else {}
        environment = own | dict(self.environment)
        request: dict[str, Any] = {
            "ModelName": name,
            "ExecutionRoleArn": self.role,
            "EnableNetworkIsolation": self.network_isolation,
            "PrimaryContainer": {
                "Image": self.image, "ModelDataUrl": self.model_data, "Environment": environment,
            },
        }  # fmt: skip
        if self.subnets:
            request["VpcConfig"] = {"Subnets": list(self.subnets), "SecurityGroupIds": list(self.security_groups)}
        return request

    def config(self, name: str, beside: str | None) -> dict[str, Any]:
        """The request of CreateEndpointConfig.

        :param name: of the model and the configuration.
        :param beside: the model that serves on beside this one.
        """
        shadows: list[dict[str, Any]] = []
        if beside is None:
            variants = [self._variant(CHAMPION, name, 1.0)]
        elif self.mode == "ab":
            share = self.percent / 100
            variants = [self._variant(CHAMPION, beside, 1 - share), self._variant(CHALLENGER, name, share)]
        else:
            variants = [self._variant(CHAMPION, beside, 1.0)]
            shadows = [self._variant(CHALLENGER, name, 1.0)]
        request: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": variants}
        if shadows:
            request["ShadowProductionVariants"] = shadows
        if self.kms_key and self.instance:
            request["KmsKeyId"] = self.kms_key
        if self.asynchronous:
            output = {"S3OutputPath": self.asynchronous["output"]}
            if "failures" in self.asynchronous:
                output["S3FailurePath"] = self.asynchronous["failures"]
            if self.kms_key:
                output["KmsKeyId"] = self.kms_key
            request["AsyncInferenceConfig"] = {"OutputConfig": output}
        if self.capture:
            request["DataCaptureConfig"] = {
                "EnableCapture": True,
                "InitialSamplingPercentage": int(self.capture.get("percent", 100)),
                "DestinationS3Uri": self.capture["uri"],
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
                **({"KmsKeyId": self.kms_key} if self.kms_key else {}),
            }
        return request

    def deployment(self) -> dict[str, Any]:
        """``DeploymentConfig`` of UpdateEndpoint; empty where SageMaker takes none."""
        if self.serverless or (self.rollout == "all-at-once" and not self.alarms):
            return {}
        share = {"Type": "CAPACITY_PERCENT", "Value": self.step}
        config: dict[str, Any] = {}
        if self.rollout == "rolling":
            config["RollingUpdatePolicy"] = {"MaximumBatchSize": share, "WaitIntervalInSeconds": self.wait}
        else:
            kind = {"canary": "CANARY", "linear": "LINEAR"}.get(self.rollout, "ALL_AT_ONCE")
            routing: dict[str, Any] = {"Type": kind, "WaitIntervalInSeconds": self.wait}
            if kind != "ALL_AT_ONCE":
                routing["CanarySize" if kind == "CANARY" else "LinearStepSize"] = share
            config["BlueGreenUpdatePolicy"] = {
                "TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": self.terminate_after,
            }  # fmt: skip
        if self.alarms:
            alarms = [{"AlarmName": name} for name in self.alarms]
            config["AutoRollbackConfiguration"] = {"Alarms": alarms}
        return {"DeploymentConfig": config}

    def scaling_calls(self, endpoint: str) -> list[tuple[str, dict[str, Any]]]:
        """The calls of application autoscaling, for each variant with machines."""
        if not self.scaling:
            return []
        calls = []
        for variant in (CHAMPION, CHALLENGER) if self.mode == "ab" else (CHAMPION,):
            target: dict[str, Any] = {
                "ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{endpoint}/variant/{variant}",
                "ScalableDimension": _DIMENSION,
            }  # fmt: skip
            least, most = int(self.scaling.get("min", 1)), int(self.scaling["max"])
            calls.append(("register_scalable_target", target | {"MinCapacity": least, "MaxCapacity": most}))
            policy = {
                "PolicyName": "sml-target", "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": self._tracking(endpoint),
            }  # fmt: skip
            calls.append(("put_scaling_policy", target | policy))
        return calls

    def _tracking(self, endpoint: str) -> dict[str, Any]:
        tracking: dict[str, Any] = {"TargetValue": float(self.scaling.get("target", 5 if self.asynchronous else 1000))}
        if self.asynchronous:  # docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
            return tracking | {
                "CustomizedMetricSpecification": {
                    "MetricName": "ApproximateBacklogSizePerInstance", "Namespace": "AWS/SageMaker",
                    "Dimensions": [{"Name": "EndpointName", "Value": endpoint}], "Statistic": "Average",
                }
            }  # fmt: skip
        predefined = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        return tracking | {"PredefinedMetricSpecification": predefined}

    def _variant(self, name: str, model: str, weight: float) -> dict[str, Any]:
        variant: dict[str, Any] = {"VariantName": name, "ModelName": model, "InitialVariantWeight": weight}
        if self.serverless:
            serverless = {
                "MemorySizeInMB": self.serverless.get("memory_mb", 2048),
                "MaxConcurrency": self.serverless.get("concurrency", 5),
            }
            if "provisioned" in self.serverless:
                serverless["ProvisionedConcurrency"] = self.serverless["provisioned"]
            return variant | {"ServerlessConfig": serverless}
        return variant | {"InstanceType": self.instance, "InitialInstanceCount": self.count}


def versioned(endpoint: str, version: str, spec: EndpointSpec, beside: str) -> str:
    """Name of the model and the configuration of a version: at most 63 characters, other for another spec.

    How the traffic moves (roll-out, wait, alarms, scaling) is no part of what is deployed and does not change it.

    :param beside: the model that serves on beside it, or an empty text.
    """
    moving = ("rollout", "step", "wait", "terminate_after", "alarms", "scaling")
    decisive = {key: value for key, value in asdict(spec).items() if key not in moving}
    return f"{name_start(endpoint)}{version}-{spec_hash([decisive, beside])[:8]}"


def name_start(endpoint: str) -> str:
    """What the names of an endpoint's models and configurations begin with; those of other endpoints may, too."""
    return f"{endpoint[:40].rstrip('-')}-v"
