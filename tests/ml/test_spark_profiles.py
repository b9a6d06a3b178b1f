"""Profiles of days made by the Spark application: those that DuckDB makes, under the same names, taken once."""

import datetime as dt
import json
import logging
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.etl import application
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import predictions, spark_profiles
from airflow_provider_sml.ml.monitoring.night_profiles import NightProfiles
from airflow_provider_sml.ml.monitoring.profile_store import ProfileStore
from airflow_provider_sml.ml.monitoring.reference import Reference
from tests.ml.test_lake_shops import publish, stored_day
from tests.ml.test_profiles import same
from tests.trained import DAYS, NIGHT, STORM

WANTED = [DAYS[-1], NIGHT, STORM]


@pytest.fixture(scope="module")
def scorer(shop_model):
    return Scorer(Bundle.read(Path(shop_model.uri)))


@pytest.fixture
def lake(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {day: stored_day(day, 60, stormy=day == STORM) for day in WANTED})
    return lake


@pytest.fixture
def nights(lake, scorer):
    return NightProfiles(lake, "orders", scorer, leave_out=["weekday"], segment="city")


@pytest.fixture
def execute(spark, lake):
    """Plans what lacks a profile and runs the application; gives the folder, which ``change`` may have changed."""

    def run(nights, days=WANTED, change=lambda plan: None):
        output = lake.stage("orders", "profile")
        assert spark_profiles.write_plan(lake, "orders", nights, nights.unread(days), output)
        plan = json.loads((output / "plan.json").read_text())
        change(plan)
        application.profile_days(spark, plan)
        return output

    return run


def stored(lake):
    """The files of the profiles of days, by their path in the store."""
    folder = lake.root / "profiles" / "orders"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_spark_makes_the_profiles_that_duckdb_makes_and_nothing_is_read_again(lake, nights, scorer, execute, tmp_path):
    asked = nights.unread([*WANTED, STORM + dt.timedelta(days=1)])
    assert sorted(asked.features) == sorted(asked.scores) == WANTED
    output = execute(nights)
    assert json.loads((output / "report.json").read_text())["by_sql"] == {}
    assert spark_profiles.take(lake, output) == (WANTED, WANTED, "")
    assert not any(nights.unread(WANTED))
    data = lake.folder("orders") / "data"
    data.rename(tmp_path / "hidden")
    made, names = nights.nights(WANTED), set(stored(lake))
    (tmp_path / "hidden").rename(data)
    shutil.rmtree(lake.root / "profiles")
    for day, profile in nights.nights(WANTED).items():
        same(made[day], profile)
        assert set(made[day].segments) == {"Bern", "Oslo", "Rome"} and "weekday" not in profile.columns
        for name, part in profile.segments.items():
            same(made[day].segments[name], part)
    assert set(stored(lake)) == names


def _too_large(plan):
    for day in plan["days"]:
        day["largest"] = 10**12


def _not_for_workers(plan):
    plan["asked"] = None


def _broken(plan):
    plan["asked"]["features"][0]["text"] = "nonsense("


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_too_large, "a file of"), (_not_for_workers, "only SQL computes"), (_broken, "Error")],
)
def test_what_workers_cannot_profile_is_counted_by_sql(lake, nights, execute, caplog, change, reason):
    with caplog.at_level(logging.INFO):
        assert spark_profiles.take(lake, execute(nights, [NIGHT], change)) == ([NIGHT], [NIGHT], "")
    [line] = [line for line in caplog.messages if "counted by SQL" in line]
    assert reason in line
    by_sql = nights.nights([NIGHT])[NIGHT]
    shutil.rmtree(lake.root / "profiles")
    wanted = nights.nights([NIGHT])[NIGHT]
    same(by_sql, wanted)
    for name, part in wanted.segments.items():
        same(by_sql.segments[name], part)


