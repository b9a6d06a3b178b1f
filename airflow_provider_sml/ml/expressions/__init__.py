"""Expressions: a closed subset of SQL with one meaning in Spark, DuckDB, BigQuery and NumPy.

Features, labels and contract rules are written in it, so that what trains is what serves::

    expression = compile("year(time_hour) - planes.year", {"time_hour": "timestamp", "planes.year": "int"})
    expression.type            # "double"
    expression.columns         # {"time_hour", "planes.year"}
    expression.sql("spark")    # SQL text
    expression.evaluate(rows)  # NumPy, from a mapping of columns to vectors

The grammar is in ``syntax``, the functions and their meaning in ``functions``. Not in it: aggregates, windows,
subqueries, casts, regular expressions, time zones, random numbers and the current time.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ExpressionError, did_you_mean
from airflow_provider_sml.ml.expressions import syntax
from airflow_provider_sml.ml.expressions.functions import SQL_TYPES, TYPES, Dialect, Function, Type, lookup

if TYPE_CHECKING:
    from airflow_provider_sml.ml.expressions.vectors import Vector

__all__ = ["SQL_TYPES", "TYPES", "Dialect", "Expression", "Type", "compile", "identifier", "literal", "physical"]


# In this order: True is an int and a datetime is a date for Python.
_LITERALS: tuple[tuple[type, Type], ...] = (
    (bool, "boolean"),
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (dt.datetime, "timestamp"),
    (dt.date, "date"),
)

# A text in single quotes may not run over lines in BigQuery.
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\0": "\\x00"}


def physical(name: str) -> str:
    """The name of a column in files and tables: a joined column's dot becomes two underscores."""
    return name.replace(".", "__")


def identifier(name: str, dialect: Dialect) -> str:
    """A column's quoted name in SQL."""
    quote = '"' if dialect == "duckdb" else "`"
    return f"{quote}{physical(name)}{quote}"


def literal(value: Any, dialect: Dialect) -> str:
    """A constant in SQL.

    :param value: int, float, str, bool, date, datetime (UTC, no zone) or None.
    """
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return f"CAST({value} AS {SQL_TYPES[dialect]['int']})"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ExpressionError(f"{value} is not a number", expected="a finite number", found=value)
        text = repr(value)
        text = text if "e" in text else text + "e0"
        return f"{text}D" if dialect == "spark" else f"CAST({text} AS {SQL_TYPES[dialect]['double']})"
    if isinstance(value, str):
        if dialect == "bigquery":
            return "'" + "".join(_ESCAPES.get(char, char) for char in value) + "'"
        if dialect == "spark":
            return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, dt.datetime):
        return f"CAST('{value.isoformat(sep=' ')}' AS {SQL_TYPES[dialect]['timestamp']})"
    return f"CAST('{value.isoformat()}' AS DATE)"


@dataclass(frozen=True)
class _Typed:
    """A node of the tree with its type; ``wanted`` is what its parent converts it to."""

    node: syntax.Node
    type: Type
    function: Function | None = None
    arguments: tuple[_Typed, ...] = ()
    wanted: tuple[Type, ...] = ()


class Expression:
    """One compiled expression; make it with :func:`compile`.

    :param text: as it was written.
    """

    def __init__(self, text: str, root: _Typed) -> None:
        self.text = text
        self._root = root
        self.type: Type = root.type
        self.columns: frozenset[str] = frozenset(_columns(root))

    def __repr__(self) -> str:
        return f"Expression({self.text!r}: {self.type})"

    @property
    def is_column(self) -> bool:
        """Whether the expression is nothing but a column."""
        return isinstance(self._root.node, syntax.Column)

    def sql(self, dialect: Dialect) -> str:
        """The expression in the SQL of an engine."""
        return _sql(self._root, dialect)

    def evaluate(self, rows: Mapping[str, Vector], size: int | None = None) -> Vector:
        """The expression over NumPy columns.

        :param rows: a vector for each of ``columns``, all of one length.
        :param size: number of rows; needed only for an expression without columns.
        """
        from airflow_provider_sml.ml.expressions import vectors

        if size is None:
            size = len(next(iter(rows.values())).null) if rows else 1

        def run(typed: _Typed) -> Vector:
            node = typed.node
            if isinstance(node, syntax.Literal):
                return vectors.constant(node.value, typed.type, size)
            if isinstance(node, syntax.Column):
                return rows[node.name]
            arguments = []
            for argument, wanted in zip(typed.arguments, typed.wanted, strict=True):
                vector = run(argument)
                same = argument.type == wanted
                arguments.append(vector if same else vectors.convert(vector, wanted))
            return vectors.FUNCTIONS[node.function](*arguments)

        return run(self._root)


