"""Lineage, walked both ways: from a version to the data and runs that made it, from data to the versions that saw it.

A report is plain JSON; ``page`` shows it to people. It takes what the versions' tags say (``lineage.TAGS``); with a
lake it also says whether the data are still what the version saw.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.registry.lineage import SPLITS, TAGS, splits_with
from airflow_provider_sml.ml.registry.promotion import shown
from airflow_provider_sml.refs import ModelVersionRef

#: What the page of a version shows, group by group.
GROUPS: dict[str, tuple[str, ...]] = {
    "Data": (
        "lake", "table", "snapshot_id", "contract", "days_train", "days_validate", "days_test", "sample_id",
        "sample_uri", "sample_rate", "sample_manifest",
    ),
    "Training": ("model_id", "digest", "seed", "params", "workers", "device", "recalibration", "warm_start",
                 "imported_from"),
    "Software": ("flavour", "library", "code_version", "bundle_version", "image_digest", "environment", "python"),
    "Run": ("dag_id", "run_id", "seconds", "interruptions", "cost_usd", "cost_unknown"),
    "Quality": (
        "auc", "auc_low", "auc_high", "ece", "baseline_auc", "test_rows", "evaluation", "gate", "deployed",
    ),
}  # fmt: skip


def of_version(registry: Registry, ref: ModelVersionRef, lake: Lake | None = None) -> dict[str, Any]:
    """What a version was made of, which versions it came from, and which came from it.

    :param registry: where it is.
    :param ref: the version.
    :param lake: to say whether its snapshot is still there.
    """
    known = {one["version"]: one for one in registry.described(f"name = '{_plain(ref.name)}'")}
    found = known[ref.version]
    history = registry.history(ref.name)
    ancestors: list[dict[str, Any]] = []
    at = found["tags"].get("warm_start")
    while at in known and at not in [one["version"] for one in ancestors]:
        ancestors.append(known[at])
        at = known[at]["tags"].get("warm_start")
    return {
        "kind": "version",
        "name": ref.name,
        **found,
        "aliases": sorted(alias for alias, version in registry.aliases(ref.name).items() if version == ref.version),
        "missing": _missing(found["tags"]),
        "moves": [shown(line) for line in history.lines if ref.version in (line.before, line.after)],
        "ancestors": ancestors,
        "descendants": [one for one in known.values() if one["tags"].get("warm_start") == ref.version],
        "same_sample": sorted(
            (one["version"] for one in known.values() if _same(one, found, "sample_id") and one is not found), key=int
        ),
        "content": _content(found["tags"], lake, None),
    }


def _missing(tags: Mapping[str, str]) -> list[str]:
    """Tags that the version ought to have."""
    wanted = _ALWAYS - (_TRAINED if "imported_from" in tags else set())
    return sorted(name for group in GROUPS.values() for name in group if name in wanted - set(tags))


#: Tags that a version of ``RegisterModelOperator`` always has.
_ALWAYS = set(TAGS) - {
    "warm_start", "bundle_version", "image_digest", "interruptions", "baseline_auc", "gate", "deployed", "evaluation",
    "auc", "auc_low", "auc_high", "ece", "test_rows", "imported_from",
}  # fmt: skip
#: Those of them that only a training here has.
_TRAINED = {"seed", "workers", "device", "seconds"}


def of_data(
    registry: Registry,
    table: str,
    snapshot_id: str = "",
    day: dt.date | None = None,
    lake: Lake | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Every version that saw a snapshot of a table, a day of it, or anything of it.

    A version saw a day when the days of a split of its sample include it. With the lake, the day's files in the
    version's snapshot are compared with those of now: a day that was published again since has other content.

    :param registry: where the versions are.
    :param table: name of the table.
    :param snapshot_id: only of this snapshot; empty for any.
    :param day: only those that saw this day; None for any.
    :param lake: lake of the table.
    :param name: only versions of this registered model; empty for all.
    """
    wanted = [f"tags.`sml.table` = '{_plain(table)}'"]
    wanted += [f"tags.`sml.snapshot_id` = '{_plain(snapshot_id)}'"] if snapshot_id else []
    wanted += [f"name = '{_plain(name)}'"] if name else []
    rows: list[dict[str, Any]] = []
    unknown: list[dict[str, str]] = []
    histories: dict[str, list[tuple[str, str, str]]] = {}
    for one in registry.described(" and ".join(wanted)):
        seen = list(SPLITS) if day is None else splits_with(one["tags"], day)
        if seen is None:
            unknown.append({"name": one["name"], "version": one["version"]})
        elif seen:
            if one["name"] not in histories:
                histories[one["name"]] = registry.history(one["name"]).spells(CHAMPION)
            spells = histories[one["name"]]
            champion = [{"from": begin, "to": end} for version, begin, end in spells if version == one["version"]]
            rows.append(
                one | {"splits": seen if day else None, "champion": champion}
                | {"content": _content(one["tags"], lake, day)}
            )  # fmt: skip
    return {
        "kind": "data", "table": table, "snapshot_id": snapshot_id, "day": day.isoformat() if day else "",
        "versions": rows, "unknown": unknown,
    }  # fmt: skip


