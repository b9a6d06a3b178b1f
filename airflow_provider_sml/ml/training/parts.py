"""The parts of the test rows that an evaluation repeats its measures on: slices by a column, and windows of time.

A part with fewer rows than asked for is told with its rows, and not measured.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.training import metrics

#: Small slices of one column that are named; of the others only the number and the rows are told.
MOST_NAMED = 100


def slices(
    test: pa.Table, labels: np.ndarray, scores: np.ndarray, by: Sequence[str], min_rows: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The measures within each value of some columns; a slice of one label has no AUC.

    :param test: the rows.
    :param labels: shape (rows,).
    :param scores: shape (rows,).
    :param by: the columns.
    :param min_rows: smallest slice that is measured.
    :returns: the slices that were measured; of each column with smaller ones, how many there are, their rows, and the
        largest of them by name.
    """
    found, small = [], []
    for name in by:
        values = np.array(names(test, name).to_pylist())
        known, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        for number in np.flatnonzero(counts >= min_rows):
            inside = which == number
            found.append(
                {
                    "column": name, "value": str(known[number]),
                    **_measures(labels[inside], scores[inside]), "auc": _auc(labels[inside], scores[inside]),
                }
            )  # fmt: skip
        left = np.flatnonzero(counts < min_rows)
        if len(left):
            largest = left[np.argsort(-counts[left], kind="stable")][:MOST_NAMED]
            small.append(
                {
                    "column": name, "values": len(left), "rows": int(counts[left].sum()),
                    "largest": [{"value": str(known[n]), "rows": int(counts[n])} for n in largest],
                }
            )  # fmt: skip
    return found, small


def names(test: pa.Table, column: str) -> pa.Array:
    """The slice of each row by a column; NULL is a slice like any other.

    :param test: the rows.
    :param column: whose values make the slices.
    """
    return pa.array(["NULL" if value is None else str(value) for value in test.column(column).to_pylist()], pa.string())


def by_time(test: pa.Table, labels: np.ndarray, scores: np.ndarray, min_rows: int) -> dict[str, Any]:
    """The measures of the days of the test window, or of its weeks where most of the days hold too few rows.

    :param test: the rows, with the date of their event.
    :param labels: shape (rows,).
    :param scores: shape (rows,).
    :param min_rows: smallest window that is measured.
    :returns: ``unit`` (``day`` or ``week``, from the first day on), ``min_rows`` and ``windows`` in the order of time.
    """
    days = test.column(PARTITION).cast(pa.date32()).to_numpy().astype("datetime64[D]")
    numbers = (days - days.min()).astype(int)
    _, counts = np.unique(numbers, return_counts=True)
    length = 1 if np.median(counts) >= min_rows else 7
    windows = list(_windows(days, numbers // length, length, labels, scores, min_rows))
    return {"unit": "day" if length == 1 else "week", "min_rows": min_rows, "windows": windows}


def _windows(
    days: np.ndarray, which: np.ndarray, length: int, labels: np.ndarray, scores: np.ndarray, min_rows: int
) -> Iterator[dict[str, Any]]:
    first, last = (day.astype(dt.date) for day in (days.min(), days.max()))
    for number in range(int(which.max()) + 1):
        inside = which == number
        begin = first + dt.timedelta(days=number * length)
        end = min(begin + dt.timedelta(days=length - 1), last)
        found: dict[str, Any] = {"from": begin.isoformat(), "to": end.isoformat(), "rows": int(inside.sum())}
        nothing = {"label_rate": None, "mean_score": None, "log_loss": None, "ece": None, "auc": None}
        if found["rows"] < max(min_rows, 1):
            yield found | nothing
            continue
        auc = metrics.auc_interval(labels[inside], scores[inside])
        found |= _measures(labels[inside], scores[inside])
        yield found | {"auc": None if np.isnan(auc.value) else asdict(auc)}


def _measures(labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    return {
        "rows": len(labels),
        "label_rate": float(labels.mean()),
        "mean_score": float(scores.mean()),
        "log_loss": metrics.log_loss(labels, scores),
        "ece": metrics.ece(labels, scores),
    }


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """JSON has no NaN."""
    found = metrics.auc(labels, scores)
    return None if np.isnan(found) else found
