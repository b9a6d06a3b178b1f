"""The sections on a model's versions: what is live where, what waits, evidence, aliases, snapshots, sampling, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from airflow_provider_sml.ui import charts
from airflow_provider_sml.ui.forms import Damaged, Gate
from airflow_provider_sml.ui.index import counted
from airflow_provider_sml.ui.live import Live
from airflow_provider_sml.ui.markup import Content, path, tag
from airflow_provider_sml.ui.parts import (
    Base,
    Part,
    airflow_link,
    badge,
    count,
    gate_badge,
    interval,
    moment,
    number,
    percent,
    report_link,
    run_link,
    small,
    stamp,
    table,
    text_of,
    usd,
)
from airflow_provider_sml.ui.registered import Deployment, Registered, Version, page_of, run_of
from airflow_provider_sml.ui.reports import Reports
from airflow_provider_sml.ui.waiting import Question

#: How many one part of a page shows.
VERSIONS, MOVES, SNAPSHOTS, RUNS = 20, 20, 10, 20
LIVE = {
    "serving": ("good", "serving"),
    "silent": ("bad", "does not answer"),
    "none": ("plain", "not deployed"),
    "unknown": ("plain", "unknown"),
}


def waiting_section(base: Base, questions: Sequence[Question]) -> list[Content]:
    """What waits for a person; each leads to Airflow's own form, where it is answered."""
    rows = [
        [
            airflow_link(base, question.subject, *_form(question)),
            moment(question.asked.isoformat(timespec="seconds")),
            ", ".join(question.users) or "everybody who may answer tasks of the DAG",
            run_link(base, question.run_id, question.dag_id, question.run_id),
            airflow_link(base, "answer", *_form(question), class_="chip"),
        ]
        for question in questions
    ]
    if not rows:
        return [tag("p", "Nothing waits for anybody.", class_="note")]
    return [table(["Question", "Asked", "May answer", "Run", ""], rows)]


def _form(question: Question) -> list[str]:
    parts = ["dags", question.dag_id, "runs", question.run_id, "tasks", question.task_id]
    mapped = ["mapped", str(question.map_index)] if question.map_index >= 0 else []
    return [*parts, *mapped, "required_actions"]


def live_section(base: Base, name: str, live: Live, registered: Registered) -> list[Content]:
    """What serves: asked of this machine, and as deployments wrote it down."""
    told = registered.deployments()
    parts: list[Content] = []
    if live.state != "none" or not told:
        parts.append(_live_card(live))
    if told:
        parts.append(
            table(
                ["Endpoint", "Where", "Version", "Traffic", "Since", "Runs on", "Address", "Deployed by"],
                [_deployed(base, name, registered, one) for one in told],
                right={3},
            )
        )
        parts.append(tag("p", "As their deployments wrote it down; no cloud is asked for this page.", class_="note"))
    return parts


def _live_card(live: Live) -> Markup:
    kind, word = LIVE[live.state]
    facts = [("On this machine", badge(kind, word)), ("Version", live.version), ("Since", moment(live.since))]
    facts += [("Address", tag("code", live.url) if live.url else None), ("Note", live.note)]
    items = [[tag("dt", name), tag("dd", value)] for name, value in facts if value]
    return tag("dl", items, class_="card")


def _deployed(base: Base, name: str, registered: Registered, one: Deployment) -> list[Content]:
    shadow = one.mode == "shadow"
    where = {"local": "a machine of Airflow's", "sagemaker": "SageMaker", "vertex": "Vertex AI"}
    by = run_of(one.run)
    return [
        one.endpoint,
        where.get(one.target, one.target),
        [
            mlflow_link(registered, name, one.version, f"version {one.version}"),
            " ", badge("plain", {"ab": "A/B test", "shadow": "shadow"}[one.mode]) if one.mode in ("ab", "shadow")
            else None,
        ],
        "a copy" if shadow else f"{one.percent:g} %",
        stamp(one.since),
        [f"{one.machine} " if one.machine else None, _spot(one)],
        tag("code", one.address) if one.address else None,
        run_link(base, by[1], by[0], by[2], by[1]) if by else None,
    ]  # fmt: skip


def _spot(one: Deployment) -> Markup:
    return badge("warn", "spot", "these machines may be taken away") if one.spot else badge("plain", "not spot")


def versions_section(base: Base, name: str, reports: Reports, registered: Registered, asked: int = 1) -> list[Content]:
    """The versions with their evidence.

    :param base: where things are.
    :param name: of the model.
    :param reports: of the model.
    :param registered: what the registry says.
    :param asked: which part of the versions, from 1 on.
    """
    known = {version.number: version for version in registered.versions}
    numbers = sorted({*known, *reports.judged()}, key=counted, reverse=True)
    parts: list[Content] = [tag("p", f"{registered.note}.", class_="note")] if registered.note else []
    if not numbers:
        return [*parts, tag("p", "No version has been judged yet.", class_="note")]
    part = Part.of(asked, VERSIONS, len(numbers))
    shown = numbers[part.begin : part.end]
    gates = reports.gates_of(shown)
    pointed: dict[str, list[str]] = {}
    for alias, version in registered.aliases.items():
        pointed.setdefault(version, []).append(alias)
    rows = [
        _version(base, name, reports, registered, known.get(one), one, gates.get(one), pointed.get(one, []))
        for one in shown
    ]
    head = ["Version", "Registered", "AUC", "ECE", "Gate", "Approval", "Sample", "Seconds", "Cost", ""]
    judged = [gates[one] for one in shown if one in gates]
    return [
        *parts,
        part.links(path(base.plugin, "models", name), "versions", "versions", "versions"),
        table(head, rows, right={2, 3, 6, 7, 8}),
        tag("h3", "What the gate checked"),
        [_gate(base, name, reports, gate, first=gate is judged[0]) for gate in judged]
        or tag("p", "None of these has been judged.", class_="note"),
    ]


