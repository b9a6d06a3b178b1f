"""A person decides: through Airflow's own route for answers, its sweep of time-outs, and the operators after it."""

import datetime as dt
import json
import threading
import time
from types import SimpleNamespace

import pytest

from airflow_provider_sml.compat import AirflowFailException, AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.gate import judge
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.operators.approval import ApproveModelOperator
from airflow_provider_sml.operators.deployment import DeployModelOperator
from airflow_provider_sml.ui.waiting import questions
from tests.ml.test_gate import EVALUATION
from tests.toy import register_versions

DAG = """
from airflow.sdk import DAG, Asset
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow_provider_sml.operators.approval import ApproveModelOperator

with DAG("approvals", params={{"rate": 0.5}}) as dag:
    for name, version, arguments in {tasks!r}:
        approve = ApproveModelOperator(
            task_id=name, version=version, mlflow={mlflow!r}, reports={reports!r},
            outlets=[Asset(f"x-sml://{{name}}/passed")], **arguments,
        )
        approve >> EmptyOperator(task_id=f"after_{{name}}")
"""
TASKS = {
    "agreed": {"by": ["ann", "dag_test"], "exclude_trigger": True, "within": 3600},
    "refused": {"by": ["ann", {"id": "7", "name": "bob"}]},
    "own": {"exclude_trigger": True},
    "silent": {"by": ["ann"], "within": 0.5},
    "silent_approve": {"by": ["ann"], "within": 0.5, "on_no_answer": "approve"},
    "silent_fail": {"by": ["ann"], "within": 0.5, "on_no_answer": "fail"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Six versions that have passed their gate, which awaits an approval."""
    root = register_versions(tmp_path_factory.mktemp("models"), len(TASKS))
    registry = Registry(str(root / "mlflow"))
    versions = [registry.version("toy", version=str(number + 1)) for number in range(len(TASKS))]
    found = SimpleNamespace(root=root, registry=registry, versions=dict(zip(TASKS, versions, strict=True)))
    for name in TASKS:
        judged(found, name)
    return found


def judged(models, name):
    """Judge a version, again or for the first time."""
    version = models.versions[name]
    folder = models.root / "reports" / "toy" / "gate" / version.version
    evaluation = EVALUATION | {"model_id": version.model_id, "champion": None}
    assert judge(version, evaluation, {}, folder).passed
    models.registry.set_tags(version, {"approval": "waiting"})
    return folder


@pytest.fixture(scope="module")
def answer(airflow_db):
    """Airflow's route for answers, behind its own log-in and its own check of who was asked."""
    from airflow.api_fastapi.app import init_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.routes.public.hitl import task_instances_hitl_router
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.include_router(task_instances_hitl_router)
    manager = init_auth_manager(app)
    client = TestClient(app)

    def send(run_id, task, user, option, comment=""):
        token = manager.generate_jwt(SimpleAuthManagerUser(username=user, role="user"))
        sent = client.patch(
            f"/dags/approvals/dagRuns/{run_id}/taskInstances/{task}/-1/hitlDetails",
            json={"chosen_options": [option], "params_input": {"comment": comment}},
            headers={"Authorization": f"Bearer {token}"},
        )
        return sent.status_code

    return send


def answer_all(answer, found):
    """Answer three tasks once all are asked, and let the scheduler's sweep meet the others; ``dag.test`` waits."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    end = time.monotonic() + 120
    while time.monotonic() < end:
        with create_session() as session:
            asked = session.query(TaskInstance, HITLDetail).filter(
                HITLDetail.ti_id == TaskInstance.id, TaskInstance.dag_id == "approvals",
                TaskInstance.state == "awaiting_input",
            ).all()  # fmt: skip
            forms = {
                instance.task_id: (instance.run_id, detail.subject, detail.body, detail.params)
                for instance, detail in asked
            }
        if len(forms) == len(TASKS):
            break
        time.sleep(0.2)
    found["forms"] = forms
    found["waiting"] = questions(["approvals", "other"])
    run = forms["agreed"][0]
    found["codes"] = [
        answer(run, "agreed", "dag_test", "Approve"),
        answer(run, "agreed", "eve", "Approve"),
        answer(run, "agreed", "ann", "Approve", "good figures"),
        answer(run, "agreed", "ann", "Reject"),
        answer(run, "refused", "bob", "Approve"),
        answer(run, "refused", "ann", "Reject", "the <b>storm</b>"),
        answer(run, "own", "dag_test", "Approve"),
    ]
    time.sleep(0.5)
    SchedulerJobRunner(job=Job()).check_awaiting_input_timeouts()


@pytest.fixture(scope="module")
def decided(models, answer, airflow_db):
    """One run in which six versions are decided on."""
    from airflow_provider_sml.testing.plugin import Project

    project = Project(airflow_db / "dags")
    tasks = [(name, models.versions[name].to_xcom(), arguments) for name, arguments in TASKS.items()]
    file = project.write(
        "approvals.py",
        DAG.format(tasks=tasks, mlflow=str(models.root / "mlflow"), reports=str(models.root / "reports")),
    )
    found = {}
    thread = threading.Thread(target=answer_all, args=(answer, found))
    thread.start()
    try:
        result = project.run(file, "approvals")
    finally:
        thread.join()
        file.unlink()
    return SimpleNamespace(result=result, **found)


def test_only_who_was_asked_answers_and_only_once(decided):
    assert decided.codes == [403, 403, 200, 409, 403, 200, 200]


def test_the_run_goes_on_only_where_the_version_was_approved(decided):
    assert decided.result.tasks == {
        "agreed": "success", "after_agreed": "success",
        "refused": "skipped", "after_refused": "skipped",
        "own": "failed", "after_own": "upstream_failed",
        "silent": "skipped", "after_silent": "skipped",
        "silent_approve": "success", "after_silent_approve": "success",
        "silent_fail": "failed", "after_silent_fail": "upstream_failed",
    }  # fmt: skip
    assert sorted(decided.result.events) == [
        ("x-sml://agreed/passed", {"version": "1", "approved_by": "ann"}),
        ("x-sml://silent_approve/passed", {"version": "5", "approved_by": ""}),
    ]


def test_the_page_of_the_model_can_show_what_waits(decided):
    asked = {one.task_id: one for one in decided.waiting}
    assert set(asked) == set(TASKS) and questions(["approvals"]) == []  # all are answered, or their time is over
    one = asked["agreed"]
    assert (one.dag_id, one.run_id, one.map_index) == ("approvals", decided.forms["agreed"][0], -1)
    assert (one.subject, one.users) == ("Deploy toy version 1?", ["ann"])


def test_the_form_shows_the_evidence(decided):
    _, subject, body, fields = decided.forms["agreed"]
    assert list(fields) == ["comment"] and fields["comment"]["schema"]["title"] == "Comment"
    assert subject == "Deploy toy version 1?"
    assert "| auc | ✓ | 0.7500 \\[0.7000, 0.8000\\] | lower end at least 0.5 |" in body
    assert body.endswith("/sml/models/toy/gate/1)") and "2 of 2 checks passed" in body


@pytest.mark.parametrize(
    ("name", "approval", "by", "comment", "page"),
    [
        ("agreed", "approved", "ann", "good figures", "Approved by ann at"),
        ("refused", "rejected", "ann", "the <b>storm</b>", "&lt;b&gt;storm"),
        ("own", "waiting", None, None, None),
        ("silent", "rejected", "", "", "Rejected because nobody answered in time"),
        ("silent_approve", "approved", "", "", "Approved because nobody answered in time"),
        ("silent_fail", "unanswered", "", "", "Nobody had answered by"),
    ],
)
def test_the_decision_and_the_person_are_recorded(models, decided, name, approval, by, comment, page):
    version = models.versions[name]
    tags = models.registry.tags(version)
    assert (tags["approval"], tags.get("approval_by"), tags.get("approval_comment")) == (approval, by, comment)
    folder = models.root / "reports" / "toy" / "gate" / version.version
    if page is None:
        assert not (folder / "approval.json").exists()
    else:
        kept = json.loads((folder / "approval.json").read_text())["approval"]
        assert (kept["decision"], kept["by"], kept["time"]) == (approval, by, tags["approval_time"])
        assert page in (folder / "gate.html").read_text()
    # what is not approved is not deployed, whoever asks for it
    deploy = DeployModelOperator(task_id="d", name="toy", version=version.version, mlflow=str(models.root / "mlflow"))
    if approval == "approved":
        assert deploy._version(models.registry, {}) == version
    else:
        with pytest.raises(ConfigurationError, match=f"was not approved\n.*found: approval: {approval}"):
            deploy._version(models.registry, {})


# --- without a run ----------------------------------------------------------------------------------------------------


def operator(models, name, mlflow=None, **arguments):
    return ApproveModelOperator(
        task_id="approve", version=models.versions[name], mlflow=mlflow or str(models.root / "mlflow"),
        reports=str(models.root / "reports"), **arguments,
    )  # fmt: skip


def context(trigger=None):
    return {"dag_run": SimpleNamespace(triggering_user_name=trigger), "task": SimpleNamespace(outlets=[])}


def said(option="Approve", user="ann"):
    return {
        "chosen_options": [option], "params_input": {"comment": "yes"}, "responded_at": dt.datetime.now(dt.UTC),
        "responded_by_user": {"id": user, "name": user},
    }  # fmt: skip


def test_an_answer_that_mlflow_could_not_be_told_of_is_found_by_the_retry(models, decided, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    folder = judged(models, "own")
    down = operator(models, "own", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        down.execute_complete(context(), said())
    assert models.registry.tags(models.versions["own"])["approval"] == "waiting"
    result = operator(models, "own").execute(context())
    assert (result["decision"], result["by"], result["comment"]) == ("approved", "ann", "yes")
    assert models.registry.tags(models.versions["own"])["approval"] == "approved"
    # a verdict that is given anew is asked about anew
    time.sleep(1.1)  # verdicts are told apart by their second
    judged(models, "own")
    assert not (folder / "approval.json").exists()


def test_evidence_about_a_champion_that_has_changed_approves_nothing(models, decided):
    folder = judged(models, "silent")
    models.registry.set_alias(models.versions["agreed"], CHAMPION)
    try:
        with pytest.raises(AirflowFailException, match="the champion has changed since toy version 4 was judged"):
            operator(models, "silent").execute_complete(context(), said())
        with pytest.raises(AirflowSkipException, match="toy version 4 was rejected by ann"):
            operator(models, "silent")._finish(
                context(), operator(models, "silent")._decide(context(), said("Reject"))
            )  # fmt: skip
    finally:
        with models.registry._client() as client:
            client.delete_registered_model_alias("toy", CHAMPION)
    assert (folder / "approval.json").exists()


@pytest.mark.parametrize(
    ("arguments", "trigger", "user", "words"),
    [
        ({"by": ["ann"]}, None, "eve", "eve, who was not asked"),
        ({"by": ["ann", "bob"], "exclude_trigger": True}, "ann", "ann", "ann, who triggered the run"),
        ({"exclude_trigger": True}, "ann", "ann", "somebody other than ann"),
    ],
)
def test_an_answer_of_somebody_who_may_not_give_it_does_not_count(models, decided, arguments, trigger, user, words):
    """Airflow lets it through where everybody is an administrator."""
    folder = judged(models, "silent_fail")
    with pytest.raises(AirflowFailException, match=words):
        operator(models, "silent_fail", **arguments).execute_complete(context(trigger), said(user=user))
    assert not (folder / "approval.json").exists()


def test_a_question_that_nobody_may_answer_is_not_asked(models, decided):
    judged(models, "refused")
    with pytest.raises(AirflowFailException, match="nobody is left who may approve"):
        operator(models, "refused", by=["ann"], exclude_trigger=True).execute(context("ann"))


def test_a_version_that_did_not_pass_is_not_up_for_approval(models, decided):
    version = models.versions["refused"]
    folder = models.root / "reports" / "toy" / "gate" / version.version
    assert not judge(version, EVALUATION | {"model_id": version.model_id}, {"auc": {"min": 0.9}}, folder).passed
    with pytest.raises(AirflowFailException, match="is not up for approval"):
        operator(models, "refused").execute(context())


def test_what_follows_no_answer_must_be_known():
    with pytest.raises(ConfigurationError, match="expected: reject or approve or fail; found: shrug"):
        ApproveModelOperator(task_id="t", version="", on_no_answer="shrug")
