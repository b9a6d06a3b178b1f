"""Samples of a real lake table: windows, repeatability, entities, rates."""

import datetime as dt
import hashlib
import math
import shutil
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import sampling
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.sampling.leakage import check_splits
from airflow_provider_sml.ml.sampling.reservoir import reservoir
from tests import shops
from tests.ml.test_lake_shops import publish, stored_day

DAYS = shops.days(16)
WINDOWS = sampling.windows(DAYS[-1], 10, 3, 2, dt.timedelta(days=1))
ROWS = 120


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Sixteen days; on the first one, every tenth label is not known."""
    lake = Lake(str(tmp_path_factory.mktemp("sampling") / "lake"))
    tables = {day: stored_day(day, ROWS) for day in DAYS}
    labels = tables[DAYS[0]].column(LABEL).to_pylist()
    where = tables[DAYS[0]].schema.get_field_index(LABEL)
    unknown = pa.array([None if n % 10 == 0 else value for n, value in enumerate(labels)], pa.int64())
    tables[DAYS[0]] = tables[DAYS[0]].set_column(where, LABEL, unknown)
    publish(lake, tables)
    return lake


def draw(lake, **changes):
    settings = {"by": ["shop"], "key": ["order"], "rate": 0.5} | changes
    if settings.get("method") in ("all", "reservoir") and "rate" not in changes:
        settings["rate"] = 1.0
    return sampling.draw(lake, "orders", WINDOWS, **settings)


def rows(sample, split="train"):
    return pa.concat_tables([pq.read_table(path) for path in sampling.split_files(sample, split)])


def contents(sample):
    return {path.relative_to(sample.uri): path.read_bytes() for path in sorted(Path(sample.uri).rglob("*.parquet"))}


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_follow_each_other_and_wait_for_the_label():
    found = sampling.windows(dt.date(2026, 3, 20), 10, 3, 2, dt.timedelta(hours=30))
    assert found == {
        "train": (dt.date(2026, 3, 4), dt.date(2026, 3, 13)),
        "validate": (dt.date(2026, 3, 14), dt.date(2026, 3, 16)),
        "test": (dt.date(2026, 3, 17), dt.date(2026, 3, 18)),
    }
    assert list(found) == list(sampling.SPLITS)


@pytest.mark.parametrize(("delay", "last"), [(0, 20), (1, 19), (24, 19), (25, 18), (48, 18)])
def test_a_day_counts_once_all_its_labels_are_known(delay, last):
    found = sampling.windows(dt.date(2026, 3, 20), 1, 1, 1, dt.timedelta(hours=delay))
    assert found["test"] == (dt.date(2026, 3, last),) * 2


def test_each_split_holds_the_labelled_rows_of_its_days(lake):
    sample = draw(lake, method="all", by=[], rate=1.0)
    assert sample.rows == {"train": 10 * ROWS - ROWS // 10, "validate": 3 * ROWS, "test": 2 * ROWS}
    seen = {split: set(rows(sample, split).column("event_date").to_pylist()) for split in sampling.SPLITS}
    assert seen == {"train": set(DAYS[:10]), "validate": set(DAYS[10:13]), "test": set(DAYS[13:15])}
    assert rows(sample).column(LABEL).null_count == 0
    assert sampling.read_manifest(sample)["population"] == sample.rows


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_the_same_draw_is_found_again_and_drawn_again_byte_by_byte(lake):
    first = draw(lake)
    before = contents(first)
    stamp = (Path(first.uri) / "manifest.json").stat().st_mtime_ns
    assert draw(lake) == first
    assert (Path(first.uri) / "manifest.json").stat().st_mtime_ns == stamp
    shutil.rmtree(first.uri)
    assert draw(lake) == first
    assert contents(first) == before and len(before) == 3 * sampling.SHARDS
    files = sampling.read_manifest(first)["files"]
    assert files == {str(path): hashlib.sha256(held).hexdigest() for path, held in before.items()}


@pytest.mark.parametrize("change", [{"seed": 8}, {"rate": 0.6}, {"by": ["city"]}, {"method": "all"}])
def test_another_setting_is_another_sample(lake, change):
    assert draw(lake, **change).sample_id != draw(lake).sample_id
    kept, other = (set(rows(sample).column("order").to_pylist()) for sample in (draw(lake), draw(lake, **change)))
    assert kept != other


def test_an_older_snapshot_is_drawn_as_it_was(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    days = {"train": (DAYS[0], DAYS[0]), "validate": (DAYS[1], DAYS[1]), "test": (DAYS[2], DAYS[2])}
    old = publish(lake, {day: stored_day(day, 40) for day in DAYS[:3]})
    publish(lake, {DAYS[0]: stored_day(DAYS[0], 60)})
    then = sampling.draw(lake, "orders", days, snapshot_id=old.snapshot_id, method="all")
    now = sampling.draw(lake, "orders", days, method="all")
    assert (then.rows["train"], now.rows["train"]) == (40, 60)
    assert then.snapshot_id == old.snapshot_id != now.snapshot_id and then.sample_id != now.sample_id


def test_an_entity_is_kept_whole_or_not_at_all(lake):
    everything, kept = rows(draw(lake, method="all")), rows(draw(lake))
    shops_kept = set(kept.column("shop").to_pylist())
    assert 0 < len(shops_kept) < 20
    expected = [row for row in everything.to_pylist() if row["shop"] in shops_kept]
    assert sorted(kept.to_pylist(), key=lambda row: row["order"]) == sorted(expected, key=lambda row: row["order"])


def test_the_same_entities_are_kept_every_day(lake):
    """Whatever the days of the window: an entity that is in the sample of one day is in that of every other."""
    kept = []
    for first in range(8):
        windows = {name: (DAYS[first + n], DAYS[first + n]) for n, name in enumerate(sampling.SPLITS)}
        drawn, whole = (
            rows(sampling.draw(lake, "orders", windows, method=method, **given))
            for method, given in (("hash", {"by": ["shop"], "rate": 0.5}), ("all", {}))
        )
        names = [set(table.column("shop").to_pylist()) for table in (drawn, whole)]
        kept.append((names[0], names[1] - names[0]))
    everywhere = set.union(*(chosen for chosen, _ in kept))
    assert everywhere and all(chosen and left for chosen, left in kept)
    assert not everywhere & set.union(*(left for _, left in kept))


def test_the_manifest_tells_what_decided_the_sample(lake):
    sample = draw(lake, method="negatives", rate=0.25, seed=9)
    told = sampling.read_manifest(sample)
    assert (told["table"], told["snapshot_id"], told["method"], told["seed"], told["rate"]) == (
        "orders", lake.snapshot_id("orders"), "negatives", 9, 0.25,
    )  # fmt: skip
    assert told["rows"] == sample.rows and told["population"]["train"] > told["rows"]["train"]
    assert told["recalibration"] == 0.25 and told["windows"]["test"] == [str(day) for day in WINDOWS["test"]]
    assert set(told["files"]) == {str(path) for path in contents(sample)}  # each with its SHA-256
    assert Path(sample.uri).name == sample.sample_id  # the hash of what decided it


def test_a_higher_rate_keeps_all_of_a_lower_one(lake):
    kept = [set(rows(draw(lake, by=["order"], rate=rate)).column("order").to_pylist()) for rate in (0.1, 0.4, 0.9, 1.0)]
    assert kept[0] < kept[1] < kept[2] < kept[3]


def test_only_training_is_thinned(lake):
    thin, full = draw(lake, rate=0.3), draw(lake, method="all")
    assert thin.rows["train"] < full.rows["train"]
    assert sampling.read_manifest(thin)["population"] == full.rows
    for split in ("validate", "test"):
        assert rows(thin, split) == rows(full, split)


def test_uniform_keeps_single_rows(lake):
    kept = rows(draw(lake, method="uniform"))
    assert 450 < kept.num_rows < 750 and len(set(kept.column("shop").to_pylist())) == 20


def test_strata_get_their_exact_quota(lake):
    population, kept = (
        rows(draw(lake, method="all")),
        rows(draw(lake, method="stratified", by=["shop", "city"], rate=0.1)),
    )
    before, after = (
        Counter(zip(*(t.column(n).to_pylist() for n in ("shop", "city")), strict=True)) for t in (population, kept)
    )
    assert len(before) == 60
    assert after == {stratum: max(1, math.floor(0.1 * count + 0.5)) for stratum, count in before.items()}


def test_negatives_are_thinned_and_the_rate_is_kept_for_recalibration(lake):
    full, kept = rows(draw(lake, method="all")), draw(lake, method="negatives", rate=0.25)
    labels = rows(kept).column(LABEL).to_pylist()
    assert sum(labels) == sum(full.column(LABEL).to_pylist())
    assert 0.15 < labels.count(0) / full.column(LABEL).to_pylist().count(0) < 0.35
    manifest = sampling.read_manifest(kept)
    assert manifest["recalibration"] == 0.25 and sampling.read_manifest(draw(lake))["recalibration"] == 1.0
    assert rows(kept, "test") == rows(draw(lake, method="all"), "test")


def test_decay_weighs_a_row_by_its_age(lake):
    kept = rows(draw(lake, method="decay", rate=1.0, half_life=3.0))
    found = dict(zip(kept.column("event_date").to_pylist(), kept.column(sampling.WEIGHT).to_pylist(), strict=True))
    assert found == pytest.approx({day: 0.5 ** ((DAYS[9] - day).days / 3) for day in DAYS[:10]})
    assert sampling.WEIGHT not in rows(draw(lake, method="decay", rate=1.0, half_life=3.0), "test").column_names


def test_a_reservoir_holds_exactly_its_size_and_every_row_has_the_same_chance():
    stream = [pa.record_batch({"n": range(start, start + 250)}) for start in range(0, 2000, 250)]
    counts = Counter()
    for seed in range(300):
        kept = reservoir(iter(stream), 100, seed)
        assert kept.num_rows == 100
        counts.update(kept.column("n").to_pylist())
    quarters = [sum(counts[n] for n in range(start, start + 500)) for start in range(0, 2000, 500)]
    assert chisquare(quarters).pvalue > 1e-4 and len(counts) == 2000
    one = pa.Table.from_batches(stream).combine_chunks().to_batches()
    assert reservoir(iter(one), 100, 5) == reservoir(iter(stream), 100, 5)  # however it is cut
    assert reservoir(iter(stream), 5000).num_rows == 2000 and reservoir(iter([]), 5) is None


def test_a_reservoir_is_a_method(lake):
    sample = draw(lake, method="reservoir", size=77)
    assert sample.rows["train"] == 77 and len(set(rows(sample).column("order").to_pylist())) == 77


def test_groups_part_the_splits_by_entity(lake):
    sample = draw(lake, method="all", groups=["shop"])
    seen = {split: set(rows(sample, split).column("shop").to_pylist()) for split in sampling.SPLITS}
    assert set.union(*seen.values()) == {f"shop-{n:02d}" for n in range(20)}
    assert (
        not seen["train"] & seen["test"]
        and not seen["validate"] & seen["test"]
        and not seen["train"] & seen["validate"]
    )
    assert len(seen["train"]) > len(seen["test"]) > 0


@pytest.mark.parametrize(("group", "words"), [((), "share days"), (("shop",), r"share entities \(shop\)")])
def test_the_guard_finds_what_two_splits_share(tmp_path, group, words):
    files = {}
    for split, day in (("train", DAYS[0]), ("test", DAYS[0] if not group else DAYS[1])):
        pq.write_table(stored_day(day, 50), tmp_path / f"{split}.parquet")
        files[split] = [str(tmp_path / f"{split}.parquet")]
    with duckdb.connect() as connection, pytest.raises(DataError, match=words):
        check_splits(connection, files, group)


def test_every_row_goes_to_one_shard_and_no_shard_is_empty(lake):
    sample = draw(lake, method="all")
    sizes = [pq.read_metadata(path).num_rows for path in sampling.split_files(sample, "train")]
    assert len(sizes) == sampling.SHARDS and min(sizes) > 0 and sum(sizes) == sample.rows["train"]
    orders = rows(sample).column("order").to_pylist()
    assert len(set(orders)) == len(orders)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "some"}, "one of all, uniform, hash"),
        ({"rate": 0}, "above 0 and at most 1"),
        ({"rate": 1.1}, "above 0 and at most 1"),
        ({"by": []}, "some of order, ordered(.|\n)*none"),
        ({"by": ["shop", "colour"]}, r"some of order, ordered(.|\n)*\['colour'\]"),
        ({"method": "all", "rate": 0.5}, "takes no rate"),
        ({"method": "reservoir", "rate": 1.0}, "size: rows"),
        ({"method": "decay"}, "half_life: days"),
        ({"method": "negatives", "key": []}, "needs key"),
        ({"groups": ["colour"]}, r"groups names unknown columns(.|\n)*\['colour'\]"),
    ],
)
def test_settings_that_do_not_fit(lake, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        draw(lake, **changes)


def test_a_window_without_a_labelled_row(lake):
    nobody = (DAYS[-1] + dt.timedelta(days=5),) * 2
    with pytest.raises(DataError, match=rf"validate window(.|\n)*from {nobody[0]}(.|\n)*{DAYS[0]} to {DAYS[-1]}"):
        sampling.draw(lake, "orders", WINDOWS | {"validate": nobody}, method="all")
    assert list(Path(lake.location).glob("samples/orders/*.tmp")) == []


def test_an_interrupted_draw_does_not_hurt(lake):
    first = draw(lake, seed=99)
    before = contents(first)
    # What a killed process leaves behind: a folder without a manifest under a name of its own.
    Path(first.uri).rename(f"{first.uri}.0badc0de.tmp")
    (Path(f"{first.uri}.0badc0de.tmp") / "manifest.json").unlink()
    (Path(f"{first.uri}.0badc0de.tmp") / "train" / "003.parquet").unlink()
    assert draw(lake, seed=99) == first and contents(first) == before


# --- the hash ---------------------------------------------------------------------------------------------------------


def kept_by_python(values, rate, seed):
    entity = "|".join([str(seed), *("" if value is None else str(value) for value in values)])
    return int(hashlib.md5(entity.encode()).hexdigest()[:8], 16) < round(rate * 2**32)


ENTITIES = [(f"kunde-ü{n}" if n % 7 else None, n) for n in range(2000)]


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.999, 0.99999999999])
def test_duckdb_keeps_what_the_definition_keeps_and_about_the_rate(rate):
    table = pa.table({"name": [name for name, _ in ENTITIES], "number": [number for _, number in ENTITIES]})
    with duckdb.connect() as connection:
        connection.register("entities", table)
        keep = sampling.keep_sql(["name", "number"], rate, 7)
        kept = connection.execute(f"SELECT name, number FROM entities WHERE {keep}").fetchall()
    assert set(kept) == {entity for entity in ENTITIES if kept_by_python(entity, rate, 7)}
    spread = (rate * (1 - rate) / len(ENTITIES)) ** 0.5
    assert abs(len(kept) / len(ENTITIES) - rate) < 4 * spread + 1e-9


def test_another_seed_keeps_other_entities():
    kept = [{entity for entity in ENTITIES if kept_by_python(entity, 0.5, seed)} for seed in (7, 8)]
    assert 0.4 < len(kept[0] & kept[1]) / len(kept[0]) < 0.6
    assert sampling.keep_sql(["name"], 0.5, 7) != sampling.keep_sql(["name"], 0.5, 8)


def test_a_rate_of_one_keeps_all_and_spark_gets_its_own_quotes():
    assert sampling.keep_sql(["name"], 1.0, 7) == "TRUE"
    assert "`name`" in sampling.keep_sql(["name"], 0.5, 7, "spark")
