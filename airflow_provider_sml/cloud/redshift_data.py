"""Redshift by its Data API: one batch of statements, which Redshift runs as one transaction.

No connection is kept open: a statement has an id, is asked for by it, and goes on when this process is gone. A batch
bears the task's name and a number. A retry attaches to a batch of that name that is not finished, and starts the next
number when it has ended; the batches sent here replace what an earlier one did, so running one again changes nothing. A
reply that was lost costs nothing either: the same client token gives the same statement (for 8 hours).
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_sml.cloud.clients import open_client
from airflow_provider_sml.cloud.remote_job import Adapter, JobState, JobStatus
from airflow_provider_sml.errors import ConfigurationError, JobError

_STATES = {
    "SUBMITTED": JobState.PENDING, "PICKED": JobState.PENDING, "STARTED": JobState.RUNNING,
    "FINISHED": JobState.SUCCEEDED, "FAILED": JobState.FAILED, "ABORTED": JobState.CANCELLED,
}  # fmt: skip
#: Most statements of one batch (the API's own limit).
MAX_STATEMENTS = 40
# What a later try may not meet again: serialisable isolation, locks, and the service itself.
_TRANSIENT = ("1023", "serializable isolation", "could not serialize", "deadlock", "internal error", "disk full",
              "connection", "timed out", "temporarily")  # fmt: skip


@dataclass(frozen=True)
class RedshiftDataJob(Adapter):
    """Runs a batch of statements in one transaction.

    :param name: of the job.
    :param statements: the SQL, at most 40 statements.
    :param database: the database.
    :param cluster: identifier of a provisioned cluster; this or ``workgroup``.
    :param workgroup: name of a serverless workgroup.
    :param db_user: user of a provisioned cluster, whose temporary password the API gets by IAM.
    :param secret_arn: secret in Secrets Manager with user and password, in place of IAM.
    :param differs: how an error starts when lake and warehouse differ.
    :param client: path of the function that opens the client.
    :param connection: what it is called with.
    """

    name: str
    statements: list[str]
    database: str
    cluster: str | None = None
    workgroup: str | None = None
    db_user: str | None = None
    secret_arn: str | None = None
    differs: str = ""
    client: str = ""
    connection: str = ""

    def describe(self) -> dict[str, Any]:
        """The adapter without the statements, which only ``submit`` needs."""
        return super(RedshiftDataJob, replace(self, statements=[])).describe()

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the batch, or attach to the one of this name that is not finished."""
        if len(self.statements) > MAX_STATEMENTS:
            raise ConfigurationError(
                f"{self.name} is too large for one transaction", expected=f"at most {MAX_STATEMENTS} statements",
                found=len(self.statements), todo="add new columns to the table by hand, some at a time",
            )  # fmt: skip
        client = self._client()
        for number in itertools.count(1):
            name = f"{self.name}-{number}"
            found = client.list_statements(StatementName=name, Status="ALL").get("Statements", [])
            exact = [statement for statement in found if statement.get("StatementName") == name]
            if not exact:
                token = hashlib.sha256(name.encode()).hexdigest()
                return str(
                    client.batch_execute_statement(
                        Sqls=self.statements, StatementName=name, ClientToken=token, **self._target()
                    )["Id"]
                )
            if not _STATES[exact[0]["Status"]].final:
                return str(exact[0]["Id"])
        raise AssertionError("unreachable")

    def status(self, job_id: str) -> JobStatus:
        """Look at the batch; a failure is told with the statement that failed."""
        told = self._client().describe_statement(Id=job_id)
        state = _STATES[told["Status"]]
        parts = told.get("SubStatements", [])
        done = sum(part["Status"] == "FINISHED" for part in parts)
        progress = (f"{done} of {len(parts)} statements done",) if parts and state is JobState.RUNNING else ()
        if state is not JobState.FAILED:
            return JobStatus(state, progress=progress)
        failed: dict[str, Any] = next((part for part in parts if part["Status"] == "FAILED"), {})
        message = failed.get("Error") or told.get("Error") or "Redshift gave no reason"
        differs = bool(self.differs) and (self.differs in message or self.differs in failed.get("QueryString", ""))
        where = f" in {failed['QueryString'][:80]!r}" if failed.get("QueryString") and not differs else ""
        retryable = any(text in message.lower() for text in _TRANSIENT)
        return JobStatus(state, f"{message}{where}", configuration=differs or not retryable)

    def result(self, job_id: str) -> dict[str, Any]:
        """What it took: milliseconds of the statements' own time, and bytes of results."""
        told = self._client().describe_statement(Id=job_id)
        copied: dict[str, Any] = next(
            (part for part in told.get("SubStatements", []) if part["QueryString"].startswith("COPY")), {}
        )
        return {
            "job": job_id,
            "statements": len(told.get("SubStatements", [])),
            "run_ms": int(told.get("Duration", 0)) // 1_000_000,
            "copy_ms": int(copied.get("Duration", 0)) // 1_000_000,
        }

    def cancel(self, job_id: str) -> None:
        """End the batch; it is rolled back. One that has ended is no error."""
        client = self._client()
        if not _STATES[client.describe_statement(Id=job_id)["Status"]].final:
            client.cancel_statement(Id=job_id)

    # --- the parts ------------------------------------------------------------------------------------------------

    def query(self, sql: str, patience: float = 60.0) -> list[list[Any]]:
        """Run one short query and wait for its rows.

        :param sql: the query.
        :param patience: seconds to wait.
        :raises JobError: when it fails or takes longer.
        """
        import time

        client = self._client()
        job_id = client.execute_statement(Sql=sql, **self._target())["Id"]
        until = time.monotonic() + patience
        pause = 0.1
        while not (state := _STATES[(told := client.describe_statement(Id=job_id))["Status"]]).final:
            if time.monotonic() > until:
                client.cancel_statement(Id=job_id)
                raise JobError("a query took too long", expected=f"{patience:g} s", found=sql[:200])
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        if state is not JobState.SUCCEEDED:
            raise JobError(f"a query {state}: {told.get('Error', '')}", found=sql[:200])
        rows: list[list[Any]] = []
        for page in client.get_paginator("get_statement_result").paginate(Id=job_id):
            rows += [[next(iter(field.values())) for field in row] for row in page["Records"]]
        return rows

    def _client(self) -> Any:
        return open_client(self.client, self.connection)

    def _target(self) -> dict[str, str]:
        target = {
            "Database": self.database, "ClusterIdentifier": self.cluster, "WorkgroupName": self.workgroup,
            "DbUser": self.db_user if self.cluster and not self.secret_arn else None, "SecretArn": self.secret_arn,
        }  # fmt: skip
        return {key: value for key, value in target.items() if value}
