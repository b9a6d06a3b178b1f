"""Upkeep of the lake: what may go goes, and nothing else, beside readers and publishers at work."""

import datetime as dt
import os
import threading

import pytest

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake import Lake, maintenance, versions
from airflow_provider_sml.ml.lake import lake as module
from airflow_provider_sml.ml.lake.lives import DOOMED
from tests.ml.lake_tables import COLUMNS, DAY, NEXT, open_lake, publish, read, rows, write

LATER = dt.datetime.now(dt.UTC) + 10 * maintenance.DAY
THIRD = NEXT + dt.timedelta(days=1)


@pytest.fixture(params=["disk", "s3_store", "gcs_store"])
def lake(request, tmp_path):
    return open_lake(request.param, request, tmp_path)


def files_below(lake):
    return {entry.path for entry in storage.entries(lake.root / "lake") if entry.path.endswith(".parquet")}


# --- compaction -------------------------------------------------------------------------------------------------------


def test_small_files_of_a_day_are_merged_and_the_rows_stay(lake):
    parts = [rows(DAY, 10, start=10 * n) for n in range(6)]
    old = publish(lake, *parts, *[rows(NEXT, 2, start=2 * n) for n in range(3)], first=DAY, last=NEXT)
    before = read(lake)
    found = maintenance.compact(lake, "orders")
    assert (found.days, found.files_before, found.files_after, found.skipped) == ([DAY], 6, 1, [])
    assert [(file.day, file.rows) for file in lake.files("orders")] == [(DAY, 60), *[(NEXT, 2)] * 3]
    assert sorted(map(str, read(lake).to_pylist())) == sorted(map(str, before.to_pylist()))
    assert read(lake, old.snapshot_id) == before
    assert maintenance.compact(lake, "orders").days == []
    assert lake.snapshots("orders")[-1]["lineage"] == {"compaction": str(DAY)}


def test_merged_files_end_at_the_target_size(lake):
    publish(lake, *[rows(DAY, 50, start=50 * n) for n in range(6)])
    size = max(file.bytes for file in lake.files("orders"))
    found = maintenance.compact(lake, "orders", target_bytes=int(size * 3.5))
    assert (found.files_before, found.files_after) == (6, 2)
    assert [file.rows for file in lake.files("orders")] == [150, 150]


def test_a_day_that_is_published_meanwhile_is_left_to_its_publisher(lake, monkeypatch):
    publish(lake, *[rows(DAY, 10, start=10 * n) for n in range(4)])
    check = module.check_file

    def publish_first(*arguments):
        monkeypatch.setattr(module, "check_file", check)
        publish(Lake(lake.location, lake.store, lake.settings), rows(DAY, 3, version=2))
        check(*arguments)

    monkeypatch.setattr(module, "check_file", publish_first)
    assert maintenance.compact(lake, "orders").skipped == [DAY]
    assert lake.days("orders") == {DAY: 3} and set(read(lake).column("version").to_pylist()) == {2}


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_snapshots_expire_except_the_current_the_new_the_tagged_and_the_sampled(lake):
    made = [publish(lake, rows(DAY, n + 1, version=n)).snapshot_id for n in range(6)]
    versions.tag(lake, "orders", "training", made[0])
    storage.write(lake.root / "samples" / "orders" / "abc" / "manifest.json", f'{{"snapshot_id": {made[1]}}}')
    assert maintenance.expire(lake, "orders", keep=2) == []  # all are young
    assert maintenance.expire(lake, "orders", keep=2, now=LATER) == made[2:4]
    assert [snapshot["snapshot_id"] for snapshot in lake.snapshots("orders")] == [*made[:2], *made[4:]]
    assert read(lake, made[0]).num_rows == 1 and lake.days("orders") == {DAY: 6}
    versions.untag(lake, "orders", "training")
    assert maintenance.expire(lake, "orders", keep=1, now=LATER) == [made[0], made[4]]


# --- orphans ----------------------------------------------------------------------------------------------------------


