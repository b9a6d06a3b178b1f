"""Publishing to Redshift: the Data API over its wire protocol, its SQL on a real PostgreSQL, COPY from moto's S3."""

import os
from dataclasses import replace

import pytest

from airflow_provider_sml.cloud.redshift_data import RedshiftDataJob
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.warehouse import LakeRows
from airflow_provider_sml.ml.warehouse.redshift import DIFFERS, Copy, RedshiftWarehouse, manifest
from tests import shops
from tests.ml.test_lake_shops import DATASET, publish, stored_day


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


def make_job(aws, lake, rows_of_day, name):
    snapshot = publish(lake, {shops.FIRST: stored_day(shops.FIRST, rows_of_day)})
    rows = LakeRows(lake.files("orders", snapshot.snapshot_id), DATASET.table_columns)
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
    warehouse = RedshiftWarehouse()
    current = {row[0]: row[1] for row in job.query(warehouse.columns_sql("orders"))}
    return replace(job, statements=warehouse.statements(rows.publication(snapshot), current or None, copies))


def test_days_are_replaced_once_although_replies_are_lost(aws, tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    for count in (50, 40):
        job = make_job(aws, lake, count, f"publish-{count}")
        aws.faults.add("drop_after", "BatchExecuteStatement")
        job_id = job.submit()
        while not (status := job.status(job_id)).state.final:
            assert job.submit() == job_id  # a retry attaches
        assert status.state == "succeeded", status
        assert job.query("SELECT count(*) FROM orders") == [[count]]
    assert job.query("SELECT row_count FROM sml_publishes ORDER BY published") == [[50], [40]]
    assert sum(one.batch for one in aws.redshift.statements.values()) == 2
