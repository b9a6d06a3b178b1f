"""A profile of rows: what every column holds, in a few kilobytes, without any row. Profiles merge exactly.

Per column: rows, missing ones (NULL and NaN alike), and either the sketch of its numbers (``sketch``: quantiles to
0.05 %, exact moments) or its categories, exact up to a cap with the rest counted. A month is the merge of its nights'
profiles, never a second scan.

Here it is filled from Arrow batches in one pass, in memory that does not grow with the rows; ``profile_sql`` lets a SQL
engine fill it where the data is; ``profile_store`` keeps it. It knows nothing of joint distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.monitoring.sketch import Numbers, merge_all

#: Categories of a column that are counted each by itself.
CAP = 1_000
#: While a stream is read so many times as many are held, so that one that grows common late is not lost early.
_HELD = 20

Kind = Literal["number", "category"]


@dataclass(frozen=True)
class Categories:
    """What is known of the categories of a column.

    :param counts: rows of each category, the most frequent ones of the cap.
    :param rest: rows of all others.
    :param short: the most by which the count of any one category can be too low: 0 while all have been counted. It adds
        up as in a merge of Misra-Gries summaries (Agarwal et al., "Mergeable summaries", 2012, section 2).
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    rest: int = 0
    short: int = 0

    @property
    def size(self) -> int:
        """Rows with a category."""
        return sum(self.counts.values()) + self.rest

    def merge(self, other: Categories, cap: int = CAP) -> Categories:
        """Both together, cut to the cap again."""
        counts = dict(self.counts)
        for name, count in other.counts.items():
            counts[name] = counts.get(name, 0) + count
        return Categories(counts, self.rest + other.rest, self.short + other.short).cut(cap)

    def cut(self, cap: int) -> Categories:
        """The most frequent categories, of equal ones the first by name; the others join the rest."""
        if len(self.counts) <= cap:
            return self
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        left = [count for _, count in ordered[cap:]]
        return Categories(dict(ordered[:cap]), self.rest + sum(left), self.short + left[0])


@dataclass(frozen=True)
class ColumnProfile:
    """One column.

    :param rows: all of them.
    :param nulls: rows without a value: NULL or NaN.
    :param values: what the others hold.
    """

    rows: int
    nulls: int
    values: Numbers | Categories

    @property
    def kind(self) -> Kind:
        """Whether it was taken as numbers or as categories."""
        return "number" if isinstance(self.values, Numbers) else "category"

    def merge(self, other: ColumnProfile, cap: int = CAP) -> ColumnProfile:
        """Both together.

        :raises DataError: when one holds numbers and the other categories.
        """
        one, two = self.values, other.values
        values: Numbers | Categories
        if isinstance(one, Numbers) and isinstance(two, Numbers):
            values = one.merge(two)
        elif isinstance(one, Categories) and isinstance(two, Categories):
            values = one.merge(two, cap)
        else:
            raise DataError("profiles of two kinds", expected=self.kind, found=other.kind)
        return ColumnProfile(self.rows + other.rows, self.nulls + other.nulls, values)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {"kind": self.kind, "rows": self.rows, "nulls": self.nulls}
        if isinstance(self.values, Numbers):
            return found | self.values.dump()
        ordered = sorted(self.values.counts.items(), key=lambda item: (-item[1], item[0]))
        return found | {"counts": dict(ordered), "rest": self.values.rest, "short": self.values.short}

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> ColumnProfile:
        """What ``dump`` gave.

        :raises ValueError: when it is something else.
        """
        values: Numbers | Categories
        if found["kind"] == "number":
            values = Numbers.load(found)
        else:
            counts = {str(name): int(count) for name, count in found["counts"].items()}
            values = Categories(counts, int(found["rest"]), int(found["short"]))
        return cls(int(found["rows"]), int(found["nulls"]), values)


@dataclass(frozen=True)
class Profile:
    """The columns of some rows.

    :param rows: how many.
    :param columns: the profile of each column.
    :param segments: profiles of parts of the same rows, by the segment's name; empty when none were asked for.
    """

    rows: int
    columns: Mapping[str, ColumnProfile]
    segments: Mapping[str, Profile] = field(default_factory=dict)

    def merge(self, other: Profile) -> Profile:
        """Both together. A column or a segment that only one side has is taken over as it is there.

        :raises DataError: when a column changed between number and category.
        """
        return merge([self, other])

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {
            "rows": self.rows, "columns": {name: column.dump() for name, column in self.columns.items()}
        }  # fmt: skip
        if self.segments:
            found["segments"] = {name: part.dump() for name, part in self.segments.items()}
        return found

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Profile:
        """What ``dump`` gave.

        :raises ValueError: when it is something else.
        """
        columns = {name: ColumnProfile.load(column) for name, column in found["columns"].items()}
        segments = {name: cls.load(part) for name, part in found.get("segments", {}).items()}
        return cls(int(found["rows"]), columns, segments)


