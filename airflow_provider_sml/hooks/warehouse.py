"""The warehouse by what a spec or an operator calls it, and the clients of the remote ones.

- a path: a DuckDB file
- ``bigquery://PROJECT/DATASET``, or ``bigquery://CONNECTION@PROJECT/DATASET``: BigQuery through that connection of type
  ``google_cloud_platform`` (``google_cloud_default`` when none is named)
- the id of a connection: of type ``google_cloud_platform`` or ``gcpbigquery`` with the extra ``dataset``; of type
  ``redshift`` with a database as its schema and, in its extra, ``cluster_identifier`` or ``workgroup_name``, and where
  wanted ``iam_role`` (for COPY), ``secret_arn``, ``db_schema``, ``aws_conn_id``

Credentials stay in the connections: the official providers' own hooks make the clients of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from airflow_provider_sml.errors import ConfigurationError, did_you_mean, require
from airflow_provider_sml.hooks.places import find_connection, is_location, local_emulator

if TYPE_CHECKING:
    import datetime as dt

    from airflow.sdk import Connection

    from airflow_provider_sml.cloud.remote_job import Adapter
    from airflow_provider_sml.ml.monitoring.profile import Profile
    from airflow_provider_sml.ml.monitoring.profile_sql import Column
    from airflow_provider_sml.ml.warehouse import LakeRows, Publication
    from airflow_provider_sml.ml.warehouse.duckdb import DuckDBWarehouse

GOOGLE = "google_cloud_default"
#: A load job is free; the Storage Write API needs neither Cloud Storage nor a disk.
LOADS = ("load_job", "write_api")
#: Where the emulators of BigQuery listen: its REST API, and its Storage Write API.
EMULATOR, WRITE_EMULATOR = "BIGQUERY_EMULATOR_HOST", "BIGQUERY_WRITE_EMULATOR_HOST"
_GOOGLE_TYPES = ("google_cloud_platform", "gcpbigquery")


@dataclass(frozen=True)
class WarehouseOptions:
    """How a warehouse is written to.

    :param location: region of a BigQuery dataset; found out when None.
    :param kms_key: full name of the Cloud KMS key of BigQuery's tables.
    :param labels: on BigQuery's tables and jobs, for the bill.
    :param max_bytes_billed: a publish to BigQuery fails before it costs more.
    :param load: how rows reach BigQuery: ``load_job`` or ``write_api``.
    :raises ConfigurationError: for another way to load.
    """

    location: str | None = None
    kms_key: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_bytes_billed: int | None = None
    load: str = "load_job"

    def __post_init__(self) -> None:
        if self.load not in LOADS:
            raise ConfigurationError(
                "there is no such way to load BigQuery", expected=" or ".join(LOADS), found=self.load,
                todo=did_you_mean(self.load, LOADS),
            )  # fmt: skip


class RemoteWarehouse:
    """A warehouse that a remote job publishes to."""

    def job(
        self, name: str, publication: Publication, rows: LakeRows, scratch: Path, keep: Callable[[str, str], str]
    ) -> Adapter:
        """The job of a publish.

        :param name: of the job.
        :param publication: what is published.
        :param rows: its rows.
        :param scratch: a local folder that lasts until the job is submitted.
        :param keep: puts a small text beside the lake under a name, and gives its address.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BigQueryPlace(RemoteWarehouse):
    """A dataset of BigQuery and the connection to it."""

    project: str
    dataset: str
    connection: str
    options: WarehouseOptions

    def job(
        self, name: str, publication: Publication, rows: LakeRows, scratch: Path, keep: Callable[[str, str], str]
    ) -> Adapter:
        """Load, then publish; rows that are not on Cloud Storage are uploaded as one file, or written as read."""
        require("google.cloud.bigquery", "google")
        from airflow_provider_sml.cloud.bigquery import BigQueryPublishJob, table_columns
        from airflow_provider_sml.ml.warehouse.bigquery import DIFFERS, BigQueryWarehouse

        options = self.options
        writes = options.load == "write_api"
        warehouse = BigQueryWarehouse(self.project, self.dataset, options.kms_key, options.labels)
        client = bigquery_client(self.connection, self.project, options.location)
        current = table_columns(client, self.dataset, publication.table)
        plan = warehouse.plan(publication, current, [] if writes else rows.paths)
        common: dict[str, Any] = {
            "name": name,
            "project": self.project,
            "dataset": self.dataset,
            "table": publication.table,
            "schema": plan.schema,
            "script": plan.script,
            "location": options.location,
            "kms_key": options.kms_key,
            "labels": dict(options.labels),
            "max_bytes_billed": options.max_bytes_billed,
            "differs": DIFFERS,
            "client": f"{__name__}.bigquery_client",
            "connection": self.connection,
        }
        if writes:
            require("google.cloud.bigquery_storage_v1", "google")
            from airflow_provider_sml.cloud.bigquery_write import BigQueryWriteJob

            return BigQueryWriteJob(**common, rows=rows.batches, writer=f"{__name__}.bigquery_write_client")
        file = None
        if not plan.uris:
            file = str(scratch / f"{name}.parquet")
            rows.write(file)
        return BigQueryPublishJob(**common, uris=plan.uris, file=file)

    def profile(
        self, table: str, day: dt.date, rows: int, columns: Sequence[Column], segment: str | None
    ) -> Profile | None:
        """Profile a day of a published table where it is; None when it holds another number of rows than the lake.

        :param table: its name.
        :param day: the day.
        :param rows: of the day in the lake.
        :param columns: what to profile.
        :param segment: an expression by whose values the rows are profiled apart as well.
        """
        require("google.cloud.bigquery", "google")
        from airflow_provider_sml.cloud.bigquery import table_columns
        from airflow_provider_sml.ml.monitoring.profile_sql import of_bigquery
        from airflow_provider_sml.ml.warehouse.bigquery import BigQueryWarehouse

        client = bigquery_client(self.connection, self.project, self.options.location)
        if not columns or table_columns(client, self.dataset, table) is None:
            return None
        made = of_bigquery(client, BigQueryWarehouse(self.project, self.dataset).day(table, day), columns,
                           segment=segment)  # fmt: skip
        return made if made.rows == rows else None


