"""Late rows: the rows that a run brings for days before its own, merged with what is published of those days.

The whole day is written anew to the run's folder: of rows with one key the latest event is kept, and of equally late
ones the one that landed last. Publishing it replaces the day, so a repeat changes nothing. A day that was never
published is left out: its own run will read the files of the days after it and find these rows there.
"""

from __future__ import annotations

import datetime as dt
import uuid
from pathlib import Path

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.expressions import identifier, literal
from airflow_provider_sml.ml.lake.audit import Staged
from airflow_provider_sml.ml.lake.lake import Lake


def late_days(staged: Staged, first: dt.date) -> dict[dt.date, int]:
    """Rows that a run brought for days before its own, by day."""
    told = {dt.date.fromisoformat(day): found["rows_good"] for day, found in staged.report["days"].items()}
    return {day: rows for day, rows in sorted(told.items()) if day < first and rows}


def merge_late(dataset: Dataset, lake: Lake, table: str, staged: Staged, first: dt.date) -> dict[dt.date, Path]:
    """A file for each published day that the run has late rows for: those rows and the published ones.

    :param dataset: its key says which rows are the same.
    :param lake: where the table is.
    :param table: its name.
    :param staged: the run.
    :param first: first day of the run.
    """
    late = late_days(staged, first)
    published = lake.days(table) if late else {}
    merged: dict[dt.date, Path] = {}
    columns = ", ".join(identifier(name, "duckdb") for name, _ in dataset.table_columns)
    key = ", ".join(identifier(name, "duckdb") for name in dataset.contract.key)
    moment = identifier(dataset.contract.event_time, "duckdb")
    for day in late:
        if day not in published:
            continue
        old = [file.path for file in lake.files(table, None, day, day)]
        new = [str(path) for path in staged.data_of(day, day)]
        # A name of its own for each try: a file that is published already must never be written over.
        path = staged.folder / "late" / f"{day}-{uuid.uuid4().hex[:8]}.parquet"
        if not storage.is_remote(path):
            path.parent.mkdir(exist_ok=True)
        ranked = f"row_number() OVER (PARTITION BY {key} ORDER BY {moment} DESC, _new DESC, {columns})"
        read = "read_parquet({}, hive_partitioning=false, union_by_name=true)"
        with storage.connect_duckdb([lake.root, staged.folder]) as connection:
            connection.execute(
                f"COPY (SELECT {columns} FROM (SELECT *, {ranked} AS _n FROM ("
                f"SELECT *, 0 AS _new FROM {read.format(_listed(old))} UNION ALL BY NAME "
                f"SELECT *, 1 AS _new FROM {read.format(_listed(new))})) WHERE _n = 1 ORDER BY {moment}, {key}) "
                f"TO {literal(str(path), 'duckdb')} (FORMAT parquet, COMPRESSION zstd)"
            )
        merged[day] = path
    return merged


def _listed(paths: list[str]) -> str:
    return "[" + ", ".join(literal(path, "duckdb") for path in paths) + "]"
