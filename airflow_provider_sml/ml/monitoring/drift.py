"""One night's drift report: the day's rows against the rows the model was trained on, by Evidently.

A drawn sample of both sides goes through Evidently's DataDriftPreset; its numbers are read with the method that made
them, because the meaning of ``value`` flips between p-values and distances. Distances are asked for by name, so that no
verdict depends on how many rows there are. Written as ``DAY.html`` and ``DAY.json``.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_provider_sml.errors import DataError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.refs import ReportRef

if TYPE_CHECKING:
    import pandas as pd

SCORE = "score"
NUMERIC_METHOD, CATEGORY_METHOD = "wasserstein", "jensenshannon"


@dataclass(frozen=True)
class Limits:
    """When a column, and when a night, has drifted.

    :param share: share of the columns that must have drifted.
    :param numeric: Wasserstein distance in standard deviations of the reference.
    :param category: Jensen-Shannon distance (natural logarithm), 0 to 0.83.
    """

    share: float = 0.3
    numeric: float = 0.1
    category: float = 0.1


def report(
    model: str,
    version: str,
    day: dt.date,
    reference: pa.Table,
    current: pa.Table,
    scorer: Scorer,
    limits: Limits,
    folder: Path,
    *,
    of: tuple[int, int] | None = None,
    leave_out: Sequence[str] = (),
    performance: Sequence[Mapping[str, Any]] = (),
) -> ReportRef:
    """Compare a day with the reference and write the report.

    :param model: its name.
    :param version: the version in production.
    :param day: the day.
    :param reference: training rows, with the features and ``score``.
    :param current: the day's rows, with the same columns.
    :param scorer: knows which features are categories.
    :param limits: when something has drifted.
    :param folder: of the nights' reports.
    :param of: how many rows the reference and the day were drawn from; they are all there when None.
    :param leave_out: features that are not compared.
    :param performance: measures of days whose labels have arrived, written beside.
    :raises DataError: when a side has no rows.
    """
    for side, table in (("reference", reference), ("day", current)):
        if not table.num_rows:
            raise DataError(f"{model}, {day}: the {side} has no rows", expected="at least one row", found="none")
    categories = [f.name for f in scorer.features if f.categories is not None and f.name not in leave_out]
    numbers = [f.name for f in scorer.features if f.categories is None and f.name not in leave_out] + [SCORE]
    sides = [_frame(table, numbers, categories) for table in (reference, current)]
    reference_rows, rows = of or (reference.num_rows, current.num_rows)
    # A column without a value on one side cannot be compared; it is told, not hidden.
    empty = {name: [bool(side[name].isna().all()) for side in sides] for name in numbers + categories}
    empty = {name: found for name, found in empty.items() if any(found)}
    numbers, categories = [n for n in numbers if n not in empty], [n for n in categories if n not in empty]
    for side in sides:
        side[categories] = side[categories].astype(object).fillna("NULL")
    snapshot = _run(sides[0][numbers + categories], sides[1][numbers + categories], numbers, categories, limits)
    columns = _columns(snapshot.dict())
    columns += [
        {"name": name, "method": "no value on both sides" if all(found) else "no value on one side", "value": None,
         "threshold": None, "drifted": not all(found)}
        for name, found in empty.items()
    ]  # fmt: skip
    drifted = [c["name"] for c in sorted(columns, key=_distance, reverse=True) if c["drifted"]]
    share = len(drifted) / len(columns)
    result = {
        "model": model,
        "version": version,
        "day": day.isoformat(),
        "verdict": "drift" if share >= limits.share else "quiet",
        "share": round(share, 4),
        "share_limit": limits.share,
        "drifted": drifted,
        "columns": columns,
        "rows": rows,
        "reference_rows": reference_rows,
        "performance": list(performance),
    }
    page = folder / f"{day}.html"
    with tempfile.TemporaryDirectory(prefix="sml-") as disk:
        snapshot.save_html(f"{disk}/night.html")
        storage.write(page, Path(disk, "night.html").read_bytes())
    storage.write(folder / f"{day}.json", json.dumps(result, indent=1))
    return ReportRef(
        model=model,
        day=day.isoformat(),
        verdict=str(result["verdict"]),
        share=round(share, 4),
        drifted=drifted[:10],
        rows=rows,
        uri=str(page),
    )


def _frame(table: pa.Table, numbers: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """The rows as pandas: numbers as floats, categories as text."""
    chosen = [table.column(name).cast(pa.float64()) for name in numbers]
    chosen += [table.column(name).cast(pa.string()) for name in categories]
    frame: pd.DataFrame = pa.table(chosen, names=[*numbers, *categories]).to_pandas()
    return frame


def _run(
    reference: pd.DataFrame, current: pd.DataFrame, numbers: list[str], categories: list[str], limits: Limits
) -> Any:
    require("evidently", "drift")
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read when Evidently is imported
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    preset = DataDriftPreset(
        drift_share=limits.share,
        num_method=NUMERIC_METHOD,
        num_threshold=limits.numeric,
        cat_method=CATEGORY_METHOD,
        cat_threshold=limits.category,
    )
    return Report([preset], include_tests=True).run(
        Dataset.from_pandas(current, definition), Dataset.from_pandas(reference, definition)
    )


def _columns(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each column's distance, from Evidently's dictionary."""
    found = []
    for metric in result["metrics"]:
        config = metric["config"]
        if not config["type"].endswith("ValueDrift"):
            continue
        # A distance: larger is further. A p-value would be the other way round, so it is refused.
        if "p_value" in config["method"]:
            raise DataError("Evidently gave a p-value", expected="a distance", found=config["method"])
        value, threshold = float(metric["value"]), float(config["threshold"])
        found.append(
            {
                "name": config["column"],
                "method": config["method"],
                "value": round(value, 6),
                "threshold": threshold,
                "drifted": value >= threshold,
            }
        )
    return found


def _distance(column: Mapping[str, Any]) -> float:
    """How far beyond its limit a column lies."""
    return float("inf") if column["value"] is None else column["value"] / column["threshold"]
