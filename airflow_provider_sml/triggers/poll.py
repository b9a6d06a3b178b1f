"""A trigger that asks one of ``hooks.checks`` until the waiting is over; the deferrable half of every sensor here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks import checks

#: Looks in a row that may fail before the waiting fails; what is waited for may be well.
MOST_ERRORS = 10


class PollTrigger(BaseTrigger):
    """Asks until it is done, and gives one event.

    :param check: name of a function of ``hooks.checks``.
    :param arguments: its arguments: plain JSON.
    :param poll_interval: seconds between looks.
    :param deadline: seconds since the epoch after which it gives up; None for never.
    """

    def __init__(
        self, check: str, arguments: dict[str, Any], poll_interval: float = 60.0, deadline: float | None = None
    ) -> None:
        super().__init__()
        self.check = check
        self.arguments = arguments
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path and arguments, to make the trigger again in a triggerer."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "check": self.check,
                "arguments": self.arguments,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look in a thread, so that a slow store does not block other triggers."""
        errors, told = 0, ""
        while True:
            try:
                found = await asyncio.to_thread(getattr(checks, self.check), **self.arguments)
            except ConfigurationError as error:
                yield TriggerEvent({"done": False, "told": str(error), "retryable": False})
                return
            except Exception as error:
                errors += 1
                self.log.warning("It could not be looked at: %s", error)
                if errors > MOST_ERRORS:
                    yield TriggerEvent(
                        {"done": False, "told": f"{errors} looks in a row failed: {error}", "retryable": True}
                    )
                    return
            else:
                errors = 0
                if found.told != told:
                    told = found.told
                    self.log.info("%s", told)
                if found.done:
                    yield TriggerEvent({"done": True, "told": told, "facts": found.facts})
                    return
            if self.deadline is not None and time.time() >= self.deadline:
                yield TriggerEvent({"done": False, "told": f"the deadline has passed: {told}", "retryable": False})
                return
            await asyncio.sleep(self.poll_interval)
