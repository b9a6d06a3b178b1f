"""Every function and operator of the language: its types, and its SQL for each engine.

One meaning each, written out for every engine because the engines differ where their names agree (``dayofweek`` counts
from 1 in Spark and from 0 in DuckDB; dividing by zero is an error, NULL or infinity; ``lower`` differs outside ASCII):

- Arithmetic is done in double. Dividing by zero gives NULL. NaN, which only arithmetic on infinities can make, sorts
  above every number and equals itself, as Spark and DuckDB have it.
- A comparison with NULL is NULL; AND, OR and NOT follow three-valued logic.
- Text is compared by code points; ``lower`` and ``upper`` change ASCII letters only; ``trim`` removes blanks.
- Moments are UTC without a zone, in microseconds; ``weekday`` is 0 on Monday to 6 on Sunday. In BigQuery they are
  DATETIME, which no project's default time zone touches.
- BigQuery refuses a sum, difference or product beyond the largest double, where the other engines go on with infinity:
  the query fails, and never gives another value.

The NumPy meaning of the same names is in ``vectors``; the property test in tests/ml/test_expressions.py holds all
engines equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal as OneOf

from airflow_provider_sml.errors import ExpressionError, did_you_mean

Type = OneOf["int", "double", "string", "boolean", "timestamp", "date", "null"]
Dialect = OneOf["spark", "duckdb", "bigquery"]

TYPES: tuple[Type, ...] = ("int", "double", "string", "boolean", "timestamp", "date")
SQL_TYPES: dict[Dialect, dict[str, str]] = {
    "spark": {
        "int": "BIGINT", "double": "DOUBLE", "string": "STRING", "boolean": "BOOLEAN",
        "timestamp": "TIMESTAMP_NTZ", "date": "DATE",
    },
    "duckdb": {
        "int": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "boolean": "BOOLEAN",
        "timestamp": "TIMESTAMP", "date": "DATE",
    },
    "bigquery": {
        "int": "INT64", "double": "FLOAT64", "string": "STRING", "boolean": "BOOL",
        "timestamp": "DATETIME", "date": "DATE",
    },
}  # fmt: skip

_NUMBER = frozenset({"int", "double"})
_DAY = frozenset({"timestamp", "date"})
_LARGE = "9007199254740992e0"  # 2**53: from here on every double is whole
_UPPER, _LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Function:
    """One function.

    :param name: its name in the tree.
    :param signature: from the types of the arguments to the types they are converted to and the type of the result;
        returns None when they do not fit.
    :param usage: how it is written, for error messages.
    :param sql: SQL by dialect, or one for all; from the SQL of the converted arguments.
    :param literal: positions of arguments that must be constants.
    :param sql_double: SQL where the arguments are doubles and NaN needs care; ``sql`` where it has none.
    """

    name: str
    signature: Callable[[Sequence[Type]], tuple[list[Type], Type] | None]
    usage: str
    sql: dict[Dialect, Callable[..., str]]
    literal: tuple[int, ...] = ()
    sql_double: dict[Dialect, Callable[..., str]] = field(default_factory=dict)

    def render(self, dialect: Dialect, kinds: Sequence[Type], arguments: Sequence[str]) -> str:
        """The call in the SQL of an engine.

        :param kinds: the types that the arguments have.
        :param arguments: their SQL.
        """
        double = self.sql_double.get(dialect) if kinds and kinds[0] == "double" else None
        return (double or self.sql[dialect])(*arguments)


def _common(types: Sequence[Type]) -> Type | None:
    """The one type that all can be converted to, or None."""
    real = {kind for kind in types if kind != "null"}
    if not real:
        return None
    if len(real) == 1:
        return real.pop()
    return "double" if real <= _NUMBER else None


def _fixed(arguments: Sequence[frozenset[str] | set[str]], result: Type, to: Sequence[Type | None] | None = None):  # type: ignore[no-untyped-def]
    """A signature of a fixed number of arguments; ``to`` converts them."""

    def signature(types: Sequence[Type]) -> tuple[list[Type], Type] | None:
        if len(types) != len(arguments):
            return None
        if any(kind != "null" and kind not in allowed for kind, allowed in zip(types, arguments, strict=True)):
            return None
        wanted = to or [None] * len(types)
        return [target or kind for kind, target in zip(types, wanted, strict=True)], result

    return signature


def _arithmetic(count: int):  # type: ignore[no-untyped-def]
    return _fixed([_NUMBER] * count, "double", ["double"] * count)


def _compared(types: Sequence[Type]) -> tuple[list[Type], Type] | None:
    common = _common(types)
    return ([common] * len(types), "boolean") if common and len(types) >= 2 else None


def _unified(types: Sequence[Type]) -> tuple[list[Type], Type] | None:
    common = _common(types)
    return ([common] * len(types), common) if common else None


def _case(types: Sequence[Type]) -> tuple[list[Type], Type] | None:
    conditions, values = types[:-1:2], [*types[1:-1:2], types[-1]]
    common = _common(values)
    if common is None or any(kind not in ("boolean", "null") for kind in conditions):
        return None
    converted: list[Type] = [common] * len(types)
    converted[: len(types) - 1 : 2] = ["boolean"] * len(conditions)
    return converted, common


def _all(types: Sequence[Type]) -> tuple[list[Type], Type] | None:
    return ([*types], "boolean") if len(types) == 1 else None


def _sql_case(*parts: str) -> str:
    whens = "".join(f" WHEN {parts[i]} THEN {parts[i + 1]}" for i in range(0, len(parts) - 1, 2))
    return f"(CASE{whens} ELSE {parts[-1]} END)"


def _whole(name: str) -> dict[Dialect, Callable[..., str]]:
    """Floor or ceiling as a double; Spark's own gives a bigint, which large values do not fit."""

    def held(x: str) -> str:
        return f"(CASE WHEN abs({x}) < {_LARGE} THEN CAST({name}({x}) AS DOUBLE) ELSE {x} END)"

    return _each(held, bigquery=lambda x: f"{name}({x})")


