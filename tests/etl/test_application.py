"""The Spark application: which rows are good, where the others go, and what a look-up may see."""

import datetime as dt
import json

import pytest

from airflow_provider_sml.ml.etl import application
from tests import shops
from tests.etl.conftest import bad, good

DAY = shops.FIRST


def test_good_rows_are_typed_and_have_their_features(etl, landing):
    raw = shops.make_rows(DAY, 50)
    shops.write_day(landing, DAY, raw)
    staged = etl()
    found = good(staged)
    assert len(found) == 50 and not staged.quarantine
    row, source = found[7], raw[7]
    moment = dt.datetime.fromisoformat(source["ordered"]).replace(tzinfo=None)
    assert row["ordered"] == moment
    assert row["hour"] == moment.hour
    assert row["weight"] == source["weight"]
    assert row["gift"] == {"true": True, "false": False, "": None}[source["gift"]]
    assert row["age"] == 2026 - (2000 + int(source["shop"][-2:]))
    assert row["label"] == int(source["minutes_late"] > 10)
    assert row["event_date"] == DAY
    assert row["customer"] == "***"


def test_each_bad_row_is_quarantined_with_its_reasons(etl, landing):
    raw = shops.make_rows(DAY, 30)
    changes = {
        0: {"weight": "heavy"},
        1: {"weight": 51},
        2: {"shop": ""},
        3: {"city": "Paris"},
        4: {"ordered": "2026-03-02T00:00:00Z"},
        5: {"ordered": "yesterday"},
        6: {"weight": "-1", "city": "NA"},
        7: {"weight": "NaN"},
        8: {"order": "1.5"},
        9: {"gift": "perhaps"},
    }
    for number, change in changes.items():
        raw[number].update(change)
    shops.write_day(landing, DAY, raw)
    staged = etl()
    assert len(good(staged)) == 20
    assert sorted(row["reasons"] for row in bad(staged)) == sorted(
        [
            "weight:type", "weight:range", "shop:required", "city:values", "ordered:other_day", "ordered:type",
            "city:required; weight:range", "weight:type", "order:type", "gift:type",
        ]
    )  # fmt: skip
    assert staged.report["reasons"]["weight:type"] == 2
    assert staged.rows_in == 30


def test_quarantine_holds_nothing_personal(etl, landing):
    raw = shops.make_rows(DAY, 5)
    raw[0].update(weight="heavy", customer="Ada Lovelace")
    shops.write_day(landing, DAY, raw)
    staged = etl()
    [row] = bad(staged)
    assert json.loads(row["raw_row"])["weight"] == "heavy"
    for path in staged.folder.rglob("*.*"):
        assert b"Lovelace" not in path.read_bytes()


def test_of_rows_with_one_key_the_latest_is_kept(etl, landing):
    raw = shops.make_rows(DAY, 10)
    early = dict(raw[3], ordered="2026-03-01T00:00:01Z")
    raw[3]["ordered"] = "2026-03-01T23:00:00Z"
    shops.write_day(landing, DAY, [early, *raw, dict(raw[5])])
    staged = etl()
    kept = {row["order"]: row for row in good(staged)}
    assert len(kept) == 10
    assert kept[raw[3]["order"]]["ordered"].hour == 23
    assert [row["reasons"] for row in bad(staged)] == ["key:duplicate"] * 2


def test_a_look_up_never_sees_what_came_later_nor_what_is_too_old(etl, landing):
    times = ["02:30", "08:59", "09:00", "14:00", "14:01"]
    raw = [
        dict(row, city="Rome", ordered=f"2026-03-01T{time}:00Z")
        for row, time in zip(shops.make_rows(DAY, 5), times, strict=True)
    ]
    shops.write_day(landing, DAY, raw)
    (landing / "weather" / f"{DAY}.csv").write_text(
        "city,measured,rain\nRome,2026-03-01T08:00:00Z,7\nRome,2026-03-01T09:00:00Z,999\nOslo,2026-03-01T02:00:00Z,3\n"
    )
    rain = {row["ordered"].strftime("%H:%M"): row["rain"] for row in good(etl())}
    # 8:00 is known from 9:00 on and too old after 13:00; 9:00 is out of range, so it is NULL from 10:00 to 14:00.
    assert rain == {"02:30": None, "08:59": None, "09:00": 7.0, "14:00": None, "14:01": None}


