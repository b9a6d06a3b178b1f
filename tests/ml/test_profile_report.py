"""The nightly report over all rows: Evidently's page from profiles, the same verdicts as its own preset on the rows."""

import datetime as dt
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import drift, predictions, profile_report, profile_sql
from airflow_provider_sml.ml.monitoring.night_profiles import Against, NightProfiles, schema_findings
from airflow_provider_sml.ml.monitoring.profile import of_batches
from airflow_provider_sml.ml.monitoring.reference import Reference
from airflow_provider_sml.ml.monitoring.verdicts import Rules, judge
from tests.ml.test_lake_shops import DATASET, publish, stored_day
from tests.ml.test_profiles import same
from tests.trained import DAYS, NIGHT, STORM

RULES = Rules(share=0.15, numeric=0.5, category=0.2, false_discovery=None)
KINDS = {"hour": "number", "weight": "number", "rain": "number", "age": "number", "city": "category", "score": "number"}
TRAINING = Reference.parse("training")


class Counting(Scorer):
    """A scorer that counts the rows that it scores."""

    rows = 0

    def score_features(self, matrix):
        Counting.rows += len(matrix)
        return super().score_features(matrix)


@pytest.fixture(scope="module")
def scorer(shop_model):
    return Scorer(Bundle.read(Path(shop_model.uri)))


@pytest.fixture(scope="module")
def sample(shop_sample):
    return Path(shop_sample.uri)


@pytest.fixture(scope="module")
def profiles(shop_lake, sample, scorer):
    made = NightProfiles(shop_lake, "orders", scorer)
    return made.training(sample), made.nights([NIGHT, STORM])


@pytest.fixture
def lake(tmp_path):
    """The lake of the shops, to be changed."""
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {day: stored_day(day, 120) for day in DAYS} | {NIGHT: stored_day(NIGHT, 120)})
    publish(lake, {STORM: stored_day(STORM, 120, stormy=True)})
    return lake


def test_the_verdicts_are_those_of_evidentlys_preset_on_all_rows(shop_lake, shop_sample, scorer, profiles, tmp_path):
    old, nights = profiles
    rows = predictions.drawn_training(Path(shop_sample.uri), scorer, 10**6).rows
    same(old, of_batches([rows], KINDS))
    limits = drift.Limits(share=0.15, numeric=0.5, category=0.2)
    for day, verdict in ((NIGHT, "quiet"), (STORM, "drift")):
        found = profile_report.report(
            "orders", "1", day, Against(TRAINING, old), nights[day], RULES, tmp_path / "whole"
        )
        night = predictions.scored(predictions.read_days(shop_lake, "orders", day, day), scorer)
        same(nights[day], of_batches([night], KINDS))
        stock = drift.report("orders", "1", day, rows, night, scorer, limits, tmp_path / "stock")
        assert (found.verdict, found.share, found.drifted) == (stock.verdict, stock.share, stock.drifted)
        assert found.verdict == verdict and found.rows == stock.rows
        texts = [(tmp_path / kind / f"{day}.json").read_text() for kind in ("whole", "stock")]
        mine, its = ({c["name"]: c["value"] for c in json.loads(text)["columns"]} for text in texts)
        assert mine == pytest.approx(its, rel=0.01, abs=0.002)
    text = (tmp_path / "whole" / f"{STORM}.html").read_text()
    assert "Drift: " in text and "all of them" in text and str(old.rows) in text


def test_the_page_passes_its_test_as_the_verdict_says_and_no_row_is_read(profiles):
    from airflow_provider_sml.ml.monitoring.evidently_profiles import ProfileDataset, page

    old, nights = profiles
    for day, passed in ((NIGHT, "SUCCESS"), (STORM, "FAIL")):
        found = judge(old, nights[day], RULES)
        (test,) = page(found, old, nights[day], RULES.share).dict()["tests"]
        assert str(test["status"]).endswith(passed)
    with pytest.raises(NotImplementedError, match="no rows"):
        ProfileDataset(old, found).as_dataframe()


def write(lake, scorer, sample, day, folder, asked="training", rules=RULES, **settings):
    """One night's report, as the operator writes it; gives its numbers."""
    made = NightProfiles(lake, "orders", scorer, **settings)
    against = made.against(Reference.parse(asked), day, sample)
    schema = schema_findings(lake, "orders", scorer.bundle.dataset)
    profile_report.report("orders", "1", day, against, made.nights([day]).get(day), rules, folder, findings=schema)
    return json.loads((folder / f"{day}.json").read_text())


def kinds(result):
    return [(finding["kind"], finding["subject"]) for finding in result["findings"]]


