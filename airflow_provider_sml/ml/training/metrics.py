"""Measures of a binary classifier, with bootstrap intervals. Labels are 0 or 1, scores are probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half.

    :param labels: shape (n,).
    :param scores: shape (n,).
    :param weights: shape (n,); None for equal ones.
    :returns: 0 to 1; NaN when a class is missing.
    """
    return _Ranking(labels, scores).auc(weights)


class _Ranking:
    """Rows in the order of their scores, sorted once for all the weights that a bootstrap draws."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._positive = labels[self._order] == 1
        # Rows of one score share a group.
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(scores) else np.array([], int)

    def auc(self, weights: np.ndarray | None = None) -> float:
        weight = np.ones(len(self._order)) if weights is None else weights[self._order]
        if not len(weight):
            return float("nan")
        # A positive row beats all negative weight below its group and half of that in it.
        up = np.add.reduceat(np.where(self._positive, weight, 0.0), self._starts)
        down = np.add.reduceat(np.where(self._positive, 0.0, weight), self._starts)
        total = up.sum() * down.sum()
        if total == 0:
            return float("nan")
        below = np.cumsum(down) - down
        return float((up * (below + down / 2)).sum() / total)


def log_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean negative log likelihood; scores are kept 1e-15 away from 0 and 1."""
    return float(np.mean(_losses(labels, scores)))


def _losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, 1e-15, 1 - 1e-15)
    return np.asarray(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))


def brier(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean squared difference of score and label (Brier 1950)."""
    return float(np.mean((scores - labels) ** 2))


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> list[dict[str, Any]]:
    """Mean score and observed rate in bins of equal width; empty bins are left out."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    return [
        {
            "from": number / bins,
            "to": (number + 1) / bins,
            "rows": int(inside.sum()),
            "score": float(scores[inside].mean()),
            "rate": float(labels[inside].mean()),
        }
        for number in range(bins)
        if (inside := index == number).any()
    ]


