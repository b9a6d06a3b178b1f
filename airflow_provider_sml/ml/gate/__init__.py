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

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.refs import ModelVersionRef, VerdictRef

_UNMEASURED = "was not measured"


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


#: The checks and their settings.
KNOWN = {
    "auc": {"min", "not_worse_than", "margin"},
    "ece": {"max"},
    "baseline": {"by", "margin"},
    "slices": {"by", "min_rows", "min_auc"},
}


def judge(
    version: ModelVersionRef,
    evaluation: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path,
    champion: str | None = None,
) -> VerdictRef:
    """Check a version and write the verdict.

    :param version: the version.
    :param evaluation: its ``evaluation.json``.
    :param settings: the gate of the spec: ``auc``, ``ece``, ``baseline``, ``slices``.
    :param folder: where the verdict is written.
    :param champion: the version in production now; None when there is none.
    :raises ConfigurationError: when the settings name what is no check: it would pass unseen.
    """
    _known(settings)
    # A champion that is judged again, because its training was repeated, stands as it was compared then.
    rival = None if champion == version.version else champion
    checks = list(_checks(evaluation, settings, rival))
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


def _known(settings: Mapping[str, Any]) -> None:
    for name, wanted in settings.items():
        if wanted is None:
            continue
        unknown = {name} - set(KNOWN) or (set(wanted) - KNOWN[name] if isinstance(wanted, Mapping) else {str(wanted)})
        if unknown:
            raise ConfigurationError(
                f"the gate has no {', '.join(sorted(unknown))}",
                expected="; ".join(f"{check}: {', '.join(sorted(keys))}" for check, keys in KNOWN.items()),
                found=f"{name}: {wanted}",
            )
    for name, key in (("ece", "max"), ("slices", "by")):
        if (settings.get(name) or {key: 1}).get(key) is None:
            raise ConfigurationError(f"gate.{name} lacks {key}", expected=key, found=settings[name])
    if (rival := (settings.get("auc") or {}).get("not_worse_than")) not in (None, "champion"):
        raise ConfigurationError("gate.auc.not_worse_than", expected="champion", found=rival)


def _checks(evaluation: Mapping[str, Any], settings: Mapping[str, Any], rival: str | None) -> Iterator[Check]:
    auc, wanted = evaluation.get("auc"), settings.get("auc") or {}
    minimum = wanted.get("min", 0.5)
    yield Check(
        "auc",
        auc is not None and auc["low"] >= minimum,
        _UNMEASURED if auc is None else f"{auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]",
        f"lower end at least {minimum:g}",
        "train on more days or better features; look at the slices",
    )
    if wanted.get("not_worse_than"):
        yield _against_champion(evaluation.get("champion"), wanted.get("margin", 0.0), rival)
    yield _recalibration(evaluation.get("recalibration"))
    if ece := settings.get("ece"):
        found = evaluation.get("ece")
        yield Check(
            "calibration",
            found is not None and found["value"] <= ece["max"],
            _UNMEASURED if found is None else f"ECE {found['value']:.4f}",
            f"at most {ece['max']:g}",
            "the scores are no probabilities: train on days more like the test window, or recalibrate",
        )
    if baseline := settings.get("baseline"):
        yield _against_baseline(evaluation.get("baseline"), baseline)
    if slices := settings.get("slices"):
        yield from _slices(evaluation.get("slices") or [], slices)


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


def _against_champion(compared: Mapping[str, Any] | None, margin: float, rival: str | None) -> Check:
    """The comparison must be with the version that is in production now, not with an earlier one or with none."""
    todo = "keep the champion; look at what the new training days lack"
    limit = f"lower end of the difference at least {-margin:g}"
    if rival is not None and (compared is None or compared["version"] != rival):
        found = "was compared with none" if compared is None else f"was compared with version {compared['version']}"
        return Check("champion", False, f"{found}; version {rival} is the champion", limit, "evaluate again")
    if compared is None:
        return Check("champion", True, "there is no other champion", limit, todo)
    if not compared["comparable"]:
        lacking = ", ".join(compared["missing"])
        return Check("champion", False, f"version {compared['version']} needs {lacking}", limit, "keep those columns")
    gap = compared["difference"]["auc"]
    return Check(
        "champion",
        gap["low"] >= -margin,
        f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] against version {compared['version']}",
        limit,
        todo,
    )


def _against_baseline(baseline: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Check:
    margin = wanted.get("margin", 0.0)
    limit = f"lower end of the difference at least {margin:g}"
    todo = "a table of rates does as well: give the model better features"
    if baseline is None:
        return Check("baseline", False, _UNMEASURED, limit, "evaluate with a baseline")
    gap = baseline["difference"]["auc"]
    value = f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] against {baseline['auc']:.4f}"
    return Check("baseline", gap["low"] >= margin, value, limit, todo)


def _slices(found: list[dict[str, Any]], wanted: Mapping[str, Any]) -> Iterator[Check]:
    minimum = wanted.get("min_auc", 0.5)
    for column in wanted["by"]:
        measured = [item for item in found if item["column"] == column and item["rows"] >= wanted.get("min_rows", 0)]
        limit = f"AUC at least {minimum:g}"
        if not measured:
            yield Check(f"slice {column}", False, "no slice is large enough", limit, "lower gate.slices.min_rows")
        for item in measured:
            auc = item["auc"]
            yield Check(
                f"slice {column} = {item['value']}",
                auc is not None and auc >= minimum,
                f"{'only one label' if auc is None else f'AUC {auc:.4f}'} on {item['rows']:,} rows",
                limit,
                "the model fails these rows: look at their features and labels"
                if auc is not None
                else "lengthen the test window, or raise gate.slices.min_rows",
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
