"""A gateway before the emulator's Storage Write API: it checks every request, writes it down, and fails on demand.

The emulator ``bqemulator`` keeps pending streams and commits them. What BigQuery asks for and the emulator does not is
asked for here: the header that names the stream, a request's size, an offset for every append to a pending stream, the
schema on a connection's first request, one stream for each connection. Faults break off a call before or after the
emulator has carried it out. The client is google-cloud-bigquery-storage itself.

Not here: quotas, regions, keys of encryption.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc

_SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryWrite/"
#: Largest request (BigQuery, "Quotas and limits", Storage Write API).
MOST_BYTES = 10 * 1024 * 1024
_REQUESTS = {
    "CreateWriteStream": "CreateWriteStreamRequest", "AppendRows": "AppendRowsRequest",
    "FinalizeWriteStream": "FinalizeWriteStreamRequest", "BatchCommitWriteStreams": "BatchCommitWriteStreamsRequest",
    "GetWriteStream": "GetWriteStreamRequest", "FlushRows": "FlushRowsRequest",
}  # fmt: skip


@dataclass
class WriteFault:
    """What goes wrong with a call.

    :param method: such as ``AppendRows``.
    :param skip: calls of it that go well before.
    :param lost: whether the emulator carries it out and only the reply is lost.
    :param code: what the client sees.
    """

    method: str
    skip: int = 0
    lost: bool = False
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass
class WriteGateway:
    """The gateway.

    :param address: where it listens.
    :param calls: name and message of each request, in their order.
    :param faults: what goes wrong next; one is gone once it was met.
    """

    address: str
    channel: grpc.Channel
    calls: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[WriteFault] = field(default_factory=list)

    def methods(self) -> list[str]:
        """Names of the calls."""
        return [name for name, _ in self.calls]

    def reset(self) -> None:
        """Forget calls and faults."""
        self.calls.clear()
        self.faults.clear()

    # --- what the handler asks ------------------------------------------------------------------------------------

    def unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer one call."""
        fault = self._received(method, request)
        if fault and not fault.lost:
            context.abort(fault.code, "injected")
        try:
            reply = self.channel.unary_unary(_SERVICE + method)(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if fault:
            context.abort(fault.code, "injected, after it was carried out")
        return _as_bigquery(method, reply)

    def stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer the appends of a connection, one after the other."""
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        replies = self.channel.stream_stream(_SERVICE + "AppendRows")(iter(waiting.get, None))
        bound = ""
        try:
            for request in requests:
                fault = self._received("AppendRows", request)
                if wrong := self._wrong(request, bound, context):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
                bound = self.calls[-1][1].write_stream
                if fault and not fault.lost:
                    context.abort(fault.code, "injected")
                waiting.put(request)
                reply = next(replies)
                if fault:
                    context.abort(fault.code, "injected, after it was carried out")
                yield reply
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        finally:
            waiting.put(None)

    def _received(self, method: str, request: bytes) -> WriteFault | None:
        from google.cloud.bigquery_storage_v1 import types

        self.calls.append((method, getattr(types, _REQUESTS[method]).deserialize(request)))
        fault = next((fault for fault in self.faults if fault.method == method), None)
        if fault is None:
            return None
        if fault.skip:
            fault.skip -= 1
            return None
        self.faults.remove(fault)
        return fault

    def _wrong(self, request: bytes, bound: str, context: grpc.ServicerContext) -> str:
        message = self.calls[-1][1]
        # The client library may send the header twice, the second time empty.
        routed = [value for key, value in context.invocation_metadata() if key == "x-goog-request-params"]
        if f"write_stream={message.write_stream}" not in routed:
            return "the header x-goog-request-params does not name the stream"
        if len(request) > MOST_BYTES:
            return f"the request has {len(request)} bytes, more than {MOST_BYTES}"
        if "offset" not in message:
            return "an append to a pending stream needs an offset"
        if not bound and not message.arrow_rows.writer_schema.serialized_schema:
            return "the first request of a connection needs the schema"
        if bound and bound != message.write_stream:
            return "a connection has one stream"
        return ""


def _as_bigquery(method: str, reply: bytes) -> bytes:
    """The emulator's reply as BigQuery gives it: a stream that was committed is told by a code of its own."""
    if method != "BatchCommitWriteStreams":
        return reply
    from google.cloud.bigquery_storage_v1 import types

    told = types.BatchCommitWriteStreamsResponse.deserialize(reply)
    for error in told.stream_errors:
        if error.error_message.endswith("state=COMMITTED"):
            error.code = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED
    return bytes(types.BatchCommitWriteStreamsResponse.serialize(told))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, gateway: WriteGateway) -> None:
        self.gateway = gateway

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = handler_call_details.method.removeprefix(_SERVICE)
        if method not in _REQUESTS:
            return None
        if method == "AppendRows":
            return grpc.stream_stream_rpc_method_handler(self.gateway.stream)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.gateway.unary(method, request, context)
        )


@contextlib.contextmanager
def write_gateway(emulator: str) -> Iterator[WriteGateway]:
    """A gateway on a free port of the loopback interface.

    :param emulator: address of the emulator's gRPC port.
    """
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(emulator, options=sizes)
    server = grpc.server(futures.ThreadPoolExecutor(8), options=sizes)
    gateway = WriteGateway(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", channel)
    server.add_generic_rpc_handlers((_Handler(gateway),))
    server.start()
    try:
        yield gateway
    finally:
        server.stop(None).wait()
        channel.close()
