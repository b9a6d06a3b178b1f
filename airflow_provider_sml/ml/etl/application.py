"""The Spark application: landed files in, checked rows and quarantined rows out, into a fresh folder.

It executes a plan (``plan.compile_plan``) in which everything is plain Spark SQL already, and knows nothing of specs.
A plan of ``ml.monitoring.spark_profiles`` has it profile published days instead.
Self-contained on purpose, and long for it: this one file is shipped to whatever runs Spark, needs no other package,
keeps to the API of Spark 3.5 and to Python 3.9, and is started as ``spark-submit application.py PLAN``.

Per row: values are cast, repaired where the plan says how, and rules are asked; a row is good, or goes to quarantine
with every reason. Of good rows with one key, one is kept: the latest event, ties broken by content, so that a repeat
gives the same rows. Good rows get their looked-up columns and lie by the day of their event. Output: ``data/`` (a
folder a day, a file or more in it), ``quarantine/``, and, last of all, ``report.json``; without the report the output
is incomplete. It publishes nothing, and no private value gets into quarantine, report or log.
"""

from __future__ import annotations

import csv
import datetime
import functools
import hashlib
import hmac
import json
import math
import operator
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

MALFORMED = "_malformed"
CHECKED = "_checked"
#: Of quarantined rows, which are few as a rule: a task for each of many days would take longer than their rows.
ROWS_PER_TASK = 50_000


class PlanError(Exception):
    """The input does not fit the plan; the message is for the person who landed it."""


def quoted(name: str) -> str:
    return "`" + name + "`"


def column(name: str) -> Column:
    return F.col(quoted(name))


# --- files ------------------------------------------------------------------------------------------------------------


def file_system(spark: SparkSession, path: str) -> tuple[Any, Any]:
    """Hadoop's file system of a path, and the path as it takes it."""
    jvm_path = spark._jvm.org.apache.hadoop.fs.Path(path)
    return jvm_path.getFileSystem(spark._jsc.hadoopConfiguration()), jvm_path


def list_files(spark: SparkSession, pattern: str) -> list[tuple[str, int]]:
    """Path and size of the files that fit a pattern, sorted; of a folder, those in it. Hidden ones do not count."""
    system, jvm_path = file_system(spark, pattern)
    found = []
    for status in system.globStatus(jvm_path) or []:
        for entry in system.listStatus(status.getPath()) if status.isDirectory() else [status]:
            if entry.isFile() and entry.getPath().getName()[0] not in "._":
                found.append((entry.getPath().toString(), entry.getLen()))
    return sorted(found)


