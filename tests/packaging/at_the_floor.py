"""A person's approval on Airflow 3.1, where a trigger waits for the answer: run by ``test_floor`` in its environment.

All processes of that Airflow run: ``dag.test()`` of 3.1 cannot wait for an answer.
"""

from types import SimpleNamespace

import pytest

from tests.browser import conftest as browser
from tests.browser.stack import USERS
from tests.operators.test_approval import DAG
from tests.ui.big_model import write

stack = browser.stack
TASKS = {
    "agreed": {"by": ["admin", "ann"], "within": 3600, "exclude_trigger": True},
    "refused": {"by": ["ann"]},
    "silent": {"by": ["ann"], "within": 5.0},
    "silent_fail": {"by": ["ann"], "within": 5.0, "on_no_answer": "fail"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Four versions that passed their gate, and a DAG that asks about each."""
    from airflow_provider_sml.ml.gate import judge
    from airflow_provider_sml.ml.registry import Registry
    from tests.ml.test_gate import EVALUATION
    from tests.toy import register_versions

    root = register_versions(tmp_path_factory.mktemp("floor"), len(TASKS))
    registry, asked = Registry(str(root / "mlflow")), []
    for number, (name, arguments) in enumerate(TASKS.items(), 1):
        version = registry.version("toy", version=str(number))
        folder = root / "reports" / "toy" / "gate" / version.version
        assert judge(version, EVALUATION | {"model_id": version.model_id, "champion": None}, {}, folder).passed
        registry.set_tags(version, {"approval": "waiting"})
        asked.append((name, version.to_xcom(), arguments | {"retries": 0}))
    text = DAG.format(tasks=asked, mlflow=str(root / "mlflow"), reports=str(root / "reports"))
    write(root / "dags" / "approvals.py", text)
    (root / "plugins").mkdir()
    passwords = {user: f"word-of-{user}" for user in USERS}
    write(root / ".airflow" / "passwords.json", passwords)
    return SimpleNamespace(root=root, passwords=passwords, registry=registry)


def test_a_trigger_waits_for_the_answer_and_the_run_goes_on_only_where_it_was_approved(stack, project):
    runs = "/api/v2/dags/approvals/dagRuns"
    status, run = stack.call(runs, {"logical_date": None, "conf": {}})
    assert status == 200, run
    run = run["dag_run_id"]

    def waiting():
        states = stack.tasks("approvals", run)
        return all(states[name] in ("deferred", "skipped", "failed") for name in TASKS) and states

    states = stack.until(waiting, "the questions")
    assert (states["agreed"], states["refused"]) == ("deferred", "deferred")

    def answer(task, user, option, comment=""):
        address = f"{runs}/{run}/taskInstances/{task}/-1/hitlDetails"
        body = {"chosen_options": [option], "params_input": {"comment": comment}}
        return stack.call(address, body, "PATCH", user=user)[0]

    assert answer("agreed", "admin", "Approve") == 403  # who triggered it
    assert answer("agreed", "vera", "Approve") == 403
    assert answer("agreed", "ann", "Approve", "good figures") == 200
    assert answer("refused", "ann", "Reject", "a storm") == 200
    stack.until(lambda: stack.call(f"{runs}/{run}")[1]["state"] in ("success", "failed"), "the end of the run")
    assert stack.tasks("approvals", run) == {
        "agreed": "success", "after_agreed": "success",
        "refused": "skipped", "after_refused": "skipped",
        "silent": "skipped", "after_silent": "skipped",
        "silent_fail": "failed", "after_silent_fail": "upstream_failed",
    }, stack.logs("approvals")  # fmt: skip
    told = {}
    for number, name in enumerate(TASKS, 1):
        tags = project.registry.tags(project.registry.version("toy", version=str(number)))
        told[name] = tuple(tags.get(key, "") for key in ("approval", "approval_by", "approval_comment"))
    assert told == {
        "agreed": ("approved", "ann", "good figures"), "refused": ("rejected", "ann", "a storm"),
        "silent": ("rejected", "", ""), "silent_fail": ("unanswered", "", ""),
    }  # fmt: skip
    events = stack.call("/api/v2/assets/events")[1]["asset_events"]
    assert [(one["uri"], one["extra"]["approved_by"]) for one in events] == [("x-sml://agreed/passed", "ann")]
