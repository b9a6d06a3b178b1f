"""Which rows of the training window a sample keeps, as SQL that means the same in Spark, DuckDB and BigQuery.

A row or an entity is kept by a hash of its own values, never by its place in a file, so the same rows are kept every
day, by every engine and for every order of the data, and a higher rate keeps all that a lower one kept. The hash is
``substr(md5(seed|value|value...), 1, 8)``: eight hexadecimal digits, compared as text.

========== ==============================================================================================
method     keeps of the training window
========== ==============================================================================================
all        every row
uniform    each row with the chance ``rate``, by the hash of its key
hash       each entity (``by``) whole, with the chance ``rate``
stratified of each stratum (``by``) exactly ``round(rate * rows)`` rows, at least one: those of lowest hash
decay      as uniform, and weighs a row by ``0.5 ** (age / half_life)``, its age counted from the last day
negatives  every row with label 1, and those with label 0 with the chance ``rate``
reservoir  exactly ``size`` rows of the stream, each set of rows as likely as any other
========== ==============================================================================================
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.contract.dataset import LABEL, PARTITION
from airflow_provider_sml.ml.expressions import Dialect, identifier

METHODS = ("all", "uniform", "hash", "stratified", "decay", "negatives", "reservoir")
#: Column that holds a row's weight, where the method gives weights.
WEIGHT = "sample_weight"
_TEXT: dict[str, str] = {"duckdb": "VARCHAR"}
_MD5: dict[str, str] = {"bigquery": "to_hex(md5({}))"}


@dataclass(frozen=True)
class Method:
    """How the training rows are chosen.

    :param name: one of ``METHODS``.
    :param by: columns that name an entity (``hash``) or a stratum (``stratified``).
    :param key: columns that name a row; for every method that keeps single rows.
    :param rate: share to keep, above 0 to 1.
    :param size: rows to keep, for ``reservoir``.
    :param half_life: days after which a row weighs half, for ``decay``.
    :param seed: another seed keeps other rows.
    """

    name: str = "hash"
    by: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    rate: float = 1.0
    size: int | None = None
    half_life: float | None = None
    seed: int = 7

    @property
    def recalibration(self) -> float:
        """What a model's odds must be multiplied by to be those of the whole population.

        ``w = keep_rate_negative / keep_rate_positive``: a model that saw only this share of the negatives finds the
        odds of a positive ``1 / w`` times too high (Elkan 2001, "The Foundations of Cost-Sensitive Learning",
        theorem 2; Dal Pozzolo et al. 2015, "Calibrating Probability with Undersampling", equation 4).
        """
        return self.rate if self.name == "negatives" else 1.0

    def check(self, columns: Sequence[str]) -> None:
        """Refuse settings that do not fit together or the table.

        :param columns: of the table.
        :raises ConfigurationError: when they do not.
        """
        if self.name not in METHODS:
            raise ConfigurationError(
                "the sampling method is unknown", expected=f"one of {', '.join(METHODS)}", found=self.name
            )
        if not 0 < self.rate <= 1:
            raise ConfigurationError("the sampling rate is no share", expected="above 0 and at most 1", found=self.rate)
        if self.name in ("all", "reservoir") and self.rate != 1:
            raise ConfigurationError(f"method {self.name} takes no rate", expected="no rate", found=self.rate)
        if self.name == "reservoir" and (self.size is None or self.size < 1):
            raise ConfigurationError("method reservoir keeps a number of rows", expected="size: rows", found=self.size)
        if self.name == "decay" and (self.half_life is None or self.half_life <= 0):
            raise ConfigurationError(
                "method decay weighs rows by their age", expected="half_life: days, above 0", found=self.half_life
            )
        for what, names, methods in (
            ("by", self.by, ("hash", "stratified")),
            ("key", self.key, ("uniform", "stratified", "decay", "negatives")),
        ):
            unknown = [name for name in names if name not in columns]
            if unknown or (self.name in methods and not names and self.rate < 1):
                raise ConfigurationError(
                    f"method {self.name} needs {what}: columns of the table",
                    expected=f"{what}: some of {', '.join(columns)}",
                    found=unknown or "none",
                )

    def keep(self, dialect: Dialect = "duckdb") -> str:
        """SQL that is true for the rows to keep; ``stratified`` needs ``order`` besides."""
        if self.name == "negatives":
            return f"({LABEL} = 1 OR {keep_sql(self.key, self.rate, self.seed, dialect)})"
        if self.name == "hash":
            return keep_sql(self.by, self.rate, self.seed, dialect)
        if self.name in ("uniform", "decay"):
            return keep_sql(self.key, self.rate, self.seed, dialect)
        return "TRUE"

    def quota(self, dialect: Dialect = "duckdb") -> str | None:
        """SQL of a window condition (``QUALIFY``) that keeps the exact quota of each stratum; None where none is."""
        if self.name != "stratified" or self.rate >= 1:
            return None
        stratum = ", ".join(identifier(name, dialect) for name in self.by)
        order = ", ".join([hash_sql(self.key, self.seed, dialect), *(identifier(n, dialect) for n in self.key)])
        rows = f"greatest(1, round({self.rate!r} * count(*) OVER (PARTITION BY {stratum})))"
        return f"row_number() OVER (PARTITION BY {stratum} ORDER BY {order}) <= {rows}"

    def weight(self, last: dt.date) -> str | None:
        """SQL of a row's weight, for DuckDB; None where all weigh the same.

        :param last: last day of the training window.
        """
        if self.name != "decay":
            return None
        return f"power(0.5, date_diff('day', {PARTITION}, DATE '{last}') / {float(self.half_life or 1)!r})"

    def describe(self) -> dict[str, Any]:
        """What decides the rows, as JSON."""
        chosen: dict[str, Any] = {"method": self.name, "rate": self.rate, "seed": self.seed, "by": list(self.by)}
        chosen |= {"key": list(self.key)} if self.key else {}
        chosen |= {"size": self.size} if self.size is not None else {}
        return chosen | ({"half_life": self.half_life} if self.half_life is not None else {})


def hash_sql(by: Sequence[str], seed: int | str, dialect: Dialect = "duckdb") -> str:
    """SQL of the hash of some columns: eight hexadecimal digits, the same in every engine.

    :param by: columns; NULL counts as an empty text.
    :param seed: another seed gives other hashes.
    :param dialect: of the engine.
    """
    kind = _TEXT.get(dialect, "STRING")
    parts = [f"coalesce(CAST({identifier(name, dialect)} AS {kind}), '')" for name in by]
    entity = " || '|' || ".join([f"'{seed}'", *parts])
    return f"substr({_MD5.get(dialect, 'md5({})').format(entity)}, 1, 8)"


def keep_sql(by: Sequence[str], rate: float, seed: int, dialect: Dialect = "duckdb") -> str:
    """SQL that is true for the rows to keep.

    :param by: columns whose values name a row or an entity.
    :param rate: share to keep, 0 to 1.
    :param seed: another seed keeps others.
    :param dialect: of the engine.
    """
    limit = round(rate * 2**32)
    return "TRUE" if limit >= 2**32 else f"{hash_sql(by, seed, dialect)} < '{limit:08x}'"
