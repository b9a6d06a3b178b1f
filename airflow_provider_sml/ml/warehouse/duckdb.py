"""DuckDB as the warehouse: one file, tables that follow the lake day by day.

A publish replaces the days of a snapshot in one transaction and records the snapshot's id; repeating it changes
nothing. DuckDB lets one process write at a time, so a writer waits for its turn.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import SmlError
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import SQL_TYPES, identifier, physical
from airflow_provider_sml.ml.warehouse.checksum import read_tally, tally_sql
from airflow_provider_sml.ml.warehouse.publication import (
    PUBLISHES,
    PUBLISHES_COLUMNS,
    LakeRows,
    Publication,
    added_columns,
)

if TYPE_CHECKING:
    import duckdb


class DuckDBWarehouse:
    """A warehouse in one DuckDB file.

    :param path: of the file.
    :param patience: seconds to wait for another writer.
    """

    def __init__(self, path: Path, patience: float = 60.0) -> None:
        self.path = path
        self.patience = patience

    def publish(self, publication: Publication, rows: LakeRows) -> int:
        """Replace the days of a publication by the lake's rows, and reconcile number and checksum.

        :param publication: what was published to the lake.
        :param rows: its rows.
        :returns: rows of the table afterwards.
        :raises DataError: when lake and warehouse differ, or the table has other types; nothing is changed then.
        """
        table = identifier(publication.table, "duckdb")
        types = {physical(name): SQL_TYPES["duckdb"][kind] for name, kind in publication.columns}
        days = list(publication.days)
        within = f"{table} WHERE {PARTITION} BETWEEN DATE '{days[0]}' AND DATE '{days[1]}'"
        names = ", ".join(identifier(name, "duckdb") for name in publication.names)
        with self.connect() as connection:
            connection.begin()
            added = added_columns(publication.table, _columns(connection, publication.table), types)
            declared = ", ".join(f"{identifier(name, 'duckdb')} {kind}" for name, kind in types.items())
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({declared})")
            for name in added:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {identifier(name, 'duckdb')} {types[name]}")
            connection.execute(f"DELETE FROM {within}")
            with rows.view(connection) as (_, source):
                connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} FROM {source}{self._order(publication)}"
                )
            found = connection.execute(tally_sql(publication.columns, "duckdb", within)).fetchone()
            assert found is not None
            tally = read_tally(found)
            if tally != publication.tally:
                raise publication.differs(f"{tally.rows:,} rows of checksum {tally.checksum}")
            self._log(connection, publication)
            total = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            connection.commit()
        assert total is not None
        return int(total[0])

    def _order(self, publication: Publication) -> str:
        """DuckDB skips row groups by their smallest and largest values, so sorting is its clustering."""
        by = ", ".join(identifier(name, "duckdb") for name in publication.cluster_by)
        return f" ORDER BY {PARTITION}, {by}" if by else ""

    def _log(self, connection: duckdb.DuckDBPyConnection, publication: Publication) -> None:
        declared = ", ".join(f"{name} {SQL_TYPES['duckdb'][kind]}" for name, kind in PUBLISHES_COLUMNS)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {PUBLISHES} ({declared})")
        # A log of an earlier version has no checksum.
        connection.execute(f"ALTER TABLE {PUBLISHES} ADD COLUMN IF NOT EXISTS checksum VARCHAR")
        values = {
            "table_name": publication.table,
            "first": publication.days[0],
            "last": publication.days[1],
            "snapshot_id": publication.snapshot.snapshot_id,
            "row_count": publication.tally.rows,
            "checksum": publication.tally.checksum,
            "published": dt.datetime.now(dt.UTC).replace(tzinfo=None),
        }
        marks = ", ".join("?" for _ in values)
        connection.execute(f"INSERT INTO {PUBLISHES} ({', '.join(values)}) VALUES ({marks})", list(values.values()))

    def connect(self, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        """Open the file, waiting for another writer.

        :raises SmlError: when another process holds it for longer than ``patience``.
        """
        import duckdb

        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self.patience
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.IOException as error:
                if "lock" not in str(error).lower():
                    raise
                if time.monotonic() > until:
                    raise SmlError(
                        f"the warehouse {self.path} is held by another process",
                        expected=f"its turn within {self.patience:g} s",
                        found=str(error).splitlines()[0],
                        todo="close the program that has it open, then clear this task",
                    ) from error
                time.sleep(0.2)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str] | None:
    found = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() "
        "WHERE table_name = ? AND NOT internal ORDER BY column_index",
        [table],
    ).fetchall()
    return dict(found) or None
