"""Profiles: the same from Arrow, DuckDB, Spark and BigQuery's emulator; exact merges; kept whole in the lake."""

import datetime as dt
import json
import logging
import math
import random
from itertools import chain

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_sml.errors import DataError, IntegrityError
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import profile_sql, profile_store
from airflow_provider_sml.ml.monitoring.counting import NumberCounter
from airflow_provider_sml.ml.monitoring.profile import Categories, ColumnProfile, Profile, merge, of_batches
from airflow_provider_sml.ml.monitoring.sketch import RELATIVE_ERROR, Numbers, keys_of, values_of
from tests.ml.test_lake_shops import publish, stored_day
from tests.trained import DAYS

KINDS = {"x": "number", "y": "number", "whole": "number", "c": "category", "wide": "category"}
ODD = [0.0, -0.0, 1.0, -1.5, 0.1, 1e-300, -1e-200, 1e149, -1e149, 1e151, -1e200, math.inf, -math.inf, math.nan,
       2.0**-11, 1023.5, 2047.0, 2049.0, 1 + 2**-11, 1 + 2**-10 + 2**-11, 0.3333333333333333, None]  # fmt: skip
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e149, max_value=1e149)


def table_of(seed, size=400, cap=5):
    """Rows with what engines differ about."""
    draw = random.Random(seed)
    size = max(size, 2 * len(ODD))
    return pa.table(
        {
            "x": pa.array([draw.choice(ODD) for _ in range(size)], pa.float64()),
            "y": pa.array([draw.lognormvariate(0, 3) * draw.choice([1, -1]) for _ in range(size)], pa.float64()),
            "whole": pa.array([draw.choice([None, draw.randrange(-5000, 5000)]) for _ in range(size)], pa.int64()),
            "c": pa.array([draw.choice(["a", "B", "", "ä", "it's", None]) for _ in range(size)], pa.string()),
            "wide": pa.array([f"v{min(int(draw.expovariate(0.2)), 40)}" for _ in range(size)], pa.string()),
        }
    )


def same(one, two, moments=1e-9):
    """Two profiles are the same: counts exactly, moments to rounding."""
    assert one.rows == two.rows and set(one.columns) == set(two.columns)
    for name, column in one.columns.items():
        other = two.columns[name]
        assert (column.rows, column.nulls, column.kind) == (other.rows, other.nulls, other.kind), name
        if isinstance(column.values, Categories):
            assert column.values == other.values, name
            continue
        a, b = column.values, other.values
        assert a.keys.tolist() == b.keys.tolist() and a.counts.tolist() == b.counts.tolist(), name
        assert (a.below, a.above) == (b.below, b.above), name
        scale = max(abs(a.low), abs(a.high), 1e-300) if a.inside else 1.0
        assert a.mean == pytest.approx(b.mean, rel=moments, abs=moments * scale), name
        assert a.m2 == pytest.approx(b.m2, rel=1e-6, abs=moments * scale * scale), name
        assert [a.low, a.high] == pytest.approx([b.low, b.high], nan_ok=True), name


# --- the sketch -------------------------------------------------------------------------------------------------------


@given(st.lists(finite, min_size=1, max_size=200), st.floats(0, 1))
def test_every_value_and_every_quantile_is_known_to_the_stated_error(values, share):
    array = np.array(values)
    array[np.abs(array) < 1e-150] = 0
    rounded = values_of(keys_of(array))
    assert (np.abs(rounded - array) <= RELATIVE_ERROR * np.abs(array)).all()
    exact = np.quantile(array, share, method="inverted_cdf")
    assert abs(Numbers.of(array).quantile(share) - exact) <= RELATIVE_ERROR * abs(exact)


@given(
    st.lists(st.lists(st.one_of(finite, st.just(math.inf), st.just(-math.inf)), max_size=60), min_size=1, max_size=6)
)
def test_a_merge_is_the_sketch_of_all_values_in_any_order(parts):
    profiles = [of_batches([pa.table({"x": pa.array(part, pa.float64())})], {"x": "number"}) for part in parts]
    whole = of_batches([pa.table({"x": pa.array(list(chain(*parts)), pa.float64())})], {"x": "number"})
    same(merge(profiles), whole)
    same(merge(profiles[::-1]), whole)
    stepwise = profiles[0]
    for other in profiles[1:]:
        stepwise = stepwise.merge(other)
    same(stepwise, whole)
    same(Profile.load(json.loads(json.dumps(whole.dump()))), whole)


@given(
    st.lists(
        st.one_of(finite, st.sampled_from([v for v in ODD if v is not None]), st.integers(-3000, 3000).map(float)),
        max_size=300,
    ),
    st.integers(1, 40),
)
def test_counting_piece_by_piece_is_the_sketch_of_all_values(values, piece):
    array = np.array(values, float)
    counter = NumberCounter()
    gaps = sum(counter.add(array[start : start + piece]) for start in range(0, len(array), piece))
    assert gaps == int(np.isnan(array).sum())
    found, expected = (
        Profile(1, {"x": ColumnProfile(1, 0, numbers)})
        for numbers in (counter.numbers(), Numbers.of(array[~np.isnan(array)]))
    )
    same(found, expected)


