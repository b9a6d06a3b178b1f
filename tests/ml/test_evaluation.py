"""Measures against scikit-learn's, and the evaluation of a model on rows it has not seen."""

import datetime as dt
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import sampling
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data, metrics, parts
from airflow_provider_sml.ml.training.evaluation import evaluate
from tests import shops
from tests.ml.test_lake_shops import DATASET, fit, stored_day
from tests.trained import DAYS, make_sample, rows_of


def draw(rows=500, seed=1, ties=False):
    """Labels, scores that know something of them, and weights."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows).astype(float)
    scores = np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return labels, np.round(scores, 1) if ties else scores, random.integers(0, 4, rows).astype(float)


# --- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_scikit_learn(seed, ties):
    labels, scores, weights = draw(seed=seed, ties=ties)
    assert metrics.auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    weighted = reference.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(labels, scores, weights) == pytest.approx(weighted, abs=1e-12)
    assert metrics.log_loss(labels, scores) == pytest.approx(
        reference.log_loss(labels, np.clip(scores, 1e-15, 1 - 1e-15)), rel=1e-9
    )
    assert metrics.brier(labels, scores) == pytest.approx(reference.brier_score_loss(labels, scores), abs=1e-12)


def test_the_reliability_is_that_of_scikit_learn():
    labels, scores, _ = draw(2000)
    rates, means = calibration_curve(labels, scores, n_bins=10, strategy="uniform")
    found = metrics.reliability(labels, scores)
    assert [bucket["rate"] for bucket in found] == pytest.approx(rates)
    assert [bucket["score"] for bucket in found] == pytest.approx(means)
    rows = np.histogram(scores, bins=10, range=(0, 1))[0]
    assert [bucket["rows"] for bucket in found] == [n for n in rows if n]
    assert metrics.ece(labels, scores) == pytest.approx((np.abs(rates - means) * rows[rows > 0]).sum() / 2000)


def test_the_ends_of_the_scores():
    labels, scores = np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])
    assert (metrics.auc(labels, scores), metrics.brier(labels, scores), metrics.ece(labels, scores)) == (1, 0, 0)
    assert 0 < metrics.log_loss(labels, scores) < 1e-14
    assert [bucket["to"] for bucket in metrics.reliability(labels, scores)] == [0.1, 1.0]
    assert metrics.log_loss(labels, 1 - scores) == pytest.approx(-np.log(1e-15), rel=1e-3)


def test_one_class_has_no_auc():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.auc(np.ones(3), np.arange(3.0)))
        assert np.isnan(metrics.auc(np.array([]), np.array([])))
        interval = metrics.auc_interval(np.zeros(4), np.arange(4.0))
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_equal_scores_are_a_coin():
    labels, _, _ = draw()
    assert metrics.auc(labels, np.full(len(labels), 0.3)) == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    truth = 0.760  # of two normals 0.2 apart with deviation 0.2: Phi(1 / sqrt 2)
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, 300).astype(float)
        found = metrics.auc_interval(labels, random.normal(0.2 * labels, 0.2), repeats=100)
        inside += found.low <= truth <= found.high
    assert 50 <= inside <= 60


def test_intervals_are_the_same_whenever_asked_and_narrow_with_rows():
    few, many = draw(200), draw(5000)
    assert metrics.auc_interval(*few[:2]) == metrics.auc_interval(*few[:2])
    assert metrics.auc_interval(*few[:2]) != metrics.auc_interval(*few[:2], seed=8)
    widths = [found.high - found.low for found in (metrics.auc_interval(*rows[:2]) for rows in (few, many))]
    assert widths[1] < widths[0] / 3


def test_the_difference_is_paired():
    labels, scores, _ = draw(400)
    for nothing in metrics.differences(labels, scores, scores).values():
        assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    worse = np.clip(scores + np.random.default_rng(3).normal(0, 0.3, len(scores)), 0, 1)
    every = metrics.differences(labels, scores, worse)
    for name in ("log_loss", "brier", "ece"):  # of which less is better
        measure = getattr(metrics, name)
        assert every[name].value == pytest.approx(measure(labels, scores) - measure(labels, worse))
        assert every[name].low < every[name].value < every[name].high < 0
    # Both models on the same rows of a draw: the interval of the difference is narrower than that of either.
    alone = metrics.intervals(labels, scores)["brier"]
    near = metrics.differences(labels, scores, np.clip(scores + 0.01, 0, 1))["brier"]
    assert near.high - near.low < (alone.high - alone.low) / 4
    drawn = np.random.default_rng(7).integers(0, 400, 400)
    one = metrics.differences(labels, scores, 1 - scores, repeats=1)
    for name in ("auc", "log_loss", "brier", "ece"):
        measure = getattr(metrics, name)
        gap = measure(labels[drawn], scores[drawn]) - measure(labels[drawn], 1 - scores[drawn])
        assert one[name].low == pytest.approx(gap)
    found = metrics.differences(labels, scores, worse)["auc"]
    assert found.value == pytest.approx(
        reference.roc_auc_score(labels, scores) - reference.roc_auc_score(labels, worse)
    )
    assert 0 < found.low < found.value < found.high
    turned = metrics.differences(labels, worse, scores)["auc"]
    assert (turned.value, turned.low) == pytest.approx((-found.value, -found.high))


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(shop_model):
    return Bundle.read(Path(shop_model.uri))


def read(found):
    return json.loads((Path(found.uri) / "evaluation.json").read_text())


def strict(text):
    """JSON without the NaN that Python alone reads."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def rows(sample, split="test"):
    return pa.concat_tables([pq.read_table(path) for path in split_files(sample, split)])


