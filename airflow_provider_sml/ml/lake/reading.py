"""Reads a table at a snapshot: as Arrow batches, or as a relation of DuckDB. ``Lake.files`` gives the list of files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.lake.lake import Lake

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def batches(
    lake: Lake,
    table: str,
    snapshot_id: int | None = None,
    *,
    columns: Sequence[str] | None = None,
    first: dt.date | None = None,
    last: dt.date | None = None,
    rows: int = 65_536,
) -> Iterator[pa.RecordBatch]:
    """The rows as Arrow batches, file by file, so that memory holds a few batches.

    :param snapshot_id: the snapshot; None for the current one.
    :param columns: the ones to read; all of the table when None. A column that a file is older than is NULL.
    :param first: only from this day.
    :param last: only to this day, inclusive.
    :param rows: most rows of a batch.
    """
    with storage.connect_duckdb([lake.root]) as connection:
        found = relation(connection, lake, table, snapshot_id, columns=columns, first=first, last=last)
        yield from found.to_arrow_reader(rows)


def relation(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    table: str,
    snapshot_id: int | None = None,
    *,
    columns: Sequence[str] | None = None,
    first: dt.date | None = None,
    last: dt.date | None = None,
) -> duckdb.DuckDBPyRelation:
    """The rows as a relation of DuckDB, for further SQL; nothing is read before it is asked for.

    :param connection: of DuckDB; the lake's store is made known to it.
    :param columns: as in ``batches``.
    """
    storage.register_stores(connection, [lake.root])
    files = [file.path for file in lake.files(table, snapshot_id, first, last)]
    names = list(columns) if columns is not None else lake.columns(table)
    if not files:
        nothing = ", ".join(f"NULL AS {identifier(name, 'duckdb')}" for name in names)
        return connection.sql(f"SELECT {nothing} WHERE false")
    return rows_of(connection, files, names)


def rows_of(
    connection: duckdb.DuckDBPyConnection, files: Sequence[str], columns: Iterable[str]
) -> duckdb.DuckDBPyRelation:
    """The rows of files of a table; a column that they are older than is NULL.

    :param connection: of DuckDB, to which their store is known.
    :param files: at least one.
    :param columns: the ones to give.
    """
    source = connection.read_parquet(list(files), union_by_name=True, hive_partitioning=False)
    known = set(source.columns)
    names = {name: identifier(name, "duckdb") for name in columns}
    return source.select(", ".join(sql if name in known else f"NULL AS {sql}" for name, sql in names.items()))
