"""What the pages say."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ui_samples import SPEC, gate, night, write

Browse = Callable[..., Any]


def text(answer: Any) -> str:
    """A page as one reads it."""
    assert answer.status_code == 200, answer.text
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())


def test_the_list_says_what_counts(browse: Browse) -> None:
    answer = browse("/sml/")
    page = text(answer)
    assert answer.text.startswith("<!doctype html><html lang=")
    assert "flights not deployed drift 2013-04-02 passed version 10 – Will this flight arrive" in page  # noqa: RUF001


def test_the_list_names_what_serves(browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_sml.ui import app
    from airflow_provider_sml.ui.live import Live

    serving = Live("serving", "7", "http://127.0.0.1:8500/invocations", "2013-04-01T05:00:00+00:00")
    monkeypatch.setattr(app, "look", lambda model: serving)
    for address in ("/sml/", "/sml/models/flights"):
        page = text(browse(address)).lower()
        assert "http://127.0.0.1:8500/invocations" in page
        assert "2013-04-01 05:00:00 utc" in page
        assert "7" in page


def test_a_model_shows_its_nights_newest_first(browse: Browse) -> None:
    page = text(browse("/sml/models/flights"))
    assert "1 of the last 2 nights drifted." in page
    reports = "report performance"
    assert f"2013-04-02 drift 25% rain carrier 949 1 – – – {reports} 2013-04-01 quiet 25% 949 1 0.712 –" in page  # noqa: RUF001


def test_it_shows_sixty_nights_in_full_and_links_only_to_reports_that_are_there(browse: Browse, project: Path) -> None:
    folder = project / "include/reports/flights/nights"
    for number in range(80):
        day = dt.date(2013, 6, 1) + dt.timedelta(days=number)
        write(folder / f"{day}.json", night(day))
    html = browse("/sml/models/flights").text
    assert html.count('class="square') == 82
    assert html.count("/nights/") == html.count("/nights/2013-04-0")
    table = html[html.index("Each night") :]
    assert table.count("<td>2013-") == 60 and "<td>2013-08-19" in table and "<td>2013-06-20" not in table


def test_it_shows_the_gate_with_its_pages(browse: Browse) -> None:
    html = browse("/sml/models/flights").text
    assert html.index("Version 10") < html.index("Version 9<")
    assert 'href="/sml/models/flights/gate/10"' in html
    assert 'href="/sml/models/flights/evaluation/abc10"' in html
    assert 'href="/sml/models/flights/evaluation/abc9"' not in html
    assert "0.7101 [0.70, 0.72]" in html


def test_links_into_airflow_leave_the_frame(browse: Browse) -> None:
    html = browse("/sml/models/flights").text
    for stage in ("ingest", "train", "deploy", "monitor"):
        assert f'<a href="/dags/flights_{stage}" target="_parent" data-airflow' in html


def test_it_follows_airflow_to_another_path(browse: Browse, airflow_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_app, "root_path", "/team/airflow")
    html = browse("/team/airflow/sml/models/flights").text
    assert 'href="/team/airflow/dags/flights_train"' in html
    assert 'href="/team/airflow/sml/models/flights/gate/10"' in html
    assert 'src="/team/airflow/sml/static/page.js?' in html


def test_everything_is_escaped(browse: Browse, project: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    spec = SPEC.replace("Will this flight arrive more than 15 minutes late?", json.dumps(evil))
    write(project / "include/pipelines/flights.yaml", spec)
    reports = project / "include/reports/flights"
    day = dt.date(2013, 4, 2)
    odd = {"drifted": [evil], "version": evil, "columns": [{"name": evil, "method": evil, "value": 1, "drifted": True}]}
    write(reports / f"nights/{day}.json", night(day, evil, **odd))
    write(reports / "gate/11/gate.json", gate("11") | {"time": evil, "version": evil, "model_id": evil, "checks": [
        {"name": evil, "passed": False, "value": evil, "limit": evil, "todo": evil}]})  # fmt: skip
    write(project / f"include/pipelines/{evil[:5]}.yaml", f"name: {json.dumps(evil)}")
    write(reports / "nights/2013-04-03.json", {"day": evil})
    for address in ("/sml/", "/sml/models/flights"):
        html = browse(address).text
        assert "<img" not in html
        assert "&lt;img src=x" in html
        assert "\"'&" not in html


def test_a_broken_spec_hides_nothing(browse: Browse, project: Path) -> None:
    folder = project / "include/pipelines"
    write(folder / "broken.yaml", SPEC.replace("features:", "featurs:").replace("name: flights", "name: broken"))
    write(folder / "twin.yaml", SPEC)
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    page = text(browse("/sml/"))
    assert "drift 2013-04-02" in page
    assert re.search(r"include/pipelines/broken.yaml.*featurs is not a key of the spec", page)
    assert "twin.yaml: the name flights is taken by include/pipelines/flights.yaml" in page
    assert "bytes.yaml" in page
    assert str(project) not in page


def test_damaged_reports_hide_nothing(browse: Browse, project: Path) -> None:
    reports = project / "include/reports/flights"
    write(reports / "nights/2013-04-03.json", "{")
    write(reports / "nights/2013-04-04.json", {"day": "2013-04-04"})
    write(reports / "nights/notes.json", "{}")
    write(reports / "gate/12/gate.json", "[]")
    page = text(browse("/sml/models/flights"))
    assert "2013-04-04 unreadable verdict: Field required 2013-04-03 unreadable Invalid JSON" in page
    assert "unreadable version 12" in page
    assert "2013-04-02 drift" in page
    assert "notes" not in page


def test_not_a_number_is_shown_as_unknown(browse: Browse, project: Path) -> None:
    odd = night(dt.date(2013, 4, 5), share=float("nan"), rows=None, version=None)
    write(project / "include/reports/flights/nights/2013-04-05.json", odd)
    assert "2013-04-05 quiet – –" in text(browse("/sml/models/flights"))  # noqa: RUF001


def test_an_empty_project_says_so(browse: Browse, project: Path) -> None:
    (project / "include/pipelines/flights.yaml").unlink()
    assert "No model that you may see" in text(browse("/sml/"))
    assert browse("/sml/models/flights").status_code == 404


def test_profiles_are_no_models_and_composer_keeps_include_among_the_dags(tmp_path: Path) -> None:
    from airflow_provider_sml.ui.project import Project

    write(tmp_path / "dags/include/pipelines/flights.yaml", SPEC)
    write(tmp_path / "dags/include/pipelines/flights.production.yaml", "places: {lake: sml_lake}\n")
    found = Project.read(tmp_path / "dags")
    assert ([model.name for model in found.models], found.broken) == (["flights"], [])
    assert found.models[0].place("include/reports") == tmp_path / "dags/include/reports"
    assert found.models[0].place("s3://bucket/reports") is None


def test_an_endpoint_that_is_gone_is_told_from_one_that_never_was(project: Path) -> None:
    from airflow_provider_sml.ui.live import look
    from airflow_provider_sml.ui.project import Project

    [model] = Project.read(project / "dags").models
    assert look(model).state == "none"
    record = {
        "pid": 2**22 + 1, "started": 1.0, "host": "127.0.0.1", "port": 9, "private_port": 9, "model": "flights",
        "version": "3", "model_id": "abc", "bundle": "x", "since": "2013-04-01T05:00:00", "control": "c", "log": "l",
    }  # fmt: skip
    write(project / "include/data/endpoints/flights/endpoint.json", record)
    gone = look(model)
    assert (gone.state, gone.note) == ("silent", "its server does not run on this machine")
    write(project / "include/data/endpoints/flights/endpoint.json", "{")
    assert look(model).state == "none"
