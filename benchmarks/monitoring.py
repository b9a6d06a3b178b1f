"""What a nightly profile costs: against the bare scan, against Evidently's preset, over many rows, and merging a year.

Rows are bootstrapped from the real flights with their weather: drawn with replacement by a seed, numbers moved by a
little, 17 columns; written a million to a file, zstd. More than ``DISTINCT`` files are links to the first ones, so that
100 million rows are read without taking the disk for them.

Ours is what profiles a night: in the task beside DuckDB's scan (``parquet_profile``), from batches of rows beside
Arrow's, and by the Python workers of the nightly job beside Spark's. The bare scan reads and decodes all the same
columns: the sum of each number, the length of each text. Both sides run in one process in turn, after a run of each
that is not counted (caches, and Java's compiler), and starting the process, the engine and the imports are not counted;
CPU is that of all threads, and of Spark's Java and Python processes. The most memory is that of a process of its own
that makes the profile alone, imports and engine included.

``SML_BENCH_ROWS`` gives the rows of the scans (1000000), in whole millions or less than one; ``SML_BENCH_STREAM``
those that are made up and profiled without a file (100000000; empty for none), ``SML_BENCH_REPEATS`` the repeats (3),
``SML_BENCH_EVIDENTLY`` the rows of Evidently's preset (1000000), ``SML_BENCH_ENGINES`` duckdb, arrow and spark or some,
``SML_BENCH_ADD=yes`` keeps what the results have of cases that are not measured now.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._harness import PROJECT, RESULTS, Row, process, report
from benchmarks.etl import numbers

NUMBERS = ("hour", "minute", "distance", "air_time", "dep_delay", "arr_delay", "flight", "temp", "dewp", "humid",
           "wind_speed", "precip", "pressure", "visib")  # fmt: skip
CATEGORIES = ("carrier", "origin", "dest")
KINDS = dict.fromkeys(NUMBERS, "number") | dict.fromkeys(CATEGORIES, "category")
BATCH = 200_000
#: Rows of a file, and files that are no links.
MILLION, DISTINCT = 1_000_000, 10
GOAL = "ours <= 2 x the bare scan"


def main() -> None:
    if len(sys.argv) > 1:
        print(globals()[sys.argv[1]](*sys.argv[2:]))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in numbers("SML_BENCH_ROWS", "1000000"):
            rows += told(scans(files(Path(folder), count), count))
        for count in numbers("SML_BENCH_EVIDENTLY", "1000000"):
            path = Path(folder) / "evidently.parquet"
            for seed, name in ((1, path), (2, path.with_suffix(".night.parquet"))):
                process(command("write", name, count, seed))
            rows += told(evidently(path, count))
    for count in numbers("SML_BENCH_STREAM", "100000000"):
        taken = process(command("stream", count))
        rows.append(Row(f"{count:,} rows streamed", "peak MB", taken.peak, None, "does not grow with the rows"))
        rows.append(Row(f"{count:,} rows streamed, made up and profiled", "CPU seconds", taken.cpu, None))
    rows += year()
    report("monitoring", [*kept(rows), *rows] if os.environ.get("SML_BENCH_ADD") == "yes" else rows)


def kept(rows: list[Row]) -> list[Row]:
    """The rows of the results whose case is not among those given."""
    try:
        before = json.loads((RESULTS / "monitoring.json").read_text())
    except FileNotFoundError:
        return []
    cases = {row.case for row in rows}
    fields = ("case", "metric", "ours", "baseline", "goal")
    return [Row(**{name: one[name] for name in fields}) for one in before if one["case"] not in cases]


def told(rows: list[Row]) -> list[Row]:
    """The rows, which a reader who waits sees at once."""
    for row in rows:
        print(f"{row.case}, {row.metric}: {row.ours:.3f} against {row.baseline}", file=sys.stderr, flush=True)
    return rows


def files(folder: Path, count: int) -> Path:
    """A folder of files with so many rows; files of a million are made once and linked."""
    target = folder / f"{count}"
    target.mkdir()
    if count < MILLION:
        process(command("write", target / "000.parquet", count, 1))
        return target
    for number in range(count // MILLION):
        made = folder / f"{number % DISTINCT:03d}.parquet"
        if not made.exists():
            process(command("write", made, MILLION, 1 + number % DISTINCT))
        os.link(made, target / f"{number:03d}.parquet")
    return target


def command(case: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.monitoring", case, *map(str, arguments)]


def scans(folder: Path, count: int) -> list[Row]:
    """Profiles against the bare scan, by engine."""
    found = []
    engines = os.environ.get("SML_BENCH_ENGINES", "duckdb,arrow,spark").split(",")
    repeats = int(os.environ.get("SML_BENCH_REPEATS", "3")) if count <= 10 * MILLION else 1
    for engine in engines:
        told = json.loads(printed(command(engine, folder, repeats)))
        case, goal = f"profile-scan, {engine}, {count:,} x {len(KINDS)}", GOAL if engine != "arrow" else None
        for at, metric in enumerate(("wall seconds", "CPU seconds")):
            ours, bare = (statistics.median(pair[at] for pair in told[side]) for side in ("ours", "bare"))
            found.append(Row(case, metric, ours, bare, goal))
        if engine != "spark":  # whose memory is that of a Java process with a heap of its own
            peak = process(command(engine, folder, 0)).peak
            found.append(Row(case, "peak MB", peak, None, "does not grow with the rows"))
    return found


def printed(arguments: list[str]) -> str:
    """The last line that a case prints."""
    import subprocess

    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def evidently(path: Path, count: int) -> list[Row]:
    """The whole report from profiles against the preset on the rows, whole processes; imports measured apart."""
    idle, ours, stock = (process(command(case, path)) for case in ("report_idle", "report_ours", "report_stock"))
    case = f"evidently, {count:,} x {len(KINDS)}"
    same = {Path(f"{path}.{side}").read_text() for side in ("ours", "stock")}
    return [
        Row(f"{case}, without the imports", "CPU seconds", ours.cpu - idle.cpu, stock.cpu - idle.cpu, "30 x less"),
        Row(f"{case}, whole process", "CPU seconds", ours.cpu, stock.cpu),
        Row(f"{case}: the imports alone", "CPU seconds", idle.cpu, None),
        Row(f"{case}, whole process", "peak MB", ours.peak, stock.peak),
        Row(f"{case}: the imports alone", "peak MB", idle.peak, None),
        Row(f"{case}: the same columns drifted", "1 is yes", float(len(same) == 1), None, "1"),
    ]


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


def in_turn(
    ours: Callable[[], Any], bare: Callable[[], Any], repeats: int, used: Callable[[], float] = time.process_time
) -> str:
    """Wall and CPU seconds of both, as JSON; ours alone, once, for no repeats.

    :param used: CPU seconds so far.
    """
    sides = {"ours": ours, "bare": bare} if repeats else {"ours": ours}
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, work in sides.items():
            began, before = time.perf_counter(), used()
            work()
            if turn or not repeats:
                taken[side].append((time.perf_counter() - began, used() - before))
    return json.dumps(taken)


def _bare() -> str:
    """Sums and lengths: a minimum or a maximum would be answered from the file's footer, and nothing be read."""
    return ", ".join([*(f"SUM({name})" for name in NUMBERS), *(f"SUM(LENGTH({name}))" for name in CATEGORIES)])