def test_a_night_filled_in_again_gives_the_same_bytes_whatever_the_order(lake, scorer, sample, tmp_path):
    rules = replace(RULES, false_discovery=0.05)
    days = [DAYS[-1], NIGHT, STORM]
    asked = {"training": "training", "trailing": "trailing 8 days", "season": "season 3 days"}
    for round_ in ("one", "two"):
        for name, reference in asked.items():
            for day in random.Random(round_ + name).sample(days, len(days)):
                write(lake, scorer, sample, day, tmp_path / round_ / name, reference, rules, segment="city")
        for path in (lake.root / "profiles").rglob("*.json"):
            path.unlink()  # the second round makes all of them again
    for name in asked:
        for day in days:
            one, two = ((tmp_path / round_ / name / f"{day}.json").read_bytes() for round_ in ("one", "two"))
            assert one == two, (name, day)
        verdicts = {day: json.loads((tmp_path / "one" / name / f"{day}.json").read_text())["verdict"] for day in days}
        drifted = [day for day in days if verdicts[day] == "drift"]
        assert drifted == ([] if name == "season" else [STORM]), "no lake of a year ago is a finding, and no drift"
    night = json.loads((tmp_path / "one" / "trailing" / f"{STORM}.json").read_text())
    assert (night["reference"], night["reference_rows"], night["nights"]) == ("trailing 8 days", 960, 8)
    assert all(column["p_value"] < 0.001 for column in night["columns"] if column["name"] in night["drifted"])
    training = json.loads((tmp_path / "one" / "training" / f"{STORM}.json").read_text())
    assert training["nights"] == 17, "the days that the model was made from"
    season = json.loads((tmp_path / "one" / "season" / f"{STORM}.json").read_text())
    assert kinds(season) == [
        ("missing_partitions", "2025-03-19, 2025-03-20, 2025-03-21"),
        ("empty_night", "the reference"),
    ]


def test_only_the_score_goes_through_the_model_and_logged_scores_are_taken_as_they_are(lake, shop_model, sample):
    bundle = Bundle.read(Path(shop_model.uri))
    counting = Counting(bundle)
    for day in (NIGHT, STORM):
        rows, content = predictions.scored_day(lake, "orders", day, counting)
        predictions.log_predictions(lake, "orders", rows, ["order"], "1", counting, day, content)
    Counting.rows = 0
    first = NightProfiles(lake, "orders", counting).nights([DAYS[-1], NIGHT, STORM])
    assert Counting.rows == 120, "the day before was not scored by this version"
    assert NightProfiles(lake, "orders", counting).nights([DAYS[-1], NIGHT, STORM]).keys() == first.keys()
    assert Counting.rows == 120, "profiles are read"
    publish(lake, {NIGHT: stored_day(NIGHT, 60)})
    again = NightProfiles(lake, "orders", counting).nights([NIGHT])[NIGHT]
    assert (again.rows, Counting.rows) == (60, 180), "scores of rows that were replaced are not taken"
    before = sorted((lake.root / "profiles" / "orders" / str(STORM)).iterdir())
    other = Counting(replace(bundle, model_id="another"))
    found = NightProfiles(lake, "orders", other).nights([STORM])[STORM]
    same(found, first[STORM])
    assert Counting.rows == 300
    more = set((lake.root / "profiles" / "orders" / str(STORM)).iterdir()) - set(before)
    assert len(more) == 1, "the features of a new version that are the old ones are not profiled again"


def test_segments_are_judged_where_they_have_rows_enough(lake, scorer, sample, tmp_path):
    night = stored_day(NIGHT, 120)
    bern = pa.compute.equal(night.column("city"), "Bern")
    heavy = pa.compute.if_else(bern, pa.compute.multiply(night.column("weight"), 9), night.column("weight"))
    publish(lake, {NIGHT: night.set_column(night.column_names.index("weight"), "weight", heavy)})
    rules = replace(RULES, min_rows=30, false_discovery=0.05, share=0.3)
    found = write(lake, scorer, sample, NIGHT, tmp_path, "trailing 14 days", rules, segment="city")
    assert {name: part["verdict"] for name, part in found["segments"].items()} == {
        "Bern": "drift", "Oslo": "quiet", "Rome": "quiet",
    }  # fmt: skip
    assert "weight" in found["segments"]["Bern"]["drifted"] and ("segment", "Bern") in kinds(found)
    assert sum(part["rows"] for part in found["segments"].values()) == 120
    assert "Segments" in (tmp_path / f"{NIGHT}.html").read_text()
    few = write(lake, scorer, sample, NIGHT, tmp_path, "trailing 14 days", replace(rules, min_rows=60), segment="city")
    assert few["segments"] == {} and len([kind for kind, _ in kinds(few) if kind == "small_segment"]) == 3


