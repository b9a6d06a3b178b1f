"""The tasks of a night: days that are not there, what is removed, and that a copy in BigQuery is asked first."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.refs import PerformanceRef, ReportRef, SnapshotRef
from tests.ml.test_lake_shops import publish, stored_day
from tests.trained import DAYS, NIGHT, STORM

pytestmark = pytest.mark.usefixtures("airflow_db")


@pytest.fixture
def places(tmp_path, shop_model, shop_sample):
    """A lake of its own with the night and the storm, a champion, and a folder of reports."""
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {day: stored_day(day, 60) for day in DAYS} | {NIGHT: stored_day(NIGHT, 60)})
    publish(lake, {STORM: stored_day(STORM, 60, stormy=True)})
    registry = Registry(str(tmp_path / "mlflow"))
    lineage = {"sample_uri": shop_sample.uri, "gate": "passed"}
    version = registry.register("orders", shop_model, np.zeros((1, 5)), lineage=lineage)
    registry.set_alias(version, CHAMPION)
    return {"name": "orders", "lake": str(tmp_path / "lake"), "mlflow": str(tmp_path / "mlflow")}


def night(places, day, reports, **settings):
    """Score and report a day, as the DAG does; gives the three results."""
    from airflow_provider_sml.operators.monitoring import DriftReportOperator, ScorePartitionsOperator
    from airflow_provider_sml.operators.performance import PerformanceReportOperator

    asked = {**places, "first": str(day)}
    scores = ScorePartitionsOperator(task_id="score", **asked).execute({})
    drift = DriftReportOperator(
        task_id="drift", **asked, reports=str(reports), share=0.15, numeric=0.5, category=0.2, **settings
    ).execute({})
    worth = PerformanceReportOperator(task_id="performance", **asked, reports=str(reports)).execute({})
    return SnapshotRef.load(scores), ReportRef.load(drift), PerformanceRef.load(worth)


def test_a_night_that_was_never_published_is_reported_and_fails_nothing(places, tmp_path):
    absent = STORM + dt.timedelta(days=1)
    scores, drift, worth = night(places, absent, tmp_path / "reports")
    assert (scores.rows, drift.rows, drift.verdict, worth.day) == (0, 0, "quiet", str(absent))
    told = json.loads((tmp_path / "reports" / "orders" / "nights" / f"{absent}.json").read_text())
    assert [finding["kind"] for finding in told["findings"]] == ["missing_partitions", "empty_night"]


def test_old_reports_and_profiles_are_removed_but_not_those_of_the_window(places, tmp_path):
    reports, profiles = tmp_path / "reports", Path(places["lake"], "profiles", "orders")
    days = [DAYS[-1], NIGHT, STORM]
    for day in days:
        _, drift, _ = night(places, day, reports, reference="trailing 8 days", keep=1, segment="city", min_rows=5)
    assert drift.verdict == "drift" and "rain" in drift.drifted
    left = sorted(path.name for path in (reports / "orders" / "nights").iterdir())
    assert left == [f"{day}.{kind}" for day in days[1:] for kind in ("html", "json")]
    kept = sorted(path.name for path in profiles.iterdir() if any(path.iterdir()))
    assert kept[0] == str(STORM - dt.timedelta(days=8)) and kept[-1] == str(STORM)
    told = json.loads((reports / "orders" / "nights" / f"{STORM}.json").read_text())
    assert set(told["segments"]) == {"Bern", "Oslo", "Rome"} and told["nights"] == 8


def test_a_sample_of_a_night_is_drawn_from_all_its_rows(places, tmp_path):
    _, drift, _ = night(places, STORM, tmp_path / "reports", source="sample", rows=50)
    told = json.loads((tmp_path / "reports" / "orders" / "nights" / f"{STORM}.json").read_text())
    assert (drift.verdict, told["rows"], told["reference_rows"]) == ("drift", 60, 1320) and "rain" in drift.drifted
