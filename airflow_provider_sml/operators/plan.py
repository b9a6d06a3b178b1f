"""Plan mode: what an operator would ask of a cloud, printed, and nothing asked but questions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any


def show(log: logging.Logger, what: str, calls: Sequence[tuple[str, str, dict[str, Any]]], cost: str) -> dict[str, Any]:
    """Print the calls and the cost of a plan; gives it for XCom, shortened to the operations.

    :param log: of the task.
    :param what: what the plan makes.
    :param calls: service, operation and parameters of each call.
    :param cost: the estimate, in words.
    """
    log.info("plan for %s: %d calls, nothing is changed", what, len(calls))
    for service, operation, params in calls:
        log.info("%s %s %s", service, operation, json.dumps(params, indent=1, default=str))
    log.info("estimated cost: %s", cost)
    return {"kind": "plan", "what": what, "calls": [f"{service}:{name}" for service, name, _ in calls], "cost": cost}