def test_the_figures_are_those_of_the_test_rows(bundle, shop_sample, tmp_path):
    found = evaluate(bundle, shop_sample, tmp_path / "one", baseline=["city"], slices=["city"], min_rows=50)
    result, table = read(found), rows(shop_sample)
    labels = table.column(LABEL).to_numpy()
    scores = Scorer(bundle).score_features(data.matrix(table, DATASET.feature_list))
    assert found.rows == result["rows"] == len(labels) == 360
    assert found.auc == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-6)
    assert found.auc_low < found.auc < found.auc_high and found.auc_low > 0.5
    assert result["log_loss"]["value"] == pytest.approx(reference.log_loss(labels, scores))
    assert (result["label_rate"], result["mean_score"]) == pytest.approx((labels.mean(), scores.mean()))
    assert result["champion"] is None and "champion" not in (tmp_path / "one" / "evaluation.html").read_text()
    assert found.model_id == bundle.model_id
    cities = np.array(table.column("city").to_pylist())
    assert [(s["column"], s["value"]) for s in result["slices"]] == [("city", name) for name in sorted(set(cities))]
    for part in result["slices"]:
        inside = cities == part["value"]
        assert part["rows"] == inside.sum()
        assert part["auc"] == pytest.approx(reference.roc_auc_score(labels[inside], scores[inside]))
    again = evaluate(bundle, shop_sample, tmp_path / "two", baseline=["city"], slices=["city"], min_rows=50)
    assert replace(again, uri=found.uri) == found and read(again) == result


def test_the_page_shows_the_figures_and_runs_nothing(bundle, shop_sample, tmp_path):
    found = evaluate(replace(bundle, name="<b>orders</b>"), shop_sample, tmp_path, baseline=["city"], slices=["city"])
    page = (tmp_path / "evaluation.html").read_text()
    assert f"{found.auc:.4f}" in page and "AUC of the rates by city" in page
    assert "<b>orders" not in page and "&lt;b&gt;orders" in page and "<script" not in page


def test_the_lift_counts_each_tenth_from_the_top():
    labels, scores, _ = draw(2000)
    order = np.argsort(-scores, kind="stable")
    parts = metrics.lift(labels, scores)
    expected = [labels[order][n * 200 : n * 200 + 200].mean() for n in range(10)]
    assert [part["rate"] for part in parts] == pytest.approx(expected)
    assert [part["lift"] for part in parts] == pytest.approx([rate / labels.mean() for rate in expected])
    assert [part["gain"] for part in parts] == pytest.approx(np.cumsum(expected) * 200 / labels.sum())
    assert [(p["score_to"], p["score_from"]) for p in parts] == [
        (scores[order][n * 200], scores[order][n * 200 + 199]) for n in range(10)
    ]


def test_the_lift_does_not_depend_on_the_order_of_equal_scores():
    labels, scores, _ = draw(1000, ties=True)
    shuffled = np.random.default_rng(3).permutation(1000)
    there, back = metrics.lift(labels, scores), metrics.lift(labels[shuffled], scores[shuffled])
    assert [part["positives"] for part in there] == pytest.approx([part["positives"] for part in back])
    assert [part["lift"] for part in metrics.lift(labels, np.full(1000, 0.5))] == pytest.approx([1.0] * 10)
    few = metrics.lift(np.array([1.0, 0.0, 1.0]), np.array([0.9, 0.5, 0.1]))
    assert [(part["rows"], part["positives"], part["gain"]) for part in few] == [(1, 1, 0.5), (1, 0, 0.5), (1, 1, 1)]


