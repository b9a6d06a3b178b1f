"""The ETL whose driver is killed while it writes: readers keep the old rows, a retry ends in the new ones."""

import json
import threading

import psutil
import pytest

from airflow_provider_sml.ml.lake import Lake
from tests import shops
from tests.jobs import until

OLD, NEW = shops.days(2)
KEY = "hunter2-0123456789abcdef"

DAG_FILE = """
import datetime as dt
from airflow.sdk import DAG
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from tests import shops

contract = shops.make_spec({root!r}).contract.model_dump(mode="json")
contract["columns"]["customer"]["privacy"] = {{"hash": "customer_key"}}
dataset = shops.make_spec({root!r}, contract=contract).dataset

with DAG("crashes", params={{"day": ""}}, default_args={{"retries": {retries}, "retry_delay": dt.timedelta(0)}}):
    staged = SparkEtlOperator(
        task_id="etl", dataset=dataset, places={{"landing": {root!r} + "/landing"}}, lake={root!r} + "/lake",
        first="{{{{ params.day }}}}", last="{{{{ params.day }}}}", master="local[1]", poll_interval=0.2,
    )
    PublishPartitionsOperator(task_id="publish", staged=staged.output, dataset=dataset)
"""


class Shop:
    """A lake with one day published, and the DAG that publishes the next one."""

    def __init__(self, project, root):
        self.project = project
        self.root = root
        self.lake = Lake(str(root / "lake"))
        self.write()

    def write(self, retries=0):
        text = DAG_FILE.format(root=str(self.root), retries=retries)
        self.file = self.project.write("crashes.py", text)

    def run(self, day):
        return self.project.run(self.file, "crashes", {"day": str(day)}, day)

    def java(self, but=()):
        """The driver that works on this shop, if one does."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or [""]
            if "java" in line[0] and str(self.root) in " ".join(line) and process.pid not in but:
                return process
        return None

    def writing(self):
        """Whether files of a run are half written: there is something of it, and no report yet."""
        return [
            path.parent
            for path in (self.root / "lake" / "lake" / "orders" / "data").glob("*/data")
            if not (path.parent / "report.json").exists()
        ]

    def drivers(self):
        """How many drivers were started for the tasks of a day."""
        return [len([*folder.glob("*.pid")]) for folder in (self.root / "lake" / "jobs").iterdir()]


@pytest.fixture
def shop(dag_project, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
    shop = Shop(dag_project, tmp_path)
    shops.write_day(tmp_path / "landing", OLD)
    shops.write_day(tmp_path / "landing", NEW)
    assert shop.run(OLD).state == "success"
    yield shop
    while process := shop.java():
        process.kill()
        process.wait(10)


def at_the_first_write(shop, act):
    """Do something once, in another thread, as soon as a driver writes rows; the driver is held meanwhile."""
    seen = {}

    def watch():
        assert until(lambda: shop.writing(), 200)
        driver = shop.java()
        driver.suspend()
        seen["published"] = shop.lake.days("orders"), shop.lake.snapshot_id("orders")
        seen["half"] = shop.writing()
        act(driver)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, seen


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_while_it_writes(shop):
    before = shop.lake.days("orders"), shop.lake.snapshot_id("orders")
    shop.write(retries=1)
    thread, seen = at_the_first_write(shop, lambda driver: driver.kill())
    result = shop.run(NEW)
    thread.join()
    assert seen["published"] == before and seen["half"]
    assert result.state == "success", result.tasks
    assert shop.lake.days("orders") == {OLD: 200, NEW: 200}
    assert len(shop.lake.snapshots("orders")) == 2
    half = str(seen["half"][0])
    assert not any(file.path.startswith(half) for file in shop.lake.files("orders"))
    assert sorted(shop.drivers()) == [1, 2]
    assert until(lambda: shop.java() is None)
