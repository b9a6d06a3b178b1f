"""The gRPC server of the fake Google Cloud: finds the method, lets faults happen, checks, answers.

It speaks TLS on the loopback interface only and takes any credentials: who may do what is a matter of the faults
``denied`` and ``expired_token``. A lost connection is a real one: the tunnel of the client is cut.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import proto
from google.protobuf.json_format import MessageToDict

from airflow_provider_sml.testing.core import Call
from airflow_provider_sml.testing.core.faults import CALL_FAULTS, Fault
from airflow_provider_sml.testing.google.errors import GoogleError
from airflow_provider_sml.testing.google.protocol import Method, check_required, methods
from airflow_provider_sml.testing.google.proxy import Proxy
from airflow_provider_sml.testing.google.tls import certificate

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle


class ConnectionLost(Exception):
    """The client is to get no answer."""


class Server(grpc.GenericRpcHandler):
    """Serves a ``FakeGoogle`` in threads until it is closed.

    :param cloud: what is served.
    :param port: port of its proxy on the loopback interface; 0 takes a free one.
    """

    def __init__(self, cloud: FakeGoogle, port: int = 0) -> None:
        self._cloud = cloud
        self._lock = threading.RLock()
        self._grpc = grpc.server(ThreadPoolExecutor(16), handlers=(self,), options=(("grpc.so_reuseport", 0),))
        own = certificate()
        credentials = grpc.ssl_server_credentials([(own.key, own.chain)])
        self.port = self._grpc.add_secure_port("127.0.0.1:0", credentials)
        self._grpc.start()
        self._proxy = Proxy(cloud, self.port, port)
        self.url = self._proxy.url

    def close(self) -> None:
        """End it."""
        self._grpc.stop(0).wait(5)
        self._proxy.close()

    def service(self, handler_call_details: Any) -> Any:
        """gRPC asks what answers a method."""
        _, service, name = handler_call_details.method.split("/")
        if service.startswith("google.cloud.aiplatform."):
            assert self._cloud.vertex  # its services are known once it is made
        if service.startswith("google.monitoring."):
            assert self._cloud.monitoring
        for answers in self._cloud.services.values():
            method = methods(answers.TRANSPORT).get(service, {}).get(name)
            if method is not None:
                return self._handler(answers, service, method)
        # bytes in, and nothing out: the method is named to the client
        return self._handler(None, service, Method(name, bytes, bytes))

    def _handler(self, answers: Any, service: str, method: Method) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return self._call(answers, service, method, request)
            except GoogleError as error:
                context.abort(grpc.StatusCode[error.code], error.message)
            except ConnectionLost:
                self._proxy.cut(context.peer())
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            except Exception as error:  # a defect of the fake: the client is told of it
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"the fake failed: {type(error).__name__}: {error}")

        return grpc.unary_unary_rpc_method_handler(answer, method.read, method.write)

    def _call(self, answers: Any, service: str, method: Method, request: Any) -> Any:
        cloud = self._cloud
        with self._lock:  # one call at a time: each sees the effects of those before it, whole
            cloud.clock.tick()
            record: dict[str, Any] = {"service": service, "operation": method.name, "params": _params(request)}
            try:
                handler = getattr(answers, method.handler, None)
                if handler is None:
                    raise GoogleError("UNIMPLEMENTED", f"the fake does not implement {service}/{method.name}")
                fault = cloud.faults.take(CALL_FAULTS, method.name, _name(record["params"]))
                if fault is not None and fault.kind != "drop_after":
                    _happen(fault, method.name, getattr(answers, "QUOTA", _QUOTA))
                check_required(request)
                reply = handler(request)
            except (GoogleError, ConnectionLost) as error:
                code = error.code if isinstance(error, GoogleError) else "ConnectionDropped"
                record |= {"error": code, "effect": False, "replied": isinstance(error, GoogleError)}
                raise
            else:
                if fault is not None:
                    record |= {"error": "ReplyLost", "replied": False}
                    raise ConnectionLost
                return reply
            finally:
                cloud.calls.append(Call(at=cloud.clock.now(), **record))


def _params(request: Any) -> dict[str, Any]:
    if isinstance(request, bytes):
        return {}
    message = type(request).pb(request) if isinstance(request, proto.Message) else request
    return MessageToDict(message, preserving_proto_field_name=True)


def _name(params: dict[str, Any]) -> str:
    """Name of the resource of a call, for the faults of one resource."""
    own = next((str(value) for key, value in params.items() if key.endswith("_id") and key != "request_id"), "")
    place = next((params[key] for key in ("name", "parent", "endpoint") if isinstance(params.get(key), str)), "")
    return own or str(place).rpartition("/")[2]


_QUOTA = "Insufficient 'CPUS' quota. Requested 12.0, available 8.0."


def _happen(fault: Fault, method: str, quota: str) -> None:
    """Raise what the client is to see."""
    if fault.kind == "drop_before":
        raise ConnectionLost
    reason = str(fault.detail.get("reason", ""))
    if fault.kind == "throttle":
        said = f"Quota exceeded for quota metric '{method} requests' and limit '{method} requests per minute'"
        raise GoogleError("RESOURCE_EXHAUSTED", reason or said)
    if fault.kind == "quota":
        raise GoogleError("RESOURCE_EXHAUSTED", reason or quota)
    if fault.kind == "denied":
        raise GoogleError("PERMISSION_DENIED", reason or f"Permission to call {method} denied on resource")
    if fault.kind == "expired_token":
        said = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"
        raise GoogleError("UNAUTHENTICATED", said)
    raise GoogleError(str(fault.detail.get("code", "INTERNAL")), reason or "Internal error encountered.")
