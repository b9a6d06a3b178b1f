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
from airflow_provider_sml.ml.monitoring.profile_store import content as content_of
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


def scored_day(lake: Lake, table: str, day: dt.date, scorer: Scorer) -> tuple[pa.Table, str]:
    """The scored rows of a day, none where it is not published, and the name of the files that they are from.

    :param table: of the lake.
    :param day: the day.
    :param scorer: of the version in production.
    """
    snapshot = lake.snapshot_id(table)
    files = [file for file in lake.files(table, snapshot, day, day) if file.rows]
    if not files:
        return pa.table({}), ""
    return scored(read_days(lake, table, day, day, snapshot), scorer), content_of([file.path for file in files])


def log_predictions(
    lake: Lake,
    table: str,
    rows: pa.Table,
    key: Sequence[str],
    version: str,
    scorer: Scorer,
    day: dt.date,
    content: str = "",
) -> SnapshotRef:
    """Publish the scores of a day to the table ``TABLE_predictions``; a repeat replaces them.

    :param rows: the day's rows with their ``score``; none empties the day.
    :param key: the columns that name a row.
    :param content: names the files that the rows are from, so that ``logged_files`` finds the scores by them.
    """
    size, name = rows.num_rows, predictions_table(table)
    lineage = {"model_version": version, "model_id": scorer.bundle.model_id}
    if not size:
        return lake.publish(name, COLUMNS, [], day, day, lineage)
    predictions = pa.table(
        {
            "row_key": row_keys(rows, key),
            SCORE: rows.column(SCORE),
            "model_version": pa.array([version] * size, pa.string()),
            "model_id": pa.array([scorer.bundle.model_id] * size, pa.string()),
            PARTITION: pa.array([day] * size, pa.date32()),
        }
    )
    folder = lake.stage(name, _run(day, content, scorer.bundle.model_id))
    storage.write_table(predictions, folder / "predictions.parquet")
    return lake.publish(name, COLUMNS, [folder / "predictions.parquet"], day, day, lineage)


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
