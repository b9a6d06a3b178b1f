"""The grammar of expressions: text to a tree. What the names mean is decided in ``functions``.

A recursive-descent parser of our own, because the language is closed and small, errors must name the place, and a
general SQL parser costs half a second at import, which every parse of a DAG file would pay.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

from airflow_provider_sml.errors import ExpressionError


@dataclass(frozen=True)
class Literal:
    """A constant; ``value`` is an int, float, str, bool, date, datetime or None."""

    value: Any


@dataclass(frozen=True)
class Column:
    """A column by name: ``distance``, or ``weather.visib`` for a joined one."""

    name: str


@dataclass(frozen=True)
class Call:
    """A function or an operator, under one name each."""

    function: str
    arguments: tuple[Node, ...]


Node = Literal | Column | Call

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<string>'(?:[^']|'')*')"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol><>|!=|<=|>=|\|\||[-+*/(),.<>=]))"
)
_COMPARISONS = {"=": "eq", "<>": "ne", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_RESERVED = {
    "and", "or", "not", "is", "in", "between", "case", "when", "then", "else", "end", "null", "true", "false",
}  # fmt: skip


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def parse(text: str) -> Node:
    """Parse one expression.

    :param text: the expression, such as ``year(time_hour) - planes.year``.
    :returns: its tree.
    :raises ExpressionError: when it is not of the grammar.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens(text)
        self.at = 0

    def _tokens(self, text: str) -> list[_Token]:
        tokens, position, text = [], 0, text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                rest = text[position:].lstrip()
                raise ExpressionError(
                    f"{text!r} cannot be read at {rest[:20]!r}",
                    expected="a column, a number, a 'text', a function or an operator",
                    found=repr(rest[:1]),
                )
            kind = str(match.lastgroup)
            token = match.group(kind)
            tokens.append(_Token(kind, token.lower() if kind == "name" and token.lower() in _RESERVED else token))
            position = match.end()
        tokens.append(_Token("end", "the end"))
        return tokens

    def parse(self) -> Node:
        node = self._or()
        if self._peek().kind != "end":
            raise self._unexpected("an operator or the end")
        return node

    def _peek(self) -> _Token:
        return self.tokens[self.at]

    def _take(self, *texts: str) -> str | None:
        token = self._peek()
        if token.kind in ("symbol", "name") and token.text in texts:
            self.at += 1
            return token.text
        return None

    def _need(self, text: str) -> None:
        if self._take(text) is None:
            raise self._unexpected(repr(text))

    def _unexpected(self, expected: str) -> ExpressionError:
        return ExpressionError(f"{self.text!r} is not an expression", expected=expected, found=self._peek().text)

    def _or(self) -> Node:
        node = self._and()
        while self._take("or"):
            node = Call("or", (node, self._and()))
        return node

    def _and(self) -> Node:
        node = self._not()
        while self._take("and"):
            node = Call("and", (node, self._not()))
        return node

    def _not(self) -> Node:
        return Call("not", (self._not(),)) if self._take("not") else self._predicate()

    def _predicate(self) -> Node:
        node = self._sum()
        if symbol := self._take(*_COMPARISONS):
            return Call(_COMPARISONS[symbol], (node, self._sum()))
        if self._take("is"):
            negated = self._take("not")
            self._need("null")
            test = Call("is_null", (node,))
            return Call("not", (test,)) if negated else test
        negated = self._take("not")
        test_node: Node
        if self._take("in"):
            self._need("(")
            choices = [self._sum()]
            while self._take(","):
                choices.append(self._sum())
            self._need(")")
            test_node = Call("in", (node, *choices))
        elif self._take("between"):
            low = self._sum()
            self._need("and")
            test_node = Call("and", (Call("ge", (node, low)), Call("le", (node, self._sum()))))
        elif negated:
            raise self._unexpected("IN or BETWEEN after NOT")
        else:
            return node
        return Call("not", (test_node,)) if negated else test_node

    def _sum(self) -> Node:
        node = self._product()
        while symbol := self._take("+", "-", "||"):
            node = Call({"+": "add", "-": "subtract", "||": "concat"}[symbol], (node, self._product()))
        return node

    def _product(self) -> Node:
        node = self._unary()
        while symbol := self._take("*", "/"):
            node = Call({"*": "multiply", "/": "divide"}[symbol], (node, self._unary()))
        return node

    def _unary(self) -> Node:
        if not self._take("-"):
            return self._primary()
        node = self._unary()
        if isinstance(node, Literal) and type(node.value) in (int, float):
            return Literal(-node.value)
        return Call("negate", (node,))

    def _primary(self) -> Node:
        token = self._peek()
        if self._take("("):
            node = self._or()
            self._need(")")
            return node
        if token.kind in ("number", "string"):
            self.at += 1
            return Literal(self._number(token.text) if token.kind == "number" else _unquote(token.text))
        if token.kind != "name":
            raise self._unexpected("a column, a constant or a function")
        if self._take("case"):
            return self._case()
        for word, value in (("null", None), ("true", True), ("false", False)):
            if self._take(word):
                return Literal(value)
        if token.text in _RESERVED:
            raise self._unexpected("a column, a constant or a function")
        self.at += 1
        follower = self._peek()
        if token.text.lower() in ("date", "timestamp") and follower.kind == "string":
            self.at += 1
            return Literal(self._moment(token.text.lower(), _unquote(follower.text)))
        if self._take("("):
            return Call(token.text.lower(), self._arguments())
        if self._take("."):
            member = self._peek()
            if member.kind != "name":
                raise self._unexpected(f"a column of {token.text}")
            self.at += 1
            return Column(f"{token.text}.{member.text}")
        return Column(token.text)

    def _arguments(self) -> tuple[Node, ...]:
        if self._take(")"):
            return ()
        arguments = [self._or()]
        while self._take(","):
            arguments.append(self._or())
        self._need(")")
        return tuple(arguments)

    def _case(self) -> Node:
        parts: list[Node] = []
        while self._take("when"):
            parts.append(self._or())
            self._need("then")
            parts.append(self._or())
        if not parts:
            raise self._unexpected("WHEN after CASE")
        parts.append(self._or() if self._take("else") else Literal(None))
        self._need("end")
        return Call("case", tuple(parts))

    def _number(self, text: str) -> int | float:
        if text.isdigit():
            value = int(text)
            if value >= 2**63:
                raise ExpressionError(
                    f"{text} is too large", expected="a whole number below 2**63", found=text, todo="write it as 1e19"
                )
            return value
        return float(text)

    def _moment(self, kind: str, text: str) -> dt.date | dt.datetime:
        try:
            if kind == "date":
                return dt.date.fromisoformat(text)
            moment = dt.datetime.fromisoformat(text)
        except ValueError:
            example = "date '2026-01-31'" if kind == "date" else "timestamp '2026-01-31 12:00:00'"
            raise ExpressionError(f"{text!r} is not a {kind}", expected=example, found=text) from None
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _unquote(text: str) -> str:
    return text[1:-1].replace("''", "'")
