"""The audit: what a run wrote against its own report and against the contract."""

import datetime as dt
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.lake.audit import Staged, audit
from tests import shops
from tests.ml.test_lake_shops import stored_day

DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)


def dataset(**limits):
    """The contract with limits of its own, without a row band and without freshness if not given."""
    contract = shops.make_spec(Path("/nowhere")).contract.model_dump(mode="json")
    return shops.make_spec(Path("/nowhere"), contract=contract | {"limits": {"bad_rows": "10%"} | limits}).dataset


@pytest.fixture
def stage(tmp_path):
    """Writes a run's folder with one file a day; ``told`` changes what its report says of days."""

    def make(tables, told=None, reasons=None):
        folder = tmp_path / os.urandom(4).hex()
        days = {}
        for day, table in tables.items():
            place = folder / "data" / f"_p={day}"
            place.mkdir(parents=True)
            if table.num_rows:
                pq.write_table(table, place / "part-0.parquet")
            newest = max(table.column("ordered").to_pylist(), default=None)
            days[str(day)] = {
                "rows_in": table.num_rows,
                "rows_good": table.num_rows,
                "newest": newest and newest.isoformat(),
            } | (told or {}).get(day, {})
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text(json.dumps({"days": days, "reasons": reasons or {}}))
        return Staged.read(folder)

    return make


def changed(table, column, position, value):
    values = table.column(column).to_pylist()
    values[position] = value
    where = table.schema.get_field_index(column)
    return table.set_column(where, column, pa.array(values, table.schema.field(column).type))


def refused(staged, words, first=DAY, last=DAY, history=None, **limits):
    with pytest.raises(DataError, match=words) as caught:
        audit(dataset(**limits), staged, first, last, history or {})
    return str(caught.value)


def test_good_days_pass(stage):
    staged = stage({DAY: stored_day(DAY, 50), NEXT: stored_day(NEXT, 60)})
    audit(dataset(fresh="12h"), staged, DAY, NEXT, {})
    assert (staged.rows_in, staged.rows_good, staged.reasons()) == (110, 110, "none")


def test_a_run_without_a_report_is_incomplete(tmp_path):
    with pytest.raises(DataError, match="wrote no report"):
        Staged.read(tmp_path)


@pytest.mark.parametrize("told", [51, 49])
def test_counts_that_differ_from_the_report(stage, told):
    staged = stage({DAY: stored_day(DAY, 50)}, {DAY: {"rows_in": 52, "rows_good": told}})
    refused(staged, rf"2026-03-01: the files are not what(.|\n)*{told} rows; found: 50")


def test_a_file_of_another_day_is_missed_on_its_own(stage):
    staged = stage({DAY: stored_day(NEXT, 50)})
    refused(staged, r"2026-03-01: the files are not what(.|\n)*50 rows; found: 0")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("weight", 50.5, "weight:range"),
        ("weight", float("nan"), "weight:range"),
        ("shop", None, "shop:required"),
        ("city", "Paris", "city:values"),
    ],
)
def test_a_rule_that_the_files_break(stage, column, value, rule):
    table = changed(changed(stored_day(DAY, 50), column, 7, value), column, 8, value)
    assert "must" in refused(stage({DAY: table}), f"2026-03-01: 2 written rows break {rule}")


def test_a_key_that_stands_twice(stage):
    table = stored_day(DAY, 50)
    table = changed(table, "order", 3, table.column("order")[4].as_py())
    refused(stage({DAY: table}), r"rows share a key(.|\n)*50 different keys(.|\n)*found: 49")


def test_bad_rows_up_to_the_limit_and_beyond(stage):
    rows = stored_day(DAY, 90)
    audit(dataset(bad_rows="10%"), stage({DAY: rows}, {DAY: {"rows_in": 100}}), DAY, DAY, {})
    staged = stage({DAY: rows}, {DAY: {"rows_in": 101}}, {"shop:required": 2, "city:values": 9})
    words = r"11 of 101 rows break the contract(.|\n)*at most 10.0%; found: 10.9%"
    assert "9 city:values, 2 shop:required" in refused(staged, words, bad_rows="10%")


def test_a_day_without_a_good_row(stage):
    told = {DAY: {"rows_in": 3, "rows_good": 0, "newest": None}}
    refused(
        stage({DAY: stored_day(DAY, 0)}, told, {"shop:required": 3}), r"no row fulfils(.|\n)*3 rows read(.|\n)*3 shop"
    )


def test_a_day_that_the_run_does_not_know(stage):
    words = r"2026-03-02: no row fulfils(.|\n)*0 rows read"
    refused(stage({DAY: stored_day(DAY, 50)}), words, last=NEXT)


def test_old_data(stage):
    fresh, old = "2026-03-01T12:00:00", "2026-03-01T11:59:59"
    rows = stored_day(DAY, 50)
    audit(dataset(fresh="12h"), stage({DAY: rows}, {DAY: {"newest": fresh}}), DAY, DAY, {})
    staged = stage({DAY: rows}, {DAY: {"newest": old}})
    refused(staged, r"newest event is old(.|\n)*last 12:00:00(.|\n)*11:59:59, 12:00:01 before", fresh="12h")
    audit(dataset(), staged, DAY, DAY, {})


BAND = {"rows": {"within": "60%", "of": "14 days"}}


def past(days, rows):
    return {DAY - dt.timedelta(days=n): rows for n in range(1, days + 1)}


@pytest.mark.parametrize(("rows", "before"), [(39, 100), (50, 31)])
def test_a_row_count_outside_the_band(stage, rows, before):
    staged = stage({DAY: stored_day(DAY, rows)})
    share = f"{rows / before - 1:+.0%}".replace("+", r"\+")
    words = rf"{rows} rows are not what(.|\n)*within 60% of {before}, the mean of 7 days(.|\n)*\({share}\)"
    refused(staged, words, history=past(7, before), **BAND)


@pytest.mark.parametrize(
    ("rows", "history"),
    [
        (40, past(7, 100)),
        (160, past(7, 100)),
        (39, past(6, 100)),
        # Neither older days nor later ones count.
        (39, past(6, 100) | {DAY - dt.timedelta(days=15): 100, NEXT: 100}),
    ],
)
def test_a_row_count_within_the_band_or_with_little_to_compare(stage, rows, history):
    audit(dataset(**BAND), stage({DAY: stored_day(DAY, rows)}), DAY, DAY, history)


def test_a_day_is_compared_with_the_day_before_it_in_the_same_run(stage):
    # Six days of 40 and the one of this run's first day, 60, make a mean of 43: 17 are too few.
    staged = stage({DAY: stored_day(DAY, 60), NEXT: stored_day(NEXT, 17)})
    refused(staged, r"2026-03-02: 17 rows(.|\n)*of 43, the mean of 7 days", last=NEXT, history=past(6, 40), **BAND)
