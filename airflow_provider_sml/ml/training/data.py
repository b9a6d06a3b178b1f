"""Rows of parquet files as the numbers that a model is fed, file by file, so that memory holds one file at a time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import feature_types
from airflow_provider_sml.ml.contract import LABEL, Feature
from airflow_provider_sml.ml.expressions import physical
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.sampling.methods import WEIGHT

if TYPE_CHECKING:
    import xgboost

_ARROW = {
    "int": pa.int64(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us"), "date": pa.date32(),
}  # fmt: skip
_FILL: dict[str, Any] = {
    "int": 0, "double": 0.0, "string": "", "boolean": False, "timestamp": dt.datetime(1970, 1, 1),
    "date": dt.date(1970, 1, 1),
}  # fmt: skip
_NUMPY: dict[str, Any] = {"timestamp": "datetime64[us]", "date": "datetime64[D]", "boolean": np.bool_}


def weights(path: Path) -> np.ndarray | None:
    """The rows' weights, where the sample gave them some: float32 of shape (rows,)."""
    if WEIGHT not in storage.read_schema(path).names:
        return None
    return storage.read_table(path, columns=[WEIGHT]).column(WEIGHT).to_numpy().astype(np.float32)


def read(path: Path, features: Sequence[Feature]) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a file.

    :param path: a parquet file with a column for each feature and the label.
    :param features: which ones, in this order.
    :returns: float32 of shape (rows, features), NaN for NULL and codes for categories; float32 of shape (rows,).
    """
    table = storage.read_table(path, columns=[*(feature.name for feature in features), LABEL])
    return matrix(table, features), table.column(LABEL).to_numpy().astype(np.float32)


def label_counts(paths: Sequence[Path]) -> np.ndarray:
    """How many rows of some files have the label 0, the label 1, and any other or none.

    :returns: float64 of shape (3,).
    """
    counts = np.zeros(3)
    for path in paths:
        labels = storage.read_table(path, columns=[LABEL]).column(LABEL).to_numpy()
        known = [(labels == 0).sum(), (labels == 1).sum()]
        counts += [*known, len(labels) - sum(known)]
    return counts


def matrix(table: pa.Table, features: Sequence[Feature]) -> np.ndarray:
    """The features of a table: float32 of shape (rows, features), NaN for NULL and codes for categories.

    :raises DataError: when the table lacks one.
    """
    missing = [feature.name for feature in features if feature.name not in table.column_names]
    if missing:
        raise DataError(
            "the rows lack features of the model",
            expected=", ".join(feature.name for feature in features),
            found=f"no {', '.join(missing)}",
            todo="ingest the days again with these features, or train a new model",
        )
    out = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for position, feature in enumerate(features):
        column = table.column(feature.name)
        if feature.categories is not None:
            column = pc.index_in(column.cast(pa.string()), value_set=pa.array(feature.categories))
        out[:, position] = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    return out


def vectors(table: pa.Table, columns: Mapping[str, str]) -> dict[str, Vector]:
    """Raw columns of a table, for a scorer that computes its features itself.

    :param table: rows of the lake.
    :param columns: type of each column, joined ones as ``join.column``: a scorer's ``columns``.
    :raises DataError: when the table lacks one, or holds values that are not of its type.
    """
    missing = missing_columns(table, columns)
    if missing:
        raise DataError(
            "the rows lack columns that the model needs",
            expected=", ".join(columns),
            found=f"no {', '.join(missing)}",
            todo="ingest the days again with these columns, or train a new model",
        )
    found = {}
    for name, kind in columns.items():
        try:
            column = table.column(physical(name)).cast(_ARROW[kind])
        except pa.ArrowInvalid as error:
            raise DataError(f"the column {name} does not fit the model", expected=kind, found=error) from error
        null = column.is_null().to_numpy()
        values = pc.fill_null(column, pa.scalar(_FILL[kind], _ARROW[kind])).to_numpy()
        found[name] = Vector(values.astype(_NUMPY.get(kind, values.dtype)), null)
    return found


def missing_columns(table: pa.Table, columns: Iterable[str]) -> list[str]:
    """Raw columns, joined ones as ``join.column``, that a table lacks."""
    return [name for name in columns if physical(name) not in table.column_names]


def iterator(
    paths: Sequence[Path],
    features: Sequence[Feature],
    cache: str | None = None,
    label_weights: tuple[float, float] | None = None,
    margins: Mapping[Path, np.ndarray] | None = None,
    put: Callable[[np.ndarray], Any] | None = None,
) -> xgboost.DataIter:
    """XGBoost's iterator over files, for a QuantileDMatrix; files without a row give one batch without a row.

    :param paths: parquet files; one at a time is in memory.
    :param features: which columns, in this order.
    :param cache: prefix of the cache files of an ExtMemQuantileDMatrix; None for one in memory.
    :param label_weights: what a row with label 0 and one with label 1 weighs, times its own weight where it has one.
    :param margins: of each file, what boosting starts from row by row (log odds, shape (rows,)); None for a constant.
    :param put: puts the features of a file on a GPU, where the matrix is built then; None to build it on the host.
        With a cache that is made there, the cached pages lie in the host's memory, not on its disk.
    """
    import xgboost

    class Files(xgboost.DataIter):
        def __init__(self) -> None:
            super().__init__(cache_prefix=cache)
            self._left: Iterator[Path] = iter(())
            self._given = False

        def next(self, input_data: Any) -> bool:
            for path in self._left:
                values, labels = read(path, features)
                if len(labels):
                    weight = _weighed(labels, weights(path), label_weights)
                    return self._give(
                        input_data, values, labels, weight, margins[path] if margins is not None else None
                    )
            if not self._given:  # XGBoost takes a worker without rows, but not one without a batch.
                values, labels, weight = _nothing(paths, features)
                weight = _weighed(labels, weight, label_weights)
                return self._give(input_data, values, labels, weight, labels if margins is not None else None)
            return False

        def _give(
            self,
            input_data: Any,
            values: np.ndarray,
            labels: np.ndarray,
            weight: np.ndarray | None,
            margin: np.ndarray | None,
        ) -> bool:
            self._given = True
            input_data(
                data=values if put is None else put(values),
                label=labels,
                weight=weight,
                base_margin=margin,
                feature_names=[feature.name for feature in features],
                feature_types=feature_types(features),
            )
            return True

        def reset(self) -> None:
            self._left, self._given = iter(paths), False

    return Files()


def _weighed(
    labels: np.ndarray, own: np.ndarray | None, label_weights: tuple[float, float] | None
) -> np.ndarray | None:
    """The weights of rows, of their own and of their labels; None where there are neither."""
    if label_weights is None:
        return own
    negative, positive = label_weights
    found = np.where(labels == 1, positive, negative)
    return (found if own is None else found * own).astype(np.float32)


def _nothing(paths: Sequence[Path], features: Sequence[Feature]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Features, labels and weights of no row; weights where the files would have them."""
    none = np.empty(0, np.float32)
    weighted = any(WEIGHT in storage.read_schema(path).names for path in paths)
    return np.empty((0, len(features)), np.float32), none, none if weighted else None
