"""The ETL on the fake Dataproc Serverless, which runs the same application through Spark on this machine."""

import hashlib
import hmac
import json
from dataclasses import dataclass

import pytest

from airflow_provider_sml.cloud.google import GoogleJob
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.clients import forget_clients
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.reading import batches
from airflow_provider_sml.testing.google.spark import local_spark
from tests import shops

KEY = "hunter2-0123456789abcdef"

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from tests import shops

contract = shops.make_spec({root!r}).contract.model_dump(mode="json")
contract["columns"]["customer"]["privacy"] = {privacy!r}
dataset = shops.make_spec({root!r}, contract=contract).dataset

with DAG("orders_dataproc", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    staged = SparkEtlOperator(
        task_id="etl", dataset=dataset, places={{"landing": {landing!r}}}, lake={lake!r}, first="2026-03-01",
        last="2026-03-02", poll_interval={poll}, deferrable={deferrable},
        spark={{
            "on": {place!r}, "region": "europe-west1", "code": "gs://code/sml", "staging_bucket": "code",
            "conf": {{"spark.executor.instances": "2"}},
        }} | {settings},
    )
    PublishPartitionsOperator(task_id="publish", staged=staged.output, dataset=dataset)
"""


@pytest.fixture
def cloud(fake_google, fake_gcs_address, monkeypatch):
    """Each call takes half a minute of the virtual clock. One try per call: what is tested is the operator."""
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    forget_clients()
    monkeypatch.setattr(GoogleJob, "patience", 0.0)
    monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
    fake_google.clock.per_call = 30
    fake_google.storage.write("gs://code/is-there", b"")
    yield fake_google
    forget_clients()


@dataclass
class Orders:
    """The ETL of two days that have landed."""

    project: object
    root: object

    def run(self, place="dataproc", deferrable=False, retries=0, poll=0.01, privacy="mask", landing=None, lake=None,
            **settings):  # fmt: skip
        text = DAG_FILE.format(
            root=str(self.root), place=place, deferrable=deferrable, retries=retries, settings=settings, poll=poll,
            privacy=privacy, landing=landing or str(self.root / "landing"), lake=lake or str(self.root / "lake"),
        )  # fmt: skip
        return self.project.run(self.project.write("orders_dataproc.py", text), "orders_dataproc")


@pytest.fixture
def orders(dag_project, cloud, tmp_path):
    for day in shops.days(2):
        shops.write_day(tmp_path / "landing", day)
    return Orders(dag_project, tmp_path)


@pytest.mark.slow
def test_two_days_are_staged_on_dataproc_and_published(orders, cloud, tmp_path, capfd):
    """Deferred, with a column that is hashed by a key of Secret Manager."""
    cloud.dataproc.driver = local_spark(cloud, secrets={"privacy-keys": json.dumps({"customer_key": KEY})})
    result = orders.run(
        deferrable=True, poll=0.2, privacy={"hash": "customer_key"}, secret_ids={"SML_PRIVACY_KEYS": "privacy-keys"}
    )
    printed = capfd.readouterr().out
    assert result.state == "success", (result.tasks, printed[-3000:])
    lake = Lake(str(tmp_path / "lake"))
    assert lake.days("orders") == dict.fromkeys(shops.days(2), 200)
    assert result.results["etl"]["rows_in"] == 400
    [batch] = cloud.dataproc.batches.values()
    asked = batch.request.batch
    assert asked.labels["dag_id"] == "orders_dataproc"
    assert asked.pyspark_batch.main_python_file_uri.startswith("gs://code/sml/application-")
    assert "vCPU-hours" in printed and "console.cloud.google.com/dataproc/batches/europe-west1/" in printed
    assert KEY not in printed + json.dumps([call.params for call in cloud.calls])
    customers = [
        row["customer"] for batch in batches(lake, "orders", columns=["customer"]) for row in batch.to_pylist()
    ]
    hashed = {hmac.new(KEY.encode(), f"customer {n}".encode(), hashlib.sha256).hexdigest() for n in range(1000)}
    assert set(customers) <= hashed


@pytest.mark.slow
def test_landing_and_lake_may_lie_in_cloud_storage(orders, cloud, tmp_path, fake_gcs_address, monkeypatch):
    """Spark reads and writes them through Google's own connector."""
    import pyspark

    from airflow_provider_sml.cloud import jars

    try:
        paths = jars.fetch(pyspark.__version__, ["gcs"])
    except ConfigurationError as error:
        pytest.skip(f"no jars: {error}")
    for path in (tmp_path / "landing").rglob("*.csv"):
        cloud.storage.write(f"gs://shop/landing/{path.relative_to(tmp_path / 'landing')}", path.read_bytes())
    extra = {"location": "gs://shop/lake", "endpoint": fake_gcs_address, "project": cloud.project,
             "access_key": "anonymous", "catalog_uri": f"sqlite:///{tmp_path}/catalog.db"}  # fmt: skip
    connection = {"conn_type": "sml_lake", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_LAKE", json.dumps(connection))
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    cloud.dataproc.driver = local_spark(cloud, jars=[str(path) for path in paths])
    result = orders.run(poll=0.2, landing="gs://shop/landing", lake="shop_lake")
    assert result.state == "success", result.tasks
    assert result.results["etl"]["uri"].startswith("gs://shop/lake/")
    assert result.results["publish"]["total_rows"] == 400


def test_a_driver_that_blames_its_input_fails_once(orders, cloud, capfd):
    cloud.dataproc.driver = lambda batch: (
        3,
        "INFO reading\nSML-INPUT-ERROR: orders.csv lacks the columns ['weight']\n",
    )
    assert orders.run(retries=2).state == "failed"
    assert len(cloud.dataproc.batches) == 1
    assert "orders.csv lacks the columns" in capfd.readouterr().out


def test_a_driver_that_died_is_followed_by_another_and_says_why(orders, cloud, capfd):
    cloud.faults.add("fail", "CreateBatch", reason="java.lang.OutOfMemoryError: Java heap space", times=2)
    assert orders.run(retries=1).state == "failed"
    assert [name[-2:] for name in cloud.dataproc.batches] == ["-1", "-2"]
    assert "OutOfMemoryError" in capfd.readouterr().out


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "throttle", "quota"])
def test_a_submit_that_is_not_answered_makes_one_batch(orders, cloud, fault):
    cloud.faults.add(fault, "CreateBatch")
    cloud.faults.add("fail", "CreateBatch")
    orders.run()
    assert len(cloud.dataproc.batches) == 1


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_retry_after_a_crash_attaches_to_the_batch(orders, cloud, deferrable):
    """The first try loses sight of the batch, which runs on; the next one finds it and tells how it ended."""
    cloud.faults.add("fail", "CreateBatch")
    cloud.faults.add("server_error", "GetBatch", times=11)
    cloud.clock.per_call = 5
    assert orders.run(retries=1, deferrable=deferrable).state == "failed"
    assert len(cloud.dataproc.batches) == 1
    assert cloud.calls.count("CreateBatch") == 1
    assert cloud.bill.running() == []


