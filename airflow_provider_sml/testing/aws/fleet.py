"""The machines behind an endpoint: variants with weights, how an update shifts traffic, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.prices import price

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

#: Seconds after the last request at which an asynchronous variant with a minimum of 0 has no machine left.
IDLE_SECONDS = 900.0
_MANY_STEPS = 100


@dataclass
class Variant:
    """A variant of a fleet.

    :param request: as the configuration has it.
    :param weight: its share of the traffic, against the other variants.
    :param count: machines, 0 for a serverless one.
    :param shadow: whether it gets a copy of the traffic and no answer of it is seen.
    """

    request: dict[str, Any]
    weight: float
    count: int
    shadow: bool = False


@dataclass
class _Stretch:
    start: float
    end: float
    machines: int


@dataclass
class Fleet:
    """The variants of one configuration on one endpoint.

    :param config: name of the configuration.
    :param request: the configuration.
    :param endpoint: name of the endpoint.
    :param cloud: the account.
    """

    config: str
    request: dict[str, Any]
    endpoint: str
    cloud: FakeAws
    opened: float = math.inf
    closed: float = math.inf
    used: float = -math.inf
    seconds_served: float = 0.0
    _spent: dict[str, list[_Stretch]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.variants = {
            variant["VariantName"]: Variant(
                variant, variant.get("InitialVariantWeight", 1.0),
                0 if "ServerlessConfig" in variant else variant.get("InitialInstanceCount", 1), shadow,
            )
            for key, shadow in (("ProductionVariants", False), ("ShadowProductionVariants", True))
            for variant in self.request.get(key, [])
        }  # fmt: skip
        for name, variant in self.variants.items():
            self._bill(name, variant)

    @property
    def serverless(self) -> bool:
        """Whether no variant has machines of its own."""
        return all("ServerlessConfig" in variant.request for variant in self.variants.values())

    @property
    def asynchronous(self) -> bool:
        """Whether it takes requests from S3 only."""
        return "AsyncInferenceConfig" in self.request

    def open(self, at: float) -> None:
        """It serves, and costs, from a time on."""
        self.opened = at

    def close(self, at: float) -> None:
        """It is gone from a time on."""
        self.closed = min(self.closed, at)

    def resize(self, name: str, count: int, now: float) -> None:
        """Give a variant another number of machines."""
        variant = self.variants[name]
        if count != variant.count:
            past = self._spent.setdefault(name, [])
            start = past[-1].end if past else self.opened
            past.append(_Stretch(start, now, variant.count))
            variant.count = count

    def touch(self, now: float) -> None:
        """A request has come."""
        if self._sleeps(now):
            for name, variant in self.variants.items():
                past = self._spent.setdefault(name, [])
                start = past[-1].end if past else self.opened
                past.append(_Stretch(start, self._awake_until(), variant.count))
                past.append(_Stretch(self._awake_until(), now, 0))
        self.used = now

    def machines(self, name: str, now: float) -> int:
        """Machines of a variant that run now."""
        return 0 if self._sleeps(now) else self.variants[name].count

    def summaries(self, now: float, shadow: bool = False) -> list[dict[str, Any]]:
        """The variants as DescribeEndpoint gives them."""
        found = []
        for name, variant in self.variants.items():
            if variant.shadow is not shadow:
                continue
            summary: dict[str, Any] = {
                "VariantName": name, "CurrentWeight": variant.weight, "DesiredWeight": variant.weight,
            }  # fmt: skip
            if "ServerlessConfig" in variant.request:
                summary["CurrentServerlessConfig"] = variant.request["ServerlessConfig"]
            else:
                summary["CurrentInstanceCount"] = self.machines(name, now)
                summary["DesiredInstanceCount"] = self.machines(name, now)
            if "ManagedInstanceScaling" in variant.request:
                summary["ManagedInstanceScaling"] = variant.request["ManagedInstanceScaling"]
            found.append(summary)
        return found

    def _awake_until(self) -> float:
        return max(self.opened, self.used) + IDLE_SECONDS

    def _sleeps(self, now: float) -> bool:
        least = self.cloud.autoscaling.minimum(self.endpoint) if self.asynchronous else None
        return least == 0 and now > self._awake_until()

    def _bill(self, name: str, variant: Variant) -> None:
        kind = variant.request.get("InstanceType", "")
        if "ServerlessConfig" in variant.request:
            gigabytes = variant.request["ServerlessConfig"]["MemorySizeInMB"] / 1024
            self.cloud.bill.meter(
                f"{self.endpoint}/{name}", f"serverless endpoint {gigabytes:g} GB, {self.config}",
                price("sagemaker-serverless-gb"), lambda now: self.seconds_served * gigabytes / 3600, lambda now: False,
            )  # fmt: skip
            return
        self.cloud.bill.meter(
            f"{self.endpoint}/{name}", f"endpoint {kind}, {self.config}", price(kind),
            lambda now: self._hours(name, variant, now),
            lambda now: self.opened <= now < self.closed and self.machines(name, now) > 0,
        )  # fmt: skip

    def _hours(self, name: str, variant: Variant, now: float) -> float:
        past = self._spent.get(name, [])
        start = past[-1].end if past else self.opened
        end = min(now, self.closed, self._awake_until() if self._sleeps(now) else math.inf)
        last = max(0.0, end - start) * variant.count
        return (sum((stretch.end - stretch.start) * stretch.machines for stretch in past) + last) / 3600


def plan_update(fleet: Fleet, deployment: dict[str, Any] | None, start_up: float) -> list[tuple[str, float, str]]:
    """The phases of an update: the new fleet starts, takes the traffic in steps, the old one ends.

    The message of a phase is the share of the traffic that the new fleet has by then.

    :param deployment: the DeploymentConfig; all at once without a wait when None.
    :param start_up: seconds until the new fleet is up.
    """
    steps: list[tuple[str, float, str]] = [("Updating", start_up, "0")]
    blue_green = (deployment or {}).get("BlueGreenUpdatePolicy")
    rolling = (deployment or {}).get("RollingUpdatePolicy")
    if rolling:
        size = _share(rolling["MaximumBatchSize"], fleet)
        wait, end = rolling["WaitIntervalInSeconds"], 0
    elif blue_green:
        routing = blue_green["TrafficRoutingConfiguration"]
        wait, end = routing["WaitIntervalInSeconds"], blue_green.get("TerminationWaitInSeconds", 0)
        if routing["Type"] == "CANARY":
            canary = _share(routing["CanarySize"], fleet)
            return [*steps, ("Baking", wait, str(canary)), ("Baking", wait, "1"), ("Shifting", end, "1")]
        size = _share(routing["LinearStepSize"], fleet) if routing["Type"] == "LINEAR" else 1.0
    else:
        return [*steps, ("Shifting", 30, "1")]
    count = min(_MANY_STEPS, math.ceil(1 / size - 1e-9))
    steps += [("Baking", wait, str(min(1.0, size * number))) for number in range(1, count + 1)]
    return [*steps, ("Shifting", end, "1")]


def _share(size: dict[str, Any], fleet: Fleet) -> float:
    """A CapacitySize as a share of the fleet."""
    if size["Type"] == "CAPACITY_PERCENT":
        return float(size["Value"]) / 100
    return min(1.0, float(size["Value"]) / max(1, sum(variant.count for variant in fleet.variants.values())))
