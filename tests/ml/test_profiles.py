"""Profiles: the same from Arrow, DuckDB, Spark and BigQuery's emulator; exact merges; kept whole in the lake."""

import datetime as dt
import json
import logging
import math
import random
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_sml.errors import DataError, IntegrityError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import Feature
from airflow_provider_sml.ml.expressions import compile
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import profile_sql, profile_store
from airflow_provider_sml.ml.monitoring.counting import NARROW, NumberCounter
from airflow_provider_sml.ml.monitoring.file_profile import asked_of, profile_file
from airflow_provider_sml.ml.monitoring.parquet_profile import ParquetRows, of_parquet
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
        st.one_of(
            finite,
            st.sampled_from([v for v in ODD if v is not None]),
            st.integers(-3000, 3000).map(float),
            st.integers(-(10**17), 10**17).map(float),
        ),
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


@pytest.mark.parametrize("after", [[], [0.5], [NARROW + 5.0], [-1.0, math.nan], [2.0**60], [-math.inf]])
def test_whole_numbers_are_counted_each_by_itself_until_others_come(after):
    start = np.array([0.0, -0.0, 7.0, 1023.0, 4097.0, 4099.0, -4097.0, math.nan] * 3)
    counter = NumberCounter()
    gaps = sum(counter.add(np.array(part)) for part in ([1e6, 1e6 + 1], start, after, start[::-1]) if len(part))
    whole = np.concatenate([[1e6, 1e6 + 1], start, after, start])
    assert gaps == int(np.isnan(whole).sum())
    wanted = Numbers.of(whole[~np.isnan(whole)])
    same(*(Profile(1, {"x": ColumnProfile(1, 0, numbers)}) for numbers in (counter.numbers(), wanted)))


def test_texts_as_positions_in_a_dictionary_are_counted_like_plain_ones():
    held = pa.DictionaryArray.from_arrays(pa.array([2, 0, None, 2, 0, 2], pa.int8()), ["a", "nowhere", "c"])
    plain = held.cast(pa.string())
    parts = [[pa.table({"c": rows}), pa.table({"c": rows[2:4]})] for rows in (held, plain)]
    same(*(of_batches(part, {"c": "category"}) for part in parts))
    assert of_batches(parts[0][:1], {"c": "category"}).columns["c"].values.counts == {"a": 2, "c": 3}


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
    same(profile_sql.of_spark(spark, "profile_rows", COLUMNS, cap), expected(table, cap))
    same(profile_sql.of_bigquery(client, in_bigquery(client, path), COLUMNS, cap), expected(table, cap))


def written(folder, *tables):
    """Files of some rows each; gives their paths."""
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=1_500)
    return [str(folder / f"{number}.parquet") for number in range(len(tables))]


@pytest.mark.parametrize("cap", [3, 1000])
@pytest.mark.parametrize("size", [400, 3_000])
def test_parquet_files_of_any_age_give_the_same_profile(tmp_path, size, cap):
    """Small files are read straight; of larger ones DuckDB groups the columns of few values."""
    new = table_of(7, size).append_column("day", pa.array([dt.date(2026, 3, 1 + n % 5) for n in range(size)]))
    old = table_of(8, size).drop_columns(["y"])
    old = old.set_column(1, "whole", old.column("whole").cast(pa.int16()))
    files = written(tmp_path, new, old)
    with ParquetRows(files) as rows:
        few = [name for name in KINDS if rows.has_few_values(name)]
    assert few == ([] if size == 400 else ["x", "whole", "c", "wide"])
    columns = [*COLUMNS, profile_sql.Column("weekday", "category", "dayname(day)"),
               profile_sql.Column("day", "category", stored="day")]  # fmt: skip
    found = of_parquet(files, columns, cap=cap)
    both = pa.concat_tables([new, old], promote_options="permissive")
    day = both.column("day").cast(pa.string())
    names = pa.compute.strftime(both.column("day"), "%A")
    doubled = pa.compute.multiply(both.column("whole"), 2)
    rows = both.append_column("sum", doubled).append_column("weekday", names).drop_columns(["day"])
    kinds = KINDS | {"sum": "number", "weekday": "category", "day": "category"}
    same(found, of_batches([rows.append_column("day", day)], kinds, cap=cap))
    assert list(found.columns) == list(kinds)


