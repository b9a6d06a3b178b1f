"""``init`` writes a first spec that passes its check and whose DAGs run; what it cannot know it asks for."""

import csv
import datetime as dt
import random

import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.infer import SHAPES, contract_names, profile
from airflow_provider_sml.pipelines.__main__ import main
from airflow_provider_sml.pipelines.init import init
from airflow_provider_sml.pipelines.loader import load_spec

HEADER = ["CustomerID", "Seen On", "Plan", "Visits", "Spend", "E-Mail", "Zip", "Left"]


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def subscriptions(tmp_path):
    """Thirty days of twenty customers, with dates only and names that no contract takes."""
    chance, rows = random.Random(3), []
    for day in range(30):
        for customer in range(20):
            visits = chance.randrange(20)
            spend = "" if chance.random() < 0.1 else f"{chance.random() * 90:.2f}"
            rows.append(
                [1000 + customer, dt.date(2026, 1, 1) + dt.timedelta(days=day), chance.choice(["free", "plus", "team"]),
                 visits, spend, f"u{customer}@example.com", f"{chance.randrange(2000):05d}", int(visits < 8)]
            )  # fmt: skip
    return write(tmp_path / "subscriptions.csv", HEADER, rows)


def test_the_contract_is_inferred(subscriptions, tmp_path):
    created = init("subs", subscriptions, root=tmp_path, land=True)
    spec = load_spec(created.spec)
    columns = spec.contract.columns
    assert {name: column.type for name, column in columns.items()} == {
        "customer_id": "int", "seen_on": "timestamp", "plan": "string", "visits": "int", "spend": "double",
        "e_mail": "string", "zip": "string", "left": "int",
    }  # fmt: skip
    assert columns["plan"].values == ["free", "plus", "team"]
    assert columns["visits"].range == (0, 50)
    assert columns["visits"].required and not columns["spend"].required
    assert columns["left"].known == "after"
    assert columns["e_mail"].values is None, "people's addresses have no place in a spec"
    assert spec.contract.key == ["customer_id", "seen_on"]
    assert spec.contract.event_time == "seen_on"
    assert spec.label == "left"
    assert set(spec.features) == {"plan", "visits", "spend", "weekday"}
    text = created.spec.read_text()
    assert "key: [customer_id, seen_on]  # guess" in text and 'label: "left"  # guess' in text
    assert "personal?" in next(line for line in text.splitlines() if "e_mail:" in line)


