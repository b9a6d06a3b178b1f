"""What scores were worth once labels are known, what is estimated before, and what was served beside what is stored."""

import base64
import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import estimate, nightly, performance, predictions
from airflow_provider_sml.ml.monitoring.bins import ScoreBins, log_odds, probability
from airflow_provider_sml.ml.monitoring.performance import DayScores, realised
from airflow_provider_sml.ml.monitoring.served import LocalLog, SageMakerCapture, VertexRequests
from airflow_provider_sml.ml.monitoring.skew import row_id, skew
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.serving.log import PredictionLog
from airflow_provider_sml.ml.serving.stored import instances
from airflow_provider_sml.ml.training import data, metrics
from tests.ml.test_lake_shops import DATASET, publish, stored_day
from tests.trained import DAYS

ONE, KEY = dt.timedelta(days=1), ["order"]
WATCH = nightly.Watch(label_known_after=ONE, window=dt.timedelta(days=5), min_rows=40)


@pytest.fixture(scope="module")
def scorer(shop_model):
    return Scorer(Bundle.read(Path(shop_model.uri)))


@pytest.fixture
def lake(tmp_path, scorer):
    """Six days with their labels, all scored by version 1."""
    made = Lake(str(tmp_path / "lake"))
    publish(made, {day: stored_day(day, 60) for day in DAYS[:6]})
    for day in DAYS[:6]:
        log(made, scorer, day)
    return made


def log(lake, scorer, day, version="1"):
    rows = predictions.scored(predictions.read_days(lake, "orders", day, day), scorer)
    return predictions.log_predictions(lake, "orders", rows, KEY, version, scorer, day)


