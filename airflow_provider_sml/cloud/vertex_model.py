"""Calls of Vertex AI that roll-outs share, and the upload of a version of a model.

Vertex AI numbers a model's versions itself, so a version is told by its description, which names what is uploaded: a
repeat finds it. Of two that were uploaded at once (a reply that was lost) the first one stays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleJob, GoogleRefused
from airflow_provider_sml.cloud.remote_job import job_name
from airflow_provider_sml.errors import DeploymentError, JobError

#: Label of a version: the endpoint that it was uploaded for.
ENDPOINT_LABEL = "sml_endpoint"
#: Seconds between looks where something is waited for inside a verb, and how long it is.
POLL_SECONDS, WITHIN = 5.0, 1800.0


@dataclass(frozen=True, kw_only=True)
class VertexJob(GoogleJob):
    """Base of the adapters of Vertex AI's models and endpoints."""

    @property
    def parent(self) -> str:
        """Where everything is."""
        return f"projects/{self.project}/locations/{self.region}"

    def call(self, service: str, method: str, **request: Any) -> Any:
        """Call a method.

        :param service: ``models``, ``endpoints`` or ``predictions``.
        :param method: such as ``get_endpoint``; must be safe to repeat.
        :param request: its fields.
        """
        kind = {"models": "models", "endpoints": "endpoints", "predictions": "endpoints"}[service]
        question: Callable[[Any], Any] = lambda client: getattr(client, method)(  # noqa: E731
            request=request, timeout=CALL_SECONDS, retry=None
        )
        return self.ask(f"vertex_{service}", f"aiplatform.{kind}.{method.partition('_')[0]}", question)

    def find(self, service: str, method: str, name: str) -> Any:
        """What is under a name, or None."""
        try:
            return self.call(service, method, name=name)
        except GoogleRefused as error:
            if error.code == "NOT_FOUND":
                return None
            raise

    def operations(self, service: str, name: str) -> list[Any]:
        """The operations of a resource, the oldest first; none where they are not kept any more."""
        question: Callable[[Any], Any] = lambda client: list(  # noqa: E731
            client.list_operations({"name": name}, timeout=CALL_SECONDS, retry=None).operations
        )
        try:
            found: list[Any] = self.ask(f"vertex_{service}", "aiplatform.operations.list", question)
        except GoogleRefused as error:
            if error.code != "NOT_FOUND":
                raise
            return []
        return sorted(found, key=_created)

    def wait(self, what: str, done: Callable[[], Any]) -> Any:
        """Wait until something is there; gives it.

        :param what: for the error.
        :param done: gives it, or None.
        :raises JobError: when it takes too long.
        """
        end = time.monotonic() + WITHIN
        while (found := done()) is None:
            if time.monotonic() > end:
                raise JobError(f"{what} took longer than {WITHIN:g} s", todo="a retry goes on")
            time.sleep(POLL_SECONDS)
        return found

    def finish(self, service: str, started: Any, what: str) -> Any:
        """Wait for an operation.

        :param started: as the client gave it.
        :raises DeploymentError: when it fails.
        """
        name = started.operation.name

        def done() -> Any:
            question: Callable[[Any], Any] = lambda client: client.get_operation(  # noqa: E731
                {"name": name}, timeout=CALL_SECONDS, retry=None
            )
            found = self.ask(f"vertex_{service}", "aiplatform.operations.get", question)
            return found if found.done else None

        found = self.wait(what, done)
        if found.error.code:
            raise DeploymentError(f"{what} failed", found=found.error.message)
        return found

    # --- models ---------------------------------------------------------------------------------------------------

    def uploaded(self, model: str, key: str) -> Any:
        """The version of a model that is described so, the first one when there are more; None when there is none."""
        return next(iter(self._versions(model, key)), None)

    def upload(self, model: str, key: str, message: Mapping[str, Any]) -> Any:
        """Upload a version unless it is there; gives it.

        :param model: full name of the Vertex AI model.
        :param key: description of the version.
        :param message: ``Model`` of the API.
        """
        end = time.monotonic() + WITHIN
        while True:
            if time.monotonic() > end:
                raise JobError(f"the upload of {model} {key} took longer than {WITHIN:g} s", todo="a retry goes on")
            running = any(not operation.done for operation in self.operations("models", model))
            if (found := self.uploaded(model, key)) is not None:  # looked for last: what has ended by now is seen
                break
            if running:
                time.sleep(POLL_SECONDS)  # an upload whose reply was lost, or another version's
                continue
            request: dict[str, Any] = {"parent": self.parent, "model": dict(message)}
            known = self.find("models", "get_model", model) is not None
            request |= {"parent_model": model} if known else {"model_id": model.rpartition("/")[2]}

            def ask(client: Any, request: dict[str, Any] = request) -> Any:
                # It is asked again when a reply was lost, and each upload makes a version: look first.
                if busy(client, model) or _described(client, model, key):
                    return None
                return client.upload_model(request=request, timeout=CALL_SECONDS, retry=None)

            try:
                started = self.ask("vertex_models", "aiplatform.models.upload", ask)
            except GoogleRefused as error:
                if error.code != "ALREADY_EXISTS":
                    raise
                time.sleep(POLL_SECONDS)
                continue
            if started is not None:
                self.finish("models", started, f"the upload of {model.rpartition('/')[2]} {key}")
        for double in self._versions(model, key)[1:]:
            self.remove_version(model, double.version_id)
        return found

    def remove_version(self, model: str, number: str) -> None:
        """Delete a version of a model, or the model with its only one; one that is deployed or gone is left."""
        found = self._versions(model)
        try:
            if [item.version_id for item in found] == [number]:
                self.call("models", "delete_model", name=model)
            elif found:
                self.call("models", "delete_model_version", name=f"{model}@{number}")
        except GoogleRefused as error:
            if error.code not in ("NOT_FOUND", "FAILED_PRECONDITION"):
                raise

    def _versions(self, model: str, key: str | None = None) -> list[Any]:
        """The versions of a model, the first one first; those alone that are described so."""
        found: list[Any] = self.ask(
            "vertex_models", "aiplatform.models.list", lambda client: _described(client, model, key)
        )
        return found


