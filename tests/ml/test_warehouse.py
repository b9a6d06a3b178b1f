"""The DuckDB warehouse behind a real lake."""

import datetime as dt
import threading
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.errors import ConfigurationError, DataError, SmlError
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.warehouse import LakeRows
from airflow_provider_sml.ml.warehouse.duckdb import DuckDBWarehouse
from tests import shops
from tests.ml.test_lake_shops import DATASET, publish, stored_day
from tests.processes import PROCESSES

DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)


@pytest.fixture
def lake(tmp_path):
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def warehouse(tmp_path):
    return DuckDBWarehouse(tmp_path / "new folder" / "warehouse.duckdb", patience=0.5)


def follow(warehouse, lake, snapshot, columns=DATASET.table_columns):
    days = dt.date.fromisoformat(snapshot.first), dt.date.fromisoformat(snapshot.last)
    rows = LakeRows(lake.files(snapshot.table, snapshot.snapshot_id, *days), columns)
    return warehouse.publish(rows.publication(snapshot), rows)


def ask(warehouse, question):
    with warehouse.connect(read_only=True) as connection:
        return connection.execute(question).fetchall()


def days(warehouse):
    return dict(ask(warehouse, f"SELECT {PARTITION}, count(*) FROM orders GROUP BY 1"))


def test_the_rows_are_those_of_the_lake(lake, warehouse):
    table = stored_day(DAY, 50)
    snapshot = publish(lake, {DAY: table})
    assert follow(warehouse, lake, snapshot) == 50
    with warehouse.connect(read_only=True) as connection:
        found = connection.sql('FROM orders ORDER BY "order"').to_arrow_table()
    assert found.column_names == table.column_names
    assert found.to_pylist() == table.to_pylist()
    told = ask(warehouse, "SELECT table_name, first, last, snapshot_id, row_count FROM sml_publishes")
    assert told == [("orders", DAY, DAY, snapshot.snapshot_id, 50)]


def test_a_repeat_changes_no_row(lake, warehouse):
    snapshot = publish(lake, {DAY: stored_day(DAY, 50)})
    assert follow(warehouse, lake, snapshot) == follow(warehouse, lake, snapshot) == 50


def test_a_day_is_replaced_and_the_others_stay(lake, warehouse):
    assert follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 50), NEXT: stored_day(NEXT, 40)})) == 90
    assert follow(warehouse, lake, publish(lake, {NEXT: stored_day(NEXT, 30)})) == 80
    assert days(warehouse) == {DAY: 50, NEXT: 30}


def test_a_new_column_is_null_before(lake, warehouse):
    follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 5)}))
    columns = [*DATASET.table_columns[:-1], ("tip", "double"), DATASET.table_columns[-1]]
    folder = lake.stage("orders", "wider")
    folder.mkdir(parents=True)
    pq.write_table(stored_day(NEXT, 4).append_column("tip", pa.array([1.5] * 4)), folder / "0.parquet")
    snapshot = lake.publish("orders", columns, [folder / "0.parquet"], NEXT, NEXT, {})
    assert follow(warehouse, lake, snapshot, columns) == 9
    assert ask(warehouse, "SELECT tip, count(*) FROM orders GROUP BY 1 ORDER BY 1") == [(1.5, 4), (None, 5)]


def test_one_other_value_changes_nothing(lake, warehouse):
    """As many rows, but not the same: the checksum tells."""
    follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 50)}))
    snapshot = publish(lake, {DAY: stored_day(DAY, 50)})
    rows = LakeRows(lake.files("orders", snapshot.snapshot_id, DAY, DAY), DATASET.table_columns)
    publication = rows.publication(snapshot)
    table = pq.ParquetFile(rows.paths[0]).read()
    weights = table.column("weight").to_pylist()
    place = table.column_names.index("weight")
    pq.write_table(table.set_column(place, "weight", pa.array([weights[0] + 1e-9, *weights[1:]])), rows.paths[0])
    with pytest.raises(DataError, match=rf"of checksum {publication.tally.checksum}; found: 50 rows of checksum"):
        warehouse.publish(publication, rows)
    assert ask(warehouse, "SELECT count(*) FROM sml_publishes") == [(1,)]