@pytest.mark.parametrize("server", ["s3_store", "gcs_store"])
def test_parquet_files_on_an_object_store(request, tmp_path, server):
    store = request.getfixturevalue(server)
    bucket = store.bucket()
    storage.mount(bucket, store.store)
    tables = [table_of(12, 3_000), table_of(13, 3_000)]
    files = written(tmp_path, *tables)
    places = [f"{bucket}/day/{number}.parquet" for number in range(len(files))]
    for here, there in zip(files, places, strict=True):
        storage.write(storage.place(there), Path(here).read_bytes())
    same(of_parquet(places, COLUMNS), expected(pa.concat_tables(tables), 1000))


def test_a_column_that_no_file_has_and_one_of_two_types_are_left_to_duckdb(tmp_path):
    one, two = pa.table({"a": [1.5, 2.5], "b": ["1", "2"]}), pa.table({"a": [3.5], "b": [3]})
    columns = [*profile_sql.columns_of({"a": "number", "b": "number", "gone": "number"})]
    found = of_parquet(written(tmp_path, one, two), columns, known=["a", "b", "gone"])
    assert found.rows == 3 and found.columns["a"].values.mean == 2.5 and found.columns["b"].values.mean == 2
    assert found.columns["gone"].nulls == 3
    nothing = of_parquet([], columns)
    assert nothing.rows == 0 and set(nothing.columns) == {"a", "b", "gone"}


def test_segments_of_parquet_files_that_partly_lack_the_segment(tmp_path):
    new, old = table_of(9), table_of(10).drop_columns(["c"])
    columns = [column for column in COLUMNS if column.name != "c"]
    found = of_parquet(written(tmp_path, new, old), columns, segment="c")
    kinds = {name: kind for name, kind in KINDS.items() if name != "c"} | {"sum": "number"}
    doubled = new.append_column("sum", pa.compute.multiply(new.column("whole"), 2))
    assert found.rows == 2 * new.num_rows and set(found.segments) == {"a", "B", "", "ä", "it's"}
    for name, part in of_batches([doubled], kinds, segment="c").segments.items():
        same(found.segments[name], part)


def test_a_worker_of_spark_computes_what_duckdb_does(tmp_path):
    types = {"x": "double", "whole": "int", "c": "string", "wide": "string", "late": "int"}
    texts = {"x": "x", "half": "whole / 2", "large": "whole > 7", "c": "c", "joined": "concat(c, wide)",
             "step": "whole", "late": "late"}  # fmt: skip
    categories = {"c", "joined", "step"}
    features = [
        Feature(name, compile(text, types), ("a",) if name in categories else None) for name, text in texts.items()
    ]
    table = table_of(11)
    [file] = written(tmp_path, table)
    made = Profile.load(json.loads(profile_file((tmp_path / "0.parquet").read_bytes(), asked_of(features, types, "c"))))
    columns = [
        profile_sql.Column(one.name, "number" if one.categories is None else "category", one.expression.sql("duckdb"))
        for one in features
    ]
    large = f"CASE WHEN {columns[2].sql} THEN 1 WHEN NOT ({columns[2].sql}) THEN 0 END"
    columns[2] = profile_sql.Column("large", "number", large)
    wanted = of_parquet([file], columns, segment="c", known=[*table.column_names, "late"])
    assert wanted.columns["late"].nulls == table.num_rows and wanted.columns["half"].values.size
    same(made, wanted)
    for name, part in wanted.segments.items():
        same(made.segments[name], part)
    weekday = Feature("when", compile("whole > 1", types), ("a",))
    assert asked_of([weekday], types, None) is None


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
            "parquet": of_parquet([path], columns, segment="c"),
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