def merge(parts: Sequence[Profile], cap: int = CAP) -> Profile:
    """Profiles together, as those of the nights of a month.

    :param parts: a column that only some have counts the rows of those.
    :param cap: categories that stay counted each by itself.
    :raises DataError: when a column is a number in one and a category in another.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns = {}
    for name in names:
        found = [part.columns[name] for part in parts if name in part.columns]
        kinds = {column.kind for column in found}
        if len(kinds) > 1:
            raise DataError(f"the column {name} changed its kind", expected=found[0].kind, found=sorted(kinds))
        columns[name] = ColumnProfile(
            sum(column.rows for column in found), sum(column.nulls for column in found), _values(found, cap)
        )
    segments = dict.fromkeys(name for part in parts for name in part.segments)
    return Profile(
        sum(part.rows for part in parts),
        columns,
        {name: merge([part.segments[name] for part in parts if name in part.segments], cap) for name in segments},
    )


def _values(found: Sequence[ColumnProfile], cap: int) -> Numbers | Categories:
    if found[0].kind == "number":
        return merge_all([column.values for column in found if isinstance(column.values, Numbers)])
    parts = [column.values for column in found if isinstance(column.values, Categories)]
    # Held uncut until all are added, so that the order of the parts decides nothing.
    return reduce(lambda one, two: one.merge(two, len(one.counts) + len(two.counts)), parts).cut(cap)


def of_batches(
    batches: Iterable[pa.RecordBatch | pa.Table],
    kinds: Mapping[str, Kind],
    *,
    segment: str | None = None,
    cap: int = CAP,
) -> Profile:
    """Profile rows in one pass over their batches; only one batch is held at a time.

    :param batches: rows with the columns.
    :param kinds: the columns, and what each is taken for.
    :param segment: a column whose values split the rows into segments, each profiled too; rows without a value belong
        to none. At most ``cap`` of them; the column should have few values.
    :param cap: categories counted each by itself.
    :raises DataError: when a column is missing, or holds what is no number where a number is wanted.
    """
    held = cap * _HELD
    running: Profile | None = None
    for batch in batches:
        part = _profile(batch, kinds)
        if segment is not None:
            labels = batch.column(segment).cast(pa.string())
            found = pc.unique(labels).to_pylist()[:cap]
            parts = {name: _profile(batch.filter(pc.equal(labels, name)), kinds) for name in found if name is not None}
            part = Profile(part.rows, part.columns, parts)
        running = part if running is None else merge([running, part], held)
    return empty(kinds) if running is None else _cut(running, cap)


def empty(kinds: Mapping[str, Kind]) -> Profile:
    """The profile of no rows."""
    return Profile(
        0,
        {name: ColumnProfile(0, 0, Numbers() if kind == "number" else Categories()) for name, kind in kinds.items()},
    )


def _cut(profile: Profile, cap: int) -> Profile:
    columns = {
        name: ColumnProfile(column.rows, column.nulls, column.values.cut(cap))
        if isinstance(column.values, Categories) else column
        for name, column in profile.columns.items()
    }  # fmt: skip
    return Profile(profile.rows, columns, {name: _cut(part, cap) for name, part in profile.segments.items()})


def _profile(batch: pa.RecordBatch | pa.Table, kinds: Mapping[str, Kind]) -> Profile:
    missing = [name for name in kinds if name not in batch.schema.names]
    if missing:
        raise DataError("the rows lack columns to profile", expected=", ".join(kinds), found=f"no {', '.join(missing)}")
    columns = {}
    for name, kind in kinds.items():
        column = batch.column(name)
        columns[name] = _numbers(name, column) if kind == "number" else _categories(column)
    return Profile(batch.num_rows, columns)


def _numbers(name: str, column: pa.Array | pa.ChunkedArray) -> ColumnProfile:
    try:
        # not safe: a whole number beyond 2**53 is rounded, as SQL's CAST does
        values = column.cast(pa.float64(), safe=False) if column.type != pa.float64() else column
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"the column {name} holds no numbers", expected="numbers", found=column.type) from error
    array = values.drop_null().to_numpy()
    gaps = np.isnan(array)
    if gaps.any():
        array = array[~gaps]
    return ColumnProfile(len(column), len(column) - len(array), Numbers.of(array))


def _categories(column: pa.Array | pa.ChunkedArray) -> ColumnProfile:
    found = pc.value_counts(column.cast(pa.string()))
    counts = dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
    nulls = counts.pop(None, 0)
    return ColumnProfile(len(column), nulls, Categories(counts))
