"""Faults that a fake cloud is told to have: some meet a call, some the resource that a call makes.

A fault waits until a call fits it, and is gone once it has happened as often as it was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

#: Faults of a call, with what they do.
CALL_FAULTS = {
    "throttle": "the call is refused: too many requests",
    "server_error": "the call fails inside the service, without an effect",
    "drop_before": "the connection is closed before the call has an effect",
    "drop_after": "the call has its effect, but the reply is lost",
    "denied": "the caller lacks the permission",
    "expired_token": "the caller's token has expired",
    "quota": "a quota of the account is reached",
}
#: Faults of the resource that a call makes, with what they do.
RESOURCE_FAULTS = {
    "slow": "it takes `seconds` longer to start (default 1800)",
    "no_capacity": "the region has none of the machines that it asks for",
    "interrupt": "its spot machines are taken away `count` times (default 1)",
    "roll_back": "the roll-out is rolled back; `reason` is what the service says (default: nothing)",
    "fail": "it fails; `reason` is what the service says",
    "degraded": "it serves, but answers a `share` of its requests (default 0) with 500, after `latency_ms` each (20)",
}
KINDS = CALL_FAULTS | RESOURCE_FAULTS


@dataclass
class Fault:
    """One fault.

    :param kind: one of ``CALL_FAULTS`` or ``RESOURCE_FAULTS``.
    :param operation: the operation that it meets, such as ``CreateTrainingJob``; ``*`` and ``?`` as in file names.
    :param name: name of the resource that it meets, as a pattern.
    :param times: how often it happens.
    :param skip: fitting calls that pass before it happens first.
    :param detail: more about it, such as ``reason``, ``count`` or ``seconds``.
    """

    kind: str
    operation: str = "*"
    name: str = "*"
    times: int = 1
    skip: int = 0
    detail: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are: {', '.join(KINDS)}")


class Faults:
    """The faults that wait, in the order in which they were added."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(
        self, kind: str, operation: str = "*", name: str = "*", times: int = 1, skip: int = 0, **detail: Any
    ) -> Fault:
        """Let a fault happen; see ``Fault`` for the parameters."""
        fault = Fault(kind, operation, name, times, skip, detail)
        with self._lock:
            self._waiting.append(fault)
        return fault

    def take(self, kinds: Collection[str], operation: str, name: str = "") -> Fault | None:
        """The fault that happens now, if one fits; it is used up by that.

        :param kinds: kinds that can happen at this point.
        :param operation: the operation.
        :param name: name of the resource, empty when there is none.
        """
        with self._lock:
            for fault in self._waiting:
                fits = fault.kind in kinds and fnmatchcase(operation, fault.operation) and fnmatchcase(name, fault.name)
                if not fits:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None

    def waiting(self) -> list[dict[str, Any]]:
        """The faults that have not happened yet."""
        with self._lock:
            return [asdict(fault) for fault in self._waiting]

    def clear(self) -> None:
        """Forget the faults that have not happened yet."""
        with self._lock:
            self._waiting.clear()
