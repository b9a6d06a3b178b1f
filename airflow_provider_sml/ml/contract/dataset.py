"""A dataset as a whole: source, contract, features and label, checked against each other.

Everything else follows from it: the columns of the table, the rules a row must fulfil, what a scoring request must
hold. It imports nothing heavy and is loaded when a DAG file is parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import model_validator

from airflow_provider_sml.errors import ConfigurationError, ExpressionError, SmlError, did_you_mean
from airflow_provider_sml.ml.contract.model import Column, Contract, Formula, Name, Source, Strict, Values
from airflow_provider_sml.ml.expressions import Expression, Type, compile, physical

PARTITION = "event_date"
LABEL = "label"
#: Columns that the library itself writes.
RESERVED = frozenset({PARTITION, LABEL, "score", "reasons"})

Place = tuple[str | int, ...]


def dotted(place: Place) -> str:
    """A place as one writes it: ``source.joins[0].path``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


@dataclass(frozen=True)
class Feature:
    """A column that a model is fed.

    :param name: of the feature.
    :param expression: how it is computed.
    :param categories: for a category its values, whose positions are its codes; None for a number.
    """

    name: str
    expression: Expression
    categories: tuple[str, ...] | None

    @property
    def type(self) -> Type:
        """Type of the stored column: a category is stored as text, everything else as double."""
        return "string" if self.categories is not None else "double"


@dataclass(frozen=True)
class Rule:
    """One promise about a row, as a predicate that is true for a good one.

    :param name: ``column:kind``, the reason that quarantine gives.
    :param column: the column it is about.
    :param predicate: never NULL.
    :param promise: in words, for error messages.
    """

    name: str
    column: str
    predicate: Expression
    promise: str


@dataclass(frozen=True)
class Mend:
    """One step of a column's repair.

    :param name: ``column:kind``, under which the report counts it.
    :param value: the column's value after this step and those before it.
    """

    name: str
    value: Expression


