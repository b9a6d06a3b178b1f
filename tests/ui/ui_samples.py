"""Sample reports as the monitor and the gate write them."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

SPEC = (Path(__file__).resolve().parents[2] / "include" / "pipelines" / "flights.yaml").read_text()
STAGES = ("ingest", "train", "deploy", "monitor")


def write(path: Path, content: Any) -> Path:
    """Write text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def night(day: dt.date, verdict: str = "quiet", **more: Any) -> dict[str, Any]:
    """A night's numbers as the monitor writes them."""
    drifted = ["rain", "carrier"] if verdict == "drift" else []
    columns = [{"name": name, "method": "W", "value": 0.4, "threshold": 0.1, "drifted": True} for name in drifted]
    before = {"day": str(day - dt.timedelta(days=1)), "rows": 900, "auc": 0.71234, "log_loss": 0.4, "ece": 0.02}
    return {
        "model": "flights", "day": str(day), "version": "1", "verdict": verdict, "share": 0.25, "drifted": drifted,
        "columns": columns, "rows": 949, "performance": [before], **more,
    }  # fmt: skip


def gate(version: str, passed: bool = True) -> dict[str, Any]:
    """A gate verdict as the gate writes it."""
    check = {"name": "auc", "passed": passed, "value": "0.7101 [0.70, 0.72]", "limit": "at least 0.65", "todo": "more"}
    return {
        "name": "flights", "version": version, "model_id": f"abc{version}", "passed": passed, "checks": [check],
        "time": "2013-04-01T05:00:00+00:00",
    }  # fmt: skip
