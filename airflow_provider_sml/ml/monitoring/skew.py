"""Training/serving skew: the features that were served against the same rows computed from the lake.

The scoring server logs each request's raw values. A caller that gives each instance an ``id`` made of the row's key
(the contract's key columns in their order, joined by ``|``, times as ISO 8601) lets the very row be found once its day
is published. Features are then computed from both, by the same code: what differs was another value at the time of
asking (a late reading, another look-up, another rounding, a field that the caller left out).

Log and day are streamed, joined by DuckDB within ``MEMORY``, and only counted. Requests without such an id are left
out, and so are those that other versions answered. ``served`` reads the logs of the servers that there are.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.expressions import physical
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.reading import batches
from airflow_provider_sml.ml.monitoring.performance import MEMORY
from airflow_provider_sml.ml.monitoring.served import Record, ServedLog
from airflow_provider_sml.ml.serving.requests import RequestChecker
from airflow_provider_sml.ml.training import data

if TYPE_CHECKING:
    import duckdb

#: How long before a day's end its rows may have been asked for.
ASKED_BEFORE = dt.timedelta(days=7)
#: Share of a number by which it may differ and still be the same: requests carry decimal fractions.
TOLERANCE = 1e-6
_ROWS = 8_192


def row_id(values: Sequence[Any]) -> str:
    """The id of a row, by the values of its key columns in the contract's order.

    :param values: as Python's own types; times in UTC.
    """
    return "|".join(_text(value) for value in values)


def skew(
    lake: Lake, table: str, day: dt.date, scorer: Scorer, version: str, served: ServedLog, tolerance: float = TOLERANCE
) -> dict[str, Any] | None:
    """Compare what was served for the rows of a day with what the lake holds of them.

    :param table: of the lake.
    :param day: whose rows are looked at; a row counts as it was asked for last by the end of this day.
    :param scorer: of the version that served.
    :param version: its number; the answers of others are left out.
    :param served: the server's prediction log.
    :param tolerance: share of a number by which it may differ.
    :returns: ``logged`` answers, ``matched`` rows; by feature the share of them that ``differ``, and that have a value
        on one side only (``missing``), and the mean difference of numbers, served less stored; the same of the score.
        None where no answer is about a row of the day.
    """
    reader = _Log(scorer, version)
    key = scorer.bundle.dataset.contract.key
    with (
        tempfile.TemporaryDirectory(prefix="sml-") as disk,
        storage.connect_duckdb([lake.root], {"memory_limit": MEMORY, "temp_directory": disk}) as connection,
    ):
        _fill(connection, "served", reader.batches(served.records(day - ASKED_BEFORE, day)), scorer)
        if not reader.answers:
            return None
        _fill(connection, "stored", _stored(lake, table, key, day, scorer), scorer)
        return _compare(connection, day, scorer, reader, tolerance)


class _Log:
    """Reads the prediction log, and counts what it leaves out.

    :param scorer: of the version whose answers count.
    :param version: its number.
    """

    def __init__(self, scorer: Scorer, version: str) -> None:
        self._scorer, self._version = scorer, version
        self._checker = RequestChecker(scorer.bundle)
        contract = scorer.bundle.dataset.contract
        self._times = [contract.columns[name].type == "timestamp" for name in contract.key]
        self.answers = self.damaged = 0

    def batches(self, logged: Iterable[Record | None]) -> Iterator[pa.RecordBatch]:
        """Ids, times, features and scores of the answers."""
        records = self._records(logged)
        while part := list(islice(records, _ROWS)):
            checked = self._checked(part)
            if checked:
                rows, kept = checked
                scores = [record["score"] for record in kept]
                ids, times = [record["id"] for record in kept], [record["time"] for record in kept]
                yield _batch(ids, times, self._scorer.encode(rows), np.array(scores, float), self._scorer)

    def _records(self, logged: Iterable[Record | None]) -> Iterator[dict[str, Any]]:
        for record in logged:
            if record is None:  # such as the last line of a server that was killed
                self.damaged += 1
                continue
            try:
                if str(record["version"]) != self._version:
                    continue
                self.answers += 1
                wanted = {"time": str(record["time"]), "score": float(record["score"])}
                yield wanted | {"id": self._normal(str(record["id"])), "features": dict(record["features"])}
            except (ValueError, KeyError, TypeError):
                self.damaged += 1

    def _checked(self, part: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Vectors of the records; one that the contract does not know any more spoils no other."""
        try:
            return self._checker.check([record["features"] for record in part]).rows, part
        except DataError:
            kept = [record for record in part if self._fits(record)]
            self.damaged += len(part) - len(kept)
            return (self._checker.check([record["features"] for record in kept]).rows, kept) if kept else None

    def _fits(self, record: Mapping[str, Any]) -> bool:
        try:
            self._checker.check([record["features"]])
        except DataError:
            return False
        return True

    def _normal(self, given: str) -> str:
        """An id with its times as the lake's rows have them."""
        parts = given.split("|")
        if len(parts) != len(self._times):
            return given
        return "|".join(_time(part) if time else part for part, time in zip(parts, self._times, strict=True))


