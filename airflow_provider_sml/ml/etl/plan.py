"""From a dataset and an interval to the plan that the Spark application executes: plain SQL and paths.

Everything that knows the spec happens here, on the side of Airflow; the application only executes. A plan is JSON and
holds no secret.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract import LABEL, PARTITION, Dataset, Join
from airflow_provider_sml.ml.expressions import identifier, physical

#: Settings that the plan's meaning rests on: one clock, one arithmetic on every line of Spark, plain timestamps.
SPARK_CONF = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    # With pruning a CSV row of too few or too many values would pass unseen.
    "spark.sql.csv.parser.columnPruning.enabled": "false",
    "spark.sql.legacy.timeParserPolicy": "CORRECTED",
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


def landed_paths(dataset: Dataset, places: Mapping[str, str], first: dt.date, last: dt.date) -> list[str]:
    """Every file that must have landed before an interval can be processed."""
    templates = [dataset.source.path, *(join.path for join in dataset.source.joins)]
    return [
        fill_path(template, places, day)
        for template in templates
        for day in (days(first, last) if "{date}" in template else [None])
    ]


def compile_plan(
    dataset: Dataset, places: Mapping[str, str], first: dt.date, last: dt.date, output: str
) -> dict[str, Any]:
    """The plan of one run.

    :param dataset: what to make.
    :param places: values of the places that paths name, such as ``landing``.
    :param first: first day.
    :param last: last day, inclusive.
    :param output: a folder that does not exist yet.
    """
    contract = dataset.contract
    return {
        "format": dataset.source.format,
        "paths": [fill_path(dataset.source.path, places, day) for day in days(first, last)],
        "date_pattern": _date_pattern(dataset.source.path),
        "null_values": dataset.source.null_values,
        "columns": [
            {
                "name": name,
                "type": column.type,
                "privacy": column.model_dump(mode="json")["privacy"],
                "rules": [{"name": rule.name, "sql": rule.predicate.sql("spark")} for rule in dataset.rules_of(name)],
            }
            for name, column in contract.columns.items()
        ],
        "key": contract.key,
        "event_time": contract.event_time,
        "joins": [_join(dataset, join, places, first, last) for join in dataset.source.joins],
        "outputs": _outputs(dataset),
        "partition": PARTITION,
        "sort": list(dict.fromkeys([contract.event_time, *_stored(dataset, contract.key)])),
        "output": output,
    }


def _stored(dataset: Dataset, names: list[str]) -> list[str]:
    return [name for name in names if dataset.contract.columns[name].privacy != "drop"]


def _date_pattern(template: str) -> str:
    """A regular expression that finds the date in a file's URL: what stands around it in the same folders."""
    before, after = template.split("{date}", 1)
    before = re.split(r"[/}]", before)[-1]
    after = after.replace("{date}", "\0")
    fixed = re.escape(quote(before)), re.escape(quote(after)).replace("\0", r"\d{4}-\d{2}-\d{2}")
    return f"{fixed[0]}(\\d{{4}}-\\d{{2}}-\\d{{2}}){fixed[1]}$"


def _outputs(dataset: Dataset) -> list[dict[str, str]]:
    features = {feature.name: feature for feature in dataset.feature_list}
    outputs = []
    for name, _ in dataset.table_columns:
        if name in dataset.contract.columns or "__" in name:
            sql = identifier(name, "spark")
        elif name == LABEL:
            sql = f"CAST({dataset.label_expression.sql('spark')} AS BIGINT)"
        elif name == PARTITION:
            sql = f"CAST({identifier(dataset.contract.event_time, 'spark')} AS DATE)"
        else:
            sql = features[name].expression.sql("spark")
            if features[name].categories is None:
                sql = f"CAST({sql} AS DOUBLE)"
        outputs.append({"name": name, "sql": sql})
    return outputs


def _join(dataset: Dataset, join: Join, places: Mapping[str, str], first: dt.date, last: dt.date) -> dict[str, Any]:
    daily = "{date}" in join.path
    reach = dt.timedelta(days=-(-join.tolerance // dt.timedelta(days=1)))  # whole days, rounded up
    columns = [
        {
            "name": name,
            "type": values.type,
            "physical": physical(f"{join.name}.{name}"),
            "check": " AND ".join(rule.predicate.sql("spark") for rule in dataset.rules_of(f"{join.name}.{name}")),
        }
        for name, values in join.columns.items()
    ]
    return {
        "name": join.name,
        "format": join.format,
        "paths": [fill_path(join.path, places, day) for day in (days(first, last) if daily else [None])],
        # Events just after midnight look up what was measured the day before; the first day of all has no such file.
        "optional": [fill_path(join.path, places, day) for day in days(first - reach, first)[:-1]] if daily else [],
        "on": {name: dataset.contract.columns[name].type for name in join.on},
        "as_of": join.as_of,
        "delay_s": int(join.delay.total_seconds()),
        "tolerance_s": int(join.tolerance.total_seconds()),
        "columns": columns,
    }
