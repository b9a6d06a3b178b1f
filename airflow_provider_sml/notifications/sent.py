"""Which alerts were sent when, kept beside the reports, so that the same finding is not told again and again.

One small JSON file per finding, changed under a lock of the operating system that a killed process gives back; on an
object store under a small object that one of many can make, and that counts no more after ``STALE`` seconds. The lock
is held while the alert is sent: of two tasks with the same finding the second sees what the first one sent. What was
not delivered is not recorded, and is tried again. Where the folder cannot be written or the lock does not come in
``WAIT`` seconds, the alert is sent all the same: twice is better than never.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_provider_sml.ml import storage

WAIT = 60.0
#: Age of a lock on an object store that its owner must have left behind.
STALE = 45.0
#: How grave a severity is.
RANK = {"info": 0, "warning": 1, "critical": 2}
_log = logging.getLogger(__name__)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Sent:
    """What was sent of one finding.

    :param told: by channel, when and with which severity.
    :param again_after: how long a channel is not told again.
    :param clock: the current time in UTC.
    """

    def __init__(self, told: dict[str, Any], again_after: dt.timedelta, clock: Callable[[], dt.datetime]) -> None:
        self.told = told
        self._again_after, self._clock = again_after, clock

    def lately(self, channel: str, severity: str) -> str | None:
        """When a channel was told of it, if that is not long ago and it was no less grave then.

        :param channel: as it is named in the log.
        :param severity: of the alert now.
        """
        try:
            before = self.told[channel]
            when = dt.datetime.fromisoformat(before["time"])
            if self._clock() - when < self._again_after and RANK[before["severity"]] >= RANK.get(severity, 1):
                return str(before["time"])
        except (KeyError, TypeError, ValueError):
            pass
        return None

    def record(self, channel: str, severity: str) -> None:
        """A channel has been told."""
        self.told[channel] = {"time": self._clock().isoformat(timespec="seconds"), "severity": severity}


@contextlib.contextmanager
def sent(
    folder: Path, finding: str, again_after: dt.timedelta, clock: Callable[[], dt.datetime] = _now
) -> Iterator[Sent]:
    """What was sent of a finding, for as long as nobody else may send it; what is recorded is kept.

    :param folder: of the state.
    :param finding: what names it.
    :param again_after: how long a channel is not told again.
    :param clock: the current time in UTC.
    """
    path = folder / f"{hashlib.sha256(finding.encode()).hexdigest()[:24]}.json"
    with contextlib.ExitStack() as stack:
        try:
            if storage.is_remote(folder):
                stack.enter_context(_claimed(path.with_suffix(".lock")))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(path.with_suffix(".lock")))
        except OSError as error:
            _log.warning("The state of alerts in %s is not available, nothing is held back: %s", folder, error)
        state = Sent(_read(path), again_after, clock)
        yield state
        try:
            storage.write(path, json.dumps({"finding": finding, "told": state.told}, indent=1))
        except OSError as error:
            _log.warning("What was sent cannot be kept in %s: %s", folder, error)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())["told"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock.

    :raises OSError: when it does not come in time.
    """
    with path.open("w") as file:
        limit = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """An exclusive lock on an object store.

    :raises OSError: when it does not come in time.
    """
    limit = time.monotonic() + WAIT
    while not storage.create(path, f"{time.time()}"):
        try:
            if time.time() - float(path.read_text()) > STALE:
                storage.remove(str(path))
                continue
        except (FileNotFoundError, ValueError):
            pass  # given back meanwhile, or not written whole
        if time.monotonic() > limit:
            raise BlockingIOError(f"{path} is held")
        time.sleep(0.2)
    try:
        yield
    finally:
        storage.remove(str(path))
