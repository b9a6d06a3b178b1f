"""DuckDB as the warehouse: one file, tables that follow the lake day by day.

A publish replaces the days of a snapshot in one transaction and records the snapshot's id; repeating it changes
nothing. DuckDB lets one process write at a time, so a writer waits for its turn.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import DataError, SmlError
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import SQL_TYPES, Type, identifier
from airflow_provider_sml.ml.lake import LakeFile
from airflow_provider_sml.ml.storage import register_stores
from airflow_provider_sml.refs import SnapshotRef

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

    def publish(self, snapshot: SnapshotRef, files: Sequence[LakeFile], columns: Sequence[tuple[str, Type]]) -> int:
        """Replace the days of a snapshot by its files' rows, and reconcile the counts.

        :param snapshot: what was published to the lake.
        :param files: the snapshot's files of those days.
        :param columns: the table's columns.
        :returns: rows of the table afterwards.
        :raises DataError: when the counts of lake and warehouse differ; nothing is changed then.
        """
        table = identifier(snapshot.table, "duckdb")
        days = [dt.date.fromisoformat(snapshot.first), dt.date.fromisoformat(snapshot.last)]
        names = ", ".join(identifier(name, "duckdb") for name, _ in columns)
        with self.connect() as connection:
            connection.begin()
            declared = ", ".join(f"{identifier(name, 'duckdb')} {SQL_TYPES['duckdb'][kind]}" for name, kind in columns)
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({declared})")
            for name, kind in columns:
                connection.execute(
                    f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS "
                    f"{identifier(name, 'duckdb')} {SQL_TYPES['duckdb'][kind]}"
                )
            connection.execute(f"DELETE FROM {table} WHERE {PARTITION} BETWEEN ? AND ?", days)
            if files:
                register_stores(connection, [files[0].path])
                connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} "
                    "FROM read_parquet(?, union_by_name=true, hive_partitioning=false)",
                    [[file.path for file in files]],
                )
            found = connection.execute(
                f"SELECT count(*) FROM {table} WHERE {PARTITION} BETWEEN ? AND ?", days
            ).fetchone()
            assert found is not None
            if found[0] != snapshot.rows:
                connection.rollback()
                raise DataError(
                    f"{snapshot.table}: lake and warehouse differ from {snapshot.first} to {snapshot.last}",
                    expected=f"{snapshot.rows:,} rows, as in snapshot {snapshot.snapshot_id}",
                    found=f"{found[0]:,}",
                )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS sml_publishes "
                "(table_name VARCHAR, first DATE, last DATE, snapshot_id BIGINT, row_count BIGINT, published TIMESTAMP)"
            )
            connection.execute(
                "INSERT INTO sml_publishes VALUES (?, ?, ?, ?, ?, ?)",
                [
                    snapshot.table,
                    *days,
                    snapshot.snapshot_id,
                    snapshot.rows,
                    dt.datetime.now(dt.UTC).replace(tzinfo=None),
                ],
            )
            total = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            connection.commit()
        assert total is not None
        return int(total[0])

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
