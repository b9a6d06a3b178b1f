"""Roll-outs to SageMaker endpoints against the fake one: what ends well, what is rolled back, what is left."""

import json

import boto3
import pytest

from airflow_provider_sml.cloud.aws import AwsUnavailable, _client
from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.cloud.sagemaker_endpoint import SageMakerRollout
from airflow_provider_sml.cloud.sagemaker_spec import EndpointSpec
from airflow_provider_sml.errors import ConfigurationError, DeploymentError, JobError

SPEC = {
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1",
    "model_data": "s3://models/churn/model.tar.gz",
    "role": "arn:aws:iam::123456789012:role/sagemaker",
    "instance": "ml.m5.large",
}


@pytest.fixture(autouse=True)
def cloud(fake_aws, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _client.cache_clear()
    yield fake_aws
    _client.cache_clear()


def make(version="1", **changes):
    return SageMakerRollout(name="churn", version=version, spec=SPEC | changes, tags={"dag_id": "churn_deploy"})


def roll_out(cloud, version="1", **changes):
    """To its end; gives the job and its id."""
    job = make(version, **changes)
    made = job.submit()
    for _ in range(100):
        found = job.status(made)
        if found.state.final:
            return job, made, found
        cloud.clock.advance(60)
    raise AssertionError(found)


def serving():
    return boto3.client("sagemaker").describe_endpoint(EndpointName="churn")["EndpointConfigName"]


def alarm(name="churn-5xx"):
    boto3.client("cloudwatch").put_metric_alarm(
        AlarmName=name, EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", Threshold=1.0
    )


def test_a_version_is_deployed_and_the_next_one_takes_over(cloud):
    job, made, found = roll_out(cloud)
    assert found.state is JobState.SUCCEEDED
    first = job.result(made)
    assert serving() == first["config"]
    assert first["config"].startswith("churn-v1-") and first["previous"] == ""
    assert first["cost_usd_per_hour"] == 0.115
    job, made, found = roll_out(cloud, "2")
    assert found.state is JobState.SUCCEEDED
    assert job.result(made)["previous"] == first["config"]
    assert serving() == job.result(made)["config"]
    assert len(json.dumps(job.result(made))) < 1000


def test_a_repeat_finds_what_serves_and_changes_nothing(cloud):
    roll_out(cloud)
    _, made, _ = roll_out(cloud, "2")
    before = len([call for call in cloud.calls if not call.operation.startswith("Describe")])
    assert make("2").submit() == made
    writes = [call for call in cloud.calls if not call.operation.startswith(("Describe", "List"))]
    assert len(writes) == before


@pytest.mark.parametrize("reason", ["", "Alarms in ALARM"])
def test_a_roll_back_is_a_failure_that_leaves_nothing_behind(cloud, reason):
    alarm()
    _, first, _ = roll_out(cloud)
    cloud.faults.add("roll_back", "UpdateEndpoint", **({"reason": reason} if reason else {}))
    job, made, found = roll_out(cloud, "2", alarms=["churn-5xx"])
    assert found.state is JobState.FAILED and found.leftover and found.configuration
    old, new = first.partition("/")[0], made.partition("/")[0]
    assert f"serves config {old} again, not {new} ({reason or 'SageMaker gave no reason'})" in found.message
    assert "alarms in ALARM during the roll-out: churn-5xx" in found.message
    job.cancel(made)
    assert serving() == old
    assert set(cloud.sagemaker.configs) == set(cloud.sagemaker.models) == {old}
    assert [line.what for line in cloud.bill.running()] == [f"endpoint ml.m5.large, {old}"]


def test_after_a_roll_back_the_same_version_can_be_tried_again(cloud):
    roll_out(cloud)
    cloud.faults.add("roll_back", "UpdateEndpoint")
    job, made, _ = roll_out(cloud, "2")
    job.cancel(made)
    _, again, found = roll_out(cloud, "2")
    assert (found.state, again) == (JobState.SUCCEEDED, made)


def test_a_first_endpoint_that_fails_is_deleted(cloud):
    cloud.faults.add("fail", "CreateEndpoint")
    job, made, found = roll_out(cloud)
    assert found.state is JobState.FAILED and found.leftover
    assert "did not pass the ping health check" in found.message
    cloud.clock.per_call = 30
    job.cancel(made)
    assert (cloud.sagemaker.configs, cloud.sagemaker.models, cloud.bill.running()) == ({}, {}, [])


def test_no_capacity_for_an_endpoint_is_worth_a_retry(cloud):
    roll_out(cloud)
    cloud.faults.add("no_capacity", "UpdateEndpoint")
    _, _, found = roll_out(cloud, "2")
    assert found.state is JobState.FAILED and not found.configuration
    assert "capacity" in found.message


@pytest.mark.parametrize("operation", ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint"])
@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "server_error"])
def test_a_crash_at_each_step_is_taken_up_by_a_retry(cloud, operation, fault):
    if operation == "UpdateEndpoint":
        roll_out(cloud, "0")
    cloud.faults.add(fault, operation)
    with pytest.raises(AwsUnavailable):
        make().submit()
    _, made, found = roll_out(cloud)
    assert found.state is JobState.SUCCEEDED
    assert serving() == made.partition("/")[0]
    assert len(cloud.sagemaker.models) == len(cloud.sagemaker.configs) == (2 if operation == "UpdateEndpoint" else 1)


