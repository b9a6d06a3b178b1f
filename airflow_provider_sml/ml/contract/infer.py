"""What a CSV file looks like: the type, range and values of each column, and which columns could be key and event time.

One pass over the rows in plain Python, in memory that does not grow with them except for columns that may be a key. A
text counts as a value of a type when the ETL would read it as one. It guesses and promises nothing: what a column means
is known to people only.
"""

from __future__ import annotations

import csv
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError, ExpressionError
from airflow_provider_sml.ml.contract.dataset import RESERVED
from airflow_provider_sml.ml.expressions import Type, syntax

#: The shapes that the ETL application takes for each type, the narrowest type first.
SHAPES: dict[Type, re.Pattern[str]] = {
    "boolean": re.compile(r"\s*(?i:true|false)\s*"),
    "int": re.compile(r"\s*[+-]?\d+\s*"),
    "double": re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"),
    "date": re.compile(r"\d{4}-\d{2}-\d{2}"),
    "timestamp": re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?"),
}
#: Texts that mean NULL where they are met.
NULLS = ("", "NA", "N/A", "#N/A", "NULL", "null", "None", "NaN", "nan", "?", "\\N")
#: A text column with no more values than this is a category.
CATEGORIES = 30
_LEADING_ZERO = re.compile(r"\s*[+-]?0\d")
_LARGEST_INT = 2**63 - 1


@dataclass
class ColumnProfile:
    """What was seen in one column.

    :param source: its name in the file.
    :param name: its name in a contract: lower-case words joined by underscores.
    :param nulls: rows without a value.
    :param values: the different texts, as long as there are few; None once there are many.
    :param low: smallest number.
    :param high: largest number.
    """

    source: str
    name: str
    nulls: int = 0
    rows: int = 0
    values: set[str] | None = field(default_factory=set)
    low: float | None = None
    high: float | None = None
    _fits: set[Type] = field(default_factory=lambda: set(SHAPES))
    _unique: set[int] | None = field(default_factory=set)

    def add(self, text: str | None) -> None:
        """Take one row's value; None is NULL."""
        self.rows += 1
        if text is None:
            self.nulls += 1
            self._unique = None
            return
        if self._unique is not None:
            seen = hash(text)
            if seen in self._unique:
                self._unique = None
            else:
                self._unique.add(seen)
        if self.values is not None:
            self.values.add(text)
            if len(self.values) > CATEGORIES:
                self.values = None
        if self._fits:
            self._narrow(text)

    def _narrow(self, text: str) -> None:
        self._fits = {kind for kind in self._fits if SHAPES[kind].fullmatch(text)}
        if self._fits & {"int", "double"}:
            # A code such as 007 is text; as a number it would lose its zeros.
            if _LEADING_ZERO.match(text):
                self._fits -= {"int", "double"}
                return
            number = float(text)
            if abs(number) > _LARGEST_INT:
                self._fits.discard("int")
            self.low = number if self.low is None else min(self.low, number)
            self.high = number if self.high is None else max(self.high, number)

    @property
    def type(self) -> Type:
        """The narrowest type that all values have; a column without values is text."""
        if self.nulls == self.rows:
            return "string"
        return next((kind for kind in SHAPES if kind in self._fits), "string")

    @property
    def required(self) -> bool:
        """Whether every row has a value."""
        return self.rows > 0 and self.nulls == 0

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.rows > 1 and self._unique is not None

    @property
    def categories(self) -> list[str] | None:
        """The values of a text column that is a category; None for any other."""
        if self.type != "string" or not self.values or len(self.values) < 2 or self.unique:
            return None
        return sorted(self.values)

    @property
    def binary(self) -> bool:
        """Whether it could be a label as it stands: both of true and false, or both of 0 and 1."""
        values = {text.strip().lower() for text in self.values or ()}
        return self.type in ("boolean", "int") and values in ({"true", "false"}, {"0", "1"})


@dataclass(frozen=True)
class Profile:
    """What was seen in a file.

    :param path: of the file.
    :param columns: in the order of the file.
    :param rows: number of rows.
    :param null_values: the texts that stood for NULL.
    :param left_out: columns without a name that a contract can use.
    """

    path: Path
    columns: list[ColumnProfile]
    rows: int
    null_values: list[str]
    left_out: list[str]

    def column(self, name: str) -> ColumnProfile | None:
        """A column by its name in the contract or in the file."""
        return next((column for column in self.columns if name in (column.name, column.source)), None)

    def records(self) -> Iterator[list[str | None]]:
        """The rows again, each with the values of ``columns``; NULL is None."""
        nulls = set(self.null_values)
        for row in rows(self.path)[1]:
            yield [None if text in nulls else text for text in (row[n] for n in self._positions)]

    @property
    def _positions(self) -> list[int]:
        header = rows(self.path)[0]
        return [header.index(column.source) for column in self.columns]