class Dataset(Strict):
    """Source, contract, features and label.

    :param name: of the model and of its table.
    :param source: where raw rows come from.
    :param contract: what they promise.
    :param features: expressions over columns known before the event, by feature name.
    :param label: what is predicted: a condition, or a number that is 0 or 1.
    """

    name: Name
    source: Source
    contract: Contract
    features: dict[Name, Formula]
    label: Formula

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        for place, error in self.problems():
            raise ProblemError(place, error)
        return self

    @classmethod
    def load(cls, value: Dataset | Mapping[str, Any]) -> Dataset:
        """A dataset, from itself or from its keys as a dictionary."""
        return value if isinstance(value, Dataset) else cls(**value)

    def problems(self) -> Iterator[tuple[Place, SmlError]]:
        """What does not fit together, each with its place in the spec."""
        yield from self._contract_problems()
        yield from self._join_problems()
        yield from self._label_problems()
        for name in self.features:
            yield from self._feature_problems(name)

    # --- what follows from it -------------------------------------------------------------------------------------

    @cached_property
    def types(self) -> dict[str, Type]:
        """Type of every column that an expression may name, joined ones as ``join.column``."""
        return {name: values.type for name, values in self.values.items()}

    @cached_property
    def values(self) -> dict[str, Values]:
        """What each of those columns may be."""
        own: dict[str, Values] = dict(self.contract.columns)
        for join in self.source.joins:
            own |= {f"{join.name}.{column}": values for column, values in join.columns.items()}
        return own

    @cached_property
    def feature_list(self) -> list[Feature]:
        """The features in the order of the spec."""
        return [self._feature(name, text) for name, text in self.features.items()]

    @cached_property
    def label_expression(self) -> Expression:
        """The label, compiled."""
        return compile(self.label, self.types)

    @cached_property
    def rules(self) -> list[Rule]:
        """What each row must fulfil, apart from the types of its values, the key and the day."""
        return [rule for name in self.contract.columns for rule in self._rules(name)]

    def rules_of(self, name: str) -> list[Rule]:
        """The rules of one column; a joined column has those of its values."""
        return list(self._rules(name))

    def repairs_of(self, name: str) -> list[Mend]:
        """The steps of a column's repair in their order; the last one's value is what the rules are asked about."""
        column = self.contract.columns.get(name)
        if column is None or column.repair is None:
            return []
        return list(self._repairs(name, column))

    @cached_property
    def private_columns(self) -> list[str]:
        """Columns with a privacy treatment, whose values no metadata, log or quarantine may show."""
        return [name for name, column in self.contract.columns.items() if column.privacy is not None]

    @cached_property
    def table_columns(self) -> list[tuple[str, Type]]:
        """Columns of the lake table in order: the contract's, looked-up ones, features, the label, the partition."""
        columns: list[tuple[str, Type]] = [
            (name, column.type) for name, column in self.contract.columns.items() if column.privacy != "drop"
        ]
        columns += [(physical(name), values.type) for name, values in self.request_columns.items() if "." in name]
        columns += [(f.name, f.type) for f in self.feature_list if f.name not in self.contract.columns]
        return [*columns, (LABEL, "int"), (PARTITION, "date")]

    @cached_property
    def request_columns(self) -> dict[str, Values]:
        """The raw columns that a scoring request gives: those that features are computed from."""
        used = {name for feature in self.feature_list for name in feature.expression.columns}
        return {name: values for name, values in self.values.items() if name in used}

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name this very contract."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    # --- checks ---------------------------------------------------------------------------------------------------

    def _contract_problems(self) -> Iterator[tuple[Place, SmlError]]:
        contract = self.contract
        for name in contract.columns:
            if name in RESERVED:
                yield (
                    ("contract", "columns", name),
                    ConfigurationError(
                        f"the name {name} is taken by the library",
                        expected=f"none of {', '.join(sorted(RESERVED))}",
                        found=name,
                    ),
                )
        for position, name in enumerate(contract.key):
            if name not in contract.columns:
                yield ("contract", "key", position), _unknown("contract.key", name, contract.columns)
            elif not contract.columns[name].required:
                yield (
                    ("contract", "key", position),
                    ConfigurationError(
                        f"contract.key names {name}",
                        expected="required columns",
                        found=f"{name} may be NULL",
                        todo=f"give contract.columns.{name} required: true",
                    ),
                )
        for position, name in enumerate(contract.shard):
            if name not in contract.columns:
                yield ("contract", "shard", position), _unknown("contract.shard", name, contract.columns)
        if contract.late == "republish":
            for position, name in enumerate(contract.key):
                if name in contract.columns and contract.columns[name].privacy in ("drop", "mask"):
                    yield (
                        ("contract", "key", position),
                        ConfigurationError(
                            f"late: republish looks for the key {name} among the published rows",
                            expected="a key that the table holds, as it is or hashed",
                            found=f"privacy: {contract.columns[name].privacy}",
                        ),
                    )
        if contract.event_time not in contract.columns:
            yield ("contract", "event_time"), _unknown("contract.event_time", contract.event_time, contract.columns)
            return
        column = contract.columns[contract.event_time]
        if column.type != "timestamp" or column.privacy is not None or not column.required:
            yield (
                ("contract", "event_time"),
                ConfigurationError(
                    f"contract.event_time is {contract.event_time}",
                    expected="a required timestamp column without privacy treatment",
                    found=f"a {column.type}"
                    + ("" if column.required else " that may be NULL")
                    + (" with privacy treatment" if column.privacy else ""),
                ),
            )

    def _join_problems(self) -> Iterator[tuple[Place, SmlError]]:
        taken = set(self.contract.columns)
        for position, join in enumerate(self.source.joins):
            place = ("source", "joins", position)
            if join.name in taken:
                yield (
                    (*place, "name"),
                    ConfigurationError(
                        f"the join's name {join.name} is taken", expected="a name of its own", found=join.name
                    ),
                )
            taken.add(join.name)
            for number, key in enumerate(join.on):
                if key not in self.contract.columns:
                    yield (*place, "on", number), _unknown(f"join {join.name}", key, self.contract.columns)
            if "{date}" in join.path and join.as_of is None:
                yield (
                    (*place, "path"),
                    ConfigurationError(
                        f"join {join.name} reads one file a day", expected="as_of, the time of its rows", found="none"
                    ),
                )

    def _label_problems(self) -> Iterator[tuple[Place, SmlError]]:
        try:
            expression = compile(self.label, {name: column.type for name, column in self.contract.columns.items()})
        except ExpressionError as error:
            yield ("label",), _placed(error, "label", self.label)
            return
        if expression.type not in ("boolean", "int"):
            yield (
                ("label",),
                ConfigurationError(
                    f"label: {self.label!r}",
                    expected="a condition, or a whole number that is 0 or 1",
                    found=expression.type,
                ),
            )

    def _feature_problems(self, name: str) -> Iterator[tuple[Place, SmlError]]:
        text, place = self.features[name], ("features", name)
        try:
            expression = compile(text, self.types)
        except ExpressionError as error:
            yield place, _placed(error, f"features.{name}", text)
            return
        if name in RESERVED:
            yield place, ConfigurationError(f"the name {name} is taken by the library", found=name)
        leaks = list(self._leak_problems(name, expression))
        yield from leaks
        if not leaks and name in self.contract.columns and not (expression.is_column and name in expression.columns):
            yield (
                place,
                ConfigurationError(
                    f"features.{name} has the name of a column",
                    expected=f"another name, or the column itself ({name}: {name})",
                    found=text,
                ),
            )
        if expression.type in ("timestamp", "date"):
            yield (
                place,
                ConfigurationError(
                    f"features.{name} is a {expression.type}",
                    expected="a number, a condition or a category",
                    found=text,
                ),
            )
        if expression.type == "string":
            only = next(iter(expression.columns)) if expression.is_column else None
            if only is None or not self.values[only].values:
                yield (
                    place,
                    ConfigurationError(
                        f"features.{name} is text, so it is a category",
                        expected="one column whose values the contract lists",
                        found=text,
                        todo=f"give contract.columns.{only or '...'} its values: [...]",
                    ),
                )

    def _leak_problems(self, name: str, expression: Expression) -> Iterator[tuple[Place, SmlError]]:
        try:
            label_columns = compile(self.label, self.types).columns
        except ExpressionError:
            return
        for column_name in sorted(expression.columns & set(self.contract.columns)):
            column = self.contract.columns[column_name]
            why = None
            if column_name in label_columns:
                why = "the label is made from it"
            elif column.known == "after":
                why = "it is known only after the event"
            elif column.privacy is not None:
                why = "the contract hides it"
            if why:
                yield (
                    ("features", name),
                    ConfigurationError(
                        f"features.{name} uses {column_name}, but {why}",
                        expected="columns that are known before the event",
                        found=self.features[name],
                        todo="leave the feature out",
                    ),
                )

    # --- making ---------------------------------------------------------------------------------------------------

    def _feature(self, name: str, text: str) -> Feature:
        expression = compile(text, self.types)
        categories = None
        if expression.type == "string":
            listed = self.values[next(iter(expression.columns))].values
            categories = tuple(str(value) for value in listed or ())
        return Feature(name, expression, categories)

    def _repairs(self, name: str, column: Column) -> Iterator[Mend]:
        repair, text = column.repair, name
        assert repair is not None
        steps: list[tuple[str, Callable[[str], str]]] = []
        if repair.trim:
            steps.append(("trim", lambda x: f"trim({x})"))
        if repair.case:
            steps.append((repair.case, lambda x: f"{repair.case}({x})"))
        if repair.map:
            steps.append(("map", lambda x: _cases(x, [("=", old, new) for old, new in repair.map.items()])))
        if repair.clip and column.range is not None:
            ends = [(sign, end, end) for sign, end in zip("<>", column.range, strict=True) if end is not None]
            steps.append(("clip", lambda x: _cases(x, ends) if ends else x))
        if repair.default is not None:
            steps.append(("default", lambda x: f"coalesce({x}, {_constant(repair.default)})"))
        for kind, step in steps:
            text = step(text)
            yield Mend(f"{name}:{kind}", compile(text, {name: self.types[name]}))

    def _rules(self, name: str) -> Iterator[Rule]:
        values = self.values[name]
        if getattr(values, "required", False):
            yield self._rule(name, "required", f"{name} IS NOT NULL", "must be there")
        if values.range is not None:
            low, high = values.range
            bounds = []
            if low is not None:
                bounds.append(f"{name} >= {_constant(low)}")
            if high is not None:
                bounds.append(f"{name} <= {_constant(high)}")
            if bounds:
                text = f"coalesce({' AND '.join(bounds)}, TRUE)"
                yield self._rule(name, "range", text, f"must lie in [{_bound(low)}, {_bound(high)}]")
        if values.values is not None:
            listed = ", ".join(_constant(value) for value in values.values)
            shown = listed if len(listed) < 200 else listed[:200] + ", ..."
            yield self._rule(name, "values", f"coalesce({name} IN ({listed}), TRUE)", f"must be one of {shown}")

    def _rule(self, column: str, kind: Literal["required", "range", "values"], text: str, promise: str) -> Rule:
        return Rule(f"{column}:{kind}", column, compile(text, {column: self.types[column]}), promise)


