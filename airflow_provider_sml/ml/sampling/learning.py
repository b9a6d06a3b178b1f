"""One model of the planner's learning curve: trained on a small sample, measured on the last days of its window."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.sampling.draw import Window, draw, split_files
from airflow_provider_sml.ml.sampling.methods import Method
from airflow_provider_sml.ml.sampling.planner import Measure, Trial

#: Share of the training window's days that the planner stops early on, and that it measures on.
HELD_OUT = 0.1


def planning_windows(window: Window) -> dict[str, Window]:
    """The training window in three: days to train on, days to stop early on, days to measure on.

    :param window: first and last day of the training window.
    :raises ConfigurationError: when it has fewer than five days.
    """
    first, last = window
    days = (last - first).days + 1
    if days < 5:
        raise ConfigurationError(
            "the training window is too short to plan in", expected="five days or more", found=days
        )
    held = dt.timedelta(days=max(1, round(days * HELD_OUT)))
    return {
        "train": (first, last - 2 * held),
        "validate": (last - 2 * held + dt.timedelta(days=1), last - held),
        "measure": (last - held + dt.timedelta(days=1), last),
    }


def measure_on(
    lake: Lake,
    table: str,
    window: Window,
    dataset: Dataset,
    settings: Mapping[str, Any],
    method: Method,
    snapshot_id: int | None = None,
) -> tuple[Measure, int]:
    """What ``plan_rate`` asks: a function that trains at a rate and a seed, and the rows of the window.

    :param lake: where the table is.
    :param table: its name.
    :param window: the training window; nothing outside it is read.
    :param dataset: features and label.
    :param settings: of XGBoost, with ``rounds`` and ``early_stopping``.
    :param method: how rows are chosen; its rate is the planner's.
    :param snapshot_id: snapshot to read; None for the current one.
    """
    require("xgboost", "xgboost")
    parts, snapshot_id = planning_windows(window), snapshot_id or lake.snapshot_id(table)
    rows = sum(count for day, count in lake.days(table, snapshot_id).items() if window[0] <= day <= window[1])
    first, last = parts["train"]
    trained = sum(count for day, count in lake.days(table, snapshot_id).items() if first <= day <= last)

    def measure(rate: float, seed: int) -> Trial:
        sample = draw(
            lake, table, parts, snapshot_id=snapshot_id, method=replace(method, rate=rate, seed=method.seed + seed)
        )
        files = {split: split_files(sample, split) for split in parts}
        try:
            trial = _trial(files, dataset, settings, sample.rows["train"])
            return replace(trial, window_rows=round(sample.rows["train"] * rows / max(trained, 1)))
        finally:
            storage.remove_folder(storage.place(sample.uri))

    return measure, rows


def _trial(files: Mapping[str, list[Path]], dataset: Dataset, settings: Mapping[str, Any], rows: int) -> Trial:
    """Train by the runner of every training, in this process, and score the measured rows."""
    from airflow_provider_sml.ml.training import data
    from airflow_provider_sml.ml.training.runner import Work, run_rank

    features, started = dataset.feature_list, time.monotonic()
    work = Work("plan", features, dict(settings), [files["train"]], [files["validate"]], [rows])
    outcome = run_rank(0, work, None, os.cpu_count() or 1, lambda line: None)
    seconds = time.monotonic() - started
    held = [data.read(path, features) for path in files["measure"]]
    scorer = Scorer(Bundle(dataset.name, "plan", dataset, outcome.state.best_round + 1, {}, outcome.model))
    scores = scorer.raw_scores(np.concatenate([part for part, _ in held]))
    return Trial(rows, seconds, np.concatenate([part for _, part in held]).astype(float), scores)