def test_every_measure_has_its_interval():
    labels, scores, _ = draw(3000)
    found = metrics.intervals(labels, scores, repeats=100)
    assert found["auc"] == metrics.auc_interval(labels, scores, repeats=100)  # the same draws
    assert found["log_loss"].value == metrics.log_loss(labels, scores)
    assert found["brier"].value == metrics.brier(labels, scores) and found["ece"].value == metrics.ece(labels, scores)
    # The mean of n rows has a standard error of its own; a 95 % interval is nearly four of them wide.
    error = ((scores - labels) ** 2).std() / np.sqrt(3000)
    assert (found["brier"].high - found["brier"].low) == pytest.approx(3.92 * error, rel=0.35)
    drawn = np.random.default_rng(7).integers(0, 3000, 3000)
    one = metrics.intervals(labels, scores, repeats=1)
    assert one["log_loss"].low == pytest.approx(metrics.log_loss(labels[drawn], scores[drawn]))
    assert one["ece"].high == pytest.approx(metrics.ece(labels[drawn], scores[drawn]))
    assert one["ece"].low <= found["ece"].value


def test_the_pictures_show_the_curve_the_importance_the_calibration_and_the_lift(bundle, shop_sample, tmp_path):
    result = read(evaluate(bundle, shop_sample, tmp_path, min_rows=100))
    page = (tmp_path / "evaluation.html").read_text()
    names = {path.stem for path in tmp_path.glob("*.svg")}
    history = bundle.lineage["history"]
    assert names == {f"learning_curve_{metric}" for metric in history} | {
        "importance", "calibration", "lift", "by_time",
    }  # fmt: skip
    for name in names:
        svg = (tmp_path / f"{name}.svg").read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg") and svg in page
    for metric, values in history.items():
        lines = re.findall(r'polyline points="([^"]*)"', (tmp_path / f"learning_curve_{metric}.svg").read_text())
        assert [len(line.split()) for line in lines] == [len(values), 2]
    assert sum(result["importance"].values()) == pytest.approx(1.0)
    assert list(result["importance"]) == sorted(result["importance"], key=lambda name: -result["importance"][name])
    gains = Scorer(bundle).model.booster.get_score(importance_type="total_gain")
    assert next(iter(result["importance"])) == max(gains, key=gains.get)
    svg = (tmp_path / "importance.svg").read_text()
    assert svg.count("<rect") == len(DATASET.feature_list) and all(f.name in svg for f in DATASET.feature_list)
    assert sum(part["rows"] for part in result["lift"]) == result["rows"] and result["lift"][-1]["gain"] == 1.0
    assert (tmp_path / "calibration.svg").read_text().count("<circle") == len(result["reliability"])
    for name in ("auc", "log_loss", "brier", "ece"):
        assert result[name]["low"] < result[name]["high"]


def test_the_learning_curve_of_a_warm_start_keeps_its_own_rounds(bundle, shop_sample, tmp_path):
    lineage = bundle.lineage | {"warm_start": {"rounds": 10}}
    evaluate(replace(bundle, lineage=lineage), shop_sample, tmp_path)
    assert f"kept: {bundle.rounds - 10} rounds" in (tmp_path / "learning_curve_logloss.svg").read_text()


def test_the_baseline_is_the_rate_of_each_group(bundle, tmp_path):
    def table(cities, labels, day=0):
        some = stored_day(DAYS[day], len(cities))
        where = {name: some.column_names.index(name) for name in ("city", LABEL)}
        some = some.set_column(where["city"], "city", pa.array(cities, pa.string()))
        return some.set_column(where[LABEL], LABEL, pa.array(labels, pa.int64()))

    # Bern 1 of 4, Oslo 3 of 4, unknown 4 of 4; Rome is new and gets 8 of 12
    train = table(["Bern"] * 4 + ["Oslo"] * 4 + [None] * 4, [0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1])
    cities, labels = ["Bern", "Bern", "Oslo", "Oslo", None, "Rome"], [0, 1, 1, 0, 1, 0]
    sample = make_sample(tmp_path / "sample", {"train": train, "validate": train, "test": table(cities, labels, 1)})
    order = rows(sample).column("city").to_pylist()
    rates = {"Bern": 1 / 4, "Oslo": 3 / 4, None: 1.0, "Rome": 8 / 12}
    expected = np.array([rates[city] for city in order])
    result = read(evaluate(bundle, sample, tmp_path / "out", baseline=["city"]))
    truth = rows(sample).column(LABEL).to_numpy()
    assert result["baseline"]["auc"] == pytest.approx(reference.roc_auc_score(truth, expected))
    assert result["baseline"]["log_loss"] == pytest.approx(metrics.log_loss(truth, expected))


