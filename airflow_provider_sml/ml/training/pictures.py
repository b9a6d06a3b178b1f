"""The pictures of a model and of its evaluation, as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.chart import Series, bar_chart, line_chart

#: Features in the picture of their importance.
MOST_FEATURES = 20


def model_pictures(bundle: Bundle, importance: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Heading and SVG of each picture that needs no row: learning curves and importance, by the name of its file.

    :param bundle: the model.
    :param importance: share of the total gain by feature, the largest first.
    """
    pictures = {}
    start = bundle.lineage.get("warm_start") or {}
    rounds = bundle.rounds - start.get("rounds", 0)  # the history is that of the new rounds
    for metric, values in bundle.lineage.get("history", {}).items():
        curve = Series(metric, [(float(n), value) for n, value in enumerate(values, 1)], dots=len(values) == 1)
        finite = [value for value in values if math.isfinite(value)]
        kept = [(float(rounds), value) for value in (min(finite), max(finite))] if finite else []
        chart = line_chart([curve, Series(f"kept: {rounds} rounds", kept, dashed=True)], "round", metric)
        pictures["learning_curve_" + re.sub(r"[^A-Za-z0-9]+", "_", metric)] = (f"Learning curve, {metric}", chart)
    shown = list(importance.items())[:MOST_FEATURES]
    pictures["importance"] = ("Importance", bar_chart(shown, "share of the total gain"))
    return {name: picture for name, picture in pictures.items() if picture[1]}


def evaluation_pictures(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Heading and SVG of each picture of the test rows: calibration, lift, and the AUC by time.

    :param result: the content of ``evaluation.json``.
    """
    pictures = {}
    curves = [Series("as scored", [(0.0, 0.0), (1.0, 1.0)], dashed=True)]
    curves.insert(0, Series("observed", _seen(result["reliability"]), dots=True))
    if before := result["recalibration"]["reliability_before"]:
        curves.append(Series("observed, before recalibration", _seen(before), dots=True))
    pictures["calibration"] = ("Calibration", line_chart(curves, "score", "rate"))
    taken = np.cumsum([0] + [part["rows"] for part in result["lift"]]) / result["rows"]
    gained = list(zip(taken.tolist(), [0.0] + [part["gain"] for part in result["lift"]], strict=True))
    chance = Series("at random", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
    gain = line_chart([Series("by score", gained, dots=True), chance], "share of rows", "share of positives")
    pictures["lift"] = ("Lift", gain)
    pictures["by_time"] = ("By time", _by_time(result))
    return {name: picture for name, picture in pictures.items() if picture[1]}


def _seen(reliability: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(bucket["score"], bucket["rate"]) for bucket in reliability]


def _by_time(result: Mapping[str, Any]) -> str:
    """The AUC of each window that was measured, with its interval, against that of all rows."""
    windows = list(enumerate(result["by_time"]["windows"], 1))
    measured = [(float(n), part) for n, part in windows if part["auc"] is not None]
    if not measured:
        return ""
    points = [(n, part["auc"]["value"]) for n, part in measured]
    band = [(part["auc"]["low"], part["auc"]["high"]) for _, part in measured]
    whole = [(n, result["auc"]["value"]) for n, _ in measured]
    unit, first = result["by_time"]["unit"], result["by_time"]["windows"][0]["from"]
    lines = [Series("AUC", points, band=band, dots=True), Series("all rows", whole, dashed=True)]
    return line_chart(lines, f"{unit}, counted from {first}", "AUC")