def list_all(spark: SparkSession, patterns: list[str]) -> dict[str, list[tuple[str, int]]]:
    """The files of each pattern."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(patterns, pool.map(lambda pattern: list_files(spark, pattern), patterns)))


def read_text(spark: SparkSession, path: str, first_line: bool = False) -> str:
    """The text of a file on any file system, unpacked if its name says so, or its first line."""
    system, jvm_path = file_system(spark, path)
    stream = system.open(jvm_path)
    factory = spark._jvm.org.apache.hadoop.io.compress.CompressionCodecFactory(spark._jsc.hadoopConfiguration())
    codec = factory.getCodec(jvm_path)
    if codec is not None:
        stream = codec.createInputStream(stream)
    reader = spark._jvm.java.io.BufferedReader(spark._jvm.java.io.InputStreamReader(stream, "UTF-8"))
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


# --- reading ----------------------------------------------------------------------------------------------------------


class Source:
    """Files of one format, and how the wanted columns are read from them.

    :param format_: ``csv``, ``json`` or ``parquet``.
    :param files: their paths.
    :param wanted: the columns as the plan has them.
    :param null_values: texts that mean NULL.
    """

    def __init__(
        self,
        spark: SparkSession,
        format_: str,
        files: list[str],
        wanted: list[dict[str, Any]],
        null_values: list[str],
    ) -> None:
        self.spark, self.format, self.files, self.wanted = spark, format_, files, wanted
        self.null_values = null_values
        self.lacking: set[str] = set()
        self.unlisted: set[str] = set()

    def read(self) -> DataFrame:
        """The wanted columns cast to their types, ``_bad_NAME`` (a value was there that is not of the type),
        ``_landed`` (what was there, less what is private), the malformed-row mark and the file's URL."""
        frames = getattr(self, "read_" + self.format)() if self.files else []
        if not frames:
            fields = [StructField(name, StringType()) for name in [*self.names(), MALFORMED, "_file"]]
            frames = [self.spark.createDataFrame([], StructType(fields))]
        return union([self.cast(frame) for frame in frames])

    def names(self) -> list[str]:
        return [item["name"] for item in self.wanted]

    def check(self, where: str, present: list[str], top: list[str]) -> None:
        """Refuse files that lack a column, unless it may be lacking; note what else they have."""
        lacking = [item["from"] for item in self.wanted if item["from"] not in present]
        needed = [item["from"] for item in self.wanted if item["from"] in lacking and not item["optional"]]
        if needed:
            raise PlanError(f"{where} lacks the columns {needed}; it has {top}")
        self.lacking.update(lacking)
        used = {item["from"] for item in self.wanted} | {item["from"].split(".")[0] for item in self.wanted}
        self.unlisted.update(name for name in top if name not in used)

    def select(self, frame: DataFrame, present: list[str], path: Any) -> DataFrame:
        """The wanted columns under their names; ``path`` makes of a source's name the column that it is."""
        selected = [
            (path(item["from"]) if item["from"] in present else F.lit(None).cast("string")).alias(item["name"])
            for item in self.wanted
        ]
        mark = column(MALFORMED) if MALFORMED in frame.columns else F.lit(None).cast("string").alias(MALFORMED)
        return frame.select(*selected, mark, F.col("_metadata.file_path").alias("_file"))

    def cast(self, frame: DataFrame) -> DataFrame:
        """Texts that mean NULL made NULL, then each column cast."""
        texts = {name for name, kind in frame.dtypes if kind == "string"}
        nulled = [
            F.when(column(name).isin(self.null_values), None).otherwise(column(name)).alias(name)
            if name in texts and self.null_values
            else column(name)
            for name in self.names()
        ]
        frame = frame.select(*nulled, MALFORMED, "_file")
        values = [
            F.expr(item["text_sql" if item["name"] in texts else "typed_sql"]).alias("_v_" + item["name"])
            for item in self.wanted
        ]
        frame = frame.select("*", *values)
        shown = [column(item["name"]).cast("string").alias(item["name"]) for item in self.wanted if not item["private"]]
        landed = (F.struct(*shown) if shown else F.struct(F.lit(None).alias("_"))).alias("_landed")
        cast, bad = [], []
        for name in self.names():
            value = column("_v_" + name)
            cast.append(value.alias(name))
            bad.append((column(name).isNotNull() & value.isNull()).alias("_bad_" + name))
        return frame.select(*cast, *bad, landed, MALFORMED, "_file")

    def read_csv(self) -> list[DataFrame]:
        """Files are grouped by their header, so that one with another order of columns is read right."""
        with ThreadPoolExecutor(8) as pool:
            lines = list(pool.map(lambda path: read_text(self.spark, path, first_line=True), self.files))
        groups: dict[tuple[str, ...], list[str]] = {}
        for path, line in zip(self.files, lines):
            if line:  # an empty file has no rows; the audit decides what that means
                header = next(csv.reader([line.lstrip("\ufeff").rstrip("\r")]))
                groups.setdefault(tuple(name.strip() for name in header), []).append(path)
        frames = []
        for names, members in groups.items():
            self.check(members[0], list(names), list(names))
            fields = [StructField(name, StringType()) for name in (*names, MALFORMED)]
            reader = self.spark.read.schema(StructType(fields)).option("header", True).option("enforceSchema", True)
            reader = reader.option("columnNameOfCorruptRecord", MALFORMED).option("mode", "PERMISSIVE")
            frames.append(self.select(reader.option("escape", '"').csv(members), list(names), column))
        return frames

    def read_json(self) -> list[DataFrame]:
        """Every leaf is read as text; a path that is not there is NULL, because lines have no header to tell."""
        tree: dict[str, Any] = {}
        for item in self.wanted:
            place, parts = tree, item["from"].split(".")
            for part in parts[:-1]:
                place = place.setdefault(part, {})
                if place is None:
                    raise PlanError("{} lies within another column".format(item["from"]))
            if place.setdefault(parts[-1], None) is not None:
                raise PlanError("{} holds another column".format(item["from"]))
        schema = struct({**tree, MALFORMED: None})
        reader = self.spark.read.schema(schema).option("columnNameOfCorruptRecord", MALFORMED)
        return [self.select(reader.json(self.files), [item["from"] for item in self.wanted], nested)]

    def read_parquet(self) -> list[DataFrame]:
        """One frame where the files' schemas can be merged, else a group for each schema."""
        try:
            groups = [self.spark.read.option("mergeSchema", True).parquet(*self.files)]
        except Exception as error:  # of Spark's class, which moved between its versions
            if "merge" not in str(error).lower():
                raise
            schemas: dict[str, list[str]] = {}
            for path in self.files:
                schemas.setdefault(self.spark.read.parquet(path).schema.json(), []).append(path)
            groups = [self.spark.read.parquet(*members) for members in schemas.values()]
        frames = []
        for frame in groups:
            present = leaves(frame.schema)
            where = self.files[0] if len(groups) == 1 else f"one of the files from {self.files[0]} on"
            self.check(where, present, frame.columns)
            found = self.select(frame, present, nested)
            kinds = dict(found.dtypes)
            for item in self.wanted:
                kind = re.sub(r"\(.*", "", kinds[item["name"]])
                if kind != "string" and kind not in item["kinds"]:
                    raise PlanError(
                        "{}: {} is {}, which cannot become {} without changing what it means".format(
                            where, item["from"], kinds[item["name"]], item["type"]
                        )
                    )
            frames.append(found)
        return frames


def struct(tree: dict[str, Any]) -> StructType:
    """A schema of texts, nested as the tree."""
    return StructType([StructField(name, struct(below) if below else StringType()) for name, below in tree.items()])


def leaves(schema: StructType, above: str = "") -> list[str]:
    """Paths of all fields."""
    found = []
    for field in schema.fields:
        found.append(above + field.name)
        if isinstance(field.dataType, StructType):
            found += leaves(field.dataType, above + field.name + ".")
    return found