def test_a_task_past_its_deadline_cancels_its_batch(orders, cloud, monkeypatch):
    cloud.clock.per_call = 1
    text = DAG_FILE.replace("poll_interval={poll}", "poll_interval={poll}, deadline=timedelta(seconds=0.2)")
    monkeypatch.setitem(globals(), "DAG_FILE", text)
    assert orders.run().state == "failed"
    cloud.clock.advance(60)
    assert cloud.calls.count("CancelOperation") == 1
    assert cloud.bill.running() == []


def test_a_wrong_place_or_setting_is_named_and_nothing_is_started(orders, cloud, capfd):
    assert orders.run(place="dataprok").state == "failed"
    assert "did you mean dataproc" in capfd.readouterr().out
    assert orders.run(code="s3://code").state == "failed"
    assert "expected: code: a folder in gs://" in capfd.readouterr().out
    assert orders.run(servise_account="x").state == "failed"
    assert "servise_account" in capfd.readouterr().out
    assert orders.run(privacy={"hash": "customer_key"}).state == "failed"
    assert "an id in Secret Manager for SML_PRIVACY_KEYS" in capfd.readouterr().out
    assert orders.run(conf={"spark.driver.cores": "5"}, retries=2).state == "failed"
    assert "one of 4, 8, 16" in capfd.readouterr().out
    assert cloud.calls.count("CreateBatch") == 1
    assert cloud.dataproc.batches == {}


def test_credentials_go_to_no_store_but_google_s_or_one_on_this_machine(orders, cloud, monkeypatch, capfd):
    forget_clients()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.example.com")
    assert orders.run().state == "failed"
    assert "STORAGE_EMULATOR_HOST leads away from this machine" in capfd.readouterr().out
    assert cloud.calls == []


def test_the_project_is_the_connection_s_own_or_given(orders, cloud, monkeypatch):
    cloud.faults.add("fail", "CreateBatch", times=2)
    orders.run(project="other-project")
    orders.run()
    assert [name.split("/")[1] for name in cloud.dataproc.batches] == ["other-project", cloud.project]
