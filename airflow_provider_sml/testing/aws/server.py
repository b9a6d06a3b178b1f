"""The HTTP server of the fake AWS: finds the service and the operation, lets faults happen, checks, answers.

It listens on the loopback interface only, and checks no signatures: who may do what is a matter of the faults
``denied`` and ``expired_token``.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from botocore import xform_name

from airflow_provider_sml.testing.aws.errors import AwsError
from airflow_provider_sml.testing.aws.protocol import Protocol
from airflow_provider_sml.testing.core import Call
from airflow_provider_sml.testing.core.faults import CALL_FAULTS, Fault

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

#: Prefix of X-Amz-Target -> service.
TARGETS = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "GraniteServiceVersion20100801": "cloudwatch",
    "AnyScaleFrontendService": "application-autoscaling",
    "RedshiftData": "redshift-data",
}
#: Name in the signature -> service, for those that have no target.
SIGNED = {"sagemaker": "sagemaker-runtime", "emr-serverless": "emr-serverless"}
_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/[^/]+/([a-z0-9-]+)/aws4_request")
#: Members that name the resource of a call, for the faults of one resource.
_NAMES = (
    "TrainingJobName", "EndpointName", "EndpointConfigName", "ModelName", "AlarmName", "ResourceId", "name", "jobRunId",
    "applicationId", "StatementName", "ModelPackageGroupName", "ModelPackageName", "ModelPackageArn",
)  # fmt: skip


class Server:
    """Serves a ``FakeAws`` in threads until it is closed.

    :param cloud: what is served.
    :param port: port on the loopback interface; 0 takes a free one.
    """

    def __init__(self, cloud: FakeAws, port: int = 0) -> None:
        self._cloud = cloud
        self._lock = threading.RLock()
        self._protocols: dict[str, Protocol] = {}
        handler = type("Handler", (_Handler,), {"server_of_cloud": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer to a request.

        :raises ConnectionAbortedError: when the connection is to be closed without one.
        """
        service = _service(headers)
        if service is None:
            raise AwsError("MissingAuthenticationToken", "the request names no service that is faked here", 403)
        with self._lock:  # one call at a time: each sees the effects of those before it, whole
            protocol = self._protocols.setdefault(service, Protocol(service))
            try:
                return self._call(protocol, method, path, headers, body)
            except AwsError as error:
                return protocol.error(error)

    def _call(
        self, protocol: Protocol, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        cloud = self._cloud
        cloud.clock.tick()
        operation, labels = protocol.operation(method, path, headers.get("x-amz-target", ""))
        record: dict[str, Any] = {"service": protocol.service, "operation": operation.name, "params": {}}
        try:
            handler = getattr(cloud.services[protocol.service], xform_name(operation.name), None)
            if handler is None:
                raise AwsError(
                    "NotImplemented", f"the fake does not implement {protocol.service}:{operation.name}", 501
                )
            record["params"] = params = protocol.request(operation, labels, path, headers, body)
            name = next((str(params[key]) for key in _NAMES if key in params), "")
            fault = cloud.faults.take(CALL_FAULTS, operation.name, name)
            if fault is not None and fault.kind != "drop_after":
                _happen(fault, protocol.service, operation.name)
            answer = protocol.reply(operation, handler(params) or {})
        except (AwsError, ConnectionAbortedError) as error:
            code = error.code if isinstance(error, AwsError) else "ConnectionDropped"
            record |= {"error": code, "effect": False, "replied": isinstance(error, AwsError)}
            raise
        else:
            if fault is not None:
                record |= {"error": "ReplyLost", "replied": False}
                raise ConnectionAbortedError
            return answer
        finally:
            cloud.calls.append(Call(at=cloud.clock.now(), **record))


def _service(headers: dict[str, str]) -> str | None:
    if target := headers.get("x-amz-target"):
        return TARGETS.get(target.partition(".")[0])
    scope = _SCOPE.search(headers.get("authorization", ""))
    return SIGNED.get(scope[1]) if scope else None


def _happen(fault: Fault, service: str, operation: str) -> None:
    """Raise what the client is to see."""
    action = f"{service.removesuffix('-runtime')}:{operation}"
    if fault.kind == "drop_before":
        raise ConnectionAbortedError
    if fault.kind == "throttle":
        raise AwsError("ThrottlingException", "Rate exceeded")
    if fault.kind == "server_error":
        raise AwsError("InternalFailure", "The request processing has failed because of an unknown error", 500)
    if fault.kind == "denied":
        user = "arn:aws:sts::123456789012:assumed-role/airflow/worker"
        raise AwsError("AccessDeniedException", f"User: {user} is not authorized to perform: {action}")
    if fault.kind == "expired_token":
        raise AwsError("ExpiredTokenException", "The security token included in the request is expired")
    code = "ServiceQuotaExceededException" if service == "emr-serverless" else "ResourceLimitExceeded"
    raise AwsError(code, str(fault.detail.get("reason", "The account-level service limit is 0 Instances")))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to confirm its head
    server_of_cloud: Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        try:
            if self.path.startswith("/_fake/"):
                status, more, answer = 200, {"Content-Type": "application/json"}, self._control(body)
            else:
                status, more, answer = self.server_of_cloud.answer(self.command, self.path, headers, body)
        except ConnectionAbortedError:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        except AwsError as error:
            status, more, answer = error.status, {}, json.dumps({"__type": error.code, "message": str(error)}).encode()
        except Exception as error:  # a defect of the fake: the client is told, so that its test is not left guessing
            text = f"the fake failed: {type(error).__name__}: {error}"
            status, more, answer = 501, {}, json.dumps({"__type": "FakeFailure", "message": text}).encode()
        self.send_response(status)
        for key, value in (more | {"x-amzn-RequestId": str(uuid.uuid4()), "Content-Length": str(len(answer))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer)

    def _control(self, body: bytes) -> bytes:
        """What the command line asks of a server that runs in another process."""
        verb = self.path.removeprefix("/_fake/")
        return json.dumps(self.server_of_cloud._cloud.control(verb, json.loads(body or b"{}")), default=str).encode()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet; the calls are recorded."""
