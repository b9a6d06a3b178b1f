"""The checksum of rows: every engine comes to the same one, and it sees what must not go unseen."""

import datetime as dt
import math

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_sml.ml.expressions import SQL_TYPES
from airflow_provider_sml.ml.warehouse.checksum import Tally, read_tally, tally_sql
from airflow_provider_sml.ml.warehouse.redshift import TYPES

COLUMNS = (("n", "int"), ("x", "double"), ("s", "string"), ("b", "boolean"), ("t", "timestamp"), ("d", "date"))
ROW = (1, 1.5, "a", True, dt.datetime(2013, 7, 1, 3, 0, 0, 1), dt.date(2013, 7, 1))
#: What engines print or round differently.
SPECIAL = [
    (None,) * 6,
    (2**63 - 1, math.nan, "ä💥", False, dt.datetime(1000, 1, 1), dt.date(1000, 1, 2)),
    (-(2**63), math.inf, "", True, dt.datetime(9999, 12, 31, 23, 59, 59, 999999), dt.date(9999, 12, 31)),
    (0, -math.inf, "x\ny", None, None, None),
    *((0, x, "\\N", None, None, None) for x in (0.1, -0.0, 1e-300, -1e-17, 1e20, -1.7e308, 2.0**62, 2.0**53 + 2)),
    *((0, x, "'", None, None, None) for x in (2.0**124, 1e16, 123456789.123456789, 4503599627370497.5, 5e-324)),
]
some = st.one_of
VALUES = st.tuples(
    some(st.none(), st.integers(-(2**63), 2**63 - 1)),
    some(st.none(), st.floats()),
    some(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)),
    some(st.none(), st.booleans()),
    some(st.none(), st.datetimes(dt.datetime(1000, 1, 1))),
    some(st.none(), st.dates(dt.date(1000, 1, 1))),
)


def duckdb_tally(rows, columns=COLUMNS, where=""):
    with duckdb.connect() as connection:
        declared = ", ".join(f"{name} {SQL_TYPES['duckdb'][kind]}" for name, kind in columns)
        connection.execute(f"CREATE TABLE t ({declared})")
        if rows:
            connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' for _ in columns)})", rows)
        return read_tally(connection.execute(tally_sql(columns, "duckdb", "t" + where)).fetchone())


@pytest.fixture(scope="module")
def redshift_tally(postgres_dsn):
    """The tally by PostgreSQL, of the SQL that Redshift gets."""
    import psycopg2

    from airflow_provider_sml.testing.postgres import REDSHIFT_FUNCTIONS

    connection = psycopg2.connect(postgres_dsn)
    cursor = connection.cursor()
    cursor.execute("CREATE SCHEMA checksum; SET search_path TO checksum, public")
    cursor.execute(REDSHIFT_FUNCTIONS)
    cursor.execute("CREATE TABLE t (" + ", ".join(f"{name} {TYPES[kind]}" for name, kind in COLUMNS) + ")")

    def tally(rows):
        cursor.execute("TRUNCATE t")
        cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s)", rows)
        cursor.execute(tally_sql(COLUMNS, "redshift", "t"))
        return read_tally(cursor.fetchone())

    yield tally
    connection.close()  # nothing was committed


def test_redshift_comes_to_the_same(redshift_tally):
    for row in SPECIAL:
        assert redshift_tally([row]) == duckdb_tally([row]), row
    assert redshift_tally(SPECIAL) == duckdb_tally(SPECIAL)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(VALUES, max_size=8))
def test_redshift_comes_to_the_same_for_any_rows(redshift_tally, rows):
    assert redshift_tally(rows) == duckdb_tally(rows)


def test_bigquery_comes_to_the_same(bigquery, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from google.cloud.bigquery import LoadJobConfig

    from airflow_provider_sml.testing.bigquery import PROJECT, bigquery_client
    from tests.ml.test_lake_shops import ARROW

    client = bigquery_client()
    client.create_dataset("checksum", exists_ok=True)
    declared = ", ".join(f"{name} {SQL_TYPES['bigquery'][kind]}" for name, kind in COLUMNS)
    client.query_and_wait(f"CREATE OR REPLACE TABLE checksum.t ({declared})")
    folder = bigquery.root / "checksum"
    folder.mkdir(exist_ok=True)
    values = zip(*SPECIAL, strict=True)
    table = pa.table({n: pa.array(v, ARROW[k]) for (n, k), v in zip(COLUMNS, values, strict=True)})
    pq.write_table(table, folder / "t.parquet")
    config = LoadJobConfig(source_format="PARQUET")
    client.load_table_from_uri("gs://checksum/t.parquet", f"{PROJECT}.checksum.t", job_config=config).result()
    (found,) = client.query_and_wait(tally_sql(COLUMNS, "bigquery", "checksum.t"))
    assert read_tally(found.values()) == duckdb_tally(SPECIAL)


def test_order_does_not_count():
    assert duckdb_tally([ROW, *SPECIAL]) == duckdb_tally([*reversed(SPECIAL), ROW])


@pytest.mark.parametrize(
    "other",
    [
        (2, *ROW[1:]),
        (1, 1.5000000000000002, *ROW[2:]),
        (1, 1.5, "b", *ROW[3:]),
        (1, 1.5, "a", False, *ROW[4:]),
        (*ROW[:4], dt.datetime(2013, 7, 1, 3, 0, 0, 2), ROW[5]),
        (*ROW[:5], dt.date(2013, 7, 2)),
        (None, *ROW[1:]),
        (*ROW[:2], None, *ROW[3:]),
        (*ROW[:2], "", *ROW[3:]),
    ],
)
def test_one_other_value_is_seen(other):
    assert duckdb_tally([ROW]) != duckdb_tally([other])


def test_rows_that_come_twice_are_seen():
    assert duckdb_tally([ROW, ROW]) not in (duckdb_tally([ROW]), duckdb_tally([]))
    assert duckdb_tally([ROW, ROW, SPECIAL[1]]).sums != duckdb_tally([ROW, SPECIAL[1], SPECIAL[1]]).sums


def test_texts_are_told_apart_from_their_neighbours():
    columns = (("a", "string"), ("b", "string"))
    assert duckdb_tally([("x|1:y", "z")], columns) != duckdb_tally([("x", "y|1:z")], columns)
    assert duckdb_tally([("-", None)], columns) != duckdb_tally([(None, "-")], columns)


def test_no_rows_have_a_tally():
    assert duckdb_tally([]) == Tally(0, (0, 0, 0))
    assert duckdb_tally([ROW], where=" WHERE n > 1").checksum == "0-0-0"
