"""The clock of a fake cloud: it stands still until a test moves it, or runs at a multiple of real time."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


class VirtualClock:
    """Seconds since the epoch, as the fake cloud sees them.

    :param start: where it starts, in seconds since the epoch; now when None.
    :param scale: virtual seconds per real second; 0 stands still between moves, 60 shows an hour in a minute.
    :param per_call: seconds that each served call takes of it, so that a client that polls sees time pass without
        anyone moving the clock.
    """

    def __init__(self, start: float | None = None, scale: float = 0.0, per_call: float = 0.0) -> None:
        if scale < 0 or per_call < 0:
            raise ValueError("a clock does not run backwards")
        self._lock = threading.Lock()
        self._base = time.time() if start is None else start
        self._real = time.monotonic()
        self._scale = scale
        self.per_call = per_call

    @property
    def scale(self) -> float:
        """Virtual seconds per real second."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        with self._lock:
            self._base, self._real, self._scale = self._now(), time.monotonic(), value

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        with self._lock:
            return self._now()

    def moment(self) -> datetime:
        """The time as a moment in UTC."""
        return moment(self.now())

    def advance(self, seconds: float) -> float:
        """Move it forward; gives the new time.

        :param seconds: 0 or more.
        """
        if seconds < 0:
            raise ValueError("a clock does not run backwards")
        with self._lock:
            self._base += seconds
            return self._now()

    def tick(self) -> None:
        """Let the time of one served call pass."""
        self.advance(self.per_call)

    def _now(self) -> float:
        return self._base + (time.monotonic() - self._real) * self._scale


def moment(seconds: float) -> datetime:
    """Seconds since the epoch as a moment in UTC, whole milliseconds as services tell them."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)
