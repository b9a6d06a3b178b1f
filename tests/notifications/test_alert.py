"""Alerts: the log line, the channels, and what happens when one of them fails."""

from __future__ import annotations

import builtins
import email
import email.policy
import json
import logging
import socketserver
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
