"""A profile of rows: what every column holds, in a few kilobytes, without any row. Profiles merge exactly.

Per column: rows, missing ones (NULL and NaN alike), and either the sketch of its numbers (``sketch``: quantiles to
0.05 %, exact moments) or its categories, exact up to a cap with the rest counted. A month is the merge of its nights'
profiles, never a second scan.

Here it is filled from Arrow batches in one pass, in memory that does not grow with the rows (``counting``);
``profile_sql`` fills it where the data is; ``profile_store`` keeps it. It knows nothing of joint distributions.
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
from airflow_provider_sml.ml.monitoring.counting import NumberCounter, new_room
from airflow_provider_sml.ml.monitoring.sketch import Numbers, merge_all

#: Categories of a column that are counted each by itself.
CAP = 1_000
#: While a stream is read so many times as many are held, so that one that grows common late is not lost early.
HELD = 20

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


def beside(one: Profile, two: Profile, order: Sequence[str]) -> Profile:
    """Profiles of different columns of the same rows as one; a segment that only one of them has is left out.

    :param order: of the columns.
    """
    both = {**one.columns, **two.columns}
    segments = {
        name: beside(part, two.segments[name], order)
        for name, part in sorted(one.segments.items())
        if name in two.segments
    }
    return Profile(max(one.rows, two.rows), {name: both[name] for name in order if name in both}, segments)


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
    room = new_room()
    counted = _Counter(kinds, cap * HELD, room)
    parts: dict[str, _Counter] = {}
    for batch in batches:
        counted.add(batch)
        if segment is not None:
            labels = batch.column(segment).cast(pa.string())
            for name in pc.unique(labels).to_pylist():
                if name is not None and (name in parts or len(parts) < cap):
                    part = parts.setdefault(name, _Counter(kinds, cap * HELD, room))
                    part.add(batch.filter(pc.equal(labels, name)))
    segments = {name: part.profile(cap) for name, part in sorted(parts.items())}
    return Profile(counted.rows, counted.profile(cap).columns, segments)


def empty(kinds: Mapping[str, Kind]) -> Profile:
    """The profile of no rows."""
    return Profile(
        0,
        {name: ColumnProfile(0, 0, Numbers() if kind == "number" else Categories()) for name, kind in kinds.items()},
    )


class _Counter:
    """Counts the columns of batches.

    :param kinds: the columns, and what each is taken for.
    :param held: categories of a column that are counted each by itself meanwhile.
    :param room: to work in, as ``NumberCounter`` takes it.
    """

    def __init__(self, kinds: Mapping[str, Kind], held: int, room: np.ndarray) -> None:
        self.rows = 0
        self._kinds, self._held = kinds, held
        self._nulls = dict.fromkeys(kinds, 0)
        self._numbers = {name: NumberCounter(room) for name, kind in kinds.items() if kind == "number"}
        self._categories = {name: Categories() for name, kind in kinds.items() if kind == "category"}

    def add(self, batch: pa.RecordBatch | pa.Table) -> None:
        missing = [name for name in self._kinds if name not in batch.schema.names]
        if missing:
            lacking = f"no {', '.join(missing)}"
            raise DataError("the rows lack columns to profile", expected=", ".join(self._kinds), found=lacking)
        self.rows += batch.num_rows
        for name, kind in self._kinds.items():
            column = batch.column(name)
            for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
                if kind == "number":
                    self._nulls[name] += self._add_numbers(name, chunk)
                else:
                    self._nulls[name] += self._add_categories(name, chunk)

    def _add_numbers(self, name: str, chunk: pa.Array) -> int:
        try:
            # not safe: a whole number beyond 2**53 is rounded, as SQL's CAST does
            values = chunk.cast(pa.float64(), safe=False) if chunk.type != pa.float64() else chunk
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"the column {name} holds no numbers", expected="numbers", found=chunk.type) from error
        kept = values.drop_null() if values.null_count else values
        return len(chunk) - len(kept) + self._numbers[name].add(kept.to_numpy())

    def _add_categories(self, name: str, chunk: pa.Array) -> int:
        if pa.types.is_dictionary(chunk.type):
            times = np.bincount(chunk.indices.drop_null().to_numpy())
            there = np.flatnonzero(times)
            texts = chunk.dictionary.take(pa.array(there)).cast(pa.string()).to_pylist()
            found = [(None, chunk.indices.null_count), *zip(texts, times[there].tolist(), strict=True)]
        else:
            found = _pairs(pc.value_counts(chunk.cast(pa.string())))
        counts: dict[str, int] = {}
        nulls = 0
        for text, count in found:
            if text is None:
                nulls += count
            else:
                counts[text] = counts.get(text, 0) + count
        self._categories[name] = self._categories[name].merge(Categories(counts), self._held)
        return nulls

    def profile(self, cap: int) -> Profile:
        """Of all that was added; categories are cut to the cap."""
        columns = {}
        for name, kind in self._kinds.items():
            values = self._numbers[name].numbers() if kind == "number" else self._categories[name].cut(cap)
            columns[name] = ColumnProfile(self.rows, self._nulls[name], values)
        return Profile(self.rows, columns)


def _pairs(counted: pa.StructArray) -> list[tuple[Any, int]]:
    return list(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
