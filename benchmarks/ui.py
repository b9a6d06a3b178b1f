"""What the page of a model takes: 500 versions in an embedded registry, 365 nights, 500 verdicts and cost reports.

The application is asked in this process, without the network and Airflow's log-in: ``new`` is a server that finds no
index and opens the files of every night, ``started`` one that finds it, ``again`` a page whose registry is asked anew,
``reload`` one within a quarter of a minute. Libraries are imported before. Wall seconds; medians but for ``new``.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._harness import PROJECT, Row, report

NIGHTS, VERSIONS, REPEATS = 365, 500, 7


def main() -> None:
    sys.path.insert(0, str(PROJECT / "tests" / "ui"))
    from airflow_provider_sml.testing import plugin  # a home of Airflow's own  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        make(root)
        report("ui", measure(root))


def make(root: Path) -> None:
    import big_model

    spec = (PROJECT / "include" / "pipelines" / "flights.yaml").read_text()
    big_model.write(root / "include/pipelines/flights.yaml", spec)
    (root / "dags").mkdir()
    big_model.nights(root / "include/reports", NIGHTS)
    big_model.evidence(root / "include/reports", VERSIONS)
    big_model.registry(root / "include/data/mlflow", VERSIONS)


def measure(root: Path) -> list[Row]:
    from airflow_provider_sml.ui import app, index, pages, registered
    from airflow_provider_sml.ui.live import look
    from airflow_provider_sml.ui.parts import Base
    from airflow_provider_sml.ui.project import STAGES, Project

    registered.PATIENCE = 60.0
    size = 0

    def page() -> None:
        nonlocal size
        [model] = Project.read(root / "dags").models
        seen = pages.Seen(set(STAGES), app._reports(model), registered.look_up(model), look(model), [], {})
        size = len(pages.model_page(Base("/sml", ""), model, seen))

    def restarted() -> None:
        index._indexes.clear()
        registered.forget()
        page()

    def asked_anew() -> None:
        registered.forget()
        page()

    page()  # imports
    (root / "include/reports/flights/index.cache").unlink()
    new = timed(restarted)
    rows = [Row("page", "seconds, new: no index", new, None)]
    cases: dict[str, tuple[Callable[[], Any], str | None]] = {
        "started: index found": (restarted, "<= 2"),
        "again: registry asked": (asked_anew, "<= 1"),
        "reload: nothing asked": (page, "<= 0.5"),
    }
    for case, (work, goal) in cases.items():
        rows.append(Row("page", f"seconds, {case}", statistics.median(timed(work) for _ in range(REPEATS)), None, goal))
    return [*rows, Row("page", "kB of HTML", size / 1000, None)]


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
