"""The publishing task killed at each of its steps: readers see old or new days, and a repeat ends in the new ones."""

import datetime as dt
import importlib
import json
import os
import signal
import time
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.lake import Lake
from tests import shops
from tests.processes import PROCESSES, preload

preload("airflow_provider_sml.operators.etl", "airflow_provider_sml.ml.lake.late")
DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)
#: What the task does, in the modules that it does it with; it is killed before and after each call of these.
STEPS = (
    "airflow_provider_sml.ml.lake.audit:audit", "airflow_provider_sml.ml.lake.late:merge_late",
    "airflow_provider_sml.ml.lake.lives:claim", "airflow_provider_sml.ml.lake.lake:check_columns",
    "pyiceberg.catalog.sql:SqlCatalog.commit_table",
)  # fmt: skip


class Shop:
    """Two published days, and a staged run of the second one with late rows of the first and a bad row."""

    def __init__(self, root):
        from tests.ml.test_lake_shops import stored_day  # not at the top: the processes to be killed start quickly

        self.root = root
        self.lake = Lake(str(root / "lake"))
        self.folder = self.lake.stage("orders", "new")
        rows = {day: stored_day(day, 20) for day in (DAY, NEXT)}
        self.old = {day: self._write(self.lake.stage("orders", "old"), day, rows[day].slice(0, 15)) for day in rows}
        self._write(self.folder, NEXT, rows[NEXT])
        self._write(self.folder, DAY, rows[DAY].slice(12, 8))
        bad = {"reasons": ["weight:range"], "raw_row": ["{}"], "file": ["x.csv"], PARTITION: [NEXT]}
        self._write(self.folder, NEXT, pa.table(bad), "quarantine")
        bad = {name: values * 2 for name, values in bad.items()}
        self.refused = self._write(self.lake.stage("orders", "old"), NEXT, pa.table(bad), "quarantine")
        empty = {"rows_in": 0, "rows_bad": 0}
        days = {
            str(NEXT): empty | {"rows_in": 29, "rows_good": 20, "rows_bad": 1, "newest": f"{NEXT}T23:59:00"},
            str(DAY): empty | {"rows_good": 8, "newest": f"{DAY}T23:59:00"},
        }
        report = {"days": days, "reasons": {"weight:range": 1}, "joins": {}}
        (self.folder / "report.json").write_text(json.dumps(report))
        self.staged = {
            "kind": "staged", "lake": str(root / "lake"), "table": "orders", "uri": str(self.folder),
            "first": str(NEXT), "last": str(NEXT), "rows_in": 29, "rows_good": 28, "rows_bad": 1,
        }  # fmt: skip
        self.reset()

    def _write(self, folder, day, table, kind="data"):
        path = folder / kind / f"_p={day}" / "_s=0" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
        return path

    def reset(self):
        """The old days again."""
        columns = [("reasons", "string"), ("raw_row", "string"), ("file", "string"), (PARTITION, "date")]
        self.lake.publish("orders_quarantine", columns, [self.refused], NEXT, NEXT, {})
        for day, path in self.old.items():
            self.lake.publish("orders", make_dataset(self.root).table_columns, [path], day, day, {})


def make_dataset(root):
    changes = {"late": "republish", "limits": {"bad_rows": "10%"}}
    contract = shops.make_spec(root).contract.model_dump(mode="json") | changes
    return shops.make_spec(root, contract=contract).dataset


def publish(root, staged):
    from airflow_provider_sml.operators.etl import PublishPartitionsOperator

    task = PublishPartitionsOperator(task_id="publish", staged=staged, dataset=make_dataset(root))
    instance = SimpleNamespace(dag_id="orders", run_id="one", task_id="publish", map_index=-1)
    return task.run({"ti": instance, "task": task})


def state(lake):
    """How many orders each day has, and how many of them are different ones."""
    found = {}
    for file in lake.files("orders"):
        found.setdefault(file.day, []).extend(storage.read_table(file.path, ["order"]).column("order").to_pylist())
    return tuple(sorted((day, len(numbers), len(set(numbers))) for day, numbers in found.items()))


OLD, NEW = ((DAY, 15, 15), (NEXT, 15, 15)), ((DAY, 20, 20), (NEXT, 20, 20))
#: The late rows come by a commit of their own, before the run's day.
BETWEEN = ((DAY, 20, 20), (NEXT, 15, 15))
#: While the test puts the old days back, one by one.
BACK = ((DAY, 15, 15), (NEXT, 20, 20))


def _publish_and_die(root, staged, die_at, told):
    """Publish, and die at a moment; or count the moments."""
    moments = []

    def reached(what):
        moments.append(what)
        if len(moments) - 1 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(path):
        module, _, name = path.partition(":")
        *holder, name = name.split(".")
        place = importlib.import_module(module)
        place = getattr(place, holder[0]) if holder else place
        step = getattr(place, name)

        def wrapped(*args, **kwargs):
            reached(f"before {name}")
            made = step(*args, **kwargs)
            reached(f"after {name}")
            return made

        setattr(place, name, wrapped)

    for path in STEPS:
        wrap(path)
    publish(root, staged)
    told.put(moments)


def _read_without_pause(location, started, stop, told):
    lake, seen, count = Lake(location), set(), 0
    while not stop.is_set():
        seen.add(state(lake))
        count += 1
        started.set()
        time.sleep(0.04)  # beside it, the publishing gets on
    told.put((count, seen))


@pytest.mark.slow
def test_a_publishing_task_killed_at_each_step(tmp_path, airflow_db):
    shop, told = Shop(tmp_path), PROCESSES.Queue()
    counting = PROCESSES.Process(target=_publish_and_die, args=(tmp_path, shop.staged, None, told))
    counting.start()
    moments = told.get(timeout=60)
    counting.join(30)
    assert state(shop.lake) == NEW
    assert len([moment for moment in moments if moment == "before commit_table"]) == 3, "quarantine, late day, day"

    started, stop, seen = PROCESSES.Event(), PROCESSES.Event(), PROCESSES.Queue()
    reader = PROCESSES.Process(target=_read_without_pause, args=(shop.lake.location, started, stop, seen))
    reader.start()
    assert started.wait(60)
    ends = set()
    for number, moment in enumerate(moments):
        if moments[number - 1].startswith("after") and number:  # the same moment as the one before it
            continue
        shop.reset()
        assert state(shop.lake) == OLD
        process = PROCESSES.Process(target=_publish_and_die, args=(tmp_path, shop.staged, number, told))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, moment
        ends.add(state(shop.lake))
        assert state(shop.lake) in (OLD, BETWEEN, NEW), moment
        assert shop.lake.days("orders_quarantine") in ({NEXT: 2}, {NEXT: 1}), moment
        publish(tmp_path, shop.staged)
        assert state(shop.lake) == NEW, moment
        assert shop.lake.days("orders_quarantine") == {NEXT: 1}, moment
    stop.set()
    count, found = seen.get(timeout=60)
    reader.join(30)
    assert ends == {OLD, BETWEEN, NEW} and count > 20
    assert found <= {OLD, BETWEEN, NEW, BACK} and {OLD, NEW} <= found