def _time(text: str) -> str:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat()


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.date | dt.datetime) else str(value)


def _stored(lake: Lake, table: str, key: Sequence[str], day: dt.date, scorer: Scorer) -> Iterator[pa.RecordBatch]:
    """The rows of a day with their features and scores, computed from the raw columns."""
    columns = [*dict.fromkeys([*key, *(physical(name) for name in scorer.columns)])]
    for batch in batches(lake, table, columns=columns, first=day, last=day, rows=_ROWS):
        rows = pa.table(batch)
        matrix = scorer.encode(data.vectors(rows, scorer.columns))
        ids = [row_id(values) for values in zip(*(rows.column(name).to_pylist() for name in key), strict=True)]
        yield _batch(ids, [""] * len(ids), matrix, scorer.score_features(matrix), scorer)


def _schema(scorer: Scorer) -> pa.Schema:
    numbers = [(f"f{n}", pa.float64()) for n in range(len(scorer.features))]
    return pa.schema([("id", pa.string()), ("time", pa.string()), *numbers, ("score", pa.float64())])


def _batch(ids: list[str], times: list[str], matrix: np.ndarray, scores: np.ndarray, scorer: Scorer) -> pa.RecordBatch:
    columns = [pa.array(matrix[:, n], pa.float64(), from_pandas=True) for n in range(matrix.shape[1])]
    arrays = [pa.array(ids, pa.string()), pa.array(times, pa.string()), *columns, pa.array(scores, pa.float64())]
    return pa.record_batch(arrays, schema=_schema(scorer))


def _fill(connection: duckdb.DuckDBPyConnection, name: str, parts: Iterator[pa.RecordBatch], scorer: Scorer) -> None:
    """A table of what is streamed, with the last row of each id."""
    connection.register("streamed", pa.RecordBatchReader.from_batches(_schema(scorer), parts))
    last = "QUALIFY row_number() OVER (PARTITION BY id ORDER BY time DESC) = 1"
    connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM streamed {last}")
    connection.unregister("streamed")


def _compare(
    connection: duckdb.DuckDBPyConnection, day: dt.date, scorer: Scorer, log: _Log, tolerance: float
) -> dict[str, Any] | None:
    columns = [f"f{n}" for n in range(len(scorer.features))] + ["score"]
    asked = ", ".join(
        f"avg(((a.{c} IS NULL) <> (b.{c} IS NULL))::INT), "
        f"avg(coalesce((abs(a.{c} - b.{c}) > {tolerance} * greatest(1, abs(b.{c})))::INT, 0)), "
        f"coalesce(avg(a.{c} - b.{c}), 0)"
        for c in columns
    )
    [found] = connection.execute(f"SELECT count(*), {asked} FROM served a JOIN stored b USING (id)").fetchall()
    if not found[0]:
        return None
    told = []
    for n, name in enumerate([*(feature.name for feature in scorer.features), "score"]):
        missing, other, mean = (float(value) for value in found[1 + 3 * n : 4 + 3 * n])
        number = n == len(scorer.features) or scorer.features[n].categories is None
        told.append(
            {
                "name": name,
                "differ": round(missing + other, 6),
                "missing": round(missing, 6),
                "difference": round(mean, 9) if number else None,
            }
        )
    *features, score = told
    return {
        "day": day.isoformat(),
        "logged": log.answers,
        "damaged": log.damaged,
        "matched": int(found[0]),
        "features": sorted(features, key=lambda one: (-one["differ"], one["name"])),
        "score": score,
    }
