"""The pages as HTML: the list of models, one model, the frame around a report, an error.

Plain functions from what was read to markup; everything is escaped, and nothing needs a script or a style of its own.
Who may see what is decided before: what a reader may not see is not handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from markupsafe import Markup

from airflow_provider_sml._version import __version__
from airflow_provider_sml.ui.live import Live
from airflow_provider_sml.ui.markup import Content, path, tag
from airflow_provider_sml.ui.project import PIPELINES, STAGES, BrokenSpec, Model, dag_id
from airflow_provider_sml.ui.reports import KINDS, Damaged, Gate, Night, Reports, realised

NOTHING = "–"  # noqa: RUF001 - an en dash stands for what is not known
_LIVE = {
    "serving": ("good", "serving"),
    "silent": ("bad", "does not answer"),
    "none": ("plain", "not deployed"),
    "unknown": ("plain", "unknown"),
}


@dataclass(frozen=True)
class Base:
    """Where things are on this server.

    :param plugin: path of these pages, without a slash at its end.
    :param airflow: path of Airflow itself, without a slash at its end.
    """

    plugin: str
    airflow: str


@dataclass(frozen=True)
class Row:
    """A model in the list; None where the reader may not see it.

    :param model: the model.
    :param live: what serves it.
    :param night: its last night.
    :param gate: its last gate verdict.
    """

    model: Model
    live: Live | None
    night: Night | Damaged | None
    gate: Gate | Damaged | None


def model_list(base: Base, rows: Sequence[Row], broken: Sequence[BrokenSpec]) -> str:
    """All models, and the spec files that are broken."""
    head = ["Model", "Live", "Last night", "Last gate", "Description"]
    body = [
        [
            tag("a", row.model.name, href=path(base.plugin, "models", row.model.name), class_="name"),
            _live_short(row.live),
            [_verdict(row.night), _small(_day(row.night))],
            [_gate_badge(row.gate), _small(_version(row.gate))],
            row.model.spec.description,
        ]
        for row in rows
    ]
    parts: list[Content] = [tag("h1", "Models")]
    parts.append(table(head, body) if rows else _nothing(broken))
    for item in broken:
        parts.append(
            tag(
                "section",
                tag("h2", badge("bad", "broken"), " ", tag("code", str(item.file))),
                tag("pre", item.error),
                class_="card",
            )
        )
    return document(base, "Models", parts)


def model_page(
    base: Base, model: Model, reports: Reports, live: Live | None, readable: Set[str], nights: Sequence[Night | Damaged]
) -> str:
    """One model.

    :param live: what serves it.
    :param readable: the stages whose DAGs the reader may read; of the others nothing is shown.
    :param nights: its last nights, newest first.
    """
    parts: list[Content] = [
        tag("nav", tag("a", "← Models", href=f"{base.plugin}/"), class_="crumbs"),
        tag("h1", model.name),
        tag("p", model.spec.description, class_="lead") if model.spec.description else None,
        tag("p", [_dag_link(base, model.name, stage) for stage in STAGES if stage in readable], class_="chips"),
    ]
    if live is not None:
        parts += [tag("h2", "Live"), _live_card(live)]
    if "monitor" in readable:
        parts += [tag("h2", "Nights"), *_nights(base, model.name, reports, nights)]
    if "train" in readable:
        parts += [tag("h2", "Gate"), *_gates(base, model.name, reports)]
    return document(base, model.name, parts)


def report_page(base: Base, name: str, kind: str, key: str) -> str:
    """The frame around a report, which itself runs without rights."""
    title = f"{KINDS[kind].title} {key}"
    source = path(base.plugin, "models", name, kind, key, "report.html")
    frame = tag("iframe", src=source, title=title, sandbox="allow-scripts", class_="report")
    crumbs = tag("nav", tag("a", f"← {name}", href=path(base.plugin, "models", name)), tag("span", title))
    return document(base, f"{name}: {title}", [crumbs, frame], kind="framed")


def error_page(base: Base, status: int, text: str) -> str:
    """What a reader sees instead of a page."""
    parts = [
        tag("nav", tag("a", "← Models", href=f"{base.plugin}/"), class_="crumbs"),
        tag("h1", str(status)),
        tag("p", text),
    ]
    return document(base, str(status), parts)


def document(base: Base, title: str, content: Content, kind: str | None = None) -> str:
    """A whole page."""

    def static(name: str) -> str:
        return f"{path(base.plugin, 'static', name)}?{__version__}"

    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("script", src=static("page.js")),  # before anything is drawn, so that no page flashes in the wrong theme
        tag("link", rel="stylesheet", href=static("page.css")),
    )
    return Markup("<!doctype html>") + tag("html", head, tag("body", tag("main", content), class_=kind), lang="en")


# --- parts ------------------------------------------------------------------------------------------------------------


def table(
    head: Sequence[str], rows: Sequence[Sequence[Content]], right: Set[int] = frozenset(), kind: str = ""
) -> Markup:
    """A table; ``right`` are the columns of numbers, and of the kind ``tall`` it scrolls by itself."""

    def cell(name: str, number: int, content: Content) -> Markup:
        return tag(name, content, class_="number" if number in right else None)

    lines = [tag("tr", [cell("td", number, content) for number, content in enumerate(row)]) for row in rows]
    top = tag("thead", tag("tr", [cell("th", number, text) for number, text in enumerate(head)]))
    return tag("div", tag("table", top, tag("tbody", lines)), class_=f"scroll {kind}".rstrip())


def badge(kind: str, text: str, title: str | None = None) -> Markup:
    """A coloured word: ``good``, ``bad``, ``warn`` or ``plain``."""
    return tag("span", text, class_=f"badge {kind}", title=title)


def _nights(base: Base, name: str, reports: Reports, nights: Sequence[Night | Damaged]) -> list[Content]:
    if not nights:
        return [tag("p", "No night has been monitored yet.", class_="note")]
    measured = realised(list(nights))
    drifted = sum(isinstance(night, Night) and night.verdict == "drift" for night in nights)
    rows: list[Sequence[Content]] = []
    for night in nights:
        if isinstance(night, Damaged):
            rows.append([night.key, _verdict(night), "", night.error, "", "", "", ""])
            continue
        seen = measured.get(night.day)
        rows.append(
            [
                night.day.isoformat(),
                _verdict(night),
                _percent(night.share),
                [tag("span", column, class_="column", title=_why(night, column)) for column in night.drifted],
                _count(night.rows),
                None if night.version is None else str(night.version),
                _number(seen.auc if seen else None),
                _report_link(base, name, reports, "nights", night.day.isoformat(), "report"),
            ]
        )
    head = ["Day", "Verdict", "Share", "Drifted columns", "Rows", "Version", "Realised AUC", ""]
    return [
        tag("p", f"{drifted} of the last {len(nights)} nights drifted.", class_="note"),
        tag("div", [_square(night) for night in reversed(nights)], class_="strip"),
        table(head, rows, right={2, 4, 5, 6}, kind="tall"),
    ]


def _gates(base: Base, name: str, reports: Reports) -> list[Content]:
    gates = reports.gates()
    if not gates:
        return [tag("p", "No version has been judged yet.", class_="note")]
    return [_gate(base, name, reports, gate, first=gate is gates[0]) for gate in gates]


def _gate(base: Base, name: str, reports: Reports, gate: Gate | Damaged, first: bool) -> Markup:
    if isinstance(gate, Damaged):
        return tag("p", _gate_badge(gate), f" version {gate.key}: {gate.error}", class_="card")
    version = str(gate.version)
    passed = sum(check.passed for check in gate.checks)
    links: list[Content] = [_report_link(base, name, reports, "gate", version, "gate")]
    if gate.model_id:
        links.append(_report_link(base, name, reports, "evaluation", gate.model_id, "evaluation"))
    checks = table(
        ["Check", "", "Found", "Asked for", "To do"],
        [
            [
                check.name,
                badge("good", "passed") if check.passed else badge("bad", "failed"),
                _text(check.value),
                _text(check.limit),
                None if check.passed else check.todo,
            ]
            for check in gate.checks
        ],
    )
    summary = tag(
        "summary",
        tag("b", f"Version {version}"),
        _gate_badge(gate),
        tag("span", f"{passed} of {len(gate.checks)} checks", class_="note"),
        tag("span", _moment(gate.time), class_="note"),
    )
    return tag("details", summary, tag("p", links, class_="chips"), checks, open=first, class_="card")


def _live_card(live: Live) -> Markup:
    kind, word = _LIVE[live.state]
    facts = [("State", badge(kind, word)), ("Version", live.version), ("Since", _moment(live.since))]
    facts += [("Address", tag("code", live.url) if live.url else None), ("Note", live.note)]
    items = [[tag("dt", name), tag("dd", value)] for name, value in facts if value]
    return tag("dl", items, class_="card")


def _live_short(live: Live | None) -> Content:
    if live is None:
        return NOTHING
    kind, word = _LIVE[live.state]
    if live.state == "serving":
        return [
            badge(kind, f"version {live.version}", live.note),
            _small(tag("code", live.url)),
            _small(f"since {_moment(live.since)}"),
        ]
    return [badge(kind, word, live.note), _small(live.note)]


def _verdict(night: Night | Damaged | None) -> Content:
    if night is None:
        return NOTHING
    if isinstance(night, Damaged):
        return badge("warn", "unreadable", night.error)
    return badge({"quiet": "good", "drift": "bad"}.get(night.verdict, "warn"), night.verdict)


def _gate_badge(gate: Gate | Damaged | None) -> Content:
    if gate is None:
        return NOTHING
    if isinstance(gate, Damaged):
        return badge("warn", "unreadable", gate.error)
    return badge("good", "passed") if gate.passed else badge("bad", "failed")


def _square(night: Night | Damaged) -> Markup:
    if isinstance(night, Damaged):
        return tag("span", class_="square warn", title=f"{night.key}: unreadable")
    kind = {"quiet": "good", "drift": "bad"}.get(night.verdict, "warn")
    columns = f" ({', '.join(night.drifted)})" if night.drifted else ""
    return tag("span", class_=f"square {kind}", title=f"{night.day}: {night.verdict}{columns}")


def _why(night: Night, name: str) -> str | None:
    column = next((column for column in night.columns if column.name == name), None)
    if column is None or column.value is None:
        return None
    return f"{column.method}: {_number(column.value)}, limit {_number(column.threshold)}"


def _report_link(base: Base, name: str, reports: Reports, kind: str, key: str, text: str) -> Content:
    """A link to a report, where there is one."""
    if reports.page(kind, key) is None:
        return None
    return tag("a", text, href=path(base.plugin, "models", name, kind, key), class_="chip")


def _dag_link(base: Base, name: str, stage: str) -> Markup:
    """A link out of the frame, into Airflow."""
    dag = dag_id(name, stage)
    return tag("a", dag, href=path(base.airflow, "dags", dag), target="_parent", data_airflow=True, class_="chip")


def _nothing(broken: Sequence[BrokenSpec]) -> Markup:
    what = f"No model that you may see. A model is a file {PIPELINES}/NAME.yaml of the project, with its DAGs."
    return tag("p", what if not broken else "No spec is usable; this is why:", class_="note")


def _small(content: Content) -> Markup | None:
    return tag("div", content, class_="note") if content else None


def _day(night: Night | Damaged | None) -> str | None:
    return night.day.isoformat() if isinstance(night, Night) else night.key if night else None


def _version(gate: Gate | Damaged | None) -> str | None:
    return f"version {gate.version if isinstance(gate, Gate) else gate.key}" if gate else None


def _text(value: str | float | None) -> str:
    return _number(value) if isinstance(value, float | None) else str(value)


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else NOTHING


def _percent(value: float | None) -> str:
    return f"{value:.0%}" if value is not None and math.isfinite(value) else NOTHING


def _count(value: int | None) -> str:
    return f"{value:,}" if value is not None else NOTHING


def _moment(value: str | None) -> str | None:
    """An ISO time as people write it; what is none stays as it is."""
    return value.replace("T", " ").replace("+00:00", " UTC") if value else None
