"""What a night is compared with: ``training``, ``trailing 28 days``, or ``season 15 days`` around the day a year ago.

Texts and days only; it imports nothing heavy, so that a spec can be checked by it. The profiles are made in
``night_profiles``.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_sml.errors import ConfigurationError

EXPECTED = "training, trailing 28 days (any number of days), or season 15 days (around the day 52 weeks before)"
#: The same, as a pattern.
PATTERN = r"training|(trailing|season)( +\d+ days?)?"
_DAYS = {"training": 0, "trailing": 28, "season": 15}
#: Nights at most whose differences tell how much a night may differ.
MOST_NIGHTS = 28


@dataclass(frozen=True)
class Reference:
    """Rows that nights are compared with.

    :param kind: the rows of ``training``; those of the days before (``trailing``); those of the ``season`` a year ago.
    :param days: days of the window; 0 for training.
    """

    kind: Literal["training", "trailing", "season"] = "training"
    days: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "training" else f"{self.kind} {self.days} days"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read one.

        :param text: as in ``EXPECTED``.
        :raises ConfigurationError: when it is something else.
        """
        words = str(text).split()
        if not re.fullmatch(PATTERN, " ".join(words)) or (len(words) > 1 and int(words[1]) < 1):
            raise ConfigurationError("this is no reference of nights", expected=EXPECTED, found=text)
        kind: Any = words[0]
        return cls(kind, int(words[1]) if len(words) > 1 else _DAYS[kind])

    def window(self, day: dt.date) -> list[dt.date]:
        """The days of a night's window; none for training.

        :param day: the night.
        """
        if self.kind == "trailing":
            return [day - dt.timedelta(days=n) for n in range(self.days, 0, -1)]
        middle = day - dt.timedelta(weeks=52)  # so that weekdays are the same
        return [middle + dt.timedelta(days=n - self.days // 2) for n in range(self.days)]


def training_nights(windows: Mapping[str, Sequence[str]]) -> list[dt.date]:
    """The last days that a model was made from: training, validation and test.

    :param windows: first and last day of each split, ISO 8601, as a sample's manifest has them.
    """
    spans = [[dt.date.fromisoformat(day) for day in window] for window in windows.values()]
    days = {first + dt.timedelta(days=n) for first, last in spans for n in range((last - first).days + 1)}
    return sorted(days)[-MOST_NIGHTS:]
