"""What becomes of a row: repaired, private, late, one of many with its key; and which file it lies in."""

import datetime as dt
import json

import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml.etl.application import place_heavy, plan_files
from tests import shops
from tests.etl.conftest import bad, good, section

DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)


def test_rows_are_repaired_only_as_the_contract_says_and_counted(etl, landing):
    raw = shops.make_rows(DAY, 10)
    for row in raw:
        row.update(city="Rome", weight=1.0, gift="true")
    changes = {
        0: {"city": " rome "},
        1: {"city": "ROMA"},
        2: {"city": "Paris"},  # no repair makes it one of the values
        3: {"weight": 51},
        4: {"weight": -3},
        5: {"gift": ""},
        6: {"weight": "heavy"},  # a wrong type is never repaired
        7: {"shop": " shop-07 "},  # nothing is said about this column
    }
    for number, change in changes.items():
        raw[number].update(change)
    shops.write_day(landing, DAY, raw)
    city = {"trim": True, "case": "lower", "map": {"rome": "Rome", "roma": "Rome", "it's": "Oslo"}}
    contract = section(
        landing.parent, "contract",
        columns={
            "city": {"repair": city}, "weight": {"repair": {"clip": True}}, "gift": {"repair": {"default": False}}
        },
    )  # fmt: skip
    staged = etl(contract=contract)
    found = {row["order"] % 1000: row for row in good(staged)}
    assert sorted(found) == [0, 1, 3, 4, 5, 7, 8, 9]
    assert {row["city"] for row in found.values()} == {"Rome"}
    assert [found[n]["weight"] for n in (3, 4, 5)] == [50.0, 0.0, 1.0]
    assert found[5]["gift"] is False and found[7]["shop"] == " shop-07 "
    assert sorted(row["reasons"] for row in bad(staged)) == ["city:values", "weight:type"]
    assert json.loads(next(row for row in bad(staged) if row["reasons"] == "city:values")["raw_row"])["city"] == "Paris"
    # "Rome" itself is lowered and mapped back, which two steps of every good row say.
    assert staged.report["repairs"] == {
        "city:trim": 1, "city:lower": 7, "city:map": 8, "weight:clip": 2, "gift:default": 1
    }  # fmt: skip
    assert staged.report["days"][str(DAY)]["rows_repaired"] == 8


def test_every_reason_is_given(etl, landing):
    [row] = shops.make_rows(DAY, 1)
    row.update(shop="", city="Paris", weight="99", gift="perhaps", ordered="2026-03-05T00:00:00Z")
    shops.write_day(landing, DAY, [row])
    staged = etl()
    assert bad(staged)[0]["reasons"].split("; ") == [
        "ordered:other_day", "shop:required", "city:values", "weight:range", "gift:type"
    ] or set(bad(staged)[0]["reasons"].split("; ")) == {
        "ordered:other_day", "shop:required", "city:values", "weight:range", "gift:type"
    }  # fmt: skip
    assert set(staged.report["reasons"].values()) == {1}


def test_private_values_are_coarsened_and_lie_nowhere_in_plain(etl, landing, monkeypatch):
    monkeypatch.setenv("SML_PRIVACY_KEYS", json.dumps({"shop_key": "0123456789abcdef"}))
    raw = shops.make_rows(DAY, 6)
    for row in raw:
        row.update(customer="Lovelace, Ada", shop="secret-shop")
    raw[1]["weight"] = "heavy"
    path = shops.write_day(landing, DAY, raw)
    lines = path.read_text().splitlines()
    header = lines[0] + ",born,visit"
    lines = [f"{line},1815-12-10,2026-02-17T10:11:12Z" for line in lines[1:]]
    lines.append("77777," + lines[3])  # moved by one: a name stands where a flag should be
    path.write_text("\n".join([header, *lines]) + "\n")
    contract = section(
        landing.parent, "contract",
        columns={
            "customer": {"privacy": {"prefix": 3}},
            "shop": {"privacy": {"hash": "shop_key"}},
            "born": {"type": "date", "privacy": {"generalise": "year"}},
            "visit": {"type": "timestamp", "privacy": {"generalise": "month"}},
        },
    )  # fmt: skip
    contract["key"] = ["order", "shop"]
    staged = etl(contract=contract)
    found = good(staged)
    assert len(found) == 5
    assert {row["customer"] for row in found} == {"Lov"}
    assert {row["born"] for row in found} == {dt.date(1815, 1, 1)}
    assert {row["visit"] for row in found} == {dt.datetime(2026, 2, 1)}
    assert len(found[0]["shop"]) == 64
    assert list(staged.report["keys"]) == ["shop_key"] and len(staged.report["keys"]["shop_key"]) == 12
    assert sorted(row["reasons"].split("; ")[0] for row in bad(staged)) == ["row:malformed", "weight:type"]
    for file in staged.folder.rglob("*.parquet"):
        text = str(pq.read_table(file, partitioning=None).to_pylist())
        assert "Lovelace" not in text and "secret-shop" not in text and "1815-12" not in text
    assert "Lovelace" not in (staged.folder / "report.json").read_text()


