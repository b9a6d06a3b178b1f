"""The pages as HTML: the list of models, one model, the frame around a report, an error.

Plain functions from what was read to markup; everything is escaped, and nothing needs a script or a style of its own.
Who may see what is decided before: what a reader may not see is not handed in.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from markupsafe import Markup

from airflow_provider_sml._version import __version__
from airflow_provider_sml.ui.forms import Damaged, Gate, Night
from airflow_provider_sml.ui.live import Live
from airflow_provider_sml.ui.markup import Content, path, tag
from airflow_provider_sml.ui.nights import nights_section
from airflow_provider_sml.ui.parts import (
    NOTHING,
    Base,
    badge,
    dag_link,
    gate_badge,
    moment,
    small,
    table,
    verdict,
)
from airflow_provider_sml.ui.project import PIPELINES, STAGES, BrokenSpec, Model
from airflow_provider_sml.ui.registered import Registered
from airflow_provider_sml.ui.reports import KINDS, Reports
from airflow_provider_sml.ui.versions import (
    LIVE,
    costs_section,
    history_section,
    live_section,
    sampling_section,
    snapshots_section,
    versions_section,
    waiting_section,
)
from airflow_provider_sml.ui.waiting import Question


@dataclass(frozen=True)
class Row:
    """A model in the list; None where the reader may not see it.

    :param model: the model.
    :param live: what serves it.
    :param night: its last night.
    :param gate: its last gate verdict.
    :param waiting: how many of its questions wait for an answer.
    """

    model: Model
    live: Live | None
    night: Night | Damaged | None
    gate: Gate | Damaged | None
    waiting: int = 0


@dataclass(frozen=True)
class Seen:
    """What a reader may see of a model.

    :param stages: the stages whose DAGs may be read; of the others nothing is shown.
    :param reports: of the model.
    :param registered: what the registry says; nothing where neither training nor deployment may be read.
    :param live: what serves on this machine; None where deployment may not be read.
    :param questions: what waits for a person; None where that may not be read.
    :param parts: which part of a long list is shown, by the name of the list, from 1 on.
    """

    stages: Set[str]
    reports: Reports
    registered: Registered = field(default_factory=Registered)
    live: Live | None = None
    questions: Sequence[Question] | None = None
    parts: dict[str, int] = field(default_factory=dict)


def model_list(base: Base, rows: Sequence[Row], broken: Sequence[BrokenSpec]) -> str:
    """All models, and the spec files that are broken."""
    head = ["Model", "Live", "Last night", "Last gate", "Waits", "Description"]
    body = [
        [
            tag("a", row.model.name, href=path(base.plugin, "models", row.model.name), class_="name"),
            _live_short(row.live),
            [verdict(row.night), small(_day(row.night))],
            [gate_badge(row.gate), small(_version(row.gate))],
            _waits(base, row),
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


def model_page(base: Base, model: Model, seen: Seen) -> str:
    """One model.

    :param base: where things are.
    :param model: the model.
    :param seen: what the reader may see of it.
    """
    name, reports, registered, part = model.name, seen.reports, seen.registered, seen.parts.get
    sections: list[tuple[str, str, list[Content]]] = []
    if seen.questions is not None:
        sections.append(("waits", "Waits for approval", waiting_section(base, seen.questions)))
    if seen.live is not None:
        sections.append(("live", "Live", live_section(base, name, seen.live, registered)))
    if "monitor" in seen.stages:
        sections.append(("nights", "Nights", nights_section(base, name, reports, part("nights", 1))))
    if "train" in seen.stages:
        sections.append(
            ("versions", "Versions", versions_section(base, name, reports, registered, part("versions", 1)))
        )
    if "deploy" in seen.stages:
        sections.append(("history", "Aliases", history_section(base, name, registered, part("moves", 1))))
    if "train" in seen.stages:
        sections += [
            ("data", "Data", snapshots_section(base, name, reports, registered)),
            ("sampling", "Sampling", sampling_section(base, name, reports)),
            ("costs", "Costs", costs_section(base, name, reports, registered)),
        ]
    sections = [one for one in sections if one[2]]
    return document(
        base,
        name,
        [
            tag("nav", tag("a", "← Models", href=f"{base.plugin}/"), class_="crumbs"),
            tag("h1", name),
            tag("p", model.spec.description, class_="lead") if model.spec.description else None,
            tag("p", [dag_link(base, name, stage) for stage in STAGES if stage in seen.stages], class_="chips"),
            tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in sections], class_="sections",
                aria_label="sections"),
            [tag("section", tag("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")
             for key, title, content in sections],
        ],
    )  # fmt: skip


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


def _live_short(live: Live | None) -> Content:
    if live is None:
        return NOTHING
    kind, word = LIVE[live.state]
    if live.state == "serving":
        return [
            badge(kind, f"version {live.version}", live.note),
            small(tag("code", live.url)),
            small(f"since {moment(live.since)}"),
        ]
    return [badge(kind, word, live.note), small(live.note)]


def _waits(base: Base, row: Row) -> Content:
    if not row.waiting:
        return NOTHING
    where = path(base.plugin, "models", row.model.name)
    return tag("a", badge("warn", f"{row.waiting} for approval"), href=f"{where}#waits")


def _nothing(broken: Sequence[BrokenSpec]) -> Markup:
    what = f"No model that you may see. A model is a file {PIPELINES}/NAME.yaml of the project, with its DAGs."
    return tag("p", what if not broken else "No spec is usable; this is why:", class_="note")


def _day(night: Night | Damaged | None) -> str | None:
    return night.day.isoformat() if isinstance(night, Night) else night.key if night else None


def _version(gate: Gate | Damaged | None) -> str | None:
    return f"version {gate.version if isinstance(gate, Gate) else gate.key}" if gate else None
