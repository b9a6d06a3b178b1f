"""The ETL on a standalone Spark master with workers of their own: as it is, and with processes killed."""

import json

import pytest

from tests import shops
from tests.crashes import Shop, at_the_first_write, landed
from tests.jobs import until

EXECUTOR, DRIVER = shops.days(2)
KEY = "hunter2-0123456789abcdef"


@pytest.fixture
def shop(dag_project, spark_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
    shop = Shop(dag_project, tmp_path, master=spark_cluster.master, spark_conf=spark_cluster.conf)
    shop.land(EXECUTOR, DRIVER)
    yield shop
    shop.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_days_are_ingested_on_the_cluster_though_an_executor_and_a_driver_are_killed(shop, spark_cluster):
    killed = []

    def kill_executors(driver):
        for executor in spark_cluster.executors():
            killed.append(executor.pid)
            executor.kill()
        driver.resume()

    thread, seen = at_the_first_write(shop, kill_executors)
    result = shop.run(EXECUTOR)
    thread.join()
    assert killed and seen["half"]
    assert result.state == "success", result.tasks
    assert shop.orders(EXECUTOR) == landed(EXECUTOR)
    assert shop.drivers() == [1], "the driver went on with another executor"

    shop.write(retries=1)
    before = shop.published()
    thread, seen = at_the_first_write(shop, lambda driver: driver.kill())
    result = shop.run(DRIVER)
    thread.join()
    assert seen["half"] and seen["published"] == before and result.state == "success", result.tasks
    assert [shop.orders(day) == landed(day) for day in (EXECUTOR, DRIVER)] == [True] * 2
    assert len(shop.lake.snapshots("orders")) == 2 and sorted(shop.drivers()) == [1, 2]
    assert until(lambda: not spark_cluster.applications() and not spark_cluster.executors())
    assert shop.java() is None
