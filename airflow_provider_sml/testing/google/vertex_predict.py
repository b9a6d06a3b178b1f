"""Vertex AI's predictions: requests go to a scoring process of a deployed model, by the split of the traffic."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.api import httpbody_pb2
from google.cloud import aiplatform_v1
from google.protobuf import json_format, struct_pb2

from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.google.errors import GoogleError

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle
    from airflow_provider_sml.testing.google.vertex_endpoints import Deployed

_API = "https://cloud.google.com/vertex-ai/docs/reference/rpc/google.cloud.aiplatform.v1"


@dataclass(frozen=True)
class Logged:
    """A request that request-response logging saw.

    :param endpoint: name of it.
    :param deployed: id of the deployed model that answered.
    :param body: the request.
    :param answer: what the container answered.
    """

    endpoint: str
    deployed: str
    body: bytes
    answer: bytes


@dataclass(frozen=True)
class Seen:
    """Answers that metrics tell of.

    :param endpoint: name of it.
    :param deployed: id of the deployed model that answered.
    :param status: of the answers.
    :param count: of them.
    :param milliseconds: that each took.
    :param at: seconds since the epoch by the clock of this machine, which is that of the clients.
    :param virtual: by the cloud's clock.
    """

    endpoint: str
    deployed: str
    status: int
    count: int
    milliseconds: float
    at: float
    virtual: float


class Predictions:
    """``google.cloud.aiplatform.v1.PredictionService``: predict and rawPredict.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.aiplatform_v1.services.prediction_service.transports.grpc.PredictionServiceGrpcTransport"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("vertex", "predict sends instances and parameters as JSON to the container's predict route, and "
                  "gives its predictions with the deployed model that answered.", DOCUMENTED,
                  f"{_API}#predictresponse"),
        Behaviour("vertex", "rawPredict sends the body as it is.", DOCUMENTED, f"{_API}#rawpredictrequest"),
        Behaviour("vertex", "Nobody can choose the deployed model: the split of the traffic does.", DOCUMENTED,
                  f"{_API}#predictrequest"),
        Behaviour("vertex", "The split is kept to by turns rather than by chance.", ASSUMED, "so that tests repeat"),
        Behaviour("vertex", "An endpoint without traffic is FAILED_PRECONDITION: doesn't have traffic_split.", REPORTED,
                  "https://github.com/GoogleCloudPlatform/explainable_ai_sdk/issues/3"),
        Behaviour("vertex", "An error of the container is INVALID_ARGUMENT, or INTERNAL from 500 on, with its text.",
                  ASSUMED, "the service has to give some code"),
        Behaviour("vertex", "While its spot machines are away, requests for a deployed model are UNAVAILABLE.", ASSUMED,
                  "nothing is stated of replicas that are gone"),
    )  # fmt: skip

    #: Requests that come by themselves to each endpoint with traffic, a minute of the virtual clock; they are counted,
    #: and no container is asked.
    per_minute = 0.0

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.logged: list[Logged] = []
        self.seen: list[Seen] = []
        self._turns: dict[str, dict[str, float]] = {}
        self._settled = cloud.clock.now()
        self._owed: dict[tuple[str, str], float] = {}

    def settle(self) -> None:
        """Let the requests come that have come by now."""
        now = self.cloud.clock.now()
        minutes, self._settled = (now - self._settled) / 60, now
        if not self.per_minute:
            return
        for name, endpoint in self.cloud.vertex.endpoints.endpoints.items():
            for key, share in endpoint.traffic.items():
                deployed = endpoint.deployed[key]
                whole = round(self.per_minute * minutes * share / 100)
                bad = round(whole * deployed.errors)
                taken = 20.0 if deployed.latency_ms is None else deployed.latency_ms
                self._note(name, key, 200, whole - bad, taken)
                self._note(name, key, 500, bad, taken)

    def _note(self, endpoint: str, deployed: str, status: int, count: int, milliseconds: float) -> None:
        if count:
            virtual = self.cloud.clock.now()
            self.seen.append(Seen(endpoint, deployed, status, count, milliseconds, time.time(), virtual))

    def predict(self, request: aiplatform_v1.PredictRequest) -> aiplatform_v1.PredictResponse:
        pb = aiplatform_v1.PredictRequest.pb(request)
        body: dict[str, Any] = {"instances": [json_format.MessageToDict(item) for item in pb.instances]}
        if pb.HasField("parameters"):
            body["parameters"] = json_format.MessageToDict(pb.parameters)
        deployed, answer, _ = self._score(request.endpoint, json.dumps(body).encode(), "application/json")
        found = aiplatform_v1.PredictResponse(
            deployed_model_id=deployed.message.id, model=deployed.model, model_version_id=str(deployed.number),
            model_display_name=deployed.message.display_name,
        )  # fmt: skip
        for item in json.loads(answer).get("predictions", []):
            aiplatform_v1.PredictResponse.pb(found).predictions.append(json_format.ParseDict(item, struct_pb2.Value()))
        return found

    def raw_predict(self, request: aiplatform_v1.RawPredictRequest) -> Any:
        body = request.http_body
        _, answer, kind = self._score(request.endpoint, body.data, body.content_type)
        return httpbody_pb2.HttpBody(content_type=kind, data=answer)

    def _score(self, name: str, body: bytes, kind: str) -> tuple[Deployed, bytes, str]:
        endpoint = self.cloud.vertex.endpoints.find(name)
        if not endpoint.traffic:
            raise GoogleError("FAILED_PRECONDITION", f"Endpoint {name} doesn't have traffic_split.")
        key = self._turn(name, endpoint.traffic)
        deployed = endpoint.deployed[key]
        if self.cloud.clock.now() < deployed.down:
            raise GoogleError("UNAVAILABLE", f"DeployedModel {key} has no available replica")
        began = time.monotonic()
        if self._bad_turn(name, key, deployed.errors):
            status, answer, answered = 500, b"degraded", "text/plain"
        else:
            status, answer, answered = deployed.scoring.answer(body, kind or "application/json")
        taken = 1000 * (time.monotonic() - began) if deployed.latency_ms is None else deployed.latency_ms
        self._note(name, key, status, 1, taken)
        logging = endpoint.message.predict_request_response_logging_config
        if logging.enabled:
            self.logged.append(Logged(name, key, body, answer))
        if status // 100 != 2:
            text = answer.decode(errors="replace")[:2000]
            raise GoogleError("INTERNAL" if status >= 500 else "INVALID_ARGUMENT", text)
        return deployed, answer, answered

    def _bad_turn(self, name: str, key: str, share: float) -> bool:
        """Whether this request is one of those that a degraded model answers with an error."""
        owed = self._owed.get((name, key), 0.0) + share
        self._owed[name, key] = owed - (owed >= 1)
        return owed >= 1

    def _turn(self, name: str, split: dict[str, int]) -> str:
        """Whose turn it is, so that every stretch of requests keeps to the split."""
        credit = self._turns.setdefault(name, {})
        for key in [key for key in credit if key not in split]:
            del credit[key]
        for key, share in split.items():
            credit[key] = credit.get(key, 0.0) + share / 100
        chosen = max(split, key=lambda key: credit[key])
        credit[chosen] -= 1.0
        return chosen