def _content(tags: Mapping[str, str], lake: Lake | None, day: dt.date | None) -> dict[str, Any] | None:
    """What the lake still has of what a version saw; None without a lake.

    ``state`` is ``gone`` when the snapshot has expired, ``same`` when the data are the same now, else ``published
    again``. ``rows`` and ``files`` (a hash of the data files' names) are of the version's snapshot.
    """
    if lake is None or "table" not in tags:
        return None
    table, snapshot = tags["table"], int(tags.get("snapshot_id", 0))
    if not lake.exists(table) or snapshot not in [one["snapshot_id"] for one in lake.snapshots(table)]:
        return {"state": "gone", "rows": None, "files": None}
    days = [text for split in SPLITS for text in tags.get(f"days_{split}", "").split("/") if text]
    first, last = (day, day) if day else (min(days), max(days)) if days else (None, None)
    span = [dt.date.fromisoformat(edge) if isinstance(edge, str) else edge for edge in (first, last)]
    then, now = (lake.files(table, which, *span) for which in (snapshot, None))
    names = [[file.path for file in files] for files in (then, now)]
    return {
        "state": "same" if names[0] == names[1] else "published again",
        "rows": sum(file.rows for file in then),
        "files": hashlib.sha256("\n".join(names[0]).encode()).hexdigest(),
    }


def _same(one: Mapping[str, Any], other: Mapping[str, Any], tag: str) -> bool:
    return tag in one["tags"] and one["tags"].get(tag) == other["tags"].get(tag)


def _plain(text: str) -> str:
    if "'" in text or "`" in text:
        raise ConfigurationError("a name has a quote in it", expected="letters, digits, _, - and .", found=text)
    return text


# --- for people -------------------------------------------------------------------------------------------------------


def page(report: Mapping[str, Any]) -> str:
    """A report as one self-contained HTML page."""
    return _version_page(report) if report["kind"] == "version" else _data_page(report)


def _version_page(report: Mapping[str, Any]) -> str:
    tags = report["tags"]
    made = Page(f"Lineage of {report['name']} version {report['version']}")
    made.text(f"Registered {_moment(report['created'])}; run {report['run_id']} of MLflow; aliases: "
              f"{', '.join(report['aliases']) or 'none'}.")  # fmt: skip
    if report["missing"]:
        made.text(f"Not recorded: {', '.join(report['missing'])}.", "bad")
    for title, names in GROUPS.items():
        rows = [(name, tags[name], TAGS[name].replace("`", "")) for name in names if tags.get(name)]
        if rows:
            made.heading(title).table(["Tag", "Value", "Meaning"], rows)
    if report["content"]:
        made.text(_told(report["content"], tags), "" if report["content"]["state"] == "same" else "bad")
    made.heading("Aliases")
    made.table(
        ["When", "Alias", "From", "To", "By", "Line"],
        [(_moment(m["at"]), m["alias"], m["before"], m["after"], m["by"], m["hash"][:12]) for m in report["moves"]],
    )
    for title, key in (("Started from", "ancestors"), ("Started from this one", "descendants")):
        if report[key]:
            made.heading(title).table(*_versions(report[key]))
    if report["same_sample"]:
        made.text(f"Versions of the same sample: {', '.join(report['same_sample'])}.", "note")
    return made.render()


def _data_page(report: Mapping[str, Any]) -> str:
    what = f"snapshot {report['snapshot_id']} of {report['table']}" if report["snapshot_id"] else report["table"]
    what = f"{report['day']} of {what}" if report["day"] else what
    made = Page(f"What saw {what}")
    made.text(f"{len(report['versions'])} versions of {len({one['name'] for one in report['versions']})} models.")
    columns, rows = _versions(report["versions"])
    more = [
        (
            ", ".join(one["splits"] or []), _spells(one["champion"]),
            one["content"]["state"] if one["content"] else "", one["content"]["rows"] if one["content"] else "",
        )
        for one in report["versions"]
    ]  # fmt: skip
    made.table([*columns, "In", "Champion", "Data", "Rows"], [[*a, *b] for a, b in zip(rows, more, strict=True)])
    if report["unknown"]:
        named = ", ".join(f"{one['name']} {one['version']}" for one in report["unknown"])
        made.text(f"Registered without the days of their splits, so that nobody can tell: {named}.", "bad")
    return made.render()


def _versions(versions: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    names = ("snapshot_id", "sample_id", "dag_id", "run_id", "auc", "gate")
    rows = [[f"{one['name']} {one['version']}", *(one["tags"].get(name, "") for name in names)] for one in versions]
    return ["Version", "Snapshot", "Sample", "DAG", "Run", "AUC", "Gate"], rows


def _spells(spells: list[dict[str, str]]) -> str:
    return "; ".join(f"{one['from'][:16]} to {one['to'][:16] or 'now'}" for one in spells)


def _moment(text: str) -> str:
    """An ISO time in UTC as people write it, to the second."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _told(content: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    what = f"Snapshot {tags.get('snapshot_id')} of {tags.get('table')}"
    if content["state"] == "gone":
        return f"{what} has expired, or its table is gone."
    now = "the same now" if content["state"] == "same" else "partly published again since"
    return f"{what} is still there: {content['rows']:,} rows of these days, {now}."
