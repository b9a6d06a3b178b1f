"""BigQuery as the warehouse: what a load job and one script have to do, compiled; nothing is run here.

The rows are loaded into a staging table by a load job, which costs nothing and takes them whole or not at all. One
script then makes or widens the table, and in one transaction deletes the days, inserts the staged rows, compares number
and checksum with the lake's, and logs the publish; a difference raises an error, which rolls all of it back. Deleting
whole partitions is free; what is billed is one scan of the staging table and one of the published days.

The table is partitioned by day and, where asked for, clustered; the last of several transactions that touch the same
days at once is refused by BigQuery and can be retried.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import SQL_TYPES, identifier, literal, physical
from airflow_provider_sml.ml.warehouse.checksum import same_sql, tally_sql
from airflow_provider_sml.ml.warehouse.publication import PUBLISHES, PUBLISHES_COLUMNS, Publication, added_columns

#: What the API calls the types of SQL_TYPES: the names of the older SQL.
ALIASES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
#: Largest number of files of one load job (BigQuery's quotas, "Load jobs").
MAX_FILES = 10_000
#: How BigQuery's error of a failed reconciliation starts.
DIFFERS = "sml: lake and warehouse differ"


@dataclass(frozen=True)
class BigQueryPlan:
    """What is to be run.

    :param schema: the staging table's columns as the API takes them.
    :param uris: files of the load job; empty when the rows are to be uploaded instead.
    :param script: the script after it; ``{staging}`` in it stands for the staging table.
    """

    schema: list[dict[str, str]]
    uris: list[str]
    script: str


@dataclass(frozen=True)
class BigQueryWarehouse:
    """A dataset of BigQuery.

    :param project: Google Cloud project.
    :param dataset: its dataset.
    :param kms_key: full name of the Cloud KMS key that the tables are encrypted with.
    :param labels: put on the table, for the bill.
    """

    project: str
    dataset: str
    kms_key: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def name(self, table: str) -> str:
        """A table's full name, quoted."""
        return f"`{self.project}.{self.dataset}.{table}`"

    def day(self, table: str, day: dt.date) -> str:
        """The rows of a day, to stand behind FROM; only the partition is read."""
        within = f"{identifier(PARTITION, 'bigquery')} = {literal(day, 'bigquery')}"
        return f"(SELECT * FROM {self.name(table)} WHERE {within}) AS t"

    def plan(self, publication: Publication, current: Mapping[str, str] | None, paths: list[str]) -> BigQueryPlan:
        """Compile a publish.

        :param publication: what was published to the lake.
        :param current: types of the table's columns as the API tells them; None when it is not there yet.
        :param paths: the files of the lake.
        :raises DataError: when a column has another type or is gone.
        :raises ConfigurationError: when there are too many files for one load job.
        """
        types = {physical(name): SQL_TYPES["bigquery"][kind] for name, kind in publication.columns}
        added = added_columns(publication.table, current, types, ALIASES)
        uris = paths if paths and all(path.startswith("gs://") for path in paths) else []
        if len(uris) > MAX_FILES:
            raise ConfigurationError(
                f"{publication.table}: too many files for one load job", expected=f"at most {MAX_FILES:,}",
                found=f"{len(uris):,}", todo="compact the table, or publish fewer days at once",
            )  # fmt: skip
        statements = [self._create(publication, types)]
        statements += [
            f"ALTER TABLE {self.name(publication.table)} ADD COLUMN IF NOT EXISTS {identifier(name, 'bigquery')} "
            f"{types[name]}"
            for name in added
        ]
        declared = ", ".join(f"{name} {SQL_TYPES['bigquery'][kind]}" for name, kind in PUBLISHES_COLUMNS)
        statements.append(f"CREATE TABLE IF NOT EXISTS {self.name(PUBLISHES)} ({declared}){self._options({})}")
        statements += self._transaction(publication)
        schema = [{"name": name, "type": kind, "mode": "NULLABLE"} for name, kind in types.items()]
        return BigQueryPlan(schema, uris, ";\n".join(statements) + ";")

    def _create(self, publication: Publication, types: Mapping[str, str]) -> str:
        declared = ", ".join(f"{identifier(name, 'bigquery')} {kind}" for name, kind in types.items())
        by = ", ".join(identifier(name, "bigquery") for name in publication.cluster_by[:4])
        return (
            f"CREATE TABLE IF NOT EXISTS {self.name(publication.table)} ({declared}) "
            f"PARTITION BY {identifier(PARTITION, 'bigquery')}{f' CLUSTER BY {by}' if by else ''}"
            f"{self._options(self.labels)}"
        )

    def _options(self, labels: Mapping[str, str]) -> str:
        options = [f"kms_key_name={literal(self.kms_key, 'bigquery')}"] if self.kms_key else []
        if labels:
            pairs = ", ".join(f"({literal(k, 'bigquery')}, {literal(v, 'bigquery')})" for k, v in labels.items())
            options.append(f"labels=[{pairs}]")
        return f" OPTIONS({', '.join(options)})" if options else ""

    def _transaction(self, publication: Publication) -> list[str]:
        table = self.name(publication.table)
        first, last = (literal(day, "bigquery") for day in publication.days)
        within = f"{table} WHERE {identifier(PARTITION, 'bigquery')} BETWEEN {first} AND {last}"
        names = ", ".join(identifier(name, "bigquery") for name in publication.names)
        found = "CAST(row_count AS STRING), ' rows of sums ', CAST(sum_0 AS STRING), ' ', CAST(sum_1 AS STRING)"
        logged = ", ".join(
            literal(value, "bigquery")
            for value in (
                publication.table, *publication.days, publication.snapshot.snapshot_id, publication.tally.rows,
                publication.tally.checksum,
            )
        )  # fmt: skip
        return [
            "BEGIN TRANSACTION",
            f"DELETE FROM {within}",
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {{staging}}",
            f"SELECT IF({same_sql(publication.tally)}, 'equal', ERROR(CONCAT('{DIFFERS}: found ', {found}))) "
            f"FROM ({tally_sql(publication.columns, 'bigquery', within)})",
            f"INSERT INTO {self.name(PUBLISHES)} ({', '.join(name for name, _ in PUBLISHES_COLUMNS)}) "
            f"VALUES ({logged}, DATETIME(CURRENT_TIMESTAMP(), 'UTC'))",
            "COMMIT TRANSACTION",
        ]
