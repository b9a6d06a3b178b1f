"""Which columns of a night have drifted, by the profiles of a reference and of the night.

A column drifts when its distance, an effect size that does not grow with the rows, reaches its limit and, with the
false-discovery control on, its p-value adjusted over all columns (Benjamini-Hochberg) is small as well: so neither many
rows nor many columns raise an alarm by themselves. What cannot be compared is a finding, never an error: an empty
night, missing partitions, a column that is gone, new or of another kind, new categories.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from airflow_provider_sml.ml.monitoring import distances
from airflow_provider_sml.ml.monitoring.profile import Categories, ColumnProfile, Profile
from airflow_provider_sml.ml.monitoring.sketch import Numbers

Method = Literal["wasserstein", "jensenshannon", "psi", "ks", "cramers_v"]
#: Fewer other nights than these say nothing of how nights differ.
FEWEST_NIGHTS = 7


@dataclass(frozen=True)
class Rules:
    """When a column, and when a night, has drifted.

    :param share: share of the columns that makes a night of drift.
    :param numeric: limit for numbers.
    :param category: limit for categories.
    :param numeric_method: distance of numbers.
    :param category_method: distance of categories.
    :param nulls: a column drifts as well when the share of its missing values moved by this much.
    :param false_discovery: share of the alarms that may be false; None leaves the control out.
    :param min_rows: a segment with fewer rows is not judged.
    """

    share: float = 0.3
    numeric: float = 0.1
    category: float = 0.1
    numeric_method: Method = "wasserstein"
    category_method: Method = "jensenshannon"
    nulls: float = 0.2
    false_discovery: float | None = 0.05
    min_rows: int = 200


@dataclass(frozen=True)
class ColumnDrift:
    """One column of a night.

    :param name: of the column.
    :param method: of ``value``, or why there is none.
    :param value: its distance.
    :param threshold: the limit it was held against.
    :param p_value: how likely so large a distance is without drift; None where it was not asked.
    :param adjusted: that, adjusted over the columns.
    :param drifted: the verdict.
    :param nulls: shares of missing values in the reference and in the night.
    """

    name: str
    method: str
    value: float | None
    threshold: float | None
    p_value: float | None
    adjusted: float | None
    drifted: bool
    nulls: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Finding:
    """Something that a reader has to know and that no distance tells.

    :param kind: ``empty_night``, ``missing_partitions``, ``schema``, ``column_gone``, ``column_new``, ``column_kind``,
        ``new_category``, ``segment`` or ``small_segment``.
    :param subject: the column, segment or days.
    :param text: in words.
    """

    kind: str
    subject: str
    text: str


@dataclass(frozen=True)
class Judgement:
    """A night against its reference.

    :param verdict: ``quiet`` or ``drift``.
    :param share: share of the columns that drifted.
    :param columns: each of them, as in the reference.
    :param findings: what else was seen.
    :param segments: the same for parts of the night.
    """

    verdict: Literal["quiet", "drift"]
    share: float
    columns: Sequence[ColumnDrift]
    findings: Sequence[Finding] = ()
    segments: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def drifted(self) -> list[str]:
        """The columns that drifted, the furthest beyond its limit first."""
        found = [column for column in self.columns if column.drifted]
        return [column.name for column in sorted(found, key=_beyond, reverse=True)]

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"drifted": self.drifted}


def judge(
    reference: Profile,
    current: Profile,
    rules: Rules,
    nights: Sequence[Profile] = (),
    missing: Sequence[dt.date] = (),
) -> Judgement:
    """Compare a night with its reference.

    :param reference: of the training rows, of the days before or of the same season.
    :param current: the night's.
    :param rules: the limits.
    :param nights: other nights; ``FEWEST_NIGHTS`` of them or more, and p-values are by how nights differ, else by rows.
    :param missing: days of the reference window that are not published.
    """
    findings = [] if not missing else [Finding("missing_partitions", ", ".join(map(str, missing)), _missing(missing))]
    if not current.rows or not reference.rows:
        side = "the night" if not current.rows else "the reference"
        findings.append(Finding("empty_night", side, f"{side} has no rows; nothing was compared"))
        return Judgement("quiet", 0.0, (), findings)
    columns = []
    for name, old in reference.columns.items():
        new = current.columns.get(name)
        if new is None or new.kind != old.kind:
            columns.append(ColumnDrift(name, "the column is gone" if new is None else "another kind", None, None,
                                       None, None, True))  # fmt: skip
            kind = "column_gone" if new is None else "column_kind"
            findings.append(Finding(kind, name, f"{name}: {old.kind} before, {new.kind if new else 'not there'} now"))
            continue
        columns.append(_column(name, old, new, rules, [n.columns[name] for n in nights if name in n.columns]))
        findings += _categories(name, old, new)
    findings += [
        Finding("column_new", name, f"{name} is new; it has no reference")
        for name in current.columns if name not in reference.columns
    ]  # fmt: skip
    columns = _controlled(columns, rules)
    share = sum(column.drifted for column in columns) / len(columns) if columns else 0.0
    segments = {}
    for name, part in current.segments.items():
        old_part = reference.segments.get(name)
        if old_part is None or min(part.rows, old_part.rows) < rules.min_rows:
            text = f"segment {name}: fewer than {rules.min_rows} rows on a side; not judged"
            findings.append(Finding("small_segment", name, text))
        else:
            others = [night.segments[name] for night in nights if name in night.segments]
            segments[name] = judge(old_part, part, rules, others)
    verdict: Literal["quiet", "drift"] = "drift" if share >= rules.share else "quiet"
    return Judgement(verdict, share, columns, findings, segments)


def distance(old: ColumnProfile, new: ColumnProfile, method: Method) -> float:
    """One distance of a column with values on both sides."""
    one, two = old.values, new.values
    if isinstance(one, Numbers) and isinstance(two, Numbers):
        if method == "wasserstein" and one.inside and two.inside:
            return distances.wasserstein(one, two)
        if method in ("ks", "wasserstein"):
            return distances.kolmogorov_smirnov(one, two)
    sides = distances.shares(*_with_nulls(old, new))
    if method == "psi":
        return distances.psi(*sides)
    return distances.chi_square(*sides)[2] if method == "cramers_v" else distances.jensen_shannon(*sides)


def _column(
    name: str, old: ColumnProfile, new: ColumnProfile, rules: Rules, nights: Sequence[ColumnProfile]
) -> ColumnDrift:
    gaps = (old.nulls / max(old.rows, 1), new.nulls / max(new.rows, 1))
    empty = [column.rows == column.nulls for column in (old, new)]
    if any(empty):
        method = "no value on both sides" if all(empty) else "no value on one side"
        return ColumnDrift(name, method, None, None, None, None, not all(empty), gaps)
    numeric = old.kind == "number"
    method = rules.numeric_method if numeric else rules.category_method
    value, limit = distance(old, new, method), rules.numeric if numeric else rules.category
    others = [n for n in nights if n.kind == old.kind and n.rows > n.nulls]
    if len(others) >= FEWEST_NIGHTS:
        p_value = distances.surprise(value, [distance(old, other, method) for other in others])
    elif isinstance(old.values, Numbers) and isinstance(new.values, Numbers):
        statistic = distances.kolmogorov_smirnov(old.values, new.values)
        p_value = distances.ks_p_value(statistic, old.values.size, new.values.size)
    else:
        p_value = distances.chi_square(*distances.shares(*_with_nulls(old, new)))[1]
    apart = value >= limit or abs(gaps[0] - gaps[1]) >= rules.nulls
    return ColumnDrift(name, method, round(value, 6), limit, float(f"{p_value:.9g}"), None, apart, gaps)


def _controlled(columns: Sequence[ColumnDrift], rules: Rules) -> list[ColumnDrift]:
    """The columns with their adjusted p-values; one whose distance alone was large stays only if it is a discovery."""
    asked = [column for column in columns if column.p_value is not None]
    values = distances.benjamini_hochberg([column.p_value for column in asked if column.p_value is not None])
    adjusted = {column.name: value for column, value in zip(asked, values, strict=True)}
    found = []
    for column in columns:
        value = adjusted.get(column.name)
        drifted = column.drifted
        if drifted and value is not None and rules.false_discovery is not None:
            gone = abs(column.nulls[0] - column.nulls[1]) >= rules.nulls
            drifted = gone or value <= rules.false_discovery
        found.append(ColumnDrift(**{**vars(column), "adjusted": value, "drifted": drifted}))
    return found


def _with_nulls(old: ColumnProfile, new: ColumnProfile) -> tuple[Numbers | Categories, Numbers | Categories]:
    """Both sides; a missing category is a category of its own."""
    if isinstance(old.values, Numbers) or isinstance(new.values, Numbers):
        return old.values, new.values
    sides = [
        Categories({**side.values.counts, **({"NULL": side.nulls} if side.nulls else {})}, side.values.rest)
        for side in (old, new)
        if isinstance(side.values, Categories)
    ]
    return sides[0], sides[1]


def _categories(name: str, old: ColumnProfile, new: ColumnProfile) -> list[Finding]:
    if not isinstance(old.values, Categories) or not isinstance(new.values, Categories) or old.values.rest:
        return []
    fresh = {value: count for value, count in new.values.counts.items() if value not in old.values.counts}
    if not fresh:
        return []
    first = ", ".join(f"{value!r} ({count})" for value, count in sorted(fresh.items(), key=lambda i: (-i[1], i[0]))[:5])
    return [Finding("new_category", name, f"{name}: {len(fresh)} not seen in the reference: {first}")]


def _missing(days: Sequence[dt.date]) -> str:
    return f"{len(days)} days of the window are not published: {', '.join(map(str, days[:10]))}"


def _beyond(column: ColumnDrift) -> float:
    """How far beyond its limit a column lies."""
    return float("inf") if column.value is None else column.value / (column.threshold or 1.0)
