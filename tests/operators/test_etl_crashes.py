"""The ETL whose processes are killed or whose disk is full: readers keep the old rows, a retry ends in the new ones."""

import asyncio
import json
import os
import subprocess
from types import SimpleNamespace

import pytest

from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger
from tests import shops
from tests.crashes import Shop, at_the_first_write, landed
from tests.jobs import until
from tests.processes import PROCESSES

OLD, NEW = shops.days(2)
KEY = "hunter2-0123456789abcdef"
CONTEXT = {"ti": SimpleNamespace(dag_id="crashes", task_id="etl", run_id="one", map_index=-1, try_number=1)}


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


def operator_of(root, **settings):
    """The ETL of the second day, outside of a DAG run, so that two processes can be two tries of one task."""
    from airflow_provider_sml.operators.etl import SparkEtlOperator

    return SparkEtlOperator(
        task_id="etl", dataset=shops.make_spec(root).dataset, places={"landing": f"{root}/landing"},
        lake=f"{root}/lake", first=str(NEW), last=str(NEW), master="local[1]", poll_interval=0.1, **settings,
    )  # fmt: skip


def _try(root):
    operator_of(root).execute(CONTEXT)


@pytest.mark.slow
def test_a_task_process_that_is_killed_while_the_driver_works(dag_project, tmp_path):
    shop = Shop(dag_project, tmp_path)
    shop.land(OLD, NEW)
    task = PROCESSES.Process(target=_try, args=(tmp_path,))
    task.start()
    try:
        assert until(lambda: shop.java())
        driver = shop.java()
        driver.suspend()
        task.kill()
        task.join(30)
        driver.resume()
        staged = operator_of(tmp_path).execute(CONTEXT)
        assert shop.drivers() == [1] and staged["rows_good"] == 200
        assert until(lambda: shop.java() is None)
    finally:
        shop.end()


@pytest.mark.slow
def test_a_deferred_etl_that_is_killed_leaves_nothing_running(dag_project, tmp_path):
    from airflow.sdk.exceptions import TaskDeferred

    shop = Shop(dag_project, tmp_path)
    shop.land(OLD, NEW)
    try:
        with pytest.raises(TaskDeferred) as deferred:
            operator_of(tmp_path, deferrable=True).execute(CONTEXT)
        assert until(lambda: shop.java())
        trigger = deferred.value.trigger
        assert isinstance(trigger, RemoteJobTrigger)
        asyncio.run(trigger.on_kill())
        assert shop.java() is None and shop.lake.tables() == []
        assert shop.drivers() == [1]
    finally:
        shop.end()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB for the files of the table's runs; gives a function that leaves it some bytes."""
    data = tmp_path / "lake" / "lake" / "orders" / "data"
    data.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(data)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here (only root can): {mounted.stderr.decode().strip()}")

    def leave(free):
        filler = data / "_filler"
        filler.unlink(missing_ok=True)
        left = os.statvfs(data)
        if free is not None:
            filler.write_bytes(b"0" * (left.f_bavail * left.f_frsize - free))

    yield leave
    subprocess.run(["umount", "-l", str(data)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_while_spark_writes(small_disk, shop, capfd):
    before = shop.published()
    rows = shops.make_rows(NEW, 4000)
    shops.write_day(shop.root / "landing", NEW, rows)
    small_disk(64 * 1024)
    result = shop.run(NEW)
    assert result.tasks == {"etl": "failed", "publish": "upstream_failed"}
    assert "No space left on device" in capfd.readouterr().out
    assert shop.published() == before and shop.orders(OLD) == landed(OLD)
    assert shop.drivers() == [1, 1], "it was the second day's driver whose disk was full"
    small_disk(None)
    assert shop.run(NEW).state == "success"
    assert shop.lake.days("orders") == {OLD: 200, NEW: 4000}
