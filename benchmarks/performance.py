"""Estimates of performance without labels, back-tested on the flights of 2013; a large day joined in bounded memory.

``estimate``: a model of January to April scores every day from May to December; each day is estimated by what was known
on its evening (labels a day later, calibrated on 28 days) and compared with what its labels then showed. The baseline
is the plain guess: the measure over the 28 days before. The error by month goes to the standard error.

``day``: one day of ``ROWS`` rows (``SML_ROWS``, 2 million), its predictions joined with its labels and measured,
against loading both sides into memory and asking scikit-learn; each in a process of its own.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._flights import CATEGORIES, FEATURES, flights
from benchmarks._harness import Row, process, report

ROWS = int(os.environ.get("SML_ROWS", "2000000"))
TRAINED_TO = dt.date(2013, 4, 30)
DELAY, WINDOW = dt.timedelta(days=1), dt.timedelta(days=28)
PARAMS = {"max_depth": 6, "learning_rate": 0.1, "tree_method": "hist", "objective": "binary:logistic", "seed": 7}
KEY = ["flight_id"]
DAY = dt.date(2013, 7, 1)

OURS = """
import sys
from benchmarks.performance import DAY, KEY, open_lake
from airflow_provider_sml.ml.monitoring.performance import realised
print(realised(open_lake(sys.argv[1]), "flights", KEY, [DAY]))
"""
PLAIN = """
import sys
from benchmarks.performance import DAY, KEY, open_lake
from airflow_provider_sml.ml.monitoring.predictions import read_days, row_keys
from sklearn.metrics import log_loss, roc_auc_score
lake = open_lake(sys.argv[1])
rows = read_days(lake, "flights", DAY, DAY)
rows = rows.append_column("row_key", row_keys(rows, KEY)).to_pandas()
both = rows.merge(read_days(lake, "flights_predictions", DAY, DAY).to_pandas(), on="row_key")
label = rows.columns[1]
print(roc_auc_score(both[label], both["score"]), log_loss(both[label], both["score"]))
"""


def main() -> None:
    """Run both cases."""
    with tempfile.TemporaryDirectory() as folder:
        rows = estimates(folder)
    with tempfile.TemporaryDirectory() as folder:
        rows += large_day(folder)
    report("performance", rows)


def open_lake(folder: str):  # type: ignore[no-untyped-def]
    """The lake of a folder."""
    from airflow_provider_sml.ml.lake import Lake

    return Lake(folder)


def put(folder: str, days: Mapping[dt.date, Iterable[np.ndarray]]) -> None:
    """Publish days: numbers of the rows, labels and scores."""
    from airflow_provider_sml.ml.contract import LABEL
    from airflow_provider_sml.ml.monitoring.predictions import COLUMNS as PREDICTED
    from airflow_provider_sml.ml.monitoring.predictions import row_keys

    lake, first, last = open_lake(folder), min(days), max(days)
    columns = [("flight_id", "int"), (LABEL, "int"), ("event_date", "date")]
    folders = {name: lake.stage(name, "bench") for name in ("flights", "flights_predictions")}
    for path in folders.values():
        path.mkdir(parents=True)
    for day, (numbers, labels, scores) in days.items():
        size = len(numbers)
        rows = pa.table({"flight_id": numbers, LABEL: labels, "event_date": pa.array([day] * size, pa.date32())})
        pq.write_table(rows, folders["flights"] / f"{day}.parquet")
        logged = {
            "row_key": row_keys(rows, KEY), "score": scores, "model_version": pa.array(["1"] * size),
            "model_id": pa.array(["bench"] * size), PREDICTED[-1][0]: pa.array([day] * size, pa.date32()),
        }  # fmt: skip
        pq.write_table(pa.table(logged), folders["flights_predictions"] / f"{day}.parquet")
    for name, kinds in (("flights", columns), ("flights_predictions", PREDICTED)):
        lake.publish(name, kinds, sorted(folders[name].glob("*.parquet")), first, last, {})


def scored_year(folder: str) -> list[dt.date]:
    """Train on the first months and publish the scores of the others; gives their days."""
    import xgboost

    frame = flights()
    names = [name for name in FEATURES if name not in ("month", "day")]
    codes = frame[names].copy()
    for name in CATEGORIES:
        codes[name] = codes[name].astype("category").cat.codes
    x, y = codes.to_numpy(dtype=np.float32), frame["label"].to_numpy(dtype=np.int64)
    day = frame["event_date"].to_numpy()
    early = day <= TRAINED_TO
    booster = xgboost.train(PARAMS, xgboost.QuantileDMatrix(x[early], y[early]), 200)
    scores = booster.predict(xgboost.DMatrix(x)).astype(float)
    watched = sorted(set(day[~early]))
    numbers = frame["flight_id"].to_numpy()
    put(folder, {d: (numbers[day == d], y[day == d], scores[day == d]) for d in watched})
    return watched


def estimates(folder: str) -> list[Row]:
    """The back-test."""
    from airflow_provider_sml.ml.monitoring import estimate
    from airflow_provider_sml.ml.monitoring.performance import day_scores

    days = scored_year(folder)
    known = day_scores(open_lake(folder), "flights", KEY, days)
    tested = estimate.backtest(known, DELAY, WINDOW)
    print("month    days  AUC: error (plain)   log loss: error (plain)   Brier: error (plain)", file=sys.stderr)
    for month in sorted({day["day"][:7] for day in tested}):
        found = estimate.summary([day for day in tested if day["day"].startswith(month)])
        cells = [
            f"{found[name]['estimated']['error']:.4f} ({found[name]['plain']['error']:.4f})"
            for name in estimate.MEASURES
        ]
        print(f"{month}  {found['days']:>4}  " + "        ".join(cells), file=sys.stderr)
    found = estimate.summary(tested)
    rows = [
        Row(f"estimate of {name}, {found['days']} days", f"mean absolute error of {name}",
            found[name]["estimated"]["error"], found[name]["plain"]["error"], "ratio < 1")
        for name in estimate.MEASURES
    ]  # fmt: skip
    return [*rows, Row("intervals of 95 %", "share of days inside, AUC", covered(known, tested), None, "about 0.95")]


def covered(known, tested) -> float:  # type: ignore[no-untyped-def]
    """Share of the days whose realised AUC lies in the interval that was estimated by earlier errors."""
    from airflow_provider_sml.ml.monitoring import estimate

    by_day, inside = {scores.day.isoformat(): scores for scores in known}, []
    for position, day in enumerate(tested):
        before = tested[max(position - 28, 0) : max(position - 1, 0)]
        if len(before) < estimate.ENOUGH_DAYS:
            continue
        scores = by_day[day["day"]]
        calibrator = estimate.calibrator_for(scores.day, scores.version, known, DELAY, WINDOW)
        guess = estimate.estimate(scores, calibrator, estimate.errors_of(before))
        inside.append(guess["auc_low"] <= day["realised"]["auc"] <= guess["auc_high"])
    return float(np.mean(inside))


def large_day(folder: str) -> list[Row]:
    """One day of many rows."""
    generator = np.random.default_rng(7)
    scores = generator.beta(1, 4, ROWS)
    put(folder, {DAY: (np.arange(ROWS), (generator.random(ROWS) < scores).astype(np.int64), scores)})
    ours, plain = (process([sys.executable, "-c", code, folder]) for code in (OURS, PLAIN))
    case = f"one day of {ROWS:,} rows"
    return [Row(case, "peak MB", ours.peak, plain.peak), Row(case, "CPU seconds", ours.cpu, plain.cpu)]


if __name__ == "__main__":
    main()
