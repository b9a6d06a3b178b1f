"""The section on the health of a model's last nights: drift, performance, what followed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from airflow_provider_sml.ui import charts
from airflow_provider_sml.ui.forms import Damaged, Day, Decision, Night
from airflow_provider_sml.ui.markup import Content, path, tag
from airflow_provider_sml.ui.parts import (
    Base,
    Part,
    count,
    interval,
    number,
    percent,
    report_link,
    small,
    table,
    verdict,
)
from airflow_provider_sml.ui.reports import Reports

#: Nights that one part of the page shows.
NIGHTS = 60


def nights_section(base: Base, name: str, reports: Reports, asked: int = 1) -> list[Content]:
    """Drift and performance of the last nights.

    :param base: where things are.
    :param name: of the model.
    :param reports: of the model.
    :param asked: which part of the nights, from 1 on.
    """
    nights = reports.nights()
    if not nights:
        return [tag("p", "No night has been monitored yet.", class_="note")]
    part = Part.of(asked, NIGHTS, len(nights))
    shown = nights[part.begin : part.end]
    realised, estimated = reports.days()

    def link(kind: str) -> charts.Link:
        return lambda day: path(base.plugin, "models", name, kind, day) if reports.has(kind, day) else None

    drifted = sum(charts.kind_of(night) == "bad" for night in nights)
    address = path(base.plugin, "models", name)
    days = [night.day for night in shown if isinstance(night, Night)]
    first = min(days, default=dt.date.max) - dt.timedelta(days=1)
    last = max(days, default=dt.date.max)
    return [
        tag("p", f"{drifted} of the last {len(nights)} nights drifted.", class_="note"),
        charts.year(nights, link("nights")),
        part.links(address, "nights", "nights", "nights"),
        tag("h3", "Drift by column"),
        tag("p", "Each column's distance from its reference, in parts of its limit. A square opens the night's "
            "Evidently report.", class_="note"),
        charts.heat_map(shown, link("nights")),
        _heat_legend(),
        *_performance(realised, estimated, first, last),
        tag("h3", "Each night"),
        _table(base, name, reports, shown, realised, estimated),
    ]  # fmt: skip


def _heat_legend() -> Content:
    words = ("under a quarter of the limit", "a quarter", "half", "three quarters", "the limit", "twice the limit")
    items = [
        tag("span", tag("svg", tag("rect", width=11, height=11, class_=f"heat h{step}"), width=11, height=11,
                        aria_hidden="true"), f" {word}")
        for step, word in enumerate(words)
    ]  # fmt: skip
    return tag("p", items, class_="note legend")


def _performance(
    realised: Mapping[dt.date, Day], estimated: Mapping[dt.date, Day], first: dt.date, last: dt.date
) -> list[Content]:
    inside = {day: one for day, one in realised.items() if day <= last}
    told = {day: one for day, one in estimated.items() if day <= last}
    picture = charts.performance(inside, told, first)
    if not picture:
        return []
    note = "AUC of each day with its 95 % interval: as its labels showed, or as it was expected before they came."
    return [tag("h3", "Performance"), tag("p", note, class_="note"), picture]


def _table(
    base: Base, name: str, reports: Reports, shown: Sequence[Night | Damaged], realised: Mapping[dt.date, Day],
    estimated: Mapping[dt.date, Day],
) -> Content:  # fmt: skip
    decisions, worth = reports.decisions(), reports.worth()
    rows: list[Sequence[Content]] = []
    for night in shown:
        if isinstance(night, Damaged):
            rows.append([night.key, verdict(night), "", night.error, "", "", "", "", "", ""])
            continue
        key = night.day.isoformat()
        found = worth.get(key)
        graver = [one for one in getattr(found, "findings", []) if one.severity != "info"]
        rows.append(
            [
                key,
                verdict(night),
                report_link(base, name, reports, "nights", key, percent(night.share), None),
                [tag("span", column, class_="column", title=_why(night, column)) for column in night.drifted],
                count(night.rows),
                None if night.version is None else str(night.version),
                _auc(base, name, reports, realised.get(night.day)),
                _auc(base, name, reports, estimated.get(night.day)),
                report_link(base, name, reports, "decisions", key, _decided(decisions.get(key)), None),
                [
                    report_link(base, name, reports, "nights", key, "report"),
                    report_link(base, name, reports, "performance", key, "performance"),
                    small(", ".join(f"{one.severity}: {one.text}" for one in graver[:2])) if graver else None,
                ],
            ]
        )
    head = ["Day", "Verdict", "Share", "Drifted columns", "Rows", "Version", "Realised AUC", "Estimated AUC",
            "Decision", ""]  # fmt: skip
    return table(head, rows, right={2, 4, 5, 6, 7}, kind="tall")


def _auc(base: Base, name: str, reports: Reports, day: Day | None) -> Content:
    """A day's AUC; it leads to the report of the night that told it."""
    if day is None:
        return number(None)
    shown = interval(day.auc, day.auc_low, day.auc_high)
    return report_link(base, name, reports, "performance", day.night.isoformat(), shown, None)


def _decided(decision: Decision | Damaged | None) -> Content:
    if decision is None:
        return number(None)
    if isinstance(decision, Damaged):
        return tag("span", "unreadable", title=decision.error)
    words = {"none": "nothing", "alert": "alert", "retrain": "train again"}
    return tag("span", words.get(decision.action, decision.action), title=decision.because or None)


def _why(night: Night, name: str) -> str | None:
    column = next((column for column in night.columns if column.name == name), None)
    if column is None or column.value is None:
        return None
    return f"{column.method}: {number(column.value)}, limit {number(column.threshold)}"
