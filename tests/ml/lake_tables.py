"""A small table of orders for the tests of the lake: rows of some days, written and published."""

import datetime as dt

import pyarrow as pa

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.lake import CatalogSettings, Lake

COLUMNS = [("shop", "string"), ("version", "int"), (PARTITION, "date")]
DAY = dt.date(2026, 3, 1)
NEXT = DAY + dt.timedelta(days=1)
SCHEMA = pa.schema([("shop", pa.string()), ("version", pa.int64()), (PARTITION, pa.date32())])


def rows(day, count, version=1, start=0):
    shops = [f"shop-{n:05d}" for n in range(start, start + count)]
    return pa.table([shops, [version] * count, [day] * count], schema=SCHEMA)


def write(lake, *tables, table="orders", run="run"):
    folder = lake.stage(table, run)
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, content in zip(paths, tables, strict=True):
        storage.write_table(content, path)
    return paths


def publish(lake, *tables, first=DAY, last=None, table="orders"):
    paths = write(lake, *tables, table=table)
    return lake.publish(table, COLUMNS, paths, first, last or first, {"run_id": "one"})


def read(lake, snapshot_id=None, table="orders"):
    paths = [file.path for file in lake.files(table, snapshot_id)]
    return pa.concat_tables([SCHEMA.empty_table(), *map(storage.read_table, paths)])


def open_lake(place, request, tmp_path):
    """A new lake on ``disk`` or by the fixture of a store, its catalog in SQLite."""
    if place == "disk":
        return Lake(str(tmp_path / "lake"))
    server = request.getfixturevalue(place)
    return Lake(f"{server.bucket()}/lake", server.store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
