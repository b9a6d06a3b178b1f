"""The lake on S3 through a connection: its upkeep, and a sample and a model that lie there, by ``dag.test()``."""

import datetime as dt
import json
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import PARTITION, Dataset
from airflow_provider_sml.ml.lake import maintenance
from tests.ml.lake_tables import DAY, NEXT, publish, rows
from tests.ml.test_storage import KEY


@pytest.fixture
def connect(s3_store, tmp_path, monkeypatch, airflow_db):
    """Defines the connection ``my_lake`` to a new lake on S3; gives the lake."""

    def connect(server=s3_store, opens=True, **fields):
        catalog = {"catalog": "sqlite", "catalog_uri": str(tmp_path / "catalog.db")}
        connection = server.connection(server.bucket(), **catalog | fields)
        monkeypatch.setenv("AIRFLOW_CONN_MY_LAKE", json.dumps(connection))
        monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path / "home"))
        return LakeHook("my_lake").get_conn() if opens else None

    return connect


UPKEEP = """
    from datetime import datetime
    from airflow.sdk import DAG, Asset
    from airflow_provider_sml.operators.lake import *

    with DAG("upkeep", schedule=None, start_date=datetime(2026, 1, 1)):
        tag = TagSnapshotOperator(task_id="tag", snapshot={old}, tag="training")
        diff = DiffSnapshotsOperator(
            task_id="diff", table="orders", before="training", lake="my_lake", key=["shop", "{day}"]
        )
        back = RollbackTableOperator(
            task_id="back", table="orders", to="training", lake="my_lake", outlets=[Asset("x-sml://orders/published")]
        )
        maintain = MaintainLakeOperator(
            task_id="maintain", lake="my_lake", expire_after="0 days", keep=1, {settings}
        )
        tag >> diff >> back >> maintain
"""


def test_a_lake_on_s3_is_kept_by_its_operators_and_a_second_run_changes_nothing(connect, dag_project, s3_store):
    lake = connect()
    old = publish(lake, *[rows(DAY, 3, start=3 * n) for n in range(4)])
    publish(lake, rows(DAY, 13, version=2))
    publish(lake, rows(NEXT, 2), first=NEXT)
    assert old.lake == "my_lake" and s3_store.store.secret_key not in json.dumps(old.to_xcom())
    file = dag_project.write("upkeep.py", UPKEEP.format(day=PARTITION, old=old.to_xcom(), settings=""))
    result = dag_project.run(file, "upkeep")
    assert result.state == "success", result.tasks
    diff = result.results["diff"]
    assert (diff["days_added"], diff["days_removed"], diff["days_changed"]) == (1, 0, 1)
    assert (diff["rows_added"], diff["rows_removed"], diff["rows_changed"]) == (1 + 2, 0, 12)
    assert result.results["back"]["snapshot_id"] == old.snapshot_id
    assert result.results["maintain"]["files_merged"] == 3 and result.results["maintain"]["snapshots_expired"] >= 1
    assert lake.days("orders") == {DAY: 12}
    assert ("x-sml://orders/published", str(old.snapshot_id)) in [(u, e.get("snapshot_id")) for u, e in result.events]
    again = dag_project.run(file, "upkeep")
    assert again.state == "success" and lake.days("orders") == {DAY: 12}
    assert s3_store.store.secret_key not in json.dumps([result.results, again.results])


@pytest.mark.parametrize(
    ("settings", "said"),
    [("grace='5 minutes'", "at least 1 hour"), ("encryption='required'", "would be written without a key")],
)
def test_upkeep_that_would_do_harm_is_refused(connect, dag_project, settings, said, caplog, capsys):
    old = publish(connect(), rows(DAY, 3))
    result = dag_project.run(
        dag_project.write("upkeep.py", UPKEEP.format(day=PARTITION, old=old.to_xcom(), settings=settings)), "upkeep"
    )
    assert result.tasks["back"] == "success" and result.tasks["maintain"] == "failed"
    assert said in capsys.readouterr().out + caplog.text


def test_the_button_writes_and_says_what_is_wrong(connect, s3_store, moto_store, monkeypatch):
    lake = connect(kms_key=KEY)
    worked, said = LakeHook("my_lake").test_connection()
    assert (worked, said) == (True, f"{lake.location}: 0 tables") and lake.store.kms_key == KEY
    assert list(storage.entries(lake.root)) == []
    connect(opens=False, catalog_uri=None)
    assert "needs a catalog that is not in its own folder" in LakeHook("my_lake").test_connection()[1]
    connect(opens=False, catalog_properties="{not json")
    assert "are no JSON" in LakeHook("my_lake").test_connection()[1]
    connect(opens=False, storage_conn_id="nobody")
    assert "there is no connection nobody" in LakeHook("my_lake").test_connection()[1]
    monkeypatch.setenv("AIRFLOW_CONN_HTTP_ONLY", "http://x")
    connect(opens=False, storage_conn_id="http_only")
    assert "gives no access to an object store" in LakeHook("my_lake").test_connection()[1]


