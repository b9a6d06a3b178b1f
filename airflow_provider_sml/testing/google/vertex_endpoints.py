"""Vertex AI's endpoints: deployed models, the split of their traffic, and the operations that change them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from google.cloud import aiplatform_v1
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from airflow_provider_sml.cloud.vertex_machines import machine_name, machine_price
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment
from airflow_provider_sml.testing.google import vertex_rules as rules
from airflow_provider_sml.testing.google.errors import GoogleError, invalid
from airflow_provider_sml.testing.google.operations import LongRunning, Outcome
from airflow_provider_sml.testing.google.vertex_containers import Scoring, scoring_process

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

_API = "https://cloud.google.com/vertex-ai/docs/reference/rpc/google.cloud.aiplatform.v1"
_SDK = "https://github.com/googleapis/python-aiplatform"
_UPDATABLE = ("display_name", "description", "labels", "traffic_split", "predict_request_response_logging_config")


@dataclass
class Deployed:
    """A deployed model.

    :param message: what it was deployed with.
    :param model: name of its model.
    :param number: version of it.
    :param route: of its container for predictions.
    :param scoring: its container.
    :param opened: seconds since the epoch from which it costs.
    :param closed: until which it does.
    :param down: until which its spot machines are away.
    :param errors: share of its requests that it answers with 500.
    :param latency_ms: how long it takes for an answer; None for as long as it takes.
    """

    message: aiplatform_v1.DeployedModel
    model: str
    number: int
    scoring: Scoring
    opened: float
    closed: float = inf
    down: float = -inf
    errors: float = 0.0
    latency_ms: float | None = None


@dataclass
class _Change:
    """A change of an endpoint that takes its time."""

    ends: float
    apply: Callable[[], Any]
    outcome: Outcome | None = None
    cancelled: bool = False


@dataclass
class FakeEndpoint:
    """An endpoint.

    :param message: without deployed models and traffic.
    :param ready: seconds since the epoch from which it is there.
    :param deployed: its deployed models by their ids.
    :param traffic: percent of each.
    :param changes: that run, or have ended.
    """

    message: aiplatform_v1.Endpoint
    ready: float
    updated: float
    deployed: dict[str, Deployed] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)


class Endpoints:
    """``google.cloud.aiplatform.v1.EndpointService``.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.aiplatform_v1.services.endpoint_service.transports.grpc.EndpointServiceGrpcTransport"
    QUOTA = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_serving_cpus"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("vertex", "Traffic is whole percents that add up to 100, or none; key 0 of DeployModel is what is "
                  "being deployed; an empty split changes nothing.", DOCUMENTED, f"{_API}#deploymodelrequest"),
        Behaviour("vertex", "A deployed model's id may be given: 1 to 10 digits.", DOCUMENTED, f"{_API}#deployedmodel"),
        Behaviour("vertex", "An id that is taken, of an endpoint or a deployed model, is ALREADY_EXISTS.", ASSUMED,
                  "AIP-133 on ids of the client's choice"),
        Behaviour("vertex", "UndeployModel is refused while the model has traffic, unless its split takes that away or "
                  "it is the last one.", DOCUMENTED, f"{_API}#undeploymodelrequest"),
        Behaviour("vertex", "UpdateEndpoint changes the split at once.", DOCUMENTED, f"{_API}#endpointservice"),
        Behaviour("vertex", "A deployed model is on the endpoint when its operation has succeeded, and not before.",
                  ASSUMED, "the reply names the deployed model; nothing is stated of the time before"),
        Behaviour("vertex", "Two deployments to one endpoint may run at once.", ASSUMED, "no refusal is documented"),
        Behaviour("vertex", "A container that does not start ends DeployModel with FAILED_PRECONDITION: Model server "
                  "exited unexpectedly.", REPORTED, f"{_SDK}/issues/4559"),
        Behaviour("vertex", "A deployment that failed leaves nothing deployed; an endpoint that was made for it stays.",
                  REPORTED, f"{_SDK}/issues/1041"),
        Behaviour("vertex", "A cancelled DeployModel deploys nothing.", ASSUMED, "operations cancel on best effort"),
        Behaviour("vertex", "An endpoint with deployed models cannot be deleted: FAILED_PRECONDITION.", ASSUMED,
                  "the SDK undeploys them first (Endpoint.delete with force)"),
        Behaviour("vertex", "Without capacity DeployModel ends with RESOURCE_EXHAUSTED.", ASSUMED,
                  "the service has to give some code"),
        Behaviour("vertex", "An endpoint takes 10 s, a deployment 480 s, its end 60 s; replicas cost from the end of "
                  "the one to the end of the other.", ASSUMED, "round figures in the range that users see"),
        Behaviour("vertex", "min_replica_count is at least 1.", DOCUMENTED, f"{_API}#dedicatedresources"),
        Behaviour("vertex", "Autoscaling changes nothing: min_replica_count replicas run.", ASSUMED,
                  "there is no load"),
    )  # fmt: skip

    #: Virtual seconds of the changes.
    create_seconds, deploy_seconds, undeploy_seconds = 10.0, 480.0, 60.0
    #: Starts the container of a version.
    container: Callable[[FakeGoogle, Any], Scoring] = staticmethod(scoring_process)

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.endpoints: dict[str, FakeEndpoint] = {}

    def close(self) -> None:
        """End the containers."""
        for endpoint in self.endpoints.values():
            for deployed in endpoint.deployed.values():
                deployed.scoring.close()

    # --- endpoints ------------------------------------------------------------------------------------------------

    def create_endpoint(self, request: aiplatform_v1.CreateEndpointRequest) -> operations_pb2.Operation:
        parent, given = rules.location(request.parent), request.endpoint_id
        rules.check_common(request.endpoint)
        if given and not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?|[1-9][0-9]{0,8}", given):
            raise invalid(f"Invalid endpoint_id {given}")
        if request.endpoint.traffic_split or request.endpoint.deployed_models:
            raise invalid("An Endpoint is created without deployed models and traffic")
        name = f"{parent}/endpoints/{given or uuid.uuid4().int % 10**19}"
        if name in self.endpoints:
            raise GoogleError("ALREADY_EXISTS", f"Endpoint {name} already exists")
        now = self.cloud.clock.now()
        message = aiplatform_v1.Endpoint(request.endpoint)
        message.name = name
        endpoint = self.endpoints[name] = FakeEndpoint(message, now + self.create_seconds, now)
        made = lambda: Outcome(aiplatform_v1.Endpoint(name=name, display_name=message.display_name))  # noqa: E731
        return self._start(endpoint, self.create_seconds, made, aiplatform_v1.CreateEndpointOperationMetadata)

    def get_endpoint(self, request: aiplatform_v1.GetEndpointRequest) -> aiplatform_v1.Endpoint:
        return self._message(self.find(request.name))

    def list_endpoints(self, request: aiplatform_v1.ListEndpointsRequest) -> aiplatform_v1.ListEndpointsResponse:
        parent, now = rules.location(request.parent), self.cloud.clock.now()
        here = [item for name, item in self.endpoints.items() if name.startswith(f"{parent}/") and item.ready <= now]
        page, token = rules.listed(
            [self._message(item) for item in here], request,
            lambda item: {"display_name": item.display_name, "endpoint": item.name.rpartition("/")[2]},
        )  # fmt: skip
        return aiplatform_v1.ListEndpointsResponse(endpoints=page, next_page_token=token)

    def update_endpoint(self, request: aiplatform_v1.UpdateEndpointRequest) -> aiplatform_v1.Endpoint:
        endpoint, given = self.find(request.endpoint.name), request.endpoint
        for path in request.update_mask.paths:
            if path not in _UPDATABLE:
                raise invalid(f"update_mask: {path} cannot be updated")
            if path == "traffic_split":
                rules.check_split(given.traffic_split, list(endpoint.deployed))
                self.cloud.vertex.predictions.settle()  # what came by now came by the old split
                endpoint.traffic = {key: share for key, share in given.traffic_split.items() if share}
            else:
                setattr(endpoint.message, path, getattr(given, path))
        endpoint.updated = self.cloud.clock.now()
        return self._message(endpoint)

    def delete_endpoint(self, request: aiplatform_v1.DeleteEndpointRequest) -> operations_pb2.Operation:
        endpoint = self.find(request.name)
        if endpoint.deployed:
            raise GoogleError(
                "FAILED_PRECONDITION", f"Endpoint {request.name} has deployed models; undeploy them first"
            )
        del self.endpoints[request.name]
        return self._start(endpoint, 0, lambda: Outcome(empty_pb2.Empty()), aiplatform_v1.DeleteOperationMetadata)

    # --- deployed models ------------------------------------------------------------------------------------------

    def deploy_model(self, request: aiplatform_v1.DeployModelRequest) -> operations_pb2.Operation:
        endpoint = self.find(request.endpoint)
        message = aiplatform_v1.DeployedModel(request.deployed_model)
        model, version = self.cloud.vertex.models.find(message.model)
        _check(message)
        message.id = message.id or str(uuid.uuid4().int % 10**10)
        if message.id in endpoint.deployed:
            raise GoogleError("ALREADY_EXISTS", f"DeployedModel {message.id} already exists in {request.endpoint}")
        split = dict(request.traffic_split)
        rules.check_split(split, [*endpoint.deployed, "0"])
        message.model, message.model_version_id = model.name, str(version.number)
        message.display_name = message.display_name or version.message.display_name
        wrong, slow = self._fault(request.endpoint), self._slow(request.endpoint)
        short_name = request.endpoint.rpartition("/")[2]
        worse = self.cloud.faults.take(["degraded"], "DeployModel", short_name)
        detail = {"share": 0.0, "latency_ms": 20.0} | (worse.detail if worse else {})

        def apply() -> Outcome:
            if wrong is not None:
                return wrong
            if message.id in endpoint.deployed:
                return Outcome(code=6, message=f"DeployedModel {message.id} already exists in {request.endpoint}")
            try:
                scoring = self.container(self.cloud, version.message)
            except Exception as error:
                said = f"Model server exited unexpectedly. Model server logs can be found at {_logs(request.endpoint)}"
                return Outcome(code=9, message=f"{said} ({str(error)[-500:]})")
            deployed = Deployed(message, model.name, version.number, scoring, self.cloud.clock.now())
            if worse:
                deployed.errors, deployed.latency_ms = float(detail["share"]), float(detail["latency_ms"])
            endpoint.deployed[message.id] = deployed
            self.cloud.vertex.predictions.settle()
            if split:
                given = {message.id if key == "0" else key: share for key, share in split.items() if share}
                endpoint.traffic = {key: share for key, share in given.items() if key in endpoint.deployed}
            self._bill(request.endpoint, deployed)
            return Outcome(aiplatform_v1.DeployModelResponse(deployed_model=message))

        return self._start(
            endpoint, self.deploy_seconds + slow, apply, aiplatform_v1.DeployModelOperationMetadata
        )  # fmt: skip

    def undeploy_model(self, request: aiplatform_v1.UndeployModelRequest) -> operations_pb2.Operation:
        endpoint, key = self.find(request.endpoint), request.deployed_model_id
        if key not in endpoint.deployed:
            raise GoogleError("NOT_FOUND", f"DeployedModel {key} is not found in {request.endpoint}")
        split = dict(request.traffic_split)
        rules.check_split(split, [other for other in endpoint.deployed if other != key])
        if not split and endpoint.traffic.get(key) and len(endpoint.deployed) > 1:
            raise invalid(f"DeployedModel {key} still has traffic: {endpoint.traffic[key]} percent")

        def apply() -> Outcome:
            deployed = endpoint.deployed.pop(key, None)
            if deployed is not None:
                deployed.closed = self.cloud.clock.now()
                deployed.scoring.close()
            return Outcome(aiplatform_v1.UndeployModelResponse())

        if split:
            endpoint.traffic = {other: share for other, share in split.items() if share}
        elif len(endpoint.deployed) == 1:
            endpoint.traffic = {}
        return self._start(endpoint, self.undeploy_seconds, apply, aiplatform_v1.UndeployModelOperationMetadata)

    # --- more than the methods ------------------------------------------------------------------------------------

    def find(self, name: str) -> FakeEndpoint:
        """An endpoint, as it is by now.

        :raises GoogleError: NOT_FOUND.
        """
        found = self.endpoints.get(rules.resource(name, "endpoints"))
        if found is None or found.ready > self.cloud.clock.now():
            raise rules.missing(name)
        self._settle(found)
        return found

    def deployments(self, model: str) -> Iterator[tuple[str, str, int]]:
        """Where a model is deployed: endpoint, id and version of each."""
        for name, endpoint in self.endpoints.items():
            self._settle(endpoint)
            yield from ((name, key, item.number) for key, item in endpoint.deployed.items() if item.model == model)

    def preempt(self, name: str, key: str, seconds: float = 600.0) -> None:
        """Take the spot machines of a deployed model away for some time."""
        deployed = self.find(name).deployed[key]
        if not deployed.message.dedicated_resources.spot:
            raise ValueError(f"deployed model {key} is not on spot machines")
        deployed.down = self.cloud.clock.now() + seconds

    def _message(self, endpoint: FakeEndpoint) -> aiplatform_v1.Endpoint:
        now = self.cloud.clock.now()
        found: Any = aiplatform_v1.Endpoint(endpoint.message)
        found.create_time, found.update_time = moment(endpoint.ready), moment(endpoint.updated)
        found.traffic_split = endpoint.traffic
        for deployed in endpoint.deployed.values():
            one: Any = aiplatform_v1.DeployedModel(deployed.message)
            one.create_time = moment(deployed.opened)
            up = 0 if now < deployed.down else deployed.message.dedicated_resources.min_replica_count
            one.status = {
                "available_replica_count": up,
                "last_update_time": moment(max(deployed.opened, deployed.down)),
            }
            found.deployed_models.append(one)
        return found

    def _settle(self, endpoint: FakeEndpoint) -> None:
        """Let the changes that have ended by now have their effect."""
        now = self.cloud.clock.now()
        for change in sorted(endpoint.changes, key=lambda change: change.ends):
            if change.outcome is None and change.ends <= now:
                change.outcome = (
                    Outcome(code=1, message="Operation was cancelled") if change.cancelled else change.apply()
                )
                endpoint.updated = change.ends

    def _start(
        self, endpoint: FakeEndpoint, seconds: float, apply: Callable[[], Outcome], metadata: Any
    ) -> operations_pb2.Operation:
        now = self.cloud.clock.now()
        change = _Change(now + seconds, apply)
        endpoint.changes.append(change)

        def outcome() -> Outcome | None:
            self._settle(endpoint)
            return change.outcome

        def cancel() -> None:
            change.cancelled, change.ends = True, self.cloud.clock.now()

        made = {"create_time": moment(now)}
        running = LongRunning(lambda: _metadata(metadata, made), outcome, cancel)
        return self.cloud.operations.message(self.cloud.operations.start(endpoint.message.name, running))

    def _fault(self, name: str) -> Outcome | None:
        """How a deployment fails, where that was asked for."""
        short_name, region = name.rpartition("/")[2], name.split("/")[3]
        if short := self.cloud.faults.take(["no_capacity"], "DeployModel", short_name):
            said = f"Resources are insufficient in region: {region}. Please try a different region."
            return Outcome(code=8, message=str(short.detail.get("reason", said)))
        if fail := self.cloud.faults.take(["fail", "roll_back"], "DeployModel", short_name):
            said = f"Model server exited unexpectedly. Model server logs can be found at {_logs(name)}"
            return Outcome(code=9, message=str(fail.detail.get("reason", said)))
        return None

    def _slow(self, name: str) -> float:
        slow = self.cloud.faults.take(["slow"], "DeployModel", name.rpartition("/")[2])
        return float(slow.detail.get("seconds", 1800)) if slow else 0.0

    def _bill(self, name: str, deployed: Deployed) -> None:
        resources = deployed.message.dedicated_resources
        spec, count = resources.machine_spec, resources.min_replica_count
        used: dict[str, Any] = {"type": spec.machine_type or "n1-standard-2"}
        if spec.accelerator_count:
            used |= {"accelerator": spec.accelerator_type.name, "accelerator_count": spec.accelerator_count}
        self.cloud.bill.meter(
            f"{name}/{deployed.message.id}",
            f"{'spot ' if resources.spot else ''}endpoint {count} x {machine_name(used)}",
            machine_price(used, resources.spot),
            lambda now: max(0.0, min(now, deployed.closed) - deployed.opened) * count / 3600,
            lambda now: deployed.opened <= now < deployed.closed,
        )