def test_only_what_nothing_refers_to_is_deleted(lake):
    first = publish(lake, rows(DAY, 3))
    versions.tag(lake, "orders", "training", first.snapshot_id)
    publish(lake, rows(DAY, 4, version=2))
    expired = lake.files("orders")[0].path
    publish(lake, rows(DAY, 5, version=3))
    failed = write(lake, rows(NEXT, 9), run="failed")
    storage.write(failed[0].parent / "report.json", "{}")
    kept = storage.address(lake.files("orders")[0].path)
    report = storage.place(kept).parent / "report.json"
    storage.write(report, "{}")
    maintenance.expire(lake, "orders", keep=1, now=LATER)
    young = maintenance.delete_orphans(lake)
    assert (young.files, young.spared, young.unknown) == (0, [], [])
    counted = maintenance.delete_orphans(lake, now=LATER, dry_run=True)
    assert expired in files_below(lake)
    found = maintenance.delete_orphans(lake, now=LATER)
    assert (found.files, found.bytes) == (counted.files, counted.bytes) and found.files >= 3
    left = files_below(lake)
    assert left == {lake.files("orders", first.snapshot_id)[0].path, kept}
    assert report.exists() and not (failed[0].parent / "report.json").exists()
    assert read(lake, first.snapshot_id).num_rows == 3 and read(lake).num_rows == 5
    assert maintenance.delete_orphans(lake, now=LATER).files == 0
    publish(lake, rows(THIRD, 1), first=THIRD)
    assert lake.days("orders") == {DAY: 5, THIRD: 1}


def test_a_run_at_work_is_left_alone_as_a_whole(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, rows(DAY, 3))
    old, young = write(lake, rows(NEXT, 1), rows(NEXT, 2, start=9), run="at-work")
    os.utime(old, (0, 0))
    assert maintenance.delete_orphans(lake).files == 0 and old.exists() and young.exists()
    os.utime(young, (0, 0))
    assert maintenance.delete_orphans(lake, dry_run=True).files == 2


def test_a_table_that_the_catalog_does_not_know_is_left_alone(lake):
    publish(lake, rows(DAY, 3))
    (path,) = write(lake, rows(DAY, 3), table="rides")
    found = maintenance.delete_orphans(lake, now=LATER)
    assert found.unknown == ["rides"] and path.exists()


def test_a_publish_of_files_that_are_being_deleted_is_refused(lake):
    paths = write(lake, rows(DAY, 3))
    storage.write(paths[0].parent / DOOMED, "")
    with pytest.raises(DataError, match=r"are being deleted(.|\n)*run the ETL again"):
        lake.publish("orders", COLUMNS, paths, DAY, DAY, {})
    storage.remove(str(paths[0].parent / DOOMED))
    storage.remove(str(paths[0]))
    with pytest.raises(DataError, match="is gone"):
        lake.publish("orders", COLUMNS, paths, DAY, DAY, {})
    assert lake.days("orders") == {}


def test_a_publish_that_begins_while_orphans_are_counted_keeps_its_files(lake, monkeypatch):
    publish(lake, rows(DAY, 3))
    paths = write(lake, rows(NEXT, 4), run="slow")
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)
    reachable = maintenance.reachable

    def publish_late(*arguments):
        found = reachable(*arguments)
        threading.Event().wait(max((soon - dt.datetime.now(dt.UTC)).total_seconds(), 0) + 1.5)
        Lake(lake.location, lake.store, lake.settings).publish("orders", COLUMNS, paths, NEXT, NEXT, {})
        return found

    monkeypatch.setattr(maintenance, "reachable", publish_late)
    found = maintenance.delete_orphans(lake, grace=dt.timedelta(0), now=soon)
    assert len(found.spared) == 1 and "slow" in found.spared[0]
    assert read(lake).num_rows == 7 and lake.days("orders") == {DAY: 3, NEXT: 4}


def test_a_clean_up_killed_half_way_is_finished_by_the_next(lake, monkeypatch):
    publish(lake, rows(DAY, 3))
    paths = write(lake, rows(NEXT, 1), rows(NEXT, 2, start=9), run="failed")
    remove = storage.remove

    def die(path):
        monkeypatch.setattr(storage, "remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        remove(path)

    monkeypatch.setattr(storage, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        maintenance.delete_orphans(lake, now=LATER)
    monkeypatch.setattr(storage, "remove", remove)
    assert sum(path.exists() for path in paths) == 1
    with pytest.raises(DataError, match="are being deleted"):
        lake.publish("orders", COLUMNS, paths, NEXT, NEXT, {})
    maintenance.delete_orphans(lake, now=LATER)
    assert not any(path.exists() for path in paths) and read(lake).num_rows == 3
