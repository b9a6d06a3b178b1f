"""Vertex AI's models: versions with numbers of the service's choice, and aliases."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.cloud import aiplatform_v1
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment
from airflow_provider_sml.testing.google import vertex_rules as rules
from airflow_provider_sml.testing.google.errors import GoogleError, invalid
from airflow_provider_sml.testing.google.operations import LongRunning, Outcome

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

_API = "https://cloud.google.com/vertex-ai/docs/reference/rpc/google.cloud.aiplatform.v1"
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")


@dataclass
class FakeVersion:
    """A version of a model.

    :param message: what it was uploaded with.
    :param number: its version id.
    :param ready: seconds since the epoch from which it is there.
    """

    message: aiplatform_v1.Model
    number: int
    ready: float


@dataclass
class FakeModel:
    """A model.

    :param name: of it.
    :param versions: by their number.
    :param aliases: number of the version of each.
    """

    name: str
    versions: dict[int, FakeVersion] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    last: int = 0


class Models:
    """``google.cloud.aiplatform.v1.ModelService``, as far as uploaded models go.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.aiplatform_v1.services.model_service.transports.grpc.ModelServiceGrpcTransport"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("vertex", "Uploading below parent_model makes another version; its number counts up and is never the "
                  "client's choice.", DOCUMENTED, f"{_API}#model"),
        Behaviour("vertex", "The alias default belongs to the first version until it is moved; an alias is of one "
                  "version.", DOCUMENTED, f"{_API}#model"),
        Behaviour("vertex", "A model_id that is taken is ALREADY_EXISTS, from the moment of the first upload.", ASSUMED,
                  "AIP-133 on ids of the client's choice"),
        Behaviour("vertex", "An upload takes 20 s; the version is not there before.", ASSUMED, "a round figure"),
        Behaviour("vertex", "A version that is deployed cannot be deleted, nor the only one; the model cannot while "
                  "any is deployed.", DOCUMENTED, f"{_API}#modelservice"),
        Behaviour("vertex", "Deleting what is deployed is FAILED_PRECONDITION.", REPORTED,
                  "https://github.com/googleapis/python-aiplatform/issues/2807"),
    )  # fmt: skip

    #: Virtual seconds of an upload.
    upload_seconds = 20.0

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.models: dict[str, FakeModel] = {}

    # --- the methods ----------------------------------------------------------------------------------------------

    def upload_model(self, request: aiplatform_v1.UploadModelRequest) -> operations_pb2.Operation:
        parent, message = rules.location(request.parent), aiplatform_v1.Model(request.model)
        _check(request)
        if request.parent_model:
            model = self._model(rules.resource(request.parent_model, "models"))
        else:
            name = f"{parent}/models/{request.model_id or uuid.uuid4().int % 10**19}"
            if name in self.models:
                raise GoogleError("ALREADY_EXISTS", f"Model {name} already exists")
            model = self.models[name] = FakeModel(name)
        model.last += 1
        now = self.cloud.clock.now()
        version = FakeVersion(message, model.last, now + self.upload_seconds)
        model.versions[version.number] = version
        wanted = list(message.version_aliases) + (["default"] if version.number == 1 else [])
        model.aliases |= dict.fromkeys(wanted, version.number)

        def outcome() -> Outcome | None:
            if self.cloud.clock.now() < version.ready:
                return None
            return Outcome(aiplatform_v1.UploadModelResponse(model=model.name, model_version_id=str(version.number)))

        made = {"create_time": moment(now)}
        running = LongRunning(
            lambda: aiplatform_v1.UploadModelOperationMetadata(generic_metadata=made), outcome, lambda: None
        )
        return self.cloud.operations.message(self.cloud.operations.start(model.name, running))

    def get_model(self, request: aiplatform_v1.GetModelRequest) -> aiplatform_v1.Model:
        return self.message(*self.find(request.name))

    def list_models(self, request: aiplatform_v1.ListModelsRequest) -> aiplatform_v1.ListModelsResponse:
        parent = rules.location(request.parent)
        found = [
            self.message(model, self._ready(model)[model.aliases["default"]])
            for name, model in self.models.items()
            if name.startswith(f"{parent}/") and model.aliases.get("default") in self._ready(model)
        ]
        page, token = rules.listed(
            found, request, lambda item: {"display_name": item.display_name, "model": item.name.rpartition("/")[2]}
        )
        return aiplatform_v1.ListModelsResponse(models=page, next_page_token=token)

    def list_model_versions(
        self, request: aiplatform_v1.ListModelVersionsRequest
    ) -> aiplatform_v1.ListModelVersionsResponse:
        model = self._model(rules.resource(request.name, "models"))
        found = [self.message(model, version) for version in self._ready(model).values()]
        if not found:
            raise rules.missing(request.name)
        page, token = rules.listed(found, request, lambda item: {"version_id": item.version_id})
        return aiplatform_v1.ListModelVersionsResponse(models=page, next_page_token=token)

    def merge_version_aliases(self, request: aiplatform_v1.MergeVersionAliasesRequest) -> aiplatform_v1.Model:
        model, version = self.find(request.name)
        for alias in request.version_aliases:
            _check_alias(alias.removeprefix("-"))
            if not alias.startswith("-"):
                model.aliases[alias] = version.number
            elif alias == "-default":
                raise invalid("The default version alias can be moved and not removed")
            elif model.aliases.get(alias[1:]) == version.number:
                del model.aliases[alias[1:]]
        return self.message(model, version)

    def delete_model_version(self, request: aiplatform_v1.DeleteModelVersionRequest) -> operations_pb2.Operation:
        model, version = self.find(request.name)
        if "@" not in request.name:
            raise invalid("The name must have a version id")
        if len(self._ready(model)) == 1:
            raise GoogleError("FAILED_PRECONDITION", "The only version of a Model cannot be deleted; use DeleteModel")
        self._undeployed(model, version.number)
        del model.versions[version.number]
        model.aliases = {alias: number for alias, number in model.aliases.items() if number != version.number}
        model.aliases.setdefault("default", max(model.versions))
        return self._deleted(model.name)

    def delete_model(self, request: aiplatform_v1.DeleteModelRequest) -> operations_pb2.Operation:
        model = self._model(rules.resource(request.name, "models"))
        self._undeployed(model, None)
        del self.models[model.name]
        return self._deleted(model.name)

    # --- the parts ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> tuple[FakeModel, FakeVersion]:
        """A version, by its name with a number, an alias, or neither for the default.

        :raises GoogleError: NOT_FOUND.
        """
        plain, _, wanted = rules.resource(name, "models").partition("@")
        model = self._model(plain)
        number = int(wanted) if wanted.isdigit() else model.aliases.get(wanted or "default", 0)
        found = self._ready(model).get(number)
        if found is None:
            raise rules.missing(name)
        return model, found

    def message(self, model: FakeModel, version: FakeVersion) -> aiplatform_v1.Model:
        """A version as the API gives it."""
        found: Any = aiplatform_v1.Model(version.message)
        found.name, found.version_id = model.name, str(version.number)
        found.version_aliases = sorted(alias for alias, number in model.aliases.items() if number == version.number)
        found.create_time = found.version_create_time = moment(version.ready)
        found.supported_deployment_resources_types = ["DEDICATED_RESOURCES"]
        found.deployed_models = [
            {"endpoint": endpoint, "deployed_model_id": deployed}
            for endpoint, deployed, number in self.cloud.vertex.endpoints.deployments(model.name)
            if number == version.number
        ]
        return found

    def _model(self, name: str) -> FakeModel:
        if name not in self.models:
            raise rules.missing(name)
        return self.models[name]

    def _ready(self, model: FakeModel) -> dict[int, FakeVersion]:
        now = self.cloud.clock.now()
        return {number: version for number, version in model.versions.items() if version.ready <= now}

    def _undeployed(self, model: FakeModel, number: int | None) -> None:
        used = [
            endpoint for endpoint, _, version in self.cloud.vertex.endpoints.deployments(model.name)
            if number in (None, version)
        ]  # fmt: skip
        if used:
            raise GoogleError("FAILED_PRECONDITION", f"The Model {model.name} is deployed at {', '.join(used)}")

    def _deleted(self, name: str) -> operations_pb2.Operation:
        done = LongRunning(aiplatform_v1.DeleteOperationMetadata, lambda: Outcome(empty_pb2.Empty()), lambda: None)
        return self.cloud.operations.message(self.cloud.operations.start(name, done))


def _check(request: Any) -> None:
    """What the service refuses beyond what is marked as required."""
    model = request.model
    rules.check_common(model)
    if request.model_id and not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", request.model_id):
        raise invalid(f"Invalid model_id {request.model_id}: up to 63 characters [a-z0-9_-], the first no number or -")
    if request.model_id and request.parent_model:
        raise invalid("model_id and parent_model cannot be given together")
    if model.artifact_uri and not model.artifact_uri.startswith("gs://"):
        raise invalid(f"Invalid Cloud Storage URI: {model.artifact_uri}")
    for alias in model.version_aliases:
        _check_alias(alias)


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise invalid(f"Invalid version alias {alias}: it must match {_ALIAS.pattern}")
