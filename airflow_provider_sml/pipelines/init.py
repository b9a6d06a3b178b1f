"""A first spec from a CSV file: ``python -m airflow_provider_sml.pipelines init NAME --from data.csv``.

The contract is inferred from the rows; what had to be guessed is marked in the file, because only people know what a
column means and when its value is known. With ``--land`` the rows are also laid down as the daily files that an
upstream system would land, under the contract's names, so that the DAGs run at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError, ExpressionError
from airflow_provider_sml.ml.contract.infer import ColumnProfile, Profile, find_key, moment, profile
from airflow_provider_sml.ml.expressions import Type, compile
from airflow_provider_sml.pipelines.loader import load_spec

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_PERSONAL = re.compile(
    r"(^|_)(mail|email|phone|address|street|ssn|passport|iban|ip|birth\w*)(_|$)|(^|first_|last_|full_)name$"
)
_DAG = '''"""The life of the model {name}: every DAG comes from its spec."""

from airflow_provider_sml.pipelines import build_dags

build_dags("include/pipelines/{name}.yaml", into=globals())
'''


@dataclass(frozen=True)
class Created:
    """What was made.

    :param spec: the spec file.
    :param dag: the DAG file.
    :param lines: what a person should know, and do next.
    """

    spec: Path
    dag: Path
    lines: list[str]


def init(
    name: str,
    source: Path,
    *,
    root: Path,
    label: str | None = None,
    event_time: str | None = None,
    key: Sequence[str] = (),
    land: bool = False,
    force: bool = False,
) -> Created:
    """Write a spec and a DAG file for a CSV file, and with ``land`` its daily files.

    :param name: of the model.
    :param source: the CSV file.
    :param root: of the project: the folder that dags/ and include/ lie in.
    :param label: what is predicted: a column of 0 and 1 or true and false, or a condition such as ``amount > 100``.
    :param event_time: the column that says when each event was.
    :param key: the columns that name a row.
    :param land: lay the rows down as daily files in ``include/data/landing/NAME``.
    :param force: write over files that are there.
    :raises ConfigurationError: when something cannot be inferred and was not given, or a file is there already.
    """
    if not _NAME.fullmatch(name) or len(name) > 48:
        raise ConfigurationError(f"{name!r} is no name of a model", expected="lower-case words joined by _", found=name)
    spec, dag = root / "include" / "pipelines" / f"{name}.yaml", root / "dags" / f"{name}.py"
    for path in (spec, dag):
        if path.exists() and not force:
            raise ConfigurationError(f"{path} is there already", todo="take another name, or --force to write over it")
    found = profile(source)
    guess = _Guess(found, label, event_time, key)
    if not land:
        _readable(guess)
    days = guess.days()
    text = _render(name, guess, days, _port(spec.parent, name))
    _check(text, name)
    lines = [f"{spec}: {len(found.columns)} columns, {len(guess.features)} features; {guess.summary}"]
    for path, content in ((spec, text), (dag, _DAG.format(name=name))):
        _write(path, content)
    lines += [f"{dag}: its DAGs", *guess.notes]
    if land:
        lines += _land(guess, days, root / "include" / "data" / "landing" / name)
    first, last = min(days), max(days)
    lines += [
        f"next: read {spec}; what is marked guess wants your decision",
        f"      python -m airflow_provider_sml.pipelines check {spec}",
        f"      trigger {name}_ingest with first day {first} and last day {last}, then {name}_train",
    ]
    return Created(spec, dag, lines)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``init`` to the commands of ``python -m airflow_provider_sml.pipelines``."""
    command = commands.add_parser("init", help="write a first spec for a CSV file")
    command.add_argument("name", metavar="NAME", help="of the model")
    command.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE", help="the CSV file")
    command.add_argument("--label", help="what is predicted: a column, or a condition such as 'amount > 100'")
    command.add_argument("--event-time", metavar="COLUMN", help="when each event was")
    command.add_argument("--key", nargs="+", default=[], metavar="COLUMN", help="what names a row")
    command.add_argument("--root", type=Path, default=Path(), help="folder that dags/ and include/ lie in")
    command.add_argument("--land", action="store_true", help="lay the rows down as daily files too")
    command.add_argument("--force", action="store_true", help="write over files that are there")
    command.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    try:
        created = init(
            given.name, given.source, root=given.root, label=given.label, event_time=given.event_time, key=given.key,
            land=given.land, force=given.force,
        )  # fmt: skip
    except ConfigurationError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(created.lines))
    return 0