def _version(
    base: Base, name: str, reports: Reports, registered: Registered, version: Version | None, one: str,
    gate: Gate | Damaged | None, aliases: Sequence[str],
) -> list[Content]:  # fmt: skip
    marks = [badge("good" if alias == "champion" else "plain", alias) for alias in sorted(aliases)]
    shown: Content = gate_badge(gate) if gate else None
    if version is None:
        judged = report_link(base, name, reports, "gate", one, shown, None)
        return [[one, " ", marks], "", "", "", judged, "", "", "", "", ""]
    tags, told = version.tags, version.number_of
    model_id = tags.get("model_id", "")
    if shown is None and tags.get("gate"):
        shown = badge("good" if tags["gate"] == "passed" else "bad", tags["gate"])
    auc = interval(told("auc"), told("auc_low"), told("auc_high"))
    registered_at = stamp(version.created)
    dag, run = tags.get("dag_id"), tags.get("run_id")
    rate = told("sample_rate")
    return [
        [one, " ", marks],
        run_link(base, registered_at, dag, run) if dag and run else registered_at,
        report_link(base, name, reports, "evaluation", model_id, auc, None),
        report_link(base, name, reports, "evaluation", model_id, number(told("ece")), None),
        report_link(base, name, reports, "gate", one, shown, None),
        _approval(tags),
        percent(rate),
        f"{told('seconds'):,.0f}" if told("seconds") is not None else None,
        _cost(tags, told("cost_usd")),
        tag(
            "div",
            mlflow_link(registered, name, one, "MLflow", "chip"),
            report_link(base, name, reports, "lineage", one, "lineage"),
            report_link(base, name, reports, "evaluation", model_id, "evaluation"),
            class_="chips",
        ),
    ]


def _approval(tags: Mapping[str, str]) -> Content:
    said = tags.get("approval")
    if not said:
        return None
    kind = {"approved": "good", "rejected": "bad", "waiting": "warn"}.get(said, "plain")
    by = tags.get("approval_by")
    return [badge(kind, said, tags.get("approval_comment") or None), small(f"by {by}" if by else None)]


def _cost(tags: Mapping[str, str], cost: float | None) -> Content:
    unknown = tags.get("cost_unknown", "0")
    return [usd(cost), small(f"{unknown} without a price" if unknown not in ("", "0") else None)]


def _gate(base: Base, name: str, reports: Reports, gate: Gate | Damaged, first: bool) -> Markup:
    if isinstance(gate, Damaged):
        return tag("p", gate_badge(gate), f" version {gate.key}: {gate.error}", class_="card")
    version = str(gate.version)
    passed = sum(check.passed for check in gate.checks)
    links: list[Content] = [report_link(base, name, reports, "gate", version, "gate")]
    if gate.model_id:
        links.append(report_link(base, name, reports, "evaluation", gate.model_id, "evaluation"))
    checks = table(
        ["Check", "", "Found", "Asked for", "To do"],
        [
            [
                check.name,
                badge("good", "passed") if check.passed else badge("bad", "failed"),
                text_of(check.value),
                text_of(check.limit),
                None if check.passed else check.todo,
            ]
            for check in gate.checks
        ],
    )
    summary = tag(
        "summary",
        tag("b", f"Version {version}"),
        gate_badge(gate),
        tag("span", f"{passed} of {len(gate.checks)} checks", class_="note"),
        tag("span", moment(gate.time), class_="note"),
    )
    return tag("details", summary, tag("p", links, class_="chips"), checks, open=first, class_="card")


def history_section(base: Base, name: str, registered: Registered, asked: int = 1) -> list[Content]:
    """Every move of an alias, the last one first.

    :param base: where things are.
    :param name: of the model.
    :param registered: what the registry says.
    :param asked: which part of the moves, from 1 on.
    """
    lines = registered.history
    if not lines:
        return [tag("p", f"{registered.note or 'No alias has been moved yet'}.", class_="note")]
    part = Part.of(asked, MOVES, len(lines))
    rows = []
    for line in lines[part.begin : part.end]:
        by = run_of(line.by)
        evidence = [[tag("dt", key), tag("dd", value)] for key, value in sorted(line.evidence.items())]
        rows.append(
            [
                moment(line.at),
                badge("good" if line.alias == "champion" else "plain", line.alias),
                tag("span", line.before or "none", " → ",
                    mlflow_link(registered, name, line.after, line.after) if line.after else "none", class_="nowrap"),
                run_link(base, line.by, by[0], by[2], by[1]) if by else line.by,
                tag("details", tag("summary", f"{len(evidence)} facts"), tag("dl", evidence)) if evidence else None,
                tag("code", line.hash[:12], title=line.hash),
            ]
        )  # fmt: skip
    return [
        part.links(path(base.plugin, "models", name), "moves", "history", "moves"),
        table(["When", "Alias", "Version", "By", "Evidence", "Line"], rows),
        tag("p", "Verified by ", tag("code", "python -m airflow_provider_sml.ml.registry verify"), ".", class_="note"),
    ]


