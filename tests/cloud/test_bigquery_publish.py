"""Publishing to BigQuery: google-cloud-bigquery against the emulator, behind a gateway that injects faults."""

import dataclasses
import datetime as dt
import itertools
import os
import shutil

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.cloud.bigquery import BigQueryPublishJob, table_columns
from airflow_provider_sml.cloud.bigquery_write import BigQueryWriteJob
from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.errors import ConfigurationError, DataError, JobError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake import CatalogSettings, Lake
from airflow_provider_sml.ml.warehouse import LakeRows
from airflow_provider_sml.ml.warehouse.bigquery import DIFFERS, BigQueryWarehouse
from airflow_provider_sml.testing.bigquery import PROJECT, Fault, bigquery_client
from airflow_provider_sml.testing.google.bigquery_write import WriteFault

DAY = dt.date(2026, 3, 1)
NEXT = DAY + dt.timedelta(days=1)
COLUMNS = (("order", "int"), ("weight", "double"), ("shop", "string"), ("ordered", "timestamp"), ("event_date", "date"))
WIDER = (*COLUMNS[:4], ("tip", "double"), COLUMNS[4])
ARROW = {"int": pa.int64(), "double": pa.float64(), "string": pa.string(), "timestamp": pa.timestamp("us"),
         "date": pa.date32()}  # fmt: skip
KEY = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"
#: From Cloud Storage, by upload of a file, by the Storage Write API.
WAYS = ["gs", "upload", "write"]
_numbers = itertools.count()


def day_rows(day, count, columns=COLUMNS):
    values = {
        "order": list(range(count)),
        "weight": [None if n % 7 == 0 else n / 3 for n in range(count)],
        "shop": [f"shop '{n % 3}' ä" for n in range(count)],
        "ordered": [dt.datetime.combine(day, dt.time(n % 24, n % 60, 0, n)) for n in range(count)],
        "tip": [n * 0.1 for n in range(count)],
        "event_date": [day] * count,
    }
    return pa.table({name: pa.array(values[name], ARROW[kind]) for name, kind in columns})


class Shop:
    """A lake's table and its dataset in BigQuery."""

    def __init__(self, server, folder):
        self.server = server
        self.lake = Lake(str(folder / "lake"))
        self.folder = folder
        self.dataset = f"shop_{next(_numbers)}"
        self.client = bigquery_client()
        self.client.create_dataset(self.dataset)
        server.reset()

    def publish(self, days, columns=COLUMNS):
        folder = self.lake.stage("orders", "test")
        paths = [folder / f"{day}.parquet" for day in days]
        for path, (day, count) in zip(paths, days.items(), strict=True):
            storage.write_table(day_rows(day, count, columns), path)
        return self.lake.publish("orders", columns, paths, min(days), max(days), {})

    def job(self, snapshot, name, columns=COLUMNS, *, by="gs", cluster_by=(), **more):
        days = dt.date.fromisoformat(snapshot.first), dt.date.fromisoformat(snapshot.last)
        rows = LakeRows(self.lake.files("orders", snapshot.snapshot_id, *days), columns)
        paths = [self.to_bucket(path) for path in rows.paths] if by == "gs" else rows.paths
        warehouse = BigQueryWarehouse(PROJECT, self.dataset, more.get("kms_key"), more.get("labels", {}))
        current = table_columns(self.client, self.dataset, "orders")
        plan = warehouse.plan(rows.publication(snapshot, cluster_by), current, paths)
        common = {
            "name": f"{self.dataset}-{name}", "project": PROJECT, "dataset": self.dataset, "table": "orders",
            "schema": plan.schema, "script": plan.script, "differs": DIFFERS, "connection": "bigquery_emulator",
            "client": "airflow_provider_sml.hooks.warehouse.bigquery_client",
        } | more  # fmt: skip
        if by == "write":
            writer = "airflow_provider_sml.hooks.warehouse.bigquery_write_client"
            return BigQueryWriteJob(**common, rows=rows.batches, writer=writer)
        file = None
        if not plan.uris:
            file = str(self.folder / f"{name}.parquet")
            rows.write(file)
        return BigQueryPublishJob(**common, uris=plan.uris, file=file)

    def to_bucket(self, path):
        target = self.server.root / self.dataset / os.path.basename(path)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
        return f"gs://{self.dataset}/{target.name}"

    def follow(self, snapshot, name, columns=COLUMNS, **more):
        job = self.job(snapshot, name, columns, **more)
        return finish(job, job.submit())

    def ask(self, sql):
        return [tuple(row) for row in self.client.query_and_wait(sql.replace("shop.", f"{self.dataset}."))]

    @property
    def days(self):
        return dict(self.ask("SELECT event_date, count(*) FROM shop.orders GROUP BY 1"))

    @property
    def log(self):
        return self.ask("SELECT snapshot_id, row_count FROM shop.sml_publishes ORDER BY published")

    @property
    def tables(self):
        return sorted(table.table_id for table in self.client.list_tables(self.dataset))

    def jobs(self, kind):
        named = [job["jobReference"]["jobId"] for job in self.server.jobs(kind)]
        return [job.removeprefix(f"{self.dataset}-") for job in named if job.startswith(f"{self.dataset}-")]