def nested(path: str) -> Column:
    return F.col(".".join(quoted(part) for part in path.split(".")))


def union(frames: list[DataFrame]) -> DataFrame:
    result = frames[0]
    for frame in frames[1:]:
        result = result.unionByName(frame)
    return result


# --- joins ------------------------------------------------------------------------------------------------------------


def read_join(
    spark: SparkSession, join: dict[str, Any], files: list[str], null_values: list[str]
) -> tuple[DataFrame, DataFrame]:
    """The looked-up rows: keys, time and columns under their names in the table, bad values NULL; and their counts."""
    source = Source(spark, join["format"], files, join["needed"] + join["columns"], null_values)
    whole = F.lit(True)
    for item in join["needed"]:
        whole = whole & column(item["name"]).isNotNull()
    frame = source.read().where(whole)
    keys = [column(name).alias("_on_" + name) for name in join["on"]]
    if join["as_of"]:
        keys.append(column(join["as_of"]).alias("_as_of"))
    values, counts = [], [counted("join_rows", join["name"], F.count(F.lit(1)))]
    for item in join["columns"]:
        name, physical = item["name"], item["physical"]
        frame = frame.withColumnRenamed(name, physical)
        check = item["check"] or "TRUE"
        values.append(F.expr(f"CASE WHEN {check} THEN {quoted(physical)} END").alias(physical))
        bad = F.expr(f"`_bad_{name}` OR NOT ({check})")
        counts.append(counted("join_null", join["name"] + "." + name, F.sum(bad.cast("long"))))
    told = frame.agg(F.array(*counts).alias("_told")).select(F.inline("_told"))
    return frame.select(*keys, *values), told


def counted(what: str, name: Any, count: Column, moment: Any = None) -> Column:
    """A struct of the one form that every count of a run has, so that one job can count everything."""
    return F.struct(
        F.lit(what).alias("what"),
        (F.lit(name) if isinstance(name, str) else name).alias("name"),
        F.coalesce(count, F.lit(0)).cast("long").alias("rows"),
        (F.lit(None) if moment is None else moment).cast("string").alias("newest"),
    )


def join_equal(left: DataFrame, right: DataFrame, join: dict[str, Any]) -> DataFrame:
    """Left join on equal keys; of several looked-up rows with one key, the one that sorts last."""
    keys = ["_on_" + name for name in join["on"]]
    values = [item["physical"] for item in join["columns"]]
    order = Window.partitionBy(*keys).orderBy(*[column(name).desc_nulls_last() for name in values])
    right = right.withColumn("_n", F.row_number().over(order)).where("_n = 1").drop("_n")
    condition = [column(name) == F.col("_on_" + name) for name in join["on"]]
    return left.join(right, condition, "left").drop(*keys)


def join_as_of(left: DataFrame, right: DataFrame, join: dict[str, Any], event_time: str) -> DataFrame:
    """The latest looked-up row known before each event, by a join on equal keys that never repeats an event.

    Time is cut into spans as long as the tolerance. A looked-up row stands in each span that it reaches (two), and is
    valid there from when it is known until the next one is; so an event finds at most one row, in its own span. No
    group grows with the interval, and Spark may broadcast the smaller side or sort both, as their sizes say.
    """
    delay, tolerance = join["delay_s"], join["tolerance_s"]
    keys = ["_on_" + name for name in join["on"]]
    values = [item["physical"] for item in join["columns"]]

    def span(moment: str) -> str:  # NTZ has no number of its own; the session's zone is UTC
        return f"unix_seconds(CAST({moment} AS TIMESTAMP)) DIV {max(tolerance, 60)}"

    known = F.expr(f"_as_of + make_dt_interval(0, 0, 0, {delay})")
    until = F.expr(f"_as_of + make_dt_interval(0, 0, 0, {tolerance})")
    right = right.withColumns({"_known": known, "_until": until}).where("_known <= _until")
    right = right.withColumn("_span", F.explode(F.expr("sequence({}, {})".format(span("_known"), span("_until")))))
    order = Window.partitionBy(*keys, "_span").orderBy("_known", "_as_of", *[column(name) for name in values])
    right = right.withColumn("_next", F.lead("_known").over(order)).drop("_as_of")
    moment = column(event_time)
    condition = [column(name) == F.col("_on_" + name) for name in join["on"]]
    condition += [F.col("_at") == F.col("_span"), F.col("_known") <= moment, moment <= F.col("_until")]
    condition.append(F.col("_next").isNull() | (moment < F.col("_next")))
    spans = left.withColumn("_at", F.expr(span(quoted(event_time))))
    return spans.join(right, condition, "left").drop("_at", "_span", "_known", "_until", "_next", *keys)


# --- checking ---------------------------------------------------------------------------------------------------------


def day_text(files: list[str], pattern: str) -> Column:
    """The day that stands in a file's URL: a part of the text where it is as far from the end of every file, which is
    much cheaper than to search each row's."""
    ends = set()
    for path in files:
        match = re.search(pattern, path)
        end = path[match.start(1) :] if match else ""
        ends.add(len(end) if re.fullmatch(r"[A-Za-z0-9._/-]+", end) else 0)  # others are longer in a URL
    if len(ends) == 1 and 0 not in ends:
        return F.substring("_file", -ends.pop(), 10)
    return F.regexp_extract("_file", pattern, 1)


