"""A page of a model with 500 versions and 365 nights: what it shows, and how much it opens and asks for that."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from big_model import COLUMNS, evidence, nights, registry
from ui_samples import SPEC, write

NIGHTS, VERSIONS = 365, 500
PAGE = "/sml/models/flights"
Browse = Callable[..., Any]


class Work:
    """Counts the files that are opened below a folder, and the requests to the registry."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.files: list[str] = []
        self.requests: list[str] = []

    def heard(self, event: str, arguments: Any) -> None:
        if self.root and event == "open" and str(arguments[0]).startswith(self.root):
            self.files.append(str(arguments[0]).removeprefix(self.root))

    def reset(self) -> None:
        self.files, self.requests = [], []


WORK = Work()
sys.addaudithook(WORK.heard)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("big")
    write(root / "include/pipelines/flights.yaml", SPEC)
    (root / "dags").mkdir()
    nights(root / "include/reports", NIGHTS)
    evidence(root / "include/reports", VERSIONS)
    registry(root / "include/data/mlflow", VERSIONS)
    return root


@pytest.fixture
def work(big: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    import mlflow

    from airflow_provider_sml.ui import index, registered

    def counted(name: str) -> Any:
        real = getattr(mlflow.MlflowClient, name)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            WORK.requests.append(name)
            return real(self, *arguments, **named)

        return call

    for name in ("search_model_versions", "get_registered_model", "search_registered_models", "get_model_version"):
        monkeypatch.setattr(mlflow.MlflowClient, name, counted(name))
    monkeypatch.setattr(registered, "PATIENCE", 60.0)
    index._indexes.clear()
    registered.forget()
    WORK.root = f"{(big / 'include/reports').resolve()}/"
    WORK.reset()
    yield WORK
    WORK.root = None
    registered.forget()


@pytest.fixture
def project(big: Path) -> Path:
    return big


def test_a_year_of_nights_is_read_once(browse: Browse, work: Work, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_sml.ui import index

    stored = big / "include/reports/flights/index.cache"
    stored.unlink(missing_ok=True)
    first = browse(PAGE)
    assert first.status_code == 200
    jsons = [name for name in work.files if name.endswith(".json") and "index.cache" not in name]
    assert len(jsons) == len(set(jsons)) <= 3 * NIGHTS + 20 + 20 + 1  # nights; verdicts, costs and the curve of a page
    assert len(work.requests) == 4  # the model, and 500 versions by 200
    assert not [name for name in work.files if name.endswith(".html")]

    work.reset()
    begun = time.perf_counter()
    assert browse(PAGE).text == first.text
    assert (work.files, work.requests) == ([], [])
    assert time.perf_counter() - begun < 5  # measured by benchmarks/ui.py; here only that it does not hang

    work.reset()
    index._indexes.clear()  # as another process
    assert browse(PAGE).text == first.text
    assert len(work.files) <= 1 + 20 + 20 + 1 and "flights/index.cache" in work.files

    [day] = nights(big / "include/reports", 1)  # one night is reported again
    work.reset()
    browse(PAGE)
    opened = {name for name in work.files if "index.cache" not in name}
    assert opened == {f"flights/{kind}/{day}.json" for kind in ("nights", "performance", "decisions")}


def test_the_page_is_in_parts(browse: Browse, work: Work) -> None:
    html = browse(PAGE).text
    assert html.count('class="square') == NIGHTS  # the whole year, as squares
    assert html.count('class="heat') == 60 * len(COLUMNS) + 6  # and a legend
    assert "nights 1 to 60 of 365" in html and 'href="/sml/models/flights?nights=2#nights"' in html
    assert "versions 1 to 20 of 500" in html and 'href="/sml/models/flights?versions=2#versions"' in html
    assert len(html) < 900_000
    older = browse(f"{PAGE}?nights=7&versions=25").text
    assert "nights 361 to 365 of 365" in older and "versions 481 to 500 of 500" in older
    assert "<b>Version 20</b>" in older and "<b>Version 21</b>" not in older
    assert browse(f"{PAGE}?versions=99999").text.count("<b>Version ") == 20  # the last part
    assert browse(f"{PAGE}?versions=0").status_code == 422


def test_each_number_leads_to_where_it_is_from(browse: Browse, work: Work) -> None:
    html = browse(PAGE).text
    for link in (
        '<a href="/sml/models/flights/evaluation/m500">0.710 [0.701, 0.720]</a>',
        '<a href="/sml/models/flights/gate/500"><span class="badge good">passed</span></a>',
        '<a href="/dags/flights_train/runs/manual__500" target="_parent" data-airflow>',
        '<a href="/sml/models/flights/costs/run-500">1.25 USD</a>',
        '<a href="/sml/models/flights/costs/run-500">2.50 USD</a>',
        '<a href="/dags/flights_deploy/runs/manual__9/tasks/deploy" target="_parent" data-airflow>',
        'href="/sml/models/flights/sample/2013-12-31"',
    ):
        assert link in html, link
    # a day's AUC leads to the night that told it: the next days' labels came later
    assert re.search(r'<a href="/sml/models/flights/performance/2013-12-31">0\.\d+ \[0\.\d+, 0\.\d+\]</a>', html)
    assert re.search(r'<a href="/sml/models/flights/nights/2013-12-31" aria-label="2013-12-31: quiet">', html)


def test_it_says_what_is_live_where(browse: Browse, work: Work) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", browse(PAGE).text).split())
    assert "flights Vertex AI version 500 80 % 2013-12-01 05:00:00 UTC n1-standard-4 spot vertex://endpoint" in page
    assert "flights Vertex AI version 499 A/B test 20 % 2013-12-02 05:00:00 UTC n1-standard-4 not spot" in page
    assert "champion none → 500 flights_deploy/deploy/manual__9 of ann 2 facts" in page
    assert "500 champion" in page and "approved by ann" in page
    assert "flights 4050 2013-01-01 to 2013-04-30 2013-05-01 to 2013-05-28 2013-05-29 to 2013-06-25 25% 500" in page
    assert "20% of the rows; expected loss of AUC 0.0032; allowed 0.005; 21 s with the plan, 60 s for all rows" in page
    assert "The training of 500 versions cost 625.00 USD" in page


def test_who_may_read_only_some_dags_sees_only_their_parts(browse: Browse, work: Work) -> None:
    html = browse(PAGE, role="viewer", dags={"flights_monitor"}).text
    assert "Each night" in html and work.requests == []
    for hidden in ("Vertex AI", "Evidence", "m500", "0.7101", "1.25 USD", "4050", "Waits for approval", "manual__"):
        assert hidden not in html, hidden
    html = browse(PAGE, role="viewer", dags={"flights_deploy"}).text
    assert "Vertex AI" in html and "Aliases" in html
    for hidden in ("Each night", "0.7101", "1.25 USD", "4050"):
        assert hidden not in html, hidden


def test_a_registry_that_does_not_answer_takes_no_page_away(
    browse: Browse, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_sml.ui import registered

    known = browse(PAGE).text

    def slow(place: str, name: str) -> Any:
        time.sleep(1.0)
        raise ConnectionError("no route to host; password hunter2")

    monkeypatch.setattr(registered, "_ask", slow)
    monkeypatch.setattr(registered, "PATIENCE", 0.1)
    monkeypatch.setattr(registered, "FRESH", 0.0)
    stale = browse(PAGE).text
    assert "the registry has not answered yet; open this page again; this is from 20" in stale
    assert "0.710 [0.701, 0.720]" in stale and "0.710 [0.701, 0.720]" in known
    registered.forget()
    monkeypatch.setattr(registered, "PATIENCE", 5.0)
    gone = browse(PAGE).text
    assert "the registry cannot be asked: ConnectionError" in gone and "hunter2" not in gone
    assert "<b>Version 500</b>" in gone  # the gate's verdicts lie on disk
