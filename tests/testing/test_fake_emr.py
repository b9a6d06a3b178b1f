"""The fake EMR Serverless as a plain boto3 script sees it."""

import time

import boto3
import botocore.exceptions
import pytest

ROLE = "arn:aws:iam::123456789012:role/spark"


@pytest.fixture
def emr(fake_aws):
    return boto3.client("emr-serverless")


@pytest.fixture
def application(emr):
    return emr.create_application(name="etl", releaseLabel="emr-7.9.0", type="SPARK")["applicationId"]


def start(emr, application, token="one", **changes):
    request = {
        "applicationId": application, "clientToken": token, "executionRoleArn": ROLE, "name": "night",
        "jobDriver": {"sparkSubmit": {"entryPoint": "s3://code/app.py", "entryPointArguments": ["s3://x/plan.json"],
                                      "sparkSubmitParameters": "--conf spark.executor.instances=2"}},
    }  # fmt: skip
    return emr.start_job_run(**request | changes)["jobRunId"]


def state(emr, application, run):
    return emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]["state"]


def test_a_run_goes_through_its_states_and_tells_what_it_used(fake_aws, emr, application):
    run = start(emr, application)
    seen = []
    for _ in range(40):
        if (now := state(emr, application, run)) not in seen:
            seen.append(now)
        fake_aws.clock.advance(10 if seen[-1] != "SUBMITTED" else 2)
    assert seen == ["SUBMITTED", "PENDING", "SCHEDULED", "RUNNING", "SUCCESS"]
    found = emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]
    assert found["totalResourceUtilization"]["vCPUHour"] == pytest.approx(12 * 300 / 3600)
    assert emr.get_application(applicationId=application)["application"]["state"] == "STARTED"
    assert fake_aws.bill.total() == pytest.approx(0.052624 + 0.0057785 * 4, abs=1e-3)


def test_a_client_token_starts_one_run(emr, application):
    assert start(emr, application) == start(emr, application)
    assert start(emr, application, token="two") != start(emr, application)
    with pytest.raises(botocore.exceptions.ClientError, match="other parameters"):
        start(emr, application, name="day")
    assert len(emr.list_job_runs(applicationId=application)["jobRuns"]) == 2


def test_a_run_is_cancelled(fake_aws, emr, application):
    run = start(emr, application)
    emr.cancel_job_run(applicationId=application, jobRunId=run)
    assert state(emr, application, run) == "CANCELLING"
    fake_aws.clock.advance(60)
    assert state(emr, application, run) == "CANCELLED"
    assert emr.list_job_runs(applicationId=application, states=["SUCCESS"])["jobRuns"] == []


@pytest.mark.parametrize(
    ("fault", "said"), [("fail", "java.lang.OutOfMemoryError"), ("no_capacity", "ApplicationMaxCapacityExceeded")]
)
def test_a_failed_run_quotes_the_reason(fake_aws, emr, application, fault, said):
    fake_aws.faults.add(fault, "StartJobRun")
    run = start(emr, application)
    fake_aws.clock.advance(3000)
    found = emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]
    assert found["state"] == "FAILED"
    assert said in found["stateDetails"]


def test_a_run_past_its_time_is_cancelled(fake_aws, emr, application):
    run = start(emr, application, executionTimeoutMinutes=2)
    fake_aws.clock.advance(3000)
    assert state(emr, application, run) == "CANCELLED"


@pytest.mark.parametrize(("code", "ended"), [(0, "SUCCESS"), (1, "FAILED")])
def test_the_work_can_be_done_for_real(fake_aws, emr, application, code, ended):
    asked = []

    def driver(request):
        asked.append(request["jobDriver"]["sparkSubmit"]["entryPointArguments"])
        return code, "INFO fine\nValueError: no such file\n"

    fake_aws.emr.driver = driver
    run = start(emr, application)
    fake_aws.clock.advance(100)
    until = time.monotonic() + 20
    while state(emr, application, run) == "RUNNING" and time.monotonic() < until:
        time.sleep(0.01)
    found = emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]
    assert found["state"] == ended
    assert asked == [["s3://x/plan.json"]]
    assert ("ValueError: no such file" in found["stateDetails"]) is (code == 1)


def test_what_is_not_there_and_what_is_wrong(emr, application):
    with pytest.raises(emr.exceptions.ResourceNotFoundException):
        emr.get_job_run(applicationId=application, jobRunId="00run9")
    with pytest.raises(emr.exceptions.ResourceNotFoundException):
        start(emr, "00none")
    with pytest.raises(emr.exceptions.ValidationException, match="pattern"):
        start(emr, application, token="not a token")
