"""Redshift's Data API in front of a real PostgreSQL: statements run for real, COPY reads parquet from a real S3 server.

What PostgreSQL cannot do of Redshift's SQL is done here: COPY of parquet, SORTKEY, and the functions in
``testing.postgres``. A batch is one transaction, and takes one look to start and one to run.
"""

from __future__ import annotations

import io
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.aws.errors import AwsError, invalid
from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED
from airflow_provider_sml.testing.postgres import REDSHIFT_FUNCTIONS

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/redshift-data/latest/APIReference/API_"
_COPY = re.compile(r"COPY (\S+) FROM '(s3://[^']+)' IAM_ROLE (default|'[^']+') FORMAT AS PARQUET MANIFEST")
_SORTKEY = re.compile(r" SORTKEY \([^)]*\)")


@dataclass
class _Statement:
    """One statement or batch."""

    id: str
    name: str
    token: str
    sqls: list[str]
    batch: bool
    created: Any
    status: str = "SUBMITTED"
    error: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    fails: str = ""


class RedshiftData:
    """The Data API of one database.

    :param cloud: the account; its ``s3`` is where COPY reads.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("redshift-data", "A batch is one transaction: the first error undoes all of it.", DOCUMENTED,
                  f"{_API}BatchExecuteStatement.html"),
        Behaviour("redshift-data", "The same client token gives the same statement.", DOCUMENTED,
                  f"{_API}BatchExecuteStatement.html"),
        Behaviour("redshift-data", "A statement is SUBMITTED when it is made and runs when it is looked at.", ASSUMED,
                  "so that tests see the states without waiting"),
        Behaviour("redshift-data", "COPY of parquet goes by position and wants as many columns as the table has.",
                  DOCUMENTED, "https://docs.aws.amazon.com/redshift/latest/dg/copy-usage_notes-copy-from-columnar.html"),
    )  # fmt: skip

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud
        self.dsn: str | None = None
        #: While true, batches stay STARTED.
        self.held = False
        self.statements: dict[str, _Statement] = {}
        self._lock = threading.RLock()

    def connect(self, dsn: str) -> None:
        """Run statements on this PostgreSQL from now on."""
        import psycopg2

        self.dsn = dsn
        with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_proc WHERE proname = 'strtol'")
            if not cursor.fetchone():
                cursor.execute(REDSHIFT_FUNCTIONS)

    # --- the API --------------------------------------------------------------------------------------------------

    def execute_statement(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._made(request, [request["Sql"]], batch=False)

    def batch_execute_statement(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._made(request, request["Sqls"], batch=True)

    def describe_statement(self, request: dict[str, Any]) -> dict[str, Any]:
        statement = self._get(request["Id"])
        with self._lock:
            if statement.status in ("SUBMITTED", "STARTED"):
                if statement.batch and (self.held or statement.status == "SUBMITTED"):
                    statement.status = "STARTED"
                else:
                    self._run(statement)
        told = {
            "Id": statement.id, "Status": statement.status, "CreatedAt": statement.created, "UpdatedAt": self._now(),
            "QueryString": "" if statement.batch else statement.sqls[0], "HasResultSet": bool(statement.columns),
            "ResultRows": len(statement.rows), "Duration": 1_000_000 * len(statement.parts),
        }  # fmt: skip
        if statement.batch:
            told["SubStatements"] = statement.parts
        return told | ({"Error": statement.error} if statement.error else {})

    def list_statements(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted, state = request.get("StatementName", ""), request.get("Status", "FINISHED")
        found = [
            {"Id": one.id, "StatementName": one.name, "Status": one.status, "CreatedAt": one.created,
             "IsBatchStatement": one.batch}
            for one in reversed(self.statements.values())
            if one.name.startswith(wanted) and state in ("ALL", one.status)
        ]  # fmt: skip
        return {"Statements": found[: request.get("MaxResults", 100)]}

    def get_statement_result(self, request: dict[str, Any]) -> dict[str, Any]:
        statement = self._get(request["Id"])
        if statement.status != "FINISHED":
            raise invalid("Query does not have result. Please check query status with DescribeStatement.")
        kinds = {int: "longValue", str: "stringValue", float: "doubleValue", bool: "booleanValue"}
        records = [
            [{"isNull": True} if value is None else {kinds[type(value)]: value} for value in row]
            for row in statement.rows
        ]
        meta = [{"name": name} for name in statement.columns]
        return {"Records": records, "ColumnMetadata": meta, "TotalNumRows": len(records)}

    def cancel_statement(self, request: dict[str, Any]) -> dict[str, Any]:
        statement = self._get(request["Id"])
        if statement.status in ("FINISHED", "FAILED", "ABORTED"):
            raise invalid(f"Could not cancel a query that is already in {statement.status} state")
        statement.status = "ABORTED"
        return {"Status": True}

    # --- the parts ------------------------------------------------------------------------------------------------

    def _now(self) -> Any:
        return self.cloud.clock.moment()

    def _get(self, statement_id: str) -> _Statement:
        if statement_id not in self.statements:
            raise AwsError("ResourceNotFoundException", "Query does not exist.")
        return self.statements[statement_id]

    def _made(self, request: dict[str, Any], sqls: list[str], batch: bool) -> dict[str, Any]:
        if self.dsn is None:
            raise invalid("the fake has no database: give it one by connect()")
        if bool(request.get("ClusterIdentifier")) == bool(request.get("WorkgroupName")):
            raise invalid("Either ClusterIdentifier or WorkgroupName has to be given")
        token = request.get("ClientToken", "")
        with self._lock:
            known = next((one for one in self.statements.values() if token and one.token == token), None)
            statement = known or _Statement(
                str(uuid.uuid4()), request.get("StatementName", ""), token, list(sqls), batch, self._now()
            )
            fault = None if known else self.cloud.faults.take(("fail",), "BatchExecuteStatement" if batch else "")
            statement.fails = fault.detail.get("reason", "no reason") if fault else statement.fails
            self.statements[statement.id] = statement
        return {"Id": statement.id, "CreatedAt": statement.created, "Database": request["Database"]}

    def _run(self, statement: _Statement) -> None:
        import psycopg2

        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                for number, sql in enumerate(statement.sqls, 1):
                    self._part(statement, number, sql, cursor)
                if cursor.description:
                    statement.columns = [column[0] for column in cursor.description]
                    statement.rows = cursor.fetchall()
        except (psycopg2.Error, LookupError) as error:
            statement.status, statement.error = "FAILED", statement.error or f"ERROR: {error}"
        else:
            statement.status = "FINISHED"
        finally:
            connection.close()

    def _part(self, statement: _Statement, number: int, sql: str, cursor: Any) -> None:
        import psycopg2

        part = {"Id": f"{statement.id}:{number}", "QueryString": sql, "Status": "FAILED", "Duration": 1_000_000}
        statement.parts.append(part)
        try:
            self._execute(cursor, sql)
            if statement.fails and number == len(statement.sqls):
                raise LookupError(statement.fails)
        except (psycopg2.Error, LookupError) as error:
            part["Error"] = statement.error = f"ERROR: {str(error).strip()}"
            raise
        part["Status"] = "FINISHED"

    def _execute(self, cursor: Any, sql: str) -> None:
        found = _COPY.fullmatch(sql)
        if not found:
            cursor.execute(_SORTKEY.sub("", sql))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq
        from psycopg2.extras import execute_values

        table, manifest, _ = found.groups()
        for entry in json.loads(self._object(manifest))["entries"]:
            data = self._object(entry["url"])
            if len(data) != entry["meta"]["content_length"]:
                raise LookupError(f"S3 file {entry['url']} does not have the length that the manifest says")
            rows = pq.read_table(pa.BufferReader(data))
            cursor.execute(f"SELECT * FROM {table} LIMIT 0")
            wanted = len(cursor.description or ())
            if wanted != rows.num_columns:
                raise LookupError(
                    f"Unmatched number of columns between table and file. Table columns: {wanted}, "
                    f"Data columns: {rows.num_columns}"
                )
            execute_values(cursor, f"INSERT INTO {table} VALUES %s", list(zip(*rows.to_pydict().values(), strict=True)))

    def _object(self, address: str) -> bytes:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        body = io.BytesIO()
        client = self.cloud.client("s3")
        try:
            client.download_fileobj(bucket, key, body)
        except client.exceptions.ClientError as error:
            raise LookupError(f"S3ServiceException: {error}, {address}") from error
        return body.getvalue()