def test_a_lost_reply_that_botocore_repeats_is_taken_up_at_once(cloud, monkeypatch):
    roll_out(cloud)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    _client.cache_clear()
    for operation in ("CreateModel", "CreateEndpointConfig", "UpdateEndpoint"):
        cloud.faults.add("drop_after", operation)
    assert roll_out(cloud, "2")[2].state is JobState.SUCCEEDED


def test_another_roll_out_is_waited_for_and_one_that_runs_cannot_be_cancelled(cloud):
    roll_out(cloud)
    made = make("2").submit()
    with pytest.raises(JobError, match="Updating") as error:
        make("3").submit()
    assert error.value.retryable
    with pytest.raises(JobError, match="cannot cancel"):
        make("2").cancel(made)
    assert roll_out(cloud, "2")[2].state is JobState.SUCCEEDED


def test_taking_a_version_back_serves_the_old_one_and_deletes_the_new(cloud):
    _, first, _ = roll_out(cloud)
    job, made, _ = roll_out(cloud, "2")
    assert "again" in job.undo(made, sleep=lambda seconds: cloud.clock.advance(60))
    assert serving() == first.partition("/")[0]
    assert len(cloud.sagemaker.models) == len(cloud.sagemaker.configs) == 1
    assert len(cloud.bill.running()) == 1


def test_taking_back_the_first_version_deletes_the_endpoint(cloud):
    job, made, _ = roll_out(cloud)
    assert "deleted" in job.undo(made, sleep=lambda seconds: cloud.clock.advance(60))
    assert (cloud.sagemaker.configs, cloud.sagemaker.models, cloud.bill.running()) == ({}, {}, [])