@pytest.mark.parametrize("name", ["rate", "position", "by_0"])
def test_a_baseline_by_a_column_of_an_unlucky_name(bundle, tmp_path, name):
    table = rows_of(0, 2).append_column(name, pa.array([n % 3 for n in range(240)]))
    sample = make_sample(tmp_path / "sample", {"train": table, "validate": table, "test": table})
    result = read(evaluate(bundle, sample, tmp_path / "out", baseline=[name, "city"]))
    assert result["baseline"]["by"] == [name, "city"] and 0.5 < result["baseline"]["auc"] < 0.7


def test_slices_of_one_class_or_no_value_are_told(bundle, tmp_path):
    table = rows_of(0, 3)
    where, labels = table.column_names.index("city"), table.column(LABEL).to_numpy()
    cities = ["Bern" if label else "Oslo" if n % 2 else None for n, label in enumerate(labels)]
    table = table.set_column(where, "city", pa.array(cities, pa.string()))
    sample = make_sample(tmp_path / "sample", {"train": table, "validate": table, "test": table})
    found = evaluate(bundle, sample, tmp_path / "out", slices=["city"], min_rows=10)
    result = strict((tmp_path / "out" / "evaluation.json").read_text())
    assert [part["value"] for part in result["slices"]] == ["Bern", "NULL", "Oslo"]
    assert [part["auc"] for part in result["slices"]] == [None] * 3
    assert found.auc > 0


def test_slices_that_are_too_small_are_told_and_not_measured(bundle, shop_sample, tmp_path):
    cities = rows(shop_sample).column("city").to_pylist()
    counts = {name or "NULL": cities.count(name) for name in set(cities)}
    limit = max(counts.values())
    result = read(evaluate(bundle, shop_sample, tmp_path, slices=["city"], min_rows=limit))
    assert [(part["value"], part["rows"]) for part in result["slices"]] == [
        (name, count) for name, count in counts.items() if count == limit
    ]
    (small,) = result["slices_not_measured"]
    left = {name: count for name, count in counts.items() if count < limit}
    assert (small["column"], small["values"], small["rows"]) == ("city", len(left), sum(left.values()))
    assert {part["value"]: part["rows"] for part in small["largest"]} == left
    page = (tmp_path / "evaluation.html").read_text()
    assert f"fewer than {limit:,} rows: {len(left)} values of city" in page
    assert all(f"city = {name}</td><td>{count}" in page for name, count in left.items())
    assert read(evaluate(bundle, shop_sample, tmp_path, slices=["city"], min_rows=1))["slices_not_measured"] == []


def test_many_small_slices_are_counted_and_the_largest_named():
    names = [f"a{n}" for n in range(300) for _ in range(1 + n % 3)]
    labels, scores = np.arange(len(names)) % 2.0, np.linspace(0, 1, len(names))
    found, (small,) = parts.slices(pa.table({"name": names}), labels, scores, ["name"], 10)
    assert found == [] and (small["values"], small["rows"]) == (300, len(names))
    assert len(small["largest"]) == parts.MOST_NAMED and {part["rows"] for part in small["largest"]} == {3}


def test_the_windows_of_time_are_measured_day_by_day(bundle, shop_sample, tmp_path):
    result = read(evaluate(bundle, shop_sample, tmp_path, min_rows=100))
    table = rows(shop_sample)
    dates, labels = np.array(table.column("event_date").to_pylist()), table.column(LABEL).to_numpy()
    scores = Scorer(bundle).score_features(data.matrix(table, DATASET.feature_list))
    found = result["by_time"]
    assert found["unit"] == "day" and [(part["from"], part["to"]) for part in found["windows"]] == [
        (str(day), str(day)) for day in DAYS[14:17]
    ]
    for day, part in zip(DAYS[14:17], found["windows"], strict=True):
        inside = dates == day
        assert part["rows"] == inside.sum() and part["label_rate"] == pytest.approx(labels[inside].mean())
        assert part["auc"]["value"] == pytest.approx(reference.roc_auc_score(labels[inside], scores[inside]))
        assert part["auc"]["low"] < part["auc"]["value"] < part["auc"]["high"]
        assert part["log_loss"] == pytest.approx(reference.log_loss(labels[inside], scores[inside]))
        assert part["ece"] == pytest.approx(metrics.ece(labels[inside], scores[inside]))
    page = (tmp_path / "evaluation.html").read_text()
    assert all(f"<td>{part['log_loss']:.4f}</td>" in page for part in found["windows"])
    assert (tmp_path / "by_time.svg").read_text().count("<circle") == 3


