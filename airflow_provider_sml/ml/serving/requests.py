"""Checks scoring requests against the contract of a bundle and turns them into vectors.

It tells everything that is wrong with a request at once, by instance and field, in the words of the contract; what the
contract repairs is repaired here too. It does not score, knows nothing of HTTP, and leaves size limits to the server.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.contract import Rule, Values
from airflow_provider_sml.ml.expressions.vectors import Vector

ID = "id"
MAX_PROBLEMS = 100
MAX_SHOWN = 80
MAX_ID = 256

Problem = dict[str, Any]


class RequestError(DataError):
    """A scoring request breaks the contract.

    :param model: whose contract it is.
    :param problems: entries of ``instance``, ``field``, ``expected`` and ``found``; at most ``MAX_PROBLEMS``.
    :param total: how many problems there are.
    """

    def __init__(self, model: str, problems: list[Problem], total: int) -> None:
        self.problems, self.total = problems, total
        super().__init__(f"the request breaks the contract of {model}", expected="none", found=f"{total} problems")


@dataclass(frozen=True)
class CheckedRequest:
    """A request that fulfils the contract.

    :param rows: a vector for each raw column.
    :param features: the raw values as they were sent, by instance, without the id.
    :param ids: the id of each instance; None where it gave none.
    """

    rows: dict[str, Vector]
    features: list[dict[str, Any]]
    ids: list[str | None]


@dataclass
class _Problems:
    kept: list[Problem] = field(default_factory=list)
    total: int = 0
    places: set[tuple[int, str | None]] = field(default_factory=set)

    def add(self, instance: int, name: str | None, expected: Callable[[], str] | str, found: str) -> None:
        self.total += 1
        self.places.add((instance, name))
        if len(self.kept) < MAX_PROBLEMS:
            text = expected if isinstance(expected, str) else expected()
            shown = name if name is None else shorten(name)
            self.kept.append({"instance": instance, "field": shown, "expected": text, "found": found})


class RequestChecker:
    """Checks the instances of requests for one bundle.

    :param bundle: its dataset says which raw columns an instance has and what they promise.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.name = bundle.name
        self.columns: dict[str, Values] = bundle.dataset.request_columns
        self._rules: dict[str, list[Rule]] = {name: bundle.dataset.rules_of(name) for name in self.columns}
        repairs = {name: bundle.dataset.repairs_of(name) for name in self.columns}
        self._repaired = {name: steps[-1].value for name, steps in repairs.items() if steps}
        defaulted = {name for name, steps in repairs.items() if steps and steps[-1].name == f"{name}:default"}
        self._required = {n for n, values in self.columns.items() if getattr(values, "required", False)} - defaulted
        self._has_id = ID in self.columns

    def check(self, instances: Sequence[Any]) -> CheckedRequest:
        """Check the instances of one request.

        :param instances: values as JSON gives them; each is to be an object of raw columns, with an ``id`` if wished.
        :raises RequestError: with all that is wrong.
        """
        problems = _Problems()
        rows = [self._instance(number, item, problems) for number, item in enumerate(instances)]
        vectors = {name: self._column(name, values, rows, problems) for name, values in self.columns.items()}
        if problems.total:
            order = {name: position for position, name in enumerate(self.columns)}
            kept = sorted(problems.kept, key=lambda p: (p["instance"], order.get(p["field"], -1)))
            raise RequestError(self.name, kept, problems.total)
        ids = [row.get(ID) if row else None for row in rows]
        features = [row if self._has_id or ID not in row else _without_id(row) for row in rows if row is not None]
        return CheckedRequest(vectors, features, [None if value is None else str(value) for value in ids])

    def _instance(self, number: int, item: Any, problems: _Problems) -> dict[str, Any] | None:
        if not isinstance(item, dict):
            problems.add(number, None, "an object of raw columns", shorten(_text(item)))
            return None
        for key, value in item.items():
            if key not in self.columns and (key != ID or not _good_id(value)):
                expected = f"text of at most {MAX_ID} characters" if key == ID else self._hint(key)
                problems.add(number, key, expected, shorten(_text(value)))
        return item

    def _hint(self, key: str) -> Callable[[], str]:
        def words() -> str:
            close = difflib.get_close_matches(key[:MAX_SHOWN], list(self.columns), n=1)
            listed = f"one of the columns {', '.join(self.columns)}"
            return f"{listed}; did you mean {close[0]}?" if close else listed

        return words

    def _column(self, name: str, values: Values, rows: list[dict[str, Any] | None], problems: _Problems) -> Vector:
        read, expected = _READERS[values.type]
        items: list[Any] = [None] * len(rows)
        for number, row in enumerate(rows):
            value = None if row is None else row.get(name)
            if value is None:
                if name in self._required and row is not None:
                    problems.add(number, name, self._wanted(name, expected), "null" if name in row else "nothing")
                continue
            try:
                items[number] = read(value)
            except (ValueError, OverflowError):
                problems.add(number, name, self._wanted(name, expected), shorten(_text(value)))
        vector = Vector.of(items, values.type)
        if name in self._repaired:  # as the rows were that the model was trained on
            vector = self._repaired[name].evaluate({name: vector})
        for rule in self._rules[name]:
            self._apply(rule, vector, rows, problems)
        return vector

    def _wanted(self, name: str, expected: str) -> Callable[[], str]:
        """The type and the promises of a column, in words."""
        promises = [rule.promise for rule in self._rules[name] if not rule.name.endswith(":required")]
        return lambda: "; ".join([expected, *promises])

    def _apply(self, rule: Rule, vector: Vector, rows: list[dict[str, Any] | None], problems: _Problems) -> None:
        kept = rule.predicate.evaluate({rule.column: vector})
        for number in np.flatnonzero(~kept.values).tolist():
            row = rows[number]
            # What has the wrong type or is missing stands as NULL here and has been told already.
            if row is not None and (number, rule.column) not in problems.places:
                problems.add(number, rule.column, rule.promise, shorten(_text(row.get(rule.column))))


def shorten(text: str) -> str:
    """Text for an error message, cut at ``MAX_SHOWN`` characters."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _text(value: Any) -> str:
    return json.dumps(value[: MAX_SHOWN + 1] if isinstance(value, str) else value, ensure_ascii=False)


def _good_id(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= MAX_ID)


def _without_id(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != ID}


def _int(value: Any) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _double(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _string(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _timestamp(value: Any) -> dt.datetime:
    text = _string(value)
    if ":" not in text and "T" not in text:  # Python would read a mere date as its midnight
        raise ValueError
    moment = dt.datetime.fromisoformat(text)
    return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _date(value: Any) -> dt.date:
    return dt.date.fromisoformat(_string(value))


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (_int, "a whole number"),
    "double": (_double, "a finite number"),
    "string": (_string, "text"),
    "boolean": (_boolean, "true or false"),
    "timestamp": (_timestamp, "an ISO 8601 time such as 2026-01-31T12:00:00Z"),
    "date": (_date, "an ISO 8601 date such as 2026-01-31"),
}
