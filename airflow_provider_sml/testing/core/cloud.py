"""What every fake cloud has: a clock, faults, the calls so far, a bill, and the verbs of the command line."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from airflow_provider_sml.testing.core.behaviour import Behaviour
from airflow_provider_sml.testing.core.bill import Bill
from airflow_provider_sml.testing.core.calls import Calls
from airflow_provider_sml.testing.core.clock import VirtualClock
from airflow_provider_sml.testing.core.faults import Faults


class FakeCloud:
    """Base of the fake clouds; a cloud adds its services and its server.

    :param clock: the clock; one that stands still when None.
    """

    #: Where the verbs of the command line reach it, such as ``http://127.0.0.1:8080``.
    url: str

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.faults = Faults()
        self.calls = Calls()
        self.bill = Bill(self.clock)
        self.services: dict[str, Any] = {}

    def environment(self) -> dict[str, str]:
        """What points unmodified clients here."""
        raise NotImplementedError

    def connections(self) -> dict[str, str]:
        """Airflow's connections to it, as environment variables."""
        return {}

    def behaviours(self) -> list[Behaviour]:
        """What the fake does, and where that is known from."""
        kinds = {kind for service in self.services.values() for kind in type(service).__mro__}
        found = [item for kind in kinds for item in vars(kind).get("BEHAVIOURS", ())]
        return sorted(found, key=lambda item: (item.service, item.basis, item.what))

    def control(self, verb: str, arguments: dict[str, Any]) -> Any:
        """What the command line asks: ``advance``, ``scale``, ``fault``, ``faults``, ``calls``, ``bill``.

        :raises ValueError: when there is no such verb.
        """
        if verb == "advance":
            return {"now": self.clock.advance(float(arguments["seconds"]))}
        if verb == "scale":
            self.clock.scale = float(arguments["scale"])
            return {"scale": self.clock.scale}
        if verb == "fault":
            return dataclasses.asdict(self.faults.add(**arguments))
        if verb == "faults":
            return self.faults.waiting()
        if verb == "calls":
            return [dataclasses.asdict(call) for call in self.calls]
        if verb == "bill":
            return {"text": self.bill.text(), "lines": [dataclasses.asdict(line) for line in self.bill.lines()]}
        raise ValueError(f"there is no verb {verb!r}")

    def close(self) -> None:
        """End the server."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
