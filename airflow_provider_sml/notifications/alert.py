"""An alert: one line in the log, and a message to every channel of the spec.

The log line is always written, before anything is sent. Each channel is tried by itself: one that fails is logged with
the reason, hides no other, and never fails the task or the DAG; ``deliveries`` says what became of each. An alert with
a ``key`` is not sent to the same channel again within a window (``sent``), unless it is graver. It runs where it
is called (a task, or the DAG processor for callbacks) and not in the triggerer.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseNotifier

from airflow_provider_sml.errors import ConfigurationError, MissingExtraError, SmlError
from airflow_provider_sml.hooks.places import reached
from airflow_provider_sml.notifications.sent import RANK, Sent, sent

if TYPE_CHECKING:
    from airflow.sdk import Context

Severity = Literal["info", "warning", "critical"]

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}
_KINDS = ("email", "slack", "pagerduty")


class AlertNotifier(BaseNotifier):
    """Alerts people, as ``on_failure_callback=AlertNotifier(...)`` or from a task.

    :param title: what happened, in one line. Templated.
    :param body: what a reader should know besides. Templated; plain text.
    :param severity: ``info``, ``warning`` or ``critical``: the level in the log, and a word in the title.
    :param channels: the ``alerts`` of the spec: ``{"email": [addresses]}``, ``{"slack": connection id}`` or
        ``{"pagerduty": connection id}``; with ``"at": "critical"``, only for alerts that are at least so grave.
    :param smtp_conn_id: connection of type ``smtp`` that mail goes through; it holds the sender's address too.
    :param key: what names the finding; a channel that was told of it is not told again for a while. Empty: always told.
        Templated.
    :param again_after: seconds for which the same finding is not sent again.
    :param state: folder in which it is kept what was sent; None for none.
    :param page: address of the page that shows more. Templated.
    :param runbook: address of what to do. Templated.
    """

    template_fields: Sequence[str] = ("title", "body", "key", "page", "runbook")

    def __init__(
        self,
        *,
        title: str,
        body: str = "",
        severity: Severity = "warning",
        channels: Sequence[Mapping[str, Any]] = (),
        smtp_conn_id: str = "smtp_default",
        key: str = "",
        again_after: float = 86_400.0,
        state: str | None = None,
        page: str = "",
        runbook: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.title = title
        self.body = body
        self.severity = severity
        self.channels = channels
        self.smtp_conn_id = smtp_conn_id
        self.key = key
        self.again_after = again_after
        self.state = state
        self.page = page
        self.runbook = runbook
        #: What became of the last alert: ``channel``, ``outcome`` (sent, failed, repeated, below) and ``reason``.
        self.deliveries: list[dict[str, str]] = []

    def about(self, **changes: Any) -> AlertNotifier:
        """The same channels for another message.

        :param changes: what is different, by the names of the parameters, such as ``title``.
        """
        made = copy.copy(self)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Render title and body; a template that is wrong is sent as it stands, because an alert must not be lost."""
        try:
            super().render_template_fields(context, jinja_env)
        except Exception as error:
            self.log.warning("A template of this alert is wrong, and is shown unrendered: %s", error)

    def notify(self, context: Context) -> None:
        """Write the log line, then try every channel."""
        where = _where(context) | {
            name: _one_line(str(value)) for name, value in (("page", self.page), ("runbook", self.runbook)) if value
        }
        level = _LEVELS.get(self.severity, logging.WARNING)
        parts = [f"{name}={value}" for name, value in where.items()]
        line = " | ".join(filter(None, [self._subject(), _one_line(str(self.body)), " ".join(parts)]))
        self.log.log(level, "ALERT %s", line)
        self.deliveries = []
        with self._known() as known:
            for channel in self.channels:
                outcome, reason = self._deliver(channel, where, known)
                self.deliveries.append({"channel": _name(channel), "outcome": outcome, "reason": reason})

    def _known(self) -> contextlib.AbstractContextManager[Sent | None]:
        """What was sent of this finding; None where nobody keeps it."""
        if not self.key or not self.state:
            return contextlib.nullcontext(None)
        try:
            folder = reached(self.state)
        except SmlError as error:
            self.log.warning("The state of alerts in %s is not available, nothing is held back: %s", self.state, error)
            return contextlib.nullcontext(None)
        return sent(folder, str(self.key), dt.timedelta(seconds=self.again_after))

    def _deliver(self, channel: Mapping[str, Any], where: Mapping[str, str], known: Sent | None) -> tuple[str, str]:
        """Tell one channel; gives what became of it."""
        name, severity = _name(channel), str(self.severity)
        lowest = str(channel.get("at") or "info")
        if RANK.get(severity, 1) < RANK.get(lowest, 0):
            return "below", f"it is told from {lowest} on"
        if known is not None and (before := known.lately(name, severity)):
            self.log.info("%s was told of this at %s, and is not told again so soon.", name, before)
            return "repeated", f"told at {before}"
        try:
            self._send(channel, where)
        except Exception as error:  # whatever a channel raises, the next one is still to be told
            reason = _one_line(str(error)) or type(error).__name__
            self.log.error("The alert did not reach %s: %s", name, reason)
            return "failed", reason
        self.log.info("The alert was sent to %s.", name)
        if known is not None:
            known.record(name, severity)
        return "sent", ""

    def _send(self, channel: Mapping[str, Any], where: Mapping[str, str]) -> None:
        if channel.get("email"):
            self._mail(channel["email"], where)
        elif channel.get("slack"):
            self._slack(channel["slack"], where)
        elif channel.get("pagerduty"):
            self._pagerduty(channel["pagerduty"], where)
        else:
            raise ConfigurationError(
                "this is no channel of an alert",
                expected="email: [addresses], slack: connection id, or pagerduty: connection id",
                found=dict(channel),
                todo="correct the alerts of the spec",
            )

    def _mail(self, recipients: Sequence[str], where: Mapping[str, str]) -> None:
        try:
            from airflow.providers.smtp.hooks.smtp import SmtpHook
        except ImportError as error:
            raise _missing("smtp", error) from error
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in where.items())
        body = escape(str(self.body)).replace("\n", "<br>")
        html = f"<h3>{escape(str(self.title))}</h3><p>{body}</p><table>{rows}</table>"
        with SmtpHook(smtp_conn_id=self.smtp_conn_id) as smtp:
            smtp.send_email_smtp(to=list(recipients), subject=self._subject(), html_content=html)

    def _slack(self, connection: str, where: Mapping[str, str]) -> None:
        try:
            from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
        except ImportError as error:
            raise _missing("slack", error) from error
        lines = [f"*{_slack_text(self._subject())}*", _slack_text(str(self.body))]
        lines += [f"{key}: {_slack_text(value)}" for key, value in where.items()]
        SlackWebhookHook(slack_webhook_conn_id=connection, timeout=10).send(text="\n".join(filter(None, lines)))

    def _pagerduty(self, connection: str, where: Mapping[str, str]) -> None:
        try:
            from airflow.providers.pagerduty.hooks.pagerduty_events import PagerdutyEventsHook
        except ImportError as error:
            raise _missing("pagerduty", error) from error
        links = [{"href": where[name], "text": name} for name in ("page", "runbook", "log") if name in where]
        PagerdutyEventsHook(pagerduty_events_conn_id=connection).send_event(
            summary=self._subject()[:1024],
            severity=str(self.severity),
            source=where.get("dag", "airflow"),
            # PagerDuty joins events of one key to one incident; keys have 255 characters at most.
            dedup_key=str(self.key)[:255] or None,
            custom_details={"body": str(self.body), **where},
            links=links or None,
        )

    def _subject(self) -> str:
        return _one_line(f"[{str(self.severity).upper()}] {self.title}")


