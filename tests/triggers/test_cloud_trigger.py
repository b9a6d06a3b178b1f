"""The trigger on a job in a cloud: clients from Airflow's connection, no secret in what is stored, kill, deadline."""

import asyncio
import json
import time

import pytest

from airflow_provider_sml.cloud.dataproc import DataprocBatchJob
from airflow_provider_sml.cloud.sagemaker_training import SageMakerTrainingJob
from airflow_provider_sml.hooks.clients import connected, forget_clients
from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger

JOB = SageMakerTrainingJob(
    name="churn-train", image="123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1", output="s3://models/churn",
    role="arn:aws:iam::123456789012:role/sagemaker", instances=["ml.m5.xlarge"], connection="sml_test_aws",
)  # fmt: skip


@pytest.fixture
def cloud(airflow_db, fake_aws, monkeypatch):
    """The account, reached by a connection of its own whose secret must appear nowhere."""
    forget_clients()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    connection = {"conn_type": "aws", "login": "AKIAFAKE", "password": "hunter2hunter2"}
    monkeypatch.setenv("AIRFLOW_CONN_SML_TEST_AWS", json.dumps(connection))
    yield fake_aws
    forget_clients()


def events(trigger):
    async def collect():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def trigger(job_id, **options):
    """As the triggerer makes it: from what was stored of it."""
    path, values = RemoteJobTrigger(JOB.describe(), job_id, 0.01, **options).serialize()
    stored = json.dumps(values)
    assert "hunter2" not in stored and "AKIAFAKE" not in stored
    assert path.endswith("RemoteJobTrigger")
    return RemoteJobTrigger(**json.loads(stored))


def test_it_waits_through_an_outage_until_the_job_is_done(cloud):
    job_id = connected(JOB).submit()
    cloud.clock.per_call = 60
    cloud.faults.add("server_error", "DescribeTrainingJob", times=3)
    [event] = events(trigger(job_id))
    assert (event["action"], event["job_id"]) == ("done", job_id)
    assert "hunter2" not in json.dumps(event)


def test_killing_it_stops_the_job(cloud):
    job_id = connected(JOB).submit()
    cloud.clock.advance(200)
    asyncio.run(trigger(job_id).on_kill())
    cloud.clock.advance(200)
    assert cloud.bill.running() == []
    assert cloud.calls.count("StopTrainingJob") == 1


def test_at_its_deadline_it_stops_the_job_and_says_so(cloud):
    job_id = connected(JOB).submit()
    [event] = events(trigger(job_id, deadline=time.time() - 1))
    assert event["action"] == "fail" and "it was cancelled" in event["message"]
    cloud.clock.advance(200)
    assert cloud.bill.running() == []


@pytest.fixture
def batch(airflow_db, fake_google):
    """A batch of Dataproc and its trigger, on the connection of the fixture."""
    forget_clients()
    job = DataprocBatchJob(name="orders-etl", project="fake-project", region="europe-west1", entry_point="gs://c/a.py")
    job_id = connected(job).submit()
    yield fake_google, RemoteJobTrigger(json.loads(json.dumps(job.describe())), job_id, 0.01)
    forget_clients()


def test_killing_the_trigger_of_a_dataproc_batch_cancels_it(batch):
    google, trigger = batch
    asyncio.run(trigger.on_kill())
    google.clock.advance(60)
    assert google.calls.count("CancelOperation") == 1
    assert google.bill.running() == []


def test_a_dataproc_batch_is_waited_for_through_an_outage(batch):
    google, trigger = batch
    google.clock.per_call = 100
    google.faults.add("drop_before", "GetBatch", times=2)
    [event] = events(trigger)
    assert (event["action"], event["job_id"]) == ("done", "orders-etl-1")


def test_a_stop_that_fails_is_told_and_not_hidden(cloud):
    job_id = connected(JOB).submit()
    cloud.faults.add("denied", "StopTrainingJob")
    [event] = events(trigger(job_id, deadline=time.time() - 1))
    assert "may run on" in event["message"]


def test_a_machine_that_is_not_to_be_had_asks_for_another(cloud):
    cloud.faults.add("no_capacity", "CreateTrainingJob")
    job = SageMakerTrainingJob(**{**JOB.describe()["arguments"], "instances": ["ml.g5.xlarge", "ml.m5.xlarge"]})
    job_id = connected(job).submit()
    cloud.clock.advance(3000)
    [event] = events(RemoteJobTrigger(job.describe(), job_id, 0.01))
    assert event["action"] == "again"