def put(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


# --- realised ---------------------------------------------------------------------------------------------------------


def test_the_worth_of_the_scores_is_that_of_the_joined_labels(lake, scorer):
    log(lake, scorer, DAYS[1], version="2")
    truth = {day: stored_day(day, 60) for day in DAYS[:2]}
    labels = truth[DAYS[1]].column(LABEL).to_pylist()
    truth[DAYS[1]] = put(truth[DAYS[1]], LABEL, [None if n < 20 else label for n, label in enumerate(labels)])
    publish(lake, {DAYS[1]: truth[DAYS[1]].take(list(reversed(range(60))))})
    found = realised(lake, "orders", KEY, [DAYS[9], DAYS[0], DAYS[1]])
    assert [(item["day"], item["rows"], item["coverage"], item["version"]) for item in found] == [
        (str(DAYS[0]), 60, 1.0, "1"), (str(DAYS[1]), 40, 0.6667, "2"),
    ]  # fmt: skip
    for item, day in zip(found, DAYS, strict=False):
        known = truth[day].filter(truth[day].column(LABEL).is_valid())
        scores = scorer.score_features(data.matrix(known, DATASET.feature_list))
        label = known.column(LABEL).to_numpy()
        assert item["auc"] == pytest.approx(roc_auc_score(label, scores))
        assert item["log_loss"] == pytest.approx(log_loss(label, scores))
        assert item["brier"] == pytest.approx(brier_score_loss(label, scores))
        assert item["ece"] == pytest.approx(metrics.ece(label, scores))
        assert item["calibration"] == pytest.approx(scores.mean() - label.mean())
        for name in ("auc", "log_loss", "brier", "ece", "calibration"):
            assert item[f"{name}_low"] < item[name] < item[f"{name}_high"] or name == "ece"


def test_intervals_are_as_wide_as_those_of_a_bootstrap():
    generator = np.random.default_rng(3)
    scores = np.round(generator.beta(2, 5, 3000), 2)  # with many ties
    labels = (generator.random(3000) < scores).astype(float)
    distinct, place = np.unique(scores, return_inverse=True)
    up = np.bincount(place, labels)
    measured = performance._Measured(3000 - labels.sum(), labels.sum())
    for part in np.array_split(np.arange(len(distinct)), 7):
        measured.add(distinct[part], np.bincount(place)[part] - up[part], up[part])
    found, drawn = measured.result(7), metrics.intervals(labels, scores, repeats=400)
    for name in ("auc", "log_loss", "brier"):
        assert found[name] == pytest.approx(drawn[name].value)
        width = drawn[name].high - drawn[name].low
        assert found[f"{name}_high"] - found[f"{name}_low"] == pytest.approx(width, rel=0.15)


def test_a_day_of_one_label_has_no_auc(lake):
    publish(lake, {DAYS[0]: put(stored_day(DAYS[0], 60), LABEL, [1] * 60)})
    [found] = realised(lake, "orders", KEY, DAYS[:1])
    assert (found["auc"], found["rate"]) == (None, 1.0) and found["log_loss"] > 0


def test_a_kept_day_is_read_again_until_its_files_change(lake, tmp_path):
    kept = tmp_path / "kept"
    before = realised(lake, "orders", KEY, DAYS[:2], kept)
    path = kept / f"{DAYS[0]}-labels.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"measures": stored["measures"] | {"auc": 0.123}}))
    assert realised(lake, "orders", KEY, DAYS[:1], kept)[0]["auc"] == 0.123
    path.write_text("{")
    assert realised(lake, "orders", KEY, DAYS[:2], kept) == before
    publish(lake, {DAYS[0]: stored_day(DAYS[0], 40)})
    assert [day["rows"] for day in realised(lake, "orders", KEY, DAYS[:2], kept)] == [40, 60]


def test_labels_count_from_their_maturity_on():
    night = dt.date(2026, 3, 10)
    days = dt.timedelta(days=3)
    assert performance.mature_days(night, dt.timedelta(hours=30), days) == [dt.date(2026, 3, n) for n in (6, 7, 8)]
    assert performance.young_days(night, dt.timedelta(hours=30)) == [dt.date(2026, 3, 9), night]
    assert performance.mature_days(night, dt.timedelta(0), ONE) == performance.young_days(night, dt.timedelta(0))


# --- estimates --------------------------------------------------------------------------------------------------------


def day_of(number, rows=4000, intercept=0.0, slope=1.0, spread=1.0, version="1"):
    """A day whose labels follow from its scores by a logistic curve, and what they were worth."""
    generator = np.random.default_rng(number)
    scores = probability(generator.normal(-1, spread, rows))
    labels = (generator.random(rows) < probability(intercept + slope * log_odds(scores))).astype(float)
    measures = {"rows": rows, "rate": labels.mean(), **metrics.values(labels, scores)}
    bins = ScoreBins.of(scores, np.ones(rows), np.ones(rows), labels)
    return DayScores(dt.date(2026, 3, 1) + number * ONE, version, bins, measures)


def test_a_calibration_finds_the_curve_and_estimates_what_labels_then_show():
    known = [day_of(n, intercept=-0.5, slope=0.7) for n in range(8)]
    fitted = estimate.calibrate(ScoreBins.total([day.bins for day in known]))
    assert (fitted.intercept, fitted.slope) == (pytest.approx(-0.5, abs=0.05), pytest.approx(0.7, abs=0.05))
    today = day_of(50, rows=40_000, intercept=-0.5, slope=0.7, spread=0.4)  # much harder to tell apart than before
    found, plain = estimate.estimate(today, fitted, {}), estimate.expected(today.bins, estimate.Calibrator())
    for name in estimate.MEASURES:
        assert found[name] == pytest.approx(today.measures[name], abs=0.01)
        assert found[f"{name}_low"] < today.measures[name] < found[f"{name}_high"]
    assert abs(plain["log_loss"] - today.measures["log_loss"]) > 0.03, "scores as they are would mislead"
    assert today.measures["auc"] < known[0].measures["auc"] - 0.05
    assert found["rate"] == pytest.approx(today.measures["rate"], abs=0.01) and found["auc_bin"] < 0.02


@pytest.mark.parametrize("positive", [0.0, 1.0])
def test_a_calibration_on_one_label_or_none_stays_a_probability(positive):
    scores = np.full(50, 0.3)
    bins = ScoreBins.of(scores, np.ones(50), np.ones(50), np.full(50, positive))
    assert 0 < estimate.calibrate(bins).of(scores)[0] < 1
    assert estimate.calibrate(ScoreBins.of(scores)).of(scores)[0] == pytest.approx(0.3)
    assert estimate.expected(bins, estimate.calibrate(bins))["auc"] == 0.5


def test_a_back_test_knows_nothing_that_was_not_known_then():
    known = [day_of(n, intercept=0.4) for n in range(20)]
    tested = estimate.backtest(known, 2 * ONE, 7 * ONE)
    assert [day["day"] for day in tested] == [str(day.day) for day in known[2:]], "no calibration before"
    later = [day_of(n, intercept=-3) for n in range(9, 20)]
    again = estimate.backtest([*known[:9], *later], 2 * ONE, 7 * ONE)
    assert [day["estimated"] for day in again[:7]] == [day["estimated"] for day in tested[:7]]
    other = [replace(day, version="2") if n > 9 else day for n, day in enumerate(known)]
    assert str(known[11].day) not in [day["day"] for day in estimate.backtest(other, 2 * ONE, 7 * ONE)]
    found = estimate.summary(tested)
    assert found["days"] == 18 and found["log_loss"]["estimated"]["error"] < 0.02
    errors = {name: [0.2, *values] for name, values in estimate.errors_of(tested).items()}
    wide = estimate.estimate(known[0], estimate.Calibrator(), errors)
    assert wide["interval"] == "errors of 19 days" and wide["auc_low"] == pytest.approx(wide["auc"] - 0.2)


def test_bins_of_days_add_up_and_are_kept():
    one, other = day_of(1), day_of(2)
    total = one.bins + ScoreBins.from_json(json.loads(json.dumps(other.bins.to_json())))
    assert total.rows.sum() == 8000 and total.positive.sum() == one.bins.positive.sum() + other.bins.positive.sum()
    assert total.score.sum() == pytest.approx(one.bins.score.sum() + other.bins.score.sum())
    rare = ScoreBins.of(np.array([1e-4, 1.5e-4, 0.0, 1.0, 0.5]))
    assert len(rare.used) == 5, "small probabilities keep their order"


# --- skew -------------------------------------------------------------------------------------------------------------


def serve(lake, scorer, folder, changed=lambda n, row: row, version="1"):
    """The day's first rows asked of the server, as its log holds them."""
    table = predictions.read_days(lake, "orders", DAYS[3], DAYS[3]).slice(0, 40)
    rows = [changed(n, row) for n, row in enumerate(instances(table, list(scorer.columns)))]
    log = PredictionLog(folder, clock=lambda: dt.datetime.combine(DAYS[3], dt.time(9), dt.UTC))
    ids = [row_id([order]) for order in table.column("order").to_pylist()]
    scores = predictions.scored(table, scorer).column("score").to_pylist()
    log.append(
        [
            {"id": name, "model": "orders", "version": version, "features": row, "score": score}
            for name, row, score in zip(ids, rows, scores, strict=True)
        ]
    )
    log.close()


def test_served_values_that_are_those_of_the_lake_have_no_skew(lake, scorer, tmp_path):
    serve(lake, scorer, tmp_path / "log")
    found = skew(lake, "orders", DAYS[3], scorer, "1", LocalLog(tmp_path / "log"))
    assert (found["logged"], found["matched"], found["damaged"]) == (40, 40, 0)
    assert {one["differ"] for one in [*found["features"], found["score"]]} == {0.0}
    assert skew(lake, "orders", DAYS[3], scorer, "2", LocalLog(tmp_path / "log")) is None, "another version answered"
    assert skew(lake, "orders", DAYS[2], scorer, "1", LocalLog(tmp_path / "log")) is None, "before they were asked"
    assert skew(lake, "orders", DAYS[3], scorer, "1", LocalLog(tmp_path / "none")) is None


def test_other_values_at_serving_are_told_by_feature(lake, scorer, tmp_path):
    def changed(n, row):
        if n < 10:
            row = row | {"weight": row["weight"] + 2}
        return row if n < 30 else {name: value for name, value in row.items() if name != "weather.rain"}

    serve(lake, scorer, tmp_path, changed)
    with next(tmp_path.glob("*.jsonl")).open("a") as file:
        file.write('{"id": "7", "version": "1", "feat')
    found = skew(lake, "orders", DAYS[3], scorer, "1", LocalLog(tmp_path))
    told = {one["name"]: one for one in found["features"]}
    assert (told["weight"]["differ"], told["weight"]["difference"]) == (0.25, pytest.approx(0.5))
    assert told["rain"]["differ"] == told["rain"]["missing"] == pytest.approx(0.25, abs=0.06)  # some never had rain
    assert told["city"]["difference"] is None and {told["city"]["differ"], told["age"]["differ"]} == {0.0}
    assert found["features"][0]["name"] in ("weight", "rain") and found["damaged"] == 1
    assert nightly._of_skew({"skew": found}, WATCH)[0]["text"].endswith("of 40 rows")


def captured(requests, folder, variant="main", encoding="JSON"):
    """Requests and answers of bodies, as SageMaker's data capture lays them down."""

    def side(text, mode):
        data = base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text
        return {"observedContentType": "application/json", "mode": mode, "data": data, "encoding": encoding}

    for number, (when, sent, answered) in enumerate(requests):
        line = {
            "captureData": {"endpointInput": side(sent, "INPUT"), "endpointOutput": side(answered, "OUTPUT")},
            "eventMetadata": {"eventId": str(number), "inferenceTime": when}, "eventVersion": "0",
        }  # fmt: skip
        moment = dt.datetime.fromisoformat(when)
        path = folder / variant / f"{moment:%Y/%m/%d/%H}" / f"{moment:%M-%S}-{number % 2}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def bodies(folder, version, size=7):
    """The local log's predictions as bodies of requests of some instances, and of their answers."""
    [path] = folder.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        sent = {"instances": [{"id": line["id"], **line["features"]} for line in part]}
        answered = {"predictions": [line["score"] for line in part], "model": "orders", "version": version}
        yield part[0]["time"], json.dumps(sent), json.dumps(answered | {"ids": [line["id"] for line in part]})


def test_logs_of_sagemaker_and_vertex_tell_the_same_as_the_servers_own(lake, scorer, tmp_path):
    def changed(n, row):
        return row | {"weight": row["weight"] + 2} if n < 10 else row

    serve(lake, scorer, tmp_path / "log", changed)
    own = skew(lake, "orders", DAYS[3], scorer, "1", LocalLog(tmp_path / "log"))
    assert own["matched"] == 40 and own["features"][0]["name"] == "weight"
    requests = list(bodies(tmp_path / "log", "1"))
    for encoding in ("JSON", "BASE64"):
        folder = tmp_path / encoding / "orders"
        captured(requests, folder, encoding=encoding)
        captured(bodies(tmp_path / "log", "2"), folder, "shadow", encoding)
        captured([("2025-01-01T00:00:00Z", "", "")], folder)
        assert skew(lake, "orders", DAYS[3], scorer, "1", SageMakerCapture(folder)) == own
        captured([(requests[0][0], "1,2,3", "0.5")], folder, "csv", encoding)
        assert skew(lake, "orders", DAYS[3], scorer, "1", SageMakerCapture(folder)) == own | {"damaged": 1}
    assert skew(lake, "orders", DAYS[3], scorer, "1", SageMakerCapture(tmp_path / "none")) is None

    def row(when, sent, answered, deployed="1"):
        moment = dt.datetime.fromisoformat(when)
        return {"deployed_model_id": deployed, "logging_time": moment, "request_payload": sent,
                "response_payload": answered}  # fmt: skip

    whole = [row(when, [sent], [answered]) for when, sent, answered in requests]
    parts = [
        row(when, *([json.dumps(one) for one in json.loads(text)[key]] for text, key in pairs))
        for when, pairs in (
            (when, ((sent, "instances"), (answered, "predictions"))) for when, sent, answered in requests
        )
    ]
    asked = []

    def compared(logged, versions=None):
        def rows(start, end):
            asked.append((start, end))
            return logged

        return skew(lake, "orders", DAYS[3], scorer, "1", VertexRequests(rows, versions or {}))

    assert compared(whole) == compared(parts, {"1": "1"}) == own
    assert asked[0][1] == dt.datetime.combine(DAYS[4], dt.time(), dt.UTC)
    assert compared([row("2026-03-04T09:00:00+00:00", ["{"], ["{}"]), *whole]) == own | {"damaged": 1}
    assert compared(parts, {"1": "2"}) is None


# --- the night --------------------------------------------------------------------------------------------------------


def night_of(lake, scorer, folder, sample, night, watch=WATCH):
    files = split_files(sample, "test")
    return nightly.night_report("orders", "1", night, lake, "orders", scorer, watch, folder, tested=files)


def test_a_night_tells_what_is_realised_and_what_is_estimated(lake, scorer, shop_sample, tmp_path):
    report = night_of(lake, scorer, tmp_path, shop_sample, DAYS[5])
    assert [day["day"] for day in report["realised"]] == [str(day) for day in DAYS[:5]]
    assert [day["day"] for day in report["estimated"]] == [str(DAYS[5])], "its labels are in the lake, and not mature"
    assert report["reference"]["auc"] > 0.6 and report["backtest"]["days"] == 5
    assert report["findings"] == []
    first = (tmp_path / f"{DAYS[5]}.json").read_bytes()
    night_of(lake, scorer, tmp_path / "again", shop_sample, DAYS[5])
    assert (tmp_path / "again" / f"{DAYS[5]}.json").read_bytes() == first
    page = (tmp_path / f"{DAYS[5]}.html").read_text()
    assert "Error of the estimates on 5 of these days" in page and f"<td>{DAYS[4]}</td>" in page


def test_labels_that_contradict_the_scores_are_critical(lake, scorer, shop_sample, tmp_path):
    upside_down = stored_day(DAYS[4], 60)
    upside_down = put(upside_down, LABEL, [1 - label for label in upside_down.column(LABEL).to_pylist()])
    publish(lake, {DAYS[4]: upside_down})
    [found, *_] = night_of(lake, scorer, tmp_path, shop_sample, DAYS[5])["findings"]
    assert (found["kind"], found["severity"]) == ("performance", "critical") and str(DAYS[4]) in found["text"]
    few = night_of(lake, scorer, tmp_path, shop_sample, DAYS[5], replace(WATCH, min_rows=1000))["findings"]
    assert "performance" not in [one["kind"] for one in few]


def test_labels_that_do_not_come_and_scores_that_lie_off_are_told(lake, scorer, shop_sample, tmp_path):
    for day in DAYS[:5]:
        publish(lake, {day: put(stored_day(day, 60), LABEL, [0 if n % 8 else 1 for n in range(60)])})
    gone = [0 if n < 40 else None for n in range(60)]
    publish(lake, {DAYS[4]: put(stored_day(DAYS[4], 60), LABEL, gone)})
    report = night_of(lake, scorer, tmp_path, shop_sample, DAYS[5], replace(WATCH, coverage=0.9, calibration=0.02))
    kinds = {one["kind"]: one["text"] for one in report["findings"]}
    assert kinds["labels"] == f"67% of the rows of {DAYS[4]} have a label"
    assert kinds["calibration"].startswith("scores lie +")
