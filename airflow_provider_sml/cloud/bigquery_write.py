"""BigQuery's Storage Write API: rows into a staging table exactly once, without a file and without Cloud Storage.

A pending stream takes Arrow record batches, each under its offset, and shows none of them before the whole stream is
committed. A connection that breaks is opened anew and the batch in hand is sent again under the same offset: what
BigQuery has already is answered by ALREADY_EXISTS and not taken twice. A stream that is never committed leaves nothing.

There is no load job that a retry could attach to. So each try writes to a staging table of its own, under a name that
nobody else has, and only the script is one job of a name: the first to start it wins, and another one's staging table
goes. Unlike a load job the rows are billed, from 2 TiB a month on (BigQuery, "Pricing", data ingestion).
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.bigquery import BigQueryPublishJob
from airflow_provider_sml.cloud.clients import open_client
from airflow_provider_sml.cloud.google import apart
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.errors import JobError

if TYPE_CHECKING:
    import pyarrow as pa
    from google.cloud import bigquery

#: Bytes of rows of one request; BigQuery takes 10 MB with all that is around them ("Quotas", Storage Write API).
REQUEST_BYTES = 8 * 1024 * 1024
_TRIES = 6
# google.rpc.Code: the append is there already.
_ALREADY_EXISTS = 6
# Which of them a later try may not meet again: deadline, quota, aborted, internal, unavailable.
_TRANSIENT = frozenset({4, 8, 10, 13, 14})


@dataclass(frozen=True)
class BigQueryWriteJob(BigQueryPublishJob):
    """Writes rows into a staging table by the Storage Write API and publishes them by a script.

    ``submit`` returns once the rows are written and the script has begun; the other verbs see the script alone.

    :param rows: gives the rows as Arrow record batches; called by ``submit`` only, once for each try.
    :param writer: path of the function that opens the client of the Storage Write API.
    """

    rows: Callable[[], Iterable[pa.RecordBatch]] | None = None
    writer: str = ""

    def describe(self) -> dict[str, Any]:
        """The adapter without the rows, which only ``submit`` needs."""
        return super(BigQueryWriteJob, replace(self, rows=None)).describe()

    # --- the four verbs -------------------------------------------------------------------------------------------

    def status(self, job_id: str) -> JobStatus:
        """Look at the script."""
        publish = self._find(self._client(), f"{job_id}-publish")
        if publish is None:
            return JobStatus(JobState.FAILED, f"there is no job {job_id}-publish")
        return self._ended(publish, "publishing") or JobStatus(JobState.SUCCEEDED)

    def result(self, job_id: str) -> dict[str, Any]:
        """Rows, and what it cost: bytes written, bytes billed and slot-milliseconds of the script."""
        client = self._client()
        publish = self._find(client, f"{job_id}-publish")
        if publish is None:
            raise JobError(f"the job of {job_id} is gone", expected="BigQuery keeps jobs for 180 days")
        self._drop_staging(client, job_id)
        return {
            "job": publish.job_id,
            "rows": int(publish.labels["sml_rows"]),
            "bytes_written": int(publish.labels["sml_bytes"]),
            "bytes_billed": publish.total_bytes_billed,
            "slot_ms": publish.slot_millis,
        }

    # --- the parts ------------------------------------------------------------------------------------------------

    def _stands(self, client: bigquery.Client, job_id: str) -> str:
        publish = self._find(client, f"{job_id}-publish")
        return "new" if publish is None else self._publish_stands(client, publish)

    def _bring(self, client: bigquery.Client, job_id: str) -> None:
        """Write the rows and start the script; what is written for nothing is dropped at once."""
        assert self.rows is not None
        own = f"sml_staging_{uuid.uuid4().hex}"
        staging = self._create_staging(client, own)
        used = ""
        try:
            written = write_rows(
                open_client(self.writer, self.connection),
                f"projects/{staging.project}/datasets/{staging.dataset_id}/tables/{staging.table_id}",
                self.rows(),
            )
            labels = {"sml_staging": own, "sml_rows": str(written.rows), "sml_bytes": str(written.bytes)}
            used = self._publish(client, job_id, own, labels).labels.get("sml_staging", "")
        finally:
            if used != own:  # it failed, or another try of this task was quicker
                client.delete_table(staging.reference, not_found_ok=True)

    def _drop_staging(self, client: bigquery.Client, job_id: str) -> None:
        publish = self._find(client, f"{job_id}-publish")
        if publish is not None and (own := publish.labels.get("sml_staging")):
            client.delete_table(f"{self.project}.{self.dataset}.{own}", not_found_ok=True)


@dataclass(frozen=True)
class Written:
    """What was written.

    :param rows: how many.
    :param bytes: of the Arrow record batches.
    """

    rows: int
    bytes: int


def write_rows(client: Any, table: str, batches: Iterable[pa.RecordBatch]) -> Written:
    """Write rows into a table: all of them once, or none.

    :param client: a ``BigQueryWriteClient``.
    :param table: ``projects/P/datasets/D/tables/T``; it must be there, with the batches' columns.
    :param batches: the rows, all of one schema.
    :raises JobError: when BigQuery refuses them, or cannot be reached for long.
    """
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.bigquery_storage_v1 import types

    pending = types.WriteStream(type_=types.WriteStream.Type.PENDING)
    try:
        stream = _patiently(lambda: client.create_write_stream(parent=table, write_stream=pending, retry=None))
        rows = size = 0
        with _Connection(client, stream.name) as connection:
            for count, schema, data in _pieces(batches):
                connection.append(rows, schema, data)
                rows, size = rows + count, size + len(data)
        found = apart(lambda: client.finalize_write_stream(name=stream.name).row_count)
        if found != rows:
            raise JobError(f"{table}: the stream holds other rows than were sent", expected=rows, found=found)
        if rows:
            request = types.BatchCommitWriteStreamsRequest(parent=table, write_streams=[stream.name])
            done = apart(client.batch_commit_write_streams, request)
            # The client sends it again when a reply was lost.
            committed = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED
            errors = [error for error in done.stream_errors if error.code != committed]
            if errors:
                raise _refused(table, errors[0].error_message)
    except GoogleAPICallError as error:
        code = error.grpc_status_code.value[0] if error.grpc_status_code else None
        raise _refused(table, f"{type(error).__name__}: {error.message}", code) from error
    return Written(rows, size)


class _Connection:
    """One connection to a stream, opened anew when it breaks; one append is in flight at a time.

    :param client: a ``BigQueryWriteClient``.
    :param stream: name of the stream.
    """

    def __init__(self, client: Any, stream: str) -> None:
        self.client = client
        self.stream = stream
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies: Iterator[Any] | None = None

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def append(self, offset: int, schema: bytes, data: bytes) -> None:
        """Append a batch, and wait until BigQuery has it.

        :param offset: rows of the stream before it.
        :param schema: Arrow's own encoding of the schema.
        :param data: and of the batch.
        """
        from google.cloud.bigquery_storage_v1 import types

        rows = types.AppendRowsRequest.ArrowData(
            writer_schema=types.ArrowSchema(serialized_schema=schema),
            rows=types.ArrowRecordBatch(serialized_record_batch=data),
        )
        request = types.AppendRowsRequest(write_stream=self.stream, offset=offset, arrow_rows=rows)
        reply = _patiently(lambda: self._send(request), self._close)
        if (code := reply.error.code) not in (0, _ALREADY_EXISTS):
            details = "; ".join(f"row {row.index}: {row.message}" for row in list(reply.row_errors)[:3])
            raise _refused(self.stream, f"{reply.error.message} {details}".strip(), code)

    def _send(self, request: Any) -> Any:
        from google.api_core.exceptions import ServiceUnavailable

        self._requests.put(request)
        if self._replies is None:
            # No retry by the client: it would send from where this iterator stands, not what was lost.
            self._replies = iter(
                self.client.append_rows(
                    iter(self._requests.get, None),
                    retry=None,
                    metadata=(("x-goog-request-params", f"write_stream={self.stream}"),),
                )
            )
        try:
            reply = next(self._replies)
        except StopIteration:
            raise ServiceUnavailable("the connection was closed") from None
        if reply.error.code in _TRANSIENT:
            raise ServiceUnavailable(reply.error.message)
        return reply

    def _close(self) -> None:
        self._requests.put(None)
        self._requests, self._replies = queue.SimpleQueue(), None


def _patiently(call: Callable[[], Any], between: Callable[[], None] = lambda: None) -> Any:
    """What a call gives, after some tries where the service fails or does not know of a new table yet."""
    from google.api_core.exceptions import (
        Aborted,
        DeadlineExceeded,
        InternalServerError,
        NotFound,
        ResourceExhausted,
        ServiceUnavailable,
    )

    for number in range(_TRIES):
        try:
            return apart(call)
        except (ServiceUnavailable, InternalServerError, Aborted, DeadlineExceeded, ResourceExhausted, NotFound):
            between()
            if number == _TRIES - 1:
                raise
            time.sleep(0.1 * 2**number)
    raise AssertionError("unreachable")


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, bytes, bytes]]:
    """Rows, schema and encoding of parts that fit into one request."""
    for batch in batches:
        if not batch.num_rows:
            continue
        parts = [batch]
        while parts:
            part = parts.pop(0)
            data = part.serialize().to_pybytes()
            if len(data) > REQUEST_BYTES and part.num_rows > 1:
                half = part.num_rows // 2
                parts[:0] = [part.slice(0, half), part.slice(half)]
            else:
                yield part.num_rows, part.schema.serialize().to_pybytes(), data


def _refused(where: str, said: str, code: int | None = None) -> JobError:
    error = JobError(f"BigQuery did not take the rows for {where}: {said}")
    error.retryable = code in _TRANSIENT
    return error