def checked(frame: DataFrame, plan: dict[str, Any], files: list[str]) -> DataFrame:
    """All rows: repaired columns, ``_reasons`` ("" means good), ``_repairs``, ``_raw`` of bad rows, ``_file_day`` and
    ``_day`` (of the event)."""
    columns = plan["columns"]
    names = [item["name"] for item in columns]
    moment = column(plan["event_time"])
    repairs, repaired = [], []
    for item in columns:
        before = quoted(item["name"])
        for step in item["repairs"]:
            changed = F.expr("NOT (({}) <=> ({}))".format(before, step["sql"]))
            repairs.append(F.when(changed, F.lit(step["name"])))
            before = step["sql"]
        repaired.append(F.expr(before).alias(item["name"]))
    day = F.to_date(day_text(files, plan["date_pattern"]))
    frame = frame.select(
        *repaired,
        *["_bad_" + name for name in names],
        "_landed",
        MALFORMED,
        "_file",
        day.alias("_file_day"),
        (F.concat_ws("; ", *repairs) if repairs else F.lit("")).alias("_repairs"),
    )
    found = [(F.col(MALFORMED).isNotNull(), "row:malformed")]
    for item in columns:
        bad = F.col("_bad_" + item["name"])
        found.append((bad, item["name"] + ":type"))
        found += [(~bad & F.expr("NOT ({})".format(rule["sql"])), rule["name"]) for rule in item["rules"]]
    event_day = F.to_date(moment)
    oldest = F.date_sub("_file_day", plan["late_days"])
    found.append(((event_day > F.col("_file_day")) | (event_day < oldest), plan["event_time"] + ":other_day"))
    reasons = F.concat_ws("; ", *[F.when(condition, reason) for condition, reason in found])
    some = functools.reduce(operator.or_, [condition for condition, _ in found])  # most rows are spared the texts
    # The values of a malformed row may stand in any column, so none of them is shown if some column is private.
    hidden = F.col(MALFORMED).isNotNull() & F.lit(any(item["private"] for item in columns))
    frame = frame.withColumn("_reasons", F.when(some, reasons).otherwise(""))
    good = F.col("_reasons") == ""
    if plan["later_paths"]:  # of files that landed after the interval only its own rows are taken
        own = good & event_day.between(F.lit(plan["first"]).cast("date"), F.lit(plan["last"]).cast("date"))
        frame = frame.where((F.col("_file_day") <= F.lit(plan["last"]).cast("date")) | own)
    return frame.select(
        *[column(name) for name in names],
        "_reasons",
        "_repairs",
        F.when(~good, F.when(hidden, F.lit("{}")).otherwise(F.to_json("_landed"))).alias("_raw"),
        "_file",
        "_file_day",
        F.when(good, event_day).alias("_day"),
    )


def content(plan: dict[str, Any]) -> Column:
    """A hash of a row's content, which tells rows apart that agree in all else; most rows never need it."""
    return F.xxhash64(*[column(item["name"]) for item in plan["columns"]])


def without_duplicates(frame: DataFrame, plan: dict[str, Any]) -> DataFrame:
    """Of good rows with one key, all but the latest get a reason. Only rows whose key is there twice are sorted."""
    good = F.col("_reasons") == ""
    groups = [*(["_day"] if plan["unique"] == "day" else []), *[column(name) for name in plan["key"]]]
    # By a hash, which is cheap to group: two keys with one hash are only sorted in vain.
    keyed = frame.withColumn("_k", F.when(good, F.xxhash64(*groups)))
    several = keyed.where(good).groupBy("_k").count().where("count > 1").select("_k").persist()
    if not several.take(1):
        several.unpersist()
        return frame
    order = Window.partitionBy(*groups).orderBy(column(plan["event_time"]).desc(), content(plan).desc())
    suspects = keyed.join(several, "_k", "left_semi").withColumn("_n", F.row_number().over(order))
    duplicate = F.col("_n") > 1
    shown = [column(item["name"]) for item in plan["columns"] if not item["private"]]
    raw = F.to_json(F.struct(*shown)) if shown else F.lit("{}")
    suspects = suspects.withColumns(
        {
            "_reasons": F.when(duplicate, F.lit("key:duplicate")).otherwise(F.col("_reasons")),
            "_raw": F.when(duplicate, raw).otherwise(F.col("_raw")),
        }
    )
    return keyed.join(several, "_k", "left_anti").unionByName(suspects.drop("_n")).drop("_k")


def kept(spark: SparkSession, frame: DataFrame, plan: dict[str, Any]) -> DataFrame:
    """The rows where they are read several times: as files, which outlive an executor and are cheaper than Spark's
    cache; private values in the cache alone, whose spill is encrypted, so that they are never in the lake's store."""
    if any(item["private"] for item in plan["columns"]):
        return frame.persist()
    path = plan["output"] + "/" + CHECKED
    local = "://" not in path or path.startswith("file:")  # where no network is saved
    frame.write.mode("errorifexists").option("compression", "none" if local else "snappy").parquet(path)
    return spark.read.schema(frame.schema).parquet(path)


