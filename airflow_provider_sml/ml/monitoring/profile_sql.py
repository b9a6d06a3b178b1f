"""Profiles filled where the data is: by one SQL statement in BigQuery or Spark, a few thousand small rows back; by
DuckDB as a stream of what the expressions give, counted in this process, which is quicker than its own GROUP BY.

BigQuery stores by column, so the statement is a ``UNION ALL`` of one ``GROUP BY`` a column: each column is
read once. Spark reads the rows once and unfolds them (``stack``). The buckets are the very ones that
``profile.of_batches`` fills, because rounding is plain arithmetic (``sketch``); moments agree to rounding, from the
sums of what rounding took away: with ``x = r + d``, ``sum(x) = sum(n r) + sum(d)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_sml.ml.expressions import Dialect, identifier
from airflow_provider_sml.ml.monitoring.profile import (
    CAP,
    Categories,
    ColumnProfile,
    Kind,
    Profile,
    empty,
    merge,
    of_batches,
)
from airflow_provider_sml.ml.monitoring.sketch import LARGEST, SMALLEST, SPLITTER, Numbers, keys_of, values_of

if TYPE_CHECKING:
    import duckdb
    from google.cloud.bigquery import Client
    from pyspark.sql import SparkSession

_DOUBLE = {"duckdb": "DOUBLE", "spark": "DOUBLE", "bigquery": "FLOAT64"}
_TEXT = {"duckdb": "VARCHAR", "spark": "STRING", "bigquery": "STRING"}
_NAN = {"duckdb": "isnan", "spark": "isnan", "bigquery": "IS_NAN"}
_BEYOND = "1e300"
#: Rows that DuckDB hands over at once.
_BATCH = 131_072
#: Rows that tell whether a column has few different values, and how many are few.
_LOOKED_AT, _FEW = 2_048, 512


@dataclass(frozen=True)
class Column:
    """A column to profile.

    :param name: its name in the profile.
    :param kind: what it is taken for.
    :param sql: an expression in the engine's dialect; the column of that name when None.
    :param stored: the stored column that it is, where it is one.
    """

    name: str
    kind: Kind
    sql: str | None = None
    stored: str | None = None

    def expression(self, dialect: Dialect) -> str:
        """Its SQL."""
        return self.sql or identifier(self.name, dialect)


def columns_of(kinds: Mapping[str, Kind]) -> list[Column]:
    """Stored columns, by name."""
    return [Column(name, kind, stored=name) for name, kind in kinds.items()]


def statement(
    source: str, columns: Sequence[Column], dialect: Dialect, cap: int = CAP, segment: str | None = None
) -> str:
    """The query of a profile: rows of (column's position, kind, text, number, count, d, d * d, least, most, segment).

    :param source: what stands behind FROM: a table, ``read_parquet(...)``, or a query in parentheses with an alias.
    :param columns: at least one.
    :param dialect: the engine.
    :param cap: categories counted each by itself.
    :param segment: an expression by whose values rows are counted apart; None leaves the last column out.
    """
    numbered = list(enumerate(columns))
    numbers = [(at, column) for at, column in numbered if column.kind == "number"]
    part = _Part(source, dialect, segment and f"CAST({segment} AS {_TEXT[dialect]})")
    parts = [part.category(at, column, cap) for at, column in numbered if column.kind == "category"]
    if dialect == "spark" and numbers:
        parts.append(part.unfolded(numbers))
    else:
        parts += [part.number(at, column) for at, column in numbers]
    return "\nUNION ALL\n".join(parts)


def of_duckdb(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    columns: Sequence[Column],
    cap: int = CAP,
    segment: str | None = None,
) -> Profile:
    """Profile what DuckDB can read; one batch of rows is held at a time.

    Columns of which the first rows have few different values are grouped by DuckDB, which looks at a dictionary's
    entries once; the others come as a stream and are counted here, which costs a fifth of grouping them.

    :param source: as in ``statement``.
    :param columns: the columns.
    :param cap: categories counted each by itself.
    :param segment: an expression by whose values the rows are profiled apart as well.
    """
    few = set() if segment else _few(connection, source, columns)
    streamed = [column for column in columns if column.name not in few]
    found: dict[str, ColumnProfile] = {}
    rows, segments = 0, {}
    if few:
        grouped = [column for column in columns if column.name in few]
        rows, found = _read_groups(connection.sql(_grouped(source, grouped, cap)).to_arrow_table(), grouped, cap)
    if streamed or not few:
        reader = connection.sql(f"SELECT {_asked(streamed, 'duckdb', segment)} FROM {source}").to_arrow_reader(_BATCH)
        made = _named(of_batches(reader, _kinds(streamed), segment="s" if segment else None, cap=cap), streamed)
        found |= made.columns
        rows, segments = made.rows, dict(made.segments)
    return Profile(rows, {column.name: found[column.name] for column in columns}, segments)


def _few(connection: duckdb.DuckDBPyConnection, source: str, columns: Sequence[Column]) -> set[str]:
    """The columns of which the first rows have few different values; none where there are few rows."""
    if not columns:
        return set()
    asked = f"SELECT {_asked(columns, 'duckdb', None)} FROM {source} LIMIT {_LOOKED_AT}"
    first = connection.sql(asked).to_arrow_table()
    if first.num_rows < _LOOKED_AT:
        return set()
    # counted here, for a quarter less of what a query with the counts costs
    return {column.name for column, values in zip(columns, first.columns, strict=True)
            if pc.count_distinct(values).as_py() <= _FEW}  # fmt: skip


def _grouped(source: str, columns: Sequence[Column], cap: int) -> str:
    """The query of columns of few values: rows of (position, text, number, count), and position -1 for all rows. Of
    categories it gives the gap, the first of the cap, and one more: the most frequent of those that are left out."""
    parts = [f"SELECT -1 AS c, CAST(NULL AS VARCHAR) AS t, CAST(NULL AS DOUBLE) AS v, COUNT(*) AS n FROM {source}"]
    for at, column in enumerate(columns):
        value = column.expression("duckdb")
        if column.kind == "number":
            parts.append(f"SELECT {at}, NULL, CAST({value} AS DOUBLE) AS v, COUNT(*) FROM {source} GROUP BY v")
        else:
            parts.append(f"(SELECT {at}, CAST({value} AS VARCHAR) AS t, NULL, COUNT(*) AS n FROM {source} "
                         f"GROUP BY t ORDER BY t IS NULL DESC, n DESC, t LIMIT {cap + 2})")  # fmt: skip
    return "\nUNION ALL\n".join(parts)


def _read_groups(table: pa.Table, columns: Sequence[Column], cap: int) -> tuple[int, dict[str, ColumnProfile]]:
    """All rows, and the columns, that ``_grouped`` told of."""
    positions = table.column("c").to_numpy()
    rows = int(table.column("n").to_numpy()[positions == -1][0])
    found = {}
    for at, column in enumerate(columns):
        part = table.filter(pa.array(positions == at))
        if column.kind == "number":
            found[column.name] = _read_values(part.column("v").to_numpy(), part.column("n").to_numpy())
        else:
            found[column.name] = _read_texts(part.column("t").to_pylist(), part.column("n").to_pylist(), rows, cap)
    return rows, found


def _read_values(values: np.ndarray, counts: np.ndarray) -> ColumnProfile:
    there = ~np.isnan(values)
    order = np.argsort(values[there])  # so that sums are the same each time
    numbers = Numbers.of_counted(values[there][order], counts[there][order])
    return ColumnProfile(int(counts.sum()), int(counts[~there].sum()), numbers)


def _read_texts(texts: Sequence[str | None], counts: Sequence[int], rows: int, cap: int) -> ColumnProfile:
    nulls = sum(count for text, count in zip(texts, counts, strict=True) if text is None)
    named = [(text, count) for text, count in zip(texts, counts, strict=True) if text is not None]
    kept = dict(named[:cap])
    short = named[cap][1] if len(named) > cap else 0
    return ColumnProfile(rows, nulls, Categories(kept, rows - nulls - sum(kept.values()), short))


def _asked(columns: Sequence[Column], dialect: Dialect, segment: str | None) -> str:
    types = {"number": _DOUBLE[dialect], "category": _TEXT[dialect]}
    asked = [f"CAST({one.expression(dialect)} AS {types[one.kind]}) AS c{at}" for at, one in enumerate(columns)]
    asked += [f"CAST({segment} AS {_TEXT[dialect]}) AS s"] if segment else []
    return ", ".join(asked or ["1 AS nothing"])


def _kinds(columns: Sequence[Column]) -> dict[str, Kind]:
    return {f"c{at}": column.kind for at, column in enumerate(columns)}


def _named(profile: Profile, columns: Sequence[Column]) -> Profile:
    segments = {name: _named(part, columns) for name, part in profile.segments.items()}
    return Profile(profile.rows, {c.name: profile.columns[f"c{at}"] for at, c in enumerate(columns)}, segments)


def of_spark(
    session: SparkSession, source: str, columns: Sequence[Column], cap: int = CAP, segment: str | None = None
) -> Profile:
    """Profile a table or view of Spark by one SQL statement, which needs no Python worker; where there are some,
    ``file_profile`` takes a third of the CPU."""
    rows = session.sql(statement(source, columns, "spark", cap, segment)).collect()
    return read((tuple(row) for row in rows), columns, cap)


def of_bigquery(
    client: Client, source: str, columns: Sequence[Column], cap: int = CAP, segment: str | None = None
) -> Profile:
    """Profile a table of BigQuery; the bytes billed are those of the columns, once."""
    rows = client.query_and_wait(statement(source, columns, "bigquery", cap, segment))
    return read((tuple(row.values()) for row in rows), columns, cap)


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


@dataclass(frozen=True)
class _Part:
    """What the parts of a statement share.

    :param source: behind FROM.
    :param dialect: of the engine.
    :param segment: expression of the segment, as text; None for none.
    """

    source: str
    dialect: Dialect
    segment: str | None

    @property
    def _inner(self) -> str:
        """The segment as a column of the innermost query."""
        return f", {self.segment} AS s" if self.segment else ""

    @property
    def _by(self) -> str:
        return ", s" if self.segment else ""

    def number(self, at: int, column: Column) -> str:
        value = f"CAST({column.expression(self.dialect)} AS {_DOUBLE[self.dialect]})"
        return (
            f"SELECT {at} AS c, 0 AS kind, CAST(NULL AS {_TEXT[self.dialect]}) AS text, r, {_SUMS}{self._by} FROM ("
            f"SELECT {_rounded('v', self.dialect)} AS r, {_inside('v', self.dialect)} AS w{self._by} FROM ("
            f"SELECT {value} AS v{self._inner} FROM {self.source}) AS a) AS b GROUP BY r{self._by}"
        )

    def unfolded(self, columns: Sequence[tuple[int, Column]]) -> str:
        pairs = ", ".join(f"{at}, CAST({column.expression('spark')} AS DOUBLE)" for at, column in columns)
        return (
            f"SELECT c, 0 AS kind, CAST(NULL AS STRING) AS text, r, {_SUMS}{self._by} FROM ("
            f"SELECT c, {_rounded('v', 'spark')} AS r, {_inside('v', 'spark')} AS w{self._by} FROM ("
            f"SELECT stack({len(columns)}, {pairs}) AS (c, v){self._inner} FROM {self.source}) AS a) AS b "
            f"GROUP BY c, r{self._by}"
        )

    def category(self, at: int, column: Column, cap: int) -> str:
        """Kind 1: a category, or NULL; kind 2: the rest, with the largest count in it as ``most``."""
        text, double = _TEXT[self.dialect], _DOUBLE[self.dialect]
        value = f"CAST({column.expression(self.dialect)} AS {text})"
        ranked = (
            f"SELECT text, n{self._by}, CASE WHEN text IS NULL THEN 0 ELSE ROW_NUMBER() OVER (PARTITION BY "
            f"CASE WHEN text IS NULL THEN 1 ELSE 0 END{self._by} ORDER BY n DESC, text) END AS place FROM ("
            f"SELECT text, COUNT(*) AS n{self._by} FROM (SELECT {value} AS text{self._inner} FROM {self.source})"
            f" AS a GROUP BY text{self._by}) AS b"
        )
        none = f"CAST(NULL AS {double})"
        return (
            f"SELECT {at} AS c, kind, text, {none} AS r, CAST(SUM(n) AS {_WHOLE[self.dialect]}) AS n, {none} AS d, "
            f"{none} AS dd, {none} AS least, CAST(MAX(n) AS {double}) AS most{self._by} FROM ("
            f"SELECT CASE WHEN place <= {cap} THEN 1 ELSE 2 END AS kind, "
            f"CASE WHEN place <= {cap} THEN text END AS text, n{self._by} FROM ({ranked}) AS e) AS f "
            f"GROUP BY kind, text{self._by}"
        )


_WHOLE = {"duckdb": "BIGINT", "spark": "BIGINT", "bigquery": "INT64"}


def read(rows: Iterable[Sequence[Any]], columns: Sequence[Column], cap: int = CAP) -> Profile:
    """The profile that the rows of ``statement`` make.

    :param rows: as the engine gave them.
    :param columns: those of the statement.
    :param cap: as of the statement.
    """
    found: dict[str | None, list[list[Sequence[Any]]]] = {}
    for row in rows:
        part = found.setdefault(row[9] if len(row) > 9 else None, [[] for _ in columns])
        part[int(row[0])].append(row)
    parts = {name: _read_part(part, columns) for name, part in found.items()}
    if not parts:
        return empty({column.name: column.kind for column in columns})
    if set(parts) == {None}:
        return parts[None]
    whole = merge([parts[name] for name in sorted(parts, key=str)], cap)
    segments = {name: parts[name] for name in sorted(name for name in parts if name is not None)}
    return Profile(whole.rows, whole.columns, segments)


def _read_part(found: Sequence[Sequence[Sequence[Any]]], columns: Sequence[Column]) -> Profile:
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
