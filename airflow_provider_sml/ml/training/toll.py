"""What interruptions of a training cost, and what its checkpoints spared, over all tries of the task.

The toll lies beside the checkpoint as one small object, which is written again while an attempt goes on. An attempt of
which nobody tells the end, because the process of the task was killed, is counted by the next one. What Airflow waits
between two tries is not counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.training.checkpoint import State

#: The figures of a toll in a model's lineage.
TOLL = (
    "interruptions", "rounds_lost", "seconds_lost", "seconds_waited", "rounds_regained", "seconds_regained",
    "usd_lost", "usd_regained", "usd",
)  # fmt: skip
#: Seconds between two notes of how far an attempt is.
_PULSE = 5.0


@dataclass
class Toll:
    """What interruptions cost, and what checkpoints spared.

    :param interruptions: lost workers, killed drivers and notices that a machine goes away.
    :param rounds_lost: boosting rounds that were made again, as far as the log had told of them.
    :param seconds_lost: of the attempts that ended, what no checkpoint kept; reading the data is among it.
    :param seconds_waited: until there were enough workers again, within a try.
    :param rounds_regained: boosting rounds that were in a checkpoint when an attempt started.
    :param seconds_regained: the time that those rounds had taken.
    :param usd_lost: the price of the lost and waited seconds, of all workers; 0 when it is not known.
    :param usd_regained: the price of the regained seconds.
    :param usd: the price of all attempts and of waiting between them.
    :param began: when the first attempt started, in seconds since 1970; 0 before it.
    """

    interruptions: int = 0
    rounds_lost: int = 0
    seconds_lost: float = 0.0
    seconds_waited: float = 0.0
    rounds_regained: int = 0
    seconds_regained: float = 0.0
    usd_lost: float = 0.0
    usd_regained: float = 0.0
    usd: float = 0.0
    began: float = 0.0

    def regain(self, state: State, usd_per_hour: float = 0.0) -> None:
        """An attempt starts from a checkpoint.

        :param state: of the checkpoint.
        :param usd_per_hour: of all workers together; 0 when it is not known.
        """
        self.rounds_regained += state.rounds
        self.seconds_regained += state.seconds
        self.usd_regained += state.seconds * usd_per_hour / 3600

    def lose(self, attempt: Attempt, kept: State | None) -> None:
        """An attempt was interrupted.

        :param attempt: how far it was; rounds that it did not tell of are not counted.
        :param kept: of the checkpoint that it left.
        """
        rounds, seconds = (kept.rounds, kept.seconds) if kept else (0, 0.0)
        lost = max(attempt.last - attempt.started - (seconds - attempt.seconds), 0.0)
        self.interruptions += 1
        self.rounds_lost += max(attempt.rounds - rounds, 0)
        self.seconds_lost += lost
        self.usd_lost += lost * attempt.usd_per_hour / 3600
        self.spend(attempt.last - attempt.started, attempt.usd_per_hour)

    def spend(self, seconds: float, usd_per_hour: float) -> None:
        """Time of the workers was used, well or not."""
        self.usd += seconds * usd_per_hour / 3600

    def wait(self, seconds: float, usd_per_hour: float = 0.0) -> None:
        """Seconds went by until there were enough workers."""
        self.seconds_waited += seconds
        self.usd_lost += seconds * usd_per_hour / 3600
        self.spend(seconds, usd_per_hour)

    def figures(self) -> dict[str, Any]:
        """All of it, as the lineage has it: counts, seconds, and USD where a price is known."""
        found = {name: round(getattr(self, name), 4 if name.startswith("usd") else 1) for name in TOLL}
        return {name: value for name, value in found.items() if value or not name.startswith("usd")}

    def __str__(self) -> str:
        return told(self.figures())


@dataclass
class Attempt:
    """How far an attempt is.

    :param started: in seconds since 1970.
    :param last: when it was last heard of.
    :param rounds: the last round that it told of.
    :param seconds: of the checkpoint that it started from.
    :param usd_per_hour: of all workers together; 0 when it is not known.
    """

    started: float
    last: float
    rounds: int = 0
    seconds: float = 0.0
    usd_per_hour: float = 0.0


class Ledger:
    """A training's toll, kept beside its checkpoint.

    :param path: of the object; None to keep it in memory alone.
    :param kept: of the checkpoint there is.
    """

    def __init__(self, path: Path | None, kept: State | None = None) -> None:
        self._path = path
        self._attempt: Attempt | None = None
        self._written = 0.0
        self.toll = Toll()
        if (found := self._read()) is None:
            return
        self.toll, under_way = found
        if under_way:  # nobody wrote its end
            self.toll.lose(under_way, kept)

    def start(self, state: State | None, usd_per_hour: float) -> None:
        """An attempt starts.

        :param state: of the checkpoint that it goes on from.
        :param usd_per_hour: of all workers together; 0 when it is not known.
        """
        now = time.time()
        self.toll.began = self.toll.began or now
        if state:
            self.toll.regain(state, usd_per_hour)
        self._attempt = Attempt(now, now, 0, state.seconds if state else 0.0, usd_per_hour)
        self._write()

    def tell(self, rounds: int) -> None:
        """The attempt goes on.

        :param rounds: that are done.
        """
        if self._attempt:
            self._attempt.last, self._attempt.rounds = time.time(), rounds
            if time.monotonic() - self._written >= _PULSE:
                self._write()

    def interrupted(self, kept: State | None) -> None:
        """The attempt was interrupted.

        :param kept: of the checkpoint that it left.
        """
        if self._attempt:
            self._attempt.last = time.time()
            self.toll.lose(self._attempt, kept)
            self._attempt = None
        self._write()

    def end(self) -> None:
        """The attempt ended, well or by an error that is no interruption."""
        if self._attempt:
            self.toll.spend(time.time() - self._attempt.started, self._attempt.usd_per_hour)
            self._attempt = None
        self._write()

    def remove(self) -> None:
        """The training came to its end."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._path:
            content = {"toll": asdict(self.toll), "attempt": asdict(self._attempt) if self._attempt else None}
            storage.write(self._path, json.dumps(content))

    def _read(self) -> tuple[Toll, Attempt | None] | None:
        """What an earlier try left; a damaged record only costs the figures, never the training."""
        try:
            content = json.loads(self._path.read_bytes()) if self._path else None
            if content is None:
                return None
            known = {field.name for field in fields(Toll)}
            toll = Toll(**{name: value for name, value in content["toll"].items() if name in known})
            return toll, Attempt(**content["attempt"]) if content["attempt"] else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


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