def forget(spark: SparkSession, frame: DataFrame, plan: dict[str, Any]) -> None:
    """Remove what ``kept`` wrote."""
    frame.unpersist()
    system, jvm_path = file_system(spark, plan["output"] + "/" + CHECKED)
    system.delete(jvm_path, True)


# --- private values ---------------------------------------------------------------------------------------------------


def secret(spark: SparkSession, variable: str) -> str | None:
    """A secret: of the environment, or of Hadoop's credential provider where a setting names it there."""
    if variable in os.environ:
        return os.environ[variable]
    named = spark.conf.get(f"spark.sml.secret.{variable}", "")
    if not named:
        return None
    characters = spark.sparkContext._jsc.hadoopConfiguration().getPassword(named)
    return "".join(characters) if characters is not None else None


def privacy_keys(spark: SparkSession, plan: dict[str, Any]) -> dict[str, bytes]:
    """The keys of the hashed columns by connection; they are written nowhere."""
    given = json.loads(secret(spark, "SML_PRIVACY_KEYS") or "{}")
    keys = {}
    for output in plan["outputs"]:
        if output["hash"]:
            if output["hash"] not in given:
                raise PlanError(
                    "no key was given for the connection {}, which hashes {}".format(output["hash"], output["name"])
                )
            keys[output["hash"]] = given[output["hash"]].encode("utf-8")
    return keys


def key_id(key: bytes) -> str:
    """Tells one key from another without telling the key: the beginning of its HMAC-SHA256 of a fixed text."""
    return hmac.new(key, b"airflow-provider-sml key id", hashlib.sha256).hexdigest()[:12]


def keyed_hash(key: bytes) -> Any:
    """HMAC-SHA256 as a Spark function. The key stays out of the query plan, which Spark prints and logs."""

    def digest(value):  # type: ignore[no-untyped-def]  # Spark would read more into hints
        return None if value is None else hmac.new(key, value.encode("utf-8"), hashlib.sha256).hexdigest()

    return F.udf(digest, StringType())


def table_rows(frame: DataFrame, plan: dict[str, Any], keys: dict[str, bytes]) -> DataFrame:
    """The good rows as the table holds them, and the columns that place them in files."""
    selected = []
    for output in plan["outputs"]:
        value = F.expr(output["sql"])
        if output["hash"]:
            value = keyed_hash(keys[output["hash"]])(value)
        selected.append(value.alias(output["name"]))
    return frame.select(*selected, "_p", "_s")


# --- planning files ---------------------------------------------------------------------------------------------------


def plan_files(rows: dict[str, int], bytes_per_row: float, file_bytes: int) -> dict[str, int]:
    """How many files each day gets, so that each is about as large as wanted: never more than twice, never empty."""
    return {day: max(1, min(count, round(count * bytes_per_row / file_bytes))) for day, count in rows.items()}


def place_heavy(heavy: dict[Any, int], rows: int, files: int) -> dict[Any, list[int]]:
    """Where the rows of heavy keys go: each key is salted into pieces, and each piece put into the emptiest file.

    :param heavy: rows of each key that has too many for its hash alone to place them.
    :param rows: rows of the day; those of other keys lie evenly over the files.
    :param files: number of files.
    :returns: files of each key, one for each piece.
    """
    piece = max(1.0, rows / files / 4)
    load = [(rows - sum(heavy.values())) / files] * files
    places: dict[Any, list[int]] = {}
    for key, count in sorted(heavy.items(), key=lambda item: (-item[1], str(item[0]))):
        pieces = math.ceil(count / piece)
        for _ in range(pieces):
            emptiest = load.index(min(load))
            load[emptiest] += count / pieces
            places.setdefault(key, []).append(emptiest)
    return places


def placed(
    frame: DataFrame, plan: dict[str, Any], rows: dict[str, int], input_bytes: int
) -> tuple[DataFrame, dict[str, Any]]:
    """The good rows with their day ``_p`` and file ``_s``, and the plan that this follows."""
    total = sum(rows.values())
    per_row = plan["bytes_per_row"] or max(8.0 * len(plan["outputs"]), input_bytes / max(total, 1)) / 2
    files = plan_files(rows, per_row, plan["file_bytes"])
    told: dict[str, Any] = {
        "bytes_per_row": round(per_row, 1),
        "measured": plan["bytes_per_row"] is not None,
        "files": sum(files.values()),
        "shards": {day: number for day, number in sorted(files.items()) if number > 1},
        "salted_keys": 0,
    }
    several = told["shards"]
    shard = F.lit(0)
    if several:
        by_day = F.create_map(*[part for day, number in several.items() for part in (F.lit(day), F.lit(number))])
        frame = frame.withColumns(
            {
                "_k": F.xxhash64(*[column(name) for name in plan["shard"] or plan["key"]]),
                "_f": F.coalesce(F.element_at(by_day, F.col("_day").cast("string")), F.lit(1)),
            }
        )
        shard = F.expr("CAST(pmod(_k, _f) AS INT)")
        places = heavy_places(frame, rows, several) if plan["shard"] else []
        if places:
            told["salted_keys"] = len(places)
            schema = "_hd string, _hk bigint, _places array<int>"
            salted = F.broadcast(frame.sparkSession.createDataFrame(places, schema))
            condition = (F.col("_day").cast("string") == F.col("_hd")) & (F.col("_k") == F.col("_hk"))
            frame = frame.join(salted, condition, "left").withColumn("_tie", content(plan))
            shard = F.expr("CASE WHEN _places IS NULL THEN CAST(pmod(_k, _f) AS INT) "
                           "ELSE _places[CAST(pmod(_tie, size(_places)) AS INT)] END")  # fmt: skip
    frame = frame.withColumns({"_p": F.col("_day"), "_s": shard})
    return frame.drop("_k", "_f", "_hd", "_hk", "_places", "_tie"), told


