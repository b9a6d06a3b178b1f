"""The base of operators that run a remote job, through ``dag.test()`` with real drivers."""

import datetime as dt
import json
import threading
from types import SimpleNamespace

import pytest

from airflow_provider_sml.errors import JobError
from tests.jobs import Work, until
from tests.wait_operator import Wait

DAG_FILE = """
import datetime as dt
from airflow.sdk import DAG
from tests.wait_operator import Wait

with DAG("waiting", default_args={{"retries": {retries}, "retry_delay": dt.timedelta(0)}}):
    Wait(task_id="wait", root={root!r}, what={what!r}, deferrable={deferrable}, poll_interval=0.2, {rest})
"""


@pytest.fixture
def work(tmp_path):
    work = Work(tmp_path)
    yield work
    work.end()


@pytest.fixture(params=[False, True], ids=["in a worker", "in the triggerer"])
def run(request, dag_project, work):
    """Runs the operator, in a worker or deferred."""

    def run(what, retries=0, rest=""):
        values = {"root": str(work.root), "what": what, "retries": retries, "rest": rest, "deferrable": request.param}
        file = dag_project.write("waiting.py", DAG_FILE.format(**values))
        return dag_project.run(file, "waiting")

    return run


def test_the_result_of_the_job_is_the_result_of_the_task(run, work):
    result = run("end")
    assert (result.state, result.results) == ("success", {"wait": {"try": 1}})
    assert len(work.starts()) == 1 and work.starts()[0].endswith("hunter2")


def test_a_failed_job_is_started_anew_by_a_retry(run, work):
    assert run("error", retries=1).state == "failed"
    assert len(work.starts()) == 2


def test_an_error_of_the_input_is_not_retried(run, work):
    assert run("input", retries=2).state == "failed"
    assert len(work.starts()) == 1


def test_at_its_deadline_the_job_is_cancelled_and_the_task_fails(run, work):
    assert run("wait", rest="deadline=dt.timedelta(seconds=4)").state == "failed"
    assert list((work.root / "jobs" / "job").glob("*.pid")) and work.gone()


def test_a_killed_driver_is_started_anew_by_a_retry(run, work):
    def kill():
        assert until(work.starts)
        work.java().kill()
        assert until(lambda: len(work.starts()) == 2)
        work.release()

    thread = threading.Thread(target=kill)
    thread.start()
    result = run("wait", retries=1)
    thread.join()
    assert (result.state, result.results) == ("success", {"wait": {"try": 2}})
    assert len(work.starts()) == 2 and work.gone()


def test_a_task_attaches_to_the_driver_that_a_crashed_one_left(run, work):
    left = work.job("wait", output={"try": 1})
    left.submit()
    assert until(work.starts)
    threading.Timer(3, work.release).start()
    result = run("wait")
    assert (result.state, result.results) == ("success", {"wait": {"try": 1}})
    assert len(work.starts()) == 1


def test_a_task_that_runs_out_of_time_leaves_no_process(dag_project, work):
    values = {"root": str(work.root), "what": "wait", "retries": 0, "deferrable": False}
    file = dag_project.write("waiting.py", DAG_FILE.format(**values, rest="execution_timeout=dt.timedelta(seconds=4)"))
    assert dag_project.run(file, "waiting").state == "failed"
    assert list((work.root / "jobs" / "job").glob("*.pid")) and work.gone()


def test_a_killed_task_leaves_no_process(work):
    operator, failed = Wait(task_id="wait", root=str(work.root), what="wait", poll_interval=0.1), []
    thread = threading.Thread(target=lambda: failed.append(error_of(operator)))
    thread.start()
    assert until(work.starts)
    operator.on_kill()
    thread.join(60)
    assert isinstance(failed[0], JobError)
    assert work.gone()


def test_a_task_that_is_killed_while_it_submits_cancels_what_it_started(work):
    class Late(Wait):
        def secrets(self):  # asked for right before the submission
            self.on_kill()
            return {}

    error = error_of(Late(task_id="wait", root=str(work.root), what="wait", poll_interval=0.1))
    assert isinstance(error, JobError) and "the task was killed" in str(error)
    assert work.gone()


def error_of(operator):
    try:
        operator.execute({"ti": SimpleNamespace(try_number=1)})
    except Exception as error:
        return error
    return None


def test_a_deferred_task_takes_nothing_secret_along(work):
    from airflow.sdk.exceptions import TaskDeferred

    operator = Wait(task_id="wait", root=str(work.root), what="end", deferrable=True, deadline=dt.timedelta(hours=1))
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({"ti": SimpleNamespace(try_number=1)})
    trigger = deferred.value.trigger
    kept = json.dumps([trigger.serialize(), deferred.value.kwargs])
    assert "hunter2" not in kept and len(kept) < 2000
    assert trigger.deadline is not None
    assert until(lambda: trigger.job_id and work.gone())
