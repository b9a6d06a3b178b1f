"""Who may see what, and how what is shown is caged; Airflow's own guards are in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ui_samples import STAGES, write

Browse = Callable[..., Any]
NIGHT = "/sml/models/flights/nights/2013-04-02"
ADDRESSES = [
    "/sml/",
    "/sml/models/flights",
    NIGHT,
    f"{NIGHT}/report.html",
    "/sml/models/flights/gate/10/report.html",
    "/sml/models/flights?nights=1&versions=2&moves=3",
    "/sml/models/flights/sample/2013-04-30/report.html",
    "/sml/static/page.css",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_log_in_there_is_nothing(browse: Browse, address: str) -> None:
    answer = browse(address, role=None)
    assert answer.status_code == 401
    assert "flights" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_user_without_a_role_sees_nothing(browse: Browse, address: str) -> None:
    assert browse(address, role="").status_code == 403


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_admin_sees_all(browse: Browse, address: str) -> None:
    assert browse(address).status_code == 200


def test_a_forged_token_is_refused(browse: Browse, airflow_app: Any) -> None:
    from fastapi.testclient import TestClient

    answer = TestClient(airflow_app).get("/sml/", headers={"Authorization": "Bearer a.b.c"})
    assert answer.status_code == 403


def test_every_route_is_guarded(airflow_app: Any) -> None:
    from airflow_provider_sml.ui.app import create_app

    for route in create_app().routes:
        guards = [dependency.call.__qualname__ for dependency in route.dependant.dependencies]
        assert "requires_access_view.<locals>.inner" in guards, route.path


def test_a_viewer_of_other_dags_does_not_see_the_model(browse: Browse) -> None:
    others = {f"other_{stage}" for stage in STAGES}
    answer = browse("/sml/", role="viewer", dags=others)
    assert answer.status_code == 200
    assert "flights" not in answer.text
    for address in ADDRESSES[1:-1]:
        assert browse(address, role="viewer", dags=others).status_code == 403
    assert browse("/sml/models/unheard_of", role="viewer", dags=others).status_code == 403  # gives nothing away


def test_each_part_needs_its_own_dag(browse: Browse) -> None:
    seen = browse("/sml/models/flights", role="viewer", dags={"flights_train"})
    assert seen.status_code == 200
    assert "Version 10" in seen.text
    assert "2013-04-02" not in seen.text
    assert "flights_monitor" not in seen.text
    assert 'id="live"' not in seen.text and 'id="versions"' in seen.text
    for path in (NIGHT, f"{NIGHT}/report.html"):
        assert browse(path, role="viewer", dags={"flights_train"}).status_code == 403
    assert browse("/sml/models/flights/gate/10", role="viewer", dags={"flights_train"}).status_code == 200
    listed = browse("/sml/", role="viewer", dags={"flights_train"}).text
    assert "version 10" in listed
    assert "2013-04-02" not in listed


def test_a_report_is_caged(browse: Browse) -> None:
    report = browse(f"{NIGHT}/report.html")
    assert report.text == "<h1>Night of 2013-04-02</h1><script>draw()</script>"
    assert report.headers["content-type"].startswith("text/html")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert "connect-src 'none'" in policy
    assert report.headers["x-content-type-options"] == "nosniff"
    assert browse(NIGHT).text.count('sandbox="allow-scripts"') == 1


def test_pages_run_no_inline_script(browse: Browse) -> None:
    for address in ("/sml/", "/sml/models/flights", "/sml/models/flights?nights=2", NIGHT, "/sml/models/unknown"):
        page = browse(address)
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "style=" not in page.text
        assert "onclick" not in page.text
        assert page.headers["cache-control"] == "no-store"


def test_the_api_is_not_documented(browse: Browse) -> None:
    for address in ("/sml/docs", "/sml/redoc", "/sml/openapi.json"):
        assert browse(address).status_code == 404


@pytest.mark.parametrize(
    "key",
    [
        "%2e%2e", "%2e%2e%2f%2e%2e%2fsecret", "..%2f..%2fsecret", "2013-04-02%2f..%2fsecret", "%2fetc%2fpasswd",
        "2013-04-02%00", "2013-04-02.html", "2013-04-0%D9%A2", "2013-04-02%0a", "link", "2013-04-03", "%5c..%5c..",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["nights", "gate", "evaluation", "secret", "%2e%2e"])
def test_no_path_leads_out(browse: Browse, project: Path, kind: str, key: str) -> None:
    write(project / "include/reports/secret.html", "SECRET")
    write(project / "secret/gate.html", "SECRET")
    reports = project / "include/reports/flights"
    (reports / "nights/2013-04-03.html").symlink_to(project / "include/reports/secret.html")
    for name in ("gate", "evaluation"):
        os.symlink(project / "secret", reports / name / "link")
    for tail in ("", "/report.html"):
        answer = browse(f"/sml/models/flights/{kind}/{key}{tail}")
        assert answer.status_code in (403, 404) or "<title>Airflow</title>" in answer.text
        assert "SECRET" not in answer.text


def test_a_linked_json_is_not_read_either(browse: Browse, project: Path) -> None:
    secret = write(project / "secret.json", {"day": "2013-04-05", "verdict": "SECRET", "drifted": ["SECRET"]})
    (project / "include/reports/flights/nights/2013-04-05.json").symlink_to(secret)
    page = browse("/sml/models/flights").text
    assert "SECRET" not in page
    assert "2013-04-05" in page


def test_a_model_name_leads_nowhere(browse: Browse) -> None:
    for name in ("%2e%2e", "flights%2f..", "FLIGHTS"):
        answer = browse(f"/sml/models/{name}")
        assert answer.status_code in (403, 404) or "<title>Airflow</title>" in answer.text


def test_another_folder_for_reports_may_itself_be_a_link(browse: Browse, project: Path) -> None:
    moved = project / "elsewhere"
    (project / "include/reports").rename(moved)
    (project / "include/reports").symlink_to(moved)
    assert browse(f"{NIGHT}/report.html").status_code == 200


def test_broken_specs_are_for_those_who_may_see_import_errors(
    browse: Browse, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    write(project / "include/pipelines/broken.yaml", "name: broken\nfeaturs: {}\n")
    assert "broken.yaml" in browse("/sml/").text
    real = SimpleAuthManager.is_authorized_view

    def without(self: Any, *, access_view: Any, user: Any) -> bool:
        return access_view != AccessView.IMPORT_ERRORS and real(self, access_view=access_view, user=user)

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_view", without)
    assert "broken.yaml" not in browse("/sml/").text
