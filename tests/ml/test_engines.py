"""One meaning in every engine: Spark, DuckDB, NumPy and BigQuery's emulator give the same value for generated rows.

The rows hold what engines differ about: NULL, NaN, infinities, -0, empty texts, non-ASCII letters, leap days, moments
before 1970. BigQuery's own comparison of NaN is not the emulator's; that the SQL does not lean on it is tested by its
text.
"""

import datetime as dt
import math
import random

import duckdb
import pyarrow as pa
import pytest

from airflow_provider_sml.ml.expressions import SQL_TYPES, compile, identifier, literal
from airflow_provider_sml.ml.expressions.functions import FUNCTIONS
from airflow_provider_sml.ml.expressions.vectors import Vector
from airflow_provider_sml.ml.sampling import keep_sql
from tests.ml.test_lake_shops import ARROW

COLUMNS = {"n": "int", "m": "int", "x": "double", "y": "double", "s": "string", "r": "string", "b": "boolean",
           "t": "timestamp", "u": "timestamp", "d": "date", "e": "date"}  # fmt: skip
EXPRESSIONS = [
    "n + m", "x - y", "x * y", "x / y", "n / m", "-x", "-n", "abs(x)", "abs(n)", "floor(x)", "ceil(y)", "floor(n)",
    "sqrt(x)", "sqrt(n)", "x = y", "x <> y", "x < y", "x <= y", "x > y", "x >= y", "n = m", "n < x", "s = r", "s < r",
    "s >= r", "t < u", "d >= e", "b = (n > m)", "n > 3 AND b", "n > 3 OR b", "NOT b", "x IS NULL", "s IS NOT NULL",
    "n IN (1, 2, -7)", "x IN (0.5, 2)", "s IN ('a', 'it''s')", "NOT s IN ('a')", "x BETWEEN -1 AND 1.5",
    "CASE WHEN n > m THEN 'more' WHEN n = m THEN s ELSE r END", "CASE WHEN x > 0 THEN n END", "coalesce(x, y, 0.5)",
    "coalesce(s, r, 'none')", "s || r", "s || '\\' || 'it''s'", "length(s)", "lower(s)", "upper(s)", "trim(s)",
    "substr(s, 1, 2)", "substr(s, 2, 0)", "substr(s, 3, 100)", "starts_with(s, r)", "starts_with(s, '')",
    "contains(s, r)", "contains(s, '')", "contains(s, 'ä')", "year(t)", "month(t)", "day(t)", "hour(t)", "minute(t)",
    "weekday(t)", "year(d)", "month(d)", "day(d)", "weekday(d)", "date(t)", "date(d)", "days_between(d, e)",
    "days_between(date(t), d)", "hours_between(t, u)", "t > timestamp '2013-07-01 03:00:00'", "d = date '2012-02-29'",
    "(n - m) / (x + 1) > 0.25 OR contains(lower(s), 'b')", "floor(hours_between(t, u) / 24) * 2 - weekday(d)",
]  # fmt: skip
#: Functions that only their text is checked of: none is left out of EXPRESSIONS.
TEXTS = [
    "",
    "a",
    "B",
    "it's",
    "  x ",
    "Ärger",
    "ä",
    "back\\slash",
    "💥 boom",
    "ab|c",
    "Ab C",
    "'",
    "\\'",
    "line\nbreak",
]
MOMENTS = [dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(1970, 1, 1), dt.datetime(2012, 2, 29, 12),
           dt.datetime(2013, 7, 1, 3), dt.datetime(1900, 3, 1, 0, 0, 0, 1), dt.datetime(2099, 12, 31, 23)]  # fmt: skip
DOUBLES = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    2.0,
    -2.5,
    1e-300,
    1e300,
    2.0**53,
    4503599627370497.5,
    math.nan,
    math.inf,
    -math.inf,
]
WHOLE = [0, 1, 2, 3, -7, 10**9, 2**53 + 1, -(2**31)]


def rows_of(seed, size):
    """Rows of every kind of value; each special one stands in some row, and NULL in some of each column."""
    draw = random.Random(seed)
    choices = {"int": WHOLE, "double": DOUBLES, "string": TEXTS, "boolean": [True, False], "timestamp": MOMENTS,
               "date": [moment.date() for moment in MOMENTS]}  # fmt: skip

    def value(kind):
        if draw.random() < 0.12:
            return None
        if draw.random() < 0.6:
            return draw.choice(choices[kind])
        return {
            "int": lambda: draw.randint(-50, 50),
            "double": lambda: draw.uniform(-100, 100),
            "string": lambda: "".join(draw.choices("abAB ä|'\\é", k=draw.randint(0, 6))),
            "boolean": lambda: draw.random() < 0.5,
            "timestamp": lambda: dt.datetime(1950, 1, 1) + dt.timedelta(seconds=draw.randint(0, 4 * 10**9)),
            "date": lambda: dt.date(1950, 1, 1) + dt.timedelta(days=draw.randint(0, 50_000)),
        }[kind]()

    return {name: [value(kind) for _ in range(size)] for name, kind in COLUMNS.items()}


ROWS = rows_of(7, 300)
COMPILED = [compile(text, COLUMNS) for text in EXPRESSIONS]
TABLE = pa.table({"row": list(range(300))} | {n: pa.array(ROWS[n], ARROW[k]) for n, k in COLUMNS.items()})


