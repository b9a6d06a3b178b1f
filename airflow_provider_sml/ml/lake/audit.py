"""The audit between writing and publishing: what was really written must fulfil the contract.

The rules that Spark applied are asked again of the written files, by DuckDB and from the same expressions; counts must
agree with the writer's report; the limits of the contract decide whether the days may become visible. It changes
nothing.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.contract import PARTITION, Dataset
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.storage import connect_duckdb

#: A band of row counts means nothing with fewer days than this to compare with.
LEAST_HISTORY = 7


@dataclass(frozen=True)
class Staged:
    """What a run wrote.

    :param folder: of the run.
    :param report: the application's report.
    """

    folder: Path
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Staged:
        """Read a run's report.

        :raises DataError: when the run did not come to its end.
        """
        try:
            return cls(folder, json.loads((folder / "report.json").read_text()))
        except FileNotFoundError:
            raise DataError(
                f"the run in {folder} wrote no report, so it is incomplete", todo="run the ETL again"
            ) from None

    @property
    def data(self) -> list[Path]:
        """The files of good rows."""
        return sorted((self.folder / "data").glob("_p=*/*.parquet"))

    @property
    def quarantine(self) -> list[Path]:
        """The files of bad rows."""
        return sorted((self.folder / "quarantine").glob("_p=*/*.parquet"))

    @property
    def rows_in(self) -> int:
        """Rows read."""
        return sum(day["rows_in"] for day in self.report["days"].values())

    @property
    def rows_good(self) -> int:
        """Rows that fulfil the contract."""
        return sum(day["rows_good"] for day in self.report["days"].values())

    def reasons(self) -> str:
        """Why rows were refused, the most frequent reason first."""
        ranked = sorted(self.report["reasons"].items(), key=lambda item: -item[1])
        return ", ".join(f"{count:,} {reason}" for reason, count in ranked) or "none"


def audit(dataset: Dataset, staged: Staged, first: dt.date, last: dt.date, history: Mapping[dt.date, int]) -> None:
    """Check what was written.

    :param dataset: the contract.
    :param staged: the run.
    :param first: first day.
    :param last: last day, inclusive.
    :param history: rows of the days that are published.
    :raises DataError: with what was expected and found; nothing may be published then.
    """
    written = _ask_files(dataset, staged)
    counts = dict(history)
    for number in range((last - first).days + 1):
        day = first + dt.timedelta(days=number)
        told = staged.report["days"].get(day.isoformat(), {"rows_in": 0, "rows_good": 0, "newest": None})
        if written.get(day, 0) != told["rows_good"]:
            raise DataError(
                f"{day}: the files are not what the run reported",
                expected=f"{told['rows_good']:,} rows",
                found=f"{written.get(day, 0):,}",
                todo="run the ETL again",
            )
        _check_limits(dataset, staged, day, told, counts)
        counts[day] = told["rows_good"]


def _ask_files(dataset: Dataset, staged: Staged) -> dict[dt.date, int]:
    """Rows by day as written; refuses rows that break a rule or share a key."""
    if not staged.data:
        return {}
    contract = dataset.contract
    visible = [
        rule for rule in dataset.rules if "." not in rule.column and contract.columns[rule.column].privacy is None
    ]
    broken = ", ".join(f"count(*) FILTER (NOT ({rule.predicate.sql('duckdb')}))" for rule in visible) or "0"
    stored = [name for name in contract.key if contract.columns[name].privacy != "drop"]
    key = ", ".join(identifier(name, "duckdb") for name in stored)
    whole_key = len(stored) == len(contract.key) and all(contract.columns[n].privacy != "mask" for n in stored)
    distinct = f"count(DISTINCT ({key}))" if whole_key else "count(*)"
    with connect_duckdb([staged.folder]) as connection:
        rows = connection.execute(
            f"SELECT {PARTITION}, count(*), {distinct}, {broken} "
            "FROM read_parquet(?, hive_partitioning=false) GROUP BY 1",
            [[str(path) for path in staged.data]],
        ).fetchall()
    for day, count, keys, *failures in rows:
        for rule, failed in zip(visible, failures, strict=False):
            if failed:
                raise DataError(
                    f"{day}: {failed:,} written rows break {rule.name}",
                    expected=rule.promise,
                    todo="report this as a bug",
                )
        if keys != count:
            raise DataError(f"{day}: rows share a key", expected=f"{count:,} different keys ({key})", found=f"{keys:,}")
    return {day: count for day, count, *_ in rows}


def _check_limits(
    dataset: Dataset, staged: Staged, day: dt.date, told: Mapping[str, Any], counts: Mapping[dt.date, int]
) -> None:
    limits, rows, good = dataset.contract.limits, told["rows_in"], told["rows_good"]
    if good == 0:
        raise DataError(
            f"{day}: no row fulfils the contract",
            expected="at least one",
            found=f"{rows:,} rows read; refused: {staged.reasons()}",
            todo="land the day's file again and clear this task",
        )
    bad = (rows - good) / rows
    if bad > limits.bad_rows:
        raise DataError(
            f"{day}: {rows - good:,} of {rows:,} rows break the contract",
            expected=f"at most {limits.bad_rows:.1%}",
            found=f"{bad:.1%} ({staged.reasons()})",
            todo="land better data, or raise contract.limits.bad_rows; what was published before is still visible",
        )
    if limits.fresh is not None:
        end = dt.datetime.combine(day + dt.timedelta(days=1), dt.time())
        age = end - dt.datetime.fromisoformat(told["newest"])
        if age > limits.fresh:
            raise DataError(
                f"{day}: the newest event is old",
                expected=f"an event in the last {limits.fresh} of the day",
                found=f"{told['newest']}, {age} before the day's end",
            )
    if limits.rows is not None:
        before = [count for other, count in counts.items() if day - limits.rows.of <= other < day]
        if len(before) >= LEAST_HISTORY:
            mean = sum(before) / len(before)
            if abs(good - mean) > limits.rows.within * mean:
                raise DataError(
                    f"{day}: {good:,} rows are not what the days before had",
                    expected=f"within {limits.rows.within:.0%} of {mean:,.0f}, the mean of {len(before)} days",
                    found=f"{good:,} ({good / mean - 1:+.0%})",
                    todo="check the upstream export; raise contract.limits.rows if this is the new normal",
                )
