"""The ETL on object stores by the real connectors: S3A on versitygw and moto, Google's on fake-gcs-server."""

import json

import pytest

from airflow_provider_sml.cloud import jars
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.testing.gateway import gateway
from tests import shops
from tests.crashes import Shop, landed
from tests.ml.test_storage import KEY

DAY, NEXT = shops.days(2)
#: How long S3A waits before it gives up: not for minutes.
IMPATIENT = {
    "spark.hadoop.fs.s3a.attempts.maximum": "3",
    "spark.hadoop.fs.s3a.retry.limit": "2",
    "spark.hadoop.fs.s3a.retry.interval": "50ms",
    "spark.hadoop.fs.s3a.retry.throttle.limit": "3",
    "spark.hadoop.fs.s3a.retry.throttle.interval": "50ms",
}
#: What Google's connector needs against an emulator only.
EMULATOR = {
    "spark.hadoop.fs.gs.create.items.conflict.check.enable": "false",
    "spark.hadoop.fs.gs.inputstream.fadvise": "RANDOM",
}


def jars_for(purpose):
    import pyspark

    try:
        return jars.spark_jars(jars.fetch(pyspark.__version__, [purpose]))
    except ConfigurationError as error:
        pytest.skip(f"no jars: {error}")


@pytest.fixture
def open_shop(request, dag_project, tmp_path, monkeypatch):
    """A shop whose files and lake lie in a new bucket of a server."""
    shops_open = []

    def open_shop(server, purpose, conf=(), **fields):
        bucket = server.bucket()
        fields |= {"catalog": "sqlite", "catalog_uri": str(tmp_path / "catalog.db")}
        monkeypatch.setenv("AIRFLOW_CONN_MY_LAKE", json.dumps(server.connection(bucket, **fields)))
        monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": "k" * 16}))
        monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path / "home"))
        settings = {"spark.jars": jars_for(purpose), **dict(conf)}
        shop = Shop(dag_project, tmp_path, bucket, "my_lake", spark_conf=settings)
        shops_open.append(shop)
        shop.land(DAY)
        return shop

    yield open_shop
    for shop in shops_open:
        shop.end()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["versity_store", "moto_store", "gcs_store"])
def test_a_day_is_read_from_a_bucket_staged_and_published_there(request, open_shop, server):
    store = request.getfixturevalue(server)
    if store.scheme == "gs":
        shop = open_shop(store, "gcs", EMULATOR)
    else:
        shop = open_shop(store, "s3", **({"kms_key": KEY} if server == "moto_store" else {}))
    result = shop.run(DAY)
    assert result.state == "success", result.tasks
    assert shop.orders(DAY) == landed(DAY)
    assert result.results["etl"]["uri"].startswith(f"{store.scheme}://")
    assert not shop.writing()
    if server == "moto_store":  # Spark's own files are encrypted as ours are
        found = {key: head for key, head in store.objects(shop.bucket).items() if key.startswith("lake/")}
        assert [key for key in found if key.endswith(".parquet")] and [key for key in found if "report.json" in key]
        keys = {(head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) for head in found.values()}
        assert keys == {("aws:kms", KEY)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spark_survives_faults_of_s3_and_after_an_outage_a_repeat_ends_in_the_new_state(versity_store, open_shop):
    with gateway(versity_store) as between:
        shop = open_shop(between.store, "s3", IMPATIENT)
        for kind in ("throttle", "server_error", "drop_before"):
            for operation in ("PutObject", "GetObject", "HeadObject", "ListObjects", "CopyObject", "Delete*"):
                between.faults.add(kind, operation, skip=2)
        assert shop.run(DAY).state == "success"
        assert shop.state([DAY]) == [True] and not between.faults.waiting()

        shop.land(NEXT)
        before = shop.published()
        between.faults.add("throttle", "PutObject", "*/data/_temporary/*", times=10**6)
        assert shop.run(NEXT).tasks["etl"] == "failed"
        assert between.failed["PutObject"] > 3 and shop.published() == before
        between.faults.clear()
        assert shop.run(NEXT).state == "success"
        assert shop.state([DAY, NEXT]) == [True, True] and len(shop.lake.snapshots("orders")) == 2
