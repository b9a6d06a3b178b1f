"""The ETL whose driver is killed while it writes: readers keep the old rows, a retry ends in the new ones."""

import json

import pytest

from tests import shops
from tests.crashes import Shop, at_the_first_write
from tests.jobs import until

OLD, NEW = shops.days(2)
KEY = "hunter2-0123456789abcdef"


@pytest.fixture
def shop(dag_project, tmp_path, monkeypatch):
    """A lake with one day published, and the next one landed."""
    monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
    shop = Shop(dag_project, tmp_path)
    shop.land(OLD, NEW)
    assert shop.run(OLD).state == "success"
    yield shop
    shop.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_while_it_writes(shop):
    before = shop.published()
    shop.write(retries=1)
    thread, seen = at_the_first_write(shop, lambda driver: driver.kill())
    result = shop.run(NEW)
    thread.join()
    assert seen["published"] == before and seen["half"]
    assert result.state == "success", result.tasks
    assert shop.lake.days("orders") == {OLD: 200, NEW: 200}
    assert len(shop.lake.snapshots("orders")) == 2
    half = str(seen["half"][0])
    assert not any(file.path.startswith(half) for file in shop.lake.files("orders"))
    assert sorted(shop.drivers()) == [1, 2]
    assert until(lambda: shop.java() is None)
