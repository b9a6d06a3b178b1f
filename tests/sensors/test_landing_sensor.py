"""The sensor of landed files: it waits for every file of every day, and not for what can never come."""

import asyncio
import datetime as dt
import json
import re
import threading
import time

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.etl.landing import Completeness, look
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.versions import roll_back
from airflow_provider_sml.sensors.landing import LandedFilesSensor
from airflow_provider_sml.sensors.table import PublishedDaysSensor
from airflow_provider_sml.triggers.poll import PollTrigger
from tests import shops
from tests.ml import lake_tables

FIRST, SECOND = shops.days(2)

DAG_FILE = """
from airflow.sdk import DAG
from airflow_provider_sml.sensors.landing import LandedFilesSensor
from tests import shops

with DAG("landing", params={{"day": "{day}"}}):
    LandedFilesSensor(
        task_id="wait", dataset=shops.make_spec({root!r}).dataset, places={{"landing": {root!r} + "/landing"}},
        first="{{{{ params.day }}}}", last="{last}", mode="{mode}", deferrable={deferrable},
        poke_interval=0.2, timeout=1,
    )
"""


@pytest.fixture
def sensor(tmp_path):
    def sensor(first=FIRST, last=SECOND, places=None):
        dataset = shops.make_spec(tmp_path).dataset
        places = {"landing": str(tmp_path / "landing")} if places is None else places
        return LandedFilesSensor(task_id="wait", dataset=dataset, places=places, first=str(first), last=str(last))

    return sensor


def test_it_waits_for_every_file_of_every_day(sensor, tmp_path):
    landing = tmp_path / "landing"
    assert sensor().poke({}).is_done is False
    shops.write_day(landing, FIRST)
    assert sensor(last=FIRST).poke({}).is_done is True
    assert sensor().poke({}).is_done is False
    shops.write_day(landing, SECOND)
    assert sensor().poke({}).is_done is True


@pytest.mark.parametrize("missing", [f"orders/{SECOND}.csv", f"weather/{FIRST}.csv", "shops.csv"])
def test_the_files_of_look_ups_are_waited_for_too(sensor, tmp_path, missing):
    for day in (FIRST, SECOND):
        shops.write_day(tmp_path / "landing", day)
    path = tmp_path / "landing" / missing
    path.unlink()
    assert sensor().poke({}).is_done is False
    path.mkdir()  # something of that name that is no file
    assert sensor().poke({}).is_done is False


def test_a_file_that_is_being_written_under_another_name_does_not_count(sensor, tmp_path):
    path = shops.write_day(tmp_path / "landing", FIRST)
    part = path.rename(path.with_suffix(".csv.part"))
    assert sensor(last=FIRST).poke({}).is_done is False
    part.rename(path)
    assert sensor(last=FIRST).poke({}).is_done is True


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"first": "March"}, "March"),
        ({"first": SECOND, "last": FIRST}, str(SECOND)),
        ({"places": {"elsewhere": "/x"}}, "names a place that is not given"),
    ],
)
def test_what_waiting_does_not_mend_fails_at_once(sensor, wrong, said):
    with pytest.raises(AirflowFailException, match=said):
        sensor(**wrong).poke({})


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_it_takes_its_days_from_templates(dag_project, tmp_path, mode):
    shops.write_day(tmp_path / "landing", FIRST)
    text = DAG_FILE.format(root=str(tmp_path), day=FIRST, last=FIRST, mode=mode, deferrable=False)
    assert dag_project.run(dag_project.write("landing.py", text), "landing").state == "success"


def test_a_file_that_does_not_come_in_time_fails_the_task(dag_project, tmp_path):
    text = DAG_FILE.format(root=str(tmp_path), day=FIRST, last=FIRST, mode="poke", deferrable=False)
    assert dag_project.run(dag_project.write("landing.py", text), "landing").state == "failed"


def test_it_tells_what_landed_and_how_late(sensor, tmp_path):
    shops.write_day(tmp_path / "landing", FIRST)
    told = sensor(last=FIRST).poke({}).xcom_value
    size = sum(path.stat().st_size for path in (tmp_path / "landing").rglob("*.csv"))
    assert (told["files"], told["bytes"]) == (3, size)
    ended = dt.datetime.combine(FIRST, dt.time(), dt.UTC) + dt.timedelta(days=1)
    assert told["late_seconds"] == round(max(0, (dt.datetime.fromisoformat(told["newest"]) - ended).total_seconds()))


# --- rules of completeness --------------------------------------------------------------------------------------------


def landed(path, now=None, **rule):
    return look([str(path)], Completeness(**rule), now or dt.datetime.now(dt.UTC))


@pytest.fixture(params=["disk", "s3", "gcs"])
def place(request, tmp_path):
    """An empty folder on a disk, S3 and Google Cloud Storage."""
    if request.param == "disk":
        return tmp_path
    store = request.getfixturevalue("s3_store" if request.param == "s3" else "gcs_store")
    bucket = store.bucket()
    storage.mount(bucket, store.store)
    return storage.place(bucket)


def put(place, name, text="x"):
    storage.write(place / name, text)


