"""The ETL in Spark's cluster mode on a fake Kubernetes, which runs the driver's pod through Spark on this machine."""

import json

import pytest

from airflow_provider_sml.hooks.clients import forget_clients
from airflow_provider_sml.testing.kubernetes import fake_kubernetes, local_driver
from tests import shops
from tests.crashes import Shop, landed

DAY = shops.FIRST
KEY = "hunter2-0123456789abcdef"


@pytest.fixture
def cluster(monkeypatch):
    forget_clients()
    with fake_kubernetes() as cluster:
        connection = {"conn_type": "kubernetes", "extra": {"kube_config": cluster.kubeconfig()}}
        monkeypatch.setenv("AIRFLOW_CONN_MY_CLUSTER", json.dumps(connection))
        monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
        yield cluster
    forget_clients()


@pytest.fixture
def shop(dag_project, cluster, tmp_path):
    settings = {
        "on": "kubernetes", "image": "spark:4.1", "code": f"{tmp_path}/code", "connection": "my_cluster",
        "secret_refs": {"SML_PRIVACY_KEYS": "privacy:keys"},
        "conf": {"spark.executor.instances": "2", "spark.kubernetes.file.upload.path": str(tmp_path)},
    }  # fmt: skip
    shop = Shop(dag_project, tmp_path, spark=settings)
    shop.land(DAY)
    yield shop
    shop.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_day_is_staged_by_a_driver_in_a_pod_and_published(shop, cluster):
    cluster.driver = local_driver({"SML_PRIVACY_KEYS": json.dumps({"customer_key": KEY})})
    result = shop.run(DAY)
    assert result.state == "success", (result.tasks, cluster.logs)
    assert shop.orders(DAY) == landed(DAY)
    [pod] = cluster.pods().values()
    assert pod["metadata"]["labels"]["dag_id"] == "crashes" and pod["status"]["phase"] == "Succeeded"
    assert KEY not in json.dumps(list(cluster.objects.values()))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_died_is_followed_by_another_and_the_old_state_stays(shop, cluster, capfd):
    cluster.driver = lambda pod, data: (1, "java.lang.OutOfMemoryError: Java heap space")
    shop.write(retries=1)
    assert shop.run(DAY).state == "failed"
    assert len(cluster.pods()) == 2 and shop.lake.tables() == []
    assert "OutOfMemoryError" in capfd.readouterr().out
