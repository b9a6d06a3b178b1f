"""The adapter of SageMaker training jobs against the fake SageMaker, through boto3."""

import json

import pytest

from airflow_provider_sml.cloud.aws import AwsQuota, AwsRefused, AwsUnavailable, _client
from airflow_provider_sml.cloud.remote_job import Adapter, JobState, job_name
from airflow_provider_sml.cloud.sagemaker_training import NAME_LIMIT, SageMakerTrainingJob
from airflow_provider_sml.errors import ConfigurationError

JOB = {
    "name": "churn-train",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
    "role": "arn:aws:iam::123456789012:role/sagemaker",
    "output": "s3://models/churn",
    "instances": ["ml.m5.xlarge"],
}
SPOT = {"spot": True, "checkpoint": "s3://models/checkpoints", "max_runtime": 3600}


def make(**changes):
    return SageMakerTrainingJob(**JOB | changes)


@pytest.fixture(autouse=True)
def cloud(fake_aws, monkeypatch):
    """Clients of earlier tests know other servers; one try per call shows the adapter rather than botocore."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _client.cache_clear()
    yield fake_aws
    _client.cache_clear()


def test_a_job_is_submitted_watched_and_tells_a_small_result(cloud):
    cloud.faults.add("interrupt", count=2)
    job = make(**SPOT, tags={"dag_id": "churn", "run_id": "manual__2026-01-01T00:00:00+00:00"})
    made = job.submit()
    assert job.status(made).state is JobState.PENDING
    cloud.clock.advance(200)
    assert job.status(made).state is JobState.RUNNING
    cloud.clock.advance(3000)
    found = job.status(made)
    assert found.state is JobState.SUCCEEDED
    result = job.result(made)
    assert result["interruptions"] == 2
    assert result["savings_percent"] == 70.0
    assert result["billable_seconds"] == 231 and result["training_seconds"] == 770
    assert result["cost_usd"] == pytest.approx(231 / 3600 * 0.23, abs=1e-4)
    assert result["started"].endswith("+00:00")
    assert len(json.dumps(result)) < 1000
    assert cloud.bill.total() == pytest.approx(result["cost_usd"], abs=1e-4)


def test_submitting_again_attaches_and_reuses_only_the_same_job(cloud):
    first = make().submit()
    assert make().submit() == first
    cloud.clock.advance(3000)
    assert make().submit() == first
    other = make(hyperparameters={"depth": "8"}).submit()
    assert other == "churn-train-2"
    assert cloud.calls.count("CreateTrainingJob") == 2


def test_a_job_that_runs_with_another_specification_is_stopped(cloud):
    first = make().submit()
    assert make(hyperparameters={"depth": "8"}).submit() == "churn-train-2"
    cloud.clock.advance(200)
    assert make().status(first).state is JobState.CANCELLED


def test_a_lost_reply_does_not_start_a_second_job(cloud):
    cloud.faults.add("drop_after", "CreateTrainingJob")
    with pytest.raises(AwsUnavailable):
        make().submit()
    assert make().submit() == "churn-train"
    assert list(cloud.sagemaker.jobs) == ["churn-train"]


def test_a_lost_reply_that_botocore_repeats_finds_its_own_job(cloud, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    _client.cache_clear()
    cloud.faults.add("drop_after", "CreateTrainingJob")
    assert make().submit() == "churn-train"
    assert list(cloud.sagemaker.jobs) == ["churn-train"]


def test_a_failed_job_is_followed_by_another_with_the_container_s_log_in_the_error(cloud):
    cloud.faults.add("fail", reason="AlgorithmError: ExitCode 1")
    job = make()
    made = job.submit()
    cloud.logs.write("/aws/sagemaker/TrainingJobs", f"{made}/algo-1-{int(cloud.clock.now())}", 0, "KeyError: 'wind'")
    cloud.clock.advance(3000)
    found = job.status(made)
    assert found.state is JobState.FAILED and not found.configuration and not found.again
    assert "AlgorithmError" in found.message and "KeyError: 'wind'" in found.message
    assert job.submit() == "churn-train-2"


def test_without_capacity_the_next_machine_is_tried_and_at_last_on_demand(cloud):
    job = make(**SPOT, instances=["ml.g5.xlarge", "ml.g4dn.xlarge"], on_demand_last=True)
    taken, again = [], []
    cloud.faults.add("no_capacity", "CreateTrainingJob", times=2)
    for _ in range(3):
        made = job.submit()
        request = cloud.sagemaker.jobs[made].request
        taken.append((request["ResourceConfig"]["InstanceType"], request["EnableManagedSpotTraining"]))
        cloud.clock.advance(3000)
        again.append(job.status(made).again)
    assert taken == [("ml.g5.xlarge", True), ("ml.g4dn.xlarge", True), ("ml.g5.xlarge", False)]
    assert again == [True, True, False]
    assert job.status(made).state is JobState.SUCCEEDED


def test_after_the_last_machine_it_is_a_failure_that_a_retry_begins_anew(cloud):
    job = make(instances=["ml.m5.xlarge", "ml.m5.2xlarge"])
    cloud.faults.add("no_capacity", "CreateTrainingJob", times=2)
    for _ in range(2):
        made = job.submit()
        cloud.clock.advance(3000)
    found = job.status(made)
    assert found.state is JobState.FAILED and not found.again and not found.configuration
    assert "CapacityError" in found.message
    assert cloud.sagemaker.jobs[job.submit()].request["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"


def test_a_quota_of_one_machine_leads_to_the_next(cloud):
    cloud.faults.add("quota", "CreateTrainingJob")
    made = make(instances=["ml.p3.2xlarge", "ml.m5.xlarge"]).submit()
    assert cloud.sagemaker.jobs[made].request["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"
    cloud.faults.add("quota", "CreateTrainingJob")
    with pytest.raises(AwsQuota, match="quota"):
        make(name="other").submit()


def test_spot_that_waits_too_long_says_which_limit(cloud):
    cloud.faults.add("slow", seconds=50_000)
    job = make(**SPOT)
    made = job.submit()
    cloud.clock.advance(60_000)
    assert "max_wait (7200 s)" in job.status(made).message


def test_cancelling_stops_the_job_and_nothing_is_left_running(cloud):
    job = make()
    made = job.submit()
    cloud.clock.advance(200)
    job.cancel(made)
    cloud.clock.advance(200)
    assert job.status(made).state is JobState.CANCELLED
    job.cancel(made)
    assert cloud.bill.running() == []


def test_the_request_carries_keys_network_tags_and_limits(cloud):
    job = make(
        kms_key="arn:aws:kms:us-east-1:123456789012:key/abc", subnets=["subnet-1"], security_groups=["sg-1"],
        network_isolation=True, encrypt_traffic=True, inputs={"train": "s3://data/train"}, count=2,
        tags={"dag_id": "churn"}, entrypoint=["python"], arguments=["-m", "train"], **SPOT,
    )  # fmt: skip
    request = cloud.sagemaker.jobs[job.submit()].request
    assert request["OutputDataConfig"]["KmsKeyId"] == request["ResourceConfig"]["VolumeKmsKeyId"] == job.kms_key
    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert request["EnableNetworkIsolation"] and request["EnableInterContainerTrafficEncryption"]
    assert {"Key": "dag_id", "Value": "churn"} in request["Tags"]
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["AlgorithmSpecification"]["ContainerArguments"] == ["-m", "train"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spot": True}, "spot training needs a place for checkpoints"),
        ({"instances": []}, "no machine type"),
        ({"name": "x" * 60}, "too long"),
        ({"subnets": ["subnet-1"]}, "subnets and security groups"),
        ({"script": "/nowhere/at/all"}, "there is nothing in"),
        ({"script": "s3://code/x.tar.gz", "arguments": ["x"]}, "image's own command"),
    ],
)
def test_what_cannot_be_right_is_refused_before_aws_is_asked(cloud, changes, said):
    with pytest.raises(ConfigurationError, match=said):
        make(**changes).submit()
    assert cloud.calls == []


def test_secrets_are_refused_because_everyone_could_read_them(cloud):
    with pytest.raises(ConfigurationError, match="cannot be given secrets") as error:
        make().submit({"PASSWORD": "hunter2"})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("throttle", AwsUnavailable),
        ("server_error", AwsUnavailable),
        ("drop_before", AwsUnavailable),
        ("denied", AwsRefused),
    ],
)
def test_errors_are_told_apart_by_what_a_retry_mends(cloud, fault, error):
    made = make().submit()
    cloud.faults.add(fault, "DescribeTrainingJob")
    with pytest.raises(error) as raised:
        make().status(made)
    assert raised.value.retryable is (error is AwsUnavailable)
    assert make().status(made).state is JobState.PENDING


def test_an_expired_token_is_renewed_once(cloud):
    made = make().submit()
    cloud.faults.add("expired_token", "DescribeTrainingJob")
    assert make().status(made).state is JobState.PENDING
    cloud.faults.add("expired_token", "DescribeTrainingJob", times=2)
    with pytest.raises(AwsUnavailable, match="ExpiredToken"):
        make().status(made)


def test_it_is_made_again_from_json_and_holds_no_client(cloud):
    job = make(**SPOT).connect(_Clients(cloud))
    again = Adapter.load(json.loads(json.dumps(job.describe())))
    assert again == make(**SPOT)
    assert again.clients is None


def test_names_of_tasks_leave_room_for_the_number_of_the_try():
    name = job_name("a_dag_with_a_long_name", "a_task_with_a_long_name", "manual__2026-01-01", limit=NAME_LIMIT)
    assert len(f"{name}-99") <= 63
    make(name=name).check()


class _Clients:
    def __init__(self, cloud):
        self.cloud = cloud

    def client(self, service, fresh=False):
        return self.cloud.client(service)