class ProblemError(ValueError):
    """A problem of a dataset that is made in code; a spec file gets its line instead (``pipelines.loader``)."""

    def __init__(self, place: Place, error: SmlError) -> None:
        self.place, self.error = place, error
        super().__init__(f"{dotted(place)}: {error}")


def _cases(text: str, cases: Iterable[tuple[str, Any, Any]]) -> str:
    """A CASE that compares a text of an expression with constants and else leaves it as it is."""
    whens = " ".join(f"WHEN {text} {sign} {_constant(limit)} THEN {_constant(value)}" for sign, limit, value in cases)
    return f"CASE {whens} ELSE {text} END"


def _constant(value: float | int | str | None) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def _bound(value: float | None) -> str:
    return "..." if value is None else f"{value:g}"


def _placed(error: ExpressionError, where: str, text: str) -> ExpressionError:
    """An expression's error that begins with its place; a text that is nothing but the wrong column is not repeated."""
    bare = error.found == text.strip()
    error.message = where + error.message.removeprefix(repr(text)) if bare else f"{where}: {error.message}"
    return error


def _unknown(where: str, name: str, known: Mapping[str, object]) -> ConfigurationError:
    return ConfigurationError(
        f"{where} names {name}",
        expected=f"a column of the contract: {', '.join(known)}",
        found=name,
        todo=did_you_mean(name, known),
    )