def _where(context: Mapping[str, Any]) -> dict[str, str]:
    """What the alert is about, as far as the context says."""
    task = context.get("ti") or context.get("task_instance")
    run, dag = context.get("dag_run"), context.get("dag")
    found = {
        "dag": getattr(task, "dag_id", None) or getattr(run, "dag_id", None) or getattr(dag, "dag_id", None),
        "task": getattr(task, "task_id", None),
        "run": getattr(task, "run_id", None) or getattr(run, "run_id", None),
        "log": getattr(task, "log_url", None),
    }
    return {name: _one_line(str(value)) for name, value in found.items() if value}


def _missing(provider: str, error: ImportError) -> MissingExtraError:
    package = f"apache-airflow-providers-{provider}"
    return MissingExtraError(
        f"{package} is not installed ({error})", expected="the official provider", todo=f"pip install {package}"
    )


def _name(channel: Mapping[str, Any]) -> str:
    """A channel as one reads it in the log."""
    kind = next((kind for kind in _KINDS if channel.get(kind)), None)
    if kind is None:
        return "an unknown channel"
    value = channel[kind]
    return f"{kind} {value if isinstance(value, str) else ', '.join(map(str, value))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _slack_text(text: str) -> str:
    """Text in which nothing is a mention or a link to Slack."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