def _each(template: Callable[..., str], **others: Callable[..., str]) -> dict[Dialect, Callable[..., str]]:
    """One SQL for all engines but those named."""
    return {"spark": template, "duckdb": template, "bigquery": template, **others}  # type: ignore[dict-item]


def _infix(symbol: str) -> dict[Dialect, Callable[..., str]]:
    return _each(lambda a, b: f"({a} {symbol} {b})")


def _part(name: str) -> dict[Dialect, Callable[..., str]]:
    """A part of a date; BigQuery's functions of these names read a time zone, EXTRACT from a DATETIME does not."""
    return _each(lambda x: f"CAST({name}({x}) AS BIGINT)", bigquery=lambda x: f"EXTRACT({name.upper()} FROM {x})")


# BigQuery compares as IEEE 754 does: NaN is not equal to itself and neither below nor above any number.
_NAN_COMPARED: dict[str, Callable[..., str]] = {
    "eq": lambda a, b: f"({a} = {b} OR (IS_NAN({a}) AND IS_NAN({b})))",
    "ne": lambda a, b: f"(NOT {_NAN_COMPARED['eq'](a, b)})",
    "lt": lambda a, b: f"({a} < {b} OR (NOT IS_NAN({a}) AND IS_NAN({b})))",
    "gt": lambda a, b: _NAN_COMPARED["lt"](b, a),
    "le": lambda a, b: f"(NOT {_NAN_COMPARED['lt'](b, a)})",
    "ge": lambda a, b: f"(NOT {_NAN_COMPARED['lt'](a, b)})",
}

_BOOLEAN = frozenset({"boolean"})
_STRING = frozenset({"string"})
_INT = frozenset({"int"})
_TIMESTAMP = frozenset({"timestamp"})
_DATE = frozenset({"date"})