def test_the_command_writes_a_spec_that_passes_its_check(subscriptions, tmp_path, monkeypatch, capsys):
    """That its DAGs run is shown by the tutorial: tests/docs/test_code_blocks.py."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "subs", "--from", str(subscriptions), "--label", "visits < 8", "--land"]) == 0
    assert main(["check", "include/pipelines/subs.yaml"]) == 0
    told = capsys.readouterr().out
    assert "subs: 8 columns" in told
    assert "'CustomerID' is customer_id" in told
    assert "first day 2026-01-01 and last day 2026-01-30" in told
    assert "visits" not in load_spec("include/pipelines/subs.yaml").features, "the label is made from it"


def test_the_daily_files_hold_every_row_under_the_names_of_the_contract(subscriptions, tmp_path):
    init("subs", subscriptions, root=tmp_path, land=True)
    landed = sorted((tmp_path / "include" / "data" / "landing" / "subs").iterdir())
    assert [path.name for path in landed][:2] == ["2026-01-01.csv", "2026-01-02.csv"]
    rows = [row for path in landed for row in csv.DictReader(path.open())]
    given = list(csv.DictReader(subscriptions.open()))
    assert len(rows) == len(given) == 600
    assert [row["visits"] for row in rows] == [row["Visits"] for row in given]
    assert rows[0]["seen_on"] == "2026-01-01T00:00:00"
    assert rows[0]["zip"] == given[0]["Zip"]


def test_moments_of_other_zones_land_on_their_utc_day(tmp_path):
    rows = [[n, f"2026-03-01T23:30:00-0{n % 2}:00", n % 2, n * 2] for n in range(1, 9)]
    source = write(tmp_path / "zones.csv", ["id", "at", "y", "x"], rows)
    init("zones", source, root=tmp_path, land=True)
    landing = tmp_path / "include" / "data" / "landing" / "zones"
    assert {path.stem: len(path.read_text().splitlines()) - 1 for path in landing.iterdir()} == {
        "2026-03-01": 4,
        "2026-03-02": 4,
    }


def test_what_cannot_be_ingested_as_it_is_is_refused_without_land(subscriptions, tmp_path):
    with pytest.raises(ConfigurationError, match=r"'CustomerID'.*seen_on is a date without a time"):
        init("subs", subscriptions, root=tmp_path)
    assert not (tmp_path / "include").exists()


def test_nothing_is_written_over(subscriptions, tmp_path):
    created = init("subs", subscriptions, root=tmp_path, land=True)
    created.spec.write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        init("subs", subscriptions, root=tmp_path, land=True)
    assert created.spec.read_text() == "mine"
    init("subs", subscriptions, root=tmp_path, land=True, force=True)
    assert load_spec(created.spec).name == "subs"


def test_each_model_gets_a_port_of_its_own(subscriptions, tmp_path):
    ports = [load_spec(init(name, subscriptions, root=tmp_path, land=True).spec).deploy.port for name in ("one", "two")]
    assert ports == [8500, 8501]


BASE = [["a", "2026-01-01T10:00", 1, 0], ["b", "2026-01-01T11:00", 2, 1], ["c", "2026-01-02T10:00", 3, 1]]


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        (["id", "at", "x", "y"], [["a", "soon", 1, 0], ["b", "later", 2, 1]], {}, "has no event time"),
        (["id", "at", "x", "y"], [[*row[:3], 7 + n] for n, row in enumerate(BASE)], {}, "which column is predicted"),
        (["id", "at", "x", "y"], BASE, {"label": "z > 1"}, "--label"),
        (["id", "at", "x", "y"], BASE, {"label": "x"}, "a column of 0 and 1"),
        (["id", "at", "x", "y"], BASE, {"event_time": "x"}, "--event-time names x"),
        (["id", "at", "x", "y"], BASE, {"key": ["nobody"]}, "--key names nobody"),
        (["id", "at", "x", "y"], [*BASE, *BASE], {}, "no few columns"),
        (["id", "at", "note", "y"], [[r[0], r[1], f"text {n}", r[3]] for n, r in enumerate(BASE)] + [
            [f"k{n}", f"2026-01-03T10:{n:02d}", f"words {n}", 1] for n in range(40)
        ], {}, None),
        (["id", "at", "x", "x"], BASE, {}, "names x twice"),
        (["id", "at", "x", "y"], [*BASE, ["d"]], {}, "row 5 has 1 values, the header has 4"),
        (["id", "at", "x", "y"], [], {}, "no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_inferred_is_asked_for(tmp_path, header, rows, options, message):
    source = write(tmp_path / "data.csv", header, rows)
    if message is None:  # free text is kept and is no feature
        spec = load_spec(init("data", source, root=tmp_path, **options).spec)
        assert set(spec.features) == {"hour", "weekday"}
        return
    with pytest.raises(ConfigurationError, match=message):
        init("data", source, root=tmp_path, **options)
    assert not (tmp_path / "include").exists()


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path, capsys):
    assert main(["init", "data", "--from", str(tmp_path / "no.csv"), "--root", str(tmp_path)]) == 1
    assert "cannot be used" in capsys.readouterr().err
    (tmp_path / "binary.csv").write_bytes(b"id,at\n\xff\xfe\x00,1\n")
    assert main(["init", "data", "--from", str(tmp_path / "binary.csv"), "--root", str(tmp_path)]) == 1
    assert "UTF-8" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="no name of a model"):
        init("My Model", tmp_path / "no.csv", root=tmp_path)


def test_types_are_those_that_the_etl_reads(tmp_path):
    values = {
        "int": ["1", "-2", "+3"], "double": ["1", "2.5", "1e3"], "boolean": ["true", "False", "TRUE"],
        "date": ["2026-01-01", "2026-01-02", "2026-01-03"], "string": ["007", "010", "1"],
        "timestamp": ["2026-01-01T10:00", "2026-01-01 10:00:00.5Z", "2026-01-01T10:00+02:00"],
    }  # fmt: skip
    source = write(tmp_path / "types.csv", list(values), zip(*values.values(), strict=True))
    assert {column.source: column.type for column in profile(source).columns} == {name: name for name in values}


def test_the_shapes_are_those_of_the_etl():
    from airflow_provider_sml.ml.etl.plan import SHAPES as theirs

    assert {kind: pattern.strip("^$") for kind, pattern in theirs.items()} == {
        kind: pattern.pattern for kind, pattern in SHAPES.items()
    }


def test_names_become_those_of_a_contract():
    header = ["CustomerID", "HTMLParser", "  Seen On ", "score", "end", "2fa", "Größe", "", "seen_on"]
    names = ["customer_id", "html_parser", "seen_on", "score_given", "end_given", "c_2fa", "gr_e", "", "seen_on_2"]
    assert contract_names(header) == names


def test_nulls_are_known_by_their_texts(tmp_path):
    rows = [[*row[:2], x, row[3]] for row, x in zip(BASE, ["NULL", "", "5"], strict=True)]
    found = profile(write(tmp_path / "nulls.csv", ["id", "at", "x", "y"], rows))
    assert found.null_values == ["", "NULL"]
    assert found.column("x").type == "int" and found.column("x").nulls == 2
