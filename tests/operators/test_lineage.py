"""Lineage both ways: from a version to what made it, from data to the versions that saw them."""

import datetime as dt
import json
import textwrap
from pathlib import Path

import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.registry.__main__ import main
from tests import shops
from tests.ml.test_lake_shops import publish, stored_day

DAYS = shops.days(3)
DAG_FILE = """
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.lineage import LineageReportOperator

    places = dict(mlflow={root!r} + "/mlflow", lake={root!r} + "/lake", reports={root!r} + "/reports")
    with DAG("lineage"):
        LineageReportOperator(task_id="version", name="orders", **places)
        LineageReportOperator(task_id="day", table="orders", day={day!r}, **places)
        LineageReportOperator(task_id="snapshot", table="orders", snapshot={snapshot!r}, **places)
        LineageReportOperator(task_id="nothing", **places)
"""


@pytest.fixture
def made(tmp_path):
    """A lake with two snapshots, of which the second has the first day anew, and versions of two models of both."""
    lake, registry = Lake(str(tmp_path / "lake")), Registry(str(tmp_path / "mlflow"))
    publish(lake, {day: stored_day(day, 30) for day in DAYS})
    old = lake.snapshot_id("orders")
    publish(lake, {DAYS[0]: stored_day(DAYS[0], 20)})
    first, middle, last = (day.isoformat() for day in DAYS)
    tags = {"table": "orders", "days_train": f"{first}/{first}", "days_validate": f"{middle}/{middle}"}
    later = {"days_train": f"{middle}/{middle}", "days_test": f"{last}/{last}", "table": "orders"}
    versions = [
        ("orders", tags | {"snapshot_id": str(old), "sample_id": "s"}),
        ("orders", tags | {"snapshot_id": str(lake.snapshot_id("orders")), "warm_start": "1", "auc": "0.71"}),
        ("orders", later | {"snapshot_id": "77", "warm_start": "2"}),
        ("orders", {"table": "orders"}),  # registered before there were such tags
        ("returns", tags | {"snapshot_id": str(old)}),
        ("returns", {"table": "others", "days_train": f"{first}/{last}"}),
    ]
    with registry._client() as client:
        for number, (name, said) in enumerate(versions):
            if said is versions[0][1] or (name == "returns" and number == 4):
                client.create_registered_model(name)
            said = {f"sml.{key}": value for key, value in said.items()} | {"sml.model_id": f"m{number}"}
            client.create_model_version(name, source="s3://nowhere", run_id="r", tags=said)
    for version in ("1", "2"):
        registry.set_alias(registry.version("orders", version), CHAMPION, f"<b>{version}</b>")
    return tmp_path, old


def test_reports_walk_both_ways(made, dag_project, capsys):
    root, old = made
    text = DAG_FILE.format(root=str(root), day=DAYS[0].isoformat(), snapshot=str(old))
    run = dag_project.run(dag_project.write("lineage.py", textwrap.dedent(text)), "lineage")
    assert run.tasks == {"version": "success", "day": "success", "snapshot": "success", "nothing": "failed"}

    def report(task):
        folder = Path(run.results[task]["uri"])
        return json.loads((folder / "lineage.json").read_text()), (folder / "lineage.html").read_text()

    found, page = report("version")
    assert (found["version"], found["aliases"]) == ("2", [CHAMPION])
    assert [one["version"] for one in found["ancestors"]] == ["1"]
    assert [one["version"] for one in found["descendants"]] == ["3"]
    assert [(m["before"], m["after"]) for m in found["moves"]] == [("1", "2")]
    assert found["content"] == found["content"] | {"state": "same", "rows": 50}
    assert "seed" in found["missing"] and "Not recorded: " in page
    assert "0.71" in page and "&lt;b&gt;2&lt;/b&gt;" in page and "<b>" not in page

    found, page = report("day")
    seen = {(one["name"], one["version"]): one for one in found["versions"]}
    assert set(seen) == {("orders", "1"), ("orders", "2"), ("returns", "1")}
    assert all(one["splits"] == ["train"] for one in seen.values())
    assert found["unknown"] == [{"name": "orders", "version": "4"}]
    contents = {key: (one["content"]["state"], one["content"]["rows"]) for key, one in seen.items()}
    assert contents[("orders", "1")] == contents[("returns", "1")] == ("published again", 30)
    assert contents[("orders", "2")] == ("same", 20)
    [spell] = seen[("orders", "1")]["champion"]
    assert spell["from"] < spell["to"] == seen[("orders", "2")]["champion"][0]["from"]
    assert "What saw" in page and "orders 4" in page

    found, _ = report("snapshot")
    assert {(one["name"], one["version"]) for one in found["versions"]} == {("orders", "1"), ("returns", "1")}
    assert run.results["snapshot"] == run.results["snapshot"] | {"kind": "lineage", "versions": 2}

    capsys.readouterr()
    place = ["--mlflow", str(root / "mlflow")]
    assert main(["lineage", "orders", "--version", "3", "--lake", str(root / "lake"), *place]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["version"] for one in found["ancestors"]] == ["2", "1"] and found["content"]["state"] == "gone"
    page = root / "page.html"
    day = str(DAYS[0] + dt.timedelta(days=1))
    assert main(["lineage", "--table", "orders", "--day", day, "--html", str(page), *place]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(one["version"], *one["splits"]) for one in found["versions"]} == {
        ("1", "validate"), ("2", "validate"), ("3", "train"),
    }  # fmt: skip
    assert page.read_text().startswith("<!doctype html>")
    assert main(["lineage", "orders", "--version", "9", *place]) == 2
    assert main(["lineage", "--table", "or'ders", *place]) == 2
