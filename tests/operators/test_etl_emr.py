"""The ETL on the fake EMR Serverless, which runs the same application through Spark on this machine."""

import boto3
import pytest

from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.testing.aws.spark import local_spark
from tests import shops

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.etl import PublishPartitionsOperator, SparkEtlOperator
from tests import shops
from pathlib import Path

root = Path({root!r})
spec = shops.make_spec(root)
with DAG("orders_emr", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    staged = SparkEtlOperator(
        task_id="etl", dataset=spec.dataset, places={{"landing": str(root / "landing")}}, lake=str(root / "lake"),
        first="2026-03-01", last="2026-03-02", poll_interval={poll}, deferrable={deferrable},
        spark={{
            "on": {place!r}, "application_id": {application!r}, "code": "s3://code/sml", "log_uri": "s3://code/logs",
            "role": "arn:aws:iam::123456789012:role/spark", "conf": {{"spark.executor.instances": "2"}},
        }} | {settings},
    )
    PublishPartitionsOperator(task_id="publish", staged=staged.output, dataset=spec.dataset)
"""


@pytest.fixture
def run(dag_project, cloud, tmp_path):
    """Runs the ETL of two days on an application of the fake EMR Serverless."""
    boto3.client("s3").create_bucket(Bucket="code")
    application = boto3.client("emr-serverless").create_application(releaseLabel="emr-7.9.0", type="SPARK")
    for day in shops.days(2):
        shops.write_day(tmp_path / "landing", day)

    def run(place="emr-serverless", deferrable=False, retries=0, poll=0.01, **settings):
        text = DAG_FILE.format(
            root=str(tmp_path), application=application["applicationId"], place=place, deferrable=deferrable,
            retries=retries, settings=settings, poll=poll,
        )  # fmt: skip
        return dag_project.run(dag_project.write("orders_emr.py", text), "orders_emr")

    return run


@pytest.mark.slow
def test_two_days_are_staged_on_emr_and_published(run, cloud, tmp_path, capfd):
    cloud.emr.driver = local_spark(cloud)
    result = run(deferrable=True, poll=0.2)
    assert result.state == "success", result.tasks
    assert Lake(str(tmp_path / "lake")).days("orders") == dict.fromkeys(shops.days(2), 200)
    assert result.results["etl"]["rows_in"] == 400
    [job] = cloud.emr.runs.values()
    assert job.request["tags"]["dag_id"] == "orders_emr"
    assert job.request["jobDriver"]["sparkSubmit"]["entryPoint"].startswith("s3://code/sml/application-")
    assert "vCPU-hours" in capfd.readouterr().out


@pytest.mark.slow
def test_a_driver_that_blames_its_input_fails_once(run, cloud, tmp_path):
    path = shops.write_day(tmp_path / "landing", shops.FIRST)
    path.write_text(path.read_text().replace("weight", "wait", 1))
    cloud.emr.driver = local_spark(cloud)
    assert run(retries=2, poll=0.2).state == "failed"
    assert len(cloud.emr.runs) == 1


def test_a_driver_that_died_is_followed_by_another_and_says_why(run, cloud, capfd):
    cloud.faults.add("fail", "StartJobRun", reason="java.lang.OutOfMemoryError: Java heap space", times=2)
    assert run(retries=1).state == "failed"
    assert len(cloud.emr.runs) == 2
    assert "OutOfMemoryError" in capfd.readouterr().out


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "throttle"])
def test_a_start_that_is_not_answered_starts_one_run(run, cloud, fault):
    cloud.faults.add(fault, "StartJobRun")
    cloud.faults.add("fail", "StartJobRun")
    run()
    assert len(cloud.emr.runs) == 1


def test_a_wrong_place_or_setting_is_named_and_nothing_is_started(run, cloud, capfd):
    assert run(place="emr-serverles").state == "failed"
    assert "did you mean emr-serverless" in capfd.readouterr().out
    assert run(code="/tmp/code").state == "failed"
    assert run(rolle="x").state == "failed"
    assert "rolle" in capfd.readouterr().out
    assert cloud.emr.runs == {}