def test_late_rows_go_to_the_day_of_their_event(etl, landing):
    contract = section(landing.parent, "contract", late="republish", late_up_to="2 days")
    before = DAY - dt.timedelta(days=1)
    for day in (before - dt.timedelta(days=3), before, DAY, NEXT):
        shops.write_day(landing, day, shops.make_rows(day, 10))
    late = shops.make_rows(before, 13)[10:]
    too_late = shops.make_rows(before - dt.timedelta(days=3), 12)[10:]
    early = shops.make_rows(NEXT, 11)[10:]
    corrected = dict(shops.make_rows(before, 10)[4], ordered=f"{before}T23:59:59Z", weight=7.5)
    shops.write_day(landing, DAY, [*shops.make_rows(DAY, 10), *late, *too_late, *early, corrected])
    told = etl(DAY, contract=contract).report["days"]
    assert told[str(DAY)] | {"newest": None} == {
        "rows_in": 17, "rows_good": 10, "rows_bad": 3, "rows_repaired": 0, "rows_late": 4, "newest": None
    }  # fmt: skip
    assert told[str(before)]["rows_good"] == 4 and told[str(before)]["rows_in"] == 0
    # Made again, a day finds its late rows in the files that landed after it; of two with one key the latest wins.
    again = etl(before, contract=contract)
    assert again.report["days"][str(before)]["rows_good"] == 13
    assert again.report["reasons"] == {"key:duplicate": 1}
    assert next(row for row in good(again) if row["order"] == corrected["order"])["weight"] == 7.5
    whole = etl(before, DAY, contract=contract)
    assert [row for row in good(whole) if row["event_date"] == before] == good(again)
    assert {row["ordered"].date() for row in good(whole)} == {before, DAY}
    refused = etl(DAY).report
    assert refused["reasons"] == {"ordered:other_day": 7} and list(refused["days"]) == [str(DAY)]


def test_a_key_is_looked_for_within_a_day_or_the_whole_run(etl, landing):
    shops.write_day(landing, DAY, shops.make_rows(DAY, 5))
    shops.write_day(landing, NEXT, [dict(row, order=old["order"]) for row, old in zip(
        shops.make_rows(NEXT, 5), shops.make_rows(DAY, 5), strict=True)])  # fmt: skip
    assert len(good(etl(DAY, NEXT))) == 10
    staged = etl(DAY, NEXT, contract=section(landing.parent, "contract", unique="run"))
    assert {row["event_date"] for row in good(staged)} == {NEXT} and len(good(staged)) == 5
    assert staged.report["reasons"] == {"key:duplicate": 5}


def test_a_large_day_is_split_into_even_files_though_one_key_has_half_of_its_rows(etl, landing):
    rows = shops.make_rows(DAY, 4000)
    for number, row in enumerate(rows):
        row["shop"] = "shop-00" if number % 2 else f"shop {number}"
    shops.write_day(landing, DAY, rows)
    contract = section(landing.parent, "contract", shard=["shop"])
    small = {"file_bytes": 80_000, "bytes_per_row": 200.0}
    staged = etl(contract=contract, plan=small)
    assert staged.report["plan"]["shards"] == {str(DAY): 10} and staged.report["plan"]["salted_keys"] == 1
    assert staged.report["written"]["files"] == len(staged.data) == 10
    files = [pq.read_table(path, partitioning=None).column("shop").to_pylist() for path in staged.data]
    assert sum(len(shops_) for shops_ in files) == 4000
    assert max(len(shops_) for shops_ in files) < 1.25 * 400
    others = [shop for shops_ in files for shop in set(shops_) - {"shop-00"}]
    assert len(others) == len(set(others)), "rows of an ordinary key lie in one file"
    unsalted = etl(plan=small)  # the key has no skew
    assert unsalted.report["plan"]["salted_keys"] == 0 and len(unsalted.data) == 10


@pytest.mark.parametrize(
    ("rows", "per_row", "expected"),
    [(0, 100.0, 1), (1, 1e12, 1), (1_000_000, 100.0, 1), (10_000_000, 100.0, 4), (3, 1e9, 3)],
)
def test_the_number_of_files(rows, per_row, expected):
    assert plan_files({"day": rows}, per_row, 256 * 2**20) == {"day": max(1, expected)}


def test_heavy_keys_fill_the_emptiest_files():
    places = place_heavy({"a": 500, "b": 100}, rows=1000, files=10)
    load = [40.0] * 10
    for key, count in (("a", 500), ("b", 100)):
        for file in places[key]:
            load[file] += count / len(places[key])
    assert max(load) <= 1.25 * 100 and sum(load) == pytest.approx(1000)
    assert place_heavy({}, 10, 2) == {}
