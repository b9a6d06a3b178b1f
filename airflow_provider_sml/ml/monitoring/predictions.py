"""Scores of a day's rows, kept in the lake. What they were worth is measured in ``performance``."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.expressions import Type, physical
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring.drift import SCORE
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import SnapshotRef

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


def log_predictions(
    lake: Lake, table: str, rows: pa.Table, key: Sequence[str], version: str, scorer: Scorer, day: dt.date
) -> SnapshotRef:
    """Publish the scores of a day to the table ``TABLE_predictions``; a repeat replaces them.

    :param rows: the day's rows with their ``score``.
    :param key: the columns that name a row.
    """
    size = rows.num_rows
    predictions = pa.table(
        {
            "row_key": row_keys(rows, key),
            SCORE: rows.column(SCORE),
            "model_version": pa.array([version] * size, pa.string()),
            "model_id": pa.array([scorer.bundle.model_id] * size, pa.string()),
            PARTITION: pa.array([day] * size, pa.date32()),
        }
    )
    name = predictions_table(table)
    folder = lake.stage(name, f"predictions-{day}")
    storage.write_table(predictions, folder / "predictions.parquet")
    lineage = {"model_version": version, "model_id": scorer.bundle.model_id}
    return lake.publish(name, COLUMNS, [folder / "predictions.parquet"], day, day, lineage)


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


def reference_rows(sample_uri: Path) -> pa.Table:
    """The training rows of a sample, the reference of a model trained on it.

    :raises DataError: when the sample is gone.
    """
    files = sorted((sample_uri / "train").glob("*.parquet"))
    if not files:
        raise DataError(
            "the training rows of the model in production are gone",
            expected=f"files in {sample_uri / 'train'}",
            found="none",
            todo="train and deploy again: drift cannot be seen without a reference",
        )
    return pa.concat_tables([storage.read_table(path) for path in files])
