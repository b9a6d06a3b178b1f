"""A day's scores in bins of equal width of their log-odds: small, mergeable, enough for calibration and estimates.

A month is the sum of its days. Bins of the log-odds tell 0.001 from 0.0015 as well as 0.5 from 0.6, so that rare labels
have bins too; scores beyond 1 in 1.2 million share the outermost ones. Each bin holds the sum of its scores beside
their number, so a bin's mean is exact. What is lost is the order of scores within a bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

BINS = 2048
#: Log-odds of the outermost bins' inner edges.
LIMIT = 14.0
_SMALLEST = 1e-15


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Natural logarithm of the odds; scores are kept 1e-15 away from 0 and 1.

    :param scores: shape (n,), 0 to 1.
    """
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def probability(odds: np.ndarray) -> np.ndarray:
    """What ``log_odds`` undoes.

    :param odds: log-odds, shape (n,).
    """
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -40, 40))))


def bin_of(scores: np.ndarray) -> np.ndarray:
    """The bin of each score: whole numbers from 0 to ``BINS - 1``.

    :param scores: shape (n,), 0 to 1.
    """
    place = (log_odds(scores) + LIMIT) / (2 * LIMIT) * BINS
    return np.clip(np.floor(place), 0, BINS - 1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """Counts by bin, each a float64 array of shape (BINS,).

    :param rows: scores in the bin.
    :param score: their sum.
    :param labelled: those of them whose label is known.
    :param positive: those of them whose label is 1.
    """

    rows: np.ndarray
    score: np.ndarray
    labelled: np.ndarray
    positive: np.ndarray

    @classmethod
    def empty(cls) -> ScoreBins:
        """No scores."""
        return cls(*(np.zeros(BINS) for _ in range(4)))

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        rows: np.ndarray | None = None,
        labelled: np.ndarray | None = None,
        positive: np.ndarray | None = None,
    ) -> ScoreBins:
        """Count some scores.

        :param scores: shape (n,).
        :param rows: how many rows have each; one when None.
        :param labelled: how many of them have a label; none when None.
        :param positive: how many of them have the label 1; none when None.
        """
        ones = np.ones(len(scores)) if rows is None else rows
        place, none = bin_of(scores), np.zeros(len(scores))
        given = (ones, ones * scores, none if labelled is None else labelled, none if positive is None else positive)
        return cls(*(np.bincount(place, values, BINS) for values in given))

    def __add__(self, other: ScoreBins) -> ScoreBins:
        return ScoreBins(
            self.rows + other.rows,
            self.score + other.score,
            self.labelled + other.labelled,
            self.positive + other.positive,
        )

    @classmethod
    def total(cls, parts: list[ScoreBins]) -> ScoreBins:
        """All of some parts together."""
        return reduce(cls.__add__, parts, cls.empty())

    @property
    def used(self) -> np.ndarray:
        """Numbers of the bins that hold a score."""
        return np.flatnonzero(self.rows)

    def means(self) -> np.ndarray:
        """Mean score of each used bin."""
        return np.asarray(self.score[self.used] / self.rows[self.used])

    def to_json(self) -> dict[str, Any]:
        """The used bins alone."""
        used = self.used
        return {
            "bin": used.tolist(),
            "rows": self.rows[used].astype(int).tolist(),
            "score": self.score[used].tolist(),
            "labelled": self.labelled[used].astype(int).tolist(),
            "positive": self.positive[used].astype(int).tolist(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ScoreBins:
        """What ``to_json`` gave."""
        made = cls.empty()
        place = np.asarray(stored["bin"], np.int64)
        for name in ("rows", "score", "labelled", "positive"):
            getattr(made, name)[place] = stored[name]
        return made
