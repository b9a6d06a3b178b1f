"""SageMaker's runtime: requests go to a scoring process of the model that an endpoint serves."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.testing.aws.containers import Container, ScoringContainer, bundle_container
from airflow_provider_sml.testing.aws.errors import AwsError
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws
    from airflow_provider_sml.testing.aws.fleet import Fleet

_API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_"


@dataclass(frozen=True)
class Captured:
    """A request that data capture or a shadow variant saw.

    :param endpoint: of it.
    :param variant: that scored it.
    :param shadow: whether that was a shadow.
    :param body: the request.
    :param answer: what the container answered.
    """

    endpoint: str
    variant: str
    shadow: bool
    body: bytes
    answer: bytes


class Runtime:
    """Invocations.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("sagemaker-runtime", "An answer of the container other than 2xx is ModelError, with its status and "
                  "text.", DOCUMENTED, f"{_API}InvokeEndpoint.html"),
        Behaviour("sagemaker-runtime", "TargetVariant chooses a variant; else weights do, and the new fleet of an "
                  "update gets its share.", DOCUMENTED, f"{_API}InvokeEndpoint.html"),
        Behaviour("sagemaker-runtime", "Weights are kept to by turns rather than by chance.", ASSUMED,
                  "so that tests are repeatable"),
        Behaviour("sagemaker-runtime", "An endpoint that is not there or not up yet is ValidationError.", REPORTED,
                  "the message is: Endpoint x of account y not found."),
        Behaviour("sagemaker-runtime", "A model archive with xgboost-model in it is served as SageMaker's XGBoost "
                  "image does: features as CSV, an empty field for a missing one, scores by commas.", REPORTED,
                  "https://github.com/aws/sagemaker-xgboost-container: encoder.py, algorithm_mode/handler_service.py"),
        Behaviour("sagemaker-runtime", "An asynchronous request is answered at once, and its output is in S3 then.",
                  ASSUMED, "it takes seconds in reality"),
    )  # fmt: skip

    #: Makes the container of a model from what the model was created with.
    container: Callable[[FakeAws, dict[str, Any]], Container] = staticmethod(bundle_container)

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.captured: list[Captured] = []
        self._containers: dict[str, Container] = {}
        self._turns: dict[str, dict[str, float]] = {}

    def close(self) -> None:
        """End the containers that are processes."""
        for container in self._containers.values():
            if isinstance(container, ScoringContainer):
                container.close()

    def invoke_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointName"]
        fleet = self._fleet(name)
        if fleet.asynchronous:
            raise AwsError("ValidationError", f"Endpoint {name} is asynchronous; call InvokeEndpointAsync")
        kind, accept = request.get("ContentType", ""), request.get("Accept", "")
        variant = request.get("TargetVariant") or self._turn(name, fleet)
        if variant not in fleet.variants:
            raise AwsError("ValidationError", f"Variant {variant} not found for Endpoint {name}")
        status, answer, answered = self._score(fleet, variant, request["Body"], kind, accept)
        capture = "DataCaptureConfig" in fleet.request and fleet.request["DataCaptureConfig"].get("EnableCapture", True)
        if capture:
            self.captured.append(Captured(name, variant, False, request["Body"], answer))
        for shadow, other in fleet.variants.items():
            if other.shadow:
                copy = self._score(fleet, shadow, request["Body"], kind, accept)[1]
                self.captured.append(Captured(name, shadow, True, request["Body"], copy))
        if status // 100 != 2:
            text = answer.decode(errors="replace")
            raise AwsError(
                "ModelError", f"Received client error ({status}) from {variant} with message \"{text}\"", 424,
                OriginalStatusCode=status, OriginalMessage=text,
                LogStreamArn=self.cloud.arn("logs", f"log-group:/aws/sagemaker/Endpoints/{name}"),
            )  # fmt: skip
        return {"Body": answer, "ContentType": answered, "InvokedProductionVariant": variant}

    def invoke_endpoint_async(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointName"]
        fleet = self._fleet(name)
        if not fleet.asynchronous:
            raise AwsError("ValidationError", f"Endpoint {name} is not asynchronous")
        s3, given = self.cloud.client("s3"), urlsplit(request["InputLocation"])
        body = s3.get_object(Bucket=given.netloc, Key=given.path.lstrip("/"))["Body"].read()
        variant = self._turn(name, fleet)
        status, answer, _ = self._score(fleet, variant, body, request.get("ContentType", ""), request.get("Accept", ""))
        config = fleet.request["AsyncInferenceConfig"]["OutputConfig"]
        made = request.get("InferenceId") or uuid.uuid4().hex
        well = status // 100 == 2
        base = config["S3OutputPath"] if well else config.get("S3FailurePath", config["S3OutputPath"])
        place = urlsplit(f"{base.rstrip('/')}/{made}{'.out' if well else '-error.out'}")
        s3.put_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Body=answer)
        return {"InferenceId": made, "OutputLocation": f"{config['S3OutputPath'].rstrip('/')}/{made}.out"}

    # --- the parts ------------------------------------------------------------------------------------------------

    def _fleet(self, name: str) -> Fleet:
        """The fleet that answers: during an update the new one in its share of turns."""
        missing = AwsError("ValidationError", f"Endpoint {name} of account {self.cloud.account} not found.")
        try:
            endpoint = self.cloud.sagemaker.endpoint(name)
        except AwsError:
            raise missing from None
        now = self.cloud.clock.now()
        phase = endpoint.timeline.at(now)
        if phase.state in ("Creating", "Failed", "Deleting"):
            raise missing
        fleet = endpoint.fleet
        if endpoint.pending is not None and phase.state in ("Baking", "Shifting"):
            share = float(phase.message or 1)
            if self._by_turns(f"{name}/{endpoint.pending.config}", {"new": share, "old": 1 - share}) == "new":
                fleet = endpoint.pending
        fleet.touch(now)
        return fleet

    def _turn(self, name: str, fleet: Fleet) -> str:
        weights = {key: variant.weight for key, variant in fleet.variants.items() if not variant.shadow}
        return self._by_turns(f"{name}/{fleet.config}/", weights)

    def _by_turns(self, what: str, weights: dict[str, float]) -> str:
        """Whose turn it is, so that every stretch of requests keeps to the weights."""
        total = sum(weights.values()) or 1.0
        credit = self._turns.setdefault(what, dict.fromkeys(weights, 0.0))
        for key, weight in weights.items():
            credit[key] = credit.get(key, 0.0) + weight / total
        chosen = max(weights, key=lambda key: credit[key])
        credit[chosen] -= 1.0
        return chosen

    def _score(self, fleet: Fleet, variant: str, body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
        model = fleet.variants[variant].request["ModelName"]
        if model not in self._containers:
            request = self.cloud.sagemaker.served(model)
            if request is None:
                raise AwsError("InternalFailure", f"the model {model} of the endpoint was deleted", 500)
            self._containers[model] = self.container(self.cloud, request)
        fleet.seconds_served += 0.05
        return self._containers[model](body, kind, accept)
