"""The shops as the ETL would store them, for the tests of this folder; and that this is what the contract promises."""

import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from airflow_provider_sml.ml.bundle import Bundle, feature_types
from airflow_provider_sml.ml.contract import LABEL, PARTITION, Dataset
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import SnapshotRef
from tests import shops

DATASET = shops.make_spec(Path("/nowhere")).dataset
ARROW = {
    "int": pa.int64(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us"), "date": pa.date32(),
}  # fmt: skip


def arrow_schema(columns: Iterable[tuple[str, str]]) -> pa.Schema:
    return pa.schema([(name, ARROW[kind]) for name, kind in columns])


def stored_day(day: dt.date, rows: int = 120, stormy: bool = False, dataset: Dataset = DATASET) -> pa.Table:
    """A day's orders with looked-up columns, features and label; of the first hour's orders nobody knows the rain."""
    rain = dict(shops.rain_of(day, stormy))
    found = []
    for raw in shops.make_rows(day, rows, stormy):
        moment = dt.datetime.fromisoformat(raw["ordered"]).replace(tzinfo=None)
        measured = moment.replace(minute=0) - dt.timedelta(hours=1)
        found.append(
            raw
            | {
                "ordered": moment,
                "gift": {"true": True, "false": False, "": None}[raw["gift"]],
                "customer": "***",
                "weather.rain": rain[measured] if measured.date() == day else None,
                "shops.opened": 2000 + int(raw["shop"][-2:]),
            }
        )
    return stored(found, day, dataset)


def stored(rows: list[dict[str, Any]], day: dt.date, dataset: Dataset = DATASET) -> pa.Table:
    """Raw rows, with joined columns as ``join.column``, as a table of the lake."""
    vectors = {name: Vector.of([row[name] for row in rows], kind) for name, kind in dataset.types.items()}
    columns: dict[str, list[Any]] = {name.replace(".", "__"): vector.tolist() for name, vector in vectors.items()}
    for feature in dataset.feature_list:
        columns[feature.name] = feature.expression.evaluate(vectors, len(rows)).tolist()
    label = dataset.label_expression.evaluate(vectors, len(rows)).tolist()
    columns |= {LABEL: [None if value is None else int(value) for value in label], PARTITION: [day] * len(rows)}
    schema = arrow_schema(dataset.table_columns)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def publish(lake: Lake, tables: Mapping[dt.date, pa.Table], table: str = "orders") -> SnapshotRef:
    """Publish the days from the first to the last."""
    folder = lake.stage(table, "test")
    folder.mkdir(parents=True)
    paths = []
    for day, rows in tables.items():
        paths.append(folder / f"{day}.parquet")
        pq.write_table(rows, paths[-1])
    return lake.publish(table, DATASET.table_columns, paths, min(tables), max(tables), {"run": "test"})


def fit(table: pa.Table, rounds: int = 20, dataset: Dataset = DATASET, lineage: Mapping[str, Any] | None = None):
    """A bundle fitted to a table, without sample and cluster."""
    features = dataset.feature_list
    matrix = xgboost.DMatrix(
        data.matrix(table, features),
        label=table.column(LABEL).to_numpy(),
        feature_names=[f.name for f in features],
        feature_types=feature_types(features),
        enable_categorical=True,
    )
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": 7}, matrix, rounds)
    model = bytes(booster.save_raw("ubj"))
    return Bundle("orders", f"fitted{rounds:06d}", dataset, rounds, dict(lineage or {}), model)


def test_the_days_fulfil_the_contract():
    table = stored_day(shops.FIRST)
    assert table.num_rows == 120
    assert table.schema.names == [name for name, _ in DATASET.table_columns]
    for rule in DATASET.rules:
        found = duckdb.from_arrow(table).filter(f"NOT ({rule.predicate.sql('duckdb')})").fetchall()
        assert found == [], rule.name
    late = np.array(table.column("minutes_late").to_pylist()) > 10
    assert table.column(LABEL).to_pylist() == late.astype(int).tolist()
    assert 0 < late.sum() < 120
    assert 0 < table.column("rain").null_count < 120


def test_the_features_are_those_of_duckdb():
    table = stored_day(shops.FIRST)
    for feature in DATASET.feature_list:
        told = duckdb.from_arrow(table).select(duckdb.SQLExpression(feature.expression.sql("duckdb"))).fetchall()
        assert table.column(feature.name).to_pylist() == [value for (value,) in told], feature.name
