"""What the scores of a day are probably worth before its labels are known, and how far such estimates were off.

Confidence-based performance estimation (CBPE; NannyML's documentation, "Estimation of Performance of the Monitored
Model"; described as the baseline in Bialek et al. 2024, "Estimating Model Performance Under Covariate Shift Without
Labels", arXiv:2401.08348): a calibrated probability says how often a row's label will be 1, so the expected value of a
measure over a day's scores needs no labels. The scores are first recalibrated for how the sample was drawn
(``bundle.recalibrate``), and then on days whose labels are known, by a logistic curve of their log-odds (Cox 1958;
Platt 1999). The measures are those of the score that was served, under the calibrated probability of the label.

It sees that days become harder or easier to tell apart. It cannot see that the label's relation to the features has
changed (concept drift) before labels show it: estimates are no reason to do without labels. So ``backtest`` estimates
days whose labels are known with what was known before them, and the interval of an estimate is as wide as those errors.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.monitoring.bins import ScoreBins, log_odds, probability
from airflow_provider_sml.ml.monitoring.performance import DayScores, Z
from airflow_provider_sml.ml.training import data

#: What is estimated.
MEASURES = ("auc", "log_loss", "brier")
#: Labelled rows that a calibration wants; with fewer, the rows that the model was tested on help out.
ENOUGH_ROWS = 2_000
#: Past days whose errors make an interval; with fewer, it is that of chance alone.
ENOUGH_DAYS = 14
_DRAWS = 200


@dataclass(frozen=True)
class Calibrator:
    """The label's probability by the log-odds of a score: ``intercept + slope * log-odds``, as log-odds.

    :param rows: labelled rows that it was fitted to; 0 for the score as it is.
    """

    intercept: float = 0.0
    slope: float = 1.0
    rows: int = 0

    def of(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of the label, shape (n,), for scores of shape (n,)."""
        return probability(self.intercept + self.slope * log_odds(scores))


def calibrate(bins: ScoreBins) -> Calibrator:
    """Fit a calibrator to labelled scores, by Newton's method on the penalised likelihood.

    A weak normal prior (intercept 0 by 1, slope 1 by 0.5) keeps a few rows, or one label alone, from running away.

    :param bins: scores with labels; without any, scores are taken as they are.
    """
    used = bins.used[bins.labelled[bins.used] > 0]
    rows = bins.labelled[used]
    if not len(used):
        return Calibrator()
    x = np.column_stack([np.ones(len(used)), log_odds(bins.score[used] / bins.rows[used])])
    prior, precision, found = np.array([0.0, 1.0]), np.diag([1.0, 4.0]), np.array([0.0, 1.0])
    for _ in range(50):
        expected = probability(x @ found)
        gradient = x.T @ (bins.positive[used] - rows * expected) - precision @ (found - prior)
        curvature = (x * (rows * expected * (1 - expected))[:, None]).T @ x + precision
        step = np.linalg.solve(curvature, gradient)
        found = found + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    # A score that ranks the wrong way round is still ranked by itself: the curve may be flat, never falling.
    return Calibrator(float(found[0]), max(float(found[1]), 0.0), int(rows.sum()))


def expected(bins: ScoreBins, calibrator: Calibrator) -> dict[str, float]:
    """Expected measures of some scores, none of whose labels is known.

    The AUC takes the scores of one bin for ties: it is off by at most ``auc_bin``, in practice by far less.

    :param bins: the scores.
    :param calibrator: for the probability of the label.
    :returns: ``rows``, ``rate`` (of the label), ``auc``, ``log_loss``, ``brier``, ``auc_bin``.
    """
    rows, means = bins.rows[bins.used], bins.means()
    chance = calibrator.of(means)
    found = _measures(rows, means, (rows * chance)[None, :])
    up, down = rows * chance, rows * (1 - chance)
    own = float(up @ down / max(up.sum() * down.sum(), 1e-300) / 2)
    return {"rows": int(rows.sum()), "rate": float(up.sum() / rows.sum()), "auc_bin": own} | {
        name: float(values[0]) for name, values in found.items()
    }


def pooled(bins: ScoreBins) -> dict[str, float]:
    """Measures of the labelled scores of some bins; NaN for an AUC of one label.

    :param bins: scores with labels.
    """
    used = bins.used[bins.labelled[bins.used] > 0]
    means = bins.score[used] / bins.rows[used]
    found = _measures(bins.labelled[used], means, bins.positive[used][None, :])
    return {name: float(values[0]) for name, values in found.items()}