def duckdb(folder: str, repeats: str) -> str:
    import duckdb

    from airflow_provider_sml.ml.monitoring.parquet_profile import MEMORY, of_parquet
    from airflow_provider_sml.ml.monitoring.profile_sql import columns_of

    paths, columns = sorted(map(str, Path(folder).glob("*.parquet"))), columns_of(KINDS)  # type: ignore[arg-type]
    with duckdb.connect(config={"memory_limit": MEMORY}) as connection:
        return in_turn(
            lambda: of_parquet(paths, columns, connection=connection),
            lambda: connection.execute(f"SELECT {_bare()} FROM read_parquet('{folder}/*.parquet')").fetchall(),
            int(repeats),
        )


def arrow(folder: str, repeats: str) -> str:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.monitoring.profile import of_batches

    def batches() -> Iterator[Any]:
        for path in sorted(Path(folder).glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH)

    def bare() -> None:
        for batch in batches():
            for name in KINDS:
                pc.sum(batch.column(name) if name in NUMBERS else pc.utf8_length(batch.column(name)))

    return in_turn(lambda: of_batches(batches(), KINDS), bare, int(repeats))  # type: ignore[arg-type]


def spark(folder: str, repeats: str) -> str:
    """CPU is that of this process and of its children: Java does the work, and Python processes that it starts."""
    import psutil
    from pyspark.sql import SparkSession

    from airflow_provider_sml.ml.etl import application
    from airflow_provider_sml.ml.monitoring import spark_profiles
    from airflow_provider_sml.ml.monitoring.profile import Profile, merge

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.memory", "2g").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    session.read.parquet(folder).createOrReplaceTempView("flights")
    types = {name: "double" if kind == "number" else "string" for name, kind in KINDS.items()}
    features = [{"name": n, "kind": kind, "text": n, "types": {n: types[n]}} for n, kind in KINDS.items()]
    package = Path(f"{folder}.zip")
    package.write_bytes(spark_profiles._package())
    plan = {"asked": {"features": features, "segment": None}, "package": str(package)}
    profile, reason = application.file_profiler(session, plan)
    assert not reason, reason
    paths = sorted(map(str, Path(folder).glob("*.parquet")))
    me = psutil.Process()

    def used() -> float:
        found = 0.0
        for one in [me, *me.children(recursive=True)]:
            times = one.cpu_times()
            found += times.user + times.system + (times.children_user + times.children_system if one != me else 0)
        return found

    def ours() -> None:
        found = application.profile_files(session, paths, profile).collect()
        merge([Profile.load(json.loads(row[0])) for row in found])

    def bare() -> None:
        session.sql(f"SELECT {_bare()} FROM flights").collect()

    for _ in range(2):  # Java compiles what runs often
        bare()
        ours()
    answer = in_turn(ours, bare, int(repeats), used)
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
    Path(f"{path}.ours").write_text(",".join(sorted(found.drifted)))
    return ""


def report_stock(path: str) -> str:
    """Both sides as pandas, through the preset with the distances that ours uses."""
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.monitoring import drift

    frames = [drift._frame(pq.read_table(side), NUMBERS, CATEGORIES) for side in _sides(path)]
    snapshot = drift._run(*frames, list(NUMBERS), list(CATEGORIES), drift.Limits())
    snapshot.save_html(f"{path}.html")
    Path(f"{path}.stock").write_text(
        ",".join(sorted(c["name"] for c in drift._columns(snapshot.dict()) if c["drifted"]))
    )
    return ""


if __name__ == "__main__":
    main()
