"""Publishing what a run brought: late rows, a contract that changes, and no private value in the table's metadata."""

import datetime as dt
import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.refs import SnapshotRef
from tests import shops
from tests.ml.test_lake_shops import stored_day

DAY = shops.FIRST
NEXT = DAY + dt.timedelta(days=1)
AFTER = NEXT + dt.timedelta(days=1)
DAG_FILE = """
import json
from pathlib import Path
from airflow.sdk import DAG, Asset
from airflow_provider_sml.operators.etl import PublishPartitionsOperator
from airflow_provider_sml.pipelines import load_spec

with DAG("orders_publish", schedule=None) as dag:
    given = json.loads(Path({given!r}).read_text())
    PublishPartitionsOperator(
        task_id="publish", staged=given["staged"], dataset=load_spec({spec!r}).dataset,
        outlets=[Asset("x-sml://orders/published")],
    )
"""


@pytest.fixture
def publish(dag_project, tmp_path):
    """Stages tables by day as a run of one day would, and runs the publishing task."""
    spec = tmp_path / "orders.yaml"
    given = tmp_path / "given.json"
    text = shops.spec_text(tmp_path).replace(
        "limits: {bad_rows: 10%, rows: {within: 60%, of: 14 days}, fresh: 12h}", ""
    )
    text = text.replace("event_time: ordered", "event_time: ordered\n  late: republish")
    text = text.replace("customer: {type: string, privacy: mask}", "customer: {type: string, privacy: {prefix: 8}}")
    lake = Lake(str(tmp_path / "lake"))

    def run(day, tables, change=lambda text: text):
        spec.write_text(change(text))
        folder = lake.stage("orders", "run")
        days = {}
        for each, table in tables.items():
            place = folder / "data" / f"_p={each}" / "_s=0"
            place.mkdir(parents=True)
            pq.write_table(table, place / "part-0.parquet")
            newest = max(table.column("ordered").to_pylist()).isoformat()
            days[str(each)] = {
                "rows_in": table.num_rows if each == day else 0, "rows_good": table.num_rows, "newest": newest
            }  # fmt: skip
        days[str(day)]["rows_in"] = sum(told["rows_good"] for told in days.values())
        report = {"days": {d: {**told, "rows_bad": 0} for d, told in days.items()}, "reasons": {}, "joins": {}}
        (folder / "report.json").write_text(json.dumps(report))
        rows = days[str(day)]["rows_in"]
        staged = {
            "kind": "staged", "lake": str(tmp_path / "lake"), "table": "orders", "uri": str(folder),
            "first": str(day), "last": str(day), "rows_in": rows, "rows_good": rows, "rows_bad": 0,
        }  # fmt: skip
        given.write_text(json.dumps({"staged": staged}))
        file = dag_project.write("orders_publish.py", DAG_FILE.format(given=str(given), spec=str(spec)))
        return dag_project.run(file, "orders_publish", {}, day)

    run.lake = lake
    return run


def rows_of(lake, day):
    files = [file.path for file in lake.files("orders", None, day, day)]
    query = 'SELECT "order", ordered, weight FROM read_parquet(?, hive_partitioning=false) ORDER BY 1'
    return duckdb.execute(query, [files]).fetchall()


def set_values(table, column, values):
    where = table.schema.get_field_index(column)
    return table.set_column(where, column, pa.array(values, table.schema.field(column).type))


def test_late_rows_are_merged_and_their_day_is_told_of(publish, caplog):
    yesterday = stored_day(DAY, 20)
    assert publish(DAY, {DAY: yesterday.slice(0, 15)}).state == "success"
    late = yesterday.slice(12, 8)  # three of them are there already
    late = set_values(late, "weight", [9.25] * 8)
    never_published = stored_day(DAY - dt.timedelta(days=2), 3)
    tables = {NEXT: stored_day(NEXT, 10), DAY: late, DAY - dt.timedelta(days=2): never_published}
    result = publish(NEXT, tables)
    assert result.state == "success"
    found = rows_of(publish.lake, DAY)
    assert [row[0] for row in found] == sorted(yesterday.column("order").to_pylist())
    assert [row[2] for row in found][12:] == [9.25] * 8, "of equally late rows the one that landed last is kept"
    assert publish.lake.days("orders") == {DAY: 20, NEXT: 10}, "a day that was never published stays closed"
    [(_, extra)] = result.events
    assert (extra["first"], extra["last"], extra["late_days"]) == (str(DAY), str(NEXT), [str(DAY)])
    ref = SnapshotRef.load(result.results["publish"])
    assert (ref.first, ref.last, ref.rows, ref.total_rows) == (str(DAY), str(NEXT), 30, 30)
    # A second try changes nothing.
    assert publish(NEXT, tables).state == "success"
    assert rows_of(publish.lake, DAY) == found


def test_no_bounds_of_private_columns_are_kept(publish):
    assert publish(DAY, {DAY: stored_day(DAY, 20)}).state == "success"
    table = publish.lake.load("orders")
    fields = {field.name: field.field_id for field in table.schema().fields}
    for task in table.scan().plan_files():
        for bounds in (task.file.lower_bounds, task.file.upper_bounds):
            assert fields["customer"] not in bounds and fields["weight"] in bounds


def test_a_changed_contract_is_told_or_refused(publish, capfd, caplog):
    assert publish(DAY, {DAY: stored_day(DAY, 20)}).state == "success"
    wider = publish(NEXT, {NEXT: stored_day(NEXT, 20)}, lambda text: text.replace("range: [0, 50]", "range: [0, 60]"))
    assert wider.state == "success"
    before = publish.lake.snapshot_id("orders")
    other = lambda text: text.replace("hour: hour(ordered)", "hour: hour(ordered) + 1")  # noqa: E731
    assert publish(AFTER, {AFTER: stored_day(AFTER, 20)}, other).state == "failed"
    said = capfd.readouterr().out + caplog.text
    assert "features.hour was hour(ordered) and is hour(ordered) + 1" in said
    assert "column weight: range was [0.0, 50.0] and is [0.0, 60.0]" in said
    assert publish.lake.snapshot_id("orders") == before
