"""The sampling pass against the engine's own scan, and the planner's choice against the true loss.

``pass``: drawing a sample by entity from a lake table of N rows (``ROWS``, 3 million unless the variable ``SML_ROWS``
says otherwise), against DuckDB reading the same files, all columns, into nothing, and against DuckDB copying the same
rows into one file of its own. Each in a process of its own, which opens the lake first. The sample holds a tenth or
half of the training days' entities, and all rows of the later days.

``planner``: on the real flights and two splits (the days in order, and rows at random), five seeds each, with two
tolerances: the rate that was chosen, its expected loss, and the true loss, measured on rows that the planner never saw,
against a model on all rows.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np

from benchmarks._flights import CATEGORIES, FEATURES, bootstrap, flights
from benchmarks._harness import PROJECT, Row, interleave, report, seconds

ROWS = int(os.environ.get("SML_ROWS", "3000000"))
SEEDS = int(os.environ.get("SML_SEEDS", "5"))
TOLERANCES = (0.002, 0.01)
PARAMS = {"max_depth": 6, "learning_rate": 0.1, "tree_method": "hist", "objective": "binary:logistic", "seed": 7}

DRAW = """
import sys, shutil
from benchmarks.sampling import open_lake, WINDOWS
from airflow_provider_sml.ml import sampling
lake = open_lake(sys.argv[1])
shutil.rmtree(lake.root / "samples", ignore_errors=True)
print(sampling.draw(lake, "flights", WINDOWS, method="hash", by=["tailnum"], rate=float(sys.argv[2])).rows)
"""
SCAN = """
import sys, duckdb
from benchmarks.sampling import open_lake
files = [file.path for file in open_lake(sys.argv[1]).files("flights")]
reader = duckdb.sql("SELECT * FROM read_parquet(?)", params=[files]).to_arrow_reader(262144)
print(sum(batch.num_rows for batch in reader))
"""
COPY = """
import sys, duckdb
from benchmarks.sampling import open_lake, WINDOWS
from airflow_provider_sml.ml.sampling.methods import keep_sql
lake = open_lake(sys.argv[1])
(first, last), (_, end) = WINDOWS["train"], WINDOWS["test"]
files = [file.path for file in lake.files("flights", None, first, end)]
keep = f"event_date > DATE '{last}' OR {keep_sql(['tailnum'], float(sys.argv[2]), 7)}"
query = f"SELECT * FROM read_parquet(?) WHERE label IS NOT NULL AND ({keep})"
duckdb.execute(f"COPY ({query}) TO '{sys.argv[1]}/copy.parquet' (FORMAT parquet, COMPRESSION zstd)", [files])
"""


def open_lake(location: str):  # type: ignore[no-untyped-def]
    from airflow_provider_sml.ml.lake import Lake

    return Lake(location)


def _windows():  # type: ignore[no-untyped-def]
    import datetime as dt

    from airflow_provider_sml.ml import sampling

    return sampling.windows(dt.date(2013, 12, 31), 300, 30, 35, dt.timedelta(0))


WINDOWS = _windows()


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        make_table(folder, ROWS)
        for rate in ("0.1", "0.5"):
            case = f"pass {ROWS:,} rows, rate {rate}"
            ours, base = (partial(seconds, [sys.executable, "-c", code, folder, rate]) for code in (DRAW, SCAN))
            rows.append(Row(case, "wall", *interleave(ours, base, 5), "ratio <= 1.2"))
            copy = partial(seconds, [sys.executable, "-c", COPY, folder, rate])
            rows.append(Row(f"{case}, against the engine's copy", "wall", *interleave(ours, copy, 5)))
    rows += [row for split in ("time", "random") for tolerance in TOLERANCES for row in planner(split, tolerance)]
    report("sampling", rows)


def make_table(folder: str, rows: int) -> None:
    """A lake table of bootstrapped flights, made in a process of its own so that its memory is given back."""
    code = f"from benchmarks.sampling import fill; fill({folder!r}, {rows})"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def fill(folder: str, rows: int) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lake, table = open_lake(folder), bootstrap(rows)
    kinds = {"double": "double", "string": "string", "int64": "int", "date32[day]": "date"}
    columns = [(field.name, kinds[str(field.type)]) for field in table.schema]
    staged = lake.stage("flights", "bench")
    staged.mkdir(parents=True)
    days = sorted(set(table.column("event_date").to_pylist()))
    for day in days:
        part = table.filter(pc.equal(table.column("event_date"), day))
        pq.write_table(part, staged / f"{day}.parquet", compression="zstd")
    lake.publish("flights", columns, sorted(staged.glob("*.parquet")), days[0], days[-1], {})


def planner(split: str, tolerance: float) -> list[Row]:
    """The planner's rates and losses on the real flights, and the true losses."""
    from airflow_provider_sml.ml.sampling.planner import plan_rate

    frame = flights()
    codes = frame[list(FEATURES)].copy()
    for name in CATEGORIES:
        codes[name] = codes[name].astype("category").cat.codes
    x, y = codes.to_numpy(dtype=np.float32), frame["label"].to_numpy(dtype=float)
    order = np.argsort(frame["event_date"].to_numpy(), kind="stable")
    chosen, expected, true = [], [], []
    for seed in range(SEEDS):
        if split == "random":
            order = np.random.default_rng(seed).permutation(len(x))
        learn, hold, test = np.split(order, [int(0.6 * len(order)), int(0.75 * len(order))])
        plan = plan_rate(
            lambda rate, number, learn=learn, hold=hold, seed=seed: trial(x, y, learn, hold, rate, 100 * seed + number),
            len(learn), tolerance,
        )  # fmt: skip
        chosen.append(plan.rate)
        expected.append(plan.chosen.loss if plan.chosen else 0.0)
        thin = auc_on(x, y, learn, test, plan.rate, 1000 + seed)
        true.append(auc_on(x, y, learn, test, 1.0, 0) - thin if plan.found else 0.0)
        print(
            f"{split} split, tolerance {tolerance}, seed {seed}: rate {plan.rate}, "
            f"expected {expected[-1]:.4f}, true {true[-1]:.4f}",
            file=sys.stderr,
        )
    case = f"planner, {split} split, tolerance {tolerance}"
    return [
        Row(f"{case}: median rate", "share", statistics.median(chosen), 1.0),
        Row(f"{case}: expected loss", "AUC", statistics.mean(expected), None),
        Row(f"{case}: true loss", "AUC", statistics.mean(true), None, f"at most {tolerance}"),
        Row(f"{case}: largest true loss", "AUC", max(true), None),
    ]


def trial(x: np.ndarray, y: np.ndarray, learn: np.ndarray, hold: np.ndarray, rate: float, seed: int):  # type: ignore[no-untyped-def]
    import time

    import xgboost

    from airflow_provider_sml.ml.sampling.planner import Trial

    kept = learn[np.random.default_rng(seed).random(len(learn)) < rate]
    started = time.monotonic()
    booster = xgboost.train(PARAMS, xgboost.QuantileDMatrix(x[kept], y[kept]), 100)
    taken = time.monotonic() - started
    return Trial(len(kept), taken, y[hold], booster.predict(xgboost.DMatrix(x[hold])).astype(float))


def auc_on(x: np.ndarray, y: np.ndarray, learn: np.ndarray, test: np.ndarray, rate: float, seed: int) -> float:
    from airflow_provider_sml.ml.training import metrics

    found = trial(x, y, learn, test, rate, seed)
    return metrics.auc(found.labels, found.scores)


if __name__ == "__main__":
    main()
