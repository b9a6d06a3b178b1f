"""A resource as a timeline: the phases that it goes through, planned when it is made and read at the clock.

Nothing runs in the background: what a resource is, follows from the time at which it is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Phase:
    """A stretch of time in one state.

    :param state: the state.
    :param start: its first second, since the epoch.
    :param end: the second it ends; infinity for the last phase.
    :param message: what the service says about it.
    """

    state: str
    start: float
    end: float = inf
    message: str = ""


class Timeline:
    """Phases one after the other.

    :param start: of the first phase, in seconds since the epoch.
    :param steps: (state, seconds, message) each; the last one lasts for ever, whatever its seconds.
    """

    def __init__(self, start: float, steps: Sequence[tuple[str, float, str]]) -> None:
        self._phases = _phases(start, steps)

    def at(self, now: float) -> Phase:
        """The phase at a time."""
        return self.history(now)[-1]

    def history(self, now: float) -> list[Phase]:
        """The phases that have begun by a time; the first one always has."""
        return [phase for phase in self._phases if phase.start <= now] or self._phases[:1]

    def seconds(self, states: Collection[str], now: float) -> float:
        """Seconds spent in some states by a time."""
        return sum(min(phase.end, now) - phase.start for phase in self.history(now) if phase.state in states)

    def began(self, states: Collection[str], now: float) -> float | None:
        """When one of the states was first entered, or None."""
        return next((phase.start for phase in self.history(now) if phase.state in states), None)

    def count(self, state: str, now: float) -> int:
        """How often a state was entered by a time."""
        return sum(phase.state == state for phase in self.history(now))

    @property
    def settled(self) -> float:
        """When the last phase begins."""
        return self._phases[-1].start

    def change(self, now: float, steps: Sequence[tuple[str, float, str]]) -> None:
        """From now on go through other phases."""
        past = self.history(now)
        current = past[-1]
        cut = Phase(current.state, current.start, now, current.message)
        self._phases = [*past[:-1], *([cut] if cut.end > cut.start else []), *_phases(now, steps)]


def _phases(start: float, steps: Sequence[tuple[str, float, str]]) -> list[Phase]:
    phases = []
    for position, (state, seconds, message) in enumerate(steps):
        end = inf if position == len(steps) - 1 else start + seconds
        phases.append(Phase(state, start, end, message))
        start = end
    return phases