def test_the_store_takes_its_credentials_from_an_aws_connection(connect, s3_store, monkeypatch):
    aws = {
        "conn_type": "aws", "login": s3_store.store.access_key, "password": s3_store.store.secret_key,
        "extra": {"region_name": s3_store.store.region, "endpoint_url": s3_store.store.endpoint},
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps(aws))
    lake = connect(storage_conn_id="store", access_key=None, secret_key=None, endpoint=None, region=None)
    assert lake.store == s3_store.store
    publish(lake, rows(DAY, 3))
    assert LakeHook("my_lake").test_connection() == (True, f"{lake.location}: 1 tables")


def test_google_cloud_storage_through_a_connection(connect, gcs_store):
    publish(connect(gcs_store), rows(DAY, 3))
    assert LakeHook("my_lake").get_conn().days("orders") == {DAY: 3}


CHURN = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.example_dags.example_churn import CHURN
    from airflow_provider_sml.operators.lake import TagSnapshotOperator
    from airflow_provider_sml.operators.sampling import SampleOperator
    from airflow_provider_sml.operators.training import *

    with DAG("churn_s3", schedule=None, start_date=datetime(2026, 1, 1), default_args={"encryption": "required"}):
        sample = SampleOperator(task_id="sample", table="churn", train="20 days", validate="5 days", test="5 days",
                                lake="my_lake")
        model = TrainXGBoostOperator(task_id="train", sample=sample.output, dataset=CHURN,
                                     hyperparameters={"rounds": 5})
        EvaluateModelOperator(task_id="evaluate", model=model.output, sample=sample.output, baseline=["plan"])
        TagSnapshotOperator(task_id="tag", snapshot=sample.output, tag="churn")
"""


def test_a_sample_and_a_model_lie_on_s3_encrypted_and_are_found_again(connect, dag_project, moto_store):
    from airflow_provider_sml.example_dags import example_churn

    lake = connect(replace(moto_store, store=replace(moto_store.store, kms_key=KEY)))
    dataset, chance, made = Dataset(**example_churn.CHURN), random.Random(1), []
    kinds = {"int": pa.int64(), "string": pa.string(), "double": pa.float64(), "boolean": pa.bool_(),
             "timestamp": pa.timestamp("us"), "date": pa.date32()}  # fmt: skip
    for number in range(30):
        day = dt.date(2026, 1, 1) + dt.timedelta(days=number)
        made += [
            {
                "customer": customer, "seen": dt.datetime.combine(day, dt.time(9)), "weekday": float(day.weekday()),
                "plan": chance.choice(["free", "plus"]), "visits": customer % 20, "event_date": day,
                "left_later": chance.random() < 0.5, "label": int(chance.random() < 0.5),
            }
            for customer in range(20)
        ]  # fmt: skip
    table = pa.Table.from_pylist(made, pa.schema([(name, kinds[kind]) for name, kind in dataset.table_columns]))
    days = sorted({row["event_date"] for row in made})
    paths = [lake.stage("churn", "test") / f"{day}.parquet" for day in days]
    for day, path in zip(days, paths, strict=True):
        storage.write_table(table.filter(pa.compute.equal(table["event_date"], pa.scalar(day))), path)
    lake.publish("churn", dataset.table_columns, paths, days[0], days[-1], {})
    file = dag_project.write("churn_s3.py", CHURN)
    first = dag_project.run(file, "churn_s3")
    assert first.state == "success", first.tasks
    sample, model = first.results["sample"], first.results["train"]
    assert sample["lake"] == model["lake"] == "my_lake"
    assert sample["uri"].startswith(f"{lake.location}/samples/churn/") and model["uri"].startswith(lake.location)
    assert sample["rows"] == {"train": 400, "validate": 100, "test": 100}
    assert first.results["evaluate"]["rows"] == 100
    again = dag_project.run(file, "churn_s3")
    assert again.state == "success" and again.results["sample"] == sample and again.results["train"] == model
    heads = moto_store.objects("s3://" + lake.location.split("/")[2])
    assert {head.get("SSEKMSKeyId") for head in heads.values()} == {KEY}
    assert sum(key.endswith("bundle.json") for key in heads) == 1
    assert maintenance.sampled(lake, "churn") == {sample["snapshot_id"]}
