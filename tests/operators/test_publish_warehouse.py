"""Publishing a snapshot to BigQuery and Redshift through ``dag.test()``: in a worker and in the triggerer, with
crashes, cancellations and refusals. What counts is what lies in the warehouse afterwards, and which jobs the
service was given.
"""

import datetime as dt
import itertools
import json
import os
import signal
import threading
from dataclasses import replace

import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake import CatalogSettings, Lake
from airflow_provider_sml.ml.storage import Store
from airflow_provider_sml.refs import WarehouseRef
from airflow_provider_sml.testing.bigquery import LEAST_BILLED, PROJECT, bigquery_client
from tests import shops
from tests.jobs import until
from tests.links import console_page
from tests.ml.test_lake_shops import DATASET, stored_day

DAY, NEXT = shops.days(2)
DAG_FILE = """
import datetime as dt
from pathlib import Path

from airflow.sdk import DAG
from airflow_provider_sml.operators.warehouse import PublishWarehouseOperator
from tests import shops


class Dying(PublishWarehouseOperator):
    # The first try is gone at a step; what it had begun goes on by itself.
    def die(self, context, step):
        if step == {step!r} and context["ti"].try_number == 1:
            raise RuntimeError("the worker is gone")

    def run(self, context):
        self.context = context
        return super().run(context)

    def _submit(self, job):
        self.die(self.context, "prepared")
        job_id = super()._submit(job)
        self.die(self.context, "submitted")
        return job_id

    def finish(self, context, result):
        self.die(context, "finished")
        return super().finish(context, result)


def tell(context):
    Path({told!r}).write_text(str(context["exception"]))


with DAG("warehouse", default_args={{"retries": {retries}, "retry_delay": dt.timedelta(0)}}):
    Dying(
        task_id="publish", snapshot={snapshot!r}, dataset=shops.make_spec(Path("/nowhere")).dataset,
        deferrable={deferrable}, poll_interval=0.05, on_failure_callback=tell, **{more!r}, {rest}
    )
"""
_numbers = itertools.count()


class Shop:
    """A lake with the days of a shop, and a warehouse; a subclass knows the service."""

    warehouse: str

    def __init__(self, project, root, lake):
        self.more = {}
        self.project, self.root, self.lake = project, root, lake
        self.deferrable = False

    def snapshot(self, days):
        folder = self.lake.stage("orders", f"run-{next(_numbers)}")
        paths = [folder / f"{day}.parquet" for day in days]
        for path, (day, count) in zip(paths, days.items(), strict=True):
            storage.write_table(stored_day(day, count), path)
        return self.lake.publish("orders", DATASET.table_columns, paths, min(days), max(days), {})

    def run(self, snapshot, step="", retries=0, rest="", **more):
        """Publish it; gives the DAG's result, with the reason of a failure as ``told``."""
        told = self.root / "told"
        told.unlink(missing_ok=True)
        values = {"warehouse": self.warehouse} | self.more | more
        text = DAG_FILE.format(
            step=step, retries=retries, told=str(told), snapshot=snapshot.to_xcom(), deferrable=self.deferrable,
            more=values, rest=rest,
        )  # fmt: skip
        result = self.project.run(self.project.write("warehouse.py", text), "warehouse")
        result.told = told.read_text() if told.exists() else ""
        return result


class BigQueryShop(Shop):
    """BigQuery's emulator, by load jobs or by the Storage Write API."""

    def __init__(self, project, root, server, load):
        super().__init__(project, root, Lake(str(root / "lake")))
        self.server = server
        self.name = f"operator_{next(_numbers)}"
        self.warehouse = f"bigquery://shop_google@{PROJECT}/{self.name}"
        self.more = {"load": load}
        self.client = bigquery_client()
        self.client.create_dataset(self.name)
        self.before = len(server.jobs())
        server.reset()

    def rows(self, sql):
        return [tuple(row) for row in self.client.query_and_wait(sql.format(f"`{PROJECT}`.{self.name}."))]

    def scripts(self):
        """States of the scripts that publish, in their order."""
        jobs = self.server.jobs("query")
        mine = [job for job in jobs if f"{self.name}." in job["configuration"]["query"]["query"]]
        named = [job for job in mine if job["jobReference"]["jobId"].endswith("-publish")]
        return [job["status"].get("errorResult", {}).get("reason", job["status"]["state"]) for job in named]

    def left(self):
        return [t.table_id for t in self.client.list_tables(self.name) if t.table_id.startswith("sml_staging")]

    def hold(self):
        self.server.hold("-publish")

    def release(self):
        self.server.release()

    def fail(self, reason):
        self.server.fail("-publish", *reason)

    refusal = ("invalidQuery", "Value out of range in column weight at [7:1]")
    passing = ("backendError", "Retrying the job may solve the problem")
    done, stopped = "DONE", "stopped"


