"""Profiles filled where the data is: one SQL statement for DuckDB, BigQuery or Spark, a few thousand small rows back.

DuckDB and BigQuery store by column, so the statement is a ``UNION ALL`` of one ``GROUP BY`` a column: each column is
read once. Spark reads the rows once and unfolds them (``stack``). The buckets are the very ones that
``profile.of_batches`` fills, because rounding is plain arithmetic (``sketch``); moments agree to rounding, from the
sums of what rounding took away: with ``x = r + d``, ``sum(x) = sum(n r) + sum(d)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml.ml.expressions import Dialect, identifier
from airflow_provider_sml.ml.monitoring.profile import CAP, Categories, ColumnProfile, Kind, Profile
from airflow_provider_sml.ml.monitoring.sketch import LARGEST, SMALLEST, SPLITTER, Numbers, keys_of, values_of

if TYPE_CHECKING:
    import duckdb
    from google.cloud.bigquery import Client
    from pyspark.sql import SparkSession

_DOUBLE = {"duckdb": "DOUBLE", "spark": "DOUBLE", "bigquery": "FLOAT64"}
_TEXT = {"duckdb": "VARCHAR", "spark": "STRING", "bigquery": "STRING"}
_NAN = {"duckdb": "isnan", "spark": "isnan", "bigquery": "IS_NAN"}
_BEYOND = "1e300"


@dataclass(frozen=True)
class Column:
    """A column to profile.

    :param name: its name in the profile.
    :param kind: what it is taken for.
    :param sql: an expression in the engine's dialect; the column of that name when None.
    """

    name: str
    kind: Kind
    sql: str | None = None

    def expression(self, dialect: Dialect) -> str:
        """Its SQL."""
        return self.sql or identifier(self.name, dialect)


def columns_of(kinds: Mapping[str, Kind]) -> list[Column]:
    """Stored columns, by name."""
    return [Column(name, kind) for name, kind in kinds.items()]


def statement(source: str, columns: Sequence[Column], dialect: Dialect, cap: int = CAP) -> str:
    """The query of a profile: rows of (column's position, kind, text, number, count, d, d * d, least, most).

    :param source: what stands behind FROM: a table, ``read_parquet(...)``, or a query in parentheses with an alias.
    :param columns: at least one.
    :param dialect: the engine.
    :param cap: categories counted each by itself.
    """
    numbered = list(enumerate(columns))
    numbers = [(at, column) for at, column in numbered if column.kind == "number"]
    parts = [_category(source, at, column, dialect, cap) for at, column in numbered if column.kind == "category"]
    if dialect == "spark" and numbers:
        parts.append(_unfolded(source, numbers))
    else:
        parts += [_number(source, at, column, dialect) for at, column in numbers]
    return "\nUNION ALL\n".join(parts)


def of_duckdb(connection: duckdb.DuckDBPyConnection, source: str, columns: Sequence[Column], cap: int = CAP) -> Profile:
    """Profile what DuckDB can read."""
    return read(connection.execute(statement(source, columns, "duckdb", cap)).fetchall(), columns)


def of_spark(session: SparkSession, source: str, columns: Sequence[Column], cap: int = CAP) -> Profile:
    """Profile a table or view of Spark."""
    return read((tuple(row) for row in session.sql(statement(source, columns, "spark", cap)).collect()), columns)


def of_bigquery(client: Client, source: str, columns: Sequence[Column], cap: int = CAP) -> Profile:
    """Profile a table of BigQuery; the bytes billed are those of the columns, once."""
    rows = client.query_and_wait(statement(source, columns, "bigquery", cap))
    return read((tuple(row.values()) for row in rows), columns)


def _rounded(v: str, dialect: Dialect) -> str:
    split = f"{SPLITTER!r}" if dialect != "spark" else f"{SPLITTER:.0f}D"
    far = _BEYOND if dialect != "spark" else f"{_BEYOND}D"
    double = _DOUBLE[dialect]
    return (
        f"CASE WHEN {v} IS NULL OR {_NAN[dialect]}({v}) THEN CAST(NULL AS {double}) "
        f"WHEN ABS({v}) < {_float(SMALLEST, dialect)} THEN CAST(0 AS {double}) "
        f"WHEN ABS({v}) <= {_float(LARGEST, dialect)} THEN ({split} * {v}) - (({split} * {v}) - {v}) "
        f"WHEN {v} > 0 THEN {far} ELSE -{far} END"
    )


def _float(value: float, dialect: Dialect) -> str:
    return f"{value!r}D" if dialect == "spark" else repr(value)


def _inside(v: str, dialect: Dialect) -> str:
    """The value where it lies in a bucket, else NULL; NaN lies in none, by whatever order an engine gives it."""
    return (
        f"CASE WHEN {_NAN[dialect]}({v}) THEN NULL WHEN ABS({v}) < {_float(SMALLEST, dialect)} THEN "
        f"CAST(0 AS {_DOUBLE[dialect]}) WHEN ABS({v}) <= {_float(LARGEST, dialect)} THEN {v} END"
    )


_SUMS = "COUNT(*) AS n, SUM(w - r) AS d, SUM((w - r) * (w - r)) AS dd, MIN(w) AS least, MAX(w) AS most"


def _number(source: str, at: int, column: Column, dialect: Dialect) -> str:
    value = f"CAST({column.expression(dialect)} AS {_DOUBLE[dialect]})"
    return (
        f"SELECT {at} AS c, 0 AS kind, CAST(NULL AS {_TEXT[dialect]}) AS text, r, {_SUMS} FROM ("
        f"SELECT {_rounded('v', dialect)} AS r, {_inside('v', dialect)} AS w FROM ("
        f"SELECT {value} AS v FROM {source}) AS a) AS b GROUP BY r"
    )


def _unfolded(source: str, columns: Sequence[tuple[int, Column]]) -> str:
    pairs = ", ".join(f"{at}, CAST({column.expression('spark')} AS DOUBLE)" for at, column in columns)
    return (
        f"SELECT c, 0 AS kind, CAST(NULL AS STRING) AS text, r, {_SUMS} FROM ("
        f"SELECT c, {_rounded('v', 'spark')} AS r, {_inside('v', 'spark')} AS w FROM ("
        f"SELECT stack({len(columns)}, {pairs}) AS (c, v) FROM {source}) AS a) AS b GROUP BY c, r"
    )


def _category(source: str, at: int, column: Column, dialect: Dialect, cap: int) -> str:
    """Kind 1: a category, or NULL; kind 2: the rest, with the largest count in it as ``most``."""
    text, double = _TEXT[dialect], _DOUBLE[dialect]
    ranked = (
        f"SELECT text, n, CASE WHEN text IS NULL THEN 0 ELSE ROW_NUMBER() OVER ("
        f"PARTITION BY CASE WHEN text IS NULL THEN 1 ELSE 0 END ORDER BY n DESC, text) END AS place FROM ("
        f"SELECT text, COUNT(*) AS n FROM (SELECT CAST({column.expression(dialect)} AS {text}) AS text FROM {source})"
        f" AS a GROUP BY text) AS b"
    )
    none = f"CAST(NULL AS {double})"
    return (
        f"SELECT {at} AS c, kind, text, {none} AS r, CAST(SUM(n) AS {_WHOLE[dialect]}) AS n, {none} AS d, "
        f"{none} AS dd, {none} AS least, CAST(MAX(n) AS {double}) AS most FROM ("
        f"SELECT CASE WHEN place <= {cap} THEN 1 ELSE 2 END AS kind, "
        f"CASE WHEN place <= {cap} THEN text END AS text, n FROM ({ranked}) AS e) AS f GROUP BY kind, text"
    )


_WHOLE = {"duckdb": "BIGINT", "spark": "BIGINT", "bigquery": "INT64"}


def read(rows: Iterable[Sequence[Any]], columns: Sequence[Column]) -> Profile:
    """The profile that the rows of ``statement`` make.

    :param rows: as the engine gave them.
    :param columns: those of the statement.
    """
    found: list[list[Sequence[Any]]] = [[] for _ in columns]
    for row in rows:
        found[int(row[0])].append(row)
    profiles = {
        column.name: _read_numbers(part) if column.kind == "number" else _read_categories(part)
        for column, part in zip(columns, found, strict=True)
    }
    return Profile(max((column.rows for column in profiles.values()), default=0), profiles)


def _read_categories(rows: Sequence[Sequence[Any]]) -> ColumnProfile:
    counts = {str(row[2]): int(row[4]) for row in rows if row[1] == 1 and row[2] is not None}
    nulls = sum(int(row[4]) for row in rows if row[1] == 1 and row[2] is None)
    rest = sum(int(row[4]) for row in rows if row[1] == 2)
    short = max((int(row[8]) for row in rows if row[1] == 2), default=0)
    return ColumnProfile(sum(int(row[4]) for row in rows), nulls, Categories(counts, rest, short))


def _read_numbers(rows: Sequence[Sequence[Any]]) -> ColumnProfile:
    nulls = sum(int(row[4]) for row in rows if row[3] is None)
    below = sum(int(row[4]) for row in rows if row[3] is not None and row[3] < -LARGEST)
    above = sum(int(row[4]) for row in rows if row[3] is not None and row[3] > LARGEST)
    total = sum(int(row[4]) for row in rows)
    kept = sorted((row for row in rows if row[3] is not None and abs(row[3]) <= LARGEST), key=lambda row: row[3])
    if not kept:
        return ColumnProfile(total, nulls, Numbers(below=below, above=above))
    keys = keys_of(np.array([row[3] for row in kept], float))
    counts = np.array([row[4] for row in kept], np.int64)
    values, d, dd = values_of(keys), *(np.array([row[at] for row in kept], float) for at in (5, 6))
    mean = float((counts * values + d).sum() / counts.sum())
    apart = values - mean
    m2 = float((counts * apart * apart + 2 * apart * d + dd).sum())
    low, high = float(kept[0][7]), float(kept[-1][8])
    return ColumnProfile(total, nulls, Numbers(keys, counts, mean, max(m2, 0.0), low, high, below, above))