def test_the_evening_before_is_looked_up_across_midnight(etl, landing):
    before = DAY - dt.timedelta(days=1)
    shops.write_day(landing, before)
    raw = [dict(shops.make_rows(DAY, 1)[0], city="Rome", ordered="2026-03-01T00:10:00Z")]
    shops.write_day(landing, DAY, raw)
    [row] = good(etl())
    assert row["rain"] == dict(shops.rain_of(before, False))[dt.datetime(2026, 2, 28, 23)]


def test_a_range_gives_what_its_days_give_one_by_one(etl, landing):
    for day in shops.days(3):
        shops.write_day(landing, day, shops.make_rows(day, 40))
    whole = good(etl(DAY, shops.days(3)[-1]))
    single = [row for day in shops.days(3) for row in good(etl(day))]
    assert whole == sorted(single, key=lambda row: row["order"])


def test_another_order_of_columns_and_further_columns_are_read_right(etl, landing):
    raw = shops.make_rows(DAY, 10)
    path = shops.write_day(landing, DAY, raw)
    straight = good(etl())
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(["x", *reversed(line)]) for line in lines) + "\n")
    assert good(etl()) == straight


def test_a_missing_column_is_refused_by_name(etl, landing):
    path = shops.write_day(landing, DAY, shops.make_rows(DAY, 3))
    path.write_text(path.read_text().replace("weight", "wait", 1))
    with pytest.raises(application.PlanError, match=r"2026-03-01\.csv lacks the columns \['weight'\]"):
        etl()


def test_a_missing_file_is_refused(etl, landing):
    shops.write_day(landing, DAY)
    with pytest.raises(application.PlanError, match=r"1 of 2 files are not there, the first is .*2026-03-02\.csv"):
        etl(DAY, DAY + dt.timedelta(days=1))


@pytest.mark.parametrize("text", ["", ",".join(shops.HEADER) + "\n"], ids=["no bytes", "header only"])
def test_an_empty_file_gives_no_rows(etl, landing, text):
    path = shops.write_day(landing, DAY)
    path.write_text(text)
    staged = etl()
    assert staged.rows_in == 0 and not staged.data


def test_a_row_with_too_many_values_is_malformed(etl, landing):
    path = shops.write_day(landing, DAY, shops.make_rows(DAY, 3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2] + ",surplus", lines[3]]) + "\n")
    staged = etl()
    assert len(good(staged)) == 2
    assert [row["reasons"] for row in bad(staged)] == ["row:malformed"]


def test_json_lines_give_the_same_rows_as_csv(etl, landing):
    raw = shops.make_rows(DAY, 20)
    path = shops.write_day(landing, DAY, raw)
    from_csv = good(etl())
    path.with_suffix(".json").write_text("\n".join(json.dumps(row) for row in raw))
    source = shops.make_spec(landing.parent).source.model_dump(mode="json")
    from_json = good(etl(source=source | {"format": "json", "path": "{landing}/orders/{date}.json"}))
    assert from_json == from_csv


def test_hashed_values_are_equal_for_equal_values_and_need_their_key(etl, landing, monkeypatch):
    import hashlib
    import hmac

    raw = shops.make_rows(DAY, 4)
    for row, customer in zip(raw, ["ada", "bob", "ada", ""], strict=True):
        row["customer"] = customer
    shops.write_day(landing, DAY, raw)
    contract = shops.make_spec(landing.parent).contract.model_dump(mode="json")
    contract["columns"]["customer"]["privacy"] = {"hash": "customer_key"}
    monkeypatch.setenv("SML_PRIVACY_KEYS", json.dumps({"customer_key": "0123456789abcdef"}))
    found = [row["customer"] for row in good(etl(contract=contract))]
    expected = hmac.new(b"0123456789abcdef", b"ada", hashlib.sha256).hexdigest()
    assert found[0] == found[2] == expected
    assert found[1] != expected and found[3] is None
    monkeypatch.delenv("SML_PRIVACY_KEYS")
    with pytest.raises(application.PlanError, match="no key was given for the connection customer_key"):
        etl(contract=contract)
