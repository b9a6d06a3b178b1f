"""The task that has Spark profile the days of a night's report: before the report, which then reads no row of them."""

import json
import shutil
from pathlib import Path

import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.refs import ProfilesRef
from tests.ml.test_profiles import same
from tests.ml.test_spark_profiles import stored
from tests.operators.test_monitoring_operators import places as places
from tests.trained import DAYS, NIGHT, STORM

pytestmark = pytest.mark.usefixtures("airflow_db")

DAG_FILE = """
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_provider_sml.operators.monitoring import DriftReportOperator
from airflow_provider_sml.operators.profiles import ProfilePartitionsOperator

asked = {asked!r}

@task
def hide():
    Path({data!r}).rename({hidden!r})

with DAG("night"):
    profile = ProfilePartitionsOperator(
        task_id="profile", **asked, master="local[2]", poll_interval=0.2, deferrable=True,
    )
    profile >> hide() >> DriftReportOperator(task_id="drift", **asked, **{rules!r})
"""


def drift(asked, rules):
    """The report alone, which profiles by itself what has no profile."""
    from airflow_provider_sml.operators.monitoring import DriftReportOperator

    DriftReportOperator(task_id="drift", **asked, **rules).execute({})
    return report(rules)


def report(rules):
    """What was told of the storm, its numbers to six digits: the engines add them up in another order."""
    path = Path(rules["reports"], "orders", "nights", f"{STORM}.json")
    return json.loads(path.read_text(), parse_float=lambda digits: float(f"{float(digits):.6g}"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_report_reads_no_row_of_a_day_that_spark_has_profiled(dag_project, places, tmp_path):
    from airflow_provider_sml.ml.monitoring import profile_store

    lake = Lake(places["lake"])
    data, hidden = lake.folder("orders") / "data", tmp_path / "hidden"
    asked = {**places, "first": str(STORM), "reference": "trailing 2 days", "segment": "city"}
    rules = {"share": 0.15, "numeric": 0.5, "category": 0.2, "min_rows": 5, "label_known_after": "60 days",
             "reports": str(tmp_path / "reports")}  # fmt: skip
    text = DAG_FILE.format(asked=asked, rules=rules, data=str(data), hidden=str(hidden))
    result = dag_project.run(dag_project.write("night.py", text), "night")
    assert result.state == "success", result.tasks
    made = ProfilesRef.load(result.results["profile"])
    assert made.features == made.scores == [str(day) for day in (DAYS[-1], NIGHT, STORM)]
    assert [path.name for path in hidden.iterdir() if path.name.startswith("night")] == [], "what the job left is gone"
    told = report(rules)
    assert told["verdict"] == "drift" and "rain" in told["drifted"] and told["rows"] == 60

    hidden.rename(data)
    by_spark = shutil.copytree(lake.root / "profiles", tmp_path / "by-spark")
    names = stored(lake)
    shutil.rmtree(lake.root / "profiles")
    assert drift(asked, rules) == told
    assert stored(lake).keys() == names.keys()
    for name in names:
        same(*(profile_store.load(root / "orders" / name) for root in (by_spark, lake.root / "profiles")))


def test_what_has_its_profile_or_is_not_published_needs_no_job(places, tmp_path):
    from airflow_provider_sml.operators.profiles import ProfilePartitionsOperator

    lake = Lake(places["lake"])
    asked = {**places, "first": str(STORM), "reference": "trailing 3 days"}
    absent = {**places, "first": "2031-01-01", "reference": "trailing 3 days"}
    told = ProfilePartitionsOperator(task_id="profile", **absent).execute({})
    assert ProfilesRef.load(told) == ProfilesRef("orders", "orders", [], [])
    drift(asked, {"reports": str(tmp_path / "reports")})
    before = stored(lake)
    told = ProfilePartitionsOperator(task_id="profile", **asked).execute({})
    assert ProfilesRef.load(told) == ProfilesRef("orders", "orders", [], [])
    assert stored(lake) == before and not Path(places["lake"], "jobs").exists()
