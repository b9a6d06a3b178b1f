"""The lake with real Iceberg tables: replaced whole days, refused files, many processes, killed processes."""

import datetime as dt
import os
import signal
import threading
import time

import pyarrow as pa
import pytest

from airflow_provider_sml.errors import ConfigurationError, ConflictError, DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import PARTITION
from airflow_provider_sml.ml.lake import CatalogSettings, Lake
from airflow_provider_sml.ml.lake import lake as module
from tests.ml.test_lake_shops import arrow_schema
from tests.processes import PROCESSES

COLUMNS = [("shop", "string"), ("version", "int"), (PARTITION, "date")]
DAY = dt.date(2026, 3, 1)
NEXT = DAY + dt.timedelta(days=1)


def rows(day, count, version=1):
    shops = [f"shop-{n}" for n in range(count)]
    return pa.table([shops, [version] * count, [day] * count], schema=arrow_schema(COLUMNS))


def write(lake, *tables, run="run"):
    folder = lake.stage("orders", run)
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        storage.write_table(table, path)
    return paths


def publish(lake, paths, first=DAY, last=None, columns=COLUMNS):
    return lake.publish("orders", columns, paths, first, last or first, {"run_id": "one", "contract": "abc"})


def read(lake, snapshot_id=None):
    paths = [file.path for file in lake.files("orders", snapshot_id)]
    return pa.concat_tables([storage.read_table(path) for path in paths], promote_options="default")


def state(lake):
    """Rows of each day and version."""
    counted = read(lake).group_by([PARTITION, "version"]).aggregate([([], "count_all")]).to_pylist()
    return frozenset((row[PARTITION], row["version"], row["count_all"]) for row in counted)


def of(version):
    """The state after both days of a version have been published."""
    return frozenset({(DAY, version, 10 + version), (NEXT, version, 10 + version)})


def write_version(lake, version):
    return write(lake, rows(DAY, 10 + version, version), rows(NEXT, 10 + version, version))


@pytest.fixture(params=["disk", "s3"])
def lake(request, tmp_path):
    if request.param == "disk":
        return Lake(str(tmp_path / "lake"))
    server = request.getfixturevalue("s3_store")
    return Lake(f"{server.bucket()}/lake", server.store, CatalogSettings(uri=str(tmp_path / "catalog.db")))


def parts(lake):
    """What another process needs to open the same lake."""
    return lake.location, lake.store, lake.settings


# --- publish, read, replace -------------------------------------------------------------------------------------------


def test_published_days_are_read_by_day_and_by_snapshot(lake):
    assert not lake.exists("orders") and lake.days("orders") == {} and lake.snapshot_id("orders") is None
    first = publish(lake, write(lake, rows(DAY, 3), rows(NEXT, 4)), DAY, NEXT)
    second = publish(lake, write(lake, rows(NEXT, 5, version=2)), NEXT)
    assert (first.rows, first.total_rows, second.rows, second.total_rows) == (7, 7, 5, 8)
    assert lake.tables() == ["orders"] and lake.columns("orders") == ["shop", "version", PARTITION]
    assert lake.days("orders") == {DAY: 3, NEXT: 5}
    assert lake.days("orders", first.snapshot_id) == {DAY: 3, NEXT: 4}
    assert [file.day for file in lake.files("orders", first=NEXT)] == [NEXT]
    assert lake.files("orders", last=DAY - dt.timedelta(days=1)) == []
    assert read(lake, first.snapshot_id).column("version").to_pylist() == [1] * 7


def test_a_snapshot_records_where_it_comes_from(lake):
    made = publish(lake, write(lake, rows(DAY, 3)))
    (snapshot,) = lake.snapshots("orders")
    assert snapshot["snapshot_id"] == made.snapshot_id == lake.snapshot_id("orders")
    assert snapshot["rows"] == 3
    assert snapshot["lineage"] == {"run_id": "one", "contract": "abc", "first": "2026-03-01", "last": "2026-03-01"}


def test_publishing_the_same_files_again_makes_no_second_snapshot(lake):
    paths = write(lake, rows(DAY, 3), rows(NEXT, 4))
    first = publish(lake, paths, DAY, NEXT)
    assert publish(lake, paths, DAY, NEXT) == first
    assert len(lake.snapshots("orders")) == 1 and lake.days("orders") == {DAY: 3, NEXT: 4}


