"""What is published: a table's days as a snapshot of the lake has them, and the rows behind them."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml.expressions import SQL_TYPES, Type, identifier, physical
from airflow_provider_sml.ml.lake import LakeFile
from airflow_provider_sml.ml.storage import register_stores
from airflow_provider_sml.ml.warehouse.checksum import Tally, read_tally, tally_sql
from airflow_provider_sml.refs import SnapshotRef

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: The table in which every warehouse logs what was published to it.
PUBLISHES = "sml_publishes"
PUBLISHES_COLUMNS: tuple[tuple[str, Type], ...] = (
    ("table_name", "string"),
    ("first", "date"),
    ("last", "date"),
    ("snapshot_id", "int"),
    ("row_count", "int"),
    ("checksum", "string"),
    ("published", "timestamp"),
)


@dataclass(frozen=True)
class Publication:
    """Days of a table that a warehouse takes over.

    :param snapshot: what was published to the lake.
    :param columns: the table's columns in order; the partition is one of them.
    :param tally: number and checksum of the rows, as the lake has them.
    :param cluster_by: columns that readers filter by, the most used first.
    """

    snapshot: SnapshotRef
    columns: tuple[tuple[str, Type], ...]
    tally: Tally
    cluster_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = {physical(name) for name, _ in self.columns}
        unknown = [name for name in self.cluster_by if name not in names]
        if unknown:
            raise ConfigurationError(
                f"warehouse.cluster_by of {self.table}",
                expected=f"some of {', '.join(sorted(names))}",
                found=unknown[0],
            )
        if self.tally.rows != self.snapshot.rows:
            raise DataError(
                f"{self.table}: the files of snapshot {self.snapshot.snapshot_id} are not what its publish counted",
                expected=f"{self.snapshot.rows:,} rows from {self.snapshot.first} to {self.snapshot.last}",
                found=f"{self.tally.rows:,}",
            )

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.snapshot.table

    @property
    def days(self) -> tuple[dt.date, dt.date]:
        """First and last day."""
        return dt.date.fromisoformat(self.snapshot.first), dt.date.fromisoformat(self.snapshot.last)

    @property
    def names(self) -> list[str]:
        """Names of the columns in tables."""
        return [physical(name) for name, _ in self.columns]

    def differs(self, found: object) -> DataError:
        """The error when a warehouse came to another tally."""
        return DataError(
            f"{self.table}: lake and warehouse differ from {self.snapshot.first} to {self.snapshot.last}",
            expected=f"{self.tally.rows:,} rows, as in snapshot {self.snapshot.snapshot_id}, "
            f"of checksum {self.tally.checksum}",
            found=found,
            todo="nothing was changed; clear this task, and look for other writers of the table when it fails again",
        )


class LakeRows:
    """The rows of some files of a lake, read by DuckDB as one table with exactly the columns asked for.

    A column that a file lacks, because it was added later, is NULL there.

    :param files: of one snapshot.
    :param columns: names and types in order.
    """

    def __init__(self, files: Sequence[LakeFile], columns: Sequence[tuple[str, Type]]) -> None:
        self.files = files
        self.columns = tuple(columns)

    @property
    def paths(self) -> list[str]:
        """The files' paths or addresses."""
        return [file.path for file in self.files]

    @cached_property
    def tally(self) -> Tally:
        """Number and checksum of the rows."""
        with self.view() as (connection, source):
            found = connection.execute(tally_sql(self.columns, "duckdb", source)).fetchone()
        assert found is not None
        return read_tally(found)

    def publication(self, snapshot: SnapshotRef, cluster_by: Sequence[str] = ()) -> Publication:
        """What a warehouse is to take over.

        :raises DataError: when the files hold another number of rows than the snapshot's publish counted.
        """
        return Publication(snapshot, self.columns, self.tally, tuple(cluster_by))

    def layouts(self) -> dict[tuple[str, ...], list[LakeFile]]:
        """The files by the columns that stand in them, in the files' order; older files may lack a column."""
        if not self.files:
            return {}
        with self.view() as (connection, _):
            found = connection.execute(
                "SELECT file_name, list(name ORDER BY column_id) FROM parquet_schema(?) "
                "WHERE type IS NOT NULL GROUP BY 1",
                [self.paths],
            ).fetchall()
        columns = {path: tuple(names) for path, names in found}
        grouped: dict[tuple[str, ...], list[LakeFile]] = {}
        for file in self.files:
            grouped.setdefault(columns[file.path], []).append(file)
        return grouped

    def write(self, path: str) -> None:
        """Write all rows into one local parquet file, its columns in order."""
        with self.view() as (connection, source):
            target = path.replace("'", "''")
            connection.execute(f"COPY (SELECT * FROM {source}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")

    def batches(self, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """All rows as Arrow record batches, read as they are asked for.

        :param rows: most rows of a batch.
        """
        with self.view() as (connection, source):
            yield from connection.sql(f"SELECT * FROM {source}").to_arrow_reader(rows)

    @contextlib.contextmanager
    def view(
        self, connection: duckdb.DuckDBPyConnection | None = None
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """A connection and what to write after FROM in it.

        :param connection: one to use; a new one in memory when None.
        """
        import duckdb

        with contextlib.nullcontext(connection) if connection else duckdb.connect() as opened:
            name = "lake_rows"
            register_stores(opened, self.paths[:1])
            opened.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {self._select(opened)}")
            try:
                yield opened, name
            finally:
                with contextlib.suppress(duckdb.Error):
                    opened.execute(f"DROP VIEW IF EXISTS {name}")

    def _select(self, connection: duckdb.DuckDBPyConnection) -> str:
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path in self.paths)
        source = f"read_parquet([{paths}], union_by_name=true, hive_partitioning=false)"
        found = (
            {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()} if paths else set()
        )
        chosen = ", ".join(
            f"CAST({identifier(name, 'duckdb') if physical(name) in found else 'NULL'} AS {SQL_TYPES['duckdb'][kind]}) "
            f"AS {identifier(name, 'duckdb')}"
            for name, kind in self.columns
        )
        return f"SELECT {chosen} FROM {source}" if paths else f"SELECT {chosen} WHERE false"


def added_columns(
    table: str, current: Mapping[str, str] | None, wanted: Mapping[str, str], aliases: Mapping[str, str] | None = None
) -> list[str]:
    """The columns that a warehouse's table lacks.

    :param table: its name, for messages.
    :param current: type of each column that it has; None when there is no table yet.
    :param wanted: type of each column that the snapshot has.
    :param aliases: other names that a warehouse gives to its types, in upper case.
    :returns: names of the new columns, in the snapshot's order; none when there is no table.
    :raises DataError: when a column has another type, or the snapshot has it no more.
    """
    if current is None:
        return []
    known = {name: (aliases or {}).get(kind.upper(), kind.upper()) for name, kind in current.items()}
    changed = [name for name in known if name in wanted and known[name] != wanted[name]]
    removed = [name for name in known if name not in wanted]
    if changed or removed:
        raise DataError(
            f"the warehouse's table {table} has other columns than the lake's",
            expected=", ".join(f"{name} {known[name]}" for name in changed + removed),
            found=", ".join(f"{name} {wanted.get(name, 'gone')}" for name in changed + removed),
            todo="change the table by hand, or drop it and publish all days again; nothing was changed. The lake "
            "refuses another type too, so its table was made anew, or this one was changed by others",
        )
    return [name for name in wanted if name not in known]
