"""Pytest fixtures to run DAGs for real: one Airflow database for the whole run, ``dag.test()`` for each DAG.

Use it from the top of a ``conftest.py``, before anything imports Airflow::

    pytest_plugins = ["airflow_provider_sml.testing.plugin"]

Importing it points Airflow at a temporary home with SQLite, loads no examples and turns telemetry off; a home that the
environment names already is left alone. It starts no scheduler: timing, deferral limits and ``on_kill`` of triggers
are not exercised by ``dag.test()``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest


def isolate() -> Path:
    """Point Airflow at a temporary home; gives the home."""
    if "AIRFLOW_HOME" not in os.environ:
        home = Path(tempfile.mkdtemp(prefix="airflow-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        (home / "dags").mkdir()
        os.environ.update(
            {
                "AIRFLOW_HOME": str(home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
                "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
                "DO_NOT_TRACK": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "SPARK_LOCAL_IP": "127.0.0.1",
            }
        )
    return Path(os.environ["AIRFLOW_HOME"])


HOME = isolate()


@dataclass
class DagResult:
    """How a run of a DAG ended.

    :param state: of the run, such as ``success``.
    :param tasks: state of each task.
    :param results: what each task gave to XCom.
    :param events: asset events of the run: URI and extra.
    """

    state: str
    tasks: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Project:
    """DAG files in Airflow's DAG folder, and runs of their DAGs.

    :param folder: the DAG folder; ``include/`` lies beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.dags = folder
        self.root = folder.parent

    def write(self, name: str, text: str) -> Path:
        """Write a DAG file, or with a path such as ``include/x.yaml`` any file of the project."""
        path = self.root / name if "/" in name else self.dags / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        if path.suffix == ".py":
            # Python tells old byte code by size and second: a file written in the same second would not be read.
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        return path

    def load(self, path: Path) -> dict[str, Any]:
        """The DAGs of a file; an import error fails the test."""
        try:
            from airflow.dag_processing.dagbag import DagBag
        except ImportError:  # Airflow 3.1
            from airflow.models.dagbag import DagBag

        bag = DagBag(str(path))
        assert not bag.import_errors, bag.import_errors
        return dict(bag.dags)

    def run(self, path: Path, dag_id: str, conf: Mapping[str, Any] | None = None, day: date | None = None) -> DagResult:
        """Run a DAG to its end.

        :param path: the DAG file; it is loaded anew, so that no run sees the params of another.
        :param dag_id: the DAG.
        :param conf: the run's conf; params of the same names take its values.
        :param day: the run is due at the end of this day (UTC); now when None.
        """
        due = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) if day else None
        run = self.load(path)[dag_id].test(logical_date=due, run_conf=dict(conf or {}))
        instances = run.get_task_instances()
        return DagResult(
            state=str(run.state.value if hasattr(run.state, "value") else run.state),
            tasks={instance.task_id: str(instance.state) for instance in instances},
            results=_results(dag_id, run.run_id),
            events=_events(dag_id, run.run_id),
        )


def _value(stored: Any) -> Any:
    """A result as the task gave it; XCom keeps some as JSON text and a plain text as it is."""
    import json

    if isinstance(stored, str):
        with contextlib.suppress(ValueError):
            return json.loads(stored)
    return stored


def _results(dag_id: str, run_id: str) -> dict[str, Any]:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(XComModel.task_id, XComModel.value).where(
            XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key == "return_value"
        )
        return {task: _value(value) for task, value in session.execute(query)}


def _events(dag_id: str, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = (
            select(AssetModel.uri, AssetEvent.extra)
            .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            .where(AssetEvent.source_dag_id == dag_id, AssetEvent.source_run_id == run_id)
        )
        return [(uri, dict(extra or {})) for uri, extra in session.execute(query)]


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    """Airflow's home with its database made; one for the whole test run."""
    from airflow.utils.db import initdb

    initdb()
    return HOME


@pytest.fixture
def dag_project(airflow_db: Path) -> Iterator[Project]:
    """A project whose DAG files are gone after the test."""
    project = Project(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]))
    before = set(project.dags.rglob("*"))
    yield project
    for path in set(project.dags.rglob("*")) - before:
        if path.is_file():
            path.unlink()
