"""What the ETL costs: the whole operator's Spark job against the bare one, publishing, and the spread of a skewed key.

The rows are bootstrapped from the real flights: days are drawn with replacement, and a row's flight number is moved to
keep keys apart. The bare job reads the same files, casts, joins, drops duplicates and writes the same parquet by day,
with no contract, no quarantine, no counts and no report. Both are whole processes, from spark-submit to its end. The
bare job is submitted with the settings of Java and of Spark's shuffle that Spark has by itself, as one does; a second
row compares with the bare job under all of ours.

``SML_BENCH_ROWS`` gives the numbers of rows (1000000 by default; ``1000000,3000000,10000000`` takes about ten minutes
on two cores), ``SML_BENCH_PARTITIONS`` those of published days (10,100,1000) and ``SML_BENCH_REPEATS`` the repeats (1).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._harness import PROJECT, Row, report

FIRST = dt.date(2013, 2, 1)
BARE = """
import json, sys
from pyspark.sql import SparkSession, Window, functions as F

plan = json.load(open(sys.argv[1]))
spark = SparkSession.builder.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
rows = spark.read.option("header", True).option("nullValue", "NA").csv(plan["paths"])
rows = rows.selectExpr(*["CAST(`{name}` AS {type}) AS `{name}`".format(**column) for column in plan["bare"]])
key = Window.partitionBy(*plan["key"]).orderBy(F.col(plan["event_time"]).desc())
rows = rows.withColumn("_n", F.row_number().over(key)).where("_n = 1").drop("_n")
weather = spark.read.option("header", True).option("nullValue", "NA").csv(plan["joins"][0]["paths"])
weather = weather.selectExpr("origin AS _o", "CAST(time_hour AS TIMESTAMP_NTZ) + INTERVAL 1 HOUR AS _t", *[
    "CAST({name} AS DOUBLE) AS {physical}".format(**column) for column in plan["joins"][0]["columns"]])
planes = spark.read.option("header", True).option("nullValue", "NA").csv(plan["joins"][1]["paths"])
planes = planes.selectExpr("tailnum AS _tail", *[
    "CAST({name} AS BIGINT) AS {physical}".format(**column) for column in plan["joins"][1]["columns"]])
