"""The profile of the features in one Parquet file, made by a Python worker of Spark.

Spark hands over the file as it lies in the lake, by its own credentials, and Arrow reads it here: to have Java hand
over the rows alone costs twice as much as the whole profile. Stored columns are counted as they are, and expressions
are computed as the scoring server computes them.

A worker needs Python 3.11, NumPy, PyArrow and pydantic; it gets this module and what it imports from ``spark_profiles``
as an archive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from airflow_provider_sml.ml.contract import Feature
from airflow_provider_sml.ml.expressions import Type, compile, physical
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.monitoring.parquet_profile import SEGMENT, ParquetRows
from airflow_provider_sml.ml.monitoring.profile import CAP, HELD, Kind, of_batches
from airflow_provider_sml.ml.training import data


def asked_of(features: Sequence[Feature], types: Mapping[str, Type], segment: str | None) -> dict[str, Any] | None:
    """What ``profile_file`` is asked for, as JSON; None where SQL alone computes what is wanted.

    :param features: what to profile.
    :param types: of the columns that the features are computed from, joined ones as ``join.column``.
    :param segment: a stored column by whose values the rows are profiled apart as well.
    """
    if any(one.categories is not None and one.expression.type not in ("string", "int") for one in features):
        return None  # the text of other types is written differently by each engine
    return {
        "features": [
            {
                "name": feature.name,
                "kind": "number" if feature.categories is None else "category",
                "text": feature.expression.text,
                "types": {name: types[name] for name in sorted(feature.expression.columns)},
            }
            for feature in features
        ],
        "segment": segment,
    }


def profile_file(content: bytes, asked: Mapping[str, Any]) -> str:
    """The profile of a file's rows, as JSON.

    :param content: the file.
    :param asked: what ``asked_of`` gave.
    """
    rows, segment = ParquetRows([pa.py_buffer(content)]), asked["segment"]
    makers = {one["name"]: _maker(rows, one) for one in asked["features"]}
    names = {physical(name) for one in asked["features"] for name in one["types"]} | ({segment} if segment else set())
    kinds: dict[str, Kind] = {one["name"]: one["kind"] for one in asked["features"]}

    def columns() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches([name for name in names if name in rows.names], threads=False):
            table = pa.Table.from_batches([batch])
            for name in names - set(rows.names):  # the file is older than the column
                table = table.append_column(name, pa.nulls(batch.num_rows))
            made = {name: make(table) for name, make in makers.items()}
            if segment:
                made[SEGMENT] = table.column(segment)
            yield pa.table(made) if made else table

    found = of_batches(columns(), kinds, segment=SEGMENT if segment else None, cap=CAP * HELD)
    return json.dumps(found.dump())


def _maker(rows: ParquetRows, one: Mapping[str, Any]) -> Callable[[pa.Table], pa.ChunkedArray | pa.Array]:
    """What gives a feature's values for rows."""
    expression = compile(one["text"], one["types"])
    if expression.is_column:
        [stored] = (physical(name) for name in one["types"])
        if rows.holds(stored, one["kind"]):
            return lambda table: table.column(stored)

    def compute(table: pa.Table) -> pa.Array:
        vector = expression.evaluate(data.vectors(table, one["types"]), table.num_rows)
        return _numbers(vector) if one["kind"] == "number" else _texts(vector)

    return compute


def _numbers(vector: Vector) -> pa.Array:
    return pa.array(vector.as_double())  # NaN is a gap as NULL is


def _texts(vector: Vector) -> pa.Array:
    if vector.values.dtype != object:
        vector = Vector(vector.values.astype(str).astype(object), vector.null)
    return pa.array(vector.values, pa.string(), mask=vector.null)
