"""A checksum of rows that does not depend on their order, computed alike by the lake and by every warehouse.

A row becomes one text, column by column: NULL is ``-``, a text is its length and itself, a number its decimal digits,
a moment its digits to the microsecond. The MD5 of that text (RFC 1321) is cut into three numbers of 28 bits, and each
is summed over the rows. Sums do not care for order, and unlike XOR they see a row that is there twice. 28 bits keep
the sum of 34 billion rows inside 64 bits. MD5 guards against loss and mix-ups here, not against forgery.

Engines print doubles differently, so a double is taken apart by arithmetic that IEEE 754 defines to the bit: its whole
part, and its fraction in two steps of 52 bits. Values that differ by less than 2**-104 (5e-32) count as equal, and so
do 0 and -0. From 2**62 on, where every double is whole, it is scaled by 2**-62 first; from 2**124 on (2e37) only its
sign counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from airflow_provider_sml.ml.expressions import Type, physical

Engine = Literal["duckdb", "bigquery", "redshift"]

_PARTS = 3
_DIGITS = 7
_STEP, _HUGE, _HUGEST = 2.0**52, 2.0**62, 2.0**124


@dataclass(frozen=True)
class Tally:
    """What rows come to.

    :param rows: how many.
    :param sums: the sums of the three parts of their hashes.
    """

    rows: int
    sums: tuple[int, ...]

    @property
    def checksum(self) -> str:
        """The sums as one text."""
        return "-".join(f"{part:x}" for part in self.sums)


@dataclass(frozen=True)
class _Syntax:
    """How an engine writes what is not the same everywhere."""

    quote: str
    text: str
    whole: str
    double: str
    moment: Callable[[str], str]
    day: Callable[[str], str]
    not_a_number: Callable[[str], str]
    md5: Callable[[str], str]
    unhex: Callable[[str], str]
    join: Callable[[Sequence[str]], str] = " || '|' || ".join


_SYNTAX: dict[Engine, _Syntax] = {
    "duckdb": _Syntax(
        quote='"', text="VARCHAR", whole="BIGINT", double="DOUBLE",
        moment=lambda x: f"strftime({x}, '%Y-%m-%d %H:%M:%S.%f')",
        day=lambda x: f"strftime({x}, '%Y-%m-%d')",
        not_a_number=lambda x: f"isnan({x})",
        md5=lambda x: f"md5({x})",
        unhex=lambda x: f"CAST('0x' || {x} AS BIGINT)",
    ),
    "bigquery": _Syntax(
        quote="`", text="STRING", whole="INT64", double="FLOAT64",
        moment=lambda x: f"FORMAT_DATETIME('%Y-%m-%d %H:%M:%E6S', {x})",
        day=lambda x: f"FORMAT_DATE('%Y-%m-%d', {x})",
        not_a_number=lambda x: f"IS_NAN({x})",
        md5=lambda x: f"TO_HEX(MD5({x}))",
        unhex=lambda x: f"CAST('0x' || {x} AS INT64)",
        join=lambda parts: f"""CONCAT({", '|', ".join(parts)})""",
    ),
    "redshift": _Syntax(
        quote='"', text="VARCHAR", whole="BIGINT", double="DOUBLE PRECISION",
        moment=lambda x: f"to_char({x}, 'YYYY-MM-DD HH24:MI:SS.US')",
        day=lambda x: f"to_char({x}, 'YYYY-MM-DD')",
        not_a_number=lambda x: f"({x} = CAST('NaN' AS DOUBLE PRECISION))",
        md5=lambda x: f"md5({x})",
        unhex=lambda x: f"strtol({x}, 16)",
    ),
}  # fmt: skip


def tally_sql(columns: Sequence[tuple[str, Type]], engine: Engine, source: str) -> str:
    """A query whose one row is the number of rows (``row_count``) and the sums (``sum_0`` and so on) of ``source``.

    :param columns: names and types, in the order that both sides agree on.
    :param engine: whose SQL.
    :param source: what follows FROM: a table, with or without WHERE.
    """
    syntax = _SYNTAX[engine]
    named = [(f"{syntax.quote}{physical(name)}{syntax.quote}", kind) for name, kind in columns]
    row = syntax.join([_text(name, kind, number, syntax) for number, (name, kind) in enumerate(named)])
    doubles = [(number, name) for number, (name, kind) in enumerate(named) if kind == "double"]
    # In two layers, because each step is used more than once in the next.
    sizes = "".join(f", {_size(name, syntax)} AS size_{number}" for number, name in doubles)
    step = f"CAST({_STEP!r} AS {syntax.double})"
    fractions = "".join(f", (size_{n} - floor(size_{n})) * {step} AS fraction_{n}" for n, _ in doubles)
    carried = ", ".join(name for name, _ in named)
    for layer in (sizes, fractions):
        source = f"(SELECT {carried}{layer} FROM {source}) AS layer" if layer else source
        carried += "".join(f", size_{number}" for number, _ in doubles)
    parts = [syntax.unhex(f"substr(row_hash, {1 + number * _DIGITS}, {_DIGITS})") for number in range(_PARTS)]
    sums = ", ".join(f"coalesce(sum({part}), 0) AS sum_{number}" for number, part in enumerate(parts))
    return f"SELECT count(*) AS row_count, {sums} FROM (SELECT {syntax.md5(row)} AS row_hash FROM {source}) AS hashed"


def same_sql(tally: Tally) -> str:
    """Whether the one row of :func:`tally_sql` is this tally."""
    sums = (f"sum_{number} = {part}" for number, part in enumerate(tally.sums))
    return " AND ".join([f"row_count = {tally.rows}", *sums])


def read_tally(row: Sequence[int | Decimal]) -> Tally:
    """The tally in the one row of :func:`tally_sql`, as a client gave it."""
    return Tally(int(row[0]), tuple(int(part) for part in row[1:]))


def _text(x: str, kind: Type, number: int, syntax: _Syntax) -> str:
    """A column as text; NULL is ``-``."""
    written = {
        "int": lambda: f"CAST({x} AS {syntax.text})",
        "string": lambda: f"CAST(length({x}) AS {syntax.text}) || ':' || {x}",
        "boolean": lambda: f"CASE WHEN {x} THEN 't' ELSE 'f' END",
        "date": lambda: syntax.day(x),
        "timestamp": lambda: syntax.moment(x),
        "double": lambda: _digits(x, number, syntax),
    }[kind]()
    return f"CASE WHEN {x} IS NULL THEN '-' ELSE {written} END"


def _size(x: str, syntax: _Syntax) -> str:
    """What a double's digits are taken from: its size, scaled down where it is huge, NULL where it has no digits."""
    huge, hugest, scale = (f"CAST({value!r} AS {syntax.double})" for value in (_HUGE, _HUGEST, 1 / _HUGE))
    return (
        f"CASE WHEN {syntax.not_a_number(x)} THEN NULL WHEN abs({x}) < {huge} THEN abs({x}) "
        f"WHEN abs({x}) < {hugest} THEN abs({x}) * {scale} END"
    )


def _digits(x: str, number: int, syntax: _Syntax) -> str:
    step, huge = (f"CAST({value!r} AS {syntax.double})" for value in (_STEP, _HUGE))
    size, fraction = f"size_{number}", f"fraction_{number}"
    parts = (f"floor({size})", f"floor({fraction})", f"floor(({fraction} - floor({fraction})) * {step})")
    digits = " || '.' || ".join(f"CAST(CAST({part} AS {syntax.whole}) AS {syntax.text})" for part in parts)
    return (
        f"CASE WHEN {syntax.not_a_number(x)} THEN 'n' WHEN {x} < 0 THEN '-' ELSE '+' END || "
        f"CASE WHEN {size} IS NULL THEN 'H' WHEN abs({x}) < {huge} THEN {digits} ELSE 'h' || {digits} END"
    )