def finish(job, job_id):
    while not (status := job.status(job_id)).state.final:
        pass
    assert status.state is JobState.SUCCEEDED, status
    return job.result(job_id)


@pytest.fixture
def shop(bigquery, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_BIGQUERY_EMULATOR", '{"conn_type": "google_cloud_platform", "extra": {"is_anonymous": true}}'
    )
    shop = Shop(bigquery, tmp_path)
    yield shop
    bigquery.reset()


@pytest.mark.parametrize("by", WAYS)
def test_the_rows_are_those_of_the_lake(shop, by):
    snapshot = shop.publish({DAY: 30, NEXT: 20})
    result = shop.follow(snapshot, "a", by=by)
    assert result["rows"] == 50
    brought = "bytes_written" if by == "write" else "bytes_loaded"
    assert set(result) == {"job", "rows", brought, "bytes_billed", "slot_ms"}
    assert len(shop.jobs("load")) == (by != "write")
    found = shop.ask("SELECT * FROM shop.orders ORDER BY event_date, `order`")
    wanted = pa.concat_tables([day_rows(DAY, 30), day_rows(NEXT, 20)]).to_pylist()
    assert found == [tuple(row.values()) for row in wanted]
    assert shop.log == [(snapshot.snapshot_id, 50)]
    assert shop.tables == ["orders", "sml_publishes"]  # the staging table is gone
    assert table_columns(shop.client, shop.dataset, "orders")["ordered"] == "DATETIME"