rows = rows.join(weather, (rows.origin == weather._o) & (rows.time_hour == weather._t), "left")
rows = rows.join(planes, rows.tailnum == planes._tail, "left")
rows = rows.selectExpr(*["{sql} AS `{name}`".format(**output) for output in plan["outputs"]])
rows = rows.where("event_date IS NOT NULL").withColumn("_p", F.col("event_date"))
rows.repartition("_p").sortWithinPartitions("_p", *plan["sort"]).write.partitionBy("_p").parquet(plan["output"])
spark.stop()
"""


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in numbers("SML_BENCH_ROWS", "1000000"):
            place = Path(folder) / str(count)
            days = lay_down(place / "landing", count)
            rows += compare(place, days, count)
            shutil.rmtree(place)
        publish(Path(folder) / "warm", 1)  # imports
        rows += [publish(Path(folder) / f"lake{n}", n) for n in numbers("SML_BENCH_PARTITIONS", "10,100,1000")]
        rows += spread()
    report("etl", rows)


def numbers(name: str, default: str) -> list[int]:
    return [int(value) for value in os.environ.get(name, default).split(",") if value]


def lay_down(landing: Path, count: int) -> list[dt.date]:
    """Daily files of about ``count`` rows together: 28 days, each of as many drawn copies of real days as it takes."""
    from include.demo.landing import lay_down as real

    source = landing.parent / "real"
    real(source)
    chance = random.Random(7)
    days = [FIRST + dt.timedelta(days=n) for n in range(28)]
    files = sorted((source / "flights").glob("*.csv"))
    texts = {path: path.read_text().splitlines() for path in files}
    header = next(iter(texts.values()))[0].split(",")
    flight, moment = header.index("flight"), header.index("time_hour")
    (landing / "flights").mkdir(parents=True)
    for day in days:
        written, copy = 0, 0
        with (landing / "flights" / f"{day}.csv").open("w") as file:
            file.write(",".join(header) + "\n")
            while written < count / len(days):
                for line in texts[chance.choice(files)][1:]:
                    values = line.split(",")
                    values[flight] = str(int(values[flight]) + 10_000 * copy)
                    values[moment] = f"{day}T{values[moment].strip(chr(34))[11:]}"
                    file.write(",".join(values) + "\n")
                    written += 1
                copy += 1
    shutil.copytree(source / "weather", landing / "weather")
    shutil.copyfile(source / "planes.csv", landing / "planes.csv")
    return days


def compare(place: Path, days: list[dt.date], count: int) -> list[Row]:
    """Ours and the bare job in turn; the medians."""
    import statistics

    from airflow_provider_sml.ml.etl import plan as planner
    from airflow_provider_sml.pipelines import load_spec

    dataset = load_spec(PROJECT / "include" / "pipelines" / "flights.yaml").dataset
    application = Path(planner.__file__).with_name("application.py")
    bare = place / "bare.py"
    bare.write_text(BARE)
    taken: dict[str, list[float]] = {"ours": [], "bare": [], "tuned": []}
    told: dict[str, Any] = {}
    for number in range(int(os.environ.get("SML_BENCH_REPEATS", "1"))):
        for name, script in (("bare", bare), ("ours", application), ("tuned", bare)):
            output = place / f"{name}-{number}"
            compiled = planner.compile_plan(
                dataset, {"landing": str(place / "landing")}, days[0], days[-1], str(output)
            )
            types = {"string": "STRING", "timestamp": "TIMESTAMP_NTZ", **planner.SPARK_TYPES, "int": "BIGINT"}
            types["timestamp"] = "TIMESTAMP_NTZ"
            compiled["bare"] = [{"name": c["name"], "type": types[c["type"]]} for c in compiled["columns"]]
            path = place / f"{name}-{number}.json"
            path.write_text(json.dumps(compiled))
            print(f"{count:,} rows, {name} ...", file=sys.stderr, flush=True)
            started = time.perf_counter()
            submit(script, path, planner.spark_conf(dataset), plain=name == "bare")
            taken[name].append(time.perf_counter() - started)
            if name == "ours":
                told = json.loads((output / "report.json").read_text())
    ours, base, tuned = (statistics.median(taken[name]) for name in ("ours", "bare", "tuned"))
    rows = sum(day["rows_in"] for day in told["days"].values())
    case = f"{rows:,} rows of {len(days)} days"
    return [
        Row(f"{case}: whole Spark job", "seconds", ours, base, "ours <= 1.15 x the bare job"),
        Row(f"{case}: whole Spark job, the bare one under our settings", "seconds", ours, tuned),
        Row(f"{case}: per row", "microseconds", ours / rows * 1e6, base / rows * 1e6),
    ]


def submit(script: Path, plan: Path, conf: dict[str, str], plain: bool = False) -> None:
    """The command that the operator's adapter runs; a plain one has no settings but those that its result rests on."""
    from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob
    from airflow_provider_sml.ml.etl.plan import local_bytes

    size = local_bytes(json.loads(plan.read_text())["paths"])
    job = SparkSubmitJob("bench", str(script), [str(plan)], str(plan.parent), conf=conf, input_bytes=size)
    command = job._command()
    if plain:
        kept = [f"{key}={value}" for key, value in conf.items() if "Java" not in key]
        settings = [part for setting in kept for part in ("--conf", setting)]
        command = [command[0], "--master", job.master, *settings, job.application, *job.arguments]
    done = subprocess.run(command, env=job._environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-12:]))


def publish(lake: Path, partitions: int) -> Row:
    """One commit of so many days of one small file each, to a new table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from airflow_provider_sml.ml.lake import Lake

    opened = Lake(str(lake))
    folder = opened.stage("numbers", "bench")
    days = [FIRST + dt.timedelta(days=n) for n in range(partitions)]
    paths = []
    for day in days:
        path = folder / "data" / f"_p={day}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"n": pa.array([1, 2]), "event_date": pa.array([day, day])}), path)
        paths.append(path)
    started = time.perf_counter()
    opened.publish("numbers", [("n", "int"), ("event_date", "date")], paths, days[0], days[-1], {})
    return Row(f"publish {partitions} partitions in one commit", "seconds", time.perf_counter() - started, None)


def spread() -> list[Row]:
    """The largest file against the mean, planned as the ETL plans it, where one key has 30 % of the rows."""
    from airflow_provider_sml.ml.etl.application import place_heavy

    chance = random.Random(7)
    rows, files = 200_000, 16
    counts = {0: 60_000}
    for _ in range(rows - 60_000):
        key = chance.randrange(1, 5_000)
        counts[key] = counts.get(key, 0) + 1
    hashed, salted = [0.0] * files, [0.0] * files
    heavy = {key: count for key, count in counts.items() if count >= rows / files / 8}
    places = place_heavy(heavy, rows, files)
    for key, count in counts.items():
        home = chance.randrange(files)
        hashed[home] += count
        for file in places.get(key, [home]):
            salted[file] += count / len(places.get(key, [home]))
    case = f"{files} files, one key has 30 % of the rows, against files by hash alone"
    return [Row(case, "largest / mean", max(salted) * files / rows, max(hashed) * files / rows, "ours <= 1.25")]


if __name__ == "__main__":
    main()
