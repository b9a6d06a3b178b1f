"""The Spark application: landed files in, checked rows and quarantined rows out, into a fresh folder.

It executes a plan (``plan.compile_plan``) in which everything is plain Spark SQL already, and knows nothing of specs.
Self-contained on purpose: this one file is shipped to whatever runs Spark, needs no other package, keeps to the API of
Spark 3.5 and to Python 3.9, and is started as ``spark-submit application.py PLAN``.

Per row: values are cast, looked-up columns joined, rules checked; a row is good or goes to quarantine with its reasons.
Of good rows with one key on one day, one is kept: the latest event, ties broken by content, so that a repeat gives the
same rows. Output: ``data/`` (a file or more a day), ``quarantine/``, and, last of all, ``report.json``; without the
report the output is incomplete. It publishes nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import os
import re
import sys
import time
from typing import Any

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

MALFORMED = "_malformed"
# What a text must look like to be of a type; Spark's own casts take more ("1d" as a number, "2013" as a timestamp).
SHAPES = {
    "int": r"^\s*[+-]?\d+\s*$",
    "double": r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$",
    "boolean": r"^\s*(?i:true|false)\s*$",
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "timestamp": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?$",
}
SPARK_TYPES = {"int": "BIGINT", "double": "DOUBLE", "boolean": "BOOLEAN", "date": "DATE", "timestamp": "TIMESTAMP"}


class PlanError(Exception):
    """The input does not fit the plan; the message is for the person who landed it."""


def quoted(name: str) -> str:
    return "`" + name + "`"


# --- reading ----------------------------------------------------------------------------------------------------------


def file_system(spark: SparkSession, path: str) -> tuple[Any, Any]:
    """Hadoop's file system of a path, and the path as it takes it."""
    jvm_path = spark._jvm.org.apache.hadoop.fs.Path(path)
    return jvm_path.getFileSystem(spark._jsc.hadoopConfiguration()), jvm_path


def exists(spark: SparkSession, path: str) -> bool:
    system, jvm_path = file_system(spark, path)
    return system.exists(jvm_path)


def read_text(spark: SparkSession, path: str, first_line: bool = False) -> str:
    """The text of a file on any file system, or its first line."""
    system, jvm_path = file_system(spark, path)
    reader = spark._jvm.java.io.BufferedReader(spark._jvm.java.io.InputStreamReader(system.open(jvm_path), "UTF-8"))
    try:
        if first_line:
            return reader.readLine() or ""
        lines = []
        line = reader.readLine()
        while line is not None:
            lines.append(line)
            line = reader.readLine()
        return "\n".join(lines)
    finally:
        reader.close()


def write_text(spark: SparkSession, path: str, text: str) -> None:
    """Write a file whole: to a temporary name first, then renamed."""
    system, jvm_path = file_system(spark, path)
    temporary = spark._jvm.org.apache.hadoop.fs.Path(path + ".tmp")
    stream = system.create(temporary, True)
    try:
        stream.write(bytearray(text.encode("utf-8")))
    finally:
        stream.close()
    if not system.rename(temporary, jvm_path):
        raise OSError(f"cannot rename {path}.tmp")


def header(line: str) -> list[str]:
    """Column names of a CSV header line."""
    return [name.strip().strip('"') for name in line.lstrip("\ufeff").rstrip("\r").split(",")]


def read_raw(spark: SparkSession, format_: str, paths: list[str], wanted: list[str]) -> DataFrame:
    """The wanted columns of files, as text where the format has no types, plus the malformed-row mark.

    CSV files are grouped by their header, so that a file with another order of columns is read right.
    """
    missing = [path for path in paths if not exists(spark, path)]
    if missing:
        raise PlanError(f"{len(missing)} of {len(paths)} files are not there, the first is {missing[0]}")
    if format_ != "csv":
        reader = spark.read
        if format_ == "json":
            fields = [StructField(name, StringType()) for name in [*wanted, MALFORMED]]
            reader = reader.schema(StructType(fields)).option("columnNameOfCorruptRecord", MALFORMED)
        frame = getattr(reader, format_)(paths)
        lacking = [name for name in wanted if name not in frame.columns]
        if lacking:
            raise PlanError(f"{paths[0]} lacks the columns {lacking}; it has {frame.columns}")
        marked = frame if MALFORMED in frame.columns else frame.withColumn(MALFORMED, F.lit(None).cast("string"))
        return marked.select(*[quoted(name) for name in wanted], MALFORMED, F.col("_metadata.file_path").alias("_file"))
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        line = read_text(spark, path, first_line=True)
        if not line:
            continue  # an empty file has no rows; the audit decides what that means
        names = header(line)
        lacking = [name for name in wanted if name not in names]
        if lacking:
            raise PlanError(f"{path} lacks the columns {lacking}; its header is {names}")
        groups.setdefault(tuple(names), []).append(path)
    frames = []
    for columns, members in groups.items():
        fields = [StructField(name, StringType()) for name in (*columns, MALFORMED)]
        reader = spark.read.schema(StructType(fields)).option("header", True).option("enforceSchema", True)
        reader = reader.option("columnNameOfCorruptRecord", MALFORMED).option("mode", "PERMISSIVE")
        # Spark prunes columns and then no longer sees that a row has too few or too many values.
        frame = (
            reader.option("escape", '"')
            .csv(members)
            .select(*[quoted(name) for name in wanted], MALFORMED, F.col("_metadata.file_path").alias("_file"))
        )
        frames.append(frame)
    if not frames:
        fields = [StructField(name, StringType()) for name in [*wanted, MALFORMED, "_file"]]
        return spark.createDataFrame([], StructType(fields))
    result = frames[0]
    for frame in frames[1:]:
        result = result.unionByName(frame)
    return result


