"""What a nightly profile costs: against the bare scan, against Evidently's preset, over many rows, and merging a year.

Rows are bootstrapped from the real flights with their weather: drawn with replacement by a seed, numbers moved by a
little, 17 columns. Every measurement is a process of its own. The bare scan sums every column (the lengths of
texts), so that each is read and decoded.

``SML_BENCH_ROWS`` gives the rows of the scan and of Evidently (1000000), ``SML_BENCH_STREAM`` those that are streamed
(10000000,100000000), ``SML_BENCH_REPEATS`` the repeats (3), ``SML_BENCH_SPARK=no`` leaves Spark out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._harness import PROJECT, Row, process, report
from benchmarks.etl import numbers

NUMBERS = ("hour", "minute", "distance", "air_time", "dep_delay", "arr_delay", "flight", "temp", "dewp", "humid",
           "wind_speed", "precip", "pressure", "visib")  # fmt: skip
CATEGORIES = ("carrier", "origin", "dest")
KINDS = dict.fromkeys(NUMBERS, "number") | dict.fromkeys(CATEGORIES, "category")
BATCH = 200_000


def main() -> None:
    if len(sys.argv) > 1:
        print(globals()[sys.argv[1]](*sys.argv[2:]))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in numbers("SML_BENCH_ROWS", "1000000"):
            path = Path(folder) / f"{count}.parquet"
            for seed, name in ((1, path), (2, path.with_suffix(".night.parquet"))):
                process(command("write", name, count, seed))
            rows += scans(path, count)
            rows += evidently(path, count)
            path.unlink()
        for count in numbers("SML_BENCH_STREAM", "10000000,100000000"):
            taken = process(command("stream", count))
            rows.append(Row(f"{count:,} rows streamed", "peak MB", taken.peak, None, "does not grow with the rows"))
            rows.append(Row(f"{count:,} rows streamed, made up and profiled", "CPU seconds", taken.cpu, None))
        rows += year()
    report("monitoring", rows)


def command(case: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.monitoring", case, *map(str, arguments)]


def scans(path: Path, count: int) -> list[Row]:
    """Profiles against the bare scan, each in a process that is measured inside, so that starting it is left out."""
    found = []
    engines = ["duckdb", "arrow"] + (["spark"] if os.environ.get("SML_BENCH_SPARK") != "no" else [])
    for engine in engines:
        taken: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
        for _ in range(int(os.environ.get("SML_BENCH_REPEATS", "3"))):
            for side in taken:
                taken[side].append(inside(command(engine, path, side)))
        for at, metric in enumerate(("wall seconds", "CPU seconds")):
            ours, bare = (statistics.median(pair[at] for pair in taken[side]) for side in ("ours", "bare"))
            goal = "ours <= 2 x the bare scan" if engine != "arrow" else None
            found.append(Row(f"profile-scan, {engine}, {count:,} x {len(KINDS)}", metric, ours, bare, goal))
    return found


def inside(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds that a case printed."""
    import subprocess

    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=True)
    wall, cpu = done.stdout.split()[-2:]
    return float(wall), float(cpu)


def evidently(path: Path, count: int) -> list[Row]:
    """The whole report from profiles against the preset on the rows, whole processes; imports measured apart."""
    idle, ours, stock = (process(command(case, path)) for case in ("report_idle", "report_ours", "report_stock"))
    case = f"evidently, {count:,} x {len(KINDS)}"
    same = {process_output(command(name, path)) for name in ("report_ours", "report_stock")}
    return [
        Row(f"{case}", "CPU seconds", ours.cpu, stock.cpu, "30 x less"),
        Row(f"{case}, without the imports", "CPU seconds", ours.cpu - idle.cpu, stock.cpu - idle.cpu, "30 x less"),
        Row(f"{case}", "peak MB", ours.peak, stock.peak),
        Row(f"{case}: the same columns drifted", "1 is yes", float(len(same) == 1), None, "1"),
    ]


def process_output(arguments: list[str]) -> str:
    import subprocess

    return subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\n")[-2]


def year() -> list[Row]:
    """365 nights of a million rows' worth of buckets, read from the lake's store and merged."""
    from airflow_provider_sml.ml.monitoring import profile_store
    from airflow_provider_sml.ml.monitoring.profile import Profile, merge, of_batches

    found = of_batches(flights(BATCH * 5, 1), KINDS)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        paths = [Path(folder) / f"{night}.json" for night in range(365)]
        for path in paths:
            profile_store._write(path, found)
        started = time.perf_counter()
        nights = [profile_store.load(path) for path in paths]
        read = time.perf_counter() - started
        whole: Profile = merge(nights)
        assert whole.rows == 365 * found.rows
        merged = time.perf_counter() - started - read
        size = paths[0].stat().st_size / 1024
    return [
        Row("365 nights of 1,000,000 x 17: read", "seconds", read, None),
        Row("365 nights of 1,000,000 x 17: merge", "seconds", merged, None, "quick"),
        Row("one night's stored profile of 1,000,000 x 17", "KB", size, None),
    ]


# --- the cases, each in a process of its own --------------------------------------------------------------------------


