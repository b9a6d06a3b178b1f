"""How far two columns lie apart, from their profiles alone.

Each is the distance of the data that the sketch stands for: every value is moved by at most ``sketch.RELATIVE_ERROR``
of itself, so a Wasserstein distance is off by at most that share of the mean magnitude of both sides. Definitions are
those of scipy and Evidently 0.7, so that limits mean the same: Wasserstein over the reference's standard deviation (at
least 0.001), Jensen-Shannon as the distance with natural logarithms (0 to 0.83).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from airflow_provider_sml.ml.monitoring.profile import Categories
from airflow_provider_sml.ml.monitoring.sketch import Numbers

#: A share of nothing counts as this much in PSI, whose logarithm it would break.
FLOOR = 1e-4
#: Bins of equal share in the reference, for PSI and Jensen-Shannon of numbers.
BINS = 10
#: The category that those beyond the cap are taken for together.
REST = "\0rest"


def cumulated(one: Numbers, two: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of both sides, ascending, and the share of each side at or below them."""
    (a, m), (b, n) = one.support, two.support
    values = np.unique(np.concatenate([a, b]))
    shares = [np.append(0, np.cumsum(c))[np.searchsorted(v, values, "right")] / c.sum() for v, c in ((a, m), (b, n))]
    return values, shares[0], shares[1]


def kolmogorov_smirnov(one: Numbers, two: Numbers) -> float:
    """The largest difference of the two shares, 0 to 1."""
    _, first, second = cumulated(one, two)
    return float(np.abs(first - second).max())


def wasserstein(reference: Numbers, current: Numbers) -> float:
    """The area between the two shares, in standard deviations of the reference; infinities are left out."""
    values, first, second = cumulated(_finite(reference), _finite(current))
    area = float((np.abs(first - second)[:-1] * np.diff(values)).sum())
    return area / max(math.sqrt(reference.variance), 0.001)


def shares(reference: Numbers | Categories, current: Numbers | Categories) -> tuple[np.ndarray, np.ndarray]:
    """Counts of both sides in the same bins: the categories, or the reference's tenths.

    :returns: two arrays of the same length.
    """
    if isinstance(reference, Categories) and isinstance(current, Categories):
        names = sorted(set(reference.counts) | set(current.counts))
        sides = [[*(side.counts.get(name, 0) for name in names), side.rest] for side in (reference, current)]
        return np.array(sides[0], float), np.array(sides[1], float)
    assert isinstance(reference, Numbers) and isinstance(current, Numbers)
    edges = np.unique([reference.quantile(n / BINS) for n in range(1, BINS)])
    found = []
    for side in (reference, current):
        values, counts = side.support
        found.append(np.bincount(np.searchsorted(edges, values, "left"), counts, len(edges) + 1))
    return found[0], found[1]


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of counts in the same bins, shares of at least ``FLOOR``: ``sum((q-p) ln(q/p))``."""
    p, q = (np.maximum(side / side.sum(), FLOOR) for side in (reference, current))
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: np.ndarray, current: np.ndarray) -> float:
    """Jensen-Shannon distance of counts in the same bins, natural logarithm."""
    p, q = reference / reference.sum(), current / current.sum()
    middle = (p + q) / 2

    def against(side: np.ndarray) -> float:
        at = side > 0
        return float((side[at] * np.log(side[at] / middle[at])).sum())

    return math.sqrt(max(0.0, (against(p) + against(q)) / 2))


def chi_square(reference: np.ndarray, current: np.ndarray) -> tuple[float, float, float]:
    """Pearson's test that counts of both sides come from one distribution.

    :returns: the statistic, its p-value, and the effect size Cramer's V = ``sqrt(statistic / n)`` (two rows), 0 to 1
        (Cramer, "Mathematical Methods of Statistics", 1946, section 21.9).
    """
    from scipy.stats import chi2

    table = np.stack([reference, current])
    table = table[:, table.sum(axis=0) > 0]
    total = table.sum()
    if table.shape[1] < 2:
        return 0.0, 1.0, 0.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    statistic = float((np.square(table - expected) / expected).sum())
    return statistic, float(chi2.sf(statistic, table.shape[1] - 1)), math.sqrt(statistic / total)


def ks_p_value(statistic: float, one: int, two: int) -> float:
    """The asymptotic p-value of the two-sided test, by rows of each side."""
    from scipy.stats import kstwobign

    return float(kstwobign.sf(statistic * math.sqrt(one * two / (one + two))))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at most q are discoveries of which a share q at most is false, on average.

    Benjamini and Hochberg, "Controlling the false discovery rate", J. R. Statist. Soc. B 57, 1995, section 3.
    """
    if not len(p_values):
        return []
    values = np.asarray(p_values, float)
    order = np.argsort(-values, kind="stable")
    ranks = np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum.accumulate(np.minimum(values[order] * len(values) / ranks, 1))
    return [float(value) for value in adjusted]


def surprise(distance: float, nights: Sequence[float]) -> float:
    """The p-value of a distance among those of ordinary nights, whose logarithms are taken as normal.

    Rows of one night share its weather and its crowds, so a test by rows finds every night significant. What a night
    may differ by is what nights do differ by: median and median absolute deviation of the logarithms (consistent for
    a normal one with the factor 1.4826), so that a few storms among the nights do not widen it.

    :param distance: of the night.
    :param nights: of other nights to the same reference; seven at least.
    """
    from scipy.stats import norm

    logs = np.log(np.maximum(np.asarray(nights, float), 1e-6))
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), 0.05)
    return float(norm.sf((math.log(max(distance, 1e-6)) - middle) / spread))


def _finite(side: Numbers) -> Numbers:
    return Numbers(side.keys, side.counts, side.mean, side.m2, side.low, side.high)
