"""What a search has found as a page: its course, which parameters mattered, and every trial."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.chart import Series, bar_chart, line_chart
from airflow_provider_sml.ml.page import Page
from airflow_provider_sml.ml.training.search import Found
from airflow_provider_sml.ml.training.space import distributions, load_space
from airflow_provider_sml.ml.training.trials import frozen

#: Completed trials before anything is said of what mattered.
_FEWEST = 8


def write_report(found: Found, folder: Path) -> None:
    """Write ``search.json`` and ``search.html``.

    :param found: what was found.
    :param folder: for both, on any store.
    """
    shares = importance(found)
    content = {
        "search_id": found.search_id,
        "sample_id": found.search.sample.sample_id,
        "metric": found.search.metric,
        "best": found.best.number,
        "hyperparameters": found.hyperparameters,
        "value": found.value(found.best),
        "seconds": found.seconds,
        "usd": found.usd,
        "importance": shares,
        # The losses of each round stay with the stored trials.
        "trials": [{k: v for k, v in asdict(trial).items() if k != "losses"} for trial in found.trials],
    }
    storage.write(folder / "search.json", json.dumps(content, indent=1))
    storage.write(folder / "search.html", _page(found, shares))


def importance(found: Found) -> dict[str, float]:
    """How much of the trials' differences each parameter explains, the most first, summing to 1; empty for few trials.

    Of the completed trials, by fANOVA (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
    Importance"), as Optuna has it.

    :param found: what was found.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    complete = [trial for trial in found.trials if trial.state == "complete"]
    if len(found.search.space) < 2 or len(complete) < _FEWEST or len({trial.loss for trial in complete}) < 2:
        return {}
    study = optuna.create_study()
    known = distributions(load_space(found.search.space))
    study.add_trials([frozen(trial, known) for trial in complete])
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=found.search.seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


def _page(found: Found, shares: Mapping[str, float]) -> str:
    metric, best = found.search.metric, found.best
    page = Page(f"Search for the hyper-parameters of {found.search.dataset.name}")
    usd = "" if found.usd is None else f" and USD {found.usd:.2f}"
    page.text(
        f"Trial {best.number} is the best: {metric} {found.value(best):.5f} on the validation rows, with "
        + ", ".join(f"{name} {_shown(value)}" for name, value in best.params.items()) + ".",
        "good",
    )  # fmt: skip
    page.text(
        f"{len(found.trials)} trials: {found.count('complete')} came to their end, {found.count('pruned')} were ended "
        f"early, {found.count('failed')} failed. They took {found.seconds / 60:.1f} minutes{usd}."
    )
    page.text(
        "The best value was chosen among many on the same rows and is too good for that; the evaluation on the test "
        "window, which no trial has seen, says what the model is worth.",
        "note",
    )
    page.figure(line_chart(_course(found), "trial", metric))
    if shares:
        page.heading("What mattered")
        page.figure(bar_chart(list(shares.items()), f"share of the differences in {metric}, of completed trials"))
    page.heading("Trials, the best first")
    order = sorted(found.trials, key=lambda t: (t.state != "complete", math.inf if t.loss is None else t.loss))
    page.table(
        ["Trial", "Ended", metric, "Rounds", "Seconds", *(["USD"] if found.usd is not None else []),
         *found.search.space],
        [
            (
                trial.number,
                f"{trial.state}: {trial.reason}" if trial.reason else trial.state,
                _shown(found.value(trial)),
                f"{trial.rounds} of {len(trial.losses)}",
                f"{trial.seconds:.1f}",
                *([f"{trial.usd or 0:.4f}"] if found.usd is not None else []),
                *(_shown(trial.params[name]) for name in found.search.space),
            )
            for trial in order
        ],
    )  # fmt: skip
    return page.render()


def _course(found: Found) -> list[Series]:
    """The value of each completed trial, and the best until then."""
    points = [(float(t.number), v) for t in found.trials if t.state == "complete" and (v := found.value(t)) is not None]
    better = max if found.search.rising else min
    best = [(x, better(value for _, value in points[: place + 1])) for place, (x, _) in enumerate(points)]
    return [Series("best until then", best), Series("trial that came to its end", points, dots=True, dashed=True)]


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
