"""Long-running operations, as every service of Google Cloud has them: what they are follows from their resource."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED
from airflow_provider_sml.testing.google.errors import GoogleError

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

_SOURCE = "https://github.com/googleapis/googleapis/blob/master/google/longrunning/operations.proto"


@dataclass(frozen=True)
class Outcome:
    """How an operation ended.

    :param reply: the message that it gives, when it succeeded.
    :param code: number of the status code, when it did not.
    :param message: what the service says then.
    """

    reply: Any = None
    code: int = 0
    message: str = ""


@dataclass(frozen=True)
class LongRunning:
    """An operation.

    :param metadata: gives its metadata, a message of the service.
    :param outcome: gives how it ended; None while it runs.
    :param cancel: starts its cancellation.
    """

    metadata: Callable[[], Any]
    outcome: Callable[[], Outcome | None]
    cancel: Callable[[], None]


class Operations:
    """``google.longrunning.Operations`` for all services.

    :param cloud: the project.
    """

    TRANSPORT = ""
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("operations", "A cancelled operation stays, with the error CANCELLED (1).", DOCUMENTED, _SOURCE),
        Behaviour("operations", "Cancelling an operation that is done is FAILED_PRECONDITION.", ASSUMED,
                  "AIP-136 on methods that do not fit the state of a resource"),
        Behaviour("operations", "Deleting one forgets it and does not cancel it.", DOCUMENTED, _SOURCE),
    )  # fmt: skip

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.known: dict[str, LongRunning] = {}

    def start(self, parent: str, operation: LongRunning) -> str:
        """Keep an operation; gives its name.

        :param parent: such as ``projects/p/regions/r``.
        """
        name = f"{parent}/operations/{uuid.uuid4()}"
        self.known[name] = operation
        return name

    def message(self, name: str) -> Any:
        """The operation as a message."""
        known = self._known(name)
        found = operations_pb2.Operation(name=name)
        found.metadata.Pack(_plain(known.metadata()))
        outcome = known.outcome()
        if outcome is not None:
            found.done = True
            if outcome.code:
                found.error.CopyFrom(status_pb2.Status(code=outcome.code, message=outcome.message))
            else:
                found.response.Pack(_plain(outcome.reply))
        return found

    def get_operation(self, request: Any) -> Any:
        return self.message(request.name)

    def list_operations(self, request: Any) -> Any:
        names = [name for name in self.known if name.startswith(request.name.rstrip("/") + "/")]
        return operations_pb2.ListOperationsResponse(operations=[self.message(name) for name in names])

    def cancel_operation(self, request: Any) -> Any:
        known = self._known(request.name)
        if known.outcome() is not None:
            raise GoogleError("FAILED_PRECONDITION", f"Operation {request.name} is done and cannot be cancelled")
        known.cancel()
        return empty_pb2.Empty()

    def delete_operation(self, request: Any) -> Any:
        self._known(request.name)
        del self.known[request.name]
        return empty_pb2.Empty()

    def _known(self, name: str) -> LongRunning:
        if name not in self.known:
            raise GoogleError("NOT_FOUND", f"Not found: Operation {name}")
        return self.known[name]


def _plain(message: Any) -> Any:
    """A message of proto-plus as protobuf's own."""
    return type(message).pb(message) if hasattr(type(message), "pb") else message