def flights(count: int, seed: int) -> Iterator[Any]:
    """Batches of bootstrapped flights; only one is there at a time."""
    import duckdb
    import numpy as np
    import pyarrow as pa

    real = PROJECT / "build" / "bench-flights.parquet"
    if not real.exists():
        import zipfile

        from include.demo.landing import _package_data

        data = _package_data()
        real.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data / "flights.csv.zip") as archive:
            archive.extract("flights.csv", folder)
            wanted = ", ".join(f"CAST({name} AS DOUBLE) AS {name}" for name in NUMBERS)
            sources = (
                f"(SELECT * FROM read_csv('{folder}/flights.csv', nullstr='NA'))",
                f"(SELECT origin, time_hour, temp, dewp, humid, wind_speed, precip, pressure, visib "
                f"FROM read_csv('{data}/weather.csv', nullstr='NA'))",
            )
            query = f"SELECT {wanted}, {', '.join(CATEGORIES)} FROM {sources[0]} LEFT JOIN {sources[1]} "
            duckdb.sql(f"COPY ({query} USING (origin, time_hour)) TO '{real}.tmp' (FORMAT parquet)")
            Path(f"{real}.tmp").rename(real)
    import pyarrow.parquet as pq

    table = pq.read_table(real, columns=list(KINDS)).combine_chunks()
    draw = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        part = table.take(pa.array(draw.integers(0, table.num_rows, size)))
        for name in NUMBERS[6:]:
            moved = part.column(name).to_numpy() * draw.normal(1, 0.001, size)
            part = part.set_column(list(KINDS).index(name), name, pa.array(moved, from_pandas=True))
        yield part


def write(path: str, count: str, seed: str) -> str:
    import pyarrow.parquet as pq

    writer = None
    for batch in flights(int(count), int(seed)):
        writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
        writer.write_table(batch)
    assert writer is not None
    writer.close()
    return path


def stream(count: str) -> int:
    from airflow_provider_sml.ml.monitoring.profile import of_batches

    return of_batches(flights(int(count), 1), KINDS).rows  # type: ignore[arg-type]


def _timed(work: Any) -> str:
    began, used = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - began} {time.process_time() - used}"


def _bare() -> str:
    """Sums and lengths: a minimum or a maximum would be answered from the file's footer, and nothing be read."""
    return ", ".join([*(f"SUM({name})" for name in NUMBERS), *(f"SUM(LENGTH({name}))" for name in CATEGORIES)])


def duckdb(path: str, side: str) -> str:
    import duckdb

    from airflow_provider_sml.ml.monitoring import profile_sql

    source = f"read_parquet('{path}')"
    with duckdb.connect() as connection:
        if side == "bare":
            return _timed(lambda: connection.execute(f"SELECT {_bare()} FROM {source}").fetchall())
        columns = profile_sql.columns_of(KINDS)  # type: ignore[arg-type]
        return _timed(lambda: profile_sql.of_duckdb(connection, source, columns))


def arrow(path: str, side: str) -> str:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.monitoring.profile import of_batches

    file = pq.ParquetFile(path)
    if side == "bare":
        return _timed(lambda: [[pc.min_max(c) for c in batch.columns] for batch in file.iter_batches(BATCH)])
    return _timed(lambda: of_batches(file.iter_batches(BATCH), KINDS))  # type: ignore[arg-type]


def spark(path: str, side: str) -> str:
    """CPU is that of this process's children too: the JVM does the work."""
    import psutil
    from pyspark.sql import SparkSession

    from airflow_provider_sml.ml.monitoring import profile_sql

    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    session.read.parquet(path).createOrReplaceTempView("flights")
    session.sql("SELECT COUNT(*), MAX(hour) FROM flights").collect()
    columns = profile_sql.columns_of(KINDS)  # type: ignore[arg-type]

    def used() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))

    def work() -> None:
        if side == "bare":
            session.sql(f"SELECT {_bare()} FROM flights").collect()
        else:
            profile_sql.of_spark(session, "flights", columns)

    work()  # the JVM compiles; the second run is measured
    before, began = used(), time.perf_counter()
    work()
    answer = f"{time.perf_counter() - began} {used() - before}"
    session.stop()
    return answer


def _sides(path: str) -> tuple[str, str]:
    return path, str(Path(path).with_suffix(".night.parquet"))


def report_idle(path: str) -> str:
    import pyarrow.parquet as pq

    import airflow_provider_sml.ml.monitoring.evidently_profiles

    assert airflow_provider_sml and pq
    return ""


def report_ours(path: str) -> str:
    """Both sides profiled, judged and drawn."""
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.monitoring.evidently_profiles import page
    from airflow_provider_sml.ml.monitoring.profile import of_batches
    from airflow_provider_sml.ml.monitoring.verdicts import Rules, judge

    old, new = (of_batches(pq.ParquetFile(side).iter_batches(BATCH), KINDS) for side in _sides(path))  # type: ignore[arg-type]
    found = judge(old, new, Rules(false_discovery=None))
    page(found, old, new, 0.3).save_html(f"{path}.html")
    return ",".join(sorted(found.drifted)) + "\n"


def report_stock(path: str) -> str:
    """Both sides as pandas, through the preset with the distances that ours uses."""
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.monitoring import drift

    limits = drift.Limits(rows=10**9)
    frames = [drift._frame(pq.read_table(side), NUMBERS, CATEGORIES, limits.rows) for side in _sides(path)]
    snapshot = drift._run(*frames, list(NUMBERS), list(CATEGORIES), limits)
    snapshot.save_html(f"{path}.html")
    return ",".join(sorted(c["name"] for c in drift._columns(snapshot.dict()) if c["drifted"])) + "\n"


if __name__ == "__main__":
    main()
