"""The bill of a fake cloud: what each thing has cost by now, and what is left running and goes on costing.

The prices are those of ``cloud.prices``; a thing without a known price costs 0 and is shown as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_sml.testing.core.clock import VirtualClock


@dataclass(frozen=True)
class Line:
    """What one thing has cost.

    :param resource: its name.
    :param what: kind and size, such as ``endpoint ml.m5.large``.
    :param hours: billed hours, times the number of machines.
    :param price: USD per hour; None when it is not known.
    :param cost: USD.
    :param running: whether it goes on costing.
    """

    resource: str
    what: str
    hours: float
    price: float | None
    cost: float
    running: bool


@dataclass(frozen=True)
class _Meter:
    resource: str
    what: str
    price: float | None
    hours: Callable[[float], float]
    running: Callable[[float], bool]


class Bill:
    """Adds up what meters say at the clock.

    :param clock: the cloud's.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._meters: list[_Meter] = []

    def meter(
        self,
        resource: str,
        what: str,
        price: float | None,
        hours: Callable[[float], float],
        running: Callable[[float], bool],
    ) -> None:
        """Bill a thing from now on.

        :param resource: its name.
        :param what: kind and size.
        :param price: USD per hour.
        :param hours: gives the billed hours by a time.
        :param running: says whether it is still costing at a time.
        """
        self._meters.append(_Meter(resource, what, price, hours, running))

    def lines(self) -> list[Line]:
        """A line for each thing, by now."""
        now = self._clock.now()
        lines = []
        for meter in self._meters:
            hours = meter.hours(now)
            cost = hours * (meter.price or 0.0)
            lines.append(
                Line(meter.resource, meter.what, round(hours, 4), meter.price, round(cost, 4), meter.running(now))
            )
        return lines

    def total(self) -> float:
        """USD, by now."""
        return round(sum(line.cost for line in self.lines()), 4)

    def running(self) -> list[Line]:
        """What goes on costing."""
        return [line for line in self.lines() if line.running]

    def text(self) -> str:
        """The bill for a person."""
        rows = [
            f"{line.cost:10.4f} USD  {line.hours:9.3f} h  {'RUNS' if line.running else 'ended':5}  {line.what}  "
            f"{line.resource}{'' if line.price is not None else '  (price not known)'}"
            for line in self.lines()
        ]
        return "\n".join([*rows, f"{self.total():10.4f} USD  in all; {len(self.running())} left running"])