def test_days_with_few_rows_are_taken_together_by_the_week_and_the_rest_is_told(bundle, tmp_path):
    table = rows_of(0, 10, 40)  # a week, and three days of the next one
    sample = make_sample(tmp_path / "sample", {"train": table, "validate": table, "test": table})
    found = read(evaluate(bundle, sample, tmp_path / "out", min_rows=200))["by_time"]
    assert found["unit"] == "week" and [part["rows"] for part in found["windows"]] == [280, 120]
    whole, rest = found["windows"]
    assert (whole["from"], whole["to"], rest["from"], rest["to"]) == tuple(
        map(str, (DAYS[0], DAYS[6], DAYS[7], DAYS[9]))
    )
    assert whole["auc"]["value"] > 0.5 and rest["auc"] is None and rest["log_loss"] is None
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "A week with fewer than 200 rows is not measured" in page and f"{DAYS[7]} to {DAYS[9]}</td><td>120" in page
    none = read(evaluate(bundle, sample, tmp_path / "none", min_rows=1000))["by_time"]
    assert [part["auc"] for part in none["windows"]] == [None, None]
    assert not (tmp_path / "none" / "by_time.svg").exists()


def test_the_windows_of_the_splits_are_told_and_follow_each_other(bundle, shop_sample, tmp_path):
    splits = read(evaluate(bundle, shop_sample, tmp_path))["splits"]
    assert {name: (part["from"], part["to"], part["rows"]) for name, part in splits.items()} == {
        "train": (str(DAYS[0]), str(DAYS[10]), 1320),
        "validate": (str(DAYS[11]), str(DAYS[13]), 360),
        "test": (str(DAYS[14]), str(DAYS[16]), 360),
    }
    page = (tmp_path / "evaluation.html").read_text()
    assert f"<td>validate</td><td>{DAYS[11]}</td><td>{DAYS[13]}</td><td>360</td>" in page
    assert "no day is in two of them" in page
    for split, part in splits.items():
        dates = rows(shop_sample, split).column("event_date").to_pylist()
        assert (str(min(dates)), str(max(dates))) == (part["from"], part["to"])


def test_splits_of_entities_are_told_as_such(bundle, shop_lake, tmp_path):
    split = sampling.windows(DAYS[-1], 11, 3, 3, dt.timedelta(0))
    sample = sampling.draw(shop_lake, "orders", split, method="all", groups=("shop",))
    assert read(evaluate(bundle, sample, tmp_path))["groups"] == ["shop"]
    assert "The splits are of entities (shop)" in (tmp_path / "evaluation.html").read_text()


def test_calibration_is_shown_before_and_after_recalibration(bundle, shop_sample, tmp_path):
    table = rows(shop_sample)
    labels = table.column(LABEL).to_numpy()
    raw = Scorer(bundle).raw_scores(data.matrix(table, DATASET.feature_list))
    result = read(evaluate(replace(bundle, recalibration=0.5), shop_sample, tmp_path))
    after = raw * 0.5 / (1 - raw + raw * 0.5)
    told = result["recalibration"]
    assert told["ece_before"] == pytest.approx(metrics.ece(labels, raw))
    assert told["log_loss_before"] == pytest.approx(metrics.log_loss(labels, raw))
    assert told["mean_score_before"] == pytest.approx(raw.mean()) and result["mean_score"] == pytest.approx(
        after.mean()
    )
    assert told["reliability_before"] == metrics.reliability(labels, raw)
    assert result["ece"]["value"] == pytest.approx(metrics.ece(labels, after))
    page = (tmp_path / "evaluation.html").read_text()
    assert "ECE before recalibration by 0.5" in page and "Before it:" in page
    drawn = (tmp_path / "calibration.svg").read_text()
    assert "observed, before recalibration" in drawn
    assert drawn.count("<circle") == len(result["reliability"]) + len(told["reliability_before"])
    plain = read(evaluate(bundle, shop_sample, tmp_path))
    assert plain["recalibration"]["reliability_before"] is None
    assert "before recalibration" not in (tmp_path / "evaluation.html").read_text()


