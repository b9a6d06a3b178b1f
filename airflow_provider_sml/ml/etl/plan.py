"""From a dataset and an interval to the plan that the Spark application executes: plain SQL and paths.

Everything that knows the spec happens here, on the side of Airflow; the application only executes. A plan is JSON and
holds no secret.
"""

from __future__ import annotations

import datetime as dt
import glob
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract import LABEL, PARTITION, Column, Dataset, Join, Values
from airflow_provider_sml.ml.contract.model import GeneralisePrivacy, HashPrivacy, PrefixPrivacy
from airflow_provider_sml.ml.expressions import SQL_TYPES, identifier, physical

#: Settings that the plan's meaning rests on: one clock, one arithmetic on every line of Spark, plain timestamps.
SPARK_CONF = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    # With pruning a CSV row of too few or too many values would pass unseen.
    "spark.sql.csv.parser.columnPruning.enabled": "false",
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    # A wide contract makes methods of more than 8,000 bytes, which HotSpot otherwise leaves to its interpreter.
    "spark.executor.extraJavaOptions": "-XX:-DontCompileHugeMethods",
}

#: Size that files are planned for, within the usual 128 to 512 MB.
FILE_BYTES = 256 * 2**20

# What a text must look like to be of a type; Spark's own casts take more ("1d" as a number, "2013" as a timestamp).
SHAPES = {
    "int": r"^\s*[+-]?\d+\s*$",
    "double": r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$",
    "boolean": r"^\s*(?i:true|false)\s*$",
    "date": r"^\d{4}-\d{2}-\d{2}$",
    "timestamp": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?$",
}
# A cheap cast to a whole number is tried before the shape; beyond it, it takes only control characters at the ends.
WHOLE = r"^\\s*[+-]?\\d+(\\.0*)?\\s*$"
SPARK_TYPES = {"int": "BIGINT", "double": "DOUBLE", "boolean": "BOOLEAN", "date": "DATE", "timestamp": "TIMESTAMP"}

# The types of typed files (Parquet) that may become a type without changing what they mean; decimal(10,2) is "decimal".
_WHOLE = ["tinyint", "smallint", "int", "bigint"]
TYPED_KINDS = {
    "int": [*_WHOLE, "decimal", "float", "double"],
    "double": [*_WHOLE, "decimal", "float", "double"],
    "string": _WHOLE,
    "boolean": ["boolean"],
    "date": ["date"],
    "timestamp": ["timestamp", "timestamp_ntz"],
}


def days(first: dt.date, last: dt.date) -> list[dt.date]:
    """The days from first to last, inclusive."""
    return [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]


def fill_path(template: str, places: Mapping[str, str], day: dt.date | None = None) -> str:
    """Fill ``{landing}`` and the like, and ``{date}``, into a path.

    :raises ConfigurationError: when the path names a place that is not given.
    """
    values = dict(places) | ({"date": day.isoformat()} if day else {})
    try:
        return template.format_map(values)
    except (KeyError, IndexError) as error:
        raise ConfigurationError(
            f"the path {template!r} names a place that is not given",
            expected=", ".join(f"{{{name}}}" for name in (*places, "date")),
            found=f"{{{error.args[0]}}}",
        ) from None


def local_bytes(paths: list[str]) -> int:
    """The size of the landed files that lie on this machine, as far as their paths are files or patterns of files.

    :param paths: as the plan has them.
    """
    local = [path.removeprefix("file://") for path in paths if "://" not in path.removeprefix("file://")]
    return sum(os.path.getsize(file) for path in local for file in glob.glob(path) if os.path.isfile(file))


def landed_paths(dataset: Dataset, places: Mapping[str, str], first: dt.date, last: dt.date) -> list[str]:
    """Every file that must have landed before an interval can be processed."""
    templates = [dataset.source.path, *(join.path for join in dataset.source.joins)]
    return [
        fill_path(template, places, day)
        for template in templates
        for day in (days(first, last) if "{date}" in template else [None])
    ]


