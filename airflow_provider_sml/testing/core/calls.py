"""The record of what a fake cloud was asked, for tests to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call that reached the server.

    :param at: seconds since the epoch, by the virtual clock.
    :param service: such as ``sagemaker``.
    :param operation: such as ``CreateTrainingJob``.
    :param params: the request, as the client gave it.
    :param error: code of the error it got; empty when it succeeded.
    :param effect: whether it changed or read anything: a call whose reply was lost has, one that was dropped has not.
    :param replied: whether the client got an answer.
    """

    at: float
    service: str
    operation: str
    params: dict[str, Any]
    error: str = ""
    effect: bool = True
    replied: bool = True


class Calls(list[Call]):
    """All calls, in their order."""

    def of(self, *operations: str) -> list[Call]:
        """The calls of some operations."""
        return [call for call in self if call.operation in operations]

    def count(self, operation: Any) -> int:
        """How many calls of an operation reached the server."""
        return len(self.of(operation))

    def names(self) -> list[str]:
        """The operations, in their order."""
        return [call.operation for call in self]
