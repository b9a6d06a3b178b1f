"""BigQuery: load rows into a staging table, then run one script that publishes them; one remote job of two steps.

Both steps are BigQuery jobs under names that follow from the task's, so that a retry, in whatever process, attaches to
what was begun: BigQuery answers 409 to a name that it knows. A name can be used once for ever, so it ends in a number:
the next one is taken when the one before has failed, was cancelled, or was overtaken by a later publish. The staging
table is named like the job and expires by itself after a day, so a crash leaves nothing behind for long.

Loading is free of charge and takes a slot pool of its own; the script is billed by the bytes it reads.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_sml.cloud.clients import open_client
from airflow_provider_sml.cloud.remote_job import Adapter, JobState, JobStatus
from airflow_provider_sml.errors import JobError

if TYPE_CHECKING:
    from google.cloud import bigquery

#: How long a staging table of a crashed publish stays.
STAGING_LIFE = dt.timedelta(days=1)
# Reasons that a later try may not meet again (BigQuery, "Error messages").
_TRANSIENT = frozenset(
    {
        "backendError", "internalError", "jobBackendError", "jobInternalError", "rateLimitExceeded",
        "jobRateLimitExceeded", "quotaExceeded", "tableUnavailable", "stopped", "timeout",
    }
)  # fmt: skip
_ATTEMPTS = 1000


@dataclass(frozen=True)
class BigQueryPublishJob(Adapter):
    """Loads parquet files into a staging table and publishes them by a script.

    :param name: what the jobs' names start with; letters, digits, hyphens.
    :param project: that the jobs run and are billed in.
    :param dataset: of the staging table.
    :param table: the table that is published to.
    :param schema: columns of the staging table, as the API takes them.
    :param script: SQL; ``{staging}`` in it is replaced by the staging table's name.
    :param uris: ``gs://`` addresses of the files to load.
    :param file: a local parquet file to upload, where there are no addresses; read by ``submit`` only.
    :param location: region of the dataset; BigQuery finds it out when None.
    :param kms_key: full name of the Cloud KMS key that the staging table is encrypted with.
    :param labels: put on both jobs, for the bill.
    :param max_bytes_billed: the script fails before it costs more than this; no limit when None.
    :param differs: how the script's error starts when lake and warehouse differ.
    :param client: path of the function that opens the client.
    :param connection: what it is called with.
    """

    name: str
    project: str
    dataset: str
    table: str
    schema: list[dict[str, str]]
    script: str
    uris: list[str] = field(default_factory=list)
    file: str | None = None
    location: str | None = None
    kms_key: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    max_bytes_billed: int | None = None
    differs: str = ""
    client: str = ""
    connection: str = ""

    def describe(self) -> dict[str, Any]:
        """The adapter without what only ``submit`` needs, which may be long."""
        return super(BigQueryPublishJob, replace(self, uris=[], file=None)).describe()

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Load the files, or attach to the publish of this name that is under way or done."""
        client = self._client()
        for number in itertools.count(1):
            job_id = f"{self.name}-{number}"
            stands = self._stands(client, job_id)
            if stands == "new":
                self._bring(client, job_id)
            if stands != "over":
                return job_id
            if number >= _ATTEMPTS:
                break
        raise JobError(f"{self.name} was tried {_ATTEMPTS} times", todo="look into the jobs' errors in BigQuery")

    def status(self, job_id: str) -> JobStatus:
        """Look at the load; once it is done, run the script or look at it."""
        client = self._client()
        load = self._find(client, f"{job_id}-load")
        if load is None:
            return JobStatus(JobState.FAILED, f"there is no load job {job_id}-load")
        if (ended := self._ended(load, "loading")) is not None:
            return ended
        publish = self._find(client, f"{job_id}-publish") or self._publish(client, job_id, self._staging(job_id), {})
        return self._ended(publish, "publishing") or JobStatus(JobState.SUCCEEDED)

    def result(self, job_id: str) -> dict[str, Any]:
        """Rows, and what it cost: bytes loaded (free of charge), bytes billed and slot-milliseconds of the script."""
        client = self._client()
        load, publish = self._find(client, f"{job_id}-load"), self._find(client, f"{job_id}-publish")
        if load is None or publish is None:
            raise JobError(f"the jobs of {job_id} are gone", expected="BigQuery keeps jobs for 180 days")
        self._drop_staging(client, job_id)
        return {
            "job": publish.job_id,
            "rows": load.output_rows,
            "bytes_loaded": load.input_file_bytes,
            "bytes_billed": publish.total_bytes_billed,
            "slot_ms": publish.slot_millis,
        }

    def page(self, job_id: str) -> str:
        """The page in the console of the step that runs, or that ran last."""
        try:
            client = self._client()
            found = self._find(client, f"{job_id}-publish") or self._find(client, f"{job_id}-load")
        except Exception:  # a page to look at is no reason to fail
            return ""
        location = found and (found.location or self.location)
        if not location:
            return ""
        project = quote(self.project, safe="")
        job = f"!1m5!1m4!1m3!1s{project}!2s{quote(found.job_id, safe='')}!3s{quote(location, safe='')}"
        return f"https://console.cloud.google.com/bigquery?project={project}&ws={job}"

    def cancel(self, job_id: str) -> None:
        """Cancel both steps; what the script had done is rolled back."""
        from google.api_core.exceptions import NotFound

        client = self._client()
        for step in ("load", "publish"):
            with contextlib.suppress(NotFound):
                client.cancel_job(f"{job_id}-{step}", location=self.location)
        self._drop_staging(client, job_id)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _client(self) -> bigquery.Client:
        return open_client(self.client, self.connection, self.project, self.location)

    def _find(self, client: bigquery.Client, job_id: str) -> Any:
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            return client.get_job(job_id, location=self.location)
        return None

    def _staging(self, job_id: str) -> str:
        return f"sml_staging_{job_id.replace('-', '_')}"

    def _stands(self, client: bigquery.Client, job_id: str) -> str:
        """``new``, ``open`` (attach to it) or ``over`` (take the next number)."""
        load = self._find(client, f"{job_id}-load")
        if load is None:
            return "new"
        if load.state != "DONE":
            return "open"
        if load.error_result:
            return "over"
        publish = self._find(client, f"{job_id}-publish")
        if publish is None:
            return "open" if table_columns(client, self.dataset, self._staging(job_id)) is not None else "over"
        return self._publish_stands(client, publish)

    def _publish_stands(self, client: bigquery.Client, publish: bigquery.QueryJob) -> str:
        if publish.state != "DONE":
            return "open"
        return "over" if publish.error_result or self._overtaken(client, publish) else "open"

    def _overtaken(self, client: bigquery.Client, publish: bigquery.QueryJob) -> bool:
        """Whether the table was changed after this publish, so that publishing again may change something."""
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            modified = client.get_table(f"{self.project}.{self.dataset}.{self.table}").modified
            return modified is not None and publish.ended is not None and modified > publish.ended
        return True

    def _create_staging(self, client: bigquery.Client, name: str) -> bigquery.Table:
        from google.cloud import bigquery

        schema = [bigquery.SchemaField.from_api_repr(column) for column in self.schema]
        staging = bigquery.Table(f"{self.project}.{self.dataset}.{name}", schema=schema)
        staging.expires = dt.datetime.now(dt.UTC) + STAGING_LIFE
        if self.kms_key:
            staging.encryption_configuration = bigquery.EncryptionConfiguration(self.kms_key)
        client.create_table(staging, exists_ok=True)
        return staging

    def _bring(self, client: bigquery.Client, job_id: str) -> None:
        """Start to load the rows into a staging table."""
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        staging = self._create_staging(client, self._staging(job_id))
        config = bigquery.LoadJobConfig(
            source_format="PARQUET", schema=staging.schema, write_disposition="WRITE_TRUNCATE", labels=self.labels
        )
        if self.kms_key:
            config.destination_encryption_configuration = staging.encryption_configuration
        place: dict[str, Any] = {
            "job_id": f"{job_id}-load",
            "location": self.location,
            "project": self.project,
            "job_config": config,
        }
        with contextlib.suppress(Conflict):  # the reply to an earlier request was lost: the job is ours and runs
            if self.uris:
                client.load_table_from_uri(self.uris, staging.reference, **place)
            else:
                assert self.file is not None
                with open(self.file, "rb") as rows:
                    client.load_table_from_file(rows, staging.reference, **place)

    def _publish(self, client: bigquery.Client, job_id: str, staging: str, labels: Mapping[str, str]) -> Any:
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(labels={**self.labels, **labels}, use_legacy_sql=False)
        if self.max_bytes_billed is not None:
            config.maximum_bytes_billed = self.max_bytes_billed
        script = self.script.replace("{staging}", f"`{self.project}.{self.dataset}.{staging}`")
        name = f"{job_id}-publish"
        with contextlib.suppress(Conflict):
            # No retry of the job itself: it would run under another name, which nobody could attach to.
            return client.query(
                script, job_id=name, job_config=config, location=self.location, project=self.project, job_retry=None
            )
        return client.get_job(name, location=self.location)

    def _ended(self, job: Any, doing: str) -> JobStatus | None:
        """The status of a step that runs or failed; None when it succeeded."""
        if job.state != "DONE":
            return JobStatus(JobState.RUNNING if job.state == "RUNNING" else JobState.PENDING, doing)
        error: Mapping[str, str] | None = job.error_result
        if not error:
            return None
        reason, message = error.get("reason", ""), error.get("message", "")
        if reason == "stopped":
            return JobStatus(JobState.CANCELLED, f"{doing}: {message}")
        retryable = reason in _TRANSIENT or "concurrent" in message.lower()
        differs = bool(self.differs) and self.differs in message
        said = message[message.index(self.differs) :] if differs else message
        configuration = differs or not retryable
        return JobStatus(JobState.FAILED, f"{doing} ({job.job_id}): {said}", configuration=configuration, leftover=True)

    def _drop_staging(self, client: bigquery.Client, job_id: str) -> None:
        client.delete_table(f"{self.project}.{self.dataset}.{self._staging(job_id)}", not_found_ok=True)


def table_columns(client: bigquery.Client, dataset: str, table: str) -> dict[str, str] | None:
    """Types of a table's columns; None when there is no such table."""
    from google.api_core.exceptions import NotFound

    with contextlib.suppress(NotFound):
        return {
            column.name: column.field_type for column in client.get_table(f"{client.project}.{dataset}.{table}").schema
        }
    return None