def compile(text: str, columns: Mapping[str, Type]) -> Expression:
    """Compile an expression against the columns it may use.

    :param text: the expression.
    :param columns: type of each column; joined columns as ``join.column``.
    :raises ExpressionError: when it cannot be parsed, names an unknown column or function, or its types do not fit.
    """
    root = _typed(syntax.parse(text), columns, text)
    if root.type == "null":
        raise ExpressionError(f"{text!r} is always NULL", expected="an expression with a value", found="NULL")
    return Expression(text, root)


def _typed(node: syntax.Node, columns: Mapping[str, Type], text: str) -> _Typed:
    if isinstance(node, syntax.Literal):
        return _Typed(node, _literal_type(node.value))
    if isinstance(node, syntax.Column):
        if node.name not in columns:
            raise ExpressionError(
                f"{text!r} uses {node.name}",
                expected=_offer(node.name, columns),
                found=node.name,
                todo=did_you_mean(node.name, columns),
            )
        return _Typed(node, columns[node.name])
    function = lookup(node.function)
    arguments = tuple(_typed(argument, columns, text) for argument in node.arguments)
    kinds: tuple[Type, ...] = tuple(argument.type for argument in arguments)
    fitted = function.signature(kinds) if kinds else None
    if fitted is None:
        raise ExpressionError(
            f"{text!r}: the types do not fit", expected=function.usage, found=", ".join(kinds) or "no arguments"
        )
    _check_constants(node, function, text)
    return _Typed(node, fitted[1], function, arguments, tuple(fitted[0]))


def _offer(name: str, columns: Mapping[str, Type]) -> str:
    """What might have been written instead of an unknown column: that join's columns, or the dataset's own."""
    join = name.partition(".")[0] if "." in name else None
    own = sorted(known for known in columns if "." not in known)
    joins = sorted({known.partition(".")[0] for known in columns if "." in known})
    if join in joins:
        return f"a column of {join}: " + ", ".join(sorted(known for known in columns if known.startswith(f"{join}.")))
    return "a column: " + ", ".join([*own, *(f"{known}.*" for known in joins)])


def _check_constants(node: syntax.Call, function: Function, text: str) -> None:
    for position in range(1, len(node.arguments)) if function.name == "in" else function.literal:
        argument = node.arguments[position]
        good = isinstance(argument, syntax.Literal) and argument.value is not None
        if good and function.name == "substr":
            good = isinstance(argument.value, int) and (1 if position == 1 else 0) <= argument.value < 2**31  # type: ignore[union-attr]
        if not good:
            raise ExpressionError(f"{text!r}: argument {position + 1}", expected=function.usage, found="something else")


def _literal_type(value: Any) -> Type:
    for python, kind in _LITERALS:
        if isinstance(value, python):
            return kind
    return "null"


def _columns(typed: _Typed) -> set[str]:
    if isinstance(typed.node, syntax.Column):
        return {typed.node.name}
    return {name for argument in typed.arguments for name in _columns(argument)}


def _sql(typed: _Typed, dialect: Dialect) -> str:
    node = typed.node
    if isinstance(node, syntax.Literal):
        return literal(node.value, dialect)
    if isinstance(node, syntax.Column):
        return identifier(node.name, dialect)
    assert typed.function is not None
    arguments = []
    for argument, wanted in zip(typed.arguments, typed.wanted, strict=True):
        sql = _sql(argument, dialect)
        if argument.type != wanted or (argument.type == "null" and wanted != "null"):
            sql = f"CAST({sql} AS {SQL_TYPES[dialect][wanted]})"
        arguments.append(sql)
    return typed.function.render(dialect, typed.wanted, arguments)