def rows(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Header and rows of a CSV file in UTF-8.

    :raises ConfigurationError: when it cannot be read, has no header, or a row has another number of values.
    """

    def lines() -> Iterator[list[str]]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            try:
                yield from (row for row in reader if row)
            except csv.Error as error:
                raise _unreadable(path, f"line {reader.line_num}: {error}") from error

    every = lines()
    try:
        header = [name.strip() for name in next(every, [])]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    if not header:
        raise _unreadable(path, "it is empty")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise _unreadable(path, f"the header names {', '.join(twice)} twice")

    def checked() -> Iterator[list[str]]:
        try:
            for number, row in enumerate(every, start=2):
                if len(row) != len(header):
                    raise _unreadable(path, f"row {number} has {len(row)} values, the header has {len(header)}")
                yield row
        except UnicodeDecodeError as error:
            raise _unreadable(path, error) from error

    return header, checked()


def profile(path: Path) -> Profile:
    """Look at every row of a CSV file.

    :raises ConfigurationError: when it cannot be read or has no rows.
    """
    header, body = rows(path)
    names = contract_names(header)
    columns = [ColumnProfile(source, name) for source, name in zip(header, names, strict=True) if name]
    positions = [header.index(column.source) for column in columns]
    nulls, count = set(NULLS), 0
    met: set[str] = set()
    for row in body:
        count += 1
        for column, position in zip(columns, positions, strict=True):
            text = row[position]
            if text in nulls:
                met.add(text)
                column.add(None)
            else:
                column.add(text)
    if not count:
        raise _unreadable(path, "it has a header and no rows")
    found = ["", *(text for text in NULLS[1:] if text in met)]
    return Profile(path, columns, count, found, [s for s, n in zip(header, names, strict=True) if not n])


def contract_names(header: Sequence[str]) -> list[str]:
    """Names that a contract takes: lower-case words joined by underscores; empty where none is left of it.

    A name that the library itself writes, such as ``score``, or that is a word of the expressions, such as ``end``,
    gets ``_given`` at its end.
    """
    names: list[str] = []
    for source in header:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|\d+", source)
        name = "_".join(word.lower() for word in words)[:48].strip("_")
        if name and not name[0].isalpha():
            name = f"c_{name}"
        if name and (name in RESERVED or not _is_column(name)):
            name = f"{name}_given"
        base, number = name, 2
        while name and name in names:
            name, number = f"{base}_{number}", number + 1
        names.append(name)
    return names


def _is_column(name: str) -> bool:
    try:
        return isinstance(syntax.parse(name), syntax.Column)
    except ExpressionError:
        return False


def find_key(found: Profile, event_time: str) -> list[str] | None:
    """The fewest required columns that no two rows share: one, one with the event time, or two and the event time.

    :param found: the file.
    :param event_time: a column that is tried together with others.
    :returns: their names, or None when three are not enough.
    """
    usable = [c for c in found.columns if c.required and c.type not in ("double", "boolean")]
    single = [column.name for column in usable if column.unique and column.name != event_time]
    if single:
        return [min(single, key=lambda name: (not re.search(r"(^|_)(id|key|number|no)$", name), single.index(name)))]
    others = [column.name for column in usable if column.name != event_time]
    tried = [(name, event_time) for name in others] + [(*pair, event_time) for pair in combinations(others[:8], 2)]
    place = {column.name: number for number, column in enumerate(found.columns)}
    alive: dict[tuple[str, ...], set[int]] = {names: set() for names in tried}
    for record in found.records():
        for names in list(alive):
            seen = hash(tuple(record[place[name]] for name in names))
            if seen in alive[names]:
                del alive[names]
            else:
                alive[names].add(seen)
        if not alive:
            return None
    return list(next(iter(alive)))


def moment(text: str) -> dt.datetime | None:
    """A text as a moment in UTC without a zone, as the ETL reads it; a date is its midnight, anything else None."""
    if not (SHAPES["timestamp"].fullmatch(text) or SHAPES["date"].fullmatch(text)):
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:  # such as 2026-02-30
        return None
    return found.astimezone(dt.UTC).replace(tzinfo=None) if found.tzinfo else found


def _unreadable(path: Path, found: object) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be used",
        expected="a CSV file in UTF-8 with one header line and a value for each column in every row",
        found=found,
    )
