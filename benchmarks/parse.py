"""What a DAG file costs to parse, and the operators to import, beyond Airflow itself.

Each measurement is a fresh Python with warm byte code. A DAG file is executed after ``import airflow`` the way the DAG
processor does it (as a module of its own, not as ``__main__``), against a Python that only imports ``airflow``. All
operators are imported against the same, and against ``airflow.sdk``, which no DAG file can do without. The figures are
CPU seconds: imports run in one thread, so on a quiet machine they are the wall's, and on a busy one they stay so.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._harness import PROJECT, Row, cpu_seconds, interleave, report

REPEATS = 7
GOAL_SECONDS = 0.2


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        env = environment(Path(home))
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
        rows = [measure(path.relative_to(PROJECT).as_posix(), execution(path), "airflow", env) for path in dag_files()]
        rows += [measure("operators", import_of_operators(), baseline, env) for baseline in ("airflow", "airflow.sdk")]
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


def dag_files() -> list[Path]:
    return [path for path in sorted((PROJECT / "dags").rglob("*.py")) if not path.name.startswith("_")]


def execution(path: Path) -> str:
    return f"import runpy; runpy.run_path({str(path)!r}, run_name='unusual_prefix_{path.stem}')"


def import_of_operators() -> str:
    import airflow_provider_sml.operators as package

    modules = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return "import " + ", ".join([package.__name__, *(module.name for module in modules)])


def measure(case: str, code: str, baseline: str, env: dict[str, str]) -> Row:
    def run(statement: str) -> float:
        return cpu_seconds([sys.executable, "-c", statement], env)

    print(f"{case} against import {baseline} ...", file=sys.stderr)
    ours, base = interleave(lambda: run(f"import airflow; {code}"), lambda: run(f"import {baseline}"), REPEATS)
    goal = f"ours - baseline < {GOAL_SECONDS} s; here {ours - base:+.3f} s"
    return Row(f"{case} against import {baseline}", "CPU seconds", ours, base, goal)


if __name__ == "__main__":
    main()