def snapshots_section(base: Base, name: str, reports: Reports, registered: Registered) -> list[Content]:
    """The snapshots of data that versions were made from, the newest first."""
    found: dict[tuple[str, str], list[Version]] = {}
    for version in registered.versions:
        if snapshot := version.tags.get("snapshot_id"):
            found.setdefault((version.tags.get("table", ""), snapshot), []).append(version)
    if not found:
        return [tag("p", "No version tells of its data.", class_="note")]
    rows = []
    for (source, snapshot), versions in list(found.items())[:SNAPSHOTS]:
        tags, newest = versions[0].tags, versions[0].number
        days = [" to ".join(tags.get(f"days_{split}", "").split("/")) for split in ("train", "validate", "test")]
        numbers = ", ".join(version.number for version in versions[:8]) + (" …" if len(versions) > 8 else "")
        rows.append(
            [
                source,
                report_link(base, name, reports, "lineage", newest, tag("code", snapshot), None),
                *days,
                percent(versions[0].number_of("sample_rate")),
                numbers,
            ]
        )
    more = len(found) - len(rows)
    head = ["Table", "Snapshot", "Trained on", "Validated on", "Tested on", "Sample", "Versions"]
    return [table(head, rows, right={5}), tag("p", f"{more} older ones.", class_="note") if more > 0 else None]


def sampling_section(base: Base, name: str, reports: Reports) -> list[Content]:
    """The newest curve of AUC by sampling rate."""
    found = reports.plan()
    if found is None:
        return []
    key, plan = found
    if isinstance(plan, Damaged):
        return [tag("p", f"The curve of {key} cannot be read: {plan.error}.", class_="note")]
    point = next((one for one in plan.points if one.rate == plan.rate), None)
    facts = [f"{percent(plan.rate)} of the rows" if plan.found else "All rows"]
    facts += [f"expected loss of AUC {point.loss:.4f}"] if point and point.loss is not None else []
    facts += [f"allowed {plan.tolerance:g}"] if plan.tolerance is not None else []
    if plan.full_seconds and plan.total_seconds is not None:
        facts.append(f"{plan.total_seconds:,.0f} s with the plan, {plan.full_seconds:,.0f} s for all rows")
    return [
        tag("p", report_link(base, name, reports, "sample", key, "; ".join(facts), None), "."),
        charts.curve(plan.points, plan.rate),
    ]


def costs_section(base: Base, name: str, reports: Reports, registered: Registered) -> list[Content]:
    """What runs cost and saved, the last ones first."""
    runs = reports.costs(RUNS)
    known = [version.number_of("cost_usd") for version in registered.versions]
    total = sum(cost for cost in known if cost is not None)
    versions = "1 version" if len(registered.versions) == 1 else f"{len(registered.versions)} versions"
    said = f"The training of {versions} cost {usd(total)}, as far as prices are known."
    parts: list[Content] = [tag("p", said, class_="note")] if registered.versions else []
    if not runs:
        return [*parts, tag("p", "No run has told of its costs.", class_="note")]
    rows: list[list[Content]] = []
    for key, found in runs:
        if isinstance(found, Damaged):
            rows.append([key, "unreadable", found.error, "", "", ""])
            continue
        sums, ran = found.totals, found.run_id and found.dag_id
        rows.append(
            [
                report_link(base, name, reports, "costs", key, found.run_id or key, None),
                run_link(base, found.dag_id, found.dag_id, found.run_id) if ran else None,
                report_link(base, name, reports, "costs", key, usd(sums.usd), None),
                report_link(base, name, reports, "costs", key, usd(sums.saved_usd), None),
                usd(sums.usd_per_hour) if sums.usd_per_hour else None,
                count(sums.unknown) if sums.unknown else None,
            ]
        )
    head = ["Run", "DAG", "Cost", "Saved by spot", "Goes on, an hour", "Without a price"]
    return [*parts, table(head, rows, right={2, 3, 4, 5})]


def mlflow_link(registered: Registered, name: str, version: str, text: str, class_: str | None = None) -> Content:
    """A link to MLflow's page of a version, where there is one; else nothing, or the text where it is not a chip."""
    address = page_of(registered.place, name, version)
    if not address:
        return None if class_ else text
    # The frame that holds this page may open no window: the link is followed by Airflow's own page.
    return tag("a", text, href=address, target="_parent", rel="noreferrer", data_airflow="new", class_=class_)
