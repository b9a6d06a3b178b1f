"""What the gate can be asked for, and the refusal of what it cannot: a check that is not known would pass unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, did_you_mean

CHAMPION = "champion"
_RIVAL = {"not_worse_than", "margin"}
#: The measures of an evaluation that the gate can judge; of AUC more is better, of the others less.
MEASURES = {"auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "ece": "ECE"}
#: The checks and their settings.
KNOWN: dict[str, set[str]] = {
    "auc": {"min", *_RIVAL},
    "log_loss": {"max", *_RIVAL},
    "brier": {"max", *_RIVAL},
    "ece": {"max", *_RIVAL},
    "own": {"min", "max", *_RIVAL},
    "baseline": {"by", "margin"},
    "slices": {"by", "min_rows", "min_auc", "measure", "alpha", *_RIVAL},
    "parity": {"rows", "tolerance", "through"},
    "size": {"max"},
    "latency": {"p50", "p99", "requests"},
}
#: What is measured on the stored model, not on the evaluation.
SERVED = ("parity", "size", "latency")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that ask for what is no check.

    :param settings: the checks, as in a spec's ``gate``.
    :raises ConfigurationError: when one is not known or lacks its limit.
    """
    for name, wanted in settings.items():
        if wanted is None:
            continue
        if name not in KNOWN or not isinstance(wanted, Mapping):
            raise _unknown(name if name not in KNOWN else str(wanted), f"{name}: {wanted}")
        for path, part in wanted.items() if name == "own" else ((name, wanted),):
            if not isinstance(part, Mapping) or set(part) - KNOWN[name]:
                raise _unknown(", ".join(sorted(set(part) - KNOWN[name])) if isinstance(part, Mapping) else str(part),
                               f"{path}: {part}")  # fmt: skip
            _whole(f"{name}.{path}" if name == "own" else name, part)
    for name, one_of in (("slices", ["by"]), ("size", ["max"]), ("latency", ["p50", "p99"])):
        wanted = settings.get(name)
        if wanted and all(wanted.get(key) is None for key in one_of):
            raise ConfigurationError(f"gate.{name} lacks {' or '.join(one_of)}", expected=one_of[0], found=wanted)


def _whole(name: str, part: Mapping[str, Any]) -> None:
    """A measure needs a limit or a rival, and the only rival is the champion."""
    kind = name.split(".")[0]
    limits = [key for key in ("min", "max") if key in KNOWN[kind]]
    measured = kind in MEASURES or kind == "own"
    if measured and kind != "auc" and part and all(part.get(key) is None for key in (*limits, "not_worse_than")):
        raise ConfigurationError(
            f"gate.{name} lacks {' or '.join(limits)}", expected=f"{limits[0]}, or not_worse_than: champion", found=part
        )
    for key, allowed in (
        ("not_worse_than", (None, CHAMPION)), ("through", (None, "process", "bundle")), ("measure", (None, *MEASURES)),
    ):  # fmt: skip
        if part.get(key) not in allowed:
            raise ConfigurationError(
                f"gate.{name}.{key}", expected=" or ".join(str(each) for each in allowed if each), found=part[key]
            )


def _unknown(names: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"the gate has no {names}",
        expected="; ".join(f"{check}: {', '.join(sorted(keys))}" for check, keys in KNOWN.items()),
        found=found,
        todo=did_you_mean(names, [*KNOWN, *set().union(*KNOWN.values())]),
    )
