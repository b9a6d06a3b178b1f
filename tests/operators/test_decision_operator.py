"""The operator that asks for training: events with reasons, alerts, a person's word, and repeats."""

import json
from types import SimpleNamespace

import pytest

from airflow_provider_sml.compat import AirflowFailException, AirflowSkipException
from airflow_provider_sml.refs import ReportRef
from tests.ml.test_decision import lay

pytestmark = pytest.mark.usefixtures("airflow_db")


class Alerts:
    """Stands where the notifier is."""

    def __init__(self):
        self.sent = []
        self.deliveries = [{"channel": "slack ops", "outcome": "failed", "reason": "the server is down"}]

    def about(self, **message):
        self.sent.append(message)
        return self

    def notify(self, context):
        pass


def run(folder, day, name="run 1", user=None, **settings):
    """Run the operator; gives what its event carries (None when it was skipped), why, and the alerts."""
    from airflow.sdk import Asset

    from airflow_provider_sml.operators.decision import RequestRetrainingOperator

    alerts, outlet, event = Alerts(), Asset("x-sml://orders/drift"), SimpleNamespace(extra={})
    report = ReportRef("orders", str(day), "drift", 0.4, ["city", "rain"], 9, str(folder / f"nights/{day}.html"))
    task = RequestRetrainingOperator(task_id="t", report=report, alert=alerts, outlets=[outlet], **settings)
    dag_run = SimpleNamespace(triggering_user_name=user)
    context = {"run_id": name, "task": task, "outlet_events": {outlet: event}, "dag_run": dag_run}
    try:
        task.execute(context)
    except AirflowSkipException as skipped:
        return None, str(skipped), alerts.sent
    return event.extra, "", alerts.sent


def test_the_event_carries_the_reasons(tmp_path):
    event, _, [alert] = run(tmp_path, lay(tmp_path, 0, auc_lost=True), follows="Training starts.")
    assert (event["day"], event["severity"], event["drifted"]) == ("2026-03-01", "critical", "city, rain")
    assert event["causes"] == ["rain (74%)", "city (26%)"] and event["findings"][0] == "AUC lost"
    assert alert["severity"] == "critical" and alert["title"] == "orders: night of 2026-03-01"
    assert alert["key"] == "orders 1 retrain: drift, performance"
    told = json.loads((tmp_path / "decisions/2026-03-01.alerts.json").read_text())
    assert (told[0]["outcome"], told[0]["reason"]) == ("failed", "the server is down"), "told in the report, too"
    assert "the server is down" in (tmp_path / "decisions/2026-03-01.html").read_text()
    assert alert["body"].splitlines()[0] == "1 night counted, 1 of 1 must. Training starts."


def test_a_cool_down_alerts_and_asks_for_nothing(tmp_path):
    run(tmp_path, lay(tmp_path, 0))
    event, why, [alert] = run(tmp_path, lay(tmp_path, 1), "run 2")
    assert event is None and "cools down until 2026-03-08" in why and "cools down" in alert["body"]
    event, why, alerts = run(tmp_path, lay(tmp_path, 2, "quiet"), "run 3")
    assert (event, why, alerts) == (None, "2026-03-03: nothing counted", [])


def test_a_night_filled_in_again_asks_once_and_a_retry_of_its_run_again(tmp_path):
    day = lay(tmp_path, 0)
    assert run(tmp_path, day)[0] and run(tmp_path, day)[0], "a retry: nobody knows whether its event went out"
    event, why, alerts = run(tmp_path, day, "run 2")
    assert (event, alerts) == (None, []) and why.endswith("the run run 1 has asked for training already")
    assert run(tmp_path, day, "run 3", override="force", user="ada")[0]["because"] == "training was forced by ada"


def test_a_person_holds_it_by_the_form_or_by_a_variable(tmp_path, monkeypatch):
    event, why, [alert] = run(tmp_path, lay(tmp_path, 0), override="hold", user="ada")
    assert event is None and "held back by ada" in why and "held back by ada" in alert["body"]
    monkeypatch.setenv("AIRFLOW_VAR_SML_RETRAINING_ORDERS", "hold until 2026-03-02")
    assert "held back by the variable sml_retraining_orders" in run(tmp_path, lay(tmp_path, 1))[1]
    assert run(tmp_path, lay(tmp_path, 2), cool_down="0 days")[0], "the hold has ended"
    monkeypatch.setenv("AIRFLOW_VAR_SML_RETRAINING_ORDERS", "force")
    with pytest.raises(AirflowFailException, match="hold until YYYY-MM-DD; found: force"):
        run(tmp_path, lay(tmp_path, 3))