def test_moments_of_large_and_close_values_lose_nothing():
    values = 1e9 + np.arange(1000) / 1000
    found = merge([of_batches([pa.table({"x": part})], {"x": "number"}) for part in np.split(values, 10)])
    numbers = found.columns["x"].values
    assert numbers.variance == pytest.approx(values.var(), rel=1e-6) and numbers.mean == pytest.approx(values.mean())


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=40), min_size=1, max_size=5), st.integers(1, 6))
def test_categories_beyond_the_cap_are_counted_and_no_count_is_further_off_than_told(parts, cap):
    profiles = [of_batches([pa.table({"c": pa.array(p, pa.string())})], {"c": "category"}, cap=cap) for p in parts]
    found = merge(profiles, cap).columns["c"].values
    whole = list(chain(*parts))
    assert found.size == len(whole) and len(found.counts) <= cap
    for name in set(whole):
        assert 0 <= whole.count(name) - found.counts.get(name, 0) <= found.short
    if len(set(whole)) <= cap:
        assert found.short == found.rest == 0


def test_many_batches_in_little_memory():
    """Rows that are never all there: the profile of a million takes no more than that of a few batches."""
    import tracemalloc

    generator = np.random.default_rng(3)

    def stream(batches):
        for number in range(batches):
            keys = np.arange(number * 5000, (number + 1) * 5000).astype(str)
            yield pa.record_batch({"x": generator.lognormal(size=5000), "c": pa.array(keys)})

    peaks = []
    for batches in (10, 40):
        tracemalloc.start()
        found = of_batches(stream(batches), {"x": "number", "c": "category"})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.rows == batches * 5000 and found.columns["c"].values.size == batches * 5000
    assert peaks[1] < 1.5 * peaks[0]


def test_segments_are_profiled_beside_the_whole():
    table = table_of(1)
    found = of_batches(table.to_batches(max_chunksize=50), KINDS, segment="c")
    same(found, of_batches([table], KINDS))
    assert set(found.segments) == {"a", "B", "", "ä", "it's"}
    part = table.filter(pa.compute.equal(table.column("c"), "ä"))
    same(found.segments["ä"], of_batches([part], KINDS))
    assert found.merge(found).segments["ä"].rows == 2 * part.num_rows


def test_what_cannot_be_profiled_is_told():
    table = table_of(1)
    with pytest.raises(DataError, match="no z"):
        of_batches([table], {"z": "number"})
    with pytest.raises(DataError, match="column c holds no numbers"):
        of_batches([table], {"c": "number"})
    one, two = (of_batches([table], {"whole": kind}) for kind in ("number", "category"))
    with pytest.raises(DataError, match="column whole changed its kind"):
        one.merge(two)


# --- the engines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(bigquery):
    from airflow_provider_sml.testing.bigquery import bigquery_client

    client = bigquery_client()
    client.create_dataset("profiles", exists_ok=True)
    return client


def in_bigquery(client, path):
    from google.cloud.bigquery import LoadJobConfig

    types = {"x": "FLOAT64", "y": "FLOAT64", "whole": "INT64", "c": "STRING", "wide": "STRING"}
    declared = ", ".join(f"{name} {kind}" for name, kind in types.items())
    client.query_and_wait(f"CREATE OR REPLACE TABLE profiles.rows_of_test ({declared})")
    with open(path, "rb") as file:
        config = LoadJobConfig(source_format="PARQUET")
        client.load_table_from_file(file, f"{client.project}.profiles.rows_of_test", job_config=config).result()
    return "profiles.rows_of_test"


COLUMNS = [*profile_sql.columns_of(KINDS), profile_sql.Column("sum", "number", "whole + whole")]


def expected(table, cap):
    doubled = pa.compute.multiply(table.column("whole"), 2)
    return of_batches([table.append_column("sum", doubled)], KINDS | {"sum": "number"}, cap=cap)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 50))
def test_duckdb_fills_the_same_profile(tmp_path, seed, cap):
    table = table_of(seed)
    pq.write_table(table, tmp_path / "rows.parquet")
    with duckdb.connect() as connection:
        found = profile_sql.of_duckdb(connection, f"read_parquet('{tmp_path}/rows.parquet')", COLUMNS, cap)
    same(found, expected(table, cap))


@pytest.mark.parametrize(("seed", "cap"), [(1, 5), (2, 1000)])
def test_spark_and_bigquery_fill_the_same_profile(spark, client, tmp_path, seed, cap):
    table = table_of(seed)
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path)
    spark.read.parquet(path).createOrReplaceTempView("profile_rows")
    for of_spark in (profile_sql.of_spark, profile_sql.of_spark_sql):
        same(of_spark(spark, "profile_rows", COLUMNS, cap), expected(table, cap))
    same(profile_sql.of_bigquery(client, in_bigquery(client, path), COLUMNS, cap), expected(table, cap))


