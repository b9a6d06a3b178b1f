"""The adapter of EMR Serverless against the fake one, through boto3."""

import gzip
import json

import boto3
import pytest

from airflow_provider_sml.cloud.aws import AwsUnavailable, _client
from airflow_provider_sml.cloud.emr_serverless import EmrServerlessJob
from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.errors import ConfigurationError


@pytest.fixture
def cloud(fake_aws, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _client.cache_clear()
    yield fake_aws
    _client.cache_clear()


@pytest.fixture
def make(cloud):
    application = boto3.client("emr-serverless").create_application(releaseLabel="emr-7.9.0", type="SPARK")

    def job(**changes):
        fixed = {
            "name": "orders-etl", "application_id": application["applicationId"],
            "role": "arn:aws:iam::123456789012:role/spark", "entry_point": "s3://code/application.py",
            "arguments": ["s3://lake/stage/1/plan.json"], "output": {"uri": "s3://lake/stage/1"},
        }  # fmt: skip
        return EmrServerlessJob(**fixed | changes)

    return job


def test_a_run_is_started_watched_and_tells_what_it_used(cloud, make):
    job = make(conf={"spark.executor.instances": "2", "spark.app.name": "it's ours"})
    made = job.submit()
    assert job.status(made).state is JobState.PENDING
    cloud.clock.advance(100)
    assert job.status(made).state is JobState.RUNNING
    cloud.clock.advance(1000)
    assert job.status(made).state is JobState.SUCCEEDED
    result = job.result(made)
    console = "https://us-east-1.console.aws.amazon.com"
    assert job.page(made) == f"{console}/emr/home?region=us-east-1#/serverless"
    logs = f"logs/a%20b/applications/{job.application_id}/jobs/{made}/"
    wanted = f"{console}/s3/buckets/lake?region=us-east-1&prefix={logs}"
    assert make(log_uri="s3://lake/logs/a b/").page(made) == wanted
    assert result["uri"] == "s3://lake/stage/1"
    assert result["usage"]["vcpu_hours"] == 1.0
    assert result["usage"]["cost_usd"] == pytest.approx(0.052624 + 4 * 0.0057785, abs=2e-3)
    assert len(json.dumps(result)) < 1000


def test_a_retry_attaches_to_the_run_and_gives_that_run_s_output(cloud, make):
    first = make().submit()
    later = make(arguments=["s3://lake/stage/2/plan.json"], output={"uri": "s3://lake/stage/2"})
    assert later.submit() == first
    cloud.clock.advance(1000)
    assert later.result(first)["uri"] == "s3://lake/stage/1"
    assert make().submit() == first
    assert later.submit() != first
    assert cloud.calls.count("StartJobRun") == 2


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "throttle", "server_error"])
def test_a_start_that_was_not_answered_starts_one_run(cloud, make, fault):
    cloud.faults.add(fault, "StartJobRun")
    with pytest.raises(AwsUnavailable):
        make().submit()
    make().submit()
    assert len(cloud.emr.runs) == 1


def test_a_failed_run_is_followed_by_another(cloud, make):
    cloud.faults.add("fail", "StartJobRun", reason="java.lang.OutOfMemoryError: Java heap space")
    first = make().submit()
    cloud.clock.advance(1000)
    found = make().status(first)
    assert found.state is JobState.FAILED and not found.configuration
    assert "OutOfMemoryError" in found.message
    assert make().submit() != first


def test_a_driver_that_blames_its_input_is_not_tried_again(cloud, make):
    boto3.client("s3").create_bucket(Bucket="logs")
    job = make(log_uri="s3://logs/emr")
    cloud.faults.add("fail", "StartJobRun")
    made = job.submit()
    key = f"emr/applications/{job.application_id}/jobs/{made}/SPARK_DRIVER/stderr.gz"
    log = b"INFO starting\nSML-INPUT-ERROR: orders.csv lacks the columns ['weight']\n"
    boto3.client("s3").put_object(Bucket="logs", Key=key, Body=gzip.compress(log))
    cloud.clock.advance(1000)
    found = job.status(made)
    assert found.configuration
    assert found.message == "orders.csv lacks the columns ['weight']"


def test_cancelling_ends_the_run(cloud, make):
    job = make()
    made = job.submit()
    job.cancel(made)
    cloud.clock.advance(60)
    assert job.status(made).state is JobState.CANCELLED
    job.cancel(made)
    assert cloud.bill.running() == []
    assert job.submit() != made


def test_secrets_go_through_secrets_manager_only(cloud, make):
    with pytest.raises(ConfigurationError, match="SML_PRIVACY_KEYS") as error:
        make().submit({"SML_PRIVACY_KEYS": "a very secret key"})
    assert "a very secret key" not in str(error.value)
    job = make(secret_ids={"SML_PRIVACY_KEYS": "prod/privacy"})
    run = cloud.emr.runs[job.submit({"SML_PRIVACY_KEYS": "a very secret key"})]
    settings = run.request["jobDriver"]["sparkSubmit"]["sparkSubmitParameters"]
    assert "spark.emr-serverless.driverEnv.SML_PRIVACY_KEYS=EMR.secret@prod/privacy" in settings
    assert "a very secret key" not in json.dumps(run.request)


def test_a_wrong_application_is_a_configuration_error(cloud, make):
    with pytest.raises(ConfigurationError, match="ResourceNotFoundException"):
        make(application_id="00nothere").submit()


def test_it_is_made_again_from_json(make):
    assert Adapter.load(json.loads(json.dumps(make().describe()))) == make()