@dataclass(frozen=True)
class RedshiftPlace(RemoteWarehouse):
    """A schema of a Redshift database and the connection to it."""

    connection: str
    database: str
    db_schema: str
    iam_role: str
    cluster: str | None
    workgroup: str | None
    db_user: str | None
    secret_arn: str | None

    def job(
        self, name: str, publication: Publication, rows: LakeRows, scratch: Path, keep: Callable[[str, str], str]
    ) -> Adapter:
        """COPY and publish in one transaction."""
        require("boto3", "amazon")
        from dataclasses import replace

        from airflow_provider_sml.cloud.redshift_data import RedshiftDataJob
        from airflow_provider_sml.ml.warehouse.redshift import DIFFERS, Copy, RedshiftWarehouse, manifest

        warehouse = RedshiftWarehouse(self.db_schema, self.iam_role)
        manifests = [(columns, manifest(files)) for columns, files in rows.layouts().items()]
        copies = [
            Copy(columns, keep(f"manifests/{publication.table}/{name}-{number}.json", text))
            for number, (columns, text) in enumerate(manifests)
        ]
        job = RedshiftDataJob(
            name=name,
            statements=[],
            database=self.database,
            cluster=self.cluster,
            workgroup=self.workgroup,
            db_user=self.db_user,
            secret_arn=self.secret_arn,
            differs=DIFFERS,
            client=f"{__name__}.redshift_client",
            connection=self.connection,
        )
        current = {row[0]: row[1] for row in job.query(warehouse.columns_sql(publication.table))}
        return replace(job, statements=warehouse.statements(publication, current or None, copies))


