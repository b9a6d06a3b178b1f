"""The seconds of each stage of the demonstration: one model's whole life on real flights.

It runs the whole demonstration once, so one run is one measurement; there is no baseline to compare it with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._harness import PROJECT, Row, report

GOAL_SECONDS = 240


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "demo.json"
        started = time.perf_counter()
        code = subprocess.run([sys.executable, "include/demo/run.py", "--json", str(path)], cwd=PROJECT).returncode
        total = time.perf_counter() - started
        if code:
            raise SystemExit(f"The demonstration ended with {code}; nothing is reported.")
        stages = json.loads(path.read_text())["stages"]
    print()
    report("demo", rows(stages, total))


def rows(stages: list[dict[str, Any]], total: float) -> list[Row]:
    """A row for each stage, and one for the whole process with its start and its imports."""
    taken = [Row(stage["name"], "seconds", float(stage["seconds"]), None) for stage in stages]
    return [*taken, Row("total", "seconds", total, None, f"ours < {GOAL_SECONDS} s, without set-up")]


if __name__ == "__main__":
    main()