def _measures(rows: np.ndarray, means: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    """Measures by draw.

    :param rows: rows of each bin, in ascending order of scores; shape (bins,).
    :param means: mean score of each bin; shape (bins,).
    :param up: positive rows of each bin, by draw; shape (draws, bins).
    """
    down, score = rows - up, np.clip(means, 1e-15, 1 - 1e-15)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (up * (below + down / 2)).sum(axis=1) / pairs
    total = rows.sum()
    return {
        "auc": auc,
        "log_loss": -(up @ np.log(score) + down @ np.log1p(-score)) / total,
        "brier": (up @ (1 - means) ** 2 + down @ means**2) / total,
    }


def estimate(scores: DayScores, calibrator: Calibrator, errors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Expected measures of a day, each with an interval for what its labels will show.

    The interval holds 95 % of the labels that the probabilities may draw, and, where enough days were back-tested,
    95 % of the errors of their estimates: the wider of the two (split conformal prediction, Lei et al. 2018).

    :param scores: of the day.
    :param calibrator: fitted to days before it.
    :param errors: of earlier estimates by measure, realised less estimated.
    """
    found: dict[str, Any] = {"day": scores.day.isoformat(), "version": scores.version}
    found |= expected(scores.bins, calibrator)
    rows, means = scores.bins.rows[scores.bins.used], scores.bins.means()
    generator = np.random.default_rng(scores.day.toordinal())
    up = generator.binomial(rows.astype(int), calibrator.of(means), (_DRAWS, len(rows))).astype(float)
    drawn = _measures(rows, means, up)
    for name in MEASURES:
        spread = drawn[name][np.isfinite(drawn[name])]
        half = Z * float(spread.std()) if len(spread) else 1.0
        past = np.abs([value for value in errors.get(name, ()) if np.isfinite(value)])
        if len(past) >= ENOUGH_DAYS:
            half = max(half, float(np.quantile(past, min(1.0, 0.95 * (1 + 1 / len(past))))))
        top = 1.0 if name == "auc" else float("inf")
        found |= {f"{name}_low": max(found[name] - half, 0.0), f"{name}_high": min(found[name] + half, top)}
    counted = len(errors.get("auc", ()))
    found["interval"] = f"errors of {counted} days" if counted >= ENOUGH_DAYS else "chance"
    return found | {"calibrated": asdict(calibrator)}


def calibrator_for(
    day: dt.date,
    version: str,
    known: Iterable[DayScores],
    delay: dt.timedelta,
    window: dt.timedelta,
    reference: ScoreBins | None = None,
) -> Calibrator:
    """The calibrator of a day: of the days of its version whose labels were known on its evening.

    :param day: the day.
    :param version: that scored it.
    :param known: days with labels; those that were not mature then are left out.
    :param delay: whole days after which a day is mature.
    :param window: how far back days count.
    :param reference: scores of the rows that the version was tested on, with labels; used where days are few.
    """
    chosen = [
        scores.bins for scores in known
        if scores.version == version and _was_known(scores.day, day, delay, window)
    ]  # fmt: skip
    bins = ScoreBins.total(chosen)
    if reference is not None and bins.labelled.sum() < ENOUGH_ROWS:
        bins = bins + reference
    return calibrate(bins)


def _was_known(past: dt.date, day: dt.date, delay: dt.timedelta, window: dt.timedelta) -> bool:
    """Whether the labels of a past day were known on the evening of a day, and count."""
    return past < day and delay <= day - past < window + delay


def backtest(
    known: Sequence[DayScores],
    delay: dt.timedelta,
    window: dt.timedelta,
    references: Mapping[str, ScoreBins] | None = None,
    days: Iterable[dt.date] | None = None,
) -> list[dict[str, Any]]:
    """Estimate days whose labels are known by what was known on their evenings, and compare.

    Beside each estimate stands the plain one: the measure over all labelled rows of the window before. A day that has
    no calibration of its own version yet is left out.

    :param known: days with labels.
    :param delay: whole days after which a day is mature.
    :param window: how far back days count.
    :param references: by version, the scores of the rows that it was tested on, with labels.
    :param days: the days to estimate; all of them when None.
    :returns: by day ``realised``, ``estimated`` and ``plain`` measures.
    """
    wanted, found = None if days is None else set(days), []
    for scores in known:
        if (wanted is not None and scores.day not in wanted) or scores.measures.get("auc") is None:
            continue
        reference = (references or {}).get(scores.version)
        calibrator = calibrator_for(scores.day, scores.version, known, delay, window, reference)
        if not calibrator.rows:
            continue
        before = [s.bins for s in known if _was_known(s.day, scores.day, delay, window)]
        pool = ScoreBins.total(before)
        plain = pooled(pool if pool.labelled.sum() or reference is None else reference)
        guess = expected(scores.bins, calibrator)
        found.append(
            {
                "day": scores.day.isoformat(),
                "rows": scores.rows,
                "realised": {name: scores.measures[name] for name in MEASURES},
                "estimated": {name: guess[name] for name in MEASURES},
                "plain": {name: plain[name] for name in MEASURES},
            }
        )
    return found


def errors_of(tested: Sequence[Mapping[str, Any]], which: str = "estimated") -> dict[str, list[float]]:
    """Realised less estimated, by measure.

    :param tested: what ``backtest`` gave.
    :param which: ``estimated`` or ``plain``.
    """
    return {name: [day["realised"][name] - day[which][name] for day in tested] for name in MEASURES}


def summary(tested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the estimates of a back-test were off: mean absolute error and bias, beside those of the plain ones."""
    found: dict[str, Any] = {"days": len(tested)}
    for which in ("estimated", "plain"):
        for name, values in errors_of(tested, which).items():
            finite = np.array([value for value in values if np.isfinite(value)])
            if len(finite):
                told = {"error": float(np.abs(finite).mean()), "bias": float(finite.mean())}
                found.setdefault(name, {})[which] = told
    return found


def reference_scores(scorer: Scorer, files: Iterable[Path]) -> ScoreBins:
    """Scores and labels of the rows that a model was tested on, file by file.

    :param scorer: of the model.
    :param files: of the sample's test split.
    """
    found = ScoreBins.empty()
    for path in files:
        features, labels = data.read(path, scorer.features)
        ones = np.ones(len(labels))
        found += ScoreBins.of(scorer.score_features(features), ones, ones, labels.astype(float))
    return found