class WarehouseHook(BaseHook):
    """Finds a warehouse.

    :param warehouse: a path, an address or the id of a connection; see the module.
    :param options: how it is written to.
    """

    conn_name_attr = "warehouse"
    hook_name = "SML warehouse"

    def __init__(self, warehouse: str, options: WarehouseOptions | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.warehouse = warehouse
        self.options = options or WarehouseOptions()

    def get_conn(self) -> DuckDBWarehouse | RemoteWarehouse:
        """The warehouse.

        :raises ConfigurationError: when it is none of the three, or its connection lacks something.
        """
        if self.warehouse.startswith("bigquery://"):
            return self._bigquery(self.warehouse)
        if "://" in self.warehouse and not self.warehouse.startswith("file://"):
            raise _wrong(self.warehouse)
        if is_location(self.warehouse) or self.warehouse.endswith((".duckdb", ".db")):
            from airflow_provider_sml.ml.warehouse.duckdb import DuckDBWarehouse

            return DuckDBWarehouse(Path(self.warehouse.removeprefix("file://")))
        connection = find_connection(self.warehouse, "")
        assert connection is not None
        if connection.conn_type in _GOOGLE_TYPES:
            return self._of_google(connection)
        if connection.conn_type in ("redshift", "aws"):
            return self._of_redshift(connection)
        raise ConfigurationError(
            f"the connection {self.warehouse} is no warehouse",
            expected=f"a connection of type redshift, {' or '.join(_GOOGLE_TYPES)}", found=connection.conn_type,
        )  # fmt: skip

    def _bigquery(self, address: str) -> BigQueryPlace:
        parts = urlsplit(address)
        dataset = parts.path.strip("/")
        # A colon would be a port for urlsplit; projects of a domain have one, as in example.com:project.
        connection, _, project = parts.netloc.rpartition("@")
        if not project or not dataset or "/" in dataset:
            raise _wrong(address)
        return BigQueryPlace(project, dataset, connection or GOOGLE, self.options)

    def _of_google(self, connection: Connection) -> BigQueryPlace:
        extra = connection.extra_dejson
        project = extra.get("project") or extra.get("extra__google_cloud_platform__project")
        dataset = extra.get("dataset")
        if not project or not dataset:
            missing = "project" if not project else "dataset"
            raise ConfigurationError(
                f"the connection {self.warehouse} names no {missing}", expected="the extras project and dataset",
                found=", ".join(sorted(extra)) or "none", todo="or write bigquery://CONNECTION@PROJECT/DATASET",
            )  # fmt: skip
        return BigQueryPlace(str(project), str(dataset), self.warehouse, self.options)

    def _of_redshift(self, connection: Connection) -> RedshiftPlace:
        extra = connection.extra_dejson
        cluster, workgroup = extra.get("cluster_identifier"), extra.get("workgroup_name")
        if bool(cluster) == bool(workgroup):
            raise ConfigurationError(
                f"the connection {self.warehouse} names no Redshift",
                expected="one of the extras cluster_identifier and workgroup_name",
                found="both" if cluster else "none",
            )
        return RedshiftPlace(
            connection=self.warehouse,
            database=connection.schema or extra.get("database") or "dev",
            db_schema=extra.get("db_schema") or "public",
            iam_role=extra.get("iam_role") or "default",
            cluster=cluster,
            workgroup=workgroup,
            db_user=connection.login if connection.conn_type == "redshift" else extra.get("db_user"),
            secret_arn=extra.get("secret_arn"),
        )


def bigquery_client(connection: str, project: str, location: str | None) -> Any:
    """The client of BigQuery, for ``cloud.bigquery``.

    :param connection: id of the connection.
    :param project: that jobs run and are billed in.
    :param location: of jobs.
    """
    require("airflow.providers.google", "google")
    from airflow.providers.google.cloud.hooks.bigquery import BigQueryHook

    local_emulator(EMULATOR)
    return BigQueryHook(gcp_conn_id=connection, use_legacy_sql=False).get_client(project_id=project, location=location)


def bigquery_write_client(connection: str) -> Any:
    """The client of BigQuery's Storage Write API, for ``cloud.bigquery_write``.

    ``BIGQUERY_WRITE_EMULATOR_HOST`` leads it to an emulator on this machine, such as ``127.0.0.1:9060``.

    :param connection: id of the connection.
    """
    require("google.cloud.bigquery_storage_v1", "google")
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from google.cloud.bigquery_storage_v1 import BigQueryWriteClient
    from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

    emulator = local_emulator(WRITE_EMULATOR)
    if emulator:
        import grpc

        channel = grpc.insecure_channel(emulator)
        return BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))
    return BigQueryWriteClient(credentials=GoogleBaseHook(gcp_conn_id=connection).get_credentials())


def redshift_client(connection: str) -> Any:
    """The client of Redshift's Data API, for ``cloud.redshift_data``.

    :param connection: id of a connection of type ``redshift``, whose extra ``aws_conn_id`` names the AWS one
        (``aws_default`` when it does not), or of type ``aws`` itself.
    """
    require("airflow.providers.amazon", "amazon")
    from airflow.providers.amazon.aws.hooks.redshift_data import RedshiftDataHook

    found = find_connection(connection, "")
    assert found is not None
    extra = found.extra_dejson
    aws = connection if found.conn_type == "aws" else extra.get("aws_conn_id", "aws_default")
    return RedshiftDataHook(aws_conn_id=aws, region_name=extra.get("region") or extra.get("region_name")).conn


def _wrong(address: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address} is no warehouse",
        expected="the path of a DuckDB file, bigquery://PROJECT/DATASET, or the id of a connection",
        found=address,
    )
