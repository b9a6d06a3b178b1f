"""The stored nights of a model, and their decisions, in the folder of its reports.

``nights/DAY.json`` (drift) and ``performance/DAY.json`` are what a night found; ``decisions/DAY.json`` holds what was
asked of it (policy, a person's word) and what followed. Everything but what was asked can be made again from the other
two. A damaged file is told, and hides no other night.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.monitoring.decision import (
    MOST_EXCESS,
    SEVERITIES,
    Decision,
    Night,
    Override,
    Policy,
    decide_all,
)
from airflow_provider_sml.ml.page import Page

#: Nights without a decision that are so much older are history: what they would have asked for is asked no more.
PENDING = dt.timedelta(days=7)


@dataclass
class StoredNights:
    """The nights of one model.

    :param folder: of its reports.
    """

    folder: Path
    damaged: list[str] = field(default_factory=list)

    def settle(self, day: dt.date, policy: Policy, override: Override | str | None = None) -> list[Decision]:
        """Decide a night, and those shortly before it that nobody has decided yet; each is stored.

        :param day: the night; it must have been reported.
        :param policy: in force for it.
        :param override: a person's word; None for the one that is stored with the night, ``auto`` for none.
        :returns: the decisions made, the first night first; that of the day is the last.
        """
        stored = self._stored(day)
        found: list[Night] = []
        for one in self._days(day):
            inputs = stored.get(one)
            word = _word(override, inputs) if one == day else _recorded(inputs)
            rules = policy if one == day or inputs is None else Policy.load(inputs["policy"])
            night = self._night(one, rules, word)
            if night:
                found.append(night)
        decided = decide_all(found)
        made = []
        for night, decision in zip(found, decided, strict=True):
            if night.day == day or (night.day not in stored and night.day > day - PENDING):
                self._write(night, decision)
                made.append(decision)
        return made

    def asked_by(self, day: str) -> str | None:
        """The run that asked for training because of a night; None when none has."""
        try:
            return str(json.loads((self.folder / "decisions" / f"{day}.asked.json").read_text())["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def mark_asked(self, day: str, run: str) -> None:
        """Record which run asked for training because of a night."""
        storage.write(self.folder / "decisions" / f"{day}.asked.json", json.dumps({"run": run}))

    def mark_told(self, decision: Decision, deliveries: Sequence[Mapping[str, str]]) -> None:
        """Record what became of a night's alert, beside the decision and on its page.

        :param decision: of the night.
        :param deliveries: ``channel``, ``outcome`` and ``reason`` of each.
        """
        storage.write(self.folder / "decisions" / f"{decision.day}.alerts.json", json.dumps(list(deliveries), indent=1))
        self._page(decision)

    def _page(self, decision: Decision) -> None:
        path = self.folder / "decisions" / f"{decision.day}.html"
        try:
            told = json.loads(path.with_suffix(".alerts.json").read_text())
        except (OSError, ValueError):
            told = []
        storage.write(path, page_of(decision, self.folder.name, told))

    def _days(self, day: dt.date) -> list[dt.date]:
        found = {
            path.stem for kind in ("nights", "performance") for path in (self.folder / kind).glob("????-??-??.json")
        }
        return sorted(one for one in map(dt.date.fromisoformat, found) if one <= day)

    def _read(self, kind: str, day: dt.date) -> dict[str, Any] | None:
        """A file of a night; None where there is none, or it is damaged."""
        try:
            text = (self.folder / kind / f"{day}.json").read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.damaged.append(f"{kind}/{day}.json: {error.strerror}")
            return None
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            self.damaged.append(f"{kind}/{day}.json: {error}")
            return None

    def _stored(self, day: dt.date) -> dict[dt.date, dict[str, Any]]:
        found = {}
        for path in (self.folder / "decisions").glob("????-??-??.json"):
            one = dt.date.fromisoformat(path.stem)
            inputs = self._read("decisions", one) if one <= day else None
            if inputs is not None and "policy" in inputs:
                found[one] = inputs
        return found

    def _night(self, day: dt.date, policy: Policy, override: Override | None) -> Night | None:
        drift, worth = self._read("nights", day), self._read("performance", day)
        if drift is None and worth is None:
            return None
        version = str((drift or worth or {}).get("version", ""))
        findings = _of_drift(drift or {})
        if worth and str(worth.get("version")) == version:
            findings += [dict(finding) for finding in worth.get("findings", [])]
        findings.sort(key=lambda finding: -SEVERITIES.index(finding["severity"]))
        columns = {
            str(column["name"]): _excess(column)
            for column in (drift or {}).get("columns", [])
            if column.get("drifted")
        }  # fmt: skip
        return Night(day, version, findings, columns, (worth or {}).get("importance") or {}, policy, override)

    def _write(self, night: Night, decision: Decision) -> None:
        path = self.folder / "decisions" / f"{night.day}.json"
        told = {"policy": asdict(night.policy), "decision": decision.to_json()}
        storage.write(path, json.dumps(told | {"override": decision.override}, indent=1))
        self._page(decision)


def _of_drift(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a drift report found. What it states itself, such as days that are missing, is told, and does not count for
    retraining unless it has a severity of its own."""
    found = [
        {"kind": str(finding.get("kind", "data")), "severity": finding.get("severity"), "text": str(finding["text"])}
        for finding in report.get("findings", [])
        if isinstance(finding, Mapping) and "text" in finding
    ]  # fmt: skip
    for finding in found:
        finding["severity"] = finding["severity"] if finding["severity"] in SEVERITIES else "info"
    drifted = [str(name) for name in report.get("drifted", [])]
    share = report.get("share")
    many = f"{share:.0%} of the columns" if isinstance(share, int | float) else f"{len(drifted)} columns"
    text = f"{many} drifted: {', '.join(drifted[:5])}" if drifted else f"{many} drifted"
    if report.get("verdict") == "drift":
        found.append({"kind": "drift", "severity": "warning", "text": text})
    elif drifted:
        found.append({"kind": "drift", "severity": "info", "text": text})
    return found