class RedshiftShop(Shop):
    """Redshift's Data API in front of PostgreSQL, with a lake on S3."""

    def __init__(self, project, root, aws, dsn, address):
        aws.redshift.connect(dsn)
        self.aws, self.dsn, self.schema = aws, dsn, f"operator_{next(_numbers)}"
        bucket = f"lake-{self.schema.replace('_', '-')}"
        aws.client("s3").create_bucket(Bucket=bucket)
        self.execute(f"CREATE SCHEMA {self.schema}")
        self.store = Store(address, "us-east-1", "moto", "moto-secret")
        self.catalog = str(root / "catalog.db")
        self.location = f"s3://{bucket}/lake"
        lake = Lake(self.location, self.store, CatalogSettings(uri=self.catalog), name="shop_lake")
        super().__init__(project, root, lake)
        self.warehouse = "shop_redshift"

    def execute(self, sql):
        import psycopg2

        connection = psycopg2.connect(self.dsn)
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            found = cursor.fetchall() if cursor.description else []
        connection.close()
        return found

    def rows(self, sql):
        return self.execute(sql.format(f"{self.schema}."))

    def scripts(self):
        return [one.status for one in self.aws.redshift.statements.values() if one.batch]

    def left(self):
        return [one.status for one in self.aws.redshift.statements.values() if one.status in ("SUBMITTED", "STARTED")]

    def hold(self):
        self.aws.redshift.held = True

    def release(self):
        self.aws.redshift.held = False

    def fail(self, reason):
        self.aws.faults.add("fail", "BatchExecuteStatement", reason=reason[1])

    refusal = ("", "Numeric data overflow (result precision)")
    passing = ("", "1023 Detail: Serializable isolation violation on table")
    done, stopped = "FINISHED", "ABORTED"


@pytest.fixture(params=["load_job", "write_api", "redshift"])
def shop(request, dag_project, tmp_path, monkeypatch):
    if request.param == "redshift":
        aws, dsn = request.getfixturevalue("fake_aws"), request.getfixturevalue("postgres_dsn")
        shop = RedshiftShop(dag_project, tmp_path, aws, dsn, request.getfixturevalue("fake_s3"))
        redshift = {"conn_type": "redshift", "extra": {"workgroup_name": "shops", "db_schema": shop.schema}}
        monkeypatch.setenv("AIRFLOW_CONN_SHOP_REDSHIFT", json.dumps(redshift))
        extra = {"location": shop.location, "endpoint": shop.store.endpoint, "region": "us-east-1",
                 "access_key": "moto", "secret_key": "moto-secret", "catalog_uri": shop.catalog}  # fmt: skip
        monkeypatch.setenv("AIRFLOW_CONN_SHOP_LAKE", json.dumps({"conn_type": "sml_lake", "extra": extra}))
        yield shop
        return
    server = request.getfixturevalue("bigquery")
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_GOOGLE", json.dumps(google))
    shop = BigQueryShop(dag_project, tmp_path, server, request.param)
    yield shop
    server.reset()


@pytest.fixture(params=[False, True], ids=["in a worker", "in the triggerer"])
def waiting(request, shop):
    """The shop, whose operator waits in a worker or in the triggerer."""
    shop.deferrable = request.param
    return shop


def days(shop):
    return dict(shop.rows("SELECT event_date, count(*) FROM {}orders GROUP BY 1"))


def published(shop):
    return [row[0] for row in shop.rows("SELECT row_count FROM {}sml_publishes ORDER BY published")]


def test_days_are_published_and_replaced(waiting):
    shop = waiting
    snapshot = shop.snapshot({DAY: 30, NEXT: 20})
    result = shop.run(snapshot)
    assert result.state == "success", result.told
    ref = WarehouseRef.load(result.results["publish"])
    assert (ref.table, ref.snapshot_id, ref.rows) == ("orders", snapshot.snapshot_id, 50)
    if isinstance(shop, BigQueryShop):
        assert ref.cost["bytes_billed"] == LEAST_BILLED and ref.cost["rows"] == 50
        page = console_page("warehouse")
        assert page.startswith(
            f"https://console.cloud.google.com/bigquery?project={PROJECT}&ws=!1m5!1m4!1m3!1s{PROJECT}!2s"
        )
        assert "-1-publish!3s" in page, "the script, after the load job"
    assert shop.run(shop.snapshot({NEXT: 5})).state == "success"
    assert days(shop) == {DAY: 30, NEXT: 5}
    assert published(shop) == [50, 5]
    assert (shop.left(), shop.scripts()) == ([], [shop.done] * 2)


