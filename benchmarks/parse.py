"""What a DAG file costs to parse, and the operators to import, beyond Airflow itself.

Each measurement is a fresh Python with warm byte code. A DAG file is executed after ``import airflow`` the way the DAG
processor does it (as a module of its own, not as ``__main__``). There are two baselines, each a fresh Python: one that
only imports ``airflow``, and one that imports ``airflow.sdk``, which every DAG file needs whatever it does. The goal is
stated for both; the second one says what this package adds.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._harness import PROJECT, Row, interleave, report, seconds

REPEATS = 7
GOAL_SECONDS = 0.2
BASELINES = ("airflow", "airflow.sdk")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        env = environment(Path(home))
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
        rows = []
        for case, code in cases().items():
            for baseline in BASELINES:
                rows.append(measure(case, code, baseline, env))
                print(f"measured: {rows[-1].case}", file=sys.stderr)
    report("parse", rows)


def environment(home: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    return env | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONPATH": str(PROJECT),
    }


def cases() -> dict[str, str]:
    """Each case and the code that it runs after ``import airflow``."""
    found = {
        f"dags/{path.name}": f"import runpy; runpy.run_path({str(path)!r}, run_name='unusual_prefix_{path.stem}')"
        for path in sorted((PROJECT / "dags").glob("*.py"))
        if not path.name.startswith("_")
    }
    import airflow_provider_sml.operators as package

    names = [module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    found["operators"] = "import " + ", ".join([package.__name__, *names])
    return found


def measure(case: str, code: str, baseline: str, env: dict[str, str]) -> Row:
    def run(statement: str) -> float:
        return seconds([sys.executable, "-c", statement], env)

    ours, base = interleave(lambda: run(f"import airflow; {code}"), lambda: run(f"import {baseline}"), REPEATS)
    goal = f"ours - baseline < {GOAL_SECONDS} s; here {ours - base:+.3f} s"
    return Row(f"{case} against import {baseline}", "seconds", ours, base, goal)


if __name__ == "__main__":
    main()
