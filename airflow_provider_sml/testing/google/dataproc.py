"""Dataproc Serverless: batches, whose work may be done for real by a function of the test."""

from __future__ import annotations

import datetime as dt
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.cloud import dataproc_v1
from google.protobuf import empty_pb2

from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.testing.core import Behaviour, Timeline
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment
from airflow_provider_sml.testing.google import batch_rules as rules
from airflow_provider_sml.testing.google.errors import GoogleError, invalid
from airflow_provider_sml.testing.google.operations import LongRunning, Outcome

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

_API = "https://cloud.google.com/dataproc-serverless/docs/reference/rpc/google.cloud.dataproc.v1"
_PRICING = "https://cloud.google.com/dataproc-serverless/pricing"
_PROPERTIES = "https://cloud.google.com/dataproc-serverless/docs/concepts/properties"
_FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_CODES = {"CANCELLED": 1, "FAILED": 10}  # of google.rpc.Code
_GB_OF_SHUFFLE = 400  # a worker's disk with four cores, as in the example of the pricing page


@dataclass
class FakeBatch:
    """A batch.

    :param request: what it was made with.
    :param name: ``projects/P/locations/R/batches/ID``.
    :param uuid: the service's own id.
    :param created: seconds since the epoch.
    :param timeline: of its state; the messages are its details.
    :param operation: name of its operation.
    :param reason: what its driver writes when it fails.
    :param thread: does the work, when it is done for real.
    :param logged: whether the driver's output is written.
    """

    request: dataproc_v1.CreateBatchRequest
    name: str
    uuid: str
    created: float
    timeline: Timeline
    operation: str = ""
    reason: str = ""
    thread: threading.Thread | None = None
    logged: bool = False

    @property
    def properties(self) -> dict[str, str]:
        """Its Spark settings."""
        return rules.properties(self.request.batch)


