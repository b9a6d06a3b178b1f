"""Publishing to Redshift: the Data API over its wire protocol, its SQL on a real PostgreSQL, COPY from moto's S3."""

import datetime as dt
import itertools
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.cloud.redshift_data import RedshiftDataJob
from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.warehouse import LakeRows
from airflow_provider_sml.ml.warehouse.redshift import DIFFERS, Copy, RedshiftWarehouse, manifest
from tests import shops
from tests.ml.test_lake_shops import DATASET, publish, stored_day

_numbers = itertools.count()


@pytest.fixture
def aws(postgres_dsn, monkeypatch):
    from moto.server import ThreadedMotoServer

    from airflow_provider_sml.testing.aws import FakeAws

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with FakeAws(s3=f"http://{host}:{port}") as fake:
        fake.redshift.connect(postgres_dsn)
        fake.client("s3").create_bucket(Bucket="lake-bucket")
        for key, value in fake.environment().items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws"}')
        monkeypatch.setenv("AIRFLOW_CONN_SHOP", '{"conn_type": "redshift"}')
        yield fake
    moto.stop()


@pytest.fixture
def schema(aws):
    """A schema of its own in Redshift, for one test."""
    name = f"shop_{next(_numbers)}"
    ask(aws, f"CREATE SCHEMA {name}")
    return name


@pytest.fixture
def lake(tmp_path):
    return Lake(str(tmp_path / "lake"))


def ask(aws, sql):
    import psycopg2

    connection = psycopg2.connect(aws.redshift.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute(sql)
        found = cursor.fetchall() if cursor.description else []
    connection.close()
    return found


def finish(job, job_id):
    while not (status := job.status(job_id)).state.final:
        pass
    return status


def make_job(aws, lake, snapshot, name, schema="public", columns=DATASET.table_columns):
    days = [dt.date.fromisoformat(day) for day in (snapshot.first, snapshot.last)]
    rows = LakeRows(lake.files("orders", snapshot.snapshot_id, *days), columns)
    s3, copies = aws.client("s3"), []
    for number, (columns, files) in enumerate(rows.layouts().items()):
        moved = []
        for file in files:
            key = f"{name}-{os.path.basename(file.path)}"
            s3.upload_file(file.path, "lake-bucket", key)
            moved.append(replace(file, path=f"s3://lake-bucket/{key}"))
        s3.put_object(Bucket="lake-bucket", Key=f"{name}-{number}.json", Body=manifest(moved).encode())
        copies.append(Copy(columns, f"s3://lake-bucket/{name}-{number}.json"))
    job = RedshiftDataJob(name=name, statements=[], database="dev", workgroup="shops", differs=DIFFERS,
                          client="airflow_provider_sml.hooks.warehouse.redshift_client", connection="shop")  # fmt: skip
    warehouse = RedshiftWarehouse(schema)
    current = {row[0]: row[1] for row in job.query(warehouse.columns_sql("orders"))}
    return replace(job, statements=warehouse.statements(rows.publication(snapshot), current or None, copies))


def day_of(lake, count, day=shops.FIRST):
    return publish(lake, {day: stored_day(day, count)})


def test_days_are_replaced_once_although_replies_are_lost(aws, lake):
    for count in (50, 40):
        job = make_job(aws, lake, day_of(lake, count), f"publish-{count}")
        aws.faults.add("drop_after", "BatchExecuteStatement")
        job_id = job.submit()
        while not (status := job.status(job_id)).state.final:
            assert job.submit() == job_id  # a retry attaches
        assert status.state == "succeeded", status
        assert job.query("SELECT count(*) FROM orders") == [[count]]
    assert job.query("SELECT row_count FROM sml_publishes ORDER BY published") == [[50], [40]]
    assert sum(one.batch for one in aws.redshift.statements.values()) == 2


NEXT = shops.FIRST + dt.timedelta(days=1)
WIDER = [*DATASET.table_columns[:-1], ("tip", "double"), DATASET.table_columns[-1]]


def test_a_new_column_is_null_before_and_files_of_both_kinds_are_copied_together(aws, lake, schema):
    job = make_job(aws, lake, day_of(lake, 5), "a", schema)
    assert finish(job, job.submit()).state == "succeeded"
    folder = lake.stage("orders", "wider")
    folder.mkdir(parents=True)
    table = stored_day(NEXT, 4)
    wider = table.add_column(table.num_columns - 1, "tip", pa.array([1.5] * 4))
    pq.write_table(wider, folder / "0.parquet")
    snapshot = lake.publish("orders", WIDER, [folder / "0.parquet"], NEXT, NEXT, {})
    both = replace(snapshot, first=str(shops.FIRST), rows=9)  # one day's file lacks the column
    job = make_job(aws, lake, both, "b", schema, WIDER)
    assert sum(text.startswith("COPY") for text in job.statements) == 2
    assert sum("ADD COLUMN" in text for text in job.statements) == 1
    assert (status := finish(job, job.submit())).state == "succeeded", status
    found = ask(aws, f"SELECT event_date, count(*), count(tip) FROM {schema}.orders GROUP BY 1 ORDER BY 1")
    assert found == [(shops.FIRST, 5, 0), (NEXT, 4, 4)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda columns: [(name, "double" if name == "order" else kind) for name, kind in columns], "order DOUBLE"),
        (lambda columns: [(name, "string" if name == "weight" else kind) for name, kind in columns], "weight VARCHAR"),
        (lambda columns: [column for column in columns if column[0] != "weight"], "weight gone"),
    ],
    ids=["a wider type", "another type", "a removed column"],
)
def test_another_table_is_refused_before_anything_is_sent(aws, lake, schema, change, found):
    """The lake refuses a wider type too: Iceberg promotes no long to a double ("Schema Evolution")."""
    job = make_job(aws, lake, day_of(lake, 5), "a", schema)
    finish(job, job.submit())
    columns = change(DATASET.table_columns)
    snapshot = day_of(lake, 6)
    with pytest.raises(DataError, match=f"than the lake's(.|\\n)*found: {found}(.|\\n)*nothing was changed"):
        make_job(aws, lake, snapshot, "b", schema, columns)
    with pytest.raises(DataError, match="other columns than the contract"):
        lake.publish("orders", columns, [], shops.FIRST, shops.FIRST, {})
    assert sum(one.batch for one in aws.redshift.statements.values()) == 1


