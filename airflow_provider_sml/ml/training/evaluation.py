"""The evaluation of a model on days that lie after everything it was trained on.

Measures with intervals, metrics of one's own, calibration before and after recalibration, lift, slices, windows of
time, a plain baseline (the label's rate by a few columns in the training rows) and, where there is one, the champion on
the very same rows. Written as ``evaluation.json``, as one HTML page, and its pictures as SVG files beside it, which all
go to MLflow with the version. The predictions are kept beside them (``predictions.parquet``): label, score, the
champion's score and the columns of the slices, without any key, for the gate's statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.errors import ConfigurationError, DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer, recalibrate
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.sampling import read_manifest, split_files
from airflow_provider_sml.ml.training import data, metrics, parts
from airflow_provider_sml.ml.training.custom import Metric, custom_metrics
from airflow_provider_sml.ml.training.evaluation_page import evaluation_page
from airflow_provider_sml.ml.training.pictures import evaluation_pictures, model_pictures
from airflow_provider_sml.ml.training.toll import TOLL
from airflow_provider_sml.refs import EvaluationRef, SampleRef

#: The file of the predictions, beside ``evaluation.json``.
PREDICTIONS = "predictions.parquet"


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
    :param min_rows: smallest slice, and smallest window of time, that is measured.
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
    own = custom_metrics(bundle.lineage.get("params", {}))
    measured, small = parts.slices(test, labels, scores, slices, min_rows)
    compared, theirs = (None, None) if champion is None else _against(test, labels, scores, own, *champion)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(sample)
    result: dict[str, Any] = {
        "model": bundle.name,
        "model_id": bundle.model_id,
        "splits": _splits(manifest, sample),
        "groups": manifest.get("groups", []),
        "rows": len(labels),
        "label_rate": float(labels.mean()),
        "mean_score": float(scores.mean()),
        **{name: asdict(interval) for name, interval in metrics.intervals(labels, scores).items()},
        "own": [_own(metric, labels, scores) for metric in own],
        "reliability": metrics.reliability(labels, scores),
        "lift": metrics.lift(labels, scores),
        "importance": scorer.importance(),
        "recalibration": _recalibration(bundle, manifest, labels, raw),
        "baseline": _baseline(sample, test, labels, scores, baseline) if baseline else None,
        "by_time": parts.by_time(test, labels, scores, min_rows),
        "min_rows": min_rows,
        "slices": measured,
        "slices_not_measured": small,
        "champion": compared,
        "predictions": _keep(folder, labels, scores, theirs, {name: parts.names(test, name) for name in slices}),
        "toll": {key: value for key, value in bundle.lineage.items() if key in TOLL},
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1))
    pictures = model_pictures(bundle, result["importance"]) | evaluation_pictures(result)
    for name, (_, svg) in pictures.items():
        (folder / f"{name}.svg").write_text(svg)
    (folder / "evaluation.html").write_text(evaluation_page(result, pictures))
    return EvaluationRef(
        uri=str(folder),
        model_id=bundle.model_id,
        rows=len(labels),
        auc=round(result["auc"]["value"], 6),
        auc_low=round(result["auc"]["low"], 6),
        auc_high=round(result["auc"]["high"], 6),
        baseline_auc=round(result["baseline"]["auc"], 6) if result["baseline"] else None,
        ece=round(result["ece"]["value"], 6),
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


def _splits(manifest: Mapping[str, Any], sample: SampleRef) -> dict[str, dict[str, Any]]:
    """First and last day of each split, and its rows."""
    return {
        split: {"from": first, "to": last, "rows": sample.rows.get(split)}
        for split, (first, last) in manifest["windows"].items()
    }


def _recalibration(bundle: Bundle, manifest: Mapping[str, Any], labels: np.ndarray, raw: np.ndarray) -> dict[str, Any]:
    """What the odds are multiplied by, and how the scores were before."""
    moved = bundle.recalibration not in (None, 1.0)
    return {
        "model": bundle.recalibration,
        "sample": manifest.get("recalibration", 1.0),
        "ece_before": metrics.ece(labels, raw),
        "log_loss_before": metrics.log_loss(labels, raw),
        "mean_score_before": float(raw.mean()),
        "reliability_before": metrics.reliability(labels, raw) if moved else None,
    }


def _own(metric: Metric, labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """A metric of one's own on the recalibrated scores."""
    return {
        "function": metric.name, "higher_is_better": metric.higher_is_better,
        **asdict(metrics.resampled(metric.measure, labels, scores)),
    }  # fmt: skip


def _compared(labels: np.ndarray, scores: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """The measures of other scores, and how far ours lie from them, on the same rows."""
    gaps = metrics.differences(labels, scores, others)
    return metrics.values(labels, others) | {"difference": {name: asdict(gap) for name, gap in gaps.items()}}


def _against(
    test: pa.Table, labels: np.ndarray, scores: np.ndarray, own: Sequence[Metric], version: str, champion: Bundle
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The champion on the same rows, and its scores. It computes its features itself: a feature of the same name may
    have changed."""
    scorer = Scorer(champion)
    missing = data.missing_columns(test, scorer.columns)
    if missing:
        return {"version": version, "comparable": False, "missing": missing}, None
    theirs = scorer.score(data.vectors(test, scorer.columns))
    found = _compared(labels, scores, theirs)
    for metric in own:
        found[metric.name] = metric.measure(labels, theirs)
        found["difference"][metric.name] = asdict(metrics.resampled(_Gap(metric), labels, scores, theirs))
    return {"version": version, "comparable": True} | found, theirs


def _keep(
    folder: Path, labels: np.ndarray, scores: np.ndarray, theirs: np.ndarray | None, slices: Mapping[str, pa.Array]
) -> dict[str, Any]:
    """Write the predictions; gives what names them, and their digest."""
    columns: dict[str, Any] = {"label": labels.astype("int8"), "score": scores}
    columns["champion"] = pa.nulls(len(labels), pa.float64()) if theirs is None else theirs
    columns |= {f"by {name}": values for name, values in slices.items()}
    path = folder / PREDICTIONS
    storage.write_table(pa.table(columns), path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": PREDICTIONS, "rows": len(labels), "columns": list(slices), "sha256": digest}


@dataclass(frozen=True)
class _Gap:
    """How far two models lie apart in a metric of one's own."""

    metric: Metric

    def __call__(self, labels: np.ndarray, scores: np.ndarray, others: np.ndarray) -> float:
        return self.metric.measure(labels, scores) - self.metric.measure(labels, others)


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
    return {"by": list(by)} | _compared(labels, scores, rates)
