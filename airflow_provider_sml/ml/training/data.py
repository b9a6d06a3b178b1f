"""Rows of parquet files as the numbers that a model is fed, file by file, so that memory holds one file at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import feature_types
from airflow_provider_sml.ml.contract import LABEL, Feature
from airflow_provider_sml.ml.sampling.methods import WEIGHT

if TYPE_CHECKING:
    import xgboost


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


def matrix(table: pa.Table, features: Sequence[Feature]) -> np.ndarray:
    """The features of a table: float32 of shape (rows, features)."""
    out = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for position, feature in enumerate(features):
        column = table.column(feature.name)
        if feature.categories is not None:
            column = pc.index_in(column.cast(pa.string()), value_set=pa.array(feature.categories))
        out[:, position] = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    return out


def iterator(paths: Sequence[Path], features: Sequence[Feature]) -> xgboost.DataIter:
    """XGBoost's iterator over files, for a QuantileDMatrix."""
    import xgboost

    class Files(xgboost.DataIter):
        def __init__(self) -> None:
            super().__init__()
            self._left: Iterator[Path] = iter(())

        def next(self, input_data: Any) -> bool:
            for path in self._left:
                values, labels = read(path, features)
                if len(labels):
                    input_data(
                        data=values,
                        label=labels,
                        weight=weights(path),
                        feature_names=[feature.name for feature in features],
                        feature_types=feature_types(features),
                    )
                    return True
            return False

        def reset(self) -> None:
            self._left = iter(paths)

    return Files()
