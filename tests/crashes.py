"""A shop whose ingest is disturbed while it runs: what is published, what is half written, which processes work."""

import threading

import psutil

from airflow_provider_sml.ml.lake import Lake
from tests import shops
from tests.jobs import until

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
        task_id="etl", dataset=dataset, places={{"landing": {landing!r}}}, lake={lake!r},
        first="{{{{ params.day }}}}", last="{{{{ params.day }}}}", poll_interval=0.2, **{settings!r},
    )
    PublishPartitionsOperator(task_id="publish", staged=staged.output, dataset=dataset)
"""


class Shop:
    """A lake, and the DAG that ingests a day of orders into it.

    :param settings: further arguments of the ETL operator.
    """

    def __init__(self, project, root, **settings):
        self.project = project
        self.root = root
        self.settings = {"master": "local[1]"} | settings
        self.lake = Lake(str(root / "lake"))
        self.write()

    def write(self, retries=0):
        text = DAG_FILE.format(
            root=str(self.root), landing=str(self.root / "landing"), lake=str(self.root / "lake"), retries=retries,
            settings=self.settings,
        )  # fmt: skip
        self.file = self.project.write("crashes.py", text)

    def run(self, day):
        return self.project.run(self.file, "crashes", {"day": str(day)}, day)

    def land(self, *days):
        for day in days:
            shops.write_day(self.root / "landing", day)

    def java(self):
        """The driver that works on this shop, if one does."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or [""]
            if "java" in line[0] and str(self.root) in " ".join(line):
                return process
        return None

    def writing(self):
        """Folders of runs that are half written: there is something of them, and no report yet."""
        return [
            path.parent
            for path in (self.root / "lake" / "lake" / "orders" / "data").glob("*/data")
            if not (path.parent / "report.json").exists()
        ]

    def drivers(self):
        """How many drivers were started for the tasks of a day."""
        return [len([*folder.glob("*.pid")]) for folder in (self.root / "lake" / "jobs").iterdir()]

    def published(self):
        """What a reader sees: rows by day, and the snapshot."""
        return self.lake.days("orders"), self.lake.snapshot_id("orders")

    def orders(self, day):
        """Numbers and weights of the orders of a day, as they are published."""
        from airflow_provider_sml.ml import storage

        tables = [storage.read_table(file.path, ["order", "weight"]) for file in self.lake.files("orders", None, day, day)]
        return sorted((row["order"], row["weight"]) for table in tables for row in table.to_pylist())

    def end(self):
        while process := self.java():
            process.kill()
            process.wait(10)


def landed(day):
    """What ``Shop.orders`` gives of a day that was ingested right."""
    return sorted((row["order"], row["weight"]) for row in shops.make_rows(day))


def at_the_first_write(shop, act):
    """Do something once, in another thread, as soon as a driver writes rows; the driver is held meanwhile.

    :param act: gets the driver.
    """
    seen = {}

    def watch():
        assert until(lambda: shop.writing(), 200)
        driver = shop.java()
        driver.suspend()
        seen["published"] = shop.published()
        seen["half"] = shop.writing()
        act(driver)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, seen
