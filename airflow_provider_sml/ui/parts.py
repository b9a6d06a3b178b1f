"""What the pages are put together from: tables, badges, links, pages of long lists, numbers and moments as text."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from markupsafe import Markup

from airflow_provider_sml.ui.forms import Damaged, Gate, Night
from airflow_provider_sml.ui.markup import Content, path, tag
from airflow_provider_sml.ui.project import dag_id
from airflow_provider_sml.ui.reports import Reports

NOTHING = "–"  # noqa: RUF001 - an en dash stands for what is not known


@dataclass(frozen=True)
class Base:
    """Where things are on this server.

    :param plugin: path of these pages, without a slash at its end.
    :param airflow: path of Airflow itself, without a slash at its end.
    """

    plugin: str
    airflow: str


@dataclass(frozen=True)
class Part:
    """A part of a long list.

    :param number: of the part, from 1 on.
    :param size: how many it shows.
    :param total: how many there are.
    """

    number: int
    size: int
    total: int

    @classmethod
    def of(cls, asked: int, size: int, total: int) -> Part:
        """The part that was asked for, or the nearest that there is."""
        return cls(min(max(1, asked), max(1, math.ceil(total / size))), size, total)

    @property
    def begin(self) -> int:
        """Place of its first item, from 0 on."""
        return (self.number - 1) * self.size

    @property
    def end(self) -> int:
        """Place after its last item."""
        return min(self.begin + self.size, self.total)

    def links(self, address: str, name: str, anchor: str, what: str) -> Markup | None:
        """Where one is, with the parts before and after it; nothing where one part has all.

        :param address: of the page.
        :param name: of the parameter in the address.
        :param anchor: of the section.
        :param what: what is listed.
        """
        if self.total <= self.size:
            return None

        def step(number: int, text: str) -> Content:
            last = math.ceil(self.total / self.size)
            if not 1 <= number <= last:
                return tag("span", text, class_="note")
            return tag("a", text, href=f"{address}?{name}={number}#{anchor}")

        told = f"{what} {self.begin + 1} to {self.end} of {self.total}"
        return tag(
            "nav", step(self.number - 1, "← newer"), tag("span", told, class_="note"), step(self.number + 1, "older →"),
            class_="pages", aria_label=f"parts of {what}",
        )  # fmt: skip


def table(
    head: Sequence[str], rows: Sequence[Sequence[Content]], right: Set[int] = frozenset(), kind: str = ""
) -> Markup:
    """A table; ``right`` are the columns of numbers, and of the kind ``tall`` it scrolls by itself."""

    def cell(name: str, number: int, content: Content) -> Markup:
        scope = "col" if name == "th" else None
        return tag(name, content, class_="number" if number in right else None, scope=scope)

    lines = [tag("tr", [cell("td", number, content) for number, content in enumerate(row)]) for row in rows]
    top = tag("thead", tag("tr", [cell("th", number, text) for number, text in enumerate(head)]))
    scrolls = {"tabindex": "0"} if "tall" in kind else {}
    return tag("div", tag("table", top, tag("tbody", lines)), class_=f"scroll {kind}".rstrip(), **scrolls)


def badge(kind: str, text: str, title: str | None = None) -> Markup:
    """A coloured word: ``good``, ``bad``, ``warn`` or ``plain``."""
    return tag("span", text, class_=f"badge {kind}", title=title)


def report_link(
    base: Base, name: str, reports: Reports, kind: str, key: str, content: Content, class_: str | None = "chip"
) -> Content:
    """A link to a report, where there is one; else nothing, or the content where it is more than a word."""
    if not reports.has(kind, key):
        return None if class_ == "chip" else content
    return tag("a", content, href=path(base.plugin, "models", name, kind, key), class_=class_)


def airflow_link(base: Base, content: Content, *parts: str, class_: str | None = None) -> Markup:
    """A link out of the frame, into Airflow."""
    return tag("a", content, href=path(base.airflow, *parts), target="_parent", data_airflow=True, class_=class_)


def run_link(base: Base, content: Content, dag: str, run: str, task: str = "") -> Markup:
    """A link to a run of a DAG, or to a task of it."""
    parts = ["dags", dag, "runs", run, *(["tasks", task] if task else [])]
    return airflow_link(base, content, *parts)


def dag_link(base: Base, name: str, stage: str) -> Markup:
    """A link to the DAG of a stage."""
    dag = dag_id(name, stage)
    return airflow_link(base, dag, "dags", dag, class_="chip")


def verdict(night: Night | Damaged | None) -> Content:
    """What a night's verdict is."""
    if night is None:
        return NOTHING
    if isinstance(night, Damaged):
        return badge("warn", "unreadable", night.error)
    return badge({"quiet": "good", "drift": "bad"}.get(night.verdict, "warn"), night.verdict)


def gate_badge(gate: Gate | Damaged | None) -> Content:
    """What a gate's verdict is."""
    if gate is None:
        return NOTHING
    if isinstance(gate, Damaged):
        return badge("warn", "unreadable", gate.error)
    return badge("good", "passed") if gate.passed else badge("bad", "failed")


def small(content: Content) -> Markup | None:
    """A note below something."""
    return tag("div", content, class_="note") if content else None


def text_of(value: str | float | None) -> str:
    """A value of a check."""
    return number(value) if isinstance(value, float | None) else str(value)


def number(value: float | None) -> str:
    """Three digits."""
    return f"{value:.3f}" if value is not None and math.isfinite(value) else NOTHING


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval, where it has one."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def percent(value: float | None) -> str:
    """A share."""
    return f"{value:.0%}" if value is not None and math.isfinite(value) else NOTHING


def count(value: int | None) -> str:
    """A whole number."""
    return f"{value:,}" if value is not None else NOTHING


def usd(value: float | None) -> str:
    """An amount of money."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.2f} USD" if value >= 1 or not value else f"{value:.4f} USD"


def stamp(value: str | None) -> Content:
    """An ISO time for a column without much room: a line breaks between day and time alone."""
    day, _, time = (moment(value) or "").partition(" ")
    return [tag("span", day, class_="nowrap"), " ", tag("span", time, class_="nowrap")] if time else moment(value)


def moment(value: str | None) -> str | None:
    """An ISO time as people write it, to the second; what is none stays as it is."""
    if not value:
        return None
    whole, dot, rest = value.replace("T", " ").replace("+00:00", " UTC").partition(".")
    return f"{whole} UTC" if dot and rest.endswith("UTC") else f"{whole}{dot}{rest}"
