"""The ETL in Spark's cluster mode on a fake YARN, which runs the driver through Spark on this machine."""

import json

import pytest

from airflow_provider_sml.hooks.clients import forget_clients
from airflow_provider_sml.testing.yarn import fake_yarn, local_driver
from tests import shops
from tests.crashes import Shop, landed

DAY = shops.FIRST
KEY = "hunter2-0123456789abcdef"


@pytest.fixture
def cluster(monkeypatch):
    forget_clients()
    with fake_yarn() as cluster:
        monkeypatch.setenv("SPARK_HOME", str(cluster.spark_home))
        monkeypatch.setenv("AIRFLOW_CONN_YARN_DEFAULT", json.dumps({"conn_type": "http", "login": "etl"}))
        monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
        yield cluster
    forget_clients()


@pytest.fixture
def provider(spark, tmp_path):
    """A real credential provider with the keys, as ``hadoop credential create`` makes it."""
    address = f"localjceks://file{tmp_path}/etl.jceks"
    java = spark.sparkContext._jvm
    conf = java.org.apache.hadoop.conf.Configuration()
    conf.set("hadoop.security.credential.provider.path", address)
    made = java.org.apache.hadoop.security.alias.CredentialProviderFactory.getProviders(conf).get(0)
    value = json.dumps({"customer_key": KEY})
    characters = spark.sparkContext._gateway.new_array(java.char, len(value))
    for at, character in enumerate(value):
        characters[at] = character
    made.createCredentialEntry("privacy-keys", characters)
    made.flush()
    return address


@pytest.fixture
def shop(dag_project, cluster, provider, tmp_path):
    settings = {
        "on": "yarn", "resource_manager": cluster.url, "hadoop_conf": str(cluster.hadoop_conf),
        "credential_provider": provider, "secret_aliases": {"SML_PRIVACY_KEYS": "privacy-keys"},
    }  # fmt: skip
    shop = Shop(dag_project, tmp_path, spark=settings)
    shop.land(DAY)
    yield shop
    shop.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_is_staged_by_an_application_and_published(shop, cluster, capfd):
    cluster.driver = local_driver()
    result = shop.run(DAY)
    assert result.state == "success", (result.tasks, cluster.logs)
    assert shop.orders(DAY) == landed(DAY)
    [app] = cluster.apps.values()
    assert app["finalStatus"] == "SUCCEEDED" and "dag_id:crashes" in app["applicationTags"]
    assert KEY not in json.dumps([cluster.submitted, cluster.apps, cluster.logs])
    assert "1.00 vCPU-hours, 2.00 GB-hours" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_died_is_followed_by_another_and_the_old_state_stays(shop, cluster, capfd):
    cluster.driver = lambda given, killed: (1, "java.lang.OutOfMemoryError: Java heap space")
    shop.write(retries=1)
    assert shop.run(DAY).state == "failed"
    assert len(cluster.apps) == 2 and shop.lake.tables() == []
    assert "OutOfMemoryError" in capfd.readouterr().out