def _metadata(kind: Any, generic: dict[str, Any]) -> Any:
    return kind(generic_metadata=generic) if "generic_metadata" in kind.meta.fields else kind()


def _logs(endpoint: str) -> str:
    query = f"resource.type%3D%22aiplatform.googleapis.com%2FEndpoint%22%20{endpoint.rpartition('/')[2]}"
    return f"https://console.cloud.google.com/logs/viewer?project={endpoint.split('/')[1]}&advancedFilter={query}"


def _check(deployed: Any) -> None:
    """What the service refuses beyond what is marked as required."""
    if deployed.id and not re.fullmatch(r"[0-9]{1,10}", deployed.id):
        raise invalid(f"Invalid DeployedModel id {deployed.id}: 1-10 digits")
    if "dedicated_resources" not in deployed:
        raise invalid("'dedicated_resources' is the only prediction resource of a custom container")
    resources = deployed.dedicated_resources
    rules.check_machine(resources.machine_spec, "dedicated_resources.machine_spec")
    if resources.min_replica_count < 1:
        raise invalid("'min_replica_count' must be greater than or equal to 1")
    if resources.max_replica_count and resources.max_replica_count < resources.min_replica_count:
        raise invalid("'max_replica_count' must be greater than or equal to 'min_replica_count'")
