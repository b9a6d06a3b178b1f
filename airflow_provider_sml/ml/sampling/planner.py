"""The planner of the sampling rate: how few rows train a model that is as good as one trained on all of them.

Models are trained on growing samples (2, 4, 8 ... percent) of the first days of the training window and measured on its
last days, which no sample holds; the test window is never touched. A power law ``AUC(n) = a - b * n ** -c`` is fitted
to what was measured (Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically", for the form), and says
what all rows would bring. What is not known of that loss has two sources, and the curve is fitted again and again to
values that are drawn from both: the measured rows, by a paired bootstrap, and the drawn samples, whose models differ by
chance. The smallest rate whose expected loss, the mean over those fits, is within the tolerance is chosen; where there
is none, all rows are used, and the plan says so. No larger sample is tried once a loss is within it beyond doubt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.chart import Series, line_chart
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.training import metrics

RATES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
#: Small samples vary most and cost least, so they are drawn with several seeds.
SEEDS = {0.02: 3, 0.04: 3, 0.08: 2}
#: With fewer points a curve of three numbers says nothing.
FEWEST = 4
_EXPONENTS = np.linspace(0.05, 1.5, 30)

Measure = Callable[[float, int], "Trial"]


@dataclass(frozen=True)
class Trial:
    """One model of the curve.

    :param rows: rows it was trained on.
    :param seconds: that training took.
    :param labels: of the measured rows, shape (n,).
    :param scores: of the measured rows, shape (n,).
    :param window_rows: rows that this rate keeps of the whole training window; ``rows`` where nothing was held out.
    """

    rows: int
    seconds: float
    labels: np.ndarray
    scores: np.ndarray
    window_rows: int | None = None


@dataclass(frozen=True)
class Point:
    """One rate of the curve.

    :param rate: share of the rows.
    :param rows: trained on, the mean of the seeds.
    :param auc: on the measured rows, the mean of the seeds.
    :param low: lower end of its 95 % interval.
    :param high: upper end.
    :param loss: AUC expected to be lost against all rows, the mean over the fitted curves.
    :param loss_low: lower end of its 95 % interval.
    :param loss_high: upper end.
    :param seconds: that the trainings took.
    """

    rate: float
    rows: float
    auc: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What the planner found.

    :param rate: the rate to use; 1.0 where none was good enough.
    :param found: whether a rate below 1 was good enough.
    :param tolerance: the loss of AUC that was allowed.
    :param population: rows of the whole window.
    :param points: the curve, by rising rate.
    :param exponent: ``c`` of the fitted curve.
    :param seconds: that all trainings took.
    :param full_seconds: that training on all rows would take, by the largest sample's speed.
    """

    rate: float
    found: bool
    tolerance: float
    population: int
    points: tuple[Point, ...]
    exponent: float
    seconds: float
    full_seconds: float

    @property
    def chosen(self) -> Point | None:
        """The point of the chosen rate; None where all rows are used."""
        return next((point for point in self.points if point.rate == self.rate), None)

    @property
    def total_seconds(self) -> float:
        """What the plan and one training at its rate take together, to hold against ``full_seconds``."""
        return self.seconds + self.rate * self.full_seconds

    def write(self, folder: Path) -> None:
        """Write ``plan.json`` and ``plan.html`` with the curve as a picture."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(asdict(self) | {"total_seconds": self.total_seconds}, indent=1))
        (folder / "plan.html").write_text(_page(self))


def plan_rate(
    measure: Measure,
    population: int,
    tolerance: float = 0.002,
    rates: Sequence[float] = RATES,
    log: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Find the smallest rate that is good enough.

    :param measure: trains on a sample of a rate and a seed, and scores the rows to measure on, always the same ones.
    :param population: rows of the whole training window.
    :param tolerance: AUC that may be lost against all rows.
    :param rates: to try, rising; the search ends at the first that is good enough beyond doubt.
    :param log: takes a line for each rate.
    :raises ConfigurationError: when the rates cannot carry a curve, or nothing can be measured.
    """
    if len(rates) < FEWEST or list(rates) != sorted(set(rates)) or not 0 < rates[0] <= rates[-1] <= 1:
        raise ConfigurationError(
            "the planner needs a curve",
            expected=f"at least {FEWEST} rising rates above 0 and up to 1",
            found=list(rates),
        )
    trials: dict[float, list[Trial]] = {}
    points: list[Point] = []
    exponent = float("nan")
    for rate in rates:
        trials[rate] = [measure(rate, seed) for seed in range(SEEDS.get(rate, 1))]
        points, exponent = _curve(trials, population)
        last = points[-1]
        known = "" if len(points) < FEWEST else f", loss {last.loss:.4f} [{last.loss_low:.4f}, {last.loss_high:.4f}]"
        log(f"{rate:.0%}: {last.rows:,.0f} rows, AUC {last.auc:.4f}{known}, {last.seconds:.1f} s")
        if len(points) >= FEWEST and last.loss_high <= tolerance:
            break
    good = [point for point in points if point.loss <= tolerance and point.rate < 1]
    seconds = sum(point.seconds for point in points)
    largest = trials[points[-1].rate][0]
    full = largest.seconds * population / max(largest.rows, 1)
    rate = good[0].rate if good else 1.0
    return Plan(rate, bool(good), tolerance, population, tuple(points), exponent, seconds, full)


