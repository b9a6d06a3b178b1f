"""A worker that is killed with SIGKILL while its job runs in a cloud: what the next try does, and what is paid for.

The official operators are run by ``scripts/faults.sh`` alone, for the page docs/faults.md: their imports take long.
"""

import os

import pytest

from tests import faults
from tests.jobs import until
from tests.operators.test_faults import REQUEST
from tests.operators.test_faults import TRAIN as OFFICIAL_SAGEMAKER
from tests.operators.test_faults_vertex import IMAGE
from tests.operators.test_faults_vertex import TRAIN as OFFICIAL_VERTEX
from tests.operators.test_sagemaker_train import DAG_FILE as SAGEMAKER
from tests.operators.test_vertex_train import DAG_FILE as VERTEX
from tests.workers import Workers

TITLE = "the worker is killed (SIGKILL) while it waits, and the task is retried"
#: What differs between two jobs of the same specification.
OWN = ("job", "model", "started", "ended")
OFFICIAL = pytest.mark.skipif("SML_WRITE_FAULTS" not in os.environ, reason="scripts/faults.sh runs it")


@pytest.fixture
def kill_and_retry(dag_project):
    """Kill the worker of a task when it has submitted its job and looks at it, then run the next try."""
    started = []

    def kill_and_retry(text, dag_id, cloud, jobs, created):
        workers = Workers(dag_project.write("killed.py", text), dag_id)
        started.append(workers)
        per_call, cloud.clock.per_call = cloud.clock.per_call, 0  # no job ends while the worker dies
        first = workers.start()
        assert until(lambda: jobs and cloud.calls[-1].operation != created, 120)
        pids = workers.kill(first)
        assert len(pids) >= 2, "the supervisor and the task's own process"
        assert workers.state() == "running", "nobody has told Airflow"
        assert len(cloud.bill.running()) == 1, "and the job goes on"
        assert workers.retry() == "up_for_retry"
        cloud.clock.per_call = per_call
        state = workers.end(workers.start())
        cloud.clock.per_call = 0
        cloud.clock.advance(300)
        tries, running = cloud.calls.count(created), len(cloud.bill.running())
        cell = faults.jobs_cell(state, len(jobs), running, cloud.bill.total(), workers.result(), tries)
        return state, running, tries, workers.result(), cell

    yield kill_and_retry
    for workers in started:
        workers.close()


def facts(result):
    return {key: value for key, value in result.items() if key not in OWN}


@pytest.mark.slow
def test_a_worker_of_sagemaker(kill_and_retry, dag_project, cloud):
    text, jobs = SAGEMAKER.format(more="", retries=1), cloud.sagemaker.jobs
    state, running, tries, result, cell = kill_and_retry(text, "churn_train", cloud, jobs, "CreateTrainingJob")
    faults.note("sagemaker", faults.KILLED, TITLE, "ours", cell)
    assert (state, list(jobs), running, tries) == ("success", [result["job"]], 0, 1)
    assert cloud.calls.count("StopTrainingJob") == 0
    cloud.clock.per_call = 30
    undisturbed = dag_project.run(dag_project.dags / "killed.py", "churn_train").results["train"]
    assert facts(result) == facts(undisturbed)


@pytest.mark.slow
def test_a_worker_of_vertex(kill_and_retry, dag_project, google):
    text, jobs = VERTEX.format(more="", retries=1), google.vertex.jobs.jobs
    state, running, tries, result, cell = kill_and_retry(text, "churn_train", google, jobs, "CreateCustomJob")
    faults.note("vertex", faults.KILLED, TITLE, "ours", cell)
    ids = [name.rpartition("/")[2] for name in jobs]
    assert (state, ids, running, tries) == ("success", [result["job"]], 0, 1)
    assert google.calls.count("CancelCustomJob") == 0
    google.clock.per_call = 30
    undisturbed = dag_project.run(dag_project.dags / "killed.py", "churn_train").results["train"]
    assert facts(result) == facts(undisturbed)


@OFFICIAL
def test_a_worker_of_sagemaker_with_the_official_operator(kill_and_retry, cloud):
    text = OFFICIAL_SAGEMAKER.format(
        retries=1, request=REQUEST, instances=["ml.m5.xlarge"], interval=0.2, official="", ours=""
    )  # fmt: skip
    jobs = cloud.sagemaker.jobs
    state, running, _, _, cell = kill_and_retry(text, "official", cloud, jobs, "CreateTrainingJob")
    faults.note("sagemaker", faults.KILLED, TITLE, "official", cell)
    assert (state, len(jobs), running) == ("success", 2, 0)


@OFFICIAL
def test_a_worker_of_vertex_with_the_official_operator(kill_and_retry, google):
    text = OFFICIAL_VERTEX.format(
        retries=1, image=IMAGE, strategy="STANDARD", ours="on-demand", both="", interval=0.2
    )  # fmt: skip
    jobs = google.vertex.jobs.jobs
    state, running, _, _, cell = kill_and_retry(text, "official", google, jobs, "CreateCustomJob")
    faults.note("vertex", faults.KILLED, TITLE, "official", cell)
    assert (state, len(jobs), running) == ("success", 2, 0)
