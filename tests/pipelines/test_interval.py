"""Which days a run is about: the person's choice, the events, the run's interval."""

import datetime as dt
from types import SimpleNamespace

import pytest

from airflow_provider_sml.pipelines.interval import deploy_version, ingest_day, monitor_day


def moment(day, hour=0):
    return dt.datetime(2026, 3, day, hour, tzinfo=dt.UTC)


def run(start=None, end=None, logical=None, after=None):
    return SimpleNamespace(
        data_interval_start=start, data_interval_end=end, logical_date=logical, run_after=after or moment(20)
    )


def days(params, dag_run):
    return [ingest_day(which, params, dag_run) for which in ("first", "last")]


@pytest.mark.parametrize(
    ("dag_run", "first", "last"),
    [
        (run(moment(4), moment(5)), "2026-03-04", "2026-03-04"),  # daily at midnight
        (run(moment(4, 2), moment(5, 2)), "2026-03-04", "2026-03-04"),  # daily in the night
        (run(moment(2), moment(9)), "2026-03-02", "2026-03-08"),  # weekly: no day is left out
        (run(moment(6, 3), moment(9, 3)), "2026-03-06", "2026-03-08"),  # on working days: Monday's brings the weekend
        (
            run(moment(5, 12), moment(5, 13)),
            "2026-03-04",
            "2026-03-04",
        ),  # hourly: a day that has not ended is not taken
        (run(logical=moment(9)), "2026-03-08", "2026-03-08"),
        (run(after=moment(15, 7)), "2026-03-14", "2026-03-14"),
    ],
)
def test_a_run_takes_the_days_that_ended_in_its_interval(dag_run, first, last):
    assert days({}, dag_run) == [first, last]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"first_day": "2026-01-01", "last_day": "2026-01-31"}, ["2026-01-01", "2026-01-31"]),
        ({"first_day": "2026-01-01", "last_day": None}, ["2026-01-01", "2026-01-01"]),
        ({"first_day": None, "last_day": "2026-01-31"}, ["2026-01-31", "2026-01-31"]),
        ({"first_day": None, "last_day": None}, ["2026-03-04", "2026-03-04"]),
    ],
)
def test_a_choice_comes_first(params, expected):
    assert days(params, run(moment(4), moment(5))) == expected


def event(day=1, **extra):
    return SimpleNamespace(extra=extra, timestamp=moment(day))


def test_monitoring_takes_all_days_that_were_published():
    events = {"published": [event(first="2026-03-02", last="2026-03-02"), event(first="2026-03-01", last="2026-03-05")]}
    assert monitor_day("first", {}, events) == "2026-03-01"
    assert monitor_day("last", {}, events) == "2026-03-05"
    assert monitor_day("first", {"day": "2026-01-01"}, events) == "2026-01-01"
    assert monitor_day("last", {"day": "2026-01-01"}, events) == "2026-01-01"
    assert monitor_day("last", {"day": "2026-01-01", "last_day": "2026-01-03"}, events) == "2026-01-03"
    assert monitor_day("first", {"day": None, "last_day": "2026-01-03"}, events) == "2026-01-03"
    assert monitor_day("first", {"day": None}, {}) == ""
    assert monitor_day("first", {}, {"published": [SimpleNamespace(extra=None), event()]}) == ""


def test_deployment_takes_the_version_that_passed_last():
    events = {"passed": [event(day=3, version="12"), event(day=2, version="9"), event(day=4)]}
    assert deploy_version({}, events) == "12"
    assert deploy_version({"version": "7"}, events) == "7"
    assert deploy_version({"version": None}, {}) == ""