def nulled(frame: DataFrame, columns: dict[str, str], null_values: list[str]) -> DataFrame:
    """Texts that mean NULL become NULL."""
    for name in columns:
        if dict(frame.dtypes)[name] == "string":
            column = F.col(quoted(name))
            frame = frame.withColumn(name, F.when(column.isin(null_values), None).otherwise(column))
    return frame


def cast_sql(name: str, type_: str, from_text: bool) -> str:
    """SQL of a value cast to its type, NULL when it is none."""
    column = quoted(name)
    if type_ == "string":
        return f"CAST({column} AS STRING)"
    if from_text:
        pattern = SHAPES[type_].replace("\\", "\\\\")
        value = f"CASE WHEN {column} RLIKE '{pattern}' THEN try_cast(trim({column}) AS {SPARK_TYPES[type_]}) END"
    else:
        value = f"try_cast({column} AS {SPARK_TYPES[type_]})"
    if type_ == "timestamp":
        return f"CAST({value} AS TIMESTAMP_NTZ)"
    if type_ == "double":  # the lake holds finite numbers only
        return f"nullif(nullif(nullif({value}, double('NaN')), double('Infinity')), double('-Infinity'))"
    return value


def cast_columns(frame: DataFrame, columns: dict[str, str]) -> DataFrame:
    """Each column cast, and beside it whether a value was there that is not of the type."""
    kinds = dict(frame.dtypes)
    selected = [F.col(quoted(name)) for name in frame.columns if name not in columns]
    for name, type_ in columns.items():
        sql = cast_sql(name, type_, kinds[name] == "string")
        selected.append(F.expr(sql).alias(name))
        selected.append(F.expr(f"{quoted(name)} IS NOT NULL AND ({sql}) IS NULL").alias("_bad_" + name))
    return frame.select(*selected)


# --- joins ------------------------------------------------------------------------------------------------------------


def read_join(spark: SparkSession, join: dict[str, Any], null_values: list[str]) -> tuple[DataFrame, dict[str, Any]]:
    """The looked-up rows: keys, time and columns under their names in the table; bad values NULL, with counts."""
    needed = dict(join["on"])
    if join["as_of"]:
        needed[join["as_of"]] = "timestamp"
    types = dict(needed)
    types.update({column["name"]: column["type"] for column in join["columns"]})
    paths = [path for path in join["optional"] if exists(spark, path)] + join["paths"]
    frame = read_raw(spark, join["format"], paths, list(types))
    frame = cast_columns(nulled(frame, types, null_values), types)
    keys = [F.col(quoted(name)).alias("_on_" + name) for name in join["on"]]
    values = []
    nulls = []
    for column in join["columns"]:
        name, physical = column["name"], quoted(column["physical"])
        frame = frame.withColumnRenamed(name, column["physical"])
        check = column["check"] or "TRUE"
        values.append(F.expr(f"CASE WHEN {check} THEN {physical} END").alias(column["physical"]))
        bad = F.expr(f"`_bad_{name}` OR NOT ({check})")
        nulls.append(F.sum(bad.cast("long")).alias(name))
    whole = F.lit(True)
    for name in needed:
        whole = whole & F.col(quoted(name)).isNotNull()
    frame = frame.where(whole)
    counts = frame.agg(F.count(F.lit(1)).alias("_rows"), *nulls).first().asDict()
    if join["as_of"]:
        keys.append(F.col(quoted(join["as_of"])).alias("_as_of"))
    rows = frame.select(*keys, *values)
    found = {"rows": counts.pop("_rows"), "set_to_null": {name: n for name, n in counts.items() if n}}
    return rows, found


