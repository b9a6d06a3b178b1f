"""Evidently's report over whole partitions: metrics that take their numbers from profiles, never from rows.

``Report.run`` takes datasets of our own that carry profiles and refuse every access to rows; so the report shows all
rows of the night and of the reference, whatever their number, and costs the drawing alone. Written for Evidently 0.7
(``evidently.core.metric_types``: ``ColumnMetric``, ``SingleValueMetric``, ``SingleValueCalculation``; its widgets).
Import it only where the extra ``drift`` is installed.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

os.environ.setdefault("DO_NOT_TRACK", "1")  # read when Evidently is imported

from evidently import DataDefinition, Report
from evidently.core.datasets import Dataset
from evidently.core.metric_types import ColumnMetric, SingleValueCalculation, SingleValueMetric
from evidently.legacy.renderers.html_widgets import CounterData, WidgetSize, counter, plotly_data, table_data
from evidently.tests import lt

from airflow_provider_sml.ml.monitoring.profile import Categories, ColumnProfile, Profile
from airflow_provider_sml.ml.monitoring.sketch import Numbers
from airflow_provider_sml.ml.monitoring.verdicts import ColumnDrift, Judgement

#: Bars of a plot.
BARS = 24
_GREY, _RED = "#8c96a3", "#ed0400"


class ProfileDataset(Dataset):
    """A side of the comparison, as Evidently passes it to metrics.

    :param profile: of its rows.
    :param judgement: of the night.
    """

    def __init__(self, profile: Profile, judgement: Judgement) -> None:
        self.profile = profile
        self.judgement = judgement
        kinds = {name: column.kind for name, column in profile.columns.items()}
        self._data_definition = DataDefinition(
            numerical_columns=[name for name, kind in kinds.items() if kind == "number"],
            categorical_columns=[name for name, kind in kinds.items() if kind == "category"],
        )
        self._metadata: dict[str, Any] = {}
        self._tags: list[str] = []

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("this dataset holds profiles and no rows")

    as_dataframe = column = subdataset = stats = add_descriptor = save = _can_load = _load = _refuse


class WholeDrift(SingleValueMetric):
    """The share of all columns that drifted, with a table of them."""


class WholeDriftCalculation(SingleValueCalculation[WholeDrift]):
    """Reads the judgement; nothing is computed from rows."""

    def display_name(self) -> str:
        """Its name in the report."""
        return "Share of drifted columns"

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The share, the counters, the table of columns and that of findings."""
        found: Judgement = current_data.judgement
        rows = [f"{side.profile.rows:,}" for side in (current_data, reference_data)]
        result = self.result(found.share)
        result.widget = [
            counter(
                title=f"{found.verdict.capitalize()}: {len(found.drifted)} of {len(found.columns)} columns drifted",
                counters=[
                    CounterData("rows of the night, all of them", rows[0]),
                    CounterData("rows of the reference, all of them", rows[1]),
                    CounterData("share of the columns that drifted", f"{found.share:.3f}"),
                ],
            ),
            table_data(
                title="Columns",
                column_names=["column", "verdict", "method", "distance", "limit", "adjusted p", "missing: before, now"],
                data=[_line(column) for column in sorted(found.columns, key=lambda c: not c.drifted)],
            ),
        ]
        if found.segments:
            head = ["segment", "verdict", "rows", "share of the columns", "columns"]
            result.widget.append(table_data(title="Segments", column_names=head, data=_segments(found, current_data)))
        if found.findings:
            lines = [[item.kind.replace("_", " "), item.text] for item in found.findings]
            result.widget.append(table_data(title="Findings", column_names=["finding", "what"], data=lines))
        return result


class WholeColumn(ColumnMetric, SingleValueMetric):
    """The distance of one column."""


