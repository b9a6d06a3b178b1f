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
        return sorted((self.folder / "data").glob("_p=*/**/*.parquet"))

    @property
    def quarantine(self) -> list[Path]:
        """The files of bad rows."""
        return sorted((self.folder / "quarantine").glob("_p=*/**/*.parquet"))

    def data_of(self, first: dt.date, last: dt.date) -> list[Path]:
        """The files of good rows of some days."""
        return [path for path in self.data if first <= _day_of(path) <= last]

    def quarantine_of(self, first: dt.date, last: dt.date) -> list[Path]:
        """The files of bad rows of some days."""
        return [path for path in self.quarantine if first <= _day_of(path) <= last]

    @property
    def rows_bad(self) -> int:
        """Rows in quarantine."""
        return sum(day.get("rows_bad", day["rows_in"] - day["rows_good"]) for day in self.report["days"].values())

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
        return _ranked(self.report["reasons"])

    def repairs(self) -> str:
        """What was repaired, the most frequent repair first."""
        return _ranked(self.report.get("repairs", {}))


def _day_of(path: Path) -> dt.date:
    return next(dt.date.fromisoformat(part[3:]) for part in path.parts if part.startswith("_p="))


def _ranked(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {name}" for name, count in ranked) or "none"


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
    told_days = {dt.date.fromisoformat(day): told for day, told in staged.report["days"].items()}
    for day, told in told_days.items():
        if written.get(day, 0) != told["rows_good"]:
            raise _other_count(day, told["rows_good"], written.get(day, 0))
    counts = dict(history)
    for number in range((last - first).days + 1):
        day = first + dt.timedelta(days=number)
        told = told_days.get(day, {"rows_in": 0, "rows_good": 0, "newest": None})
        if day not in told_days and day in written:
            raise _other_count(day, 0, written[day])
        _check_limits(dataset, staged, day, told, counts)
        counts[day] = told["rows_good"]


def _other_count(day: dt.date, told: int, found: int) -> DataError:
    return DataError(
        f"{day}: the files are not what the run reported",
        expected=f"{told:,} rows",
        found=f"{found:,}",
        todo="run the ETL again",
    )


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
        if whole_key and contract.unique == "run":
            total, keys = connection.execute(
                f"SELECT count(*), count(DISTINCT ({key})) FROM read_parquet(?, hive_partitioning=false)",
                [[str(path) for path in staged.data]],
            ).fetchall()[0]
            if total != keys:
                raise DataError("rows of the run share a key", expected=f"{total:,} different keys ({key})", found=keys)
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
    bad = told.get("rows_bad", rows - good)
    most = [(limits.bad_rows * rows, f"{limits.bad_rows:.1%}", "bad_rows")]
    most += [] if limits.bad_number is None else [(limits.bad_number, f"{limits.bad_number:,} rows", "bad_number")]
    for limit, shown, name in most:
        if bad > limit:
            raise DataError(
                f"{day}: {bad:,} of {rows:,} rows break the contract",
                expected=f"at most {shown}",
                found=f"{bad / rows:.1%} ({staged.reasons()})",
                todo=f"land better data, or raise contract.limits.{name}; what was published before is still visible",
            )
    repaired = told.get("rows_repaired", 0)
    if repaired > limits.repaired_rows * rows:
        raise DataError(
            f"{day}: {repaired:,} of {rows:,} rows had to be repaired",
            expected=f"at most {limits.repaired_rows:.1%}",
            found=f"{repaired / rows:.1%} ({staged.repairs()})",
            todo="have the source mended, or raise contract.limits.repaired_rows",
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
