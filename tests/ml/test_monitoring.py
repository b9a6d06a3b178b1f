"""Drift verdicts read with their method, and the logged scores once their labels are known."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import drift, predictions
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from tests import shops
from tests.ml.test_lake_shops import DATASET, fit, publish, stored_day
from tests.trained import DAYS, NIGHT, STORM, rows_of

LIMITS = drift.Limits(share=0.15, numeric=0.5, category=0.2)


@pytest.fixture(scope="module")
def scorer(shop_model):
    return Scorer(Bundle.read(Path(shop_model.uri)))


@pytest.fixture(scope="module")
def reference(shop_sample, scorer):
    return predictions.drawn_training(Path(shop_sample.uri), scorer, 10**6).rows


@pytest.fixture(scope="module")
def night(shop_lake, scorer):
    return predictions.scored(predictions.read_days(shop_lake, "orders", NIGHT, NIGHT), scorer)


def report(reference, current, scorer, folder, limits=LIMITS, day=NIGHT, version="1", **more):
    found = drift.report("orders", version, day, reference, current, scorer, limits, folder, **more)
    return found, json.loads((folder / f"{day}.json").read_text())


def columns(result):
    return {column["name"]: column for column in result["columns"]}


def put(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_a_day_as_always_is_quiet_and_a_storm_is_not(shop_lake, reference, scorer, night, tmp_path):
    found, result = report(reference, night, scorer, tmp_path)
    assert (found.verdict, found.drifted, found.share) == ("quiet", [], 0)
    storm = predictions.scored(predictions.read_days(shop_lake, "orders", STORM, STORM), scorer)
    found, result = report(reference, storm, scorer, tmp_path, day=STORM)
    assert found.verdict == result["verdict"] == "drift"
    assert found.drifted[0] == "rain" and found.share == round(len(found.drifted) / 6, 4)
    assert result["rows"] == 120 and result["reference_rows"] == reference.num_rows
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{d}.{kind}" for d in (NIGHT, STORM) for kind in ("html", "json")
    }
    assert (tmp_path / f"{STORM}.html").stat().st_size > 100_000 and found.uri == str(tmp_path / f"{STORM}.html")


def test_the_numbers_are_the_distances_that_their_method_names(reference, scorer, night, tmp_path):
    _, result = report(reference, night, scorer, tmp_path)
    found = columns(result)
    assert set(found) == {"hour", "weight", "rain", "age", "city", "score"}
    for name in ("hour", "weight", "score"):
        old, new = (table.column(name).to_numpy() for table in (reference, night))
        assert "wasserstein" in found[name]["method"].lower()
        assert found[name]["value"] == pytest.approx(wasserstein_distance(old, new) / old.std(), rel=0.02)
        assert found[name]["threshold"] == 0.5
    shares = [
        np.array([np.mean(np.array(table.column("city").to_pylist()) == city) for city in shops.CITIES])
        for table in (reference, night)
    ]
    assert "jensen" in found["city"]["method"].lower() and found["city"]["threshold"] == 0.2
    assert found["city"]["value"] == pytest.approx(jensenshannon(*shares), rel=0.02)


def test_few_rows_are_judged_by_distances_too(reference, scorer, night, tmp_path):
    """Evidently alone would take p-values below a thousand rows, where larger means nearer."""
    _, result = report(reference.slice(0, 200), night, scorer, tmp_path)
    assert not [column for column in result["columns"] if "p_value" in column["method"]]


def test_a_p_value_is_never_taken_for_a_distance():
    metric = {
        "value": 0.001,
        "config": {"type": "x:ValueDrift", "column": "a", "method": "K-S p_value", "threshold": 0.05},
    }
    with pytest.raises(DataError, match="a distance; found: K-S p_value"):
        drift._columns({"metrics": [metric]})


def test_the_same_rows_are_drawn_each_time_however_they_lie_in_files(reference, scorer, small, tmp_path):
    day = DAYS[0]
    few, all_ = (predictions.drawn_day(small, "orders", day, scorer, most) for most in (20, 10**6))
    assert (few.rows.num_rows, few.of, all_.rows.num_rows, all_.of) == (20, 60, 60, 60)
    rows = {tuple(row.values()) for row in few.rows.to_pylist()}
    assert rows < {tuple(row.values()) for row in all_.rows.to_pylist()}
    publish(small, {day: stored_day(day, 60).take(list(range(59, -1, -1)))})
    assert predictions.drawn_day(small, "orders", day, scorer, 20) == few
    one, first = report(reference, few.rows, scorer, tmp_path / "one", day=day, of=(reference.num_rows, few.of))
    two, second = report(reference, few.rows, scorer, tmp_path / "one", day=day, of=(reference.num_rows, few.of))
    assert (one, first) == (two, second) and one.rows == first["rows"] == 60, "of the day, not of the draw"
    _, whole = report(reference, all_.rows, scorer, tmp_path / "whole", day=day)
    assert columns(first)["weight"]["value"] != columns(whole)["weight"]["value"]


def test_the_share_decides_the_verdict(reference, scorer, night, tmp_path):
    moved = put(night, "weight", np.asarray(night.column("weight")) + 500)
    found, _ = report(reference, moved, scorer, tmp_path, replace(LIMITS, share=1 / 6))
    assert (found.verdict, found.drifted) == ("drift", ["weight"])
    found, _ = report(reference, moved, scorer, tmp_path, replace(LIMITS, share=0.17))
    assert (found.verdict, found.drifted) == ("quiet", ["weight"])
    found, result = report(reference, moved, scorer, tmp_path, leave_out=["weight"])
    assert (found.verdict, found.drifted) == ("quiet", []) and "weight" not in columns(result)


# --- odd columns ------------------------------------------------------------------------------------------------------


def test_a_new_category_is_drift_of_its_column(reference, scorer, night, tmp_path):
    _, result = report(reference, put(night, "city", ["Paris"] * night.num_rows), scorer, tmp_path)
    assert columns(result)["city"]["drifted"] and columns(result)["city"]["value"] == pytest.approx(
        np.log(2) ** 0.5, abs=1e-3
    )


def test_missing_categories_are_a_value_of_their_own(reference, scorer, night, tmp_path):
    half = [city if n % 2 else None for n, city in enumerate(night.column("city").to_pylist())]
    _, result = report(reference, put(night, "city", half), scorer, tmp_path)
    assert columns(result)["city"]["drifted"]


@pytest.mark.parametrize("name", ["rain", "city"])
@pytest.mark.parametrize("filled", [None, float("nan")])
def test_a_column_without_a_value_on_one_side_is_told(reference, scorer, night, tmp_path, name, filled):
    filled = filled if name == "rain" else None
    gone = put(night, name, [filled] * night.num_rows)
    for old, new in ((reference, gone), (put(reference, name, [filled] * reference.num_rows), night)):
        found, result = report(old, new, scorer, tmp_path)
        assert columns(result)[name] == {
            "name": name, "method": "no value on one side", "value": None, "threshold": None, "drifted": True,
        }  # fmt: skip
        assert found.drifted[0] == name


def test_a_column_that_never_has_a_value_does_not_drift(reference, scorer, night, tmp_path):
    empty = [put(table, "rain", [None] * table.num_rows) for table in (reference, night)]
    found, result = report(*empty, scorer, tmp_path)
    assert found.verdict == "quiet" and columns(result)["rain"]["method"] == "no value on both sides"


def test_a_column_without_a_value_on_one_side(reference, scorer, night, tmp_path):
    drawn = put(reference, "rain", [None] * reference.num_rows)
    found, result = report(drawn, night, scorer, tmp_path)
    assert columns(result)["rain"]["method"] == "no value on one side" and "rain" in found.drifted


def test_a_constant_column(reference, scorer, night, tmp_path):
    same = [put(table, "age", [7.0] * table.num_rows) for table in (reference, night)]
    _, result = report(*same, scorer, tmp_path)
    assert columns(result)["age"]["value"] == 0
    other = put(night, "age", [9.0] * night.num_rows)
    _, result = report(same[0], other, scorer, tmp_path)
    assert columns(result)["age"]["drifted"]


def test_one_row_is_enough_for_a_report(reference, scorer, night, tmp_path):
    found, result = report(reference, night.slice(0, 1), scorer, tmp_path)
    assert found.rows == 1 and len(result["columns"]) == 6


@pytest.mark.parametrize("side", ["reference", "day"])
def test_no_row_at_all_is_an_error(reference, scorer, night, tmp_path, side):
    sides = {"reference": reference, "day": night}
    sides[side] = sides[side].slice(0, 0)
    with pytest.raises(DataError, match=f"the {side} has no rows"):
        report(*sides.values(), scorer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_conditions_are_compared_as_numbers(tmp_path):
    dataset = shops.make_spec(Path("/nowhere"), features={"gift": "gift", "weight": "weight"}).dataset
    table = pa.concat_tables([stored_day(day, 80, dataset=dataset) for day in DAYS[:2]])
    scorer = Scorer(fit(table, dataset=dataset))
    one = predictions.scored(table, scorer)
    assert one.column("gift").null_count > 0
    _, result = report(one, one, scorer, tmp_path)
    assert columns(result)["gift"]["value"] == 0
    never = [None if gift is None else 0.0 for gift in one.column("gift").to_pylist()]
    _, result = report(one, put(one, "gift", never), scorer, tmp_path)
    assert columns(result)["gift"]["drifted"]


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_endpoint_even_where_a_stored_feature_means_something_else(scorer):
    table = stored_day(NIGHT, 50)
    stored = scorer.score_features(data.matrix(table, DATASET.feature_list))
    assert predictions.scored(table, scorer).column("score").to_numpy() == pytest.approx(stored, abs=1e-9)
    redefined = put(table, "rain", [-1000.0] * 50)
    again = predictions.scored(redefined, scorer)
    assert again.column("score").to_numpy() == pytest.approx(stored, abs=1e-9)
    assert again.column("rain").to_pylist() == table.column("rain").to_pylist()


def test_rows_that_lack_a_raw_column(scorer):
    with pytest.raises(DataError, match=r"no weather\.rain(.|\n)*train a new model"):
        predictions.scored(stored_day(NIGHT, 5).drop_columns(["weather__rain"]), scorer)


def test_the_training_rows_are_gone(tmp_path):
    with pytest.raises(DataError, match="train and deploy again"):
        predictions.drawn_training(tmp_path, None, 10)


def test_the_reference_is_the_training_split(shop_sample, scorer):
    rows = sum(pq.read_metadata(path).num_rows for path in split_files(shop_sample, "train"))
    drawn = predictions.drawn_training(Path(shop_sample.uri), scorer, 100)
    assert drawn.of == rows == shop_sample.rows["train"] and drawn.rows.num_rows == 100


def test_a_day_that_is_not_there(shop_lake, scorer):
    day = DAYS[0] - dt.timedelta(days=9)
    with pytest.raises(DataError, match=f"no rows from {day}"):
        predictions.read_days(shop_lake, "orders", day, day)
    with pytest.raises(DataError, match=f"no rows of {day}"):
        predictions.drawn_day(shop_lake, "orders", day, scorer, 10)


@pytest.fixture
def small(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {day: stored_day(day, 60) for day in DAYS[:3]})
    return lake


def log(lake, scorer, day, version="1"):
    rows = predictions.scored(predictions.read_days(lake, "orders", day, day), scorer)
    return predictions.log_predictions(lake, "orders", rows, ["order"], version, scorer, day)


def test_logged_scores_are_replaced_by_a_repeat(small, scorer):
    log(small, scorer, DAYS[0])
    before = predictions.read_days(small, "orders_predictions", DAYS[0], DAYS[0])
    again = log(small, scorer, DAYS[0], version="2")
    assert (again.rows, again.total_rows) == (60, 60)
    after = predictions.read_days(small, "orders_predictions", DAYS[0], DAYS[0])
    assert after.column("score") == before.column("score") and after.column("row_key") == before.column("row_key")
    assert set(after.column("model_version").to_pylist()) == {"2"}
    keys = after.column("row_key").to_pylist()
    assert len(set(keys)) == 60 and not set(keys) & {str(n) for n in rows_of(0, 1, 60).column("order").to_pylist()}