@pytest.mark.parametrize(
    ("changed", "found"),
    [({"weight": "string"}, "weight VARCHAR"), ({"weight": None}, "weight gone")],
    ids=["another type", "a removed column"],
)
def test_another_table_is_refused(lake, warehouse, changed, found):
    follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 50)}))
    columns = [(n, changed.get(n, k)) for n, k in DATASET.table_columns if changed.get(n, k)]
    with pytest.raises(DataError, match=rf"other columns than the lake's(.|\n)*weight DOUBLE; found: {found}"):
        follow(warehouse, lake, publish(lake, {NEXT: stored_day(NEXT, 5)}), columns)
    assert days(warehouse) == {DAY: 50}


def test_rows_are_ordered_by_what_readers_filter_by(lake, warehouse):
    snapshot = publish(lake, {DAY: stored_day(DAY, 50), NEXT: stored_day(NEXT, 40)})
    rows = LakeRows(lake.files("orders", snapshot.snapshot_id), DATASET.table_columns)
    warehouse.publish(rows.publication(snapshot, ["shop"]), rows)
    found = ask(warehouse, f"SELECT {PARTITION}, shop FROM orders")
    assert found == sorted(found)
    with pytest.raises(ConfigurationError, match=r"cluster_by(.|\n)*found: shup"):
        rows.publication(snapshot, ["shup"])


def test_counts_that_differ_change_nothing(lake, warehouse):
    follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 50), NEXT: stored_day(NEXT, 40)}))
    snapshot = publish(lake, {DAY: stored_day(DAY, 60), NEXT: stored_day(NEXT, 60)})
    some = LakeRows(lake.files("orders", snapshot.snapshot_id, DAY, DAY), DATASET.table_columns)
    with pytest.raises(DataError, match=r"not what its publish counted(.|\n)*120 rows(.|\n)*found: 60"):
        some.publication(snapshot)
    whole = LakeRows(lake.files("orders", snapshot.snapshot_id), DATASET.table_columns)
    with pytest.raises(DataError, match=rf"differ(.|\n)*120 rows, as in snapshot {snapshot.snapshot_id}, of checksum"):
        warehouse.publish(whole.publication(snapshot), some)
    assert days(warehouse) == {DAY: 50, NEXT: 40}
    assert ask(warehouse, "SELECT count(*) FROM sml_publishes") == [(1,)]


def test_a_lost_file_changes_nothing(lake, warehouse):
    follow(warehouse, lake, publish(lake, {DAY: stored_day(DAY, 50)}))
    snapshot = publish(lake, {DAY: stored_day(DAY, 60)})
    (file,) = lake.files("orders", snapshot.snapshot_id)
    Path(file.path).unlink()
    with pytest.raises(duckdb.IOException):
        follow(warehouse, lake, snapshot)
    assert days(warehouse) == {DAY: 50}


def _hold(path, held, let_go):
    with duckdb.connect(path):
        held.set()
        let_go.wait(60)


@pytest.fixture
def holder(warehouse):
    """Another process that has the file open, and how to make it let go."""
    warehouse.connect().close()
    held, let_go = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=_hold, args=(str(warehouse.path), held, let_go))
    process.start()
    assert held.wait(60)
    yield let_go
    let_go.set()
    process.join(30)


def test_a_held_file_is_told_after_the_patience(lake, warehouse, holder):
    snapshot = publish(lake, {DAY: stored_day(DAY, 5)})
    started = time.monotonic()
    with pytest.raises(
        SmlError, match=r"held by another process(.|\n)*within 0.5 s(.|\n)*lock(.|\n)*close the program"
    ):
        follow(warehouse, lake, snapshot)
    assert 0.5 <= time.monotonic() - started < 5


def test_a_writer_waits_for_its_turn(lake, warehouse, holder):
    snapshot = publish(lake, {DAY: stored_day(DAY, 5)})
    timer = threading.Timer(1.0, holder.set)
    timer.start()
    started = time.monotonic()
    warehouse.patience = 30
    assert follow(warehouse, lake, snapshot) == 5
    assert time.monotonic() - started >= 0.8