class _Guess:
    """The roles of a file's columns: given, or guessed.

    :param found: the file.
    :param label: as given.
    :param event_time: as given.
    :param key: as given.
    """

    def __init__(self, found: Profile, label: str | None, event_time: str | None, key: Sequence[str]) -> None:
        self.found = found
        self.notes: list[str] = []
        self.guessed: set[str] = set()
        self.event_time = self._event_time(event_time)
        self.key = self._key(key)
        self.label = self._label(label)
        self.label_columns = compile(self.label, self.types).columns
        self.features = self._features()
        renamed = [f"{c.source!r} is {c.name}" for c in found.columns if c.source != c.name]
        if renamed:
            self.notes.append(f"names: {', '.join(renamed)}")
        if found.left_out:
            self.notes.append(f"left out, for want of a usable name: {', '.join(map(repr, found.left_out))}")
        if not self.features:
            raise ConfigurationError(
                f"{found.path} has nothing to predict from",
                expected="numbers, conditions, or text of few values beside key, event time and label",
                found=", ".join(column.name for column in found.columns),
            )

    @property
    def types(self) -> dict[str, Type]:
        """Type of each column in the contract."""
        return {c.name: "timestamp" if c.name == self.event_time else c.type for c in self.found.columns}

    @property
    def summary(self) -> str:
        """The roles in one line."""
        parts = {"key": " + ".join(self.key), "event time": self.event_time, "label": self.label}
        return ", ".join(
            f"{role} {value}" + (" (guess)" if role in self.guessed else "") for role, value in parts.items()
        )

    def _named(self, name: str, option: str) -> ColumnProfile:
        column = self.found.column(name)
        if column is None:
            names = ", ".join(column.name for column in self.found.columns)
            raise ConfigurationError(f"{option} names {name}", expected=f"a column: {names}", found=name)
        return column

    def _event_time(self, given: str | None) -> str:
        if given is not None:
            column = self._named(given, "--event-time")
            if column.type not in ("timestamp", "date") or not column.required:
                raise ConfigurationError(
                    f"--event-time names {column.name}",
                    expected="a column with a date or a time such as 2026-01-31T12:00 in every row",
                    found=f"a {column.type}" + ("" if column.required else f", {column.nulls} rows without a value"),
                )
            return column.name
        for kind in ("timestamp", "date"):
            fit = [column.name for column in self.found.columns if column.type == kind and column.required]
            if fit:
                self.guessed.add("event time")
                return fit[0]
        raise ConfigurationError(
            f"{self.found.path} has no event time",
            expected="a column with a date or a time such as 2026-01-31T12:00 in every row",
            found=", ".join(f"{column.name}: {column.type}" for column in self.found.columns),
            todo="add the time of each event to the file",
        )

    def _key(self, given: Sequence[str]) -> list[str]:
        if given:
            columns = [self._named(name, "--key") for name in given]
            optional = [column.name for column in columns if not column.required]
            if optional:
                raise ConfigurationError(
                    "--key", expected="columns with a value in every row", found=", ".join(optional)
                )
            return [column.name for column in columns]
        key = find_key(self.found, self.event_time)
        if key is None:
            raise ConfigurationError(
                f"no few columns of {self.found.path} name a row",
                expected="one to three columns that no two rows share, the event time among them",
                found="rows that share all of those",
                todo="say which ones with --key; of rows with one key the ETL keeps one",
            )
        self.guessed.add("key")
        return key

    def _label(self, given: str | None) -> str:
        if given is not None:
            column = self.found.column(given)
            text = column.name if column else given
            try:
                kind = compile(text, self.types).type
            except ExpressionError as error:
                raise ConfigurationError(f"--label: {error}") from error
            whole = column is None or column.binary
            if kind not in ("boolean", "int") or not whole:
                raise ConfigurationError(
                    f"--label {given}", expected="a condition, or a column of 0 and 1 or true and false", found=kind
                )
            return text
        fit = [column.name for column in self.found.columns if column.binary and column.name not in self.key]
        if len(fit) != 1:
            raise ConfigurationError(
                "which column is predicted cannot be guessed",
                expected="one column of 0 and 1 or true and false",
                found=", ".join(fit) or "none",
                todo="say it with --label, as a column or a condition such as --label \"status = 'late'\"",
            )
        self.guessed.add("label")
        return fit[0]

    def _features(self) -> dict[str, str]:
        taken = {*self.key, self.event_time, *self.label_columns}
        features = {
            c.name: c.name
            for c in self.found.columns
            if c.name not in taken and (c.type in ("int", "double", "boolean") or (c.categories and not _personal(c)))
        }
        own = {column.name for column in self.found.columns}
        if self.found.column(self.event_time).type == "timestamp" and "hour" not in own:  # type: ignore[union-attr]
            features["hour"] = f"hour({self.event_time})"
        if "weekday" not in own:
            features["weekday"] = f"weekday({self.event_time})"
        return features

    def days(self) -> dict[str, int]:
        """Rows of each day of the event time, in UTC."""
        place = [column.name for column in self.found.columns].index(self.event_time)
        days: dict[str, int] = {}
        for record in self.found.records():
            when = moment(record[place] or "")
            if when:
                days[when.date().isoformat()] = days.get(when.date().isoformat(), 0) + 1
        if not days:
            raise ConfigurationError(f"no row has a real day in {self.event_time}", expected="days of the calendar")
        return days


