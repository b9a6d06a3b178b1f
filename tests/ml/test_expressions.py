"""The language of features: what it takes, what it refuses, and that every engine gives the same."""

import datetime as dt

import pytest

from airflow_provider_sml.errors import ExpressionError
from airflow_provider_sml.ml.expressions import compile
from airflow_provider_sml.ml.expressions.vectors import Vector

COLUMNS = {
    "i": "int",
    "x": "double",
    "s": "string",
    "b": "boolean",
    "t": "timestamp",
    "d": "date",
    "planes.year": "int",
}
ROW = {
    "i": [7, None],
    "x": [0.0, 4.0],
    "s": ["Ab c", None],
    "b": [True, None],
    "t": [dt.datetime(2013, 7, 1, 3, 30), None],
    "d": [dt.date(2012, 2, 29), None],
    "planes.year": [2000, 1999],
}


def evaluate(text):
    rows = {name: Vector.of(values, COLUMNS[name]) for name, values in ROW.items()}
    return compile(text, COLUMNS).evaluate(rows, size=2).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year(t) - planes.year", [13.0, None]),
        ("1 / x", [None, 0.25]),
        ("weekday(t)", [0, None]),
        ("hour(t) * 60 + minute(t)", [210.0, None]),
        ("i IN (1, 7)", [True, None]),
        ("NOT i BETWEEN 1 AND 7", [False, None]),
        ("b OR x > 1", [True, True]),
        ("coalesce(s, 'none')", ["Ab c", "none"]),
        ("CASE WHEN i > 5 THEN 'big' WHEN i IS NULL THEN 'none' END", ["big", "none"]),
        ("upper(substr(s, 1, 2)) || '!'", ["AB!", None]),
        ("days_between(d, date(t))", [488, None]),
        ("hours_between(timestamp '2013-07-01 00:00:00', t)", [3.5, None]),
        ("floor(-i / 2)", [-4.0, None]),
    ],
)
def test_meaning(text, expected):
    assert evaluate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("planes.yeer + 1", "did you mean planes.year?"),
        ("flor(x)", "did you mean floor?"),
        ("s + 1", "types do not fit"),
        ("x > ", "found: the end"),
        ("x ? 1", "cannot be read"),
        ("i IN (x)", "constant"),
        ("substr(s, 0, 1)", "substr"),
        ("NULL", "always NULL"),
    ],
)
def test_refusals_say_what_is_wrong(text, message):
    with pytest.raises(ExpressionError, match=message.replace("?", r"\?")):
        compile(text, COLUMNS)