def test_a_lake_on_cloud_storage_is_loaded_from_where_it_lies(shop, gcs_store, tmp_path, monkeypatch):
    """The load job names the lake's own objects. The emulator cannot read Cloud Storage: the gateway fetches them for
    it from fake-gcs-server, by their addresses.
    """
    monkeypatch.setattr(shop.server, "storage", gcs_store.store.endpoint)
    shop.lake = Lake(f"{gcs_store.bucket()}/lake", gcs_store.store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
    snapshot = shop.publish({DAY: 30, NEXT: 20})
    assert shop.follow(snapshot, "a", by="lake")["rows"] == 50
    load = next(r.body for r in shop.server.requests if r.path.endswith("/jobs") and "load" in r.body["configuration"])
    files = [file.path for file in shop.lake.files("orders", snapshot.snapshot_id)]
    assert sorted(load["configuration"]["load"]["sourceUris"]) == sorted(files)
    assert all(path.startswith("gs://") for path in files)
    assert not [r for r in shop.server.requests if "/upload/" in r.path]
    shop.follow(shop.publish({NEXT: 5}), "b", by="lake")
    assert shop.days == {DAY: 30, NEXT: 5}


def test_a_day_is_replaced_and_the_others_stay(shop):
    shop.follow(shop.publish({DAY: 30, NEXT: 20}), "a")
    shop.follow(shop.publish({NEXT: 5}), "b")
    assert shop.days == {DAY: 30, NEXT: 5}


def test_what_is_asked_for_reaches_bigquery(shop):
    job = shop.job(shop.publish({DAY: 3}), "a", kms_key=KEY, labels={"team": "ops"}, cluster_by=["shop"],
                   max_bytes_billed=10**9, location="US")  # fmt: skip
    finish(job, job.submit())
    staged = next(r.body for r in shop.server.requests if r.method == "POST" and r.path.endswith("/tables"))
    assert staged["encryptionConfiguration"] == {"kmsKeyName": KEY}
    life = int(staged["expirationTime"]) / 1000 - dt.datetime.now().timestamp()
    assert 23 * 3600 < life < 25 * 3600
    load, script = (next(iter(shop.server.jobs(kind)[-1:])) for kind in ("load", "query"))
    load = next(r.body for r in shop.server.requests if r.path.endswith("/jobs") and "load" in r.body["configuration"])
    assert load["configuration"]["labels"] == {"team": "ops"}
    assert load["configuration"]["load"]["destinationEncryptionConfiguration"] == {"kmsKeyName": KEY}
    assert load["configuration"]["load"]["writeDisposition"] == "WRITE_TRUNCATE"
    script = next(
        r.body for r in shop.server.requests if r.path.endswith("/jobs") and "query" in r.body["configuration"]
    )
    assert script["configuration"]["labels"] == {"team": "ops"}
    assert script["configuration"]["query"]["maximumBytesBilled"] == str(10**9)
    sql = script["configuration"]["query"]["query"]
    assert (
        "PARTITION BY `event_date` CLUSTER BY `shop` OPTIONS(kms_key_name='" + KEY + "', labels=[('team', 'ops')])"
        in sql
    )
    assert sql.count("kms_key_name") == 2  # the log of publishes too
    assert shop.client.get_table(f"{shop.dataset}.orders").time_partitioning.field == "event_date"


def test_a_new_column_is_null_before(shop):
    shop.follow(shop.publish({DAY: 3}), "a")
    shop.follow(shop.publish({NEXT: 2}, WIDER), "b", WIDER)
    assert shop.ask("SELECT event_date, count(tip) FROM shop.orders GROUP BY 1 ORDER BY 1") == [(DAY, 0), (NEXT, 2)]


def test_days_of_before_and_after_a_new_column_are_published_together(shop):
    shop.publish({DAY: 3})
    shop.publish({NEXT: 2}, WIDER)
    snapshot = shop.publish({NEXT: 2}, WIDER)
    both = type(snapshot)(**(vars(snapshot) | {"first": DAY.isoformat(), "rows": 5}))
    shop.follow(both, "a", WIDER)
    assert shop.ask("SELECT event_date, count(*), count(tip) FROM shop.orders GROUP BY 1 ORDER BY 1") == [
        (DAY, 3, 0), (NEXT, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ((COLUMNS[0], ("weight", "string"), *COLUMNS[2:]), "weight STRING"),
        ((COLUMNS[0], *COLUMNS[2:]), "weight gone"),
    ],
    ids=["another type", "a removed column"],
)
def test_another_table_is_refused_before_anything_is_loaded(shop, columns, found):
    shop.follow(shop.publish({DAY: 3}), "a")
    snapshot = shop.publish({DAY: 3})
    shop.server.reset()
    warehouse = BigQueryWarehouse(PROJECT, shop.dataset)
    rows = LakeRows(shop.lake.files("orders", snapshot.snapshot_id), COLUMNS)
    publication = rows.publication(snapshot)
    changed = type(publication)(snapshot, columns, publication.tally)
    with pytest.raises(DataError, match=rf"expected: weight FLOAT64; found: {found}"):
        warehouse.plan(changed, table_columns(shop.client, shop.dataset, "orders"), [])
    assert [r for r in shop.server.requests if r.method != "GET"] == []


def test_rows_that_differ_from_the_lake_change_nothing(shop):
    """What was loaded is not what the lake has: the script's own comparison undoes all of it."""
    shop.follow(shop.publish({DAY: 3}), "a")
    snapshot = shop.publish({DAY: 4})
    job = shop.job(snapshot, "b")
    name = job.uris[0].rpartition("/")[2]
    changed = day_rows(DAY, 4).set_column(1, "weight", pa.array([None, 1 / 3, 2 / 3, 1.0000000000000002]))
    pq.write_table(changed, shop.server.root / shop.dataset / name)
    job_id = job.submit()
    status = job.status(job_id)
    assert (status.state, status.configuration) == (JobState.FAILED, True)
    assert status.message.split(": ", 1)[1].startswith(DIFFERS + ": found 4 rows of sums")
    assert shop.days == {DAY: 3}
    assert len(shop.log) == 1


def test_a_repeat_attaches_and_changes_no_row(shop):
    snapshot = shop.publish({DAY: 30})
    job = shop.job(snapshot, "a")
    first = finish(job, job.submit())
    again = shop.job(snapshot, "a")
    assert again.submit() == f"{job.name}-1"
    assert finish(again, f"{job.name}-1")["job"] == first["job"]
    assert shop.jobs("load") == ["a-1-load"]
    assert shop.days == {DAY: 30}


def test_a_publish_that_was_overtaken_is_done_again(shop):
    """A cleared task publishes its snapshot again, although its job succeeded once."""
    old = shop.publish({DAY: 30})
    shop.follow(old, "a")
    shop.follow(shop.publish({DAY: 8}), "b")
    assert shop.days == {DAY: 8}
    job = shop.job(old, "a")
    assert finish(job, job.submit())["job"].endswith("a-2-publish")
    assert shop.days == {DAY: 30}


def test_a_crash_between_load_and_publish_is_gone_on_from(shop):
    snapshot = shop.publish({DAY: 30})
    shop.job(snapshot, "a").submit()  # and the process is gone
    assert shop.tables == [f"sml_staging_{shop.dataset}_a_1"]
    shop.follow(snapshot, "a")
    assert shop.jobs("load") == ["a-1-load"]
    assert shop.jobs("query")[:1] == ["a-1-publish"]
    assert shop.days == {DAY: 30}


def test_a_crash_after_the_publish_is_gone_on_from(shop):
    job = shop.job(shop.publish({DAY: 30}), "a")
    job_id = job.submit()
    assert job.status(job_id).state is JobState.SUCCEEDED  # and the process is gone before it took the result
    again = Adapter.load(job.describe())  # as a trigger in another process makes it
    assert again.submit() == job_id
    assert finish(again, job_id)["rows"] == 30
    assert shop.tables == ["orders", "sml_publishes"]


def test_staged_rows_that_expired_are_loaded_again(shop):
    snapshot = shop.publish({DAY: 30})
    job_id = shop.job(snapshot, "a").submit()
    shop.client.delete_table(f"{shop.dataset}.sml_staging_{job_id.replace('-', '_')}")
    shop.follow(snapshot, "a")
    assert shop.jobs("load") == ["a-1-load", "a-2-load"]
    assert shop.days == {DAY: 30}


@pytest.mark.parametrize("by", ["gs", "upload"])
@pytest.mark.parametrize("step", ["load", "publish"])
def test_a_lost_reply_submits_nothing_twice(shop, by, step):
    snapshot = shop.publish({DAY: 30})
    job = shop.job(snapshot, "a", by=by)
    shop.server.faults.append(
        Fault("/jobs$", method="PUT") if by == "upload" and step == "load" else Fault("/jobs$", body=step)
    )
    finish(job, job.submit())
    assert shop.server.faults == []
    assert shop.jobs("load") == ["a-1-load"]
    assert [name for name in shop.jobs("query") if name.endswith("publish")] == ["a-1-publish"]
    assert shop.days == {DAY: 30}


def test_a_failed_load_is_told_and_the_retry_has_a_new_name(shop):
    snapshot = shop.publish({DAY: 30})
    job = shop.job(snapshot, "a")
    name = job.uris[0].rpartition("/")[2]
    whole = (shop.server.root / shop.dataset / name).read_bytes()
    (shop.server.root / shop.dataset / name).write_bytes(b"PAR1 half a file")
    shop.server.faults.append(Fault("/jobs$", body="load", kind="error", status=400, reason="invalid"))
    with pytest.raises(Exception, match="injected"):
        job.submit()
    (shop.server.root / shop.dataset / name).write_bytes(whole)
    assert finish(job, job.submit())["rows"] == 30


def test_a_running_load_is_waited_for_and_cancelled_with_nothing_left(shop):
    shop.server.hold("-load")
    job = shop.job(shop.publish({DAY: 30}), "a")
    job_id = job.submit()
    assert job.status(job_id).state is JobState.RUNNING
    assert shop.job(shop.publish({DAY: 30}), "a").submit() == job_id  # attached
    job.cancel(job_id)
    assert job.status(job_id).state is JobState.CANCELLED
    assert shop.tables == []
    shop.server.release()
    assert job.submit() == f"{job.name}-2"


def test_a_running_publish_is_cancelled(shop):
    shop.server.hold("-publish")
    job = shop.job(shop.publish({DAY: 30}), "a")
    job_id = job.submit()
    assert job.status(job_id).state is JobState.RUNNING
    job.cancel(job_id)
    assert job.status(job_id).state is JobState.CANCELLED
    assert shop.tables == []


@pytest.mark.parametrize(("reason", "configuration"), [("backendError", False), ("invalidQuery", True)])
def test_which_failures_a_retry_may_mend(shop, reason, configuration):
    snapshot = shop.publish({DAY: 3})
    job = shop.job(snapshot, "a")
    job_id = job.submit()
    known = shop.server._jobs[f"{job_id}-load"]
    known["status"] = {"state": "DONE", "errorResult": {"reason": reason, "message": "no luck"}}
    status = job.status(job_id)
    assert (status.state, status.configuration) == (JobState.FAILED, configuration)
    assert "no luck" in status.message
    assert job.submit() == f"{job.name}-2"


# --- the Storage Write API --------------------------------------------------------------------------------------------


def test_the_write_api_is_used_as_it_asks(shop, monkeypatch):
    """Requests stay below the limit, each append has its offset, and one commit shows all of it."""
    monkeypatch.setattr("airflow_provider_sml.cloud.bigquery_write.REQUEST_BYTES", 2_000)
    shop.follow(shop.publish({DAY: 50, NEXT: 40}), "a", by="write", kms_key=KEY)
    writes = shop.server.writes
    assert writes.methods() == [
        "CreateWriteStream", *["AppendRows"] * writes.methods().count("AppendRows"), "FinalizeWriteStream",
        "BatchCommitWriteStreams",
    ]  # fmt: skip
    appends = [call for name, call in writes.calls if name == "AppendRows"]
    assert len(appends) > 2 and appends[0].offset == 0
    assert all(len(call.arrow_rows.rows.serialized_record_batch) <= 2_000 for call in appends)
    assert sorted({call.offset for call in appends}) == [call.offset for call in appends]
    staged = next(r.body for r in shop.server.requests if r.method == "POST" and r.path.endswith("/tables"))
    assert staged["encryptionConfiguration"] == {"kmsKeyName": KEY}
    assert shop.days == {DAY: 50, NEXT: 40}
    assert shop.tables == ["orders", "sml_publishes"]


@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "method", ["CreateWriteStream", "AppendRows", "FinalizeWriteStream", "BatchCommitWriteStreams"]
)
def test_a_broken_connection_writes_every_row_once(shop, monkeypatch, method, lost):
    monkeypatch.setattr("airflow_provider_sml.cloud.bigquery_write.REQUEST_BYTES", 2_000)
    snapshot = shop.publish({DAY: 80})
    shop.server.writes.faults.append(WriteFault(method, skip=1 if method == "AppendRows" else 0, lost=lost))
    assert shop.follow(snapshot, "a", by="write")["rows"] == 80
    assert shop.server.writes.faults == []
    assert shop.days == {DAY: 80}
    assert shop.tables == ["orders", "sml_publishes"]