def fit_curve(rows: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Fit ``value = a - b * rows ** -c`` by least squares, weighted by the square root of the rows.

    :param rows: shape (n,), above 0.
    :param values: shape (n,).
    :returns: a, b and c, with b at least 0.
    """
    weights = np.sqrt(np.sqrt(rows))
    best: tuple[float, float, float, float] = (np.inf, float(values.mean()), 0.0, 1.0)
    for c in _EXPONENTS:
        design = np.column_stack([np.ones(len(rows)), -(rows**-c)]) * weights[:, None]
        (a, b), *_ = np.linalg.lstsq(design, values * weights, rcond=None)
        if b < 0:
            a, b = np.average(values, weights=weights**2), 0.0
        error = float(np.sum((weights * (values - a + b * rows**-c)) ** 2))
        if error < best[0]:
            best = (error, float(a), float(b), float(c))
    return best[1:]


def _curve(trials: Mapping[float, list[Trial]], population: int, repeats: int = 60) -> tuple[list[Point], float]:
    """The points with their intervals, and the exponent of the curve."""
    rates = list(trials)
    rows = np.array([np.mean([trial.rows for trial in trials[rate]]) for rate in rates])
    window_rows = np.array([np.mean([trial.window_rows or trial.rows for trial in trials[rate]]) for rate in rates])
    labels = trials[rates[0]][0].labels
    generator = np.random.default_rng(7)
    draws: list[np.ndarray] = [np.ones(len(labels))]
    draws += [
        np.bincount(generator.integers(0, len(labels), len(labels)), minlength=len(labels)) for _ in range(repeats)
    ]
    aucs = np.array(
        [[np.mean([metrics.auc(labels, t.scores, w) for t in trials[rate]]) for rate in rates] for w in draws]
    )
    if not np.isfinite(aucs[0]).all():
        raise ConfigurationError(
            "the planner cannot measure",
            expected="rows of both classes in the last days of the training window",
            found=f"{int(labels.sum()):,} positives among {len(labels):,}",
            todo="train on a longer window",
        )
    losses, exponent = np.full_like(aucs, np.nan), float("nan")
    if len(rates) >= FEWEST:
        values_drawn = aucs.copy()
        values_drawn[1:] += generator.normal(size=(repeats, len(rates))) * _chance(trials, rows)
        for number, values in enumerate(values_drawn):
            _, b, c = fit_curve(rows, values)
            losses[number] = b * (window_rows**-c - float(population) ** -c)
            exponent = c if number == 0 else exponent
    auc_ends = np.nanpercentile(aucs[1:], [2.5, 97.5], axis=0)
    loss_ends = np.percentile(losses[1:], [2.5, 97.5], axis=0)
    points = [
        Point(
            rate, float(rows[n]), float(aucs[0, n]), float(auc_ends[0, n]), float(auc_ends[1, n]),
            float(losses[1:, n].mean()), float(loss_ends[0, n]), float(loss_ends[1, n]),
            sum(trial.seconds for trial in trials[rate]),
        )
        for n, rate in enumerate(rates)
    ]  # fmt: skip
    return points, exponent


def _chance(trials: Mapping[float, list[Trial]], rows: np.ndarray) -> np.ndarray:
    """How far the mean AUC of a rate's models lies from that of all models of the rate, as a standard deviation.

    The variance of one model is taken to fall as ``1 / rows``; its factor is pooled over the rates with several models
    (the unbiased pooled estimate of one variance from several groups).

    :param trials: by rate.
    :param rows: of each rate, shape (rates,).
    :returns: shape (rates,).
    """
    squares, freedom = 0.0, 0
    for count, models in zip(rows, trials.values(), strict=True):
        aucs = np.array([metrics.auc(model.labels, model.scores) for model in models])
        squares += float(count * ((aucs - aucs.mean()) ** 2).sum())
        freedom += len(models) - 1
    factor = squares / freedom if freedom else 0.0
    return np.sqrt(factor / (rows * np.array([len(models) for models in trials.values()])))


def _page(plan: Plan) -> str:
    page = Page("How many rows to train on")
    if plan.chosen:
        p = plan.chosen
        page.text(
            f"{plan.rate:.0%} of the rows: {p.loss:.4f} of AUC are expected to be lost against all "
            f"{plan.population:,} rows, 95 % interval {p.loss_low:.4f} to {p.loss_high:.4f}; allowed were "
            f"{plan.tolerance:g}.",
            "good",
        )
    else:
        page.text(f"No rate loses less than {plan.tolerance:g} of AUC; all {plan.population:,} rows are used.", "bad")
    page.text(
        f"Planning took {plan.seconds:.1f} s of training; one training on all rows would take about "
        f"{plan.full_seconds:.1f} s. The plan and one training at its rate together: {plan.total_seconds:.1f} s, "
        f"{plan.total_seconds / plan.full_seconds if plan.full_seconds else 1:.0%} of it; each later training at that "
        f"rate: {plan.rate:.0%}."
    )
    measured = Series(
        "AUC on later rows", [(p.rows, p.auc) for p in plan.points], [(p.low, p.high) for p in plan.points], dots=True
    )
    page.figure(line_chart([measured], "training rows", "AUC", log_x=True))
    page.table(
        ["Rate", "Rows", "AUC", "Expected loss", "95 % interval", "Seconds"],
        [
            (
                f"{p.rate:.0%}",
                f"{p.rows:,.0f}",
                p.auc,
                p.loss,
                f"{p.loss_low:.4f} to {p.loss_high:.4f}",
                f"{p.seconds:.1f}",
            )
            for p in plan.points
        ],
    )
    return page.render()
