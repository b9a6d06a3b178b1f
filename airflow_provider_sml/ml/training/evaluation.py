"""The evaluation of a model on days that lie after everything it was trained on.

Measures with intervals, calibration, lift, slices, a plain baseline (the label's rate by a few columns in the training
rows) and, where there is one, the champion on the very same rows. Written as ``evaluation.json``, as one HTML page, and
its pictures as SVG files beside it, which all go to MLflow with the version.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer, recalibrate
from airflow_provider_sml.ml.chart import Series, bar_chart, line_chart
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data, metrics
from airflow_provider_sml.ml.training.toll import TOLL, told
from airflow_provider_sml.refs import EvaluationRef, SampleRef

#: Features in the picture of their importance.
MOST_FEATURES = 20


def evaluate(
    bundle: Bundle,
    sample: SampleRef,
    folder: Path,
    *,
    baseline: Sequence[str] = (),
    slices: Sequence[str] = (),
    min_rows: int = 500,
    champion: tuple[str, Bundle] | None = None,
) -> EvaluationRef:
    """Evaluate a model on the test split of a sample.

    :param bundle: the model.
    :param sample: the sample it was trained on.
    :param folder: where the result is written.
    :param baseline: columns whose label rates in training are the baseline.
    :param slices: columns by whose values the measures are repeated.
    :param min_rows: smallest slice that is measured.
    :param champion: the version that is in production, and its model.
    :raises ConfigurationError: when a column is not in the sample.
    :raises DataError: when the test rows do not allow a measure.
    """
    files = split_files(sample, "test")
    test = pa.concat_tables([storage.read_table(path) for path in files]) if files else pa.table({})
    labels = _labels(test, sample)
    _known([*baseline, *slices], test.column_names)
    scorer = Scorer(bundle)
    raw = scorer.raw_scores(data.matrix(test, bundle.dataset.feature_list))
    scores = recalibrate(raw, bundle.recalibration or 1.0)
    intervals = metrics.intervals(labels, scores)
    manifest = read_manifest(sample)
    result: dict[str, Any] = {
        "model": bundle.name,
        "model_id": bundle.model_id,
        "window": manifest["windows"]["test"],
        "rows": len(labels),
        "label_rate": float(labels.mean()),
        "mean_score": float(scores.mean()),
        "auc": asdict(intervals["auc"]),
        **{name: intervals[name].value for name in ("log_loss", "brier", "ece")},
        "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        "reliability": metrics.reliability(labels, scores),
        "lift": metrics.lift(labels, scores),
        "importance": scorer.importance(),
        "recalibration": {
            "model": bundle.recalibration,
            "sample": manifest.get("recalibration", 1.0),
            "ece_before": metrics.ece(labels, raw),
            "mean_score_before": float(raw.mean()),
        },
        "baseline": _baseline(sample, test, labels, scores, baseline) if baseline else None,
        "slices": _slices(test, labels, scores, slices, min_rows),
        "champion": None,
        "toll": {key: value for key, value in bundle.lineage.items() if key in TOLL},
    }
    if champion is not None:
        result["champion"] = _against(test, labels, scores, *champion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1))
    pictures = _pictures(result, bundle)
    for name, (_, svg) in pictures.items():
        (folder / f"{name}.svg").write_text(svg)
    (folder / "evaluation.html").write_text(_page(result, pictures))
    return EvaluationRef(
        uri=str(folder),
        model_id=bundle.model_id,
        rows=len(labels),
        auc=round(intervals["auc"].value, 6),
        auc_low=round(intervals["auc"].low, 6),
        auc_high=round(intervals["auc"].high, 6),
        baseline_auc=round(result["baseline"]["auc"], 6) if result["baseline"] else None,
        ece=round(result["ece"], 6),
    )


def _labels(test: pa.Table, sample: SampleRef) -> np.ndarray:
    """The labels of the test rows; both of them must be there."""
    labels = test.column(LABEL).to_numpy().astype(float) if test.num_rows else np.array([])
    zeros, ones = int((labels == 0).sum()), int((labels == 1).sum())
    if not zeros or not ones or zeros + ones < len(labels):
        raise DataError(
            f"the test rows of sample {sample.sample_id} do not allow an evaluation",
            expected="both labels, 0 and 1, and nothing else",
            found=f"{zeros:,} rows with 0, {ones:,} with 1, {len(labels) - zeros - ones:,} with another value or none",
            todo="lengthen the test window",
        )
    return labels


def _against(test: pa.Table, labels: np.ndarray, scores: np.ndarray, version: str, champion: Bundle) -> dict[str, Any]:
    """The champion on the same rows. It computes its features itself: a feature of the same name may have changed."""
    scorer = Scorer(champion)
    missing = data.missing_columns(test, scorer.columns)
    if missing:
        return {"version": version, "comparable": False, "missing": missing}
    theirs = scorer.score(data.vectors(test, scorer.columns))
    return {
        "version": version,
        "comparable": True,
        "auc": metrics.auc(labels, theirs),
        "difference": asdict(metrics.auc_difference(labels, scores, theirs)),
    }


def _known(names: Sequence[str], columns: Sequence[str]) -> None:
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise ConfigurationError(
            "the evaluation names unknown columns", expected=", ".join(columns), found=", ".join(unknown)
        )


def _baseline(
    sample: SampleRef, test: pa.Table, labels: np.ndarray, scores: np.ndarray, by: Sequence[str]
) -> dict[str, Any]:
    """The label's rate of each group in the training rows; an unseen group gets the overall rate."""
    train = [str(path) for path in split_files(sample, "train")]
    rows = test.select(list(by)).rename_columns([f"by_{n}" for n in range(len(by))])
    rows = rows.append_column("position", pa.array(range(test.num_rows)))
    keys = ", ".join(f"{identifier(name, 'duckdb')} AS by_{n}" for n, name in enumerate(by))
    # NULL is a group like any other.
    same = " AND ".join(f"r.by_{n} IS NOT DISTINCT FROM t.by_{n}" for n in range(len(by)))
    source = "read_parquet(?, hive_partitioning=false)"
    with storage.connect_duckdb([sample.uri]) as connection:
        connection.execute(
            f"CREATE TEMP TABLE rates AS SELECT {keys}, avg({LABEL}) AS rate FROM {source} GROUP BY ALL", [train]
        )
        overall = connection.execute(f"SELECT avg({LABEL}) FROM {source}", [train]).fetchall()
        connection.register("test_rows", rows)
        found = connection.execute(
            f"SELECT coalesce(r.rate, ?) AS rate FROM test_rows t LEFT JOIN rates r ON {same} ORDER BY t.position",
            [overall[0][0]],
        ).fetchnumpy()["rate"]
    rates = np.asarray(found, dtype=float)
    return {
        "by": list(by),
        "auc": metrics.auc(labels, rates),
        "log_loss": metrics.log_loss(labels, rates),
        "difference": asdict(metrics.auc_difference(labels, scores, rates)),
    }