def heavy_places(frame: DataFrame, rows: dict[str, int], several: dict[str, int]) -> list[tuple[str, int, list[int]]]:
    """The keys that alone fill an eighth of a file, with the files of their pieces."""
    least = min(rows[day] / number for day, number in several.items()) / 8
    counts = frame.where("_f > 1").groupBy(F.col("_day").cast("string").alias("day"), "_k").count()
    heavy: dict[str, dict[int, int]] = {}
    for row in counts.where(F.col("count") >= max(least, 2)).collect():
        heavy.setdefault(row["day"], {})[row["_k"]] = row["count"]
    return [
        (day, key, files)
        for day, keys in sorted(heavy.items())
        for key, files in sorted(place_heavy(keys, rows[day], several[day]).items())
    ]


def write_days(frame: DataFrame, sort: list[str], path: str, files: int) -> None:
    """Parquet, one file for each day and shard, the rows in a fixed order. Their day stays in the files as well, under
    its own name, as Iceberg wants it."""
    ordered = ["_p", "_s", *[quoted(name) for name in sort]]
    tasks = min(files, 4 * int(frame.sparkSession.conf.get("spark.sql.shuffle.partitions")))
    by_file = frame.repartition(tasks, "_p", "_s").sortWithinPartitions(*ordered)
    by_file.write.partitionBy("_p", "_s").mode("errorifexists").parquet(path)


# --- the run ----------------------------------------------------------------------------------------------------------


def count_rows(rows: DataFrame, plan: dict[str, Any], told: list[DataFrame]) -> dict[str, Any]:
    """Everything that the report counts, by one Spark job."""
    groups = rows.groupBy("_file_day", "_day", "_reasons", "_repairs")
    moment = F.max(F.when(F.col("_reasons") == "", column(plan["event_time"])))
    name = F.to_json(F.struct("_file_day", "_day", "_reasons", "_repairs"))
    own = groups.agg(F.count(F.lit(1)).alias("_rows"), moment.alias("_newest"))
    own = own.select(F.inline(F.array(counted("rows", name, F.col("_rows"), F.col("_newest")))))
    days: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"days": days, "reasons": {}, "repairs": {}, "joins": {}}

    def of(day: str) -> dict[str, Any]:
        empty = {"rows_in": 0, "rows_good": 0, "rows_bad": 0, "rows_repaired": 0, "rows_late": 0, "newest": None}
        return days.setdefault(day, empty)

    for row in union([own, *told]).collect():
        if row["what"] == "rows":
            add_rows(of, found, json.loads(row["name"]), row["rows"], row["newest"])
            continue
        join, _, name = row["name"].partition(".")
        entry = found["joins"].setdefault(join, {"rows": 0, "set_to_null": {}})
        if row["what"] == "join_rows":
            entry["rows"] = row["rows"]
        elif row["rows"]:
            entry["set_to_null"][name] = row["rows"]
    return found


def add_rows(of: Any, found: dict[str, Any], group: dict[str, str], count: int, newest: str | None) -> None:
    """Add the rows of one file day, event day, set of reasons and set of repairs."""
    landed = of(group["_file_day"])
    landed["rows_in"] += count
    if group["_reasons"]:
        landed["rows_bad"] += count
        for reason in group["_reasons"].split("; "):
            found["reasons"][reason] = found["reasons"].get(reason, 0) + count
        return
    event = of(group["_day"])
    event["rows_good"] += count
    moment = newest.replace(" ", "T") if newest else None
    event["newest"] = max(filter(None, [event["newest"], moment]), default=None)
    if group["_day"] != group["_file_day"]:
        landed["rows_late"] += count
    if group["_repairs"]:
        landed["rows_repaired"] += count
        for repair in group["_repairs"].split("; "):
            found["repairs"][repair] = found["repairs"].get(repair, 0) + count