def ece(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of score and observed rate over bins of equal width, weighted by
    their rows (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3)."""
    return sum(abs(b["score"] - b["rate"]) * b["rows"] for b in reliability(labels, scores, bins)) / len(labels)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap percentile interval."""

    value: float
    low: float
    high: float


def auc_interval(labels: np.ndarray, scores: np.ndarray, repeats: int = 200, seed: int = 7) -> Interval:
    """AUC with its bootstrap interval; rows are drawn with replacement, as multinomial weights.

    :param labels: shape (n,).
    :param scores: shape (n,).
    :param repeats: bootstrap draws.
    :param seed: of the draws.
    """
    ranking = _Ranking(labels, scores)
    return _interval(ranking.auc(), [ranking.auc(weights) for weights in _draws(len(labels), repeats, seed)])


#: The measures that have an interval.
MEASURES = ("auc", "log_loss", "brier", "ece")


class _Measured:
    """One model's scores of some rows, made ready for all the weights that a bootstrap draws."""

    _BINS = 10

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._ranking, self._apart = _Ranking(labels, scores), scores - labels
        self._losses, self._squares = _losses(labels, scores), (scores - labels) ** 2
        self._bins = np.minimum((scores * self._BINS).astype(int), self._BINS - 1)
        self.values = (
            self._ranking.auc(), log_loss(labels, scores), brier(labels, scores), ece(labels, scores, self._BINS)
        )  # fmt: skip

    def of(self, weights: np.ndarray) -> tuple[float, ...]:
        """AUC, log loss, Brier score and ECE of the rows in some weights, whose sum is the number of rows."""
        rows = len(weights)
        # A bin's weight times the distance of its means is the distance of its sums.
        apart = np.abs(np.bincount(self._bins, weights * self._apart, self._BINS)).sum() / rows
        means = float(weights @ self._losses) / rows, float(weights @ self._squares) / rows
        return self._ranking.auc(weights), *means, float(apart)


def values(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AUC, log loss, Brier score and ECE by name.

    :param labels: shape (n,).
    :param scores: shape (n,).
    """
    return dict(zip(MEASURES, _Measured(labels, scores).values, strict=True))


def intervals(labels: np.ndarray, scores: np.ndarray, repeats: int = 200, seed: int = 7) -> dict[str, Interval]:
    """AUC, log loss, Brier score and ECE, each with its bootstrap interval, all from the same draws.

    The ECE of a draw is larger than that of the rows on the average, because chance moves each bin's means apart; so
    its interval leans upward, and reaches down to the value at least.

    :param labels: shape (n,).
    :param scores: shape (n,).
    :param repeats: bootstrap draws.
    :param seed: of the draws.
    :returns: by name: ``auc``, ``log_loss``, ``brier``, ``ece``.
    """
    measured = _Measured(labels, scores)
    drawn = [measured.of(weights) for weights in _draws(len(labels), repeats, seed)]
    found = _named(measured.values, drawn)
    found["ece"] = replace(found["ece"], low=min(found["ece"].low, found["ece"].value))
    return found


def differences(
    labels: np.ndarray, scores: np.ndarray, others: np.ndarray, repeats: int = 200, seed: int = 7
) -> dict[str, Interval]:
    """How far two models' measures lie apart on the same rows, ``scores`` minus ``others``, by a paired bootstrap.

    Each draw measures both models on the same rows (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 8), so that what is hard for both cancels out, and most of what chance adds to both models' ECE.

    :param labels: shape (n,).
    :param scores: shape (n,).
    :param others: of the other model, shape (n,).
    :param repeats: bootstrap draws.
    :param seed: of the draws.
    :returns: by name, as ``intervals`` gives them.
    """
    ours, theirs = _Measured(labels, scores), _Measured(labels, others)
    drawn = [_minus(ours.of(weights), theirs.of(weights)) for weights in _draws(len(labels), repeats, seed)]
    return _named(_minus(ours.values, theirs.values), drawn)


def spread(
    labels: np.ndarray, scores: np.ndarray, others: np.ndarray, measure: str, repeats: int = 200, seed: int = 7
) -> tuple[float, float, float]:
    """How far two models lie apart in one measure on the same rows, with the paired bootstrap's standard error.

    The standard error is the standard deviation over the draws (Efron and Tibshirani 1993, algorithm 6.1).

    :param labels: shape (n,).
    :param scores: shape (n,).
    :param others: of the other model, shape (n,).
    :param measure: one of ``MEASURES``.
    :param repeats: bootstrap draws; one is held in memory at a time.
    :param seed: of the draws.
    :returns: the difference, its standard error, and the share of the draws in which the measure has a value.
    """
    which = MEASURES.index(measure)
    ours, theirs = _Measured(labels, scores), _Measured(labels, others)
    drawn = np.array(
        [ours.of(weights)[which] - theirs.of(weights)[which] for weights in _draws(len(labels), repeats, seed)]
    )
    valued = drawn[~np.isnan(drawn)]
    error = float(np.std(valued, ddof=1)) if len(valued) > 1 else float("nan")
    return ours.values[which] - theirs.values[which], error, len(valued) / repeats


def _minus(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(one - other for one, other in zip(ours, theirs, strict=True))


def _named(values: tuple[float, ...], drawn: list[tuple[float, ...]]) -> dict[str, Interval]:
    columns = zip(*drawn, strict=True)
    return {name: _interval(value, list(column)) for name, value, column in zip(MEASURES, values, columns, strict=True)}


def resampled(measure: Callable[..., float], *columns: np.ndarray, repeats: int = 200, seed: int = 7) -> Interval:
    """Any measure of some rows with its bootstrap interval. The rows themselves are drawn, because a function that
    somebody wrote may take no notice of weights.

    :param measure: takes the columns.
    :param columns: of shape (n,) each, such as labels and scores.
    :param repeats: bootstrap draws.
    :param seed: of the draws.
    """
    rows, generator = len(columns[0]), np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        chosen = generator.integers(0, rows, rows)
        drawn.append(measure(*(column[chosen] for column in columns)))
    return _interval(measure(*columns), drawn)


def lift(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> list[dict[str, Any]]:
    """What is found by taking the rows of the highest scores first, tenth by tenth.

    A tenth's lift is its label rate over the rate of all rows; the gain is the share of all positives found so far
    (Witten, Frank and Hall, "Data Mining", third edition, section 5.7, "Lift charts"). Rows of one score have no order
    among themselves, so each counts with the label rate of that score; a tenth may hold fractions of a positive.

    :param labels: shape (n,), of both classes.
    :param scores: shape (n,).
    :param bins: number of parts; as many as there are rows where that is less.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    expected = np.repeat(np.add.reduceat(labels[order].astype(float), starts) / sizes, sizes)
    overall, total, found, parts = float(labels.mean()), float(labels.sum()), 0.0, []
    for number, part in enumerate(np.array_split(np.arange(len(ordered)), min(bins, len(ordered)))):
        positives = float(expected[part].sum())
        found += positives
        parts.append(
            {
                "part": number + 1,
                "rows": len(part),
                "score_from": float(ordered[part[-1]]),
                "score_to": float(ordered[part[0]]),
                "positives": positives,
                "rate": positives / len(part),
                "lift": positives / len(part) / overall,
                "gain": found / total,
            }
        )
    return parts


def _draws(rows: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Weights one draw after the other: all at once would take gigabytes for a million rows."""
    generator = np.random.default_rng(seed)
    for _ in range(repeats):
        yield np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(float)


def _interval(value: float, drawn: list[float]) -> Interval:
    if np.isnan(drawn).all():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