@pytest.mark.parametrize(
    ("step", "deferrable"), [("prepared", False), ("submitted", False), ("finished", False), ("finished", True)]
)
def test_a_crash_at_any_step_ends_in_one_publish(shop, step, deferrable):
    shop.deferrable = deferrable
    result = shop.run(shop.snapshot({DAY: 30}), step=step, retries=1)
    assert result.state == "success", result.told
    assert days(shop) == {DAY: 30}
    assert shop.left() == []
    # Redshift's batches replace what an earlier one did: one that ended is sent again, BigQuery's jobs are found again.
    repeats = 2 if step == "finished" and isinstance(shop, RedshiftShop) else 1
    assert shop.scripts() == [shop.done] * repeats
    assert published(shop) == [30] * repeats


def test_at_its_deadline_the_job_is_cancelled(waiting):
    shop = waiting
    shop.hold()
    snapshot = shop.snapshot({DAY: 40})
    result = shop.run(snapshot, rest="deadline=dt.timedelta(seconds=0.5)")
    assert result.state == "failed" and "at its deadline; it was cancelled" in result.told
    assert (shop.scripts(), shop.left()) == ([shop.stopped], [])
    shop.release()
    assert shop.run(snapshot).state == "success"
    assert days(shop) == {DAY: 40}


def test_a_task_that_is_killed_cancels_the_job(shop):
    shop.hold()

    def kill():
        if until(shop.scripts):
            os.kill(os.getpid(), signal.SIGALRM)  # what ends a task that takes too long

    thread = threading.Thread(target=kill)
    thread.start()
    result = shop.run(shop.snapshot({DAY: 30}), rest="execution_timeout=dt.timedelta(minutes=2)")
    thread.join()
    assert result.state == "failed"
    assert (shop.scripts(), shop.left()) == ([shop.stopped], [])


def test_a_failure_is_told_in_the_words_of_the_service_and_not_retried(waiting):
    shop = waiting
    shop.run(shop.snapshot({DAY: 30}))
    shop.fail(shop.refusal)
    result = shop.run(shop.snapshot({DAY: 40}), retries=2)
    assert result.state == "failed" and shop.refusal[1] in result.told
    assert len(shop.scripts()) == 2 and shop.left() == []
    assert days(shop) == {DAY: 30} and published(shop) == [30]


def test_a_failure_that_may_pass_is_retried(shop):
    shop.fail(shop.passing)
    result = shop.run(shop.snapshot({DAY: 30}), retries=1)
    assert result.state == "success", result.told
    assert len(shop.scripts()) == 2 and shop.scripts()[-1] == shop.done
    assert days(shop) == {DAY: 30} and published(shop) == [30] and shop.left() == []


@pytest.mark.parametrize("shop", ["load_job"], indirect=True)
def test_a_load_job_that_fails_is_told_with_its_reason(shop):
    shop.server.fail("-load", "invalid", "Error while reading data, error message: not a parquet file")
    result = shop.run(shop.snapshot({DAY: 30}), retries=1)
    assert result.state == "failed"
    assert "loading" in result.told and "error message: not a parquet file" in result.told
    assert (shop.scripts(), shop.left()) == ([], [])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"warehouse": "mysql://host/db"}, "mysql://host/db is no warehouse"),
        ({"warehouse": "nowhere"}, "there is no connection nowhere"),
        ({"cluster_by": ["shup"]}, "found: shup"),
        ({"load": "stream"}, "expected: load_job or write_api; found: stream"),
    ],
)
@pytest.mark.parametrize("shop", ["load_job"], indirect=True)
def test_what_is_wrong_is_told_before_anything_is_sent(shop, more, said):
    result = shop.run(shop.snapshot({DAY: 3}), retries=1, **more)
    assert result.state == "failed" and said in result.told
    assert (shop.scripts(), shop.left()) == ([], [])


@pytest.mark.parametrize("shop", ["redshift"], indirect=True)
def test_a_snapshot_that_counted_other_rows_is_refused(shop):
    result = shop.run(replace(shop.snapshot({DAY: 3}), rows=4))
    assert result.state == "failed" and "are not what its publish counted" in result.told
    assert shop.scripts() == []


@pytest.mark.parametrize("shop", ["redshift"], indirect=True)
def test_manifests_that_no_batch_can_read_any_more_go(shop, monkeypatch):
    shop.run(shop.snapshot({DAY: 3}))
    folder = shop.lake.root / "manifests" / "orders"
    first = {entry.path for entry in storage.entries(folder)}
    assert len(first) == 1
    shop.run(shop.snapshot({DAY: 4}))
    assert len({entry.path for entry in storage.entries(folder)}) == 2, "a batch may still read the first"
    monkeypatch.setattr("airflow_provider_sml.operators.warehouse._KEPT", dt.timedelta(days=-1))
    shop.run(shop.snapshot({DAY: 5}))
    assert len({entry.path for entry in storage.entries(folder)} & first) == 0