def test_rows_that_differ_from_the_lake_change_nothing(aws, lake, schema):
    """An object is another one than the lake's: as many rows and bytes are not enough, the sums tell."""
    first = make_job(aws, lake, day_of(lake, 5), "a", schema)
    finish(first, first.submit())
    snapshot = day_of(lake, 6)
    job = make_job(aws, lake, snapshot, "b", schema)
    where = next(index for index, text in enumerate(job.statements) if text.startswith("COPY")) + 1
    spoilt = [*job.statements[:where], "UPDATE sml_staging_0 SET weight = weight + 1e-9", *job.statements[where:]]
    job = replace(job, statements=spoilt)
    status = finish(job, job.submit())
    assert (status.state, status.configuration) == ("failed", True)
    assert f"{DIFFERS}: found 6 rows of sums" in status.message
    assert ask(aws, f"SELECT count(*) FROM {schema}.orders") == [(5,)]
    assert ask(aws, f"SELECT count(*) FROM {schema}.sml_publishes") == [(1,)]


def test_a_file_that_is_gone_fails_with_the_statement_and_the_reason(aws, lake, schema):
    job = make_job(aws, lake, day_of(lake, 6), "gone", schema)
    for item in aws.client("s3").list_objects_v2(Bucket="lake-bucket", Prefix="gone-")["Contents"]:
        if item["Key"].endswith(".parquet"):
            aws.client("s3").delete_object(Bucket="lake-bucket", Key=item["Key"])
    status = finish(job, job.submit())
    assert (status.state, status.configuration) == ("failed", True)
    assert "S3ServiceException" in status.message and ' in "COPY sml_staging_0 FROM' in status.message
    assert ask(aws, f"SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'") == [(0,)]


def test_a_batch_is_cancelled_and_one_that_was_aborted_is_sent_anew(aws, lake, schema):
    job = make_job(aws, lake, day_of(lake, 6), "held", schema)
    aws.redshift.held = True
    job_id = job.submit()
    assert job.status(job_id).state == "running"
    job.cancel(job_id)
    job.cancel(job_id)  # one that has ended is no error
    assert job.status(job_id).state == "cancelled"
    aws.redshift.held = False
    assert (again := job.submit()) != job_id
    assert finish(job, again).state == "succeeded"
    assert ask(aws, f"SELECT count(*) FROM {schema}.orders") == [(6,)]


def test_redshift_reads_s3_only_and_a_batch_has_an_end(aws, lake):
    with pytest.raises(ConfigurationError, match=r"a lake on S3; found: /"):
        manifest(lake.files("orders", day_of(lake, 3).snapshot_id))
    with pytest.raises(ConfigurationError, match=r"at most 40 statements; found: 41"):
        RedshiftDataJob(name="a", statements=["SELECT 1"] * 41, database="dev", workgroup="w").submit()
