"""Scores of a day's rows, kept in the lake. What they were worth is measured in ``performance``."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.expressions import Type, identifier, physical
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.reading import batches, relation
from airflow_provider_sml.ml.monitoring.drift import SCORE
from airflow_provider_sml.ml.monitoring.profile_store import content as content_of
from airflow_provider_sml.ml.sampling import hash_sql
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import SnapshotRef

if TYPE_CHECKING:
    import duckdb

#: What DuckDB may hold while rows are drawn, and the seed of their hashes.
MEMORY, _SEED = "512MB", 7

COLUMNS: list[tuple[str, Type]] = [
    ("row_key", "string"),
    (SCORE, "double"),
    ("model_version", "string"),
    ("model_id", "string"),
    (PARTITION, "date"),
]


def read_days(lake: Lake, table: str, first: dt.date, last: dt.date, snapshot_id: int | None = None) -> pa.Table:
    """The rows of some days.

    :raises DataError: when none of the days is published.
    """
    files = lake.files(table, snapshot_id, first, last)
    if not files:
        raise DataError(
            f"{table} has no rows from {first} to {last}",
            expected="published days",
            found="none",
            todo="run the ingest first",
        )
    return pa.concat_tables([storage.read_table(file.path) for file in files], promote_options="default")


def scored(table: pa.Table, scorer: Scorer) -> pa.Table:
    """A table of rows with the features of the scorer's model, and a column ``score``.

    The features are computed from the raw columns, as the endpoint does: those that are stored may come from a spec
    that has changed since the model was trained.

    :raises DataError: when the table lacks a raw column.
    """
    raw = data.vectors(table, scorer.columns)
    matrix = scorer.encode(raw)
    for position, feature in enumerate(scorer.features):
        if feature.categories is None:
            column = pa.array(matrix[:, position], pa.float64(), from_pandas=True)
        else:
            column = table.column(physical(next(iter(feature.expression.columns))))
        table = _with(table, feature.name, column)
    return _with(table, SCORE, pa.array(scorer.score_features(matrix), pa.float64()))


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    if name not in table.column_names:
        return table.append_column(name, column)
    return table.set_column(table.column_names.index(name), name, column)


class Drawn(NamedTuple):
    """Rows drawn for a report, as ``scored`` gives them.

    :param rows: those that were drawn.
    :param of: how many they were drawn from.
    """

    rows: pa.Table
    of: int


def drawn_day(lake: Lake, table: str, day: dt.date, scorer: Scorer, most: int) -> Drawn:
    """Rows of a day, drawn by the hash of their key: the same each time, in memory for those that are drawn.

    :param table: of the lake.
    :param scorer: of the version in production.
    :param most: rows at most.
    :raises DataError: when the day is not published.
    """
    if not lake.days(table).get(day):
        raise DataError(f"{table} has no rows of {day}", expected="a published day", found="none",
                        todo="run the ingest first")  # fmt: skip
    with storage.connect_duckdb([lake.root], {"memory_limit": MEMORY}) as connection:
        return _drawn(connection, relation(connection, lake, table, first=day, last=day), scorer, most)


def drawn_training(sample: Path, scorer: Scorer, most: int) -> Drawn:
    """Rows that a model was trained on, the reference of its nights, drawn as those of a day.

    :param sample: place of the sample.
    :raises DataError: when the sample is gone.
    """
    files = sorted(str(path) for path in (sample / "train").glob("*.parquet"))
    if not files:
        raise DataError(
            "the training rows of the model in production are gone",
            expected=f"files in {sample / 'train'}",
            found="none",
            todo="train and deploy again: drift cannot be seen without a reference",
        )
    with storage.connect_duckdb(files[:1], {"memory_limit": MEMORY}) as connection:
        rows = connection.read_parquet(files, union_by_name=True, hive_partitioning=False)
        return _drawn(connection, rows, scorer, most)


def _drawn(connection: duckdb.DuckDBPyConnection, rows: duckdb.DuckDBPyRelation, scorer: Scorer, most: int) -> Drawn:
    rows.create_view("rows_to_draw")
    key = [name for name in scorer.bundle.dataset.contract.key if name in rows.columns] or rows.columns
    wanted = [name for name in dict.fromkeys(physical(name) for name in scorer.columns) if name in rows.columns]
    order = ", ".join([hash_sql(key, _SEED), *(identifier(name, "duckdb") for name in key)])
    chosen = ", ".join(identifier(name, "duckdb") for name in wanted)
    [(of,)] = connection.execute("SELECT count(*) FROM rows_to_draw").fetchall()
    drawn = connection.sql(f"SELECT {chosen} FROM rows_to_draw ORDER BY {order} LIMIT {most}").to_arrow_table()
    return Drawn(scored(drawn, scorer), of)


def scored_day(lake: Lake, table: str, day: dt.date, scorer: Scorer) -> tuple[Iterator[pa.Table], str]:
    """The rows of a day with their keys and ``score``, some at a time, none where it is not published; and the name of
    the files that they are from.

    :param table: of the lake.
    :param day: the day.
    :param scorer: of the version in production.
    """
    snapshot = lake.snapshot_id(table)
    files = [file for file in lake.files(table, snapshot, day, day) if file.rows]
    if not files:
        return iter(()), ""
    known = set(lake.columns(table))
    wanted = dict.fromkeys([*scorer.bundle.dataset.contract.key, *(physical(name) for name in scorer.columns)])
    columns = [name for name in wanted if name in known]
    read = batches(lake, table, snapshot, columns=columns, first=day, last=day)
    return (scored(pa.table(batch), scorer) for batch in read), content_of([file.path for file in files])


def log_predictions(
    lake: Lake,
    table: str,
    rows: pa.Table | Iterable[pa.Table],
    key: Sequence[str],
    version: str,
    scorer: Scorer,
    day: dt.date,
    content: str = "",
) -> SnapshotRef:
    """Publish the scores of a day to the table ``TABLE_predictions``; a repeat replaces them.

    :param rows: the day's rows with their ``score``, at once or some at a time; none empties the day.
    :param key: the columns that name a row.
    :param content: names the files that the rows are from, so that ``logged_files`` finds the scores by them.
    """
    name, parts = predictions_table(table), iter([rows] if isinstance(rows, pa.Table) else rows)
    lineage = {"model_version": version, "model_id": scorer.bundle.model_id}
    first = next((part for part in parts if part.num_rows), None)
    if first is None:
        return lake.publish(name, COLUMNS, [], day, day, lineage)

    def predicted(part: pa.Table) -> pa.Table:
        size = part.num_rows
        return pa.table(
            {
                "row_key": row_keys(part, key),
                SCORE: part.column(SCORE),
                "model_version": pa.array([version] * size, pa.string()),
                "model_id": pa.array([scorer.bundle.model_id] * size, pa.string()),
                PARTITION: pa.array([day] * size, pa.date32()),
            }
        )

    path = lake.stage(name, _run(day, content, scorer.bundle.model_id)) / "predictions.parquet"
    begun = predicted(first)
    with storage.parquet_writer(path, begun.schema) as writer:
        for part in chain([begun], map(predicted, parts)):
            writer.write_table(part)
    return lake.publish(name, COLUMNS, [path], day, day, lineage)


def _run(day: dt.date, content: str, model_id: str) -> str:
    return f"predictions-{day}" + (f"-{content}-{model_id[:16]}" if content else "")


def logged_files(lake: Lake, table: str, day: dt.date, content: str, model_id: str) -> list[str]:
    """The files of a day's logged scores, if all of them were made from the very files that hold the day now.

    :param content: names those files.
    :param model_id: of the model that must have scored them.
    """
    name = predictions_table(table)
    if not lake.exists(name):
        return []
    paths = [file.path for file in lake.files(name, None, day, day)]
    run = _run(day, content, model_id)
    return paths if all(path.rsplit("/", 2)[-2].startswith(f"{run}-") for path in paths) else []


def predictions_table(table: str) -> str:
    """Name of the table of a table's predictions."""
    return f"{table}_predictions"


def row_keys(rows: pa.Table, key: Sequence[str]) -> pa.Array:
    """One text per row that names it, without the values themselves: keys may be personal."""
    columns = [rows.column(name).to_pylist() for name in key]
    return pa.array(
        [
            hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()[:32]
            for values in zip(*columns, strict=True)
        ],
        pa.string(),
    )
