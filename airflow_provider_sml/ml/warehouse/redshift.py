"""Redshift as the warehouse: the statements of one transaction, compiled; nothing is run here.

COPY reads the lake's files from S3 into a temporary table, by a manifest that lists exactly the snapshot's files, so
that nothing else in their folder can get in. The same transaction then deletes the days, inserts the rows, compares
number and checksum with the lake's and logs the publish. Redshift has no ASSERT: where they differ, a text that is no
number is cast to one, which fails with that text and rolls all of it back.

Parquet is copied by position, so a temporary table has the files' columns in the files' order; files that were written
before a column was added have one of their own. The table is sorted by
day and by ``cluster_by``; Redshift has no partitions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import identifier, physical
from airflow_provider_sml.ml.lake import LakeFile
from airflow_provider_sml.ml.warehouse.checksum import same_sql, tally_sql
from airflow_provider_sml.ml.warehouse.publication import PUBLISHES, PUBLISHES_COLUMNS, Publication, added_columns

TYPES: dict[str, str] = {
    "int": "BIGINT", "double": "DOUBLE PRECISION", "string": "VARCHAR(65535)", "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMP", "date": "DATE",
}  # fmt: skip
#: What information_schema calls them.
ALIASES = {
    "CHARACTER VARYING": "VARCHAR(65535)", "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP", "VARCHAR": "VARCHAR(65535)",
}  # fmt: skip
#: How the error of a failed reconciliation starts.
DIFFERS = "sml: lake and warehouse differ"
STAGING = "sml_staging"


@dataclass(frozen=True)
class Copy:
    """Files that one COPY reads.

    :param columns: names of the columns as they stand in the files.
    :param manifest: address of the manifest that lists them.
    """

    columns: tuple[str, ...]
    manifest: str


@dataclass(frozen=True)
class RedshiftWarehouse:
    """A schema of a Redshift database.

    :param schema: the schema.
    :param iam_role: ARN of the role that COPY reads S3 by; ``default`` for the cluster's own.
    """

    schema: str = "public"
    iam_role: str = "default"

    def name(self, table: str) -> str:
        """A table's full name, quoted."""
        return f'"{self.schema}"."{table}"'

    def columns_sql(self, table: str) -> str:
        """A query for the names and types of a table's columns."""
        return (
            "SELECT column_name, data_type FROM information_schema.columns "
            f"WHERE table_schema = {_text(self.schema)} AND table_name = {_text(table)} ORDER BY ordinal_position"
        )

    def statements(
        self, publication: Publication, current: Mapping[str, str] | None, copies: Sequence[Copy]
    ) -> list[str]:
        """Compile a publish: SQL statements that are to be run in one transaction.

        :param publication: what was published to the lake.
        :param current: types of the table's columns as ``columns_sql`` tells them; None when it is not there yet.
        :param copies: the files, by the columns that stand in them.
        :raises DataError: when a column has another type or is gone.
        """
        types = {physical(name): TYPES[kind] for name, kind in publication.columns}
        added = added_columns(publication.table, current, types, ALIASES)
        table, first, last = self.name(publication.table), *(f"DATE '{day}'" for day in publication.days)
        within = f"{table} WHERE {_name(PARTITION)} BETWEEN {first} AND {last}"
        names = ", ".join(_name(name) for name in publication.names)
        sorted_by = ", ".join(_name(name) for name in (PARTITION, *publication.cluster_by))
        found = [f"CREATE TABLE IF NOT EXISTS {table} ({_declared(types)}) SORTKEY ({sorted_by})"]
        found += [f"ALTER TABLE {table} ADD COLUMN {_name(name)} {types[name]}" for name in added]
        log = {name: TYPES[kind] for name, kind in PUBLISHES_COLUMNS}
        found.append(f"CREATE TABLE IF NOT EXISTS {self.name(PUBLISHES)} ({_declared(log)})")
        for number, copy in enumerate(copies):
            staged = {name: types[name] for name in copy.columns}
            found += [f"CREATE TEMP TABLE {STAGING}_{number} ({_declared(staged)})", self._copy(number, copy.manifest)]
        found.append(f"DELETE FROM {within}")
        for number, copy in enumerate(copies):
            chosen = ", ".join(_name(n) if n in copy.columns else f"CAST(NULL AS {types[n]})" for n in types)
            found.append(f"INSERT INTO {table} ({names}) SELECT {chosen} FROM {STAGING}_{number}")
        found.append(
            f"SELECT CAST(CASE WHEN {same_sql(publication.tally)} THEN '1' ELSE '{DIFFERS}: found ' || "
            f"CAST(row_count AS VARCHAR) || ' rows of sums ' || CAST(sum_0 AS VARCHAR) END AS INTEGER) AS equal "
            f"FROM ({tally_sql(publication.columns, 'redshift', within)}) AS tally"
        )
        logged = (
            f"{_text(publication.table)}, {first}, {last}, {publication.snapshot.snapshot_id}, "
            f"{publication.tally.rows}, {_text(publication.tally.checksum)}, getdate()"
        )
        found.append(
            f"INSERT INTO {self.name(PUBLISHES)} ({', '.join(_name(name) for name, _ in PUBLISHES_COLUMNS)}) "
            f"VALUES ({logged})"
        )
        return found + [f"DROP TABLE {STAGING}_{number}" for number in range(len(copies))]

    def _copy(self, number: int, manifest: str) -> str:
        role = "default" if self.iam_role == "default" else _text(self.iam_role)
        # REGION is not allowed with columnar files: they must lie in the cluster's own region.
        return f"COPY {STAGING}_{number} FROM {_text(manifest)} IAM_ROLE {role} FORMAT AS PARQUET MANIFEST"


def manifest(files: Sequence[LakeFile]) -> str:
    """The manifest of some files, as COPY reads it; of columnar files it wants the sizes.

    :raises ConfigurationError: when a file does not lie on S3, which is all that COPY can read.
    """
    outside = [file.path for file in files if not file.path.startswith("s3://")]
    if outside:
        raise ConfigurationError(
            "Redshift copies from S3 only", expected="a lake on S3", found=outside[0],
            todo="put the lake on S3 (places.lake), or take DuckDB or BigQuery as the warehouse",
        )  # fmt: skip
    entries = [{"url": file.path, "mandatory": True, "meta": {"content_length": file.bytes}} for file in files]
    return json.dumps({"entries": entries})


def _declared(types: Mapping[str, str]) -> str:
    return ", ".join(f"{_name(name)} {kind}" for name, kind in types.items())


def _name(name: str) -> str:
    return identifier(name, "duckdb")


def _text(value: str) -> str:
    # Redshift reads a backslash in a text as an escape; none of ours has one.
    return "'" + value.replace("'", "''") + "'"