def _slices(
    test: pa.Table, labels: np.ndarray, scores: np.ndarray, by: Sequence[str], min_rows: int
) -> list[dict[str, Any]]:
    """The measures within each value of some columns; a slice of one class has no AUC."""
    found = []
    for name in by:
        values = np.array(["NULL" if value is None else str(value) for value in test.column(name).to_pylist()])
        for value in sorted(set(values)):
            inside = values == value
            if inside.sum() >= min_rows:
                found.append(
                    {
                        "column": name,
                        "value": value,
                        "rows": int(inside.sum()),
                        "label_rate": float(labels[inside].mean()),
                        "auc": _number(metrics.auc(labels[inside], scores[inside])),
                        "ece": metrics.ece(labels[inside], scores[inside]),
                    }
                )
    return found


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value


def _pictures(result: dict[str, Any], bundle: Bundle) -> dict[str, tuple[str, str]]:
    """Heading and SVG of each picture, by the name of its file."""
    pictures = {}
    start = bundle.lineage.get("warm_start") or {}
    rounds = bundle.rounds - start.get("rounds", 0)  # the history is that of the new rounds
    for metric, values in bundle.lineage.get("history", {}).items():
        curve = Series(metric, [(float(n), value) for n, value in enumerate(values, 1)], dots=len(values) == 1)
        finite = [value for value in values if math.isfinite(value)]
        kept = [(float(rounds), value) for value in (min(finite), max(finite))] if finite else []
        chart = line_chart([curve, Series(f"kept: {rounds} rounds", kept, dashed=True)], "round", metric)
        pictures["learning_curve_" + re.sub(r"[^A-Za-z0-9]+", "_", metric)] = (f"Learning curve, {metric}", chart)
    shown = list(result["importance"].items())[:MOST_FEATURES]
    pictures["importance"] = ("Importance", bar_chart(shown, "share of the total gain"))
    seen = [(b["score"], b["rate"]) for b in result["reliability"]]
    even = Series("as scored", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
    pictures["calibration"] = ("Calibration", line_chart([Series("observed", seen, dots=True), even], "score", "rate"))
    taken = np.cumsum([0] + [part["rows"] for part in result["lift"]]) / result["rows"]
    gained = list(zip(taken.tolist(), [0.0] + [part["gain"] for part in result["lift"]], strict=True))
    chance = Series("at random", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
    gain = line_chart([Series("by score", gained, dots=True), chance], "share of rows", "share of positives")
    pictures["lift"] = ("Lift", gain)
    return {name: picture for name, picture in pictures.items() if picture[1]}


def _page(result: dict[str, Any], pictures: dict[str, tuple[str, str]]) -> str:
    def measured(name: str, value: float) -> str:
        low, high = result["intervals"][name]
        return f"{value:.4f} [{low:.4f}, {high:.4f}]"

    page = Page(f"Evaluation of {result['model']}")
    page.text(f"Model {result['model_id']} on {result['rows']:,} rows from {' to '.join(result['window'])}.")
    rows: list[tuple[str, Any]] = [
        ("AUC", measured("auc", result["auc"]["value"])),
        ("Log loss", measured("log_loss", result["log_loss"])),
        ("Brier score", measured("brier", result["brier"])),
        ("Expected calibration error", measured("ece", result["ece"])),
        ("Label rate", result["label_rate"]),
        ("Mean score", result["mean_score"]),
    ]
    if (moved := result["recalibration"])["model"] not in (None, 1.0):
        rows.append((f"ECE before recalibration by {moved['model']:g}", moved["ece_before"]))
    if baseline := result["baseline"]:
        rows.append((f"AUC of the rates by {' and '.join(baseline['by'])}", baseline["auc"]))
    if (champion := result["champion"]) and champion["comparable"]:
        gap = champion["difference"]
        shown = f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        rows.append((f"AUC minus that of champion {champion['version']}", shown))
    page.table(["Measure", "Value"], rows)
    if champion and not champion["comparable"]:
        missing = ", ".join(champion["missing"])
        page.text(f"Not compared with champion {champion['version']}: the test rows lack {missing}.", "bad")
    if (toll := result["toll"]).get("interruptions"):
        page.text(f"The training survived {toll['interruptions']} interruptions. {told(toll).capitalize()}.")
    page.text("In brackets: 95 % bootstrap intervals.", "note")
    for name, (heading, svg) in pictures.items():
        page.heading(heading).figure(svg)
        if name == "calibration":
            _calibration(page, result)
        elif name == "lift":
            _lift(page, result)
    page.heading("Slices")
    page.table(
        ["Slice", "Rows", "Label rate", "AUC", "ECE"],
        [(f"{s['column']} = {s['value']}", s["rows"], s["label_rate"], s["auc"], s["ece"]) for s in result["slices"]],
    )
    return page.render()


def _calibration(page: Page, result: dict[str, Any]) -> None:
    page.table(
        ["Scores", "Rows", "Mean score", "Observed rate"],
        [(f"{b['from']:.1f} to {b['to']:.1f}", b["rows"], b["score"], b["rate"]) for b in result["reliability"]],
    )


def _lift(page: Page, result: dict[str, Any]) -> None:
    page.table(
        ["Rows by score", "Rows", "Scores", "Positives", "Rate", "Lift", "Gain"],
        [
            (
                f"part {p['part']} of {len(result['lift'])}",
                p["rows"],
                f"{p['score_from']:.4f} to {p['score_to']:.4f}",
                f"{p['positives']:,.1f}",
                p["rate"],
                p["lift"],
                p["gain"],
            )
            for p in result["lift"]
        ],
    )
