"""Machines of Vertex AI as its API takes them, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.errors import ConfigurationError, did_you_mean

_KEYS = ("type", "accelerator", "accelerator_count", "tpu_topology")


def machine(given: Any) -> dict[str, Any]:
    """A machine, checked.

    :param given: a machine type such as ``n1-standard-4``, or ``{"type": "g2-standard-8", "accelerator": "NVIDIA_L4",
        "accelerator_count": 1}``, or for a TPU ``{"type": "ct5lp-hightpu-4t", "tpu_topology": "2x2"}``.
    :returns: type, and accelerator, accelerator_count and tpu_topology where they are given.
    :raises ConfigurationError: when it cannot be right.
    """
    values = {"type": given} if isinstance(given, str) else dict(given)
    unknown = sorted(set(values) - set(_KEYS))
    if unknown or not values.get("type"):
        raise ConfigurationError(
            "the machine is not described rightly", expected=f"a type, and of {', '.join(_KEYS)}", found=str(given),
            todo=did_you_mean(unknown[0], _KEYS) if unknown else None,
        )  # fmt: skip
    if values.get("accelerator"):
        values["accelerator"] = str(values["accelerator"]).upper()
        values.setdefault("accelerator_count", 1)
    elif values.get("accelerator_count"):
        raise ConfigurationError("the machine has a count of no accelerator", expected="accelerator", found=str(given))
    return {key: values[key] for key in _KEYS if values.get(key)}


def machine_spec(described: Mapping[str, Any]) -> dict[str, Any]:
    """``MachineSpec`` of the API.

    :param described: what ``machine`` gives.
    """
    names = {"type": "machine_type", "accelerator": "accelerator_type"}
    return {names.get(key, key): value for key, value in described.items()}


def machine_price(described: Mapping[str, Any], spot: bool, own: Mapping[str, float] | None = None) -> float | None:
    """USD per hour of one machine with its accelerators; None when a price is not known.

    :param described: what ``machine`` gives.
    :param spot: whether it is a spot machine, which has prices of its own (``vertex-spot-...``).
    :param own: prices that go before those of the table.
    """
    prefix = "vertex-spot-" if spot else "vertex-"
    found = price(f"{prefix}{described['type']}", own)
    if described.get("accelerator"):
        extra = price(f"{prefix}{described['accelerator']}", own)
        return None if found is None or extra is None else found + extra * int(described.get("accelerator_count", 1))
    return found


def machine_name(described: Mapping[str, Any]) -> str:
    """A machine for a person: ``n1-standard-8 + 1 x NVIDIA_TESLA_T4``."""
    extra = described.get("accelerator")
    plus = f" + {described.get('accelerator_count', 1)} x {extra}" if extra else ""
    topology = f" {described['tpu_topology']}" if described.get("tpu_topology") else ""
    return f"{described['type']}{plus}{topology}"
