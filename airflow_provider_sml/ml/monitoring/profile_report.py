"""One night's drift report over all rows, from profiles: ``DAY.html`` by Evidently, ``DAY.json`` beside it.

The night's rows are read file by file and scored batch by batch, so memory does not grow with the night; its profile
is kept in the lake, and the same night again, or a window that holds it, reads no row.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from airflow_provider_sml.errors import require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring.drift import SCORE
from airflow_provider_sml.ml.monitoring.predictions import scored
from airflow_provider_sml.ml.monitoring.profile import Kind, Profile, of_batches
from airflow_provider_sml.ml.monitoring.profile_store import ProfileStore, content
from airflow_provider_sml.ml.monitoring.verdicts import Judgement, Rules, judge
from airflow_provider_sml.refs import ReportRef

#: Rows scored at once.
BATCH = 100_000
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def kinds(scorer: Scorer, leave_out: Sequence[str] = ()) -> dict[str, Kind]:
    """The features of a model and its score, and what each is taken for."""
    found: dict[str, Kind] = {
        feature.name: "number" if feature.categories is None else "category"
        for feature in scorer.features
        if feature.name not in leave_out
    }
    return found | {SCORE: "number"}


def profile_files(paths: Sequence[str | Path], scorer: Scorer, wanted: Mapping[str, Kind]) -> Profile:
    """Profile rows of parquet files, scored batch by batch.

    :param paths: of rows with the raw columns of the model.
    :param scorer: computes the features and the score.
    :param wanted: of ``kinds``.
    """

    def batches() -> Iterator[pa.Table]:
        for path in paths:
            for batch in _batches(path):
                if batch.num_rows:
                    yield scored(pa.Table.from_batches([batch]), scorer)

    return of_batches(batches(), wanted)


def _batches(path: str | Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    if not storage.is_remote(path):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH)
        return
    with storage.file_system(path).open(str(path), "rb") as handle:
        yield from pq.ParquetFile(handle).iter_batches(BATCH)


def definition(scorer: Scorer, wanted: Mapping[str, Kind]) -> dict[str, Any]:
    """What decides a profile beside the rows: the columns, what they mean, and the model that scores."""
    meanings = {feature.name: feature.expression.text for feature in scorer.features}
    return {"kinds": dict(wanted), "features": meanings, "model": scorer.bundle.model_id}


def nights(lake: Lake, table: str, scorer: Scorer, wanted: Mapping[str, Kind], days: Sequence[dt.date]) -> dict[
    dt.date, Profile
]:  # fmt: skip
    """The profiles of the days that are published, read or made."""
    store = ProfileStore(lake, table, definition(scorer, wanted))

    def make(day: dt.date) -> Profile:
        return profile_files([file.path for file in lake.files(table, None, day, day)], scorer, wanted)

    return store.days(days, make)


def reference(lake: Lake, sample: Path, scorer: Scorer, wanted: Mapping[str, Kind]) -> Profile:
    """The profile of the rows that a model was trained on; kept in the lake like a night's, under its sample's name.

    :param sample: place of the sample.
    """
    store = ProfileStore(lake, "samples", definition(scorer, wanted))
    files = sorted((sample / "train").glob("*.parquet"))
    name = content([str(path) for path in files])
    return store.named(name, lambda: profile_files(files, scorer, wanted))


def report(
    model: str,
    version: str,
    day: dt.date,
    old: Profile,
    new: Profile | None,
    rules: Rules,
    folder: Path,
    performance: Sequence[Mapping[str, Any]] = (),
) -> ReportRef:
    """Judge a night and write its report.

    :param model: its name.
    :param version: the version in production.
    :param day: the night.
    :param old: profile of the reference.
    :param new: profile of the night; None when the day is not published.
    :param rules: when something has drifted.
    :param folder: of the nights' reports.
    :param performance: measures of days whose labels have arrived, written beside.
    """
    require("evidently", "drift")
    from airflow_provider_sml.ml.monitoring.evidently_profiles import page

    missing = [day] if new is None else []
    current = new or Profile(0, {})
    found = judge(old, current, rules, missing=missing)
    result = _numbers(found, old, current, rules)
    result = {"model": model, "version": version, "day": day.isoformat(), **result, "performance": list(performance)}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{day}.html"
    partial = target.with_suffix(".html.tmp")
    page(found, old, current, rules.share).save_html(str(partial))
    os.replace(partial, target)
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


def _numbers(found: Judgement, old: Profile, new: Profile, rules: Rules) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "share": round(found.share, 4),
        "share_limit": rules.share,
        "drifted": found.drifted,
        "columns": [vars(column) | {"nulls": list(column.nulls)} for column in found.columns],
        "findings": [vars(finding) for finding in found.findings],
        "rows": new.rows,
        "reference_rows": old.rows,
    }


def expire_reports(folder: Path, before: dt.date) -> list[str]:
    """Remove the reports of nights before a day; gives the names of the files that were removed.

    :param folder: of the nights' reports; only files named by a day are looked at.
    """
    removed = []
    for path in sorted(folder.glob("*")):
        if path.suffix in (".html", ".json") and _DAY.fullmatch(path.stem) and path.stem < before.isoformat():
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed
