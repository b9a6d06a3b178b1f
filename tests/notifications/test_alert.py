"""Alerts: the log line, the channels, and what happens when one of them fails."""

from __future__ import annotations

import builtins
import email
import email.policy
import json
import logging
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("airflow_db")

CONTEXT = {
    "ti": SimpleNamespace(dag_id="flights_monitor", task_id="judge", run_id="night 1", log_url="http://here/log")
}
LOGGER = "tests.alerts"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the notifier logs; Airflow's own logger goes past pytest's."""
    from airflow_provider_sml.notifications.alert import AlertNotifier

    caplog.set_level(logging.INFO, logger=LOGGER)
    monkeypatch.setattr(AlertNotifier, "log", logging.getLogger(LOGGER))
    return caplog


class Mailbox(socketserver.ThreadingTCPServer):
    """A mail server on the loopback interface that keeps what it is sent."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse
        self.messages: list[tuple[list[str], email.message.EmailMessage]] = []
        super().__init__(("127.0.0.1", 0), MailSession)


class MailSession(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.say("220 loopback")
        recipients: list[str] = []
        while line := self.rfile.readline().decode().strip():
            word = line[:4].upper()
            if word == "RCPT":
                recipients.append(line.split("<")[1].split(">")[0])
            if word == "RCPT" and self.server.refuse:
                self.say("550 no such person")
            elif word == "DATA":
                self.say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                self.server.messages.append((recipients, message))
                self.say("250 kept")
            elif word == "QUIT":
                return self.say("221 bye")
            else:
                self.say("250 ok")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def serve() -> Iterator[Any]:
    """Starts a server in a thread, and stops it after the test."""
    started: list[socketserver.BaseServer] = []

    def start(server: socketserver.BaseServer) -> int:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        started.append(server)
        return server.server_address[1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a connection to a loopback port."""

    def make(name: str, **parts: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(parts))

    return make


@pytest.fixture
def mail(connect: Any) -> Any:
    def make(port: int) -> None:
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "sml@example.org", "retry_limit": 0}
        connect("smtp_default", conn_type="smtp", host="127.0.0.1", port=port, extra=extra)

    return make


def alert(**settings: Any) -> None:
    from airflow_provider_sml.notifications.alert import AlertNotifier

    AlertNotifier(**{"title": "Drift in {{ ti.dag_id }}", "body": "3 of 5 nights\n<b>carrier</b>", **settings})(
        dict(CONTEXT)
    )


def lines(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == level and LOGGER in record.name]


@pytest.mark.parametrize(
    ("severity", "level"), [("info", logging.INFO), ("warning", logging.WARNING), ("critical", logging.ERROR)]
)
def test_it_writes_one_line(log: pytest.LogCaptureFixture, severity: str, level: int) -> None:
    alert(severity=severity)
    assert lines(log, level) == [
        f"ALERT [{severity.upper()}] Drift in flights_monitor | 3 of 5 nights <b>carrier</b> | "
        "dag=flights_monitor task=judge run=night 1 log=http://here/log"
    ]


def test_mail_arrives(log: pytest.LogCaptureFixture, serve: Any, mail: Any) -> None:
    mailbox = Mailbox()
    mail(serve(mailbox))
    alert(channels=[{"email": ["a@example.org", "b@example.org"]}])
    [(recipients, message)] = mailbox.messages
    assert recipients == ["a@example.org", "b@example.org"]
    assert (message["subject"], message["from"]) == ("[WARNING] Drift in flights_monitor", "sml@example.org")
    text = message.get_body(("html",)).get_content()
    assert "3 of 5 nights<br>&lt;b&gt;carrier&lt;/b&gt;" in text
    assert "http://here/log" in text
    assert lines(log, logging.INFO) == ["The alert was sent to email a@example.org, b@example.org."]


def test_a_line_break_in_the_title_adds_no_header(serve: Any, mail: Any) -> None:
    mailbox = Mailbox()
    mail(serve(mailbox))
    alert(title="Drift\r\nBcc: spy@example.org", channels=[{"email": ["a@example.org"]}])
    [(recipients, message)] = mailbox.messages
    assert (recipients, message["bcc"]) == (["a@example.org"], None)
    assert message["subject"] == "[WARNING] Drift Bcc: spy@example.org"


def test_a_failing_channel_hides_no_other(log: pytest.LogCaptureFixture, serve: Any, mail: Any) -> None:
    mailbox = Mailbox()
    mail(serve(mailbox))
    alert(channels=[{"pager": "me"}, {"slack": "no_such_connection"}, {"email": ["a@example.org"]}])
    assert len(mailbox.messages) == 1
    first, second = lines(log, logging.ERROR)
    assert first.startswith("The alert did not reach an unknown channel: this is no channel of an alert expected:")
    assert second.startswith("The alert did not reach slack no_such_connection: ")


def test_a_server_that_refuses_or_is_down_fails_nothing(log: pytest.LogCaptureFixture, serve: Any, mail: Any) -> None:
    mail(serve(Mailbox(refuse=True)))
    alert(channels=[{"email": ["a@example.org"]}])
    mail(1)
    alert(channels=[{"email": ["a@example.org"]}])
    refused, down = lines(log, logging.ERROR)
    assert "no such person" in refused
    assert "refused" in down


@pytest.mark.parametrize(("channel", "provider"), [({"email": ["a@example.org"]}, "smtp"), ({"slack": "x"}, "slack")])
def test_a_missing_provider_is_named(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, channel: dict[str, Any], provider: str
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(f"airflow.providers.{provider}"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    alert(channels=[channel])
    [line] = lines(log, logging.ERROR)
    assert f"apache-airflow-providers-{provider} is not installed" in line
    assert f"to do: pip install apache-airflow-providers-{provider}" in line


def test_slack_is_told(log: pytest.LogCaptureFixture, serve: Any, connect: Any) -> None:
    pytest.importorskip("airflow.providers.slack.hooks.slack_webhook", reason="the Slack provider is not installed")
    told: list[tuple[str, dict[str, Any]]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    port = serve(HTTPServer(("127.0.0.1", 0), Webhook))
    connect("hook", conn_type="slackwebhook", schema="http", host=f"127.0.0.1:{port}", password="T/B/secret")
    alert(channels=[{"slack": "hook"}])
    assert lines(log, logging.ERROR) == []
    [(path, body)] = told
    assert path == "/T/B/secret"
    assert body["text"].splitlines()[:3] == [
        "*[WARNING] Drift in flights_monitor*",
        "3 of 5 nights",
        "&lt;b&gt;carrier&lt;/b&gt;",
    ]


def test_a_wrong_template_loses_no_alert(log: pytest.LogCaptureFixture) -> None:
    alert(title="Drift {{ no.such.thing }}")
    assert any("Drift {{ no.such.thing }}" in line for line in lines(log, logging.WARNING))


def test_it_is_a_callback_of_a_task() -> None:
    from airflow.sdk import DAG, BaseOperator

    from airflow_provider_sml.notifications.alert import AlertNotifier

    with DAG("d"):
        task = BaseOperator(task_id="t", on_failure_callback=AlertNotifier(title="{{ ti.task_id }} failed"))
    assert task.has_on_failure_callback if hasattr(task, "has_on_failure_callback") else task.on_failure_callback


# --- the same finding, page and runbook, PagerDuty --------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted to it; refuses where its server says so."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((self.path, body))  # type: ignore[attr-defined]
        refused = self.server.refuse  # type: ignore[attr-defined]
        answer = b"no" if refused else b'{"status": "success", "dedup_key": "k", "message": "ok"}'
        self.send_response(403 if refused else 202)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pager(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """PagerDuty's events API on the loopback interface, over TLS; the hook has no setting for its address."""
    from airflow_provider_sml.testing.google.tls import certificate

    client = pytest.importorskip("pagerduty").EventsApiV2Client
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.told, server.refuse = [], False  # type: ignore[attr-defined]
    shown = tmp_path / "shown.pem"
    shown.write_bytes(certificate().key + certificate().chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address = f"https://127.0.0.1:{serve(server)}"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate().root))
    monkeypatch.setattr(client, "default_base_url", property(lambda _: address))
    connect("pager", conn_type="pagerduty_events", password="routing-key-secret")
    return server


def notify(**settings: Any) -> Any:
    from airflow_provider_sml.notifications.alert import AlertNotifier

    made = AlertNotifier(**{"title": "Drift", "severity": "critical", "key": "flights 1 drift", **settings})
    made.notify(dict(CONTEXT))
    return {one["channel"]: one["outcome"] for one in made.deliveries}


def test_pagerduty_gets_an_incident_with_links(log: pytest.LogCaptureFixture, pager: Any) -> None:
    links = {"page": "https://airflow.example/sml/models/flights", "runbook": "https://wiki.example/flights"}
    assert notify(channels=[{"pagerduty": "pager"}], body="rain", **links) == {"pagerduty pager": "sent"}
    [(path, event)] = pager.told
    assert path == "/v2/enqueue" and event["dedup_key"] == "flights 1 drift" and event["event_action"] == "trigger"
    assert (event["payload"]["severity"], event["payload"]["source"]) == ("critical", "flights_monitor")
    assert event["payload"]["summary"] == "[CRITICAL] Drift" and event["payload"]["custom_details"]["body"] == "rain"
    assert {link["text"]: link["href"] for link in event["links"]} == links | {"log": "http://here/log"}
    assert "routing-key-secret" not in log.text
    assert f"page={links['page']} runbook={links['runbook']}" in lines(log, logging.ERROR)[0]


def test_a_channel_is_told_from_its_severity_on(pager: Any, serve: Any, mail: Any) -> None:
    mailbox = Mailbox()
    mail(serve(mailbox))
    channels = [{"pagerduty": "pager", "at": "critical"}, {"email": ["a@example.org"], "at": "info"}]
    assert notify(channels=channels, severity="warning", runbook="https://wiki.example/flights") == {
        "pagerduty pager": "below", "email a@example.org": "sent",
    }  # fmt: skip
    assert pager.told == []
    assert "https://wiki.example/flights" in mailbox.messages[0][1].get_body(("html",)).get_content()


def test_the_same_finding_is_not_sent_again_but_a_failed_or_graver_one_is(
    log: pytest.LogCaptureFixture, pager: Any, serve: Any, mail: Any, tmp_path: Any
) -> None:
    mailbox = Mailbox()
    mail(serve(mailbox))
    channels = [{"pagerduty": "pager"}, {"email": ["a@example.org"]}]
    settings: dict[str, Any] = {"channels": channels, "state": str(tmp_path / "alerts")}
    pager.refuse = True
    assert list(notify(**settings, severity="warning").values()) == ["failed", "sent"], "one failure hides no other"
    pager.refuse = False
    assert list(notify(**settings, severity="warning").values()) == ["sent", "repeated"], "what failed is tried again"
    assert list(notify(**settings, severity="critical").values()) == ["sent", "sent"], "it has become graver"
    assert list(notify(**settings, severity="critical").values()) == ["repeated", "repeated"]
    assert list(notify(**settings, key="another").values()) == ["sent", "sent"]
    assert list(notify(**settings, again_after=0.0).values()) == ["sent", "sent"], "the window has passed"
    assert len(mailbox.messages) == 4
    assert len([line for line in lines(log, logging.ERROR) if line.startswith("ALERT")]) == 4, "the log has all"
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "alerts").glob("*.json"))


def test_of_two_tasks_with_one_finding_at_once_one_sends(pager: Any, tmp_path: Any) -> None:
    outcomes: list[str] = []
    settings = {"channels": [{"pagerduty": "pager"}], "state": str(tmp_path)}
    tasks = [threading.Thread(target=lambda: outcomes.extend(notify(**settings).values())) for _ in range(6)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert sorted(outcomes) == ["repeated"] * 5 + ["sent"] and len(pager.told) == 1


def test_a_state_that_cannot_be_kept_or_is_damaged_holds_no_alert_back(pager: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    assert notify(channels=[{"pagerduty": "pager"}], state=str(tmp_path / "file" / "below")) == {
        "pagerduty pager": "sent"
    }
    assert notify(channels=[{"pagerduty": "pager"}], state=str(tmp_path)) == {"pagerduty pager": "sent"}
    [kept] = tmp_path.glob("*.json")
    kept.write_text('{"told": {"pagerduty pager": 3}}')
    assert notify(channels=[{"pagerduty": "pager"}], state=str(tmp_path)) == {"pagerduty pager": "sent"}
