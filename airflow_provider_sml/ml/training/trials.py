"""The trials of a search as they are stored: one small JSON object each, written once the trial has ended.

A trial that was under way when its driver was lost has no object, and is run again. An object that is damaged, or of
another search, is left out with a line that says so, and its trial is run again in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.training.space import Range, holds

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_FORMAT = "sml-trial-1"
STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class TrialRecord:
    """What became of one trial.

    :param number: of the trial, from 0.
    :param state: ``complete``, ``pruned`` (ended early) or ``failed``.
    :param params: the values that it had of the space.
    :param loss: smallest loss of the validation rows, which is the metric, or its negative where more of it is better;
        None when there is none.
    :param losses: of each round until the trial ended, as far as they were told.
    :param rounds: boosting rounds up to the smallest loss.
    :param started: when it began, in seconds since 1970.
    :param ended: when it ended.
    :param seconds: that it took; reading the rows, and waiting for workers in place of lost ones, are among them.
    :param usd: what its workers cost; None when no price is known.
    :param reason: why it ended early or failed.
    """

    number: int
    state: str
    params: dict[str, Any]
    loss: float | None
    losses: list[float] = field(repr=False)
    rounds: int
    started: float
    ended: float
    seconds: float
    usd: float | None
    reason: str = ""


class Trials:
    """The stored trials of one search.

    :param folder: of the search, on any store.
    :param search_id: of the search.
    :param space: of the search.
    """

    def __init__(self, folder: Path, search_id: str, space: Mapping[str, Range | list[Any]]) -> None:
        self._folder = folder / "trials"
        self._search_id = search_id
        self._space = space

    def write(self, trial: TrialRecord) -> None:
        """Store a trial that has ended."""
        content = {"format": _FORMAT, "search_id": self._search_id, **asdict(trial)}
        storage.write(self._folder / _name(trial.number), json.dumps(content))

    def read(self, log: Callable[[str], None]) -> dict[int, TrialRecord]:
        """The sound ones by number.

        :param log: takes a line for each that is not.
        """
        found = {}
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.name.endswith(".json"))
        except FileNotFoundError:
            return {}
        for path in paths:
            try:
                trial = self._sound(json.loads(path.read_bytes()), path.name)
            except (ValueError, TypeError, KeyError) as error:
                log(f"the trial {path} is damaged and is run again: {str(error)[:200]}")
            else:
                found[trial.number] = trial
        return found

    def _sound(self, content: Any, name: str) -> TrialRecord:
        if content.pop("format") != _FORMAT or (of := content.pop("search_id")) != self._search_id:
            raise ValueError(f"it is no trial of the search {self._search_id}")
        trial = TrialRecord(**content)
        numbers = [*trial.losses, trial.started, trial.ended, trial.seconds]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("a number is none")
        if name != _name(trial.number) or trial.state not in STATES or not holds(self._space, trial.params):
            raise ValueError(f"it does not fit the search {of}")
        if trial.loss != min(trial.losses, default=None) or (trial.state == "complete" and not trial.losses):
            raise ValueError("its loss is not that of its rounds")
        return trial


def _name(number: int) -> str:
    return f"{number:04d}.json"


def seen(number: int) -> bool:
    """Whether Optuna is told of a round: of each of the first thousand, then of every tenth, hundredth and so on.

    It copies all that it knows of a trial with each of them.

    :param number: of the round, from 0.
    """
    return number % 10 ** max(0, len(str(number)) - 3) == 0


def frozen(record: TrialRecord, known: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A trial that has ended as Optuna takes it.

    :param record: of the trial.
    :param known: the space as Optuna knows it.
    """
    from optuna.trial import TrialState, create_trial

    value = record.loss
    if record.state == "pruned":  # what Optuna itself would take
        value = next((loss for number, loss in reversed([*enumerate(record.losses)]) if seen(number)), None)
    return create_trial(
        state={"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(record.state, TrialState.FAIL),
        params=record.params,
        distributions=dict(known),
        value=None if record.state == "failed" else value,
        intermediate_values={number: loss for number, loss in enumerate(record.losses) if seen(number)},
    )


def clock(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of several trials ran.

    :param spans: begin and end of each, in seconds.
    """
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