def test_other_files_for_a_day_replace_it_with_one_snapshot(lake):
    publish(lake, write(lake, rows(DAY, 3), rows(NEXT, 4)), DAY, NEXT)
    kept = [file for file in lake.files("orders") if file.day == NEXT]
    publish(lake, write(lake, rows(DAY, 6, version=2)))
    assert len(lake.snapshots("orders")) == 2
    assert state(lake) == {(DAY, 2, 6), (NEXT, 1, 4)}
    assert [file for file in lake.files("orders") if file.day == NEXT] == kept


def test_days_without_files_are_emptied(lake):
    publish(lake, write(lake, rows(DAY, 3), rows(NEXT, 4)), DAY, NEXT)
    assert publish(lake, [], NEXT).total_rows == 3
    assert lake.days("orders") == {DAY: 3}


def test_a_folder_with_a_space_and_an_address_name_the_same_lake(tmp_path):
    folder = tmp_path / "my lake ü"
    publish(Lake(str(folder)), write(Lake(str(folder)), rows(DAY, 3)))
    assert state(Lake(f"file://{folder}")) == {(DAY, 1, 3)}


def test_other_engines_read_the_same_rows(lake):
    publish(lake, write(lake, rows(DAY, 3), rows(NEXT, 4)), DAY, NEXT)
    publish(lake, write(lake, rows(NEXT, 5, version=2)), NEXT)
    expected = sorted(read(lake).to_pylist(), key=str)
    files = [file.path for file in lake.files("orders")]
    with storage.connect_duckdb(files) as connection:
        by_duckdb = connection.read_parquet(files, hive_partitioning=False).to_arrow_table()
    by_iceberg = lake.catalog.load_table(("lake", "orders")).scan().to_arrow()
    assert len(expected) == 8
    assert sorted(by_duckdb.to_pylist(), key=str) == expected
    assert sorted(by_iceberg.to_pylist(), key=str) == expected


# --- refused ----------------------------------------------------------------------------------------------------------


def _with(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


REFUSED = {
    "two days": (lambda: pa.concat_tables([rows(DAY, 2), rows(NEXT, 2)]), "one day"),
    "a day outside": (lambda: rows(NEXT + dt.timedelta(days=1), 2), "2026-03-03"),
    "a null in the partition": (
        lambda: _with(rows(DAY, 2), PARTITION, pa.array([DAY, None], pa.date32())),
        "1 without",
    ),
    "only nulls": (lambda: _with(rows(DAY, 2), PARTITION, pa.array([None, None], pa.date32())), "no single day"),
    "no rows": (lambda: rows(DAY, 0), "0 rows"),
    "a column more": (lambda: rows(DAY, 2).append_column("tip", pa.array([1, 2])), "tip"),
    "a column less": (lambda: rows(DAY, 2).drop_columns("version"), "version"),
    "another type": (lambda: _with(rows(DAY, 2), "version", ["1", "2"]), "version"),
    "a time for the day": (lambda: _with(rows(DAY, 2), PARTITION, [dt.datetime(2026, 3, 1)] * 2), PARTITION),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(lake, case):
    make, word = REFUSED[case]
    before = publish(lake, write(lake, rows(DAY, 3)))
    with pytest.raises(DataError, match=word) as caught:
        publish(lake, write(lake, rows(DAY, 9, version=2), make()), DAY, NEXT)
    assert "1.parquet" in str(caught.value)
    assert lake.snapshot_id("orders") == before.snapshot_id and state(lake) == {(DAY, 1, 3)}


def test_a_broken_file_is_refused(lake):
    (path,) = write(lake, rows(DAY, 3))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"0\.parquet is no parquet file"):
        publish(lake, [path])
    assert lake.days("orders") == {}


def test_an_unknown_table_and_an_unknown_snapshot_are_named(lake):
    made = publish(lake, write(lake, rows(DAY, 3)))
    with pytest.raises(ConfigurationError, match=r"no table rides(.|\n)*one of orders"):
        lake.files("rides")
    with pytest.raises(ConfigurationError, match=rf"no snapshot 12(.|\n)*{made.snapshot_id}"):
        lake.files("orders", 12)
    with pytest.raises(ConfigurationError, match=r"hdfs://host/lake cannot be reached(.|\n)*s3://"):
        Lake("hdfs://host/lake")
    with pytest.raises(ConfigurationError, match=r"needs a catalog that is not in its own folder"):
        Lake("s3://bucket/lake").tables()


# --- columns change ---------------------------------------------------------------------------------------------------


def test_a_new_column_is_null_in_the_days_before(lake):
    old = publish(lake, write(lake, rows(DAY, 3)))
    wider = [*COLUMNS[:2], ("tip", "double"), COLUMNS[2]]
    table = rows(NEXT, 2).append_column("tip", pa.array([1.5, 2.5]))
    publish(lake, write(lake, table), NEXT, columns=wider)
    assert set(lake.columns("orders")) == {"shop", "version", "tip", PARTITION}
    found = lake.catalog.load_table(("lake", "orders")).scan().to_arrow().sort_by([(PARTITION, "ascending")])
    assert found.column("tip").to_pylist()[:3] == [None] * 3
    assert sorted(found.column("tip").to_pylist()[3:]) == [1.5, 2.5]
    assert read(lake, old.snapshot_id).column_names == ["shop", "version", PARTITION]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([("shop", "string"), (PARTITION, "date")], "version: long(.|\n)*version: gone"),
        ([("shop", "string"), ("version", "double"), (PARTITION, "date")], "version: long(.|\n)*version: double"),
    ],
)
def test_a_removed_or_changed_column_is_refused(lake, columns, words):
    publish(lake, write(lake, rows(DAY, 3)))
    with pytest.raises(DataError, match=words):
        publish(lake, write(lake, rows(DAY, 4)), columns=columns)
    assert state(lake) == {(DAY, 1, 3)} and lake.columns("orders") == ["shop", "version", PARTITION]


