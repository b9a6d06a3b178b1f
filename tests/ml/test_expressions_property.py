"""Generated expressions mean the same in Spark, in DuckDB, in NumPy and in BigQuery (its emulator), row by row.

Trees are drawn from a seeded generator over columns of every type, so that a failure comes again; ``SML_SEED`` draws
others. All expressions of one test are one SELECT per engine.
"""

import datetime as dt
import math
import os
import random

import duckdb
import pyarrow as pa
import pytest

from airflow_provider_sml.ml.expressions import SQL_TYPES, compile
from airflow_provider_sml.ml.expressions.functions import FUNCTIONS
from airflow_provider_sml.ml.expressions.vectors import Vector

SEED = int(os.environ.get("SML_SEED", "20260301"))
COLUMNS = {
    "i": "int", "j": "int", "x": "double", "y": "double", "s": "string", "u": "string", "b": "boolean", "c": "boolean",
    "t": "timestamp", "r": "timestamp", "d": "date", "e": "date", "w.x": "double", "w.s": "string",
}  # fmt: skip
ARROW = {
    "int": pa.int64(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us"), "date": pa.date32(),
}  # fmt: skip
MOMENTS = [
    dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(1970, 1, 1), dt.datetime(2000, 2, 29, 12, 30),
    dt.datetime(2026, 3, 29, 2, 30), dt.datetime(2024, 12, 31, 23, 59), dt.datetime(1900, 3, 1, 0, 0, 0, 1),
    dt.datetime(1583, 1, 1, 6), dt.datetime(2261, 6, 1, 18, 45),
]  # fmt: skip
POOLS = {
    "int": [0, 1, -1, 2, 7, 100, -3, 2**31, 2**53 - 1, -(2**40)],
    "double": [0.0, -0.0, 1.0, -1.5, 0.1, 2.5, 1e-9, 1e15, -1e15, 1e300, -1e300, 3.999999, 2.0**53],
    "string": [
        "",
        " ",
        "a",
        "A",
        "Ab c",
        " ab ",
        "ä",
        "Ä",
        "ß",
        "it's",
        "back\\slash",
        "100%",
        "日本",
        "😀x",
        "a\tb",
        "'",
    ],
    "boolean": [True, False],
    "timestamp": MOMENTS,
    "date": [moment.date() for moment in MOMENTS],
}


class Generator:
    """Draws texts of expressions of a wanted type."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def pick(self, *options):
        return self.chance.choice(options)

    def expression(self, kind, depth):
        if depth <= 0 or self.chance.random() < 0.15:
            return self.leaf(kind)
        maker = self.pick(getattr(self, kind), getattr(self, kind), self.any_type)
        return maker(depth - 1) if maker != self.any_type else self.any_type(kind, depth - 1)

    def leaf(self, kind):
        own = [name for name, known in COLUMNS.items() if known == kind]
        if self.chance.random() < 0.75:
            return self.pick(*own)
        if self.chance.random() < 0.1:
            return f"coalesce(NULL, {self.pick(*own)})"
        return self.constant(kind)

    def constant(self, kind):
        value = self.pick(*POOLS[kind])
        if kind == "string":
            return "'" + value.replace("'", "''") + "'"
        if kind in ("timestamp", "date"):
            return f"{kind} '{value.isoformat()}'"
        return {"boolean": str(value).upper()}.get(kind, repr(value))

    def any_type(self, kind, depth):
        one, two = self.expression(kind, depth), self.expression(kind, depth)
        condition = self.expression("boolean", depth)
        return self.pick(
            f"coalesce({one}, {two})",
            f"CASE WHEN {condition} THEN {one} ELSE {two} END",
            f"CASE WHEN {condition} THEN {one} WHEN {self.leaf('boolean')} THEN NULL ELSE {two} END",
            f"CASE WHEN {condition} THEN {one} END",
        )

    def number(self, depth):
        return self.expression(self.pick("int", "double"), depth)

    def double(self, depth):
        one, two = self.number(depth), self.number(depth)
        return self.pick(
            f"({one} {self.pick(*'+-*/')} {two})",
            f"{self.pick('abs', 'floor', 'ceil', 'sqrt')}({one})",
            f"-({one})",
            f"hours_between({self.expression('timestamp', depth)}, {self.expression('timestamp', depth)})",
        )

    def int(self, depth):
        moment = self.pick("timestamp", "date")
        return self.pick(
            f"{self.pick('year', 'month', 'day', 'weekday')}({self.expression(moment, depth)})",
            f"{self.pick('hour', 'minute')}({self.expression('timestamp', depth)})",
            f"length({self.expression('string', depth)})",
            f"days_between({self.expression('date', depth)}, {self.expression('date', depth)})",
        )

    def string(self, depth):
        one = self.expression("string", depth)
        return self.pick(
            f"{self.pick('lower', 'upper', 'trim')}({one})",
            f"({one} || {self.expression('string', depth)})",
            f"substr({one}, {self.pick(1, 2, 5)}, {self.pick(0, 1, 3, 100)})",
        )

    def boolean(self, depth):
        kind = self.pick(*POOLS)
        one = self.number(depth) if kind in ("int", "double") else self.expression(kind, depth)
        two = self.number(depth) if kind in ("int", "double") else self.expression(kind, depth)
        left, right = self.expression("boolean", depth), self.expression("boolean", depth)
        text, part = self.expression("string", depth), self.expression("string", depth)
        listed = ", ".join(self.constant(kind) for _ in range(self.pick(1, 2, 4)))
        return self.pick(
            f"({one} {self.pick('=', '<>', '<', '<=', '>', '>=')} {two})",
            f"({one} {self.pick('=', '<>', '<', '<=', '>', '>=')} {two})",
            f"({left} {self.pick('AND', 'OR')} {right})",
            f"(NOT {left})",
            f"({one} IS {self.pick('', 'NOT ')}NULL)",
            f"({self.expression(kind, depth)} {self.pick('', 'NOT ')}IN ({listed}))",
            f"({one} {self.pick('', 'NOT ')}BETWEEN {two} AND {two})",
            f"starts_with({text}, {part})",
            f"contains({text}, {part})",
        )

    def timestamp(self, depth):
        return self.any_type("timestamp", depth)

    def date(self, depth):
        return f"date({self.expression(self.pick('timestamp', 'date'), depth)})"


@pytest.fixture(scope="module")
def rows():
    """Rows with every value of the pools, NULLs among them."""
    chance = random.Random(SEED)
    table = {}
    for name, kind in COLUMNS.items():
        table[name] = [*POOLS[kind], None] + [chance.choice([*POOLS[kind], None]) for _ in range(64)]
        table[name] = chance.sample(table[name], 60)
    return table


@pytest.fixture(scope="module")
def bigquery_client(bigquery):
    """A client of BigQuery's emulator."""
    from airflow_provider_sml.testing.bigquery import bigquery_client

    return bigquery_client()


def fill_bigquery(client, path):
    import pyarrow.parquet as pq

    client.create_dataset("expressions", exists_ok=True)
    names = {name.replace(".", "__"): SQL_TYPES["bigquery"][kind] for name, kind in COLUMNS.items()} | {"n": "INT64"}
    declared = ", ".join(f"`{name}` {kind}" for name, kind in names.items())
    client.query_and_wait(f"CREATE OR REPLACE TABLE expressions.expression_rows ({declared})")
    from google.cloud.bigquery import LoadJobConfig

    assert pq.read_schema(path).names == list(names)
    with open(path, "rb") as file:
        config = LoadJobConfig(source_format="PARQUET")
        client.load_table_from_file(file, f"{client.project}.expressions.expression_rows", job_config=config).result()


@pytest.fixture(scope="module")
def tables(rows, spark, bigquery_client, tmp_path_factory):
    """The rows in each engine; gives, for SQL texts by dialect, the columns of answers."""
    import pyarrow.parquet as pq

    physical = {name.replace(".", "__"): pa.array(values, ARROW[COLUMNS[name]]) for name, values in rows.items()}
    physical["n"] = pa.array(range(60), pa.int64())
    path = str(tmp_path_factory.mktemp("expressions") / "rows.parquet")
    pq.write_table(pa.table(physical), path)
    spark.read.parquet(path).createOrReplaceTempView("expression_rows")
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE expression_rows AS FROM '{path}'")
    fill_bigquery(bigquery_client, path)
    vectors = {name: Vector.of(values, COLUMNS[name]) for name, values in rows.items()}

    def ask(expressions):
        def select(dialect):
            columns = ", ".join(f"{expression.sql(dialect)} AS c{n}" for n, expression in enumerate(expressions))
            return f"SELECT {columns} FROM expression_rows ORDER BY n"

        def bigquery():
            found = []
            for start in range(0, len(expressions), 20):  # BigQuery limits the size of a query
                part = ", ".join(f"{e.sql('bigquery')} AS c{n}" for n, e in enumerate(expressions[start : start + 20]))
                answer = bigquery_client.query_and_wait(f"SELECT {part} FROM expressions.expression_rows ORDER BY n")
                found += [list(column) for column in zip(*(row.values() for row in answer), strict=True)]
            return found

        return {
            "numpy": [expression.evaluate(vectors, 60).tolist() for expression in expressions],
            "duckdb": [list(column) for column in zip(*connection.execute(select("duckdb")).fetchall(), strict=True)],
            "spark": [list(column) for column in zip(*spark.sql(select("spark")).collect(), strict=True)],
            "bigquery": bigquery(),
        }

    yield ask
    connection.close()


def same(one, two):
    """Equal, and doubles by their value: the last bit, NaN and the sign of zero aside."""
    if isinstance(one, float) and isinstance(two, float):
        if math.isnan(one) or math.isnan(two):
            return math.isnan(one) and math.isnan(two)
        return one == two or math.isclose(one, two, rel_tol=1e-12)
    return one == two and type(one) is type(two)


def differences(expressions, answers, rows):
    found = []
    for number, expression in enumerate(expressions):
        for engine in ("duckdb", "spark", "bigquery"):
            pairs = zip(answers["numpy"][number], answers[engine][number], strict=True)
            wrong = [(row, one, two) for row, (one, two) in enumerate(pairs) if not same(one, two)]
            if wrong:
                row, one, two = wrong[0]
                given = {name: rows[name][row] for name in expression.columns}
                found.append(f"{expression.text}\n  with {given}: numpy {one!r}, {engine} {two!r}")
    return found


@pytest.mark.parametrize("kind", ["int", "double", "string", "boolean", "timestamp", "date"])
def test_all_engines_agree_on_every_row(tables, rows, kind):
    generator = Generator(f"{SEED}-{kind}")
    expressions = [compile(generator.expression(kind, 1 + number % 3), COLUMNS) for number in range(60)]
    # a number that is only negated stays a constant, and with it an int
    assert {expression.type for expression in expressions} <= {kind, "int" if kind == "double" else kind}
    assert differences(expressions, tables(expressions), rows) == []


def test_every_function_is_among_the_generated(rows):
    used = set()

    def walk(typed):
        if typed.function is not None:
            used.add(typed.function.name)
        for argument in typed.arguments:
            walk(argument)

    for kind in POOLS:
        generator = Generator(f"{SEED}-{kind}")
        for number in range(60):
            walk(compile(generator.expression(kind, 1 + number % 3), COLUMNS)._root)
    assert used == set(FUNCTIONS), f"never generated: {set(FUNCTIONS) - used}"


def test_the_comparison_sees_a_difference(tables, rows):
    """The harness would notice an engine that differs: Spark's answers of another expression are not those of this."""
    expressions = [compile("i + j", COLUMNS)]
    answers = tables(expressions)
    answers["spark"] = tables([compile("i - j", COLUMNS)])["spark"]
    assert len(differences(expressions, answers, rows)) == 1