def same(value):
    """A value as all engines have it: -0 is 0, and NaN equals itself."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return value


@pytest.fixture(scope="module")
def numpy_values():
    vectors = {name: Vector.of(ROWS[name], kind) for name, kind in COLUMNS.items()}
    return [[same(value) for value in compiled.evaluate(vectors, 300).tolist()] for compiled in COMPILED]


def report(found, expected):
    """What differs, by expression: found, expected, number of the row."""
    return {
        text: [(a, b, row) for row, (a, b) in enumerate(zip(f, e, strict=True)) if a != b][:2]
        for text, compiled, f, e in zip(EXPRESSIONS, COMPILED, found, expected, strict=True)
        if f != e
    }  # fmt: skip


def test_every_function_is_among_the_expressions():
    used = set()

    def walk(typed):
        if typed.function:
            used.add(typed.function.name)
        for argument in typed.arguments:
            walk(argument)

    for compiled in COMPILED:
        walk(compiled._root)
    assert used == set(FUNCTIONS)


def test_duckdb(numpy_values):
    select = ", ".join(compiled.sql("duckdb") for compiled in COMPILED)
    rows = duckdb.from_arrow(TABLE).query("t", f"SELECT {select} FROM t ORDER BY row").fetchall()
    assert report([[same(value) for value in column] for column in zip(*rows, strict=True)], numpy_values) == {}


def test_spark(spark, tmp_path, numpy_values):
    import pyarrow.parquet as pq

    pq.write_table(TABLE, tmp_path / "rows.parquet")
    frame = spark.read.parquet(str(tmp_path / "rows.parquet"))
    select = [f"{compiled.sql('spark')} AS v{n}" for n, compiled in enumerate(COMPILED)]
    rows = frame.selectExpr("row", *select).orderBy("row").drop("row").collect()
    assert report([[same(value) for value in column] for column in zip(*rows, strict=True)], numpy_values) == {}


@pytest.fixture(scope="module")
def bigquery_rows(bigquery):
    """The rows as a table in BigQuery."""
    from google.cloud.bigquery import Dataset

    from airflow_provider_sml.testing.bigquery import PROJECT, bigquery_client

    client = bigquery_client()
    client.create_dataset(Dataset(f"{PROJECT}.engines"), exists_ok=True)
    declared = ", ".join(f"{identifier(n, 'bigquery')} {SQL_TYPES['bigquery'][k]}" for n, k in COLUMNS.items())
    client.query_and_wait(f"CREATE OR REPLACE TABLE engines.sample (row INT64, {declared})")
    folder = bigquery.root / "engines"
    folder.mkdir(exist_ok=True)
    import pyarrow.parquet as pq
    from google.cloud.bigquery import LoadJobConfig

    pq.write_table(TABLE, folder / "rows.parquet")
    client.load_table_from_uri(
        "gs://engines/rows.parquet", f"{PROJECT}.engines.sample", job_config=LoadJobConfig(source_format="PARQUET")
    ).result()
    return client


def test_bigquery(bigquery_rows, numpy_values):
    found = []
    for start in range(0, len(COMPILED), 12):
        part = COMPILED[start : start + 12]
        select = ", ".join(f"{compiled.sql('bigquery')} AS v{n}" for n, compiled in enumerate(part))
        rows = bigquery_rows.query_and_wait(f"SELECT {select} FROM engines.sample ORDER BY row")
        found += [[same(value) for value in column] for column in zip(*(row.values() for row in rows), strict=True)]
    assert report(found, numpy_values) == {}


def test_bigquery_never_compares_with_nan_by_itself():
    """There NaN is neither equal to itself nor above any number; every comparison of doubles takes care of it."""
    for text in ("x = y", "x <> y", "x < y", "x <= y", "x > y", "x >= y"):
        assert "IS_NAN(`x`)" in compile(text, COLUMNS).sql("bigquery")
        assert "IS_NAN" not in compile(text.replace("x", "n").replace("y", "m"), COLUMNS).sql("bigquery")


@pytest.mark.parametrize("value", [*TEXTS, 1.5, 1e300, -3, True, None, dt.date(2012, 2, 29), MOMENTS[0]])
def test_bigquery_reads_our_constants(bigquery_rows, value):
    ((found,),) = bigquery_rows.query_and_wait(f"SELECT {literal(value, 'bigquery')}")
    assert found == value


@pytest.mark.parametrize("by", [["s"], ["n", "s"], ["b", "d", "m"]])
def test_sampling_keeps_the_same_rows_everywhere(spark, bigquery_rows, tmp_path, by):
    """The very same rows: a sample drawn by Spark is the one that DuckDB and BigQuery draw."""
    import pyarrow.parquet as pq

    pq.write_table(TABLE, tmp_path / "rows.parquet")
    kept = duckdb.from_arrow(TABLE).query("t", f"SELECT row FROM t WHERE {keep_sql(by, 0.4, 7)} ORDER BY row")
    expected = [row for (row,) in kept.fetchall()]
    assert 20 < len(expected) < 250
    frame = spark.read.parquet(str(tmp_path / "rows.parquet")).where(keep_sql(by, 0.4, 7, "spark"))
    assert [row[0] for row in frame.select("row").orderBy("row").collect()] == expected
    found = bigquery_rows.query_and_wait(
        f"SELECT row FROM engines.sample WHERE {keep_sql(by, 0.4, 7, 'bigquery')} ORDER BY row"
    )
    assert [row[0] for row in found] == expected
