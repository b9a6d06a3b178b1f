"""spark-submit for real: one driver under a name, whoever crashes; how it ends, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from airflow_provider_sml.cloud.remote_job import JobState
from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.ml.etl.plan import local_bytes
from tests.jobs import Work, until

#: A task process that submits and dies where it is told to.
TASK = """
import json, os, signal, subprocess, sys
from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob

die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
job = SparkSubmitJob(**json.loads(sys.argv[1]))
if sys.argv[2] == "as soon as the driver starts":
    subprocess.Popen.wait = subprocess.Popen.communicate = die
elif sys.argv[2] == "before the driver starts":
    subprocess.run = die
job.submit()
die()
"""


def ended(job: SparkSubmitJob, job_id: str):
    assert until(lambda: job.status(job_id).state.final)
    return job.status(job_id)


@pytest.fixture
def work(tmp_path):
    work = Work(tmp_path)
    yield work
    work.end()


def test_a_driver_counts_with_spark_and_gives_its_output(work):
    job = work.job("spark", master="local[1]", output={"uri": "/data/run"})
    job_id = job.submit()
    assert ended(job, job_id).state is JobState.SUCCEEDED
    assert job.result(job_id) == {"uri": "/data/run"}
    assert "rows 500" in (work.root / "jobs" / "job" / f"{job_id}.log").read_text()
    assert work.gone()


def test_a_running_driver_is_attached_to_and_keeps_its_own_output(work):
    job_id = work.job(output={"uri": "first"}).submit()
    assert until(work.starts)
    again = work.job(output={"uri": "second"})
    assert again.submit() == job_id
    assert again.status(job_id).state is JobState.RUNNING
    assert "counting rows" in again.status(job_id).progress
    work.release()
    assert ended(again, job_id).state is JobState.SUCCEEDED
    assert again.result(job_id) == {"uri": "first"}
    assert len(work.starts()) == 1


def test_after_the_end_a_submission_starts_a_new_driver(work):
    work.release()
    first = work.job(output={"uri": "first"})
    first_id = first.submit()
    ended(first, first_id)
    second = work.job(output={"uri": "second"})
    second_id = second.submit()
    assert second_id != first_id and ended(second, second_id).state is JobState.SUCCEEDED
    assert len(work.starts()) == 2
    assert (second.result(first_id), second.result(second_id)) == ({"uri": "first"}, {"uri": "second"})
    assert second.status(first_id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("moment", ["as soon as the driver starts", "after the submission"])
def test_a_task_that_crashes_leaves_one_driver_that_its_retry_finds(work, moment):
    job = work.job(output={"uri": "of the crashed task"})
    crash(job, moment)
    assert until(work.starts)
    retry = work.job(output={"uri": "of the retry"})
    job_id = retry.submit()
    assert retry.status(job_id).state is JobState.RUNNING
    work.release()
    assert ended(retry, job_id).state is JobState.SUCCEEDED
    assert len(work.starts()) == 1
    assert retry.result(job_id) == {"uri": "of the crashed task"}


def test_a_task_that_crashes_before_the_start_leaves_no_driver(work):
    work.release()
    job = work.job()
    crash(job, "before the driver starts")
    job_id = job.submit()
    assert ended(job, job_id).state is JobState.SUCCEEDED
    assert len(work.starts()) == 1


def crash(job: SparkSubmitJob, moment: str) -> None:
    task = [sys.executable, "-c", TASK, json.dumps(job.describe()["arguments"]), moment]
    done = subprocess.run(task, timeout=60, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_many_submissions_at_once_start_one_driver(work):
    code = (
        "import json, sys; from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob;"
        "print(SparkSubmitJob(**json.loads(sys.argv[1])).submit())"
    )
    command = [sys.executable, "-c", code, json.dumps(work.job().describe()["arguments"])]
    tasks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    ids = {task.communicate(timeout=60)[0].strip() for task in tasks}
    assert len(ids) == 1
    assert until(work.starts)
    work.release()
    assert ended(work.job(), ids.pop()).state is JobState.SUCCEEDED
    assert len(work.starts()) == 1


@pytest.mark.parametrize("victim", ["java", "group"])
def test_a_driver_that_was_killed_is_a_failure_to_retry(work, victim):
    job = work.job()
    job_id = job.submit()
    assert until(work.starts)
    if victim == "java":
        work.java().kill()
    else:
        os.killpg(os.getpgid(work.java().pid), signal.SIGKILL)
    status = ended(job, job_id)
    assert (status.state, status.configuration) == (JobState.FAILED, False)
    assert "it was killed" in status.message
    work.release()
    assert work.gone()
    again = job.submit()
    assert again != job_id and ended(job, again).state is JobState.SUCCEEDED


def test_an_error_of_the_input_is_one_that_no_retry_mends(work):
    job = work.job("input")
    status = ended(job, job.submit())
    assert (status.state, status.configuration) == (JobState.FAILED, True)
    assert status.message == "day.csv lacks the columns ['weight']"


def test_another_error_is_told_with_the_log_and_may_be_retried(work):
    job = work.job("error")
    job_id = job.submit()
    status = ended(job, job_id)
    assert (status.state, status.configuration) == (JobState.FAILED, False)
    assert "ValueError: no such place" in status.message and f"{job_id}.log" in status.message


def test_a_cancelled_driver_leaves_no_process(work):
    job = work.job()
    job_id = job.submit()
    assert until(work.starts)
    job.cancel(job_id)
    assert job.status(job_id).state is JobState.FAILED
    assert work.gone()
    job.cancel(job_id)  # a second time is no error


def test_a_driver_that_ignores_the_request_is_killed(work):
    job = work.job(grace=2.0)
    job_id = job.submit()
    assert until(work.starts)
    work.java().suspend()  # a stopped process acts on no SIGTERM
    job.cancel(job_id)
    assert job.status(job_id).state is JobState.FAILED
    assert work.gone()


def test_cancelling_a_former_job_does_not_touch_the_one_that_runs(work):
    job = work.job("error")
    former = job.submit()
    ended(job, former)
    now = work.job()
    job_id = now.submit()
    assert until(lambda: len(work.starts()) == 2)
    now.cancel(former)
    assert now.status(job_id).state is JobState.RUNNING
    now.cancel(job_id)
    assert work.gone()


def test_a_secret_reaches_the_driver_and_nothing_else(work):
    job = work.job()
    job_id = job.submit({"SML_TEST_SECRET": "hunter2-0123456789"})
    assert until(work.starts)
    assert work.starts()[0].endswith("hunter2-0123456789")
    arguments = [" ".join(process.cmdline()) for process in work.processes()]
    assert len(arguments) >= 2 and not any("hunter2" in line for line in arguments)
    assert "SML_TEST_SECRET" not in os.environ
    work.release()
    ended(job, job_id)
    kept = [path for path in (work.root / "jobs").rglob("*") if path.is_file()]
    assert len(kept) >= 5 and not any(b"hunter2" in path.read_bytes() for path in kept)
    assert "hunter2" not in json.dumps(job.describe()) + repr(job)


@pytest.mark.parametrize("key", ["spark.hadoop.fs.s3a.secret.key", "fs.s3a.session.token", "spark.ssl.keyPassword"])
def test_a_secret_among_the_settings_is_refused(work, key):
    with pytest.raises(ConfigurationError, match="must not be among the Spark settings") as error:
        work.job(conf={key: "hunter2", "spark.app.name": "x"}).submit()
    assert key in str(error.value) and "hunter2" not in str(error.value)
    assert not work.starts() and not work.processes()


def test_a_wrong_spark_home_is_refused(work, monkeypatch):
    monkeypatch.setenv("SPARK_HOME", str(work.root / "nowhere"))
    with pytest.raises(ConfigurationError, match="SPARK_HOME holds no Spark"):
        work.job().submit()


def test_a_job_that_nobody_started_is_not_known(work):
    for ask in (work.job().status, work.job().result, work.job().cancel):
        with pytest.raises(JobError, match="no record of 12345678"):
            ask("12345678")


@pytest.mark.parametrize(("size", "quick"), [(0, True), (2**30, False)])
def test_the_compiler_fits_what_is_read(size, quick, tmp_path):
    job = SparkSubmitJob("sized", "application.py", [], str(tmp_path), input_bytes=size)

    options = next(part for part in job._command() if part.startswith("spark.driver.extraJavaOptions="))

    assert ("TieredStopAtLevel=1" in options) is quick
    assert "-XX:-DontCompileHugeMethods" in options


def test_only_local_files_are_measured(tmp_path):
    for name, size in (("a.csv", 10), ("b.csv", 5)):
        (tmp_path / name).write_bytes(b"x" * size)

    assert local_bytes([f"{tmp_path}/*.csv", f"file://{tmp_path}/a.csv", "s3://bucket/c.csv", f"{tmp_path}/none"]) == 25