def test_rows_that_are_refused_leave_nothing(shop):
    """A failure that no repeat mends: told with the service's words, and not tried again."""
    shop.follow(shop.publish({DAY: 3}), "a")
    snapshot = shop.publish({DAY: 4})
    shop.server.writes.faults.append(WriteFault("AppendRows", code=grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(JobError, match=r"did not take the rows(.|\n)*InvalidArgument: (400 )?injected") as refused:
        shop.job(snapshot, "b", by="write").submit()
    assert not refused.value.retryable
    assert shop.tables == ["orders", "sml_publishes"]
    assert shop.days == {DAY: 3}


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("after", [1, 60])
def test_a_process_that_dies_while_it_writes_has_written_nothing(shop, after):
    """The stream of the dead one is never committed, and the retry writes to a table of its own."""
    snapshot = shop.publish({DAY: 80})
    job = shop.job(snapshot, "a", by="write")
    batches = job.rows

    def dying():
        (whole,) = batches()
        for number, batch in enumerate(whole.slice(n, 1) for n in range(80)):
            if number == after:
                raise Crash
            yield batch

    with pytest.raises(Crash):
        dataclasses.replace(job, rows=dying).submit()
    assert shop.jobs("query") == []
    assert shop.follow(snapshot, "a", by="write")["rows"] == 80
    assert shop.days == {DAY: 80}


def test_of_two_that_write_the_same_one_publishes(shop):
    """A process that was thought dead is slow: its script's name is taken, and its staging table goes."""
    snapshot = shop.publish({DAY: 30})
    slow, quick = (shop.job(snapshot, "a", by="write") for _ in range(2))

    def overtaken():
        yield from slow.rows()
        quick.submit()

    job_id = dataclasses.replace(slow, rows=overtaken).submit()
    assert finish(Adapter.load(slow.describe()), job_id)["rows"] == 30
    assert [name for name in shop.jobs("query") if name.endswith("publish")] == ["a-1-publish"]
    assert shop.days == {DAY: 30}
    assert shop.tables == ["orders", "sml_publishes"]


def test_a_repeated_write_attaches(shop):
    snapshot = shop.publish({DAY: 30})
    job_id = shop.job(snapshot, "a", by="write").submit()
    shop.server.writes.reset()
    again = shop.job(snapshot, "a", by="write")
    assert again.submit() == job_id and shop.server.writes.methods() == []
    assert finish(again, job_id)["rows"] == 30
    shop.follow(shop.publish({DAY: 8}), "b", by="write")
    assert finish(again, again.submit())["job"].endswith("a-2-publish")  # overtaken, so it is done again
    assert shop.days == {DAY: 30}


def test_a_running_script_of_written_rows_is_cancelled_with_nothing_left(shop):
    shop.server.hold("-publish")
    job = shop.job(shop.publish({DAY: 30}), "a", by="write")
    job_id = job.submit()
    assert job.status(job_id).state is JobState.RUNNING
    job.cancel(job_id)
    assert job.status(job_id).state is JobState.CANCELLED
    assert shop.tables == []


def test_a_day_that_the_lake_has_no_rows_of_is_emptied(shop):
    shop.follow(shop.publish({DAY: 3, NEXT: 2}), "a")
    snapshot = shop.publish({DAY: 4})
    after = str(NEXT + dt.timedelta(days=1))
    nothing = dataclasses.replace(snapshot, first=after, last=after, rows=0)
    shop.ask(f"INSERT INTO shop.orders (`order`, event_date) VALUES (1, DATE '{after}')")
    assert shop.follow(nothing, "b", by="write")["rows"] == 0
    assert shop.days == {DAY: 3, NEXT: 2}


def test_too_many_files_are_refused(shop):
    snapshot = shop.publish({DAY: 3})
    publication = LakeRows(shop.lake.files("orders"), COLUMNS).publication(snapshot)
    with pytest.raises(ConfigurationError, match=r"at most 10,000; found: 10,001(.|\n)*compact"):
        BigQueryWarehouse(PROJECT, "d").plan(publication, None, [f"gs://b/{n}" for n in range(10_001)])


def test_only_our_own_functions_open_clients():
    from airflow_provider_sml.cloud.clients import open_client

    with pytest.raises(
        ConfigurationError, match=r"expected: a function of airflow_provider_sml.hooks; found: os.system"
    ):
        open_client("os.system", "true")
