"""What interruptions of a training cost, and what its checkpoints spared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_sml.ml.training.checkpoint import State
from airflow_provider_sml.ml.training.ranks import Told

#: The figures of a toll in a model's lineage.
TOLL = (
    "interruptions", "rounds_lost", "seconds_lost", "seconds_waited", "rounds_regained", "seconds_regained",
    "usd_lost", "usd_regained",
)  # fmt: skip


@dataclass
class Toll:
    """What interruptions cost, and what checkpoints spared, in one try of the task.

    :param interruptions: that were survived.
    :param rounds_lost: boosting rounds that were made again.
    :param seconds_lost: of the attempts that ended, what no checkpoint kept; reading the data is among it.
    :param seconds_waited: until there were enough workers again.
    :param rounds_regained: boosting rounds that were in a checkpoint when an attempt started, also the first.
    :param seconds_regained: the time that those rounds had taken.
    """

    interruptions: int = 0
    rounds_lost: int = 0
    seconds_lost: float = 0.0
    seconds_waited: float = 0.0
    rounds_regained: int = 0
    seconds_regained: float = 0.0

    def regain(self, state: State) -> None:
        """An attempt starts from a checkpoint."""
        self.rounds_regained += state.rounds
        self.seconds_regained += state.seconds

    def lose(self, attempt: Told, start: State | None, kept: State | None) -> None:
        """An attempt ended before its time.

        :param attempt: what it told; rounds that it did not tell of are not counted.
        :param start: of the checkpoint that it started from.
        :param kept: of the checkpoint that it left.
        """
        before, after = (0.0 if state is None else state.seconds for state in (start, kept))
        self.rounds_lost += max(attempt.rounds - (kept.rounds if kept else 0), 0)
        self.seconds_lost += max(time.monotonic() - attempt.started - (after - before), 0.0)

    def figures(self, usd_per_hour: float = 0.0) -> dict[str, Any]:
        """All of it, as the lineage has it: counts, seconds, and USD where the price is known.

        :param usd_per_hour: of all workers together; 0 when it is not known.
        """
        found = {name: round(value, 1) for name, value in asdict(self).items()}
        if usd_per_hour:
            found["usd_lost"] = round((self.seconds_lost + self.seconds_waited) * usd_per_hour / 3600, 4)
            found["usd_regained"] = round(self.seconds_regained * usd_per_hour / 3600, 4)
        return found

    def told(self, usd_per_hour: float = 0.0) -> str:
        """The same for a log."""
        return told(self.figures(usd_per_hour))


def told(figures: Mapping[str, Any]) -> str:
    """The figures of a toll in words.

    :param figures: as the lineage has them.
    """
    lost, regained = (f", USD {figures[key]:.4f}" if key in figures else "" for key in ("usd_lost", "usd_regained"))
    seconds = figures["seconds_lost"] + figures["seconds_waited"]
    return (
        f"lost: {figures['rounds_lost']} rounds, {seconds:.0f} s{lost}; "
        f"regained: {figures['rounds_regained']} rounds, {figures['seconds_regained']:.0f} s{regained}"
    )