def join_equal(left: DataFrame, right: DataFrame, join: dict[str, Any]) -> DataFrame:
    """Left join on equal keys; of several looked-up rows with one key, the one that sorts last."""
    keys = ["_on_" + name for name in join["on"]]
    values = [column["physical"] for column in join["columns"]]
    order = Window.partitionBy(*keys).orderBy(*[F.col(name).desc_nulls_last() for name in values])
    right = right.withColumn("_n", F.row_number().over(order)).where("_n = 1").drop("_n")
    condition = [F.col(quoted(name)) == F.col("_on_" + name) for name in join["on"]]
    return left.join(right, condition, "left").drop(*keys)


def join_as_of(left: DataFrame, right: DataFrame, join: dict[str, Any], event_time: str) -> DataFrame:
    """The latest looked-up row known before each event, by one shuffle and no blow-up of rows.

    Both sides are sorted together by time within (keys, day); a looked-up row is repeated for each day that its
    tolerance reaches. So no group grows with the length of the interval.
    """
    delay, tolerance = join["delay_s"], join["tolerance_s"]
    keys = ["_on_" + name for name in join["on"]]
    values = [column["physical"] for column in join["columns"]]
    left_columns = left.columns
    lefts = left.select(
        *[F.col(quoted(name)).alias("_on_" + name) for name in join["on"]],
        F.col(quoted(event_time)).alias("_t"),
        F.lit(1).alias("_side"),
        F.struct(*[F.col(quoted(name)) for name in left_columns]).alias("_left"),
        F.lit(None).alias("_right"),
        F.to_date(F.col(quoted(event_time))).alias("_day"),
    )
    known = F.expr(f"_as_of + make_dt_interval(0, 0, 0, {delay})")
    until = F.expr(f"_as_of + make_dt_interval(0, 0, 0, {tolerance})")
    rights = right.select(
        *keys,
        known.alias("_t"),
        F.lit(0).alias("_side"),
        F.lit(None).alias("_left"),
        F.struct("_as_of", *values).alias("_right"),
        F.explode(F.sequence(F.to_date(known), F.greatest(F.to_date(until), F.to_date(known)))).alias("_day"),
    )
    together = lefts.unionByName(rights.select(*lefts.columns))
    order = Window.partitionBy(*keys, "_day").orderBy("_t", "_side", "_right")
    window = order.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    matched = together.withColumn("_found", F.last("_right", ignorenulls=True).over(window)).where("_side = 1")
    young = F.expr(f"_found._as_of + make_dt_interval(0, 0, 0, {tolerance}) >= _t")
    return matched.select("_left.*", *[F.when(young, F.col("_found." + quoted(name))).alias(name) for name in values])


# --- the run ----------------------------------------------------------------------------------------------------------


def checked(spark: SparkSession, plan: dict[str, Any]) -> DataFrame:
    """All rows with their day and reasons; an empty list of reasons means good."""
    columns = {column["name"]: column["type"] for column in plan["columns"]}
    raw = read_raw(spark, plan["format"], plan["paths"], list(columns))
    raw = nulled(raw, columns, plan["null_values"])
    shown = [quoted(c["name"]) for c in plan["columns"] if not c["privacy"]]
    raw = raw.withColumn("_raw", F.to_json(F.struct(*shown)) if shown else F.lit("{}"))
    raw = raw.withColumn("_day", F.to_date(F.regexp_extract("_file", plan["date_pattern"], 1)))
    frame = cast_columns(raw, columns)
    reasons = [F.when(F.col(MALFORMED).isNotNull(), "row:malformed")]
    for column in plan["columns"]:
        reason = F.when(F.col("_bad_" + column["name"]), column["name"] + ":type")
        for rule in column["rules"]:
            reason = reason.when(F.expr("NOT ({})".format(rule["sql"])), rule["name"])
        reasons.append(reason)
    moment = quoted(plan["event_time"])
    reasons.append(F.expr("CASE WHEN to_date({}) <> _day THEN '{}:other_day' END".format(moment, plan["event_time"])))
    frame = frame.withColumn("_reasons", F.array_compact(F.array(*reasons)))
    good = F.size("_reasons") == 0
    # Bad rows must not push good ones out, so they are kept apart from the ranking.
    keys = [F.col(quoted(name)) for name in plan["key"]]
    order = Window.partitionBy(good, "_day", *keys).orderBy(F.col(moment).desc(), F.col("_raw").desc())
    frame = frame.withColumn("_n", F.row_number().over(order))
    duplicate = good & (F.col("_n") > 1)
    frame = frame.withColumn(
        "_reasons", F.when(duplicate, F.array(F.lit("key:duplicate"))).otherwise(F.col("_reasons"))
    )
    return frame.drop("_n", MALFORMED, *["_bad_" + name for name in columns])