def test_segments_are_the_same_in_every_engine(spark, client, tmp_path):
    table = table_of(3)
    path = str(tmp_path / "rows.parquet")
    pq.write_table(table, path)
    spark.read.parquet(path).createOrReplaceTempView("profile_rows")
    columns = profile_sql.columns_of(KINDS)
    whole = of_batches([table], KINDS, segment="c")
    with duckdb.connect() as connection:
        rows = f"read_parquet('{path}')"
        found = {
            "duckdb": profile_sql.of_duckdb(connection, rows, columns, segment="c"),
            "spark": profile_sql.of_spark(spark, "profile_rows", columns, segment="c"),
            "spark in sql": profile_sql.of_spark_sql(spark, "profile_rows", columns, segment="c"),
            "bigquery": profile_sql.of_bigquery(client, in_bigquery(client, path), columns, segment="c"),
        }
    for engine, profile in found.items():
        same(profile, whole)
        assert set(profile.segments) == {"a", "B", "", "ä", "it's"}, engine
        for name, part in whole.segments.items():
            same(profile.segments[name], part)


def test_duckdb_groups_columns_of_few_values_and_streams_the_others(monkeypatch, tmp_path):
    table = table_of(5, 3000)
    pq.write_table(table, tmp_path / "rows.parquet")
    monkeypatch.setattr(profile_sql, "_LOOKED_AT", 500)
    monkeypatch.setattr(profile_sql, "_FEW", 60)
    with duckdb.connect() as connection:
        source = f"read_parquet('{tmp_path}/rows.parquet')"
        assert profile_sql._few(connection, source, COLUMNS) == {"x", "c", "wide"}
        for cap in (5, 1000):
            same(profile_sql.of_duckdb(connection, source, COLUMNS, cap), expected(table, cap))
        grouped = [column for column in COLUMNS if column.name in ("x", "c")]
        found = profile_sql.of_duckdb(connection, source, grouped)
    assert found.rows == 3000 and list(found.columns) == ["x", "c"]


def test_no_rows_are_a_profile_too():
    with duckdb.connect() as connection:
        found = profile_sql.of_duckdb(
            connection, "(SELECT 1.0 AS x WHERE false) AS t", [profile_sql.Column("x", "number")]
        )
    same(found, of_batches([], {"x": "number"}))
    assert math.isnan(found.columns["x"].values.quantile(0.5))


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lake(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {day: stored_day(day, 60) for day in DAYS[:4]})
    return lake


def maker(lake, made):
    from airflow_provider_sml.ml.monitoring.predictions import read_days

    def make(day):
        made.append(day)
        return of_batches([read_days(lake, "orders", day, day)], {"weight": "number", "city": "category"})

    return make


def test_a_month_is_a_merge_of_nights_and_each_is_scanned_once(lake):
    made = []
    store = profile_store.ProfileStore(lake, "orders", {"columns": ["weight", "city"]})
    missing = DAYS[0] - dt.timedelta(days=1)
    nights = store.days([missing, *DAYS[:4]], maker(lake, made))
    month = merge(list(nights.values()))
    assert made == list(DAYS[:4]) and list(nights) == made and month.rows == 240
    again = store.days(DAYS[:4], maker(lake, made))
    assert len(made) == 4
    same(merge(list(again.values())), month)
    rest = merge(list(store.days(DAYS[1:4], maker(lake, [])).values()))
    same(month, maker(lake, made)(DAYS[0]).merge(rest))
    assert store.days([missing], maker(lake, made)) == {}


def test_a_day_that_is_published_again_is_profiled_again_and_other_definitions_are_kept_apart(lake):
    made = []
    store = profile_store.ProfileStore(lake, "orders", {"columns": ["weight", "city"]})
    other = profile_store.ProfileStore(lake, "orders", {"columns": ["weight"]})
    store.days(DAYS[:2], maker(lake, made))
    other.days(DAYS[:2], maker(lake, made))
    assert len(made) == 4
    publish(lake, {DAYS[0]: stored_day(DAYS[0], 30)})
    assert store.days(DAYS[:2], maker(lake, made))[DAYS[0]].rows == 30
    assert made[4:] == [DAYS[0]]
    assert len(list((lake.root / "profiles" / "orders" / str(DAYS[0])).iterdir())) == 2  # the stale one is gone
    assert profile_store.expire(lake, "orders", DAYS[1]) == 2
    assert len(list((lake.root / "profiles" / "orders").rglob("*.json"))) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"sha256": "0", "body": "{}"}', "cut", "flip"])
def test_a_damaged_profile_is_told_by_its_name_and_made_again(lake, caplog, damage):
    made = []
    store = profile_store.ProfileStore(lake, "orders", {"columns": ["weight", "city"]})
    store.days(DAYS[:1], maker(lake, made))
    (path,) = (lake.root / "profiles").rglob("*.json")
    whole = path.read_bytes()
    flipped = whole.replace(b'nulls\\":0', b'nulls\\":7', 1)
    assert flipped != whole
    path.write_bytes({"cut": whole[:-40], "flip": flipped}.get(damage, damage))
    with pytest.raises(IntegrityError, match=path.name):
        profile_store.load(path)
    with caplog.at_level(logging.WARNING):
        store.days(DAYS[:1], maker(lake, made))
    assert len(made) == 2 and path.name in caplog.text and path.read_bytes() == whole
