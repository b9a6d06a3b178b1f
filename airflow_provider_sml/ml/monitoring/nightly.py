"""One night's report of performance: what labels say of the days before, what is estimated of those without, skew.

Written as ``DAY.json`` and ``DAY.html`` into a folder of its own beside the drift reports; ``findings`` in it are what
the decision reads. It decides nothing itself. The same night gives the same report as long as the days it looks at
have the same files.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.contract.quantities import whole_days
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring import estimate as cbpe
from airflow_provider_sml.ml.monitoring.bins import ScoreBins
from airflow_provider_sml.ml.monitoring.decision import SEVERITIES
from airflow_provider_sml.ml.monitoring.performance import (
    DayScores,
    Z,
    day_scores,
    mature_days,
    told,
    young_days,
)
from airflow_provider_sml.ml.monitoring.served import ServedLog
from airflow_provider_sml.ml.monitoring.skew import skew
from airflow_provider_sml.ml.page import Page

#: Folder of measured days, below that of the reports.
KEPT = "days"


@dataclass(frozen=True)
class Watch:
    """What is looked at, and from when on it is a finding.

    :param label_known_after: how long after its event a row's label is known.
    :param window: how far back days are measured anew, and calibrate estimates.
    :param auc_drop: how far the AUC may lie below that of the rows that the version was tested on; a finding once the
        whole interval of a day lies below.
    :param calibration: how far the mean score of the window may lie from the label's rate.
    :param coverage: share of a mature day's scored rows that must have a label.
    :param skew: share of the rows that may have been served with another value of a feature.
    :param min_rows: days of fewer labelled rows are shown, and are no finding.
    """

    label_known_after: dt.timedelta = dt.timedelta(0)
    window: dt.timedelta = dt.timedelta(days=28)
    auc_drop: float = 0.05
    calibration: float = 0.05
    coverage: float = 0.5
    skew: float = 0.05
    min_rows: int = 200

    @property
    def delay(self) -> dt.timedelta:
        """Whole days after which a day is mature."""
        return dt.timedelta(days=whole_days(self.label_known_after))


def night_report(
    model: str,
    version: str,
    night: dt.date,
    lake: Lake,
    table: str,
    scorer: Scorer,
    watch: Watch,
    folder: Path,
    *,
    tested: Sequence[Path] = (),
    served: ServedLog | None = None,
) -> dict[str, Any]:
    """Measure, estimate and compare, and write the report.

    :param model: its name.
    :param version: the version in production.
    :param night: the last day that has ended.
    :param table: table with the labels.
    :param scorer: of the version.
    :param watch: what is a finding.
    :param folder: of the reports.
    :param tested: files of the rows that the version was tested on.
    :param served: the server's prediction log.
    """
    key, kept = scorer.bundle.dataset.contract.key, folder / KEPT
    # An estimate within the window is calibrated on days before it, so that twice the window is looked at.
    reach = mature_days(night, watch.label_known_after, 2 * watch.window)
    known = [scores for scores in day_scores(lake, table, key, reach, kept=kept) if scores.measures]
    young = day_scores(lake, table, key, young_days(night, watch.label_known_after), labels=False, kept=kept)
    reference = _reference(scorer, tested, kept)
    references = {version: reference} if reference is not None else {}
    window = set(reach[len(reach) // 2 :])
    backtest = cbpe.backtest(known, watch.delay, watch.window, references, window)
    errors = cbpe.errors_of(backtest)
    estimated = [
        cbpe.estimate(
            scores, cbpe.calibrator_for(scores.day, scores.version, known, watch.delay, watch.window,
                                        references.get(scores.version)), errors
        )
        for scores in young
    ]  # fmt: skip
    recent = [scores for scores in known if scores.day in window]
    report: dict[str, Any] = {
        "model": model,
        "version": version,
        "day": night.isoformat(),
        "reference": None if reference is None else cbpe.pooled(reference) | {"rows": int(reference.labelled.sum())},
        "realised": [told(scores) for scores in recent],
        "estimated": estimated,
        "backtest": cbpe.summary(backtest),
        "calibration": _calibration([scores for scores in recent if scores.version == version]),
        "skew": None if served is None else skew(lake, table, night, scorer, version, served),
        "importance": scorer.importance(),
    }
    report["findings"] = findings(report, watch)
    storage.write(folder / f"{night}.json", json.dumps(report, indent=1))
    storage.write(folder / f"{night}.html", page_of(report))
    return report


def _reference(scorer: Scorer, tested: Sequence[Path], kept: Path) -> ScoreBins | None:
    """Scores of the rows that the version was tested on; kept, because they stay the same."""
    if not tested:
        return None
    path = kept / f"tested-{scorer.bundle.digest[:16]}.json"
    try:
        return ScoreBins.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, IndexError):
        made = cbpe.reference_scores(scorer, tested)
        storage.write(path, json.dumps(made.to_json(), indent=1))
        return made


def _calibration(days: Sequence[DayScores]) -> dict[str, float] | None:
    """Mean score less the label's rate over some days; its interval takes days, not rows, for independent: the weather
    of a day is the weather of all its rows."""
    if not days:
        return None
    values = np.array([scores.measures["calibration"] for scores in days])
    weights = np.array([scores.measures["rows"] for scores in days], float)
    mean = float(values @ weights / weights.sum())
    if len(days) < 2:
        return {"value": mean, "low": -1.0, "high": 1.0, "days": len(days)}
    spread = math.sqrt(float(weights**2 @ (values - mean) ** 2)) / float(weights.sum())
    half = Z * spread * math.sqrt(len(days) / (len(days) - 1))
    return {"value": mean, "low": mean - half, "high": mean + half, "days": len(days)}


def findings(report: Mapping[str, Any], watch: Watch) -> list[dict[str, Any]]:
    """What is worth telling of a night, the gravest first: ``kind``, ``severity`` and ``text``.

    :param report: the night's, without its findings.
    :param watch: the limits.
    """
    found = [*_of_labels(report, watch), *_of_estimates(report, watch), *_of_skew(report, watch)]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding["severity"]))


def _finding(kind: str, severity: str, text: str) -> dict[str, Any]:
    return {"kind": kind, "severity": severity, "text": text}


def _of_labels(report: Mapping[str, Any], watch: Watch) -> list[dict[str, Any]]:
    found, night = [], dt.date.fromisoformat(report["day"])
    [newest] = [day for day in report["realised"] if night - dt.date.fromisoformat(day["day"]) == watch.delay] or [None]
    reference = report["reference"]
    if newest and newest["rows"] >= watch.min_rows and newest["version"] == report["version"]:
        if newest["coverage"] < watch.coverage:
            text = f"{newest['coverage']:.0%} of the rows of {newest['day']} have a label"
            found.append(_finding("labels", "warning", text))
        if reference and newest["auc"] is not None and newest["auc_high"] < reference["auc"] - watch.auc_drop:
            text = f"AUC of {newest['day']}: {_interval(newest)}; {reference['auc']:.3f} when it was tested"
            found.append(_finding("performance", "critical", text))
    off = report["calibration"]
    if off and off["days"] > 1 and (off["low"] > watch.calibration or off["high"] < -watch.calibration):
        text = f"scores lie {off['value']:+.3f} from the label's rate over {off['days']} days"
        found.append(_finding("calibration", "warning", text))
    return found


def _of_estimates(report: Mapping[str, Any], watch: Watch) -> list[dict[str, Any]]:
    reference = report["reference"]
    if not reference:
        return []
    return [
        _finding("estimate", "warning", f"estimated AUC of {day['day']}: {_interval(day)}; "
                                        f"{reference['auc']:.3f} when it was tested")
        for day in report["estimated"]
        if day["day"] == report["day"] and day["rows"] >= watch.min_rows
        and day["auc_high"] < reference["auc"] - watch.auc_drop
    ]  # fmt: skip


def _of_skew(report: Mapping[str, Any], watch: Watch) -> list[dict[str, Any]]:
    compared = report["skew"]
    if not compared:
        return []
    far = [one for one in compared["features"] if one["differ"] > watch.skew]
    if not far:
        return []
    named = ", ".join(f"{one['name']} ({one['differ']:.0%})" for one in far[:5])
    text = f"served with other values than the lake holds: {named} of {compared['matched']:,} rows"
    return [_finding("skew", "warning", text)]


def _interval(day: Mapping[str, Any], name: str = "auc") -> str:
    return f"{day[name]:.3f} [{day[f'{name}_low']:.3f}, {day[f'{name}_high']:.3f}]"


def page_of(report: Mapping[str, Any]) -> str:
    """The report as one HTML page."""
    page = Page(f"{report['model']}: performance, night of {report['day']}")
    page.text(f"Version {report['version']}.")
    for finding in report["findings"]:
        page.text(f"{finding['severity']}: {finding['text']}", "bad" if finding["severity"] == "critical" else "")
    if not report["findings"]:
        page.text("Nothing found.", "good")
    names = ("auc", "log_loss", "brier")
    page.heading("Estimated: days whose labels are not known yet")
    page.table(
        ["day", "rows", "AUC", "log loss", "Brier", "label's rate", "interval by"],
        [
            [day["day"], day["rows"], *(_interval(day, name) for name in names), f"{day['rate']:.3f}", day["interval"]]
            for day in report["estimated"]
        ],
    )
    page.heading("Realised: days whose labels are known")
    page.table(
        ["day", "rows", "with label", "AUC", "log loss", "Brier", "score - rate", "ECE", "version"],
        [
            [
                day["day"], day["rows"], f"{day['coverage']:.0%}",
                *("" if day[name] is None else _interval(day, name) for name in (*names, "calibration", "ece")),
                day["version"],
            ]
            for day in reversed(report["realised"])
        ],
    )  # fmt: skip
    tested = report["backtest"]
    if tested["days"]:
        page.heading(f"Error of the estimates on {tested['days']} of these days")
        page.text("Each estimated by what was known on its evening; plain: the mean of the window before.", "note")
        page.table(
            ["measure", "mean absolute error", "bias", "plain: mean absolute error", "plain: bias"],
            [
                [name, *(tested[name][which][what] for which in ("estimated", "plain") for what in ("error", "bias"))]
                for name in names
                if len(tested.get(name, {})) == 2
            ],
        )
    if compared := report["skew"]:
        page.heading("Served against stored")
        page.text(f"{compared['matched']:,} rows of the day were found among {compared['logged']:,} logged answers.")
        page.table(
            ["feature", "differ", "on one side only", "mean difference"],
            [
                [one["name"], f"{one['differ']:.2%}", f"{one['missing']:.2%}", one["difference"]]
                for one in [*compared["features"], compared["score"]]
            ],
        )
    return page.render()