@pytest.mark.parametrize("kind", ["baseline", "slices"])
def test_columns_that_are_not_there(bundle, shop_sample, tmp_path, kind):
    with pytest.raises(ConfigurationError, match=r"unknown columns(.|\n)*city(.|\n)*found: colour"):
        evaluate(bundle, shop_sample, tmp_path / "out", **{kind: ["city", "colour"]})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("labels", "found"), [([0] * 120, "120 rows with 0, 0 with 1"), ([], "0 rows with 0")])
def test_test_rows_that_allow_no_evaluation(bundle, tmp_path, labels, found):
    table = rows_of(0, 1).slice(0, len(labels))
    where = table.column_names.index(LABEL)
    table = table.set_column(where, LABEL, pa.array(labels, pa.int64()))
    sample = make_sample(tmp_path / "sample", {"train": rows_of(0, 1), "validate": rows_of(0, 1), "test": table})
    with pytest.raises(DataError, match=found):
        evaluate(bundle, sample, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_equals_sign_in_its_name(bundle, tmp_path):
    splits = {"train": rows_of(0, 2), "validate": rows_of(2, 3), "test": rows_of(3, 4)}
    sample = make_sample(tmp_path / "city=3" / "sample", splits)
    assert evaluate(bundle, sample, tmp_path / "out", baseline=["city"], slices=["city"], min_rows=10).rows == 120


# --- against the champion ---------------------------------------------------------------------------------------------


def test_the_champion_is_measured_on_the_same_rows(bundle, shop_sample, tmp_path):
    weak = fit(rows_of(0, 1), rounds=1)
    result = read(evaluate(bundle, shop_sample, tmp_path, champion=("3", weak)))
    table = rows(shop_sample)
    labels = table.column(LABEL).to_numpy()
    theirs = Scorer(weak).score_features(data.matrix(table, DATASET.feature_list))
    champion = result["champion"]
    assert champion["version"] == "3" and champion["comparable"]
    assert champion["auc"] == pytest.approx(reference.roc_auc_score(labels, theirs))
    for name in ("auc", "log_loss", "brier", "ece"):
        assert champion[name] == pytest.approx(getattr(metrics, name)(labels, theirs))
        gap = champion["difference"][name]
        assert gap["value"] == pytest.approx(result[name]["value"] - champion[name])
        assert gap["low"] < gap["value"] < gap["high"]
        assert f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" in (
            (tmp_path / "evaluation.html").read_text()
        )
    itself = read(evaluate(bundle, shop_sample, tmp_path, champion=("4", bundle)))
    assert itself["champion"]["difference"]["log_loss"] == {"value": 0, "low": 0, "high": 0}
    assert set(itself["champion"]["difference"]) == {"auc", "log_loss", "brier", "ece"}


def test_a_champion_whose_feature_meant_something_else_is_scored_by_its_own_meaning(bundle, shop_sample, tmp_path):
    features = dict(DATASET.features) | {"rain": "0 - weather.rain"}
    older = shops.make_spec(Path("/nowhere"), features=features).dataset
    champion = fit(stored(older), dataset=older)
    result = read(evaluate(bundle, shop_sample, tmp_path, champion=("1", champion)))
    same = fit(stored(DATASET))
    twin = read(evaluate(bundle, shop_sample, tmp_path, champion=("1", same)))
    assert result["champion"]["auc"] == pytest.approx(twin["champion"]["auc"], abs=0.03)
    assert result["champion"]["auc"] > 0.55


def stored(dataset):
    return pa.concat_tables([stored_day(day, 200, dataset=dataset) for day in DAYS[:8]])


def test_a_champion_that_needs_a_column_that_is_gone_cannot_be_compared(bundle, tmp_path):
    table = rows_of(0, 2)
    champion = fit(table)
    less = {name: text for name, text in DATASET.features.items() if name != "rain"}
    newer = fit(table, dataset=shops.make_spec(Path("/nowhere"), features=less).dataset)
    table = table.drop_columns(["rain", "weather__rain"])
    sample = make_sample(tmp_path / "sample", {"train": table, "validate": table, "test": table})
    result = read(evaluate(newer, sample, tmp_path / "out", champion=("7", champion)))
    assert result["champion"] == {"version": "7", "comparable": False, "missing": ["weather.rain"]}
