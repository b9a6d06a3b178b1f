"""What follows from a poll, names of jobs, and adapters that are made again from their description."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_provider_sml.cloud.remote_job import (
    Adapter,
    JobState,
    JobStatus,
    JobWatch,
    Step,
    failure,
    job_name,
    settle,
)
from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob
from airflow_provider_sml.errors import ConfigurationError, JobError

RUNNING = JobStatus(JobState.RUNNING)
LOST = ConnectionError("no route")


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
def test_a_job_that_is_not_over_is_waited_for(state):
    assert JobWatch("j", deadline=100).decide(JobStatus(state), 99.9) == Step("wait")


def test_a_job_that_succeeded_is_done_even_after_its_deadline():
    assert JobWatch("j", deadline=100).decide(JobStatus(JobState.SUCCEEDED), 200) == Step("done")


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_ended_badly_fails_with_its_reason_and_may_be_retried(state):
    step = JobWatch("j").decide(JobStatus(state, "no memory"), 0)
    assert step == Step("fail", f"job j {state}: no memory", retryable=True, cancel=False)


def test_a_failure_of_the_input_is_not_retried():
    step = JobWatch("j").decide(JobStatus(JobState.FAILED, "a column is missing", configuration=True), 0)
    assert (step.action, step.retryable, failure(step).retryable) == ("fail", False, False)


def test_at_its_deadline_a_job_is_cancelled():
    watch = JobWatch("j", deadline=100)
    assert watch.decide(RUNNING, 99).action == "wait"
    step = watch.decide(RUNNING, 100)
    assert (step.action, step.cancel, step.retryable) == ("fail", True, True)
    assert step.message == "job j was still running at its deadline"


def test_without_a_deadline_it_waits_for_ever():
    assert JobWatch("j").decide(RUNNING, 1e12).action == "wait"


def test_failed_polls_are_survived_and_counted_in_a_row_only():
    watch = JobWatch("j", max_errors=3)
    assert [watch.decide(LOST, 0).action for _ in range(3)] == ["wait"] * 3
    assert watch.decide(RUNNING, 0).action == "wait"
    assert [watch.decide(LOST, 0).action for _ in range(4)] == ["wait", "wait", "wait", "fail"]


def test_after_too_many_failed_polls_the_job_is_left_running():
    step = JobWatch("j", max_errors=0).decide(LOST, 0)
    assert (step.action, step.cancel, step.retryable) == ("fail", False, True)
    assert "no route" in step.message and "a retry attaches to it" in step.message


def test_a_job_that_cannot_be_asked_at_its_deadline_is_cancelled_too():
    step = JobWatch("j", deadline=100).decide(LOST, 100)
    assert (step.action, step.cancel) == ("fail", True)


def test_a_configuration_error_of_a_poll_is_not_waited_out():
    step = JobWatch("j").decide(ConfigurationError("there is no such region"), 0)
    assert (step.action, step.retryable, step.cancel) == ("fail", False, False)
    assert "no such region" in step.message


def test_each_line_of_progress_is_told_once():
    watch = JobWatch("j")
    polls = [("a", "b"), ("a", "b"), ("b", "c"), (), ("c", "d")]
    told = [watch.decide(JobStatus(JobState.RUNNING, progress=lines), 0).news for lines in polls]
    assert told == [("a", "b"), (), ("c",), (), ("d",)]
    assert watch.decide(LOST, 0).news == ("job j could not be asked: no route",)


@dataclass(frozen=True)
class Kept(Adapter):
    """An adapter that notes what is cancelled."""

    name: str = "kept"
    cancelled: list[str] = field(default_factory=list)
    stubborn: bool = False

    def cancel(self, job_id: str) -> None:
        if self.stubborn:
            raise JobError("it does not end")
        self.cancelled.append(job_id)


def test_only_a_step_that_says_so_cancels():
    job: Any = Kept()
    assert settle(Step("fail", "no"), job, "7").message == "no" and job.cancelled == []
    assert settle(Step("fail", "late", cancel=True), job, "7").message == "late; it was cancelled"
    assert job.cancelled == ["7"]


def test_a_failed_cancellation_hides_no_reason():
    job: Any = Kept(stubborn=True)
    step = settle(Step("fail", "late", retryable=False, cancel=True), job, "7")
    assert step.message.startswith("late; it could not be cancelled") and "it does not end" in step.message
    assert step.retryable is False


def test_an_adapter_comes_back_from_its_json():
    job = SparkSubmitJob("n", "app.py", ["x"], "/work", conf={"a": "b"}, output={"uri": "/o"})
    assert SparkSubmitJob.load(json.loads(json.dumps(job.describe()))) == job
    assert isinstance(Adapter.load(job.describe()), SparkSubmitJob)


def test_only_adapters_are_loaded():
    with pytest.raises(ConfigurationError, match="not an adapter"):
        Adapter.load({"adapter": "subprocess.Popen", "arguments": {"args": ["true"]}})
    with pytest.raises(ConfigurationError, match="not an adapter"):
        Adapter.load({"adapter": "json.dumps", "arguments": {"obj": 1}})


def test_a_name_is_short_plain_and_the_same_each_time():
    parts = ("flights_ingest", "etl.spark", "scheduled__2026-03-01T00:00:00+00:00", "3")
    name = job_name(*parts)
    assert name == job_name(*parts)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,62}", name)
    assert name.startswith("flights-ingest-etl-spark")


@pytest.mark.parametrize("other", [("a-b", "c"), ("a", "b", "c"), ("a_b-c",), ("a" * 80, "b"), ("a" * 80, "c"), ("é",)])
def test_names_of_different_work_differ(other):
    assert job_name(*other) != job_name("a", "b-c")
    assert len(job_name(*other)) <= 63 and not job_name(*other).startswith("-")
    assert len(job_name(*other, limit=32)) <= 32
    assert job_name("a" * 80, "b") != job_name("a" * 80, "c")
