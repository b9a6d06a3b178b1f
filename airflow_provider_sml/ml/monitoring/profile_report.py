"""One night's drift report over all rows, from profiles: ``DAY.html`` by Evidently, ``DAY.json`` beside it.

No row is read here: ``night_profiles`` makes the profiles. The same rows, model and rules give the same bytes of
``DAY.json``, whenever and in whatever order nights are reported. The folder may lie on an object store.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.monitoring.night_profiles import Against
from airflow_provider_sml.ml.monitoring.profile import Profile
from airflow_provider_sml.ml.monitoring.verdicts import Finding, Judgement, Rules, judge
from airflow_provider_sml.refs import ReportRef

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def report(
    model: str,
    version: str,
    day: dt.date,
    against: Against,
    new: Profile | None,
    rules: Rules,
    folder: Path,
    performance: Sequence[Mapping[str, Any]] = (),
    findings: Sequence[Finding] = (),
) -> ReportRef:
    """Judge a night and write its report.

    :param model: its name.
    :param version: the version in production.
    :param day: the night.
    :param against: what it is compared with.
    :param new: profile of the night; None when the day is not published.
    :param rules: when something has drifted.
    :param folder: of the nights' reports.
    :param performance: measures of days whose labels have arrived, written beside.
    :param findings: what else was seen, such as another schema.
    """
    require("evidently", "drift")
    from airflow_provider_sml.ml.monitoring.evidently_profiles import page

    missing = [*against.missing, *([day] if new is None else [])]
    old, current = against.profile or Profile(0, {}), new or Profile(0, {})
    found = judge(old, current, rules, against.nights, missing)
    found = replace(found, findings=[*findings, *found.findings, *_of_segments(found)])
    result = {"model": model, "version": version, "day": day.isoformat(), **_numbers(found, against, current, rules)}
    result["performance"] = list(performance)
    target = folder / f"{day}.html"
    with tempfile.TemporaryDirectory(prefix="sml-") as disk:
        page(found, old, current, rules.share).save_html(f"{disk}/night.html")
        storage.write(target, Path(disk, "night.html").read_bytes())
    storage.write(folder / f"{day}.json", json.dumps(result, indent=1))
    return ReportRef(
        model=model,
        day=day.isoformat(),
        verdict=found.verdict,
        share=round(found.share, 4),
        drifted=found.drifted[:10],
        rows=current.rows,
        uri=str(target),
    )


def _of_segments(found: Judgement) -> list[Finding]:
    """The segments that drifted, whatever the whole did."""
    drifted = {name: part for name, part in found.segments.items() if part.verdict == "drift"}
    return [
        Finding("segment", name, f"segment {name}: {part.share:.0%} of the columns drifted: "
                                 f"{', '.join(part.drifted[:5])}")
        for name, part in sorted(drifted.items())
    ]  # fmt: skip


def _numbers(found: Judgement, against: Against, new: Profile, rules: Rules) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "share": round(found.share, 4),
        "share_limit": rules.share,
        "drifted": found.drifted,
        "columns": _columns(found),
        "findings": [vars(finding) for finding in found.findings],
        "segments": {
            name: {"verdict": part.verdict, "share": round(part.share, 4), "drifted": part.drifted,
                   "rows": new.segments[name].rows}
            for name, part in sorted(found.segments.items())
        },
        "rows": new.rows,
        "reference": str(against.reference),
        "reference_rows": against.profile.rows if against.profile else 0,
        "nights": len(against.nights),
    }  # fmt: skip


def _columns(found: Judgement) -> list[dict[str, Any]]:
    return [vars(column) | {"nulls": list(column.nulls)} for column in found.columns]


def expire_reports(folder: Path, before: dt.date) -> list[str]:
    """Remove the reports of nights before a day; gives the names of the files that were removed.

    :param folder: of the nights' reports; only files named by a day are looked at.
    """
    removed = []
    for entry in sorted(storage.entries(folder), key=lambda entry: entry.path):
        name = entry.path.rsplit("/", 1)[-1]
        stem, _, suffix = name.rpartition(".")
        if suffix in ("html", "json") and _DAY.fullmatch(stem) and stem < before.isoformat():
            storage.remove(entry.path)
            removed.append(name)
    return removed