def compile_plan(
    dataset: Dataset,
    places: Mapping[str, str],
    first: dt.date,
    last: dt.date,
    output: str,
    bytes_per_row: float | None = None,
) -> dict[str, Any]:
    """The plan of one run.

    :param dataset: what to make.
    :param places: values of the places that paths name, such as ``landing``.
    :param first: first day.
    :param last: last day, inclusive.
    :param output: a folder that does not exist yet.
    :param bytes_per_row: of the table's files so far, from which the number of files is planned; estimated when None.
    """
    contract = dataset.contract
    late = contract.late_up_to if contract.late == "republish" else dt.timedelta()
    return {
        "format": dataset.source.format,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "paths": [fill_path(dataset.source.path, places, day) for day in days(first, last)],
        # Rows of these days that landed after them; so a day that is made again has all its rows.
        "later_paths": [fill_path(dataset.source.path, places, day) for day in days(last, last + late)[1:]],
        "date_pattern": _date_pattern(dataset.source.path),
        "null_values": dataset.source.null_values,
        "columns": [_column(dataset, name, column) for name, column in contract.columns.items()],
        "key": contract.key,
        "unique": contract.unique,
        "event_time": contract.event_time,
        "late_days": -(-late // dt.timedelta(days=1)),
        "joins": [_join(dataset, join, places, first, last, late) for join in dataset.source.joins],
        "outputs": _outputs(dataset),
        "partition": PARTITION,
        "sort": list(dict.fromkeys([contract.event_time, *_stored(dataset, contract.key)])),
        "shard": contract.shard,
        "bytes_per_row": bytes_per_row,
        "file_bytes": FILE_BYTES,
        "output": output,
    }


def spark_conf(dataset: Dataset) -> dict[str, str]:
    """The settings that a dataset's run needs: ``SPARK_CONF``, and, for one with private columns, encrypted spill."""
    private = {"spark.io.encryption.enabled": "true"} if dataset.private_columns else {}
    return SPARK_CONF | private


def _column(dataset: Dataset, name: str, column: Column) -> dict[str, Any]:
    return {
        **_read(name, column),
        "optional": column.optional,
        "private": column.privacy is not None,
        "repairs": [{"name": mend.name, "sql": mend.value.sql("spark")} for mend in dataset.repairs_of(name)],
        "rules": [{"name": rule.name, "sql": rule.predicate.sql("spark")} for rule in dataset.rules_of(name)],
    }


def _read(name: str, values: Values) -> dict[str, Any]:
    """How a column is read: where it stands in the source, and its value as SQL, NULL when it is not of the type."""
    column, type_ = identifier(name, "spark"), values.type
    if type_ == "string":
        text = typed = f"CAST({column} AS STRING)"
    else:
        pattern = SHAPES[type_].replace("\\", "\\\\")
        text = f"CASE WHEN {column} RLIKE '{pattern}' THEN try_cast(trim({column}) AS {SPARK_TYPES[type_]}) END"
        typed = f"try_cast({column} AS {SPARK_TYPES[type_]})"
    if type_ == "int":  # 3.0 is a whole number in JSON, and what many tools write for one; a cast would cut 1.5 to 1
        whole = f"try_cast(substring_index(trim({column}), '.', 1) AS BIGINT)"
        text = f"coalesce(try_cast({column} AS BIGINT), CASE WHEN {column} RLIKE '{WHOLE}' THEN {whole} END)"
        typed = f"CASE WHEN {column} = {typed} THEN {typed} END"
    if type_ == "timestamp":
        text, typed = (f"CAST({sql} AS TIMESTAMP_NTZ)" for sql in (text, typed))
    if type_ == "double":  # the lake holds finite numbers only
        text = f"coalesce(CAST(try_cast({column} AS BIGINT) AS DOUBLE), {text})"
        no_numbers = ("NaN", "Infinity", "-Infinity")
        for value in no_numbers:
            text, typed = (f"nullif({sql}, double('{value}'))" for sql in (text, typed))
    return {
        "name": name,
        "from": values.source or name,
        "type": type_,
        "text_sql": text,
        "typed_sql": typed,
        "kinds": TYPED_KINDS[type_],
        "optional": False,
        "private": False,
    }


def _stored(dataset: Dataset, names: list[str]) -> list[str]:
    return [name for name in names if dataset.contract.columns[name].privacy != "drop"]


def _date_pattern(template: str) -> str:
    """A regular expression that finds the date in a file's URL: what stands around it, from its own folder on."""
    before, after = template.split("{date}", 1)
    before = re.split(r"[/}]", before)[-1]
    after = after.rstrip("/").replace("{date}", "\0")
    day = r"\d{4}-\d{2}-\d{2}"
    fixed = [
        # What java.net.URI leaves as it is in a path stays as it is here.
        re.escape(quote(part, safe="/*?\0!'(),;:$&+=@~")).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        for part in (before, after)
    ]
    return f"{fixed[0]}({day}){fixed[1]}(?:/[^/]*)?$".replace("\0", day)


def _outputs(dataset: Dataset) -> list[dict[str, Any]]:
    """The columns of the table: their SQL, and for a hashed one the connection whose key hashes it."""
    features = {feature.name: feature for feature in dataset.feature_list}
    outputs: list[dict[str, Any]] = []
    for name, _ in dataset.table_columns:
        hashed = None
        if name in dataset.contract.columns:
            column = dataset.contract.columns[name]
            sql = _treated(identifier(name, "spark"), column)
            hashed = column.privacy.hash if isinstance(column.privacy, HashPrivacy) else None
        elif "__" in name:
            sql = identifier(name, "spark")
        elif name == LABEL:
            sql = f"CAST({dataset.label_expression.sql('spark')} AS BIGINT)"
        elif name == PARTITION:
            sql = f"CAST({identifier(dataset.contract.event_time, 'spark')} AS DATE)"
        else:
            sql = features[name].expression.sql("spark")
            if features[name].categories is None:
                sql = f"CAST({sql} AS DOUBLE)"
        outputs.append({"name": name, "sql": sql, "hash": hashed})
    return outputs


def _treated(sql: str, column: Column) -> str:
    """A column's SQL under its privacy treatment; a hash is taken by the application, which alone has the key."""
    if column.privacy == "mask":
        return f"CASE WHEN {sql} IS NOT NULL THEN '***' END"
    if isinstance(column.privacy, PrefixPrivacy):
        return f"substr({sql}, 1, {column.privacy.prefix})"
    if isinstance(column.privacy, GeneralisePrivacy):
        return f"CAST(date_trunc('{column.privacy.generalise.upper()}', {sql}) AS {SQL_TYPES['spark'][column.type]})"
    return sql


def _join(
    dataset: Dataset, join: Join, places: Mapping[str, str], first: dt.date, last: dt.date, late: dt.timedelta
) -> dict[str, Any]:
    daily = "{date}" in join.path
    reach = dt.timedelta(days=-(-(join.tolerance + late) // dt.timedelta(days=1)))  # whole days, rounded up
    columns = [
        {
            **_read(name, values),
            "physical": physical(f"{join.name}.{name}"),
            "check": " AND ".join(rule.predicate.sql("spark") for rule in dataset.rules_of(f"{join.name}.{name}")),
        }
        for name, values in join.columns.items()
    ]
    needed = {name: dataset.contract.columns[name].type for name in join.on}
    if join.as_of:
        needed[join.as_of] = "timestamp"
    return {
        "name": join.name,
        "format": join.format,
        "paths": [fill_path(join.path, places, day) for day in (days(first, last) if daily else [None])],
        # Events just after midnight look up what was measured the day before; the first day of all has no such file.
        "optional": [fill_path(join.path, places, day) for day in days(first - reach, first)[:-1]] if daily else [],
        "on": join.on,
        "needed": [_read(name, Values(type=type_)) for name, type_ in needed.items()],
        "as_of": join.as_of,
        "delay_s": int(join.delay.total_seconds()),
        "tolerance_s": int(join.tolerance.total_seconds()),
        "columns": columns,
    }