def keyed_hash(key: bytes) -> Any:
    """HMAC-SHA256 as a Spark function. The key stays out of the query plan, which Spark prints and logs."""

    def digest(value: str | None) -> str | None:
        return None if value is None else hmac.new(key, value.encode("utf-8"), hashlib.sha256).hexdigest()

    return F.udf(digest, StringType())


def table_rows(frame: DataFrame, plan: dict[str, Any]) -> DataFrame:
    """The good rows as the table holds them."""
    private = {column["name"]: column["privacy"] for column in plan["columns"] if column["privacy"]}
    keys = json.loads(os.environ.get("SML_PRIVACY_KEYS", "{}"))
    selected = []
    for output in plan["outputs"]:
        name = output["name"]
        treatment = private.get(name)
        if treatment == "mask":
            value = F.when(F.col(quoted(name)).isNotNull(), F.lit("***"))
        elif treatment:
            if treatment["hash"] not in keys:
                raise PlanError(
                    "no key was given for the connection {}, which hashes {}".format(treatment["hash"], name)
                )
            value = keyed_hash(keys[treatment["hash"]].encode("utf-8"))(F.col(quoted(name)))
        else:
            value = F.expr(output["sql"])
        selected.append(value.alias(name))
    return frame.select(*selected)


def run(spark: SparkSession, plan: dict[str, Any]) -> None:
    """Execute a plan and write its report."""
    started = time.time()
    rows = checked(spark, plan).persist()
    per_day = rows.groupBy("_day").agg(
        F.count(F.lit(1)).alias("rows_in"),
        F.sum((F.size("_reasons") == 0).cast("long")).alias("rows_good"),
        F.max(F.when(F.size("_reasons") == 0, F.col(quoted(plan["event_time"])))).alias("newest"),
    )
    days = {
        str(row["_day"]): {
            "rows_in": row["rows_in"],
            "rows_good": row["rows_good"],
            "newest": row["newest"].isoformat() if row["newest"] else None,
        }
        for row in per_day.collect()
    }
    print(f"read {sum(day['rows_in'] for day in days.values())} rows of {len(days)} days", flush=True)
    reasons = {
        row["reason"]: row["count"]
        for row in rows.select(F.explode("_reasons").alias("reason")).groupBy("reason").count().collect()
    }
    good = rows.where(F.size("_reasons") == 0).drop("_reasons", "_raw", "_file")
    joins = {}
    for join in plan["joins"]:
        looked_up, joins[join["name"]] = read_join(spark, join, plan["null_values"])
        if join["as_of"]:
            good = join_as_of(good, looked_up, join, plan["event_time"])
        else:
            good = join_equal(good, looked_up, join)
    write_days(table_rows(good, plan), plan["partition"], plan["sort"], plan["output"] + "/data")
    print("wrote the good rows", flush=True)
    bad = rows.where(F.size("_reasons") > 0).select(
        F.array_join("_reasons", "; ").alias("reasons"),
        F.col("_raw").alias("raw_row"),
        F.col("_file").alias("file"),
        F.col("_day").alias(plan["partition"]),
    )
    if reasons:
        write_days(bad, plan["partition"], ["reasons", "raw_row"], plan["output"] + "/quarantine")
    rows.unpersist()
    report = {
        "days": days,
        "reasons": reasons,
        "joins": joins,
        "seconds": round(time.time() - started, 1),
        "spark": spark.version,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_text(spark, plan["output"] + "/report.json", json.dumps(report, indent=1, sort_keys=True))
    print("done in {:.1f} s".format(report["seconds"]), flush=True)


def write_days(frame: DataFrame, partition: str, sort: list[str], path: str) -> None:
    """Parquet, one file a day, the rows in a fixed order. The partition column stays in the files, as Iceberg wants."""
    ordered = [F.col("_p")] + [F.col(quoted(name)) for name in sort]
    by_day = frame.withColumn("_p", F.col(partition)).repartition("_p").sortWithinPartitions(*ordered)
    by_day.write.partitionBy("_p").mode("errorifexists").parquet(path)


def main(argv: list[str]) -> int:
    spark = SparkSession.builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        run(spark, json.loads(read_text(spark, argv[1])))
    except PlanError as error:
        print("SML-INPUT-ERROR: {}".format(re.sub(r"\s+", " ", str(error))), flush=True)
        return 3
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
