"""What is private stays so: neither a hash's key nor a raw value is left in anything that an ingest makes."""

import json
import threading

import psutil
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.testing.plugin import HOME
from tests import shops
from tests.crashes import Shop
from tests.jobs import until

DAY, NEXT = shops.days(2)
KEY = "f5d1c2-key-of-the-private-column"
NAME = "Lovelace-Ada-1815"


@pytest.fixture
def shop(dag_project, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_CUSTOMER_KEY", json.dumps({"conn_type": "generic", "password": KEY}))
    shop = Shop(dag_project, tmp_path)
    raw = shops.make_rows(DAY, 60)
    for number, row in enumerate(raw):
        row["customer"] = f"{NAME}-{number}"
    raw[3]["weight"] = "heavy"
    raw[4]["city"] = "Nowhere"
    path = shops.write_day(tmp_path / "landing", DAY, [*raw, raw[7]])
    with path.open("a") as file:
        file.write("77777," + path.read_text().splitlines()[9] + "\n")  # moved by one: the name is elsewhere
    yield shop
    shop.end()


@pytest.mark.slow
def test_no_key_and_no_private_value_is_left_anywhere(shop, capfd, caplog):
    arguments, ended = set(), threading.Event()

    def watch():
        while not ended.wait(0.2):
            for process in psutil.process_iter(["cmdline"]):
                arguments.add(" ".join(process.info["cmdline"] or []))

    thread = threading.Thread(target=watch)
    thread.start()
    result = shop.run(DAY)
    ended.set()
    thread.join()
    assert result.state == "success", result.tasks
    assert shop.lake.days("orders") == {DAY: 58} and shop.lake.days("orders_quarantine") == {DAY: 4}

    said = capfd.readouterr()
    kept = {"stdout": said.out.encode(), "stderr": said.err.encode(), "log": caplog.text.encode()}
    kept |= {line: line.encode() for line in arguments}
    kept |= {"results": json.dumps(result.results).encode()}
    # The database holds XCom, rendered fields and serialized DAGs; the home, logs and DAG files.
    made = [path for place in (HOME, shop.root) for path in place.rglob("*") if path.is_file()]
    kept |= {str(path): path.read_bytes() for path in made if shop.root / "landing" not in path.parents}
    tables = [path for path in made if path.suffix == ".parquet"]
    kept |= {f"rows of {path}": str(pq.read_table(path, partitioning=None).to_pylist()).encode() for path in tables}
    assert any("spark-submit" in line for line in arguments) and len(tables) >= 2
    assert [name for name in kept if name.endswith("plan.json")] and [name for name in kept if "/jobs/" in name]
    assert [name for name, content in kept.items() if KEY.encode() in content] == []
    assert [name for name, content in kept.items() if NAME.encode() in content] == []
    for table in ("orders", "orders_quarantine"):
        for task in shop.lake.load(table).scan().plan_files():
            bounds = [*(task.file.lower_bounds or {}).values(), *(task.file.upper_bounds or {}).values()]
            assert not any(b"Lovelace" in bound for bound in bounds)
    fields = {field.name: field.field_id for field in shop.lake.load("orders").schema().fields}
    [file] = [task.file for task in shop.lake.load("orders").scan().plan_files()]
    assert fields["customer"] not in file.lower_bounds and fields["weight"] in file.lower_bounds
    assert until(lambda: shop.java() is None)
