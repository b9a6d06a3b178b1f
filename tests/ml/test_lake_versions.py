"""Reading a table by its snapshots, tags, differences, the way back: on a disk, on S3 and on Google Cloud Storage."""

import datetime as dt

import duckdb
import pyarrow as pa
import pytest

from airflow_provider_sml.errors import ConfigurationError, ConflictError
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.lake import reading, versions
from tests.ml.lake_tables import COLUMNS, DAY, NEXT, SCHEMA, open_lake, publish, read, rows, write

THIRD = NEXT + dt.timedelta(days=1)


@pytest.fixture(params=["disk", "s3_store", "gcs_store"])
def lake(request, tmp_path):
    return open_lake(request.param, request, tmp_path)


def test_a_snapshot_is_read_as_batches_as_a_relation_and_as_files(lake):
    old = publish(lake, rows(DAY, 3), rows(NEXT, 4), first=DAY, last=NEXT)
    publish(lake, rows(DAY, 5, version=2))
    batches = list(reading.batches(lake, "orders", old.snapshot_id, rows=2))
    assert pa.Table.from_batches(batches).cast(SCHEMA).sort_by("shop") == read(lake, old.snapshot_id).sort_by("shop")
    with duckdb.connect() as connection:
        found = reading.relation(connection, lake, "orders", columns=["version"], last=DAY)
        assert found.fetchall() == [(2,)] * 5
        assert reading.relation(connection, lake, "orders", first=THIRD).fetchall() == []
    assert sum(file.rows for file in lake.files("orders")) == 9


def test_a_column_that_files_are_older_than_is_null(lake):
    publish(lake, rows(DAY, 3))
    wider = [*COLUMNS[:2], ("tip", "double"), COLUMNS[2]]
    paths = write(lake, rows(NEXT, 1).append_column("tip", pa.array([1.5])))
    lake.publish("orders", wider, paths, NEXT, NEXT, {})
    found = pa.Table.from_batches(reading.batches(lake, "orders", columns=["tip", PARTITION]))
    assert sorted(map(str, found.column("tip").to_pylist())) == ["1.5", "None", "None", "None"]
    assert [b.column("tip").null_count for b in reading.batches(lake, "orders", columns=["tip"], last=DAY)] == [3]


def test_a_tag_keeps_its_snapshot_and_is_never_moved(lake):
    old = publish(lake, rows(DAY, 3))
    assert versions.tag(lake, "orders", "training") == old.snapshot_id
    assert versions.tag(lake, "orders", "training", old.snapshot_id) == old.snapshot_id
    new = publish(lake, rows(DAY, 4, version=2))
    with pytest.raises(ConflictError, match=rf"training of orders is taken(.|\n)*{old.snapshot_id}"):
        versions.tag(lake, "orders", "training")
    versions.tag(lake, "orders", "newer")
    assert versions.tags(lake, "orders") == {"training": old.snapshot_id, "newer": new.snapshot_id}
    versions.untag(lake, "orders", "newer")
    versions.untag(lake, "orders", "newer")
    assert versions.tags(lake, "orders") == {"training": old.snapshot_id}
    with pytest.raises(ConfigurationError, match="no snapshot 12"):
        versions.tag(lake, "orders", "other", 12)


def test_the_difference_of_two_snapshots_counts_days_and_rows(lake):
    before = publish(lake, rows(DAY, 10), rows(NEXT, 4), rows(THIRD, 2), first=DAY, last=THIRD)
    changed = pa.concat_tables([rows(DAY, 8), rows(DAY, 1, version=2, start=8), rows(DAY, 2, start=20)])
    publish(lake, changed)  # one row changed, one gone, two new
    publish(lake, first=NEXT)
    later = THIRD + dt.timedelta(days=1)
    after = publish(lake, rows(later, 7), first=later)
    found = versions.diff(lake, "orders", before.snapshot_id, after.snapshot_id, ["shop", PARTITION])
    assert (found.days_added, found.days_removed, found.days_changed) == ([later], [NEXT], [DAY])
    assert (found.rows_added, found.rows_removed, found.rows_changed) == (2 + 7, 1 + 4, 1)
    assert (found.before[DAY], found.after[DAY]) == (10, 11)
    plain = versions.diff(lake, "orders", before.snapshot_id)
    assert (plain.rows_added, plain.rows_removed, plain.rows_changed) == (3 + 7, 2 + 4, 0)
    back = versions.diff(lake, "orders", after.snapshot_id, before.snapshot_id, ["shop", PARTITION])
    assert (back.rows_added, back.rows_removed, back.rows_changed) == (5, 9, 1)
    same = versions.diff(lake, "orders", after.snapshot_id)
    assert (same.before, same.rows_added, same.rows_removed) == ({}, 0, 0)
    with pytest.raises(ConfigurationError, match="unknown columns"):
        versions.diff(lake, "orders", before.snapshot_id, key=["nothing"])


def test_a_table_rolls_back_and_forward_and_is_published_to_again(lake):
    old = publish(lake, rows(DAY, 3), rows(NEXT, 4), first=DAY, last=NEXT)
    new = publish(lake, rows(NEXT, 5, version=2), first=NEXT)
    found = versions.roll_back(lake, "orders", old.snapshot_id)
    assert (found.first, found.last, found.rows, found.total_rows) == (str(NEXT), str(NEXT), 4, 7)
    assert lake.days("orders") == {DAY: 3, NEXT: 4} and lake.snapshot_id("orders") == old.snapshot_id
    assert versions.roll_back(lake, "orders", old.snapshot_id).first == ""
    assert lake.days("orders", new.snapshot_id) == {DAY: 3, NEXT: 5}
    versions.roll_back(lake, "orders", new.snapshot_id)
    publish(lake, rows(DAY, 1, version=3))
    assert lake.days("orders") == {DAY: 1, NEXT: 5}