def _readable(guess: _Guess) -> None:
    """Refuse what the ETL could not read from the file as it is."""
    names = [column.source for column in guess.found.columns if column.source != column.name]
    event_time = guess.found.column(guess.event_time)
    wrong = [f"the header has {', '.join(map(repr, names))}"] if names else []
    if event_time and event_time.type == "date":
        wrong.append(f"{event_time.name} is a date without a time")
    if wrong:
        raise ConfigurationError(
            f"{guess.found.path} cannot be ingested as it is",
            expected="lower-case words joined by _ as names, and a time such as 2026-01-31T12:00 as the event time",
            found="; ".join(wrong),
            todo="change what upstream lands, or give --land: it lays daily files down in that form",
        )


def _port(folder: Path, name: str) -> int:
    """A port that no other spec of the folder names."""
    texts = [path.read_text() for path in folder.glob("*.yaml") if path.stem != name] if folder.is_dir() else []
    taken = {int(port) for text in texts for port in re.findall(r"\bport: *(\d+)", text)}
    return next(port for port in range(8500, 8700) if port not in taken)


def _render(name: str, guess: _Guess, days: dict[str, int], port: int) -> str:
    """The spec as text; comments tell what was seen and what was guessed."""
    span = (moment(max(days)) - moment(min(days))).days + 1  # type: ignore[operator]
    later = max(1, min(28, span // 6))
    window = max(1, min(365, span - 2 * later))
    mark = {role: "  # guess" if role in guess.guessed else "" for role in ("key", "event time", "label")}
    columns = "\n".join(_column(column, guess) for column in guess.found.columns)
    features = "\n".join(f"  {feature}: {text}" for feature, text in guess.features.items())
    nulls = json.dumps(guess.found.null_values)
    return f"""\
# Inferred from {guess.found.path.name}: {guess.found.rows:,} rows of {len(days)} days, {min(days)} to {max(days)}.
name: {name}
description: ""

source:
  format: csv
  path: "{{landing}}/{name}/{{date}}.csv"  # one file a day
  null_values: {nulls}

contract:
  key: [{", ".join(guess.key)}]{mark["key"]}
  event_time: {guess.event_time}{mark["event time"]}
  columns:
    # A column whose value is known only after the event must say known: after; a feature made of it would leak.
{columns}
  limits:
    bad_rows: 1%
    # rows: {{within: 60%, of: 28 days}}
    # fresh: 36h

label: {json.dumps(guess.label)}{mark["label"]}
label_known_after: 0 days  # guess: how long after the event is the label known?

features:
{features}

train:
  window: {window} days
  validate: {later} days
  test: {later} days
  params: {{max_depth: 6, learning_rate: 0.1, rounds: 300, early_stopping: 30}}

gate:
  auc: {{min: 0.5, not_worse_than: champion, margin: 0.01}}

deploy: {{target: local, port: {port}}}

monitor:
  columns: {{leave_out: [{"weekday" if "weekday" in guess.features else ""}]}}
  then: alert

schedule: {{ingest: daily, train: weekly, monitor: nightly}}
"""


def _column(column: ColumnProfile, guess: _Guess) -> str:
    """One line of the contract."""
    parts = [f"type: {guess.types[column.name]}"]
    notes = []
    if column.required:
        parts.append("required: true")
    else:
        notes.append(f"{column.nulls / column.rows:.0%} without a value")
    if column.binary and column.type == "int":
        parts.append("values: [0, 1]")
    elif column.type in ("int", "double") and column.low is not None and column.high is not None:
        if column.name not in guess.key:
            parts.append(f"range: [{_outward(column.low, -1)}, {_outward(column.high, 1)}]")
        notes.append(f"seen {column.low:g} to {column.high:g}")
    if column.categories and not _personal(column):
        parts.append(f"values: {json.dumps(column.categories, ensure_ascii=False)}")
    if column.name in guess.label_columns:
        parts.append("known: after")
    if _personal(column):
        notes.append("personal? consider privacy: drop, mask or {hash: a connection}")
    text = f"    {column.name}: {{{', '.join(parts)}}}"
    return f"{text}  # {'; '.join(notes)}" if notes else text


def _personal(column: ColumnProfile) -> bool:
    return column.type == "string" and _PERSONAL.search(column.name) is not None


def _outward(value: float, side: int) -> str:
    """A round bound with room beyond what was seen; zero stays zero, and no bound crosses it."""
    if value == 0 or (value > 0) != (side > 0):
        return "0" if value == 0 or side < 0 else _outward(0, 1)
    wide = abs(value) * 1.5
    unit = 10.0 ** math.floor(math.log10(wide))
    bound = next(step * unit for step in (1, 2, 5, 10) if step * unit >= wide) * side
    return f"{bound:.0f}" if abs(bound) >= 1 else f"{bound:g}"


def _check(text: str, name: str) -> None:
    """What is written must pass its own check."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text)
        load_spec(path, profile="")


def _land(guess: _Guess, days: dict[str, int], folder: Path) -> list[str]:
    """Lay the rows down as one file a day, each whole at once; gives what to tell."""
    names = [column.name for column in guess.found.columns]
    place = names.index(guess.event_time)
    rows: dict[str, list[list[str]]] = {day: [] for day in days}
    for record in guess.found.records():
        when = moment(record[place] or "")
        if when is None:
            continue
        values = ["" if value is None else value.replace("\r\n", " ").replace("\n", " ") for value in record]
        if len(values[place]) == 10:
            values[place] = when.isoformat()
        rows[when.date().isoformat()].append(values)
    folder.mkdir(parents=True, exist_ok=True)
    for day, lines in rows.items():
        temporary = folder / f".{day}.{os.getpid()}.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([names, *lines])
        temporary.replace(folder / f"{day}.csv")
    lost = guess.found.rows - sum(days.values())
    told = [f"{folder}: {len(days)} daily files, {sum(days.values()):,} rows"]
    return told + ([f"{lost:,} rows have no real day in {guess.event_time} and were left out"] if lost else [])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