def test_a_canary_is_asked_for_in_sagemaker_s_words(cloud):
    alarm()
    roll_out(cloud)
    roll_out(cloud, "2", rollout="canary", step=20, wait=300, alarms=["churn-5xx"])
    [call] = cloud.calls.of("UpdateEndpoint")
    routing = call.params["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing["Type"] == "CANARY"
    assert routing["CanarySize"] == {"Type": "CAPACITY_PERCENT", "Value": 20}
    rollback = call.params["DeploymentConfig"]["AutoRollbackConfiguration"]
    assert rollback == {"Alarms": [{"AlarmName": "churn-5xx"}]}


@pytest.mark.parametrize("rollout", ["linear", "blue-green", "rolling", "all-at-once"])
def test_every_roll_out_is_taken_by_sagemaker(cloud, rollout):
    alarm()
    roll_out(cloud)
    assert roll_out(cloud, "2", rollout=rollout, step=25, alarms=["churn-5xx"])[2].state is JobState.SUCCEEDED


def test_serverless_asynchronous_and_scaled_endpoints(cloud):
    job, made, found = roll_out(cloud, instance="", serverless={"memory_mb": 2048, "concurrency": 5})
    assert found.state is JobState.SUCCEEDED
    assert job.result(made)["cost_usd_per_hour"] is None
    scaled = {"asynchronous": {"output": "s3://out/churn"}, "scaling": {"min": 0, "max": 3}}
    job = SageMakerRollout(name="slow", version="1", spec=SPEC | scaled)
    made = job.submit()
    cloud.clock.advance(600)
    job.result(made)
    assert cloud.autoscaling.targets["endpoint/slow/variant/champion"]["MinCapacity"] == 0
    cloud.clock.advance(10_000)
    assert cloud.bill.running() == []


def test_an_a_b_test_shares_the_traffic_with_the_champion(cloud):
    cloud.runtime.container = lambda _, model: lambda body, kind, accept: (200, model["ModelName"].encode(), "")
    _, first, _ = roll_out(cloud)
    _, made, found = roll_out(cloud, "2", mode="ab", percent=20)
    assert found.state is JobState.SUCCEEDED
    runtime = boto3.client("sagemaker-runtime")
    answers = [runtime.invoke_endpoint(EndpointName="churn", Body=b"x")["Body"].read().decode() for _ in range(50)]
    assert {name: answers.count(name) for name in set(answers)} == {
        first.partition("/")[0]: 40,
        made.partition("/")[0]: 10,
    }


def test_a_shadow_sees_the_traffic_and_answers_nobody(cloud):
    cloud.runtime.container = lambda _, model: lambda body, kind, accept: (200, model["ModelName"].encode(), "")
    _, first, _ = roll_out(cloud)
    _, made, found = roll_out(cloud, "2", mode="shadow")
    assert found.state is JobState.SUCCEEDED
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName="churn", Body=b"x")["Body"].read()
    assert answer.decode() == first.partition("/")[0]
    [copy] = cloud.runtime.captured
    assert (copy.shadow, copy.answer.decode()) == (True, made.partition("/")[0])


def test_a_test_beside_nothing_is_refused(cloud):
    with pytest.raises(DeploymentError, match="serves nothing"):
        make(mode="shadow").submit()


def test_keys_capture_and_network_reach_the_requests(cloud):
    key = "arn:aws:kms:us-east-1:123456789012:key/abc"
    roll_out(
        cloud, kms_key=key, capture={"uri": "s3://captured/churn", "percent": 50}, subnets=["subnet-1"],
        security_groups=["sg-1"], network_isolation=True,
    )  # fmt: skip
    [config], [model] = cloud.sagemaker.configs.values(), cloud.sagemaker.models.values()
    assert config["KmsKeyId"] == config["DataCaptureConfig"]["KmsKeyId"] == key
    assert config["DataCaptureConfig"]["InitialSamplingPercentage"] == 50
    assert model["VpcConfig"]["Subnets"] == ["subnet-1"] and model["EnableNetworkIsolation"]
    assert {"Key": "dag_id", "Value": "churn_deploy"} in config["Tags"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spot": True}, "cannot run on spot machines"),
        ({"instance": ""}, "either instance or serverless"),
        ({"serverless": {"memory_mb": 1024}}, "either instance or serverless"),
        ({"rollout": "big-bang"}, "rollout: one of"),
        ({"step": 80}, "at most 50 percent"),
        ({"scaling": {"min": 0, "max": 2}}, "0 if asynchronous"),
        ({"scaling": {"min": 3, "max": 2}}, "at least scaling.min"),
        ({"mode": "shadow", "asynchronous": {"output": "s3://x"}}, "for a shadow"),
        ({"instnace": "ml.m5.large"}, "instnace"),
        ({"role": ""}, "missing: role"),
    ],
)
def test_what_sagemaker_cannot_do_is_refused_with_what_it_can(changes, said):
    with pytest.raises(ConfigurationError) as error:
        EndpointSpec.load(SPEC | changes)
    assert said in str(error.value)


def test_it_is_made_again_from_json(cloud):
    assert Adapter.load(json.loads(json.dumps(make().describe()))) == make()
