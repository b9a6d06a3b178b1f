"""The gate: a version is deployed only when every check passes; missing evidence fails.

The checks read the evaluation that was made at training; nothing is measured again. The verdict is written as
``gate.json`` and as a page that says of each check its value, its limit and what to do.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.refs import ModelVersionRef, VerdictRef


@dataclass(frozen=True)
class Check:
    """One check.

    :param name: of the check.
    :param passed: whether it passed.
    :param value: what was found.
    :param limit: what was asked for.
    :param todo: what to do when it failed.
    """

    name: str
    passed: bool
    value: str
    limit: str
    todo: str


def judge(
    version: ModelVersionRef, evaluation: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> VerdictRef:
    """Check a version and write the verdict.

    :param version: the version.
    :param evaluation: its ``evaluation.json``.
    :param settings: the gate of the spec: ``auc``, ``ece``, ``baseline``, ``slices``.
    :param folder: where the verdict is written.
    """
    checks = list(_checks(evaluation, settings))
    if evaluation.get("model_id") != version.model_id:
        checks.insert(
            0,
            Check("evidence", False, f"of model {evaluation.get('model_id')}", f"of model {version.model_id}",
                  "evaluate this very model"),
        )  # fmt: skip
    verdict = {
        "name": version.name,
        "version": version.version,
        "model_id": version.model_id,
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.json").write_text(json.dumps(verdict, indent=1))
    (folder / "gate.html").write_text(_page(verdict))
    return VerdictRef(
        name=version.name,
        version=version.version,
        passed=bool(verdict["passed"]),
        checks=len(checks),
        failed=[check.name for check in checks if not check.passed],
        uri=str(folder),
    )


def _checks(evaluation: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Check]:
    auc, wanted = evaluation["auc"], settings.get("auc") or {}
    minimum = wanted.get("min", 0.5)
    yield Check(
        "auc",
        auc["low"] >= minimum,
        f"{auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]",
        f"lower end at least {minimum:g}",
        "train on more days or better features; look at the slices",
    )
    if wanted.get("not_worse_than") == "champion":
        yield _against_champion(evaluation.get("champion"), wanted.get("margin", 0.0))
    yield _recalibration(evaluation.get("recalibration"))
    if ece := settings.get("ece"):
        yield Check(
            "calibration",
            evaluation["ece"] <= ece["max"],
            f"ECE {evaluation['ece']:.4f}",
            f"at most {ece['max']:g}",
            "the scores are no probabilities: train on days more like the test window, or recalibrate",
        )
    if baseline := settings.get("baseline"):
        yield _against_baseline(evaluation.get("baseline"), baseline)
    if slices := settings.get("slices"):
        yield from _slices(evaluation["slices"], slices)


def _recalibration(found: Mapping[str, Any] | None) -> Check:
    """The model must carry the correction that its sample asks for; one that says nothing of it is not trusted."""
    model, sample = (found or {}).get("model"), (found or {}).get("sample")
    return Check(
        "recalibration",
        model is not None and model == sample,
        "not recorded" if model is None else f"odds times {model:g}",
        "as the sample was drawn" if sample is None else f"odds times {sample:g}, as the sample was drawn",
        "train the model with this version of airflow-provider-sml",
    )


def _against_champion(champion: Mapping[str, Any] | None, margin: float) -> Check:
    todo = "keep the champion; look at what the new training days lack"
    limit = f"lower end of the difference at least {-margin:g}"
    if champion is None:
        return Check("champion", True, "there is no champion yet", limit, todo)
    if not champion["comparable"]:
        lacking = ", ".join(champion["missing"])
        return Check("champion", False, f"version {champion['version']} needs {lacking}", limit, "keep those columns")
    gap = champion["difference"]
    return Check(
        "champion",
        gap["low"] >= -margin,
        f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] against version {champion['version']}",
        limit,
        todo,
    )


def _against_baseline(baseline: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Check:
    margin = wanted.get("margin", 0.0)
    limit = f"lower end of the difference at least {margin:g}"
    todo = "a table of rates does as well: give the model better features"
    if baseline is None:
        return Check("baseline", False, "was not measured", limit, "evaluate with a baseline")
    gap = baseline["difference"]
    value = f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] against {baseline['auc']:.4f}"
    return Check("baseline", gap["low"] >= margin, value, limit, todo)


def _slices(found: list[dict[str, Any]], wanted: Mapping[str, Any]) -> Iterator[Check]:
    for column in wanted["by"]:
        measured = [item for item in found if item["column"] == column and item["rows"] >= wanted.get("min_rows", 0)]
        limit = f"AUC at least {wanted['min_auc']:g}"
        if not measured:
            yield Check(f"slice {column}", False, "no slice is large enough", limit, "lower gate.slices.min_rows")
        for item in measured:
            yield Check(
                f"slice {column} = {item['value']}",
                item["auc"] >= wanted["min_auc"],
                f"AUC {item['auc']:.4f} on {item['rows']:,} rows",
                limit,
                "the model fails these rows: look at their features and labels",
            )


def _page(verdict: Mapping[str, Any]) -> str:
    page = Page(f"Gate of {verdict['name']} version {verdict['version']}")
    passed = sum(check["passed"] for check in verdict["checks"])
    word = "Passed" if verdict["passed"] else "Not passed"
    page.text(f"{word}: {passed} of {len(verdict['checks'])} checks.", "good" if verdict["passed"] else "bad")
    page.table(
        ["Check", "", "Found", "Asked for", "To do"],
        [
            (c["name"], "✓" if c["passed"] else "✗", c["value"], c["limit"], "" if c["passed"] else c["todo"])
            for c in verdict["checks"]
        ],
    )
    return page.text(f"Model {verdict['model_id']}, judged at {verdict['time']}.", "note").render()
