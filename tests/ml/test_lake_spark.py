"""Our lake is a normal one: Spark reads a published table with Iceberg's own runtime and finds the same rows."""

import datetime as dt
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from airflow_provider_sml.cloud import jars
from airflow_provider_sml.cloud.spark_submit import find_spark_submit
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.lake import Lake, maintenance, reading, versions
from airflow_provider_sml.testing.core.spark import local_settings
from tests.ml import lake_tables
from tests.ml.lake_tables import COLUMNS, DAY, NEXT, publish, rows

#: Tells the rows of some versions of the table that a metadata file describes.
READER = """
import json, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
metadata, *wanted = sys.argv[1:]
for version in wanted:
    reader = spark.read.format("iceberg")
    if version != "now":
        reader = reader.option("versionAsOf", version)
    frame = reader.load(metadata)
    found = [[str(value) if value is not None else None for value in row] for row in frame.collect()]
    print("READ", json.dumps([version, frame.columns, found]), flush=True)
files = spark.read.format("iceberg").load(metadata + "#files").collect()
print("READ", json.dumps(["files", None, [[str(file.partition[0]), file.record_count] for file in files]]), flush=True)
spark.stop()
"""


def read_by_spark(tmp_path, metadata, *wanted):
    """What Iceberg's runtime reads of each version: its columns, and its rows as texts."""
    import pyspark

    try:
        runtime = jars.spark_jars(jars.fetch(pyspark.__version__, ["iceberg"]))
    except ConfigurationError as error:
        pytest.skip(f"no jars: {error}")
    script = tmp_path / "reader.py"
    script.write_text(READER)
    conf = {
        "spark.jars": runtime, "spark.sql.shuffle.partitions": "1", "spark.sql.session.timeZone": "UTC",
        "spark.sql.catalog.default_iceberg": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.default_iceberg.type": "hadoop",
        "spark.sql.catalog.default_iceberg.warehouse": str(tmp_path / "nothing"),
    }  # fmt: skip
    submit = find_spark_submit()
    conf |= local_settings(submit)
    settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    command = [submit, "--master", "local[1]", *settings]
    env = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [*command, str(script), metadata, *map(str, wanted)], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr[-1000:]
    told = [json.loads(line.removeprefix("READ ")) for line in done.stdout.splitlines() if line.startswith("READ ")]
    return {version: (columns, sorted(found, key=str)) for version, columns, found in told}


def texts(table):
    return sorted(
        ([None if value is None else str(value) for value in row.values()] for row in table.to_pylist()), key=str
    )


@pytest.mark.slow
def test_iceberg_s_own_runtime_reads_every_version_of_a_published_table(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    first = publish(lake, *[rows(DAY, 3, start=3 * n) for n in range(4)])
    versions.tag(lake, "orders", "training", first.snapshot_id)
    publish(lake, rows(DAY, 5, version=2))
    publish(lake, rows(NEXT, 2, version=3), first=NEXT)
    after = NEXT + dt.timedelta(days=1)
    wider = [*COLUMNS[:-1], ("note", "string"), COLUMNS[-1]]
    table = rows(after, 2, version=4).add_column(2, "note", [["late", "lost"]])
    last = lake.publish("orders", wider, lake_tables.write(lake, table), after, after, {"run_id": "two"})
    maintenance.compact(lake, "orders")

    found = read_by_spark(tmp_path, lake.load("orders").metadata_location, "now", "training", first.snapshot_id)

    expected = pa.Table.from_batches(reading.batches(lake, "orders"))
    assert found["now"] == (expected.column_names, texts(expected)) and len(found["now"][1]) == 9
    old = pa.Table.from_batches(reading.batches(lake, "orders", first.snapshot_id))
    assert found["training"][1] == found[str(first.snapshot_id)][1]
    assert [row[:2] for row in found["training"][1]] == [row[:2] for row in texts(old)]
    assert old.num_rows == 12
    assert sorted(day for day, _ in found["files"][1]) == [str(DAY), str(NEXT), str(after)]
    assert last.total_rows == 9
