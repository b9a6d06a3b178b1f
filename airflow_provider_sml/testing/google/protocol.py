"""The methods of a service and their messages, taken from Google's own client library of it, and the check of requests.

A transport of the library builds each method from its path and its messages; here it builds them on a channel that
notes these and calls nothing. So a fake knows every method of its service, also those that it does not implement, and
reads and writes the vendor's own types. What a message must have is said by the word "Required" in its documentation.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
import proto
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from airflow_provider_sml.testing.google.errors import invalid


@dataclass(frozen=True)
class Method:
    """A method of a service.

    :param name: such as ``CreateBatch``.
    :param read: makes the request of its bytes.
    :param write: makes the bytes of the reply.
    """

    name: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]

    @property
    def handler(self) -> str:
        """Name of the function that answers it, such as ``create_batch``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).lower()


def _pb2(name: str, request: Any, reply: Any) -> Method:
    return Method(name, request.FromString, reply.SerializeToString)


#: The service of long-running operations, which every other one shares.
OPERATIONS = "google.longrunning.Operations"
_OPERATIONS = {
    method.name: method
    for method in (
        _pb2("GetOperation", operations_pb2.GetOperationRequest, operations_pb2.Operation),
        _pb2("ListOperations", operations_pb2.ListOperationsRequest, operations_pb2.ListOperationsResponse),
        _pb2("CancelOperation", operations_pb2.CancelOperationRequest, empty_pb2.Empty),
        _pb2("DeleteOperation", operations_pb2.DeleteOperationRequest, empty_pb2.Empty),
        _pb2("WaitOperation", operations_pb2.WaitOperationRequest, operations_pb2.Operation),
    )
}


@cache
def methods(transport: str) -> dict[str, dict[str, Method]]:
    """The methods of a service by its full name and theirs.

    :param transport: path of the gRPC transport in Google's library; empty for the long-running operations.
    """
    if not transport:
        return {OPERATIONS: _OPERATIONS}
    module, _, name = transport.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    channel = _Notes()
    made = kind(channel=channel)
    made._logged_channel, made._stubs = channel, {}  # those it has were made through its logging
    for attribute in dir(kind):
        if isinstance(getattr(kind, attribute), property) and not attribute.startswith("_"):
            getattr(made, attribute)
    found: dict[str, dict[str, Method]] = {}
    for path, (write, read) in channel.noted.items():
        _, service, method = path.split("/")
        request, reply = getattr(write, "__self__", None), getattr(read, "__self__", None)
        if isinstance(request, proto.message.MessageMeta) and reply is not None:
            serialize = reply.serialize if hasattr(reply, "serialize") else reply.SerializeToString
            found.setdefault(service, {})[method] = Method(method, request.deserialize, serialize)
    return found


class _Notes(grpc.Channel):
    """A channel that notes what is asked of it."""

    def __init__(self) -> None:
        self.noted: dict[str, tuple[Any, Any]] = {}

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, *_: Any, **__: Any
    ) -> Any:
        self.noted[method] = (request_serializer, response_deserializer)
        return self.unary_stream()

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        def call(*_: Any, **__: Any) -> None:
            raise AssertionError("nothing is called here")

        return call

    stream_unary = stream_stream = unary_stream

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        return None

    def unsubscribe(self, callback: Any) -> None:
        return None

    def close(self) -> None:
        return None

    def __enter__(self) -> _Notes:
        return self

    def __exit__(self, *_: object) -> None:
        return None


# --- what a request must have -----------------------------------------------------------------------------------------


def check_required(request: Any) -> None:
    """Refuse a request that lacks what its documentation requires.

    Numbers and booleans are not checked: their wire form does not tell 0 from nothing. What an update changes may be
    a part of the whole, so only its own fields are checked.

    :raises GoogleError: INVALID_ARGUMENT, which names the fields.
    """
    if isinstance(request, proto.Message):
        missing = list(_missing(request, "", deep="update_mask" not in type(request).meta.fields))
        if missing:
            raise invalid(f"Request is missing required fields: {', '.join(missing)}")


def _missing(message: proto.Message, path: str, deep: bool = True) -> Iterator[str]:
    required = _required(type(message))
    for name, field in type(message).meta.fields.items():
        value = getattr(message, name)
        inner = isinstance(value, proto.Message)
        given = (name in message) if inner else value not in ("", b"") and not _empty(value)
        if name in required and not given:
            yield f"{path}{name}"
        elif not deep:
            continue
        elif inner and given:
            yield from _missing(value, f"{path}{name}.")
        elif field.repeated and field.message and not hasattr(value, "items"):
            for number, item in enumerate(value):
                if isinstance(item, proto.Message):
                    yield from _missing(item, f"{path}{name}[{number}].")


def _empty(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 0


def _required(kind: type) -> set[str]:
    return set(re.findall(r"^\s+(\w+) \([^)]*\):\s+Required\.", kind.__doc__ or "", re.MULTILINE))
