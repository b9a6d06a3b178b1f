"""The sensor of landed files: it waits for every file of every day, and not for what can never come."""

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_sml.sensors.landing import LandedFilesSensor
from tests import shops

FIRST, SECOND = shops.days(2)

DAG_FILE = """
from airflow.sdk import DAG
from airflow_provider_sml.sensors.landing import LandedFilesSensor
from tests import shops

with DAG("landing", params={{"day": "{day}"}}):
    LandedFilesSensor(
        task_id="wait", dataset=shops.make_spec({root!r}).dataset, places={{"landing": {root!r} + "/landing"}},
        first="{{{{ params.day }}}}", last="{last}", mode="{mode}", poke_interval=0.2, timeout=1,
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
    assert sensor().poke({}) is False
    shops.write_day(landing, FIRST)
    assert sensor(last=FIRST).poke({}) is True
    assert sensor().poke({}) is False
    shops.write_day(landing, SECOND)
    assert sensor().poke({}) is True


@pytest.mark.parametrize("missing", [f"orders/{SECOND}.csv", f"weather/{FIRST}.csv", "shops.csv"])
def test_the_files_of_look_ups_are_waited_for_too(sensor, tmp_path, missing):
    for day in (FIRST, SECOND):
        shops.write_day(tmp_path / "landing", day)
    path = tmp_path / "landing" / missing
    path.unlink()
    assert sensor().poke({}) is False
    path.mkdir()  # something of that name that is no file
    assert sensor().poke({}) is False


def test_a_file_that_is_being_written_under_another_name_does_not_count(sensor, tmp_path):
    path = shops.write_day(tmp_path / "landing", FIRST)
    part = path.rename(path.with_suffix(".csv.part"))
    assert sensor(last=FIRST).poke({}) is False
    part.rename(path)
    assert sensor(last=FIRST).poke({}) is True


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
    text = DAG_FILE.format(root=str(tmp_path), day=FIRST, last=FIRST, mode=mode)
    assert dag_project.run(dag_project.write("landing.py", text), "landing").state == "success"


def test_a_file_that_does_not_come_in_time_fails_the_task(dag_project, tmp_path):
    text = DAG_FILE.format(root=str(tmp_path), day=FIRST, last=FIRST, mode="poke")
    assert dag_project.run(dag_project.write("landing.py", text), "landing").state == "failed"
