"""A shop whose ingest is disturbed while it runs: what is published, what is half written, which processes work."""

import threading

import psutil

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml import storage
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

    :param root: a folder of its own.
    :param bucket: address of a bucket for the landed files; they lie in the folder when it is empty.
    :param lake: id of the lake's connection; the lake lies in the folder when it is empty.
    :param settings: further arguments of the ETL operator.
    """

    def __init__(self, project, root, bucket="", lake="", **settings):
        self.project, self.root, self.bucket = project, root, bucket
        self.settings = {"master": "local[1]"} | settings
        self.place = lake or str(root / "lake")
        self.lake = LakeHook(self.place).get_conn()
        self.landing = f"{bucket or root}/landing"
        storage.mount(self.landing, self.lake.store)
        self.write()

    def write(self, retries=0):
        text = DAG_FILE.format(
            root=str(self.root), landing=self.landing, lake=self.place, retries=retries, settings=self.settings,
        )  # fmt: skip
        self.file = self.project.write("crashes.py", text)

    def run(self, day):
        return self.project.run(self.file, "crashes", {"day": str(day)}, day)

    def land(self, *days):
        for day in days:
            shops.write_day(self.root / "landing", day)
        if self.bucket:
            for path in (self.root / "landing").rglob("*.csv"):
                name = path.relative_to(self.root / "landing")
                storage.write(storage.place(self.landing) / str(name), path.read_bytes())

    def java(self):
        """The driver that works on this shop, if one does."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or [""]
            if "java" in line[0] and (self.lake.location in " ".join(line)):
                return process
        return None

    def writing(self):
        """Folders of runs that are half written: there is something of them, and no report yet."""
        data = self.lake.folder("orders") / "data"
        told = [entry.path.removeprefix(f"{data}/").split("/", 2) for entry in storage.entries(data)]
        begun = {parts[0] for parts in told if parts[1:2] == ["data"]}
        return [data / run for run in sorted(begun - {parts[0] for parts in told if parts[1:] == ["report.json"]})]

    def drivers(self):
        """How many drivers were started for the tasks of a day."""
        return [len([*folder.glob("*.pid")]) for folder in (self.root / "lake" / "jobs").iterdir()]

    def state(self, days):
        """Whether each day is published as it landed; None for one that is not published at all."""
        found = self.lake.days("orders")
        return [self.orders(day) == landed(day) if day in found else None for day in days]

    def published(self):
        """What a reader sees: rows by day, and the snapshot."""
        return self.lake.days("orders"), self.lake.snapshot_id("orders")

    def orders(self, day):
        """Numbers and weights of the orders of a day, as they are published."""
        files = self.lake.files("orders", None, day, day)
        tables = [storage.read_table(file.path, ["order", "weight"]) for file in files]
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