def run(spark: SparkSession, plan: dict[str, Any]) -> None:
    """Execute a plan and write its report."""
    started = time.time()
    keys = privacy_keys(spark, plan)
    looked_up_in = [path for join in plan["joins"] for path in join["optional"] + join["paths"]]
    listed = list_all(spark, plan["paths"] + plan["later_paths"] + looked_up_in)
    for needed in [plan["paths"], *[join["paths"] for join in plan["joins"]]]:
        missing = [path for path in needed if not listed[path]]
        if missing:
            raise PlanError(f"{len(missing)} of {len(needed)} files are not there, the first is {missing[0]}")
    found = [entry for pattern in plan["paths"] + plan["later_paths"] for entry in listed[pattern]]
    files, input_bytes = [path for path, _ in found], sum(size for _, size in found)
    source = Source(spark, plan["format"], files, plan["columns"], plan["null_values"])
    with ThreadPoolExecutor(1) as beside:
        keeping = beside.submit(kept, spark, checked(source.read(), plan, files), plan)
        joins = []  # planned while the rows are checked
        for join in plan["joins"]:
            patterns = join["optional"] + join["paths"]
            joined = list(dict.fromkeys(path for pattern in patterns for path, _ in listed[pattern]))
            joins.append(read_join(spark, join, joined, plan["null_values"]))
        whole = keeping.result()
    rows = without_duplicates(whole, plan)
    counts = count_rows(rows, plan, [told for _, told in joins])
    good_by_day = {day: told["rows_good"] for day, told in counts["days"].items() if told["rows_good"]}
    print(f"read {sum(day['rows_in'] for day in counts['days'].values())} rows of {len(files)} files", flush=True)
    good, planned = placed(rows.where("_reasons = ''"), plan, good_by_day, input_bytes)
    good = good.drop("_reasons", "_repairs", "_raw", "_file", "_file_day", "_day")
    print(f"planned {json.dumps(planned)}", flush=True)
    for join, (looked_up, _) in zip(plan["joins"], joins):
        good = (
            join_as_of(good, looked_up, join, plan["event_time"])
            if join["as_of"]
            else join_equal(good, looked_up, join)
        )
    writes = []
    if good_by_day:
        writes.append((table_rows(good, plan, keys), plan["sort"], plan["output"] + "/data", planned["files"]))
    if counts["reasons"]:
        bad = rows.where("_reasons <> ''").select(
            F.col("_reasons").alias("reasons"),
            F.col("_raw").alias("raw_row"),
            F.col("_file").alias("file"),
            F.col("_file_day").alias(plan["partition"]),
            F.col("_file_day").alias("_p"),
            F.lit(0).alias("_s"),
        )
        tasks = math.ceil(sum(day["rows_bad"] for day in counts["days"].values()) / ROWS_PER_TASK)
        writes.append((bad, ["reasons", "raw_row"], plan["output"] + "/quarantine", min(tasks, len(counts["days"]))))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda write: write_days(*write), writes))
    print("wrote the rows", flush=True)
    forget(spark, whole, plan)
    sizes = [size for _, size in list_files(spark, plan["output"] + "/data/*/*")]
    report = {
        **counts,
        "plan": planned,
        "written": {"files": len(sizes), "bytes": sum(sizes), "largest": max(sizes, default=0)},
        "lacking": sorted(source.lacking),
        "unlisted": sorted(source.unlisted),
        "keys": {name: key_id(key) for name, key in keys.items()},
        "seconds": round(time.time() - started, 1),
        "spark": spark.version,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_text(spark, plan["output"] + "/report.json", json.dumps(report, indent=1, sort_keys=True))
    print("done in {:.1f} s".format(report["seconds"]), flush=True)


# --- profiles of published days ---------------------------------------------------------------------------------------

#: Days that are profiled at once: small ones would leave most of a cluster idle.
DAYS_AT_ONCE = 4


def profile_days(spark: SparkSession, plan: dict[str, Any]) -> None:
    """Profile the features of published days, and the scores; a folder for each day.

    Where the Python workers have the libraries they profile features file by file; elsewhere the rows are counted by
    buckets and categories, and what such counts mean is known to who reads them. Scores are left out, and the report
    says why, where the workers cannot load the model.
    """
    started = time.time()
    counts, no_counts = file_profiler(spark, plan)
    scores, no_scores = score_profiler(spark, plan)
    by_sql: dict[str, str] = {}
    largest = largest_file(spark)

    def rows_of(day: dict[str, Any]) -> DataFrame:
        rows = spark.read.option("mergeSchema", True).parquet(*day["files"])
        older = [name for name in plan["columns"] if name not in rows.columns]  # the files are older than the column
        missing = [F.lit(None).cast(plan["columns"][name]).alias(name) for name in older]
        return rows.select(*[column(name) for name in rows.columns], *missing)

    def features(day: dict[str, Any]) -> DataFrame:
        reason = no_counts
        if counts and day["largest"] > largest:
            reason = "a file of {:,} bytes, where a task has memory for {:,}".format(day["largest"], largest)
        elif counts:
            try:
                return profile_files(spark, day["files"], counts)
            except Exception as error:  # such as a column that is not of the model's type
                reason = first_error(error)
        by_sql[day["day"]] = reason
        rows_of(day).createOrReplaceTempView(day["view"])
        return spark.sql(day["features"])

    def profile(day: dict[str, Any]) -> None:
        if day["features"]:
            write_one(features(day), "{}/features/{}".format(plan["output"], day["day"]))
        if day["score"] and scores:
            wanted = rows_of(day).select(*[column(name) for name in plan["score_columns"]])
            found = wanted.mapInArrow(scores, "profile string")
            write_one(found, "{}/scores/{}".format(plan["output"], day["day"]))
        print("profiled {}".format(day["day"]), flush=True)

    with ThreadPoolExecutor(DAYS_AT_ONCE) as pool:
        list(pool.map(profile, plan["days"]))
    report = {"no_scores": no_scores, "by_sql": by_sql, "seconds": round(time.time() - started, 1),
              "spark": spark.version}  # fmt: skip
    write_text(spark, plan["output"] + "/report.json", json.dumps(report, indent=1, sort_keys=True))


#: Memory of a Python worker beside the file that it holds, in bytes.
WORKER = 128 * 2**20


def largest_file(spark: SparkSession) -> int:
    """Bytes of a file that a task and its Python worker may hold."""
    context = spark.sparkContext
    heap = context._jvm.java.lang.Runtime.getRuntime().maxMemory()
    return room_for_file(context.master, dict(context.getConf().getAll()), int(heap), context.defaultParallelism)


def room_for_file(master: str, conf: dict[str, str], heap: int, cores: int) -> int:
    """Bytes of a file that a task and its Python worker may hold: Java needs twice as many, and memory for other
    things; the worker lives beside Java's memory, in what YARN and Kubernetes set aside as overhead.

    :param master: address of the cluster.
    :param conf: of Spark.
    :param heap: Java's memory in the driver, in bytes.
    :param cores: of a local Spark.
    """
    if master.startswith("local"):
        return heap // cores // 4
    heap, tasks = in_bytes(conf.get("spark.executor.memory", "1g")), int(conf.get("spark.executor.cores", "4"))
    room = heap // tasks // 4
    if not master.startswith("spark://"):
        usual = "0.4" if master.startswith("k8s") else "0.1"
        factor = float(conf.get("spark.executor.memoryOverheadFactor", usual))
        overhead = in_bytes(conf.get("spark.executor.memoryOverhead", "0")) or max(384 * 2**20, int(factor * heap))
        room = min(room, overhead // tasks - WORKER)
    return max(room, 0)


def in_bytes(size: str) -> int:
    """Bytes of a size such as 4g; MiB where it has no unit, as Spark has it for memory."""
    found = re.fullmatch(r"(\d+)([kmgt]?)b?", size.strip().lower())
    if not found:
        raise PlanError(f"{size!r} is no size of memory")
    return int(found[1]) * 1024 ** " kmgt".index(found[2] or "m")


def file_profiler(spark: SparkSession, plan: dict[str, Any]) -> tuple[Any, str]:
    """What profiles the features in the content of a file in a Python worker; or None, and why."""
    asked = plan["asked"]
    if not any(day["features"] for day in plan["days"]):
        return None, ""
    if asked is None:
        return None, "an expression that only SQL computes"

    def profile(content: bytes) -> str:
        from airflow_provider_sml.ml.monitoring.file_profile import profile_file

        return profile_file(content, asked)

    def load(_: int) -> str:
        from airflow_provider_sml.ml.monitoring import file_profile

        return file_profile.__name__

    try:
        spark.sparkContext.addPyFile(plan["package"])
        spark.sparkContext.parallelize([0], 1).map(load).collect()
    except Exception as error:  # of whatever the cluster's Python lacks
        return None, first_error(error)
    return profile, ""


def profile_files(spark: SparkSession, files: list[str], profile: Any) -> DataFrame:
    """Profiles of files, one in a row.

    :param profile: gives the profile of a file's content in a Python worker.
    """
    if any("," in path for path in files):  # it would part two names
        raise ValueError("a comma in the name of a file")
    found = spark.sparkContext.binaryFiles(",".join(files)).values().map(profile).collect()
    return spark.createDataFrame([(one,) for one in found], "profile string")


def score_profiler(spark: SparkSession, plan: dict[str, Any]) -> tuple[Any, str]:
    """What profiles the scores of a part of the rows in a Python worker; or None, and why."""
    if not any(day["score"] for day in plan["days"]):
        return None, ""
    segment, bundle = plan["segment"], os.path.basename(plan["bundle"])

    def part(batches: Any) -> Any:
        from pyspark import SparkFiles

        from airflow_provider_sml.ml.monitoring.score_profile import profile_part

        return profile_part(SparkFiles.get(bundle), segment, batches)

    def load(batches: Any) -> Any:
        return part(batch for batch in batches if not batch.num_rows)

    try:
        spark.sparkContext.addPyFile(plan["package"])
        spark.sparkContext.addFile(plan["bundle"], recursive=True)
        spark.range(1).mapInArrow(load, "profile string").collect()
    except Exception as error:  # of whatever the cluster's Python lacks, and of Spark's classes for that
        return None, first_error(error)
    return part, ""


def first_error(error: Exception) -> str:
    """What went wrong in a Python worker, in a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if re.search(r"(Error|Exception)\b.*:", line) and not line.startswith("at ")]
    return (told[-1] if told else str(error).strip() or type(error).__name__)[:500]


def write_one(frame: DataFrame, path: str) -> None:
    """Few rows as one Parquet file, in place of what another attempt of the application left."""
    frame.repartition(1).write.mode("overwrite").parquet(path)


def main(argv: list[str]) -> int:
    spark = SparkSession.builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        plan = json.loads(read_text(spark, argv[1]))
        (profile_days if plan.get("do") == "profiles" else run)(spark, plan)
    except PlanError as error:
        print("SML-INPUT-ERROR: {}".format(re.sub(r"\s+", " ", str(error))), flush=True)
        return 3
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