def busy(client: Any, name: str) -> bool:
    """Whether an operation runs on a resource.

    :param client: of its service.
    :param name: its full name; it need not be there yet.
    """
    from google.api_core.exceptions import NotFound

    try:
        found = client.list_operations({"name": name}, timeout=CALL_SECONDS, retry=None).operations
    except NotFound:
        return False
    return any(not operation.done for operation in found)


def _described(client: Any, model: str, key: str | None) -> list[Any]:
    from google.api_core.exceptions import NotFound

    try:
        found = list(client.list_model_versions(request={"name": model}, timeout=CALL_SECONDS, retry=None))
    except NotFound:
        return []
    wanted = [item for item in found if key in (None, item.version_description)]
    return sorted(wanted, key=lambda item: int(item.version_id))


def resource_id(name: str) -> str:
    """A name as the id of a model or an endpoint: small letters, digits and hyphens, a letter first."""
    fits = re.fullmatch(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", name)
    return name if fits else f"m-{job_name(name, limit=56)}".lower()


def endpoint_page(project: str, region: str, name: str) -> str:
    """The endpoint's page in Google's console.

    :param project: id of the project.
    :param region: of the endpoint.
    :param name: of the endpoint.
    """
    place = f"{region}/endpoints/{quote(resource_id(name))}?project={quote(project)}"
    return f"https://console.cloud.google.com/vertex-ai/locations/{place}"


def _created(operation: Any) -> float:
    """When an operation was started, seconds since the epoch."""
    from google.cloud import aiplatform_v1

    kind = operation.metadata.type_url.rpartition(".")[2]
    known = getattr(aiplatform_v1, kind, None)
    if known is None:
        return 0.0
    generic = known.deserialize(operation.metadata.value).generic_metadata
    return float(generic.create_time.timestamp()) if generic.create_time else 0.0
