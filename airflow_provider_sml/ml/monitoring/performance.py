"""What the logged scores of a day were worth, once its labels are known.

A day is measured when it is mature: ``label_known_after`` has passed since its end. Before that its labels are not
looked at, because those that come early are no fair draw of the day's. From then on, for ``window`` days, each night
joins it anew, as far as its files have changed, so that what comes late is counted; ``coverage`` says which share of
the scored rows has a label. Days are joined and sorted by DuckDB within ``MEMORY``, on disk where that does not
suffice, and measured in one stream over the distinct scores; neither is ever held as a whole.

Kept per day as a small JSON file under the digest of the data files it was made from: a repeat reads that alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.contract.quantities import whole_days
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.reading import batches, relation
from airflow_provider_sml.ml.monitoring.bins import ScoreBins
from airflow_provider_sml.ml.monitoring.predictions import SCORE, predictions_table, row_keys

if TYPE_CHECKING:
    import duckdb

#: What DuckDB may hold in memory while it joins a day.
MEMORY = "512MB"
#: Standard deviations of a 95 % interval.
Z = 1.959964
_ROWS = 65_536
_CALIBRATION_BINS = 10
_FORMAT = 1


@dataclass(frozen=True)
class DayScores:
    """One day's scores.

    :param day: the day.
    :param version: the version that scored it.
    :param bins: its scores, with the labels that are known.
    :param measures: what they were worth; empty where no label is known. ``rows`` are those with a label.
    """

    day: dt.date
    version: str
    bins: ScoreBins
    measures: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows that were scored."""
        return int(self.bins.rows.sum())

    @property
    def labelled(self) -> int:
        """Those of them whose label is known."""
        return int(self.bins.labelled.sum())


def mature_days(night: dt.date, label_known_after: dt.timedelta, window: dt.timedelta) -> list[dt.date]:
    """The days whose labels a night may look at, the oldest first: a day is mature when its last row is.

    :param night: the last day that has ended.
    :param label_known_after: how long after its event a row's label is known.
    :param window: how far back days are joined again.
    """
    delay = whole_days(label_known_after)
    return [night - dt.timedelta(days=delay + back) for back in reversed(range(window.days))]


def young_days(night: dt.date, label_known_after: dt.timedelta) -> list[dt.date]:
    """The days up to a night whose labels are not known yet, the oldest first; the night itself always is one.

    :param night: the last day that has ended.
    :param label_known_after: how long after its event a row's label is known.
    """
    delay = whole_days(label_known_after)
    return [night - dt.timedelta(days=back) for back in reversed(range(max(delay, 1)))]


def day_scores(
    lake: Lake,
    table: str,
    key: Sequence[str],
    days: Sequence[dt.date],
    *,
    labels: bool = True,
    kept: Path | None = None,
) -> list[DayScores]:
    """The scores of some days, with their labels; a day without predictions is left out.

    :param table: the table with the labels.
    :param key: the columns that name a row.
    :param days: the days.
    :param labels: False takes no notice of labels.
    :param kept: folder in which measured days are kept; None measures anew.
    """
    name = predictions_table(table)
    if not days or not lake.exists(name):
        return []
    files = {side: _files(lake, side, days) for side in (name, table)}
    found = []
    for day in days:
        if day not in files[name]:
            continue
        labelled = labels and day in files[table]
        sides = (name, table) if labelled else (name,)
        digest = _digest([f"{_FORMAT}", *key, *(path for side in sides for path in files[side][day])])
        path = None if kept is None else kept / f"{day}-{'labels' if labelled else 'scores'}.json"
        made = _read(path, digest)
        if made is None:
            made = _measure(lake, table, key, day, labelled)
            _write(path, digest, made)
        found.append(made)
    return found


def realised(
    lake: Lake, table: str, key: Sequence[str], days: Sequence[dt.date], kept: Path | None = None
) -> list[dict[str, Any]]:
    """How good the logged scores of some days were, by day; a day without predictions or labels is left out.

    Measures with their 95 % intervals (``_low``, ``_high``): ``auc`` (null where only one label occurs), ``log_loss``,
    ``brier``, ``ece`` and ``calibration``, the mean score less the label's rate.

    :param table: the table with the labels.
    :param key: the columns that name a row.
    :param days: the days whose labels are known.
    :param kept: folder in which measured days are kept.
    """
    return [told(scores) for scores in day_scores(lake, table, key, days, kept=kept) if scores.measures]


