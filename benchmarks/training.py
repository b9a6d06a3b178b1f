"""Training against raw ``xgboost.train`` on the same files: wall and CPU seconds of whole processes, in pairs.

The rows are bootstrapped from the real flights: 3 million, unless the variable ``SML_ROWS`` says otherwise; rounds are
20, 100 and 500 (``SML_ROUNDS``). ``cold`` starts a process and a cluster for each training; ``standing`` trains on a
cluster whose imports are done, against raw training in a process whose imports are done. Ours writes checkpoints, as it
does in production. Wall and CPU seconds are of the same runs; the pairs at 500 rounds are fewer.

``limit``: three times as many rows (``SML_MORE_ROWS``), 20 rounds, in a process that may hold less than the rows need:
ours goes over to external memory by itself, and is compared with itself without a limit; whether the plain way gets
through under the same limit stands beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks._flights import CATEGORIES, FEATURES, NUMBERS, bootstrap, write_shards
from benchmarks._harness import PROJECT, Row, process, report

ROWS = int(os.environ.get("SML_ROWS", "3000000"))
ROUNDS = [int(n) for n in os.environ.get("SML_ROUNDS", "20,100,500").split(",")]
REPEATS = int(os.environ.get("SML_REPEATS", "3"))
MORE_ROWS = int(os.environ.get("SML_MORE_ROWS", str(3 * ROWS)))
#: Bytes under the limit: less than the rows as doubles, which is how the files hold them, and the process itself.
LIMIT = round(450_000_000 + MORE_ROWS * 1.1 * 13 * 4)
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

    counts = {split: _rows(Path(folder) / split) for split in ("train", "validate")}
    sample = SampleRef(folder, f"bench{rounds}", "flights", 1, "all", 1.0, counts)
    with tempfile.TemporaryDirectory() as out:
        params = PARAMS | {"rounds": rounds, "early_stopping": rounds, "device": "cpu"}
        training = Training(dataset(), sample, params, checkpoint=Path(out) / "checkpoints")
        if client is not None:
            train(training, client, Path(out) / "models", print)  # type: ignore[arg-type]
            return
        with cluster("local") as made:
            train(training, made, Path(out) / "models", print)


def _rows(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


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
        make(folder, ROWS)
        for rounds in ROUNDS:
            case = f"{ROWS:,} rows, {rounds} rounds"
            repeats = REPEATS if rounds < 500 else max(1, REPEATS - 2)
            goal = "ratio <= 1.10" if rounds >= 100 else None
            for name, pairs in (
                ("cold", cold(folder, rounds, repeats, warm=rounds == ROUNDS[0])),
                ("standing", standing(folder, rounds, repeats)),
            ):
                for metric, number, aim in (("wall", 0, goal), ("cpu", 1, None)):
                    ours, base = (statistics.median(pair[side][number] for pair in pairs) for side in (0, 1))
                    found.append(Row(f"{case}, {name}", metric, ours, base, aim))
                    print(found[-1], file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        make(folder, MORE_ROWS)
        found += limited(folder)
    report("training", found)


def make(folder: str, rows: int) -> None:
    """The sample's files, made in a process of its own so that its memory is given back."""
    code = f"from benchmarks.training import fill; fill({folder!r}, {rows})"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


Times = tuple[float, float]


def cold(folder: str, rounds: int, repeats: int, warm: bool) -> list[tuple[Times, Times]]:
    """Pairs of whole processes, in turn; the first pair fills the machine's caches and does not count."""
    ours, base = (command(which, folder, rounds) for which in ("train_ours", "train_raw"))
    pairs = [(process(ours), process(base)) for _ in range(repeats + warm)]
    return [((one.wall, one.cpu), (two.wall, two.cpu)) for one, two in pairs[int(warm) :]]


def standing(folder: str, rounds: int, repeats: int) -> list[tuple[Times, Times]]:
    """Pairs in this process, on a cluster that stands, imports done."""
    from airflow_provider_sml.ml.training.cluster import cluster

    pairs = []
    with cluster("local") as client:
        train_ours(folder, 2, client)
        with ThreadPoolExecutor(1) as own:
            own.submit(train_raw, folder, 2).result()
        for _ in range(repeats):
            times = []
            for run in (lambda: train_ours(folder, rounds, client), lambda: train_raw(folder, rounds)):
                started, used = time.perf_counter(), time.process_time()
                with ThreadPoolExecutor(1) as own:  # whose team of OpenMP's threads ends with it
                    own.submit(run).result()
                times.append((time.perf_counter() - started, time.process_time() - used))
            pairs.append((times[0], times[1]))
    return pairs


def limited(folder: str) -> list[Row]:
    """Ours under a limit and without one, and whether the plain way gets through."""
    ours = command("train_ours", folder, 20)
    free, bound = process(ours), process(ours, LIMIT)
    try:
        process(command("train_raw", folder, 20), LIMIT)
        through = 1.0
    except RuntimeError as error:
        print(f"raw xgb.train under the limit: {str(error)[-300:]}", file=sys.stderr)
        through = 0.0
    case = f"{MORE_ROWS:,} rows, 20 rounds, limit {LIMIT / 1e9:.2f} GB"
    return [
        Row(f"{case}: external against in memory", "wall", bound.wall, free.wall),
        Row(f"{case}: external against in memory", "cpu", bound.cpu, free.cpu),
        Row(f"{case}: external against in memory", "peak MB", bound.peak, free.peak),
        Row(f"{case}: raw xgb.train gets through", "1 yes, 0 no", through, None),
    ]


def fill(folder: str, rows: int) -> None:
    """The sample's files."""
    import json

    write_shards(bootstrap(rows), Path(folder) / "train")
    write_shards(bootstrap(rows // 10, seed=8), Path(folder) / "validate")
    (Path(folder) / "manifest.json").write_text(json.dumps({"recalibration": 1.0}))


if __name__ == "__main__":
    main()