def _excess(column: Mapping[str, Any]) -> float:
    """How many times its limit a column's distance is; a column without a value on one side lies furthest."""
    value, limit = column.get("value"), column.get("threshold")
    if not isinstance(value, int | float) or not isinstance(limit, int | float) or limit <= 0:
        return MOST_EXCESS
    return min(float(value) / float(limit), MOST_EXCESS)


def _recorded(inputs: Mapping[str, Any] | None) -> Override | None:
    told = (inputs or {}).get("override")
    return Override(told["action"], told["by"]) if told else None


def _word(given: Override | str | None, inputs: Mapping[str, Any] | None) -> Override | None:
    if isinstance(given, Override):
        return given
    return None if given == "auto" else _recorded(inputs)


def page_of(decision: Decision, model: str, told: Sequence[Mapping[str, str]] = ()) -> str:
    """A decision as one HTML page, with what became of its alert."""
    page = Page(f"{model}: decision, night of {decision.day}")
    words = {"none": "Nothing follows", "alert": "People are told", "retrain": "Training is asked for"}
    page.text(f"{words[decision.action]}: {decision.because}.", "good" if decision.action == "none" else "bad")
    page.text(f"Version {decision.version}; severity {decision.severity}; {decision.wanted} nights must count; "
              f"counted: {', '.join(decision.counted) or 'none'}.")  # fmt: skip
    if decision.asked_before:
        page.text(f"Asked for lately: {', '.join(decision.asked_before)}.", "note")
    page.heading("Findings of the night")
    page.table(["", "kind", "severity"], [[one["text"], one["kind"], one["severity"]] for one in decision.findings])
    page.heading("Causes: drift times importance")
    page.table(
        ["feature", "share", "times its limit", "importance", "nights"],
        [
            [one["feature"], f"{one['weight']:.0%}", one["excess"], one["importance"], one["nights"]]
            for one in decision.causes
        ],
    )
    if told:
        page.heading("Who was told")
        page.table(["channel", "", "why"], [[one["channel"], one["outcome"], one["reason"]] for one in told])
    return page.render()
