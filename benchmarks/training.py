"""Training against raw ``xgboost.train`` on the same files: wall and CPU seconds of whole processes, in pairs.

The rows are bootstrapped from the real flights: 3 million, unless the variable ``SML_ROWS`` says otherwise; rounds are
20, 100 and 500 (``SML_ROUNDS``). ``cold`` starts a process and a cluster for each training; ``standing`` trains on a
cluster whose imports are done, against raw training in a process whose imports are done. Ours writes checkpoints, as it
does in production.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks._flights import CATEGORIES, FEATURES, NUMBERS, bootstrap, write_shards
from benchmarks._harness import PROJECT, Row, cpu_seconds, interleave, report, seconds

ROWS = int(os.environ.get("SML_ROWS", "3000000"))
ROUNDS = [int(n) for n in os.environ.get("SML_ROUNDS", "20,100,500").split(",")]
REPEATS = int(os.environ.get("SML_REPEATS", "3"))
PARAMS = {"max_depth": 6, "learning_rate": 0.1, "objective": "binary:logistic", "tree_method": "hist", "seed": 7}


def dataset():  # type: ignore[no-untyped-def]
    """The dataset of the bootstrapped files."""
    from airflow_provider_sml.ml.contract import Dataset

    values = {
        "carrier": ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"],
        "origin": ["EWR", "JFK", "LGA"],
    }
    columns = {name: {"type": "double"} for name in NUMBERS}
    columns |= {name: {"type": "string", "values": values[name]} for name in CATEGORIES}
    columns |= {"flight_id": {"type": "int", "required": True}, "at": {"type": "timestamp", "required": True}}
    columns |= {"late": {"type": "boolean", "known": "after"}}
    return Dataset(
        name="flights", source={"path": "{date}"}, label="late", features={name: name for name in FEATURES},
        contract={"key": ["flight_id"], "event_time": "at", "columns": columns},
    )  # fmt: skip


def train_ours(folder: str, rounds: int, client: object = None) -> None:
    """Train as the operator does."""
    from airflow_provider_sml.ml.training.cluster import cluster
    from airflow_provider_sml.ml.training.trainer import Training, train
    from airflow_provider_sml.refs import SampleRef

    counts = {"train": ROWS, "validate": ROWS // 10}
    sample = SampleRef(folder, f"bench{rounds}", "flights", 1, "all", 1.0, counts)
    with tempfile.TemporaryDirectory() as out:
        params = PARAMS | {"rounds": rounds, "early_stopping": rounds, "device": "cpu"}
        training = Training(dataset(), sample, params, checkpoint=Path(out) / "checkpoints")
        if client is not None:
            train(training, client, Path(out) / "models", print)  # type: ignore[arg-type]
            return
        with cluster("local") as made:
            train(training, made, Path(out) / "models", print)


def train_raw(folder: str, rounds: int) -> None:
    """The plain way: read the files, make matrices, train."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import xgboost

    features = dataset().feature_list

    def load(split: str, ref: object = None) -> xgboost.QuantileDMatrix:
        table = pa.concat_tables([pq.read_table(path) for path in sorted((Path(folder) / split).glob("*.parquet"))])
        columns = []
        for feature in features:
            column = table.column(feature.name)
            if feature.categories:
                column = pc.index_in(column, value_set=pa.array(feature.categories))
            columns.append(column.cast(pa.float32()).to_numpy())
        kinds = ["c" if feature.categories else "q" for feature in features]
        return xgboost.QuantileDMatrix(
            np.column_stack(columns), table.column("label").to_numpy(), ref=ref, feature_types=kinds,
            enable_categorical=True, max_bin=256,
        )  # fmt: skip

    train = load("train")
    validate = load("validate", train)
    xgboost.train(
        PARAMS | {"eval_metric": ["auc", "logloss"]}, train, rounds, evals=[(validate, "v")], verbose_eval=False
    )


def command(which: str, folder: str, rounds: int) -> list[str]:
    return [sys.executable, "-c", f"from benchmarks.training import {which}; {which}({folder!r}, {rounds})"]


def main() -> None:
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        code = f"from benchmarks.training import fill; fill({folder!r})"
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
        for rounds in ROUNDS:
            case = f"{ROWS:,} rows, {rounds} rounds"
            goal = "ratio <= 1.10" if rounds >= 100 else None
            ours, base = (command(which, folder, rounds) for which in ("train_ours", "train_raw"))
            wall = interleave(partial(seconds, ours), partial(seconds, base), REPEATS)
            cpu = interleave(partial(cpu_seconds, ours), partial(cpu_seconds, base), 1)
            found.append(Row(f"{case}, cold", "wall", *wall, goal))
            found.append(Row(f"{case}, cold", "cpu", *cpu))
            found.append(Row(f"{case}, standing", "wall", *standing(folder, rounds), goal))
    report("training", found)


def standing(folder: str, rounds: int) -> tuple[float, float]:
    """Both in this process, on a cluster that stands, imports done."""
    from airflow_provider_sml.ml.training.cluster import cluster

    pairs = []
    with cluster("local") as client:
        train_ours(folder, 2, client)
        train_raw(folder, 2)
        for _ in range(REPEATS):
            times = []
            for run in (lambda: train_ours(folder, rounds, client), lambda: train_raw(folder, rounds)):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            pairs.append(times)
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def fill(folder: str) -> None:
    """The sample's files."""
    import json

    write_shards(bootstrap(ROWS), Path(folder) / "train")
    write_shards(bootstrap(ROWS // 10, seed=8), Path(folder) / "validate")
    (Path(folder) / "manifest.json").write_text(json.dumps({"recalibration": 1.0}))


if __name__ == "__main__":
    main()
