"""The evaluation of a model on days that lie after everything it was trained on.

Measures with intervals, calibration, slices, a plain baseline (the label's rate by a few columns in the training rows)
and, where there is one, the champion on the very same rows. Written as ``evaluation.json`` and as one HTML page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer, recalibrate
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data, metrics
from airflow_provider_sml.refs import EvaluationRef, SampleRef


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
    raw = Scorer(bundle).raw_scores(data.matrix(test, bundle.dataset.feature_list))
    scores = recalibrate(raw, bundle.recalibration or 1.0)
    interval = metrics.auc_interval(labels, scores)
    manifest = read_manifest(sample)
    result: dict[str, Any] = {
        "model": bundle.name,
        "model_id": bundle.model_id,
        "window": manifest["windows"]["test"],
        "rows": len(labels),
        "label_rate": float(labels.mean()),
        "mean_score": float(scores.mean()),
        "auc": asdict(interval),
        "log_loss": metrics.log_loss(labels, scores),
        "brier": metrics.brier(labels, scores),
        "ece": metrics.ece(labels, scores),
        "reliability": metrics.reliability(labels, scores),
        "recalibration": {
            "model": bundle.recalibration,
            "sample": manifest.get("recalibration", 1.0),
            "ece_before": metrics.ece(labels, raw),
            "mean_score_before": float(raw.mean()),
        },
        "baseline": _baseline(sample, test, labels, scores, baseline) if baseline else None,
        "slices": _slices(test, labels, scores, slices, min_rows),
        "champion": None,
    }
    if champion is not None:
        result["champion"] = _against(test, labels, scores, *champion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1))
    (folder / "evaluation.html").write_text(_page(result))
    return EvaluationRef(
        uri=str(folder),
        model_id=bundle.model_id,
        rows=len(labels),
        auc=round(interval.value, 6),
        auc_low=round(interval.low, 6),
        auc_high=round(interval.high, 6),
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


def _page(result: dict[str, Any]) -> str:
    auc = result["auc"]
    page = Page(f"Evaluation of {result['model']}")
    page.text(f"Model {result['model_id']} on {result['rows']:,} rows from {' to '.join(result['window'])}.")
    rows: list[tuple[str, Any]] = [
        ("AUC", f"{auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]"),
        ("Log loss", result["log_loss"]),
        ("Brier score", result["brier"]),
        ("Expected calibration error", result["ece"]),
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
    page.heading("Calibration")
    page.table(
        ["Scores", "Rows", "Mean score", "Observed rate"],
        [(f"{b['from']:.1f} to {b['to']:.1f}", b["rows"], b["score"], b["rate"]) for b in result["reliability"]],
    )
    page.heading("Slices")
    page.table(
        ["Slice", "Rows", "Label rate", "AUC", "ECE"],
        [(f"{s['column']} = {s['value']}", s["rows"], s["label_rate"], s["auc"], s["ece"]) for s in result["slices"]],
    )
    return page.render()
