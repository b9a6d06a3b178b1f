"""A lake on an S3 that fails: a publish is survived, or leaves the old rows, and its repeat ends in the new ones."""

from dataclasses import replace

import pytest

from airflow_provider_sml.ml.lake import CatalogSettings, Lake, maintenance
from airflow_provider_sml.testing.gateway import gateway
from tests.ml.lake_tables import COLUMNS, DAY, NEXT, publish, read, rows, write


@pytest.fixture
def between(s3_store):
    with gateway(s3_store) as made:
        yield made


@pytest.fixture
def lake(between, tmp_path):
    store = replace(between.store.store, attempts=3)
    lake = Lake(f"{between.store.bucket()}/lake", store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
    publish(lake, rows(DAY, 3), rows(NEXT, 4), last=NEXT)
    return lake


def versions_of(lake):
    return {(row["event_date"], row["version"]) for row in read(lake).to_pylist()}


OLD, NEW = {(DAY, 1), (NEXT, 1)}, {(DAY, 2), (NEXT, 1)}


@pytest.mark.parametrize("kind", ["throttle", "server_error", "drop_before", "drop_after"])
def test_a_fault_of_each_call_is_survived(lake, between, kind):
    for operation in ("PutObject", "GetObject", "HeadObject", "ListObjects"):
        between.faults.add(kind, operation)
    snapshots = len(lake.snapshots("orders"))
    publish(lake, rows(DAY, 5, version=2))
    assert versions_of(lake) == NEW and len(lake.snapshots("orders")) == snapshots + 1
    assert maintenance.delete_orphans(lake, dry_run=True).unknown == []
    assert between.failed["PutObject"] == 1 and between.failed["GetObject"] == 1


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("PutObject", "*/data/*.parquet"),
        ("PutObject", "*/_publishing"),
        ("GetObject", "*/data/*"),
        ("PutObject", "*.avro"),
        ("PutObject", "*.metadata.json"),
    ],
)
@pytest.mark.parametrize("kind", ["throttle", "server_error"])
def test_a_lasting_fault_leaves_the_old_rows_and_a_repeat_ends_in_the_new(lake, between, kind, operation, name):
    lake = Lake(lake.location, replace(lake.store, attempts=1), lake.settings)  # s3fs itself tries five times
    paths = None
    between.faults.add(kind, operation, name, times=1000)
    with pytest.raises(OSError):
        paths = write(lake, rows(DAY, 5, version=2))
        lake.publish("orders", COLUMNS, paths, DAY, DAY, {})
    assert between.failed[operation] >= 2, "it was tried again before it was given up"
    between.faults.clear()
    assert versions_of(lake) == OLD
    paths = paths or write(lake, rows(DAY, 5, version=2))
    lake.publish("orders", COLUMNS, paths, DAY, DAY, {})
    assert versions_of(lake) == NEW and len(lake.snapshots("orders")) == 2


def test_a_metadata_file_whose_reply_is_lost_is_committed_once(lake, between):
    between.faults.add("drop_after", "PutObject", "*.metadata.json", times=2)
    publish(lake, rows(DAY, 5, version=2))
    assert between.failed["PutObject"] == 2 and versions_of(lake) == NEW and len(lake.snapshots("orders")) == 2