def test_odd_nights_are_findings_and_no_errors(lake, scorer, sample, tmp_path):
    quiet = write(lake, scorer, sample, NIGHT, tmp_path)
    assert quiet["findings"] == [] and quiet["verdict"] == "quiet"
    absent = STORM + dt.timedelta(days=2)
    found = write(lake, scorer, sample, absent, tmp_path)
    assert (found["verdict"], found["rows"], found["drifted"]) == ("quiet", 0, [])
    day_before = absent - dt.timedelta(days=1)
    assert kinds(found) == [("missing_partitions", f"{day_before}, {absent}"), ("empty_night", "the night")]
    assert "no rows" in (tmp_path / f"{absent}.html").read_text()
    night = stored_day(NIGHT, 120)
    cities = ["Paris" if n % 3 == 0 else city for n, city in enumerate(night.column("city").to_pylist())]
    publish(lake, {NIGHT: night.set_column(night.column_names.index("city"), "city", pa.array(cities))})
    found = write(lake, scorer, sample, NIGHT, tmp_path)
    assert ("new_category", "city") in kinds(found) and "city" in found["drifted"]
    assert "'Paris' (40)" in found["findings"][0]["text"]


def test_another_schema_is_a_finding(lake, scorer, sample, tmp_path):
    loaded = lake.load("orders")
    with loaded.update_schema() as update:
        update.add_column("colour", __import__("pyiceberg.types").types.StringType())
        update.delete_column("weather__rain")
    found = write(lake, scorer, sample, NIGHT, tmp_path)
    assert kinds(found)[:2] == [("schema", "weather__rain"), ("schema", "colour")]
    gone = {"rain", "score"}
    assert {subject for kind, subject in kinds(found) if kind == "column_gone"} == gone == set(found["drifted"])
    assert len(found["columns"]) == 6


@pytest.fixture(scope="module")
def client(bigquery):
    from airflow_provider_sml.testing.bigquery import bigquery_client

    client = bigquery_client()
    client.create_dataset("nights", exists_ok=True)
    return client


def test_features_are_profiled_in_bigquery_where_the_table_is_there(client, lake, scorer, caplog):
    from google.cloud.bigquery import LoadJobConfig

    from airflow_provider_sml.ml.expressions import SQL_TYPES, physical
    from airflow_provider_sml.ml.warehouse.bigquery import BigQueryWarehouse

    declared = ", ".join(f"`{physical(name)}` {SQL_TYPES['bigquery'][kind]}" for name, kind in DATASET.table_columns)
    client.query_and_wait(f"CREATE OR REPLACE TABLE nights.orders ({declared})")
    (file,) = lake.files("orders", None, NIGHT, NIGHT)
    with open(file.path, "rb") as handle:
        config = LoadJobConfig(source_format="PARQUET")
        client.load_table_from_file(handle, f"{client.project}.nights.orders", job_config=config).result()
    asked, held = [], [120]

    def elsewhere(day, columns, segment):
        asked.append(day)
        source = BigQueryWarehouse(client.project, "nights").day("orders", day)
        made = profile_sql.of_bigquery(client, source, columns, segment=segment)
        return made if made.rows == held[0] else None

    expected = NightProfiles(lake, "orders", scorer, segment="city").nights([NIGHT])[NIGHT]
    for path in (lake.root / "profiles").rglob("*.json"):
        path.unlink()
    there = NightProfiles(lake, "orders", scorer, segment="city", elsewhere=elsewhere, dialect="bigquery")
    found = there.nights([NIGHT])[NIGHT]
    assert asked == [NIGHT] and "lake" not in caplog.text
    same(found, expected)
    for name, part in expected.segments.items():
        same(found.segments[name], part)
    held[0] = 121
    for path in (lake.root / "profiles").rglob("*.json"):
        path.unlink()
    same(there.nights([NIGHT])[NIGHT], expected)
    assert "profiled from the lake's files" in caplog.text


def test_reports_before_a_day_are_removed_and_nothing_else(tmp_path):
    day = dt.date(2026, 3, 1)
    for name in ("2026-02-28.html", "2026-02-28.json", "2026-03-01.html", "notes.html", "2026-02-28.txt"):
        (tmp_path / name).touch()
    assert profile_report.expire_reports(tmp_path, day) == ["2026-02-28.html", "2026-02-28.json"]
    assert len(list(tmp_path.iterdir())) == 3