@pytest.mark.parametrize(
    ("master", "conf", "megabytes"),
    [
        ("local[2]", {}, 256), ("spark://host:7077", {"memory": "4g", "cores": "4"}, 256),
        ("spark://host:7077", {}, 64), ("yarn", {"memory": "4096", "cores": "4"}, 0),
        ("yarn", {"memory": "4g", "cores": "4", "memoryOverhead": "1024m"}, 128),
        ("yarn", {"memory": "4g", "cores": "4", "memoryOverheadFactor": "1"}, 256),
        ("k8s://https://host", {"memory": "8GB", "cores": "2"}, 1024),
    ],
)  # fmt: skip
def test_how_large_a_file_workers_are_handed(spark, master, conf, megabytes):
    conf = {f"spark.executor.{name}": value for name, value in conf.items()}
    assert application.room_for_file(master, conf, 2 * 2**30, 2) == megabytes * 2**20
    assert application.largest_file(spark) > 2**20
    with pytest.raises(application.PlanError, match="'much' is no size"):
        application.room_for_file("yarn", {"spark.executor.memory": "much"}, 1, 1)


def test_files_that_are_older_than_a_column(lake, nights, execute):
    [path] = {file.path for file in lake.files("orders", None, NIGHT, NIGHT)}
    rows = pq.read_table(path)
    gone = nights.features[0].expression.columns
    pq.write_table(rows.drop_columns([name for name in rows.column_names if name in gone]), path)
    assert spark_profiles.take(lake, execute(nights, [NIGHT]))[0] == [NIGHT]
    made = nights.nights([NIGHT])[NIGHT]
    assert made.columns[nights.features[0].name].nulls == made.rows == 60


def test_scores_that_are_logged_are_not_computed_again(lake, scorer):
    plain = NightProfiles(lake, "orders", scorer)
    rows, content = predictions.scored_day(lake, "orders", NIGHT, scorer)
    predictions.log_predictions(lake, "orders", rows, scorer.bundle.dataset.contract.key, "1", scorer, NIGHT, content)
    asked = plain.unread(WANTED)
    assert (sorted(asked.features), sorted(asked.scores)) == (WANTED, [DAYS[-1], STORM])
    by_city = NightProfiles(lake, "orders", scorer, segment="city")
    assert NIGHT in by_city.unread(WANTED).scores, "the log does not know the city"


def test_taking_that_crashes_anywhere_is_finished_by_a_retry(lake, nights, execute, monkeypatch, tmp_path):
    output, put = execute(nights), ProfileStore.put
    for step in range(6):
        folder, done = shutil.copytree(output, tmp_path / str(step)), []

        def crash(store, *arguments, done=done, step=step):
            if len(done) == step:
                raise KeyboardInterrupt
            done.append(put(store, *arguments))
            return done[-1]

        with monkeypatch.context() as patched:
            patched.setattr(ProfileStore, "put", crash)
            with pytest.raises(KeyboardInterrupt):
                spark_profiles.take(lake, folder)
        assert sum(map(len, nights.unread(WANTED))) == 6 - step, "each that was kept is whole, and not asked for again"
        spark_profiles.take(lake, folder)
        assert not any(nights.unread(WANTED)) and not folder.exists()
        shutil.rmtree(lake.root / "profiles")


def test_a_day_that_is_published_again_meanwhile_is_left_out(lake, nights, execute, caplog):
    output = execute(nights)
    publish(lake, {NIGHT: stored_day(NIGHT, 30)})
    with caplog.at_level(logging.WARNING):
        taken = spark_profiles.take(lake, output)
    assert taken == ([DAYS[-1], STORM], [DAYS[-1], STORM], "") and f"{NIGHT} was published again" in caplog.text
    assert list(nights.unread(WANTED).features) == [NIGHT]
    assert nights.nights([NIGHT])[NIGHT].rows == 30


def test_workers_that_cannot_load_the_model_leave_the_scores_to_others(lake, nights, execute):
    def spoil(plan):
        shutil.rmtree(plan["bundle"])
        (lake.root / "nothing").mkdir()
        plan["bundle"] = str(lake.root / "nothing")

    features, scores, reason = spark_profiles.take(lake, execute(nights, [NIGHT], spoil))
    assert (features, scores) == ([NIGHT], []) and "holds no model bundle" in reason
    assert nights.unread([NIGHT]) == ({}, {NIGHT: nights.unread([NIGHT]).scores[NIGHT]})
    assert nights.nights([NIGHT])[NIGHT].columns["score"].rows == 60


def test_what_the_report_compares_with_is_among_the_days(nights, shop_sample):
    sample = Path(shop_sample.uri)
    assert nights.days_of(Reference.parse("trailing 2 days"), STORM, sample) == [DAYS[-1], NIGHT]
    assert nights.days_of(Reference.parse("training"), STORM, sample) == list(DAYS)
