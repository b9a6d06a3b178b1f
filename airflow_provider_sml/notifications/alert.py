"""An alert: one line in the log, and a message to every channel of the spec.

The log line is always written, before anything is sent. Each channel is tried by itself: one that fails is logged with
the reason, hides no other, and never fails the task or the DAG. It knows nothing of repeated alerts: who calls it twice
alerts twice. It runs where it is called (a task, or the DAG processor for callbacks) and not in the triggerer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseNotifier

from airflow_provider_sml.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from airflow.sdk import Context

Severity = Literal["info", "warning", "critical"]

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class AlertNotifier(BaseNotifier):
    """Alerts people, as ``on_failure_callback=AlertNotifier(...)`` or from a task.

    :param title: what happened, in one line. Templated.
    :param body: what a reader should know besides. Templated; plain text.
    :param severity: ``info``, ``warning`` or ``critical``: the level in the log, and a word in the title.
    :param channels: the ``alerts`` of the spec: ``{"email": [addresses]}`` or ``{"slack": connection id}``.
    :param smtp_conn_id: connection of type ``smtp`` that mail goes through; it holds the sender's address too.
    """

    template_fields: Sequence[str] = ("title", "body")

    def __init__(
        self,
        *,
        title: str,
        body: str = "",
        severity: Severity = "warning",
        channels: Sequence[Mapping[str, Any]] = (),
        smtp_conn_id: str = "smtp_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.title = title
        self.body = body
        self.severity = severity
        self.channels = channels
        self.smtp_conn_id = smtp_conn_id

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
        where = _where(context)
        level = _LEVELS.get(self.severity, logging.WARNING)
        parts = [f"{name}={value}" for name, value in where.items()]
        line = " | ".join(filter(None, [self._subject(), _one_line(str(self.body)), " ".join(parts)]))
        self.log.log(level, "ALERT %s", line)
        for channel in self.channels:
            try:
                self._send(channel, where)
            except Exception as error:  # whatever a channel raises, the next one is still to be told
                reason = _one_line(str(error)) or type(error).__name__
                self.log.error("The alert did not reach %s: %s", _name(channel), reason)
            else:
                self.log.info("The alert was sent to %s.", _name(channel))

    def _send(self, channel: Mapping[str, Any], where: Mapping[str, str]) -> None:
        if channel.get("email"):
            self._mail(channel["email"], where)
        elif channel.get("slack"):
            self._slack(channel["slack"], where)
        else:
            raise ConfigurationError(
                "this is no channel of an alert",
                expected="email: [addresses], or slack: connection id",
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
    kind = next((kind for kind in ("email", "slack") if channel.get(kind)), None)
    if kind is None:
        return "an unknown channel"
    value = channel[kind]
    return f"{kind} {value if isinstance(value, str) else ', '.join(map(str, value))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _slack_text(text: str) -> str:
    """Text in which nothing is a mention or a link to Slack."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