def test_a_marker_a_count_and_silence_are_waited_for(place):
    folder = f"{str(place).rstrip('/')}/orders/2026-03-01"
    assert landed(f"{folder}/*.json").waiting == 1
    for number in range(2):
        put(place, f"orders/2026-03-01/part-{number}.json", "{}")
    assert landed(f"{folder}/*.json").files == 2
    few = landed(f"{folder}/*.json", count=3)
    assert few.waiting == 1 and few.missing == [f"{folder}/*.json: 2 of 3 files"]
    assert landed(folder, marker="_SUCCESS").missing == [f"{folder}: no _SUCCESS yet"]
    put(place, "orders/2026-03-01/_SUCCESS", "")
    whole = landed(folder, marker="_SUCCESS", count=2)
    assert (whole.waiting, whole.files, whole.bytes) == (0, 2, 4)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    assert landed(folder, quiet=3600).waiting == 1
    assert landed(folder, now=later, quiet=60).waiting == 0
    assert landed(f"{place}//orders/2026-03-01/part-0.json").files == 1  # a place with a slash at its end
    assert landed(f"{place}/orders/2026-03-01/part-9.json").waiting == 1


def test_a_rule_that_cannot_be_is_refused():
    for rule in ({"count": 0}, {"quiet": -1}, {"marker": "a/b"}):
        with pytest.raises(ConfigurationError, match="count from 1"):
            Completeness(**rule)


# --- in the triggerer -------------------------------------------------------------------------------------------------


def test_deferred_it_gives_the_same_and_the_same_end(dag_project, tmp_path):
    text = DAG_FILE.format(root=str(tmp_path), day=FIRST, last=FIRST, mode="poke", deferrable=True)
    file = dag_project.write("landing.py", text)
    assert dag_project.run(file, "landing").state == "failed"  # nothing comes before the deadline
    shops.write_day(tmp_path / "landing", FIRST)
    found = dag_project.run(file, "landing")
    assert found.state == "success" and found.results["wait"]["files"] == 3


def events(trigger):
    async def collect():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def test_the_trigger_waits_until_the_file_is_there(tmp_path):
    arguments = {"paths": [str(tmp_path / "a.csv")], "rule": {}, "lake": str(tmp_path / "lake")}
    path, values = PollTrigger("landed", arguments, 0.05, time.time() + 20).serialize()
    assert path == "airflow_provider_sml.triggers.poll.PollTrigger"
    threading.Timer(0.3, (tmp_path / "a.csv").write_text, ("x",)).start()
    [event] = events(PollTrigger(**json.loads(json.dumps(values))))
    assert event["done"] and event["facts"]["files"] == 1


@pytest.mark.parametrize(
    ("arguments", "deadline", "said", "retryable"),
    [
        ({"paths": ["/nowhere/a.csv"], "rule": {}, "lake": "/tmp/x"}, 0, "deadline has passed.*not whole", False),
        ({"paths": ["/nowhere/a.csv"], "rule": {"count": 0}, "lake": "/tmp/x"}, None, "completeness rule", False),
        ({"paths": 7, "rule": {}, "lake": "/tmp/x"}, None, "looks in a row failed", True),
    ],
)
def test_the_trigger_gives_up_with_the_reason(arguments, deadline, said, retryable):
    [event] = events(PollTrigger("landed", arguments, 0.0, deadline))
    assert not event["done"] and event["retryable"] is retryable
    assert re.search(said, event["told"])


# --- days of a table --------------------------------------------------------------------------------------------------


def test_days_and_newer_snapshots_of_a_table(tmp_path, shop_lake):
    def poke(**changes):
        settings = {"table": "orders", "lake": str(shop_lake.location)} | changes
        return PublishedDaysSensor(task_id="wait", **settings).poke({})

    last = max(shop_lake.days("orders"))
    snapshot = shop_lake.snapshot_id("orders")
    assert poke().xcom_value == {"snapshot_id": snapshot, "rows": sum(shop_lake.days("orders").values())}
    assert poke(first=str(last)).xcom_value["rows"] == shop_lake.days("orders")[last]
    assert not poke(first=str(last), last=str(last + dt.timedelta(days=1))).is_done
    assert not poke(newer_than=snapshot).is_done
    assert poke(newer_than="1").is_done
    assert not poke(lake=str(tmp_path / "empty")).is_done
    for wrong in ({"newer_than": "latest"}, {"first": "March"}):
        with pytest.raises(AirflowFailException):
            poke(**wrong)


def test_a_snapshot_that_a_roll_back_brought_back_is_not_newer(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    first, second = (lake_tables.publish(lake, lake_tables.rows(FIRST, n), first=FIRST).snapshot_id for n in (3, 4))

    def newer(than):
        sensor = PublishedDaysSensor(task_id="wait", table="orders", lake=str(lake.location), newer_than=than)
        return sensor.poke({}).is_done

    assert newer(first) and not newer(second)
    roll_back(lake, "orders", first)
    assert not newer(first) and not newer(second)
    lake_tables.publish(lake, lake_tables.rows(FIRST, 5), first=FIRST)
    assert newer(first) and newer(second)