def told(scores: DayScores) -> dict[str, Any]:
    """A measured day as reports show it."""
    coverage = scores.labelled / scores.rows
    return {
        "day": scores.day.isoformat(), **scores.measures, "coverage": round(coverage, 4), "version": scores.version
    }  # fmt: skip


def _files(lake: Lake, table: str, days: Sequence[dt.date]) -> dict[dt.date, list[str]]:
    """What names the files of some days; a file of the lake never changes."""
    found: dict[dt.date, list[str]] = {}
    for file in lake.files(table, None, min(days), max(days)) if lake.exists(table) else []:
        found.setdefault(file.day, []).append(f"{file.path}:{file.rows}")
    return found


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(path: Path | None, digest: str) -> DayScores | None:
    """A kept day; None where there is none, it is of other files, or it is damaged."""
    try:
        stored = json.loads(path.read_text()) if path is not None else None
        if stored is None or stored["digest"] != digest:
            return None
        day, bins = dt.date.fromisoformat(stored["day"]), ScoreBins.from_json(stored["bins"])
        return DayScores(day, stored["version"], bins, dict(stored["measures"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _write(path: Path | None, digest: str, made: DayScores) -> None:
    if path is None:
        return
    text = {
        "day": made.day.isoformat(), "version": made.version, "digest": digest, "measures": made.measures,
        "bins": made.bins.to_json(),
    }  # fmt: skip
    storage.write(path, json.dumps(text, indent=1))


def _measure(lake: Lake, table: str, key: Sequence[str], day: dt.date, labelled: bool) -> DayScores:
    """Join a day and measure it."""
    with (
        tempfile.TemporaryDirectory(prefix="sml-") as disk,
        storage.connect_duckdb([lake.root], {"memory_limit": MEMORY, "temp_directory": disk}) as connection,
    ):
        version = _rank(connection, lake, table, key, day, labelled)
        return DayScores(day, version, *_stream(connection, day))


def _rank(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: str, key: Sequence[str], day: dt.date, labelled: bool
) -> str:
    """Make the table ``ranked``: rows, labels and positive labels of each distinct score; gives the version."""
    name = predictions_table(table)
    logged = relation(connection, lake, name, columns=["row_key", SCORE, "model_version"], first=day, last=day)
    logged.create_view("logged")
    labels = "(SELECT '' AS row_key, NULL::DOUBLE AS label WHERE false)"
    if labelled:
        schema = pa.schema([("row_key", pa.string()), ("label", pa.float64())])
        reader = pa.RecordBatchReader.from_batches(schema, _labels(lake, table, key, day, schema))
        connection.register("streamed", reader)
        connection.execute("CREATE TEMP TABLE labels AS SELECT row_key, label FROM streamed")
        labels = "labels"
    connection.execute(
        f"CREATE TEMP TABLE ranked AS SELECT {SCORE} AS score, count(*) AS rows, count(label) AS labelled, "
        f"coalesce(sum(label), 0) AS positive FROM logged LEFT JOIN {labels} USING (row_key) GROUP BY {SCORE}"
    )
    [(version,)] = connection.execute("SELECT max(model_version) FROM logged").fetchall()
    return str(version)


def _labels(lake: Lake, table: str, key: Sequence[str], day: dt.date, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The known labels of a day, with what names their rows."""
    columns = [*dict.fromkeys([*key, LABEL])]
    for batch in batches(lake, table, columns=columns, first=day, last=day, rows=_ROWS):
        rows = pa.table(batch)
        known = rows.filter(rows.column(LABEL).is_valid())
        label = known.column(LABEL).cast(pa.float64()).combine_chunks()
        yield pa.record_batch([row_keys(known, key), label], schema=schema)


def _stream(connection: duckdb.DuckDBPyConnection, day: dt.date) -> tuple[ScoreBins, dict[str, Any]]:
    """Bins and measures, in one pass over the scores in order."""
    totals = connection.execute("SELECT coalesce(sum(labelled), 0), coalesce(sum(positive), 0) FROM ranked").fetchall()
    labelled, positive = (float(value) for value in totals[0])
    bins, measured = ScoreBins.empty(), _Measured(labelled - positive, positive)
    ordered = connection.sql("SELECT score, rows, labelled, positive::DOUBLE AS positive FROM ranked ORDER BY score")
    for batch in ordered.to_arrow_reader(_ROWS):
        score, rows, known, ones = (batch.column(n).to_numpy(zero_copy_only=False).astype(float) for n in range(4))
        bins += ScoreBins.of(score, rows, known, ones)
        measured.add(score, known - ones, ones)
    return bins, measured.result(day.toordinal()) if labelled else {}


class _Measured:
    """Measures of scores that come in ascending order, each distinct one once.

    The AUC and its variance by DeLong, DeLong and Clarke-Pearson (1988), from the placements of each score among those
    of the other label, as Sun and Xu (2014, "Fast Implementation of DeLong's Algorithm", equations 9 to 14) count
    them; the interval is that of the logit, which stays between 0 and 1. Means have normal intervals.

    :param negatives: rows with the label 0 in all.
    :param positives: rows with the label 1 in all.
    """

    def __init__(self, negatives: float, positives: float) -> None:
        self._down, self._up = negatives, positives
        self._below = np.zeros(2)  # negative and positive rows so far
        self._placed = np.zeros((2, 2))  # sums of placements and of their squares, of positive and of negative rows
        self._means = np.zeros((3, 2))  # sums and sums of squares: log loss, Brier score, score less label
        self._parts = np.zeros((3, _CALIBRATION_BINS))  # rows, scores and labels by tenth of the score

    def add(self, score: np.ndarray, down: np.ndarray, up: np.ndarray) -> None:
        """Take some distinct scores with their numbers of negative and positive rows."""
        below_down = self._below[0] + np.cumsum(down) - down
        below_up = self._below[1] + np.cumsum(up) - up
        if self._down and self._up:
            high = (below_down + down / 2) / self._down
            low = (self._up - below_up - up / 2) / self._up
            self._placed += [[up @ high, up @ high**2], [down @ low, down @ low**2]]
        self._below += [down.sum(), up.sum()]
        clipped = np.clip(score, 1e-15, 1 - 1e-15)
        of_down = (-np.log1p(-clipped), score**2, score)
        of_up = (-np.log(clipped), (1 - score) ** 2, score - 1)
        for row, (zero, one) in enumerate(zip(of_down, of_up, strict=True)):
            self._means[row] += [down @ zero + up @ one, down @ zero**2 + up @ one**2]
        place = np.minimum((score * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
        for row, values in enumerate((down + up, (down + up) * score, up)):
            self._parts[row] += np.bincount(place, values, _CALIBRATION_BINS)

    def result(self, seed: int) -> dict[str, Any]:
        """The measures with their intervals.

        :param seed: of the draws for the interval of the calibration error.
        """
        rows = self._down + self._up
        found: dict[str, Any] = {"rows": int(rows), "rate": self._up / rows}
        found |= _named("auc", *self._auc())
        for name, (total, squares) in zip(("log_loss", "brier", "calibration"), self._means, strict=True):
            mean = total / rows
            half = Z * math.sqrt(max(squares / rows - mean**2, 0.0) / max(rows - 1, 1))
            found |= _named(name, mean, mean - half, mean + half)
        return found | _named("ece", *self._ece(seed))

    def _auc(self) -> tuple[float | None, float | None, float | None]:
        if not self._down or not self._up:
            return None, None, None
        value = self._placed[0, 0] / self._up
        variance = sum(
            max(squares / count - value**2, 0.0) / max(count - 1, 1)
            for squares, count in zip(self._placed[:, 1], (self._up, self._down), strict=True)
        )
        if not 0 < value < 1:
            return value, value, value
        half = Z * math.sqrt(variance) / (value * (1 - value))
        middle = math.log(value / (1 - value))
        return value, 1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle))

    def _ece(self, seed: int, draws: int = 200) -> tuple[float, float, float]:
        """The expected calibration error (Guo et al. 2017, equation 3) in ten bins, with the interval of labels drawn
        anew at each bin's rate. Draws lean upward, so the interval reaches down to the value at least."""
        rows, scores, labels = self._parts[:, self._parts[0] > 0]
        value = float(np.abs(scores - labels).sum() / rows.sum())
        drawn = np.random.default_rng(seed).binomial(rows.astype(int), labels / rows, (draws, len(rows)))
        low, high = np.percentile(np.abs(scores - drawn).sum(axis=1) / rows.sum(), [2.5, 97.5])
        return value, min(float(low), value), max(float(high), value)


def _named(name: str, value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    told = (None if number is None else float(number) for number in (value, low, high))
    return dict(zip((name, f"{name}_low", f"{name}_high"), told, strict=True))
