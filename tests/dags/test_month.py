"""A month of real flights from landed files through a lake on S3 to BigQuery, by the demonstration's own spec.

Spark writes by the real S3A connector to versitygw (moto where Go is missing); the warehouse is BigQuery's emulator.
"""

import csv
import datetime as dt
import json
import shutil
from pathlib import Path

import pytest
import yaml

from airflow_provider_sml.cloud import jars
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.warehouse import LakeRows
from airflow_provider_sml.ml.warehouse.checksum import read_tally, tally_sql
from airflow_provider_sml.pipelines import load_spec
from airflow_provider_sml.refs import WarehouseRef
from airflow_provider_sml.testing.bigquery import PROJECT, bigquery_client
from include.demo.landing import lay_down

SPEC = Path(__file__).resolve().parents[2] / "include" / "pipelines" / "flights.yaml"
FIRST, LAST = dt.date(2013, 3, 1), dt.date(2013, 3, 31)
CHANGED = dt.date(2013, 3, 14)
DATASET = "month_of_flights"
DAG_FILE = """
from airflow_provider_sml.pipelines import build_dags

build_dags({path!r}, into=globals(), profile="month", default_args={{"retries": 0, "spark_conf": {conf!r}}})
"""
AGAIN = """
from airflow.sdk import DAG
from airflow_provider_sml.operators.warehouse import PublishWarehouseOperator
from airflow_provider_sml.pipelines import load_spec

spec = load_spec({path!r}, "month")
with DAG("flights_again", schedule=None):
    PublishWarehouseOperator(
        task_id="publish", snapshot={snapshot!r}, dataset=spec.dataset, warehouse=spec.places.warehouse
    )
"""
#: Facts of each day that do not come from the checksum's own SQL; texts, so that both sides print them alike.
FACTS = (
    "SELECT CAST(event_date AS {text}), count(*), count(DISTINCT tailnum), sum(distance), sum(flight), "
    "sum(CAST(arr_delay AS {whole})), count(weather__wind_speed), count(planes__year) "
    "FROM {source} GROUP BY 1 ORDER BY 1"
)


class Month:
    """The flights' pipeline on S3 and BigQuery, and what lies in both."""

    def __init__(self, project, root, jars_of_s3):
        self.project = project
        self.landing = root / "landing"
        lay_down(self.landing)
        profile = {
            "places": {
                "landing": str(self.landing), "lake": "month_lake",
                "warehouse": f"bigquery://month_google@{PROJECT}/{DATASET}",
            },
            "warehouse": {"cluster_by": ["carrier", "origin"], "max_bytes": 10**9},
        }  # fmt: skip
        path = root / "include" / "pipelines" / "flights.yaml"
        path.parent.mkdir(parents=True)
        shutil.copyfile(SPEC, path)
        path.with_name("flights.month.yaml").write_text(yaml.safe_dump(profile))
        self.spec = str(path)
        self.columns = load_spec(path).dataset.table_columns
        conf = {"spark.jars": jars_of_s3}
        self.file = project.write("flights_month.py", DAG_FILE.format(path=str(path), conf=conf))
        self.client = bigquery_client()
        self.client.create_dataset(DATASET)

    def ingest(self, first, last):
        conf = {"first_day": str(first), "last_day": str(last)}
        return self.project.run(self.file, "flights_ingest", conf, last)

    def publish_again(self, snapshot):
        file = self.project.write("flights_again.py", AGAIN.format(path=self.spec, snapshot=snapshot))
        return self.project.run(file, "flights_again")

    @property
    def lake(self):
        return LakeHook("month_lake").get_conn()

    def rows(self):
        return LakeRows(self.lake.files("flights"), self.columns)

    def lake_facts(self):
        with self.rows().view() as (connection, source):
            return connection.execute(FACTS.format(source=source, text="VARCHAR", whole="BIGINT")).fetchall()

    def warehouse_facts(self):
        source = f"{DATASET}.flights"
        return [
            tuple(row) for row in self.client.query_and_wait(FACTS.format(source=source, text="STRING", whole="INT64"))
        ]

    def warehouse_tally(self):
        ((*row,),) = self.client.query_and_wait(tally_sql(self.columns, "bigquery", f"{DATASET}.flights"))
        return read_tally(row)


@pytest.fixture
def month(dag_project, tmp_path, bigquery, s3_store, monkeypatch):
    try:
        jars_of_s3 = jars.spark_jars(jars.fetch("4.1", ["s3"]))
    except ConfigurationError as error:
        pytest.skip(f"the jars of S3 cannot be had: {error}")
    bucket = s3_store.bucket()
    lake = s3_store.connection(bucket, catalog="sqlite", catalog_uri=str(tmp_path / "catalog.db"))
    monkeypatch.setenv("AIRFLOW_CONN_MONTH_LAKE", json.dumps(lake))
    google = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
    monkeypatch.setenv("AIRFLOW_CONN_MONTH_GOOGLE", json.dumps(google))
    monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path / "home"))
    return Month(dag_project, tmp_path, jars_of_s3)


def landed(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_month_of_flights_reconciles_to_the_row(month):
    result = month.ingest(FIRST, LAST)
    assert result.state == "success", result.tasks
    staged, published = result.results["etl"], WarehouseRef.load(result.results["publish_warehouse"])
    files = [landed(month.landing / "flights" / f"{FIRST + dt.timedelta(days=n)}.csv") for n in range(31)]
    assert staged["rows_in"] == sum(map(len, files)) > 28_000
    assert published.rows == staged["rows_good"] == staged["rows_in"] - staged["rows_bad"]

    # every day has the rows of its file, less the quarantined ones, on both sides
    whole = month.warehouse_facts()
    assert whole == month.lake_facts()
    assert len(whole) == 31
    with_plane = [sum(row["tailnum"] not in ("", "NA") for row in day) for day in files]
    assert [row[1] for row in whole] == with_plane
    assert month.warehouse_tally() == month.rows().tally
    assert month.client.get_table(f"{DATASET}.flights").time_partitioning.field == "event_date"

    # again: the same rows
    assert month.publish_again(result.results["publish_lake"]).state == "success"
    assert month.warehouse_facts() == whole

    # one day changes at the source
    path = month.landing / "flights" / f"{CHANGED}.csv"
    rows = [row for row in landed(path) if row["tailnum"] not in ("", "NA")][:-10]
    rows[0]["distance"] = str(int(rows[0]["distance"]) + 1)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert month.ingest(CHANGED, CHANGED).state == "success"
    after = month.warehouse_facts()
    assert after == month.lake_facts()
    changed = [(old, new) for old, new in zip(whole, after, strict=True) if old != new]
    [(old, new)] = changed
    assert new[0] == str(CHANGED) and new[1] == old[1] - 10
    assert month.warehouse_tally() == month.rows().tally
    told = month.client.query_and_wait(f"SELECT first, last, row_count FROM {DATASET}.sml_publishes ORDER BY published")
    assert [tuple(row) for row in told] == [
        (FIRST, LAST, published.rows), (FIRST, LAST, published.rows), (CHANGED, CHANGED, new[1])
    ]  # fmt: skip