class WholeColumnCalculation(SingleValueCalculation[WholeColumn]):
    """Draws both sides of the column from their profiles."""

    def display_name(self) -> str:
        """Its name in the report."""
        return f"Drift of {self.metric.column}"

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The distance, and both sides drawn."""
        name = self.metric.column
        (verdict,) = [column for column in current_data.judgement.columns if column.name == name]
        result = self.result(float(verdict.value))
        sides = [side.profile.columns[name] for side in (reference_data, current_data)]
        told = f"{name}: {verdict.value:.4g} of {verdict.threshold:g}{', drift' if verdict.drifted else ''}"
        result.widget = [plotly_data(title=told, **picture(*sides), size=WidgetSize.HALF)]
        return result


def page(judgement: Judgement, reference: Profile, current: Profile, share: float) -> Any:
    """Evidently's snapshot of a night: ``save_html``, ``dict`` and ``json`` are its own.

    :param judgement: of the night.
    :param reference: profile of the reference.
    :param current: profile of the night.
    :param share: the limit of the test that stands for the verdict.
    """
    metrics: list[Any] = [WholeDrift(tests=[lt(share)])]
    metrics += [WholeColumn(column=column.name, tests=[]) for column in judgement.columns if column.value is not None]
    sides = (ProfileDataset(side, judgement) for side in (current, reference))
    return Report(metrics, include_tests=True).run(*sides)


def picture(old: ColumnProfile, new: ColumnProfile) -> dict[str, Any]:
    """Both sides as bars of their shares, as plotly's plain dictionaries."""
    if isinstance(old.values, Numbers) and isinstance(new.values, Numbers):
        labels, bars = _number_bars(old.values, new.values)
    else:
        assert isinstance(old.values, Categories) and isinstance(new.values, Categories)
        labels, bars = _category_bars(old.values, new.values)
    names = (("reference", _GREY), ("night", _RED))
    data = [
        {"type": "bar", "name": name, "x": labels, "y": side, "marker": {"color": color}}
        for (name, color), side in zip(names, bars, strict=True)
    ]
    layout = {"barmode": "group", "yaxis": {"title": {"text": "share"}}, "legend": {"orientation": "h"}}
    return {"data": data, "layout": layout}


def _number_bars(old: Numbers, new: Numbers) -> tuple[list[Any], list[list[float]]]:
    ends = [side.quantile(share) for side in (old, new) for share in (0.005, 0.995)]
    low, high = min(ends), max(ends)
    if not np.isfinite([low, high]).all():
        low, high = float(np.fmin(old.low, new.low)), float(np.fmax(old.high, new.high))
    edges = np.linspace(low, high, BARS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    bars = []
    for side in (old, new):
        values, counts = side.support
        place = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
        bars.append((np.bincount(place, counts, len(edges) - 1) / counts.sum()).tolist())
    return ((edges[:-1] + edges[1:]) / 2).tolist(), bars


def _category_bars(old: Categories, new: Categories) -> tuple[list[Any], list[list[float]]]:
    together = {name: old.counts.get(name, 0) + new.counts.get(name, 0) for name in {*old.counts, *new.counts}}
    names = sorted(together, key=lambda name: (-together[name], name))[:BARS]
    return names, [[side.counts.get(name, 0) / max(side.size, 1) for name in names] for side in (old, new)]


def _segments(found: Judgement, current: ProfileDataset) -> list[list[str]]:
    """The segments, those that drifted first."""
    ordered = sorted(found.segments.items(), key=lambda item: (item[1].verdict != "drift", item[0]))
    return [
        [name, part.verdict, f"{current.profile.segments[name].rows:,}", f"{part.share:.3f}", ", ".join(part.drifted)]
        for name, part in ordered
    ]


def _line(column: ColumnDrift) -> list[str]:
    numbers = [column.value, column.threshold, column.adjusted]
    shown = ["" if number is None else f"{number:.4g}" for number in numbers]
    gaps = ", ".join(f"{100 * share:.1f} %" for share in column.nulls)
    return [column.name, "drift" if column.drifted else "quiet", column.method, *shown, gaps]
