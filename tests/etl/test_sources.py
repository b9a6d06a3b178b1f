"""What the application reads: nested and packed files, many of them, and schemas that grow."""

import datetime as dt
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml.etl import application
from tests import shops
from tests.etl.conftest import bad, good, section

DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)


def test_many_packed_files_of_nested_lines_give_the_rows_of_one_csv_a_day(etl, landing):
    plain = []
    for day in (DAY, NEXT):
        raw = shops.make_rows(day, 30)
        shops.write_day(landing, day, raw)
        folder = landing / "events" / f"date={day}"
        folder.mkdir(parents=True)
        (folder / "_SUCCESS").touch()
        for part in range(5):
            lines = [
                json.dumps(
                    {key: row[key] for key in ("order", "ordered", "shop", "weight", "gift", "minutes_late")}
                    | {"payload": {"place": {"city": row["city"]}, "who": row["customer"]}}
                )
                for row in raw[part::5]
            ]
            lines += ['{"order": 1, "payload": [broken'] if (day, part) == (DAY, 2) else []
            with gzip.open(folder / f"{part}.json.gz", "wt") as file:
                file.write("\n".join(lines) + "\n")
        plain.append(good(etl(day)))
    nested = etl(
        DAY,
        NEXT,
        source=section(landing.parent, "source", format="json", path="{landing}/events/date={date}/*.json.gz"),
        contract=section(
            landing.parent, "contract",
            columns={"city": {"from": "payload.place.city"}, "customer": {"from": "payload.who"}},
        ),
    )  # fmt: skip
    assert good(nested) == plain[0] + plain[1]
    [row] = bad(nested)
    # What a broken line holds may be private, so nothing of it is shown.
    assert "row:malformed" in row["reasons"] and row["raw_row"] == "{}"
    assert row["file"].endswith("2.json.gz") and nested.report["days"][str(DAY)]["rows_bad"] == 1


def test_a_folder_of_packed_csv_files(etl, landing):
    raw = shops.make_rows(DAY, 20)
    path = shops.write_day(landing, DAY, raw)
    straight = good(etl())
    header, *lines = path.read_text().splitlines()
    folder = landing / "parts" / str(DAY)
    folder.mkdir(parents=True)
    for part in range(3):
        with gzip.open(folder / f"{part}.csv.gz", "wt") as file:
            file.write("\n".join([header, *lines[part::3]]) + "\n")
    staged = etl(source=section(landing.parent, "source", path="{landing}/parts/{date}/"))
    assert good(staged) == straight


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("{landing}/sent é/{date} of a shop.csv", ["{date} of a shop.csv"]),
        ("{landing}/sent/shop-{date}*.csv", ["shop-{date}.csv", "shop-{date}-late.csv"]),
        ("{landing}/sent/2020-01-01/*-{date}.csv", ["a-{date}.csv", "long-name-{date}.csv"]),
    ],
)
def test_the_day_of_a_file_is_found_wherever_it_stands_in_its_name(etl, landing, path, names):
    straight = []
    for day in (DAY, NEXT):
        landed = shops.write_day(landing, day, shops.make_rows(day, 20))
        straight += good(etl(day))
        header, *lines = landed.read_text().splitlines()
        for part, name in enumerate(names):
            place = (landing / path.removeprefix("{landing}/")).parent / name.format(date=day)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("\n".join([header, *lines[part :: len(names)]]) + "\n")
    staged = etl(DAY, NEXT, source=section(landing.parent, "source", path=path))
    assert good(staged) == straight and not bad(staged)
    assert [staged.report["days"][str(day)]["rows_in"] for day in (DAY, NEXT)] == [20, 20]


def columns_of(rows, **types):
    """Rows as a typed table."""
    moments = [dt.datetime.fromisoformat(row["ordered"]).replace(tzinfo=None) for row in rows]
    gifts = [{"true": True, "false": False, "": None}[row["gift"]] for row in rows]
    table = pa.Table.from_pylist([row | {"ordered": m, "gift": g} for row, m, g in zip(rows, moments, gifts)])  # noqa: B905
    for name, kind in types.items():
        table = table.set_column(table.schema.names.index(name), name, table.column(name).cast(kind))
    return table


def test_parquet_that_widens_and_grows(etl, landing):
    source = section(landing.parent, "source", format="parquet", path="{landing}/typed/{date}.parquet")
    contract = section(
        landing.parent, "contract", columns={"note": {"type": "string", "optional": True, "from": "extra.note"}}
    )
    (landing / "typed").mkdir(parents=True)
    expected = []
    for day, kind in ((DAY, pa.int32()), (NEXT, pa.int64())):
        raw = shops.make_rows(day, 20)
        shops.write_day(landing, day, raw)
        expected += good(etl(day))
        table = columns_of(raw, order=kind)
        if day == NEXT:
            notes = [{"note": f"note {row['order']}"} for row in raw]
            table = table.append_column("extra", pa.array(notes)).append_column("colour", pa.array(["red"] * 20))
        pq.write_table(table, landing / "typed" / f"{day}.parquet")
    staged = etl(DAY, NEXT, source=source, contract=contract)
    found = good(staged)
    assert [row["note"] for row in found] == [None] * 20 + [f"note {row['order']}" for row in expected[20:]]
    assert [{k: v for k, v in row.items() if k != "note"} for row in found] == expected
    assert staged.report["lacking"] == ["extra.note"] and staged.report["unlisted"] == ["colour"]


def test_parquet_of_another_meaning_is_refused_and_fractions_are_no_whole_numbers(etl, landing):
    source = section(landing.parent, "source", format="parquet", path="{landing}/typed/{date}.parquet")
    shops.write_day(landing, DAY)
    (landing / "typed").mkdir()
    path = landing / "typed" / f"{DAY}.parquet"
    table = columns_of(shops.make_rows(DAY, 4))
    pq.write_table(
        table.set_column(table.schema.names.index("gift"), "gift", pa.array([0, 1, 2, None], pa.int64())), path
    )
    with pytest.raises(application.PlanError, match=r"gift is bigint, which cannot become boolean"):
        etl(source=source)
    orders = pa.array([1.0, 2.5, 3.0, None], pa.float64())
    pq.write_table(table.set_column(table.schema.names.index("order"), "order", orders), path)
    staged = etl(source=source)
    assert [row["order"] for row in good(staged)] == [1, 3]
    assert sorted(row["reasons"] for row in bad(staged)) == ["order:required", "order:type"]
