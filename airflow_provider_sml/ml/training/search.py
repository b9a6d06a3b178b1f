"""What decides a search for hyper-parameters, what it may cost, and what it found; ``searcher`` runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, require
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.training.custom import custom_metrics
from airflow_provider_sml.ml.training.runner import rises
from airflow_provider_sml.ml.training.space import Range, ends, load_space
from airflow_provider_sml.ml.training.trainer import DEFAULTS, Training, check_settings
from airflow_provider_sml.ml.training.trials import TrialRecord, clock
from airflow_provider_sml.refs import SampleRef


@dataclass(frozen=True)
class Search:
    """What decides a search, and what it may cost.

    :param dataset: features and label.
    :param sample: the rows.
    :param space: by parameter ``{min, max, log, step}`` or a list of values; see ``space``.
    :param params: the parameters that stay as they are, as ``Training`` takes them; the space goes before them.
    :param workers: workers of one trial.
    :param trials: most trials; None for any number.
    :param minutes: most minutes in which trials run, over all starts of the search; None for any.
    :param usd: most USD for the trials' workers; None for any.
    :param usd_per_hour: what one worker costs in an hour; 0 when it is not known.
    :param parallel: trials at once.
    :param prune: whether bad trials end early.
    :param startup: trials that come to their end before any other is ended early.
    :param warmup: rounds of a trial before it may be ended.
    :param seed: of the sampler.
    :param patience: seconds to wait for workers.
    :param machine: where the workers run, for notices of interruption: ``ec2``, ``gce`` or empty.
    """

    dataset: Dataset
    sample: SampleRef
    space: Mapping[str, Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    trials: int | None = None
    minutes: float | None = None
    usd: float | None = None
    usd_per_hour: float = 0.0
    parallel: int = 1
    prune: bool = True
    startup: int = 5
    warmup: int = 20
    seed: int = 7
    patience: float = 300.0
    machine: str = ""

    @property
    def fixed(self) -> dict[str, Any]:
        """The parameters that stay as they are."""
        return {name: value for name, value in self.params.items() if name not in self.space}

    @property
    def metric(self) -> str:
        """The metric that decides, as XGBoost calls it."""
        return str((DEFAULTS | self.fixed)["stop_on"])

    @property
    def rising(self) -> bool:
        """Whether more of the metric is better."""
        return rises(self.metric, self.fixed)

    @property
    def search_id(self) -> str:
        """Hash of everything that decides the trials; the budget and their number at once are no part of it."""
        import xgboost

        space = {
            name: part.model_dump() if isinstance(part, Range) else part
            for name, part in load_space(self.space).items()
        }
        decides = [
            self.sample.sample_id, self.dataset.hash, list(self.dataset.features), space, DEFAULTS | self.fixed,
            self.workers, [self.prune, self.startup, self.warmup, self.seed], xgboost.__version__,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def training(self, values: Mapping[str, Any]) -> Training:
        """The training of a trial.

        :param values: that it has of the space.
        """
        return Training(
            self.dataset, self.sample, {**self.fixed, **values}, self.workers, machine=self.machine,
            patience=self.patience, usd_per_hour=self.usd_per_hour,
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a search has found.

    :param search: that found it.
    :param search_id: of it.
    :param trials: by number.
    """

    search: Search
    search_id: str
    trials: tuple[TrialRecord, ...]

    @property
    def best(self) -> TrialRecord:
        """The completed trial with the smallest loss; the first of several."""
        return min((trial for trial in self.trials if trial.state == "complete"), key=lambda trial: trial.loss or 0.0)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What a training needs to be that of the best trial."""
        return {**self.search.fixed, **self.best.params}

    @property
    def seconds(self) -> float:
        """In which trials ran."""
        return clock((trial.started, trial.ended) for trial in self.trials)

    @property
    def usd(self) -> float | None:
        """What all trials cost; None when no price is known."""
        known = [trial.usd for trial in self.trials if trial.usd is not None]
        return sum(known) if known else None

    def value(self, trial: TrialRecord) -> float | None:
        """The metric of a trial; None when there is none."""
        return -trial.loss if trial.loss is not None and self.search.rising else trial.loss

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(trial.state == state for trial in self.trials)


def check_search(search: Search) -> None:
    """Refuse what does not fit, before a cluster works on it: every choice and both ends of every range are tried.

    :raises ConfigurationError: for the first wrong one.
    """
    require("optuna", "search")
    budget = {"trials": search.trials, "minutes": search.minutes, "usd": search.usd}
    if all(value is None for value in budget.values()):
        raise ConfigurationError("the search has no budget", expected="trials, minutes or usd", found="none")
    for name, value in budget.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ConfigurationError(f"the search's budget of {name}", expected="a number above 0", found=value)
    if search.usd is not None and not search.usd_per_hour > 0:
        raise ConfigurationError(
            "the search's budget is in usd, and no price is known", expected="usd_per_hour, what one worker costs",
            found=search.usd_per_hour,
        )  # fmt: skip
    if search.parallel < 1:
        raise ConfigurationError("parallel trials of the search", expected="1 or more", found=search.parallel)
    space = load_space(search.space)
    for name, values in ends(space):
        try:
            check_settings(search.training(values))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the search's space of {name} does not fit: {error.message}", expected=error.expected,
                found=error.found, todo=error.todo,
            ) from error  # fmt: skip
    told = (DEFAULTS | search.fixed)["eval_metric"]
    metrics = [*([told] if isinstance(told, str) else told), *(own.name for own in custom_metrics(search.fixed))]
    if search.metric not in metrics:
        raise ConfigurationError(
            "stop_on is no metric of the search", expected=f"one of {', '.join(metrics)}", found=search.metric,
            todo="add it to eval_metric, or to metrics when it is a function",
        )  # fmt: skip