class Dataproc:
    """``google.cloud.dataproc.v1.BatchController``.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.dataproc_v1.services.batch_controller.transports.grpc.BatchControllerGrpcTransport"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("dataproc", "The same request_id gives the operation of the first batch; the second request is "
                  "ignored.", DOCUMENTED, f"{_API}#createbatchrequest"),
        Behaviour("dataproc", "A batch_id that was used is ALREADY_EXISTS, also when that batch has ended.", REPORTED,
                  "https://github.com/apache/airflow/pull/69855"),
        Behaviour("dataproc", "Only an ended batch can be deleted, else FAILED_PRECONDITION.", DOCUMENTED,
                  f"{_API}#batchcontroller"),
        Behaviour("dataproc", "A batch is cancelled by its operation: CANCELLING, then CANCELLED.", DOCUMENTED,
                  "https://cloud.google.com/sdk/gcloud/reference/dataproc/batches/cancel"),
        Behaviour("dataproc", "Past its ttl a batch is cancelled; 10 minutes to 14 days, 4 hours when none is given "
                  "(runtime 2.1 and later).", DOCUMENTED, f"{_API}#executionconfig"),
        Behaviour("dataproc", "The state message of a batch past its ttl is 'Batch was CANCELLED as ttl exceeded'.",
                  REPORTED, "tests of public Airflow log analysers that quote it"),
        Behaviour("dataproc", "state_message of a failed driver names the places of its log and not the exception, "
                  "which is in driveroutput.000000000 below output_uri.", REPORTED,
                  "state messages quoted in public repositories, 2022 to 2026"),
        Behaviour("dataproc", "The operation of a failed batch has an error of code 10, ABORTED.", ASSUMED,
                  "the service has to give some code"),
        Behaviour("dataproc", "Properties come back with the prefix 'spark:', defaults and spark.app.name among them.",
                  REPORTED, "output of gcloud dataproc batches describe in public repositories"),
        Behaviour("dataproc", "Cores are 4, 8 or 16, executors at least 2, memory 1024 to 7424 MB per core at the "
                  "standard tier.", DOCUMENTED, _PROPERTIES),
        Behaviour("dataproc", "At most 2000 executors, and 24576 MB per core at the premium tier.", ASSUMED,
                  "there are limits, which Google has raised over the years"),
        Behaviour("dataproc", "approximate_usage is given for ended batches only.", DOCUMENTED, f"{_API}#runtimeinfo"),
        Behaviour("dataproc", "A core counts 0.6 DCU, a GB of memory 0.1 up to 8 GB a core and 0.2 above; billed at "
                  "least a minute; 4 cores and 16 GB for the driver and each of 2 executors.", DOCUMENTED, _PRICING),
        Behaviour("dataproc", "Autoscaling changes nothing: a batch keeps the executors that it starts with.", ASSUMED,
                  "there is no load to scale by"),
        Behaviour("dataproc", "PENDING takes 50 s.", DOCUMENTED, "https://docs.cloud.google.com/managed-spark/docs/tiers"),
        Behaviour("dataproc", "projects/P/regions/R is taken for projects/P/locations/R.", REPORTED,
                  "Airflow's own hook asks like that"),
    )  # fmt: skip

    #: Virtual seconds that a batch takes when its work is not done for real.
    running_seconds = 300.0
    #: Does the work of a batch: gives its exit code and the text of its log.
    driver: Callable[[FakeBatch], tuple[int, str]] | None = None

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.batches: dict[str, FakeBatch] = {}

    # --- the methods ----------------------------------------------------------------------------------------------

    def create_batch(self, request: dataproc_v1.CreateBatchRequest) -> object:
        parent = _location(request.parent)
        rules.check_request(request)
        for batch in self.batches.values():
            if request.request_id and batch.request.request_id == request.request_id:
                return self.cloud.operations.message(batch.operation)
        own = str(uuid.uuid4())
        name = f"{parent}/batches/{request.batch_id or own}"
        if name in self.batches:
            raise GoogleError("ALREADY_EXISTS", f"Already exists: Failed to create batch: Batch {name}")
        now = self.cloud.clock.now()
        batch = FakeBatch(request, name, own, now, Timeline(now, [("PENDING", 0, "")]))
        batch.timeline = Timeline(now, self._plan(batch))
        self.batches[name] = batch
        batch.operation = self.cloud.operations.start(
            parent.replace("/locations/", "/regions/"),
            LongRunning(lambda: self._metadata(batch), lambda: self._outcome(batch), lambda: self._cancel(batch)),
        )
        self._bill(batch)
        return self.cloud.operations.message(batch.operation)

    def get_batch(self, request: dataproc_v1.GetBatchRequest) -> dataproc_v1.Batch:
        return self._message(self._batch(request.name))

    def list_batches(self, request: dataproc_v1.ListBatchesRequest) -> dataproc_v1.ListBatchesResponse:
        parent = _location(request.parent)
        if request.order_by not in ("", "create_time desc"):
            raise invalid(f"Invalid order by: {request.order_by}")
        found = [self._message(batch) for name, batch in self.batches.items() if name.startswith(f"{parent}/")]
        found = [batch for batch in found if rules.matches(batch, request.filter)]
        if request.order_by:
            found.reverse()
        start, size = int(request.page_token or 0), min(request.page_size or 20, 1000)
        more = str(start + size) if len(found) > start + size else ""
        return dataproc_v1.ListBatchesResponse(batches=found[start : start + size], next_page_token=more)

    def delete_batch(self, request: dataproc_v1.DeleteBatchRequest) -> empty_pb2.Empty:
        batch = self._batch(request.name)
        state = batch.timeline.at(self.cloud.clock.now()).state
        if state not in _FINAL:
            raise GoogleError("FAILED_PRECONDITION", f"Batch {batch.name} is in state {state} and cannot be deleted")
        del self.batches[batch.name]
        return empty_pb2.Empty()

    # --- what a batch is ------------------------------------------------------------------------------------------

    def output_uri(self, batch: FakeBatch) -> str:
        """Where the driver's output lies; ``.000000000`` and so on follow."""
        region = batch.name.split("/")[3]
        bucket = batch.request.batch.environment_config.execution_config.staging_bucket
        folder = uuid.uuid5(uuid.NAMESPACE_URL, self.cloud.project)
        return (
            f"gs://{bucket or f'dataproc-staging-{region}-123456789012-fake'}/google-cloud-dataproc-metainfo/{folder}"
            f"/jobs/srvls-batch-{batch.uuid}/driveroutput"
        )

    def _batch(self, name: str) -> FakeBatch:
        found = self.batches.get(_location(name))
        if found is None:
            raise GoogleError("NOT_FOUND", f"Not found: Batch {name}")
        self._work(found)
        return found

    def _message(self, batch: FakeBatch) -> dataproc_v1.Batch:
        self._write_output(batch)
        now = self.cloud.clock.now()
        phase, past = batch.timeline.at(now), batch.timeline.history(now)
        found = dataproc_v1.Batch(batch.request.batch)
        found.name, found.uuid, found.operation = batch.name, batch.uuid, batch.operation
        found.creator = f"airflow@{self.cloud.project}.iam.gserviceaccount.com"
        found.create_time = moment(batch.created)
        found.state, found.state_message = dataproc_v1.Batch.State[phase.state], phase.message
        found.state_time = moment(phase.start)
        found.state_history = [
            dataproc_v1.Batch.StateHistory(
                state=dataproc_v1.Batch.State[one.state], state_message=one.message, state_start_time=moment(one.start)
            )
            for one in past[:-1]
        ]
        own = rules.DEFAULTS | {"spark.app.name": batch.name} | batch.properties
        spark = {f"spark:{key}" if key.startswith("spark.") else key: value for key, value in own.items()}
        found.runtime_config.properties = spark
        if not found.environment_config.execution_config.ttl:
            found.environment_config.execution_config.ttl = dt.timedelta(hours=4)
        info = dataproc_v1.RuntimeInfo()
        if batch.timeline.began(("RUNNING",), now) is not None:
            info.output_uri = self.output_uri(batch)
        if phase.state in _FINAL:
            seconds = self._seconds(batch, now)
            info.approximate_usage = dataproc_v1.UsageMetrics(
                milli_dcu_seconds=round(rules.dcus(batch.properties) * 1000 * seconds),
                shuffle_storage_gb_seconds=round(rules.workers(batch.properties) * _GB_OF_SHUFFLE * seconds),
            )
        found.runtime_info = info
        return found

    def _metadata(self, batch: FakeBatch) -> dataproc_v1.BatchOperationMetadata:
        return dataproc_v1.BatchOperationMetadata(
            batch=batch.name, batch_uuid=batch.uuid, create_time=moment(batch.created), description="Batch",
            operation_type=dataproc_v1.BatchOperationMetadata.BatchOperationType.BATCH,
            labels=dict(batch.request.batch.labels),
        )  # fmt: skip

    def _outcome(self, batch: FakeBatch) -> Outcome | None:
        self._work(batch)
        phase = batch.timeline.at(self.cloud.clock.now())
        if phase.state not in _FINAL:
            return None
        if phase.state == "SUCCEEDED":
            return Outcome(self._message(batch))
        return Outcome(code=_CODES[phase.state], message=phase.message)

    # --- its life -------------------------------------------------------------------------------------------------

    def _plan(self, batch: FakeBatch) -> list[tuple[str, float, str]]:
        faults, name = self.cloud.faults, batch.name.rpartition("/")[2]
        slow = faults.take(["slow"], "CreateBatch", name)
        steps: list[tuple[str, float, str]] = [("PENDING", 50 + (_seconds_of(slow.detail) if slow else 0), "")]
        if short := faults.take(["no_capacity"], "CreateBatch", name):
            said = "Insufficient 'CPUS' quota. Requested 12.0, available 8.0."
            return [*steps, ("FAILED", 0, str(short.detail.get("reason", said)))]
        if self.driver is not None:
            return [*steps, ("RUNNING", 0, "")]
        execution = batch.request.batch.environment_config.execution_config
        limit = execution.ttl.total_seconds() if execution.ttl else 4 * 3600.0
        if fail := faults.take(["fail"], "CreateBatch", name):
            batch.reason = str(fail.detail.get("reason", "java.lang.OutOfMemoryError: Java heap space"))
            return [*steps, ("RUNNING", self.running_seconds / 2, ""), ("FAILED", 0, self._failure(batch))]
        if limit < self.running_seconds:
            cancelled = ("CANCELLED", 0.0, "Batch was CANCELLED as ttl exceeded")
            return [*steps, ("RUNNING", limit, ""), ("CANCELLING", 20, ""), cancelled]
        return [*steps, ("RUNNING", self.running_seconds, ""), ("SUCCEEDED", 0, "")]

    def _failure(self, batch: FakeBatch) -> str:
        """What the service says of a driver that failed: where to look, not why."""
        _, project, _, region, _, batch_id = batch.name.split("/")
        output = self.output_uri(batch)
        folder = output.removeprefix("gs://").removesuffix("driveroutput")
        return (
            "Google Cloud Dataproc Agent reports job failure. If logs are available, they can be found at:\n"
            f"https://console.cloud.google.com/dataproc/batches/{region}/{batch_id}?project={project}\n"
            f"gcloud dataproc batches wait '{batch_id}' --region '{region}' --project '{project}'\n"
            f"https://console.cloud.google.com/storage/browser/{folder}\n{output}.*"
        )

    def _work(self, batch: FakeBatch) -> None:
        """Do the work of a batch for real once it is RUNNING; the batch ends when the work does."""
        driver, now = self.driver, self.cloud.clock.now()
        if driver is None or batch.thread is not None or batch.timeline.at(now).state != "RUNNING":
            return

        def work() -> None:
            try:
                code, log = driver(batch)
            except Exception as error:
                code, log = 1, f"{type(error).__name__}: {error}"
            self._log(batch, log)
            end = self.cloud.clock.now()
            if batch.timeline.at(end).state == "RUNNING":
                batch.timeline.change(end, [("FAILED", 0, self._failure(batch)) if code else ("SUCCEEDED", 0, "")])

        batch.logged = True
        batch.thread = threading.Thread(target=work, daemon=True)
        batch.thread.start()

    def _cancel(self, batch: FakeBatch) -> None:
        now = self.cloud.clock.now()
        if batch.timeline.at(now).state != "CANCELLING":
            batch.timeline.change(now, [("CANCELLING", 20, ""), ("CANCELLED", 0, "Batch was cancelled by request")])

    def _write_output(self, batch: FakeBatch) -> None:
        """The output of a driver that failed, where there is a place to keep it."""
        ended = batch.timeline.at(self.cloud.clock.now()).state == "FAILED"
        if batch.reason and ended and not batch.logged:
            batch.logged = True
            self._log(batch, f"INFO SparkContext: Running Spark\nTraceback (most recent call last):\n{batch.reason}\n")

    def _log(self, batch: FakeBatch, text: str) -> None:
        if self.cloud.storage is not None:
            self.cloud.storage.write(f"{self.output_uri(batch)}.000000000", text.encode())

    def _seconds(self, batch: FakeBatch, now: float) -> float:
        """Billed seconds: at least a minute once it runs."""
        seconds = batch.timeline.seconds(("RUNNING", "CANCELLING"), now)
        return max(60.0, seconds) if seconds else 0.0

    def _bill(self, batch: FakeBatch) -> None:
        given = batch.properties
        premium = "-premium" if given.get("spark.dataproc.executor.compute.tier") == "premium" else ""
        disks = "-premium" if given.get("spark.dataproc.executor.disk.tier") == "premium" else ""
        self._meter(batch, f"dcu{premium}", rules.dcus(given))
        self._meter(batch, f"shuffle-gb{disks}", rules.workers(given) * _GB_OF_SHUFFLE)

    def _meter(self, batch: FakeBatch, what: str, amount: float) -> None:
        self.cloud.bill.meter(
            batch.name, f"Spark {amount:g} {what}", price(f"dataproc-{what}"),
            lambda now: self._seconds(batch, now) * amount / 3600,
            lambda now: batch.timeline.at(now).state not in _FINAL,
        )  # fmt: skip


def _location(name: str) -> str:
    """A name with its location, whether it says ``locations`` or ``regions``."""
    found = re.fullmatch(r"projects/([^/]+)/(?:locations|regions)/([a-z0-9-]+)((?:/batches/[^/]+)?)", name)
    if not found:
        raise invalid(f"Invalid resource name: {name}")
    return f"projects/{found[1]}/locations/{found[2]}{found[3]}"


def _seconds_of(detail: dict[str, object]) -> float:
    return float(str(detail.get("seconds", 1800)))
