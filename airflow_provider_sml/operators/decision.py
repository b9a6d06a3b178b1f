"""What follows the nights: people are told, and training is asked for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink, Variable

from airflow_provider_sml.compat import AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.hooks.places import reached
from airflow_provider_sml.links.pages import DecisionLink, ModelLink, NightLink
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.operators.base import SmlOperator, announce
from airflow_provider_sml.refs import ReportRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.monitoring.decision import Decision, Override, Policy
    from airflow_provider_sml.ml.monitoring.nights import StoredNights

#: What a person may choose in the trigger form.
CHOICES = ("auto", "hold", "force")


class RequestRetrainingOperator(SmlOperator):
    """Succeeds, and so sends its outlets an event with the reasons, when the nights ask for training; is skipped
    otherwise. People are alerted in either case, as soon as enough nights have counted.

    The decision is stored with the night (``reports/NAME/decisions``). It follows from the stored nights alone; a night
    that was filled in again asks only once, unless it is forced.

    :param report: what ``DriftReportOperator`` gave.
    :param nights: how many of how many nights must count, such as ``(3, 5)``.
    :param severity: from which on a night counts: ``info``, ``warning`` or ``critical``.
    :param cool_down: whole days after a request in which there is no other; 0 for none.
    :param budget: most requests in a window of days, such as ``(2, 30)``; None for any number.
    :param override: ``hold`` asks for nothing this night, ``force`` asks whatever was found, ``auto`` takes back what
        was said of this night before; empty: as it was, or as the variable says.
    :param variable: Airflow Variable that may say ``hold`` or ``hold until YYYY-MM-DD``; ``sml_retraining_NAME`` when
        None. Looked at each night.
    :param follows: what starting or not starting training means here, for the alert.
    :param alert: an ``AlertNotifier``, whose ``about`` is asked for the message to send; None alerts nobody.
    """

    template_fields: Sequence[str] = ("report", "override", "variable")
    ui_color = "#fde0ef"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), NightLink(), DecisionLink())

    def __init__(
        self,
        *,
        report: Any,
        nights: tuple[int, int] = (1, 1),
        severity: str = "warning",
        cool_down: str | dt.timedelta = "7 days",
        budget: tuple[int, int] | None = (4, 30),
        override: str = "",
        variable: str | None = None,
        follows: str = "",
        alert: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.report = report
        self.nights = nights
        self.severity = severity
        self.cool_down = cool_down
        self.budget = budget
        self.override = override
        self.variable = variable
        self.follows = follows
        self.alert = alert

    def run(self, context: Context) -> Mapping[str, Any]:
        """Decide the night, and those before it that nobody has decided."""
        from airflow_provider_sml.ml.monitoring.nights import StoredNights

        report = ReportRef.load(self.report)
        day = dt.date.fromisoformat(report.day)
        stored = StoredNights(reached(report.uri).parent.parent)
        made = stored.settle(day, self._policy(), self._word(context, report.model, day))
        for problem in stored.damaged:
            self.log.warning("A stored night is damaged and does not count: %s", problem)
        if not made or made[-1].day != report.day:
            raise DataError(
                f"{report.model}: the night of {report.day} is not stored", expected=f"a report in {stored.folder}",
                found="none", todo="clear the task that writes the drift report",
            )  # fmt: skip
        asking = [decision for decision in made if decision.action == "retrain"]
        chosen = asking[-1] if asking else made[-1]
        self.log.info("%s: %s: %s", chosen.day, chosen.action, chosen.because)
        for cause in chosen.causes[:5]:
            self.log.info("  cause: %(feature)s, %(excess).1f times its limit, importance %(importance).2f", cause)
        run, before = str(context["run_id"]), stored.asked_by(chosen.day) if asking else None
        if before not in (None, run) and not self.override:
            raise AirflowSkipException(f"{chosen.day}: the run {before} has asked for training already")
        if chosen.action != "none":
            self._alert(context, report.model, chosen, stored)
        if not asking:
            raise AirflowSkipException(f"{chosen.day}: {chosen.because}")
        stored.mark_asked(chosen.day, run)
        reasons = chosen.reasons() | {"drifted": ", ".join(report.drifted), "share": str(report.share)}
        announce(context, reasons)
        return reasons

    def _policy(self) -> Policy:
        from airflow_provider_sml.ml.monitoring.decision import SEVERITIES, Policy

        known = [name for name in SEVERITIES if name == self.severity]
        if not known:
            raise ConfigurationError(
                "this is no severity", expected=f"one of {', '.join(SEVERITIES)}", found=self.severity
            )
        most, days = self.budget or (None, 30)
        cool_down = duration(self.cool_down) // dt.timedelta(days=1)
        return Policy((self.nights[0], self.nights[1]), known[0], cool_down, most, days)

    def _word(self, context: Context, model: str, day: dt.date) -> Override | str | None:
        """What a person says of this night: in the form, or in the variable."""
        from airflow_provider_sml.ml.monitoring.decision import Override

        chosen = str(self.override or "")
        if chosen == "auto":
            return chosen
        if chosen in ("hold", "force"):
            who = getattr(context.get("dag_run"), "triggering_user_name", None)
            return Override("hold" if chosen == "hold" else "force", str(who or "the trigger form"))
        if chosen:
            raise ConfigurationError(
                "this is no word on retraining", expected=f"one of {', '.join(CHOICES)}", found=chosen
            )
        name = self.variable or f"sml_retraining_{model}"
        return self._held(name, str(Variable.get(name, default="") or "").strip(), day)

    def _held(self, name: str, said: str, day: dt.date) -> Override | None:
        from airflow_provider_sml.ml.monitoring.decision import Override

        if not said:
            return None
        word, _, until = said.partition(" until ")
        try:
            last = dt.date.fromisoformat(until.strip()) if until else day
        except ValueError:
            word = ""
        if word != "hold":
            raise ConfigurationError(
                f"the variable {name} is wrong", expected="hold, or hold until YYYY-MM-DD", found=said,
                todo="correct it under Admin > Variables, or delete it",
            )  # fmt: skip
        return Override("hold", f"the variable {name}") if day <= last else None

    def _alert(self, context: Context, model: str, chosen: Decision, stored: StoredNights) -> None:
        """Tell people; whatever goes wrong is in the log and fails nothing."""
        if self.alert is None:
            return
        lines = [f"{chosen.because[0].upper()}{chosen.because[1:]}."]
        if chosen.action == "retrain" and self.follows:
            lines[0] += f" {self.follows}"
        lines += [str(finding["text"]) for finding in chosen.findings[:5]]
        if chosen.causes:
            ranked = ", ".join(f"{cause['feature']} {cause['weight']:.0%}" for cause in chosen.causes[:5])
            lines.append(f"Causes by drift and importance: {ranked}")
        severity = "critical" if chosen.severity == "critical" else "warning"
        kinds = sorted({str(finding["kind"]) for finding in chosen.findings})
        told = self.alert.about(
            title=f"{model}: night of {chosen.day}", body="\n".join(lines), severity=severity,
            key=f"{model} {chosen.version} {chosen.action}: {', '.join(kinds)}",
            page=DecisionLink().address({"name": model, "day": chosen.day}),
        )  # fmt: skip
        try:
            told.notify(context)
        except Exception:  # whatever it is, people not being told must not keep the model from being trained again
            self.log.exception("The alert of %s was not sent", chosen.day)
        stored.mark_told(chosen, told.deliveries)