# --- many processes ---------------------------------------------------------------------------------------------------


def _read_without_pause(place, started, stop, answers):
    lake, seen = Lake(*place), set()
    while not stop.is_set():
        seen.add(state(lake))
        started.set()
    answers.put(seen)


def test_readers_without_pause_never_see_a_half(lake):
    publish(lake, write_version(lake, 0), DAY, NEXT)
    started, stop, answers = PROCESSES.Event(), PROCESSES.Event(), PROCESSES.Queue()
    seen_by_thread, thread_stop = set(), threading.Event()

    def watch():
        beside = Lake(*parts(lake))
        while not thread_stop.is_set():
            seen_by_thread.add(state(beside))

    process = PROCESSES.Process(target=_read_without_pause, args=(parts(lake), started, stop, answers))
    thread = threading.Thread(target=watch)
    process.start()
    assert started.wait(60)
    thread.start()
    for version in range(1, 9):
        publish(lake, write_version(lake, version), DAY, NEXT)
        time.sleep(0.05)
    stop.set()
    thread_stop.set()
    seen_by_process = answers.get(timeout=30)
    process.join(30)
    thread.join(30)
    whole = {of(version) for version in range(9)}
    assert seen_by_process <= whole and len(seen_by_process) > 2
    assert seen_by_thread <= whole and len(seen_by_thread) > 2


def _publish_a_day(place, day, barrier, answers):
    lake = Lake(*place)  # not opened before all of them are ready
    paths = write(lake, rows(day, day.day), run=f"run-{day}")
    barrier.wait(60)
    try:
        answers.put(publish(lake, paths, day))
    except BaseException as error:
        answers.put(repr(error))


def test_six_processes_publish_different_days_at_once_into_a_new_lake(lake):
    days = [DAY + dt.timedelta(days=n) for n in range(6)]
    barrier, answers = PROCESSES.Barrier(6), PROCESSES.Queue()
    at_work = [PROCESSES.Process(target=_publish_a_day, args=(parts(lake), day, barrier, answers)) for day in days]
    for process in at_work:
        process.start()
    made = [answers.get(timeout=120) for _ in days]
    for process in at_work:
        process.join(30)
    assert [answer for answer in made if isinstance(answer, str)] == []
    assert lake.days("orders") == {day: day.day for day in days}
    lineage = {snapshot["snapshot_id"]: snapshot["lineage"]["first"] for snapshot in lake.snapshots("orders")}
    assert len(lineage) == 6
    # Each was told of the snapshot that it made itself, and not of a later one.
    assert {ref.first: lineage[ref.snapshot_id] for ref in made} == {str(day): str(day) for day in days}