_TABLE = [
    Function("add", _arithmetic(2), "number + number", _infix("+")),
    Function("subtract", _arithmetic(2), "number - number", _infix("-")),
    Function("multiply", _arithmetic(2), "number * number", _infix("*")),
    Function(
        "divide", _arithmetic(2), "number / number",
        _each(lambda a, b: f"({a} / nullif({b}, 0e0))", bigquery=lambda a, b: f"IEEE_DIVIDE({a}, nullif({b}, 0e0))"),
    ),
    Function("negate", _arithmetic(1), "- number", _each(lambda a: f"(- {a})")),
    Function("abs", _arithmetic(1), "abs(number)", _each(lambda a: f"abs({a})")),
    Function("floor", _arithmetic(1), "floor(number)", _whole("floor")),
    Function("ceil", _arithmetic(1), "ceil(number)", _whole("ceil")),
    Function(
        "sqrt", _arithmetic(1), "sqrt(number)",
        _each(
            lambda a: f"(CASE WHEN {a} >= 0e0 THEN sqrt({a}) END)",
            bigquery=lambda a: f"(CASE WHEN {a} >= 0e0 OR IS_NAN({a}) THEN sqrt({a}) END)",
        ),
    ),
    *(
        Function(
            name, _compared, f"value {symbol} value", _infix(symbol), sql_double={"bigquery": _NAN_COMPARED[name]}
        )
        for name, symbol in (("eq", "="), ("ne", "<>"), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))
    ),
    Function("and", _fixed([_BOOLEAN] * 2, "boolean"), "condition AND condition", _infix("AND")),
    Function("or", _fixed([_BOOLEAN] * 2, "boolean"), "condition OR condition", _infix("OR")),
    Function("not", _fixed([_BOOLEAN], "boolean"), "NOT condition", _each(lambda a: f"(NOT {a})")),
    Function("is_null", _all, "value IS NULL", _each(lambda a: f"({a} IS NULL)")),
    Function(
        "in", _compared, "value IN (constant, ...)", _each(lambda a, *rest: f"({a} IN ({', '.join(rest)}))"),
        literal=(1,),
    ),
    Function("case", _case, "CASE WHEN condition THEN value ... ELSE value END", _each(_sql_case)),
    Function("coalesce", _unified, "coalesce(value, ...)", _each(lambda *parts: f"coalesce({', '.join(parts)})")),
    Function("concat", _fixed([_STRING] * 2, "string"), "text || text", _infix("||")),
    Function(
        "length", _fixed([_STRING], "int"), "length(text)",
        _each(lambda a: f"CAST(length({a}) AS BIGINT)", bigquery=lambda a: f"CHAR_LENGTH({a})"),
    ),
    Function(
        "lower", _fixed([_STRING], "string"), "lower(text)", _each(lambda a: f"translate({a}, '{_UPPER}', '{_LOWER}')")
    ),
    Function(
        "upper", _fixed([_STRING], "string"), "upper(text)", _each(lambda a: f"translate({a}, '{_LOWER}', '{_UPPER}')")
    ),
    Function(
        "trim", _fixed([_STRING], "string"), "trim(text)",
        _each(lambda a: f"trim({a}, ' ')", spark=lambda a: f"trim(BOTH ' ' FROM {a})"),
    ),
    Function(
        "substr", _fixed([_STRING, _INT, _INT], "string"), "substr(text, first >= 1, length >= 0)",
        _each(
            lambda a, first, count: f"substr({a}, CAST({first} AS INT), CAST({count} AS INT))",
            bigquery=lambda a, first, count: f"substr({a}, {first}, {count})",
        ),
        literal=(1, 2),
    ),
    Function(
        "starts_with", _fixed([_STRING] * 2, "boolean"), "starts_with(text, text)",
        _each(lambda a, b: f"starts_with({a}, {b})", spark=lambda a, b: f"startswith({a}, {b})"),
    ),
    Function(
        "contains", _fixed([_STRING] * 2, "boolean"), "contains(text, text)",
        _each(
            lambda a, b: f"contains({a}, {b})",
            # Where STRPOS puts an empty text is not documented.
            bigquery=lambda a, b: (
                f"(CHAR_LENGTH({b}) <= CHAR_LENGTH({a}) AND (STRPOS({a}, {b}) > 0 OR CHAR_LENGTH({b}) = 0))"
            ),
        ),
    ),
    Function("year", _fixed([_DAY], "int"), "year(date or timestamp)", _part("year")),
    Function("month", _fixed([_DAY], "int"), "month(date or timestamp)", _part("month")),
    Function("day", _fixed([_DAY], "int"), "day(date or timestamp)", _part("day")),
    Function("hour", _fixed([_TIMESTAMP], "int"), "hour(timestamp)", _part("hour")),
    Function("minute", _fixed([_TIMESTAMP], "int"), "minute(timestamp)", _part("minute")),
    Function(
        "weekday", _fixed([_DAY], "int"), "weekday(date or timestamp)",
        {
            "spark": lambda a: f"CAST(weekday({a}) AS BIGINT)",
            "duckdb": lambda a: f"(CAST(isodow({a}) AS BIGINT) - 1)",
            "bigquery": lambda a: f"MOD(EXTRACT(DAYOFWEEK FROM {a}) + 5, 7)",
        },
    ),
    Function("date", _fixed([_DAY], "date"), "date(timestamp)", _each(lambda a: f"CAST({a} AS DATE)")),
    Function(
        "days_between", _fixed([_DATE] * 2, "int"), "days_between(earlier date, later date)",
        {
            "spark": lambda a, b: f"CAST(datediff({b}, {a}) AS BIGINT)",
            "duckdb": lambda a, b: f"date_diff('day', {a}, {b})",
            "bigquery": lambda a, b: f"DATE_DIFF({b}, {a}, DAY)",
        },
    ),
    Function(
        "hours_between", _fixed([_TIMESTAMP] * 2, "double"), "hours_between(earlier timestamp, later timestamp)",
        {
            "spark": lambda a, b: (
                f"((unix_micros(CAST({b} AS TIMESTAMP)) - unix_micros(CAST({a} AS TIMESTAMP))) / 3.6e9D)"
            ),
            "duckdb": lambda a, b: f"(CAST(epoch_us({b}) - epoch_us({a}) AS DOUBLE) / 3.6e9)",
            "bigquery": lambda a, b: f"(CAST(DATETIME_DIFF({b}, {a}, MICROSECOND) AS FLOAT64) / 3.6e9)",
        },
    ),
]  # fmt: skip

FUNCTIONS: dict[str, Function] = {function.name: function for function in _TABLE}

#: Names that are written as operators or words and cannot be called.
_OPERATORS = frozenset(
    {"add", "subtract", "multiply", "divide", "negate", "eq", "ne", "lt", "le", "gt", "ge", "is_null"}
)


def lookup(name: str) -> Function:
    """The function of a name.

    :raises ExpressionError: when the language has none of that name; the message lists what there is.
    """
    function = FUNCTIONS.get(name)
    if function is None:
        callable_names = sorted(set(FUNCTIONS) - _OPERATORS - {"and", "or", "not", "in", "case"})
        raise ExpressionError(
            f"there is no function {name}",
            expected=", ".join(callable_names),
            found=name,
            todo=did_you_mean(name, callable_names),
        )
    return function
