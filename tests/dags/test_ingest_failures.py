"""What a bad day does to the ingest DAG: the task that fails, what it says, and that readers keep the old rows."""

import datetime as dt
from pathlib import Path

import pytest

from airflow_provider_sml.ml.lake import Lake
from tests import shops
from tests.dags.test_pipeline import DAG_FILE

GOOD, BAD = shops.days(2)


@pytest.fixture(scope="module")
def orders(airflow_db, tmp_path_factory):
    """A project with one good day published."""
    from airflow_provider_sml.testing.plugin import Project

    root = tmp_path_factory.mktemp("failures")
    project = Project(Path(airflow_db) / "dags")
    spec = root / "include" / "pipelines" / "orders.yaml"
    spec.parent.mkdir(parents=True)
    spec.write_text(shops.spec_text(root))
    file = project.write("orders_failures.py", DAG_FILE.format(path=str(spec)))
    shops.write_day(root / "landing", GOOD)

    def ingest(day, first=None):
        conf = {"first_day": str(first or day), "last_day": str(day)}
        return project.run(file, "orders_ingest", conf, day)

    assert ingest(GOOD).state == "success"
    yield root, ingest
    file.unlink()


@pytest.fixture
def lake(orders):
    return Lake(str(orders[0] / "lake"))


def land(orders, change):
    """Land the bad day's file, changed."""
    path = shops.write_day(orders[0] / "landing", BAD)
    path.write_text(change(path.read_text()))


def heavy(text):
    """Every fifth order weighs too much."""
    header, *rows = (line.split(",") for line in text.splitlines())
    for row in rows[::5]:
        row[header.index("weight")] = "99"
    return "".join(",".join(row) + "\n" for row in (header, *rows))


@pytest.mark.parametrize(
    ("change", "failed", "said"),
    [
        (lambda text: text.replace("weight", "wait", 1), "etl", "lacks the columns ['weight']"),
        (lambda text: text.replace("\n7", "\nx"), "publish_lake", "no row fulfils the contract"),
        (lambda text: "", "publish_lake", "no row fulfils the contract"),
        (heavy, "publish_lake", "of 200 rows break the contract"),
        (lambda text: "\n".join(text.splitlines()[:40]) + "\n", "publish_lake", "are not what the days before had"),
    ],
    ids=["missing column", "wrong type", "empty file", "too many bad rows", "too few rows"],
)
def test_a_bad_day_fails_and_nothing_changes(orders, lake, change, failed, said, caplog, capfd):
    if said.startswith("are not"):  # a band of row counts needs a week to compare with
        earlier = shops.days(8, GOOD - dt.timedelta(days=8))
        for day in earlier:
            shops.write_day(orders[0] / "landing", day)
        assert orders[1](earlier[-1], earlier[0]).state == "success"
    before = lake.days("orders"), lake.snapshot_id("orders")
    land(orders, change)
    result = orders[1](BAD)
    assert result.state == "failed"
    assert result.tasks[failed] == "failed"
    assert said in capfd.readouterr().out + caplog.text
    assert (lake.days("orders"), lake.snapshot_id("orders")) == before
    assert result.events == []


def test_better_data_then_gets_through(orders, lake):
    land(orders, lambda text: text)
    assert orders[1](BAD).state == "success"
    assert lake.days("orders")[BAD] == 200