def test_two_processes_that_publish_the_same_day_leave_one_whole_and_refuse_the_other(lake):
    publish(lake, write(lake, rows(NEXT, 1)), NEXT)
    barrier, answers = PROCESSES.Barrier(2), PROCESSES.Queue()
    at_work = [
        PROCESSES.Process(target=_publish_a_version, args=(parts(lake), version, barrier, answers))
        for version in (1, 2)
    ]
    for process in at_work:
        process.start()
    made = [answers.get(timeout=120) for _ in at_work]
    for process in at_work:
        process.join(30)
    (refused,) = [answer for answer in made if isinstance(answer, str)]
    (won,) = [answer for answer in made if not isinstance(answer, str)]
    assert refused.startswith("ConflictError: another process changed orders from 2026-03-01 to 2026-03-01")
    version = {3: 1, 4: 2}[won.rows]
    assert state(lake) == {(DAY, version, won.rows), (NEXT, 1, 1)}
    assert len(lake.snapshots("orders")) == 2


def _publish_a_version(place, version, barrier, answers):
    lake = Lake(*place)
    paths = write(lake, rows(DAY, 2 + version, version))
    check, waited = module.check_file, []

    def wait_once(*arguments):
        check(*arguments)
        if not waited:
            waited.append(barrier.wait(60))  # both have read the table, none has committed

    module.check_file = wait_once
    try:
        answers.put(publish(lake, paths))
    except ConflictError as error:
        answers.put(f"ConflictError: {error}")


# --- killed processes -------------------------------------------------------------------------------------------------


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_and_die(place, paths, point):
    from pyiceberg.catalog.sql import SqlCatalog

    commit = SqlCatalog.commit_table

    def at_commit(*args, **kwargs):
        if point == "after the commit":
            commit(*args, **kwargs)
        _die()

    lake = Lake(*place)
    if point == "before the files are looked at":
        module.check_columns = lambda *_: _die()
    elif point == "while the files are looked at":
        module.check_file = lambda *_: _die()
    else:
        SqlCatalog.commit_table = at_commit
    publish(lake, paths, DAY, NEXT)


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("before the files are looked at", 1),
        ("while the files are looked at", 1),
        ("before the commit", 1),
        ("after the commit", 2),
    ],
)
def test_a_process_killed_at_a_point_leaves_old_or_new(lake, point, left):
    publish(lake, write_version(lake, 1), DAY, NEXT)
    paths = write_version(lake, 2)
    process = PROCESSES.Process(target=_publish_and_die, args=(parts(lake), paths, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert state(lake) == of(left)
    publish(lake, paths, DAY, NEXT)
    assert state(lake) == of(2) and len(lake.snapshots("orders")) == 2


def _publish_when_told(place, paths, ready, go, done):
    lake = Lake(*place)
    lake.tables()
    ready.set()
    go.wait(60)
    publish(lake, paths, DAY, NEXT)
    done.set()


def test_a_process_killed_at_any_time_leaves_old_or_new(lake):
    started = time.monotonic()
    publish(lake, write_version(lake, 0), DAY, NEXT)
    for _ in range(2):  # the second one is as quick as those below
        started = time.monotonic()
        publish(lake, write(lake, rows(DAY, 10), rows(NEXT, 10)), DAY, NEXT)
    usual = time.monotonic() - started
    publish(lake, write_version(lake, 0), DAY, NEXT)
    finished = 0
    for version in range(1, 11):
        paths = write_version(lake, version)
        ready, go, done = PROCESSES.Event(), PROCESSES.Event(), PROCESSES.Event()
        process = PROCESSES.Process(target=_publish_when_told, args=(parts(lake), paths, ready, go, done))
        process.start()
        assert ready.wait(60)
        go.set()
        time.sleep(usual * (version - 1) / 6)
        process.kill()
        process.join(30)
        assert state(lake) in (of(version - 1), of(version))
        finished += done.is_set()
        before = len(lake.snapshots("orders")) - (state(lake) == of(version))
        publish(lake, paths, DAY, NEXT)
        assert state(lake) == of(version) and len(lake.snapshots("orders")) == before + 1
    assert finished < 10  # some were killed at work
