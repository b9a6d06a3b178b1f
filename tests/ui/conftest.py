"""A project with sample reports, and Airflow's own application with users who may see more or less of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ui_samples import SPEC, STAGES, gate, night, write


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the model ``flights``, two nights and two gate verdicts."""
    write(tmp_path / "include/pipelines/flights.yaml", SPEC)
    (tmp_path / "dags").mkdir()
    reports = tmp_path / "include/reports/flights"
    for day, verdict in ((dt.date(2013, 4, 1), "quiet"), (dt.date(2013, 4, 2), "drift")):
        write(reports / f"nights/{day}.json", night(day, verdict))
        write(reports / f"performance/{day}.html", f"<h1>flights: performance, night of {day}</h1>")
        write(reports / f"decisions/{day}.html", f"<h1>flights: decision, night of {day}</h1>")
        write(reports / f"nights/{day}.html", f"<h1>Night of {day}</h1><script>draw()</script>")
    for version, passed in (("9", False), ("10", True)):
        write(reports / f"gate/{version}/gate.json", gate(version, passed))
        write(reports / f"gate/{version}/gate.html", f"<h1>Gate of {version}</h1>")
    write(reports / "evaluation/abc10/evaluation.html", "<h1>Evaluation</h1>")
    write(reports / "search/5ea7c4/search.html", "<h1>Search</h1>")
    write(reports / "sample/2013-04-30/plan.html", "<h1>flights: sampling curve</h1>")
    write(reports / "lineage/10/lineage.html", "<h1>Lineage</h1>")
    write(reports / "costs/manual-2026/costs.html", "<h1>Costs</h1>")
    return tmp_path


@pytest.fixture(scope="session")
def airflow_app(airflow_db: Path) -> Any:
    """Airflow's web application, with the DAGs of two models known to it."""
    from airflow.api_fastapi.app import create_app
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.merge(DagBundleModel(name="ui-tests"))
        session.flush()
        for stage in STAGES:
            for name in ("flights", "other"):
                dag = {"dag_id": f"{name}_{stage}", "bundle_name": "ui-tests", "fileloc": "x", "relative_fileloc": "x"}
                if session.get(DagModel, dag["dag_id"]) is None:  # else another test ran it
                    session.add(DagModel(**dag))
    yield create_app(apps="core")
    with create_session() as session:
        session.query(DagModel).where(DagModel.bundle_name == "ui-tests").delete()


@pytest.fixture
def browse(airflow_app: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens a page as somebody, through Airflow's own log-in, guards and permissions.

    Airflow's simple auth manager lets every viewer read every DAG; here one can name the DAGs that may be read.
    """
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    from airflow_provider_sml.ui import app as module
    from airflow_provider_sml.ui.project import Project

    allowed: dict[str, set[str]] = {}
    real = SimpleAuthManager.is_authorized_dag

    def is_authorized_dag(self: Any, *, user: Any, details: Any = None, **rest: Any) -> bool:
        own = allowed.get(user.username)
        return (own is None or details.id in own) and real(self, user=user, details=details, **rest)

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", is_authorized_dag)
    airflow_app_overrides = _mounted(airflow_app).dependency_overrides
    airflow_app_overrides[module._project] = lambda: Project.read(project / "dags")
    client = TestClient(airflow_app, base_url="http://localhost", follow_redirects=False)

    def open_page(path: str, role: str | None = "admin", dags: set[str] | None = None) -> Any:
        headers = {}
        if role is not None:
            name = f"{role}-{'all' if dags is None else '-'.join(sorted(dags))}"
            if dags is not None:
                allowed[name] = dags
            user = SimpleAuthManagerUser(username=name, role=role)
            headers["Authorization"] = f"Bearer {get_auth_manager().generate_jwt(user)}"
        return client.get(path, headers=headers)

    yield open_page
    airflow_app_overrides.clear()


def _mounted(app: Any) -> Any:
    return next(route.app for route in app.routes if getattr(route, "path", None) == "/sml")
