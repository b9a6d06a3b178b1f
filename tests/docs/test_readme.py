"""The README tells the truth: its code is code that runs, its links lead somewhere, its error is the real one."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_operators_example_is_the_one_that_the_tests_run():
    example = (ROOT / "airflow_provider_sml" / "example_dags" / "example_churn.py").read_text()
    shown = next(block for block in blocks(README, "python") if "TrainXGBoostOperator" in block)
    section = example.split("# [START churn]\n")[1].split("# [END churn]")[0]
    assert shown.strip() == section.strip()


def test_the_dag_file_of_the_yaml_way_is_the_one_of_the_demonstration():
    shown = next(block for block in blocks(README, "python") if "build_dags" in block)
    assert shown.strip() in (ROOT / "dags" / "flights.py").read_text()


def test_the_error_is_the_one_that_a_reader_gets(tmp_path):
    spec = (ROOT / "include" / "pipelines" / "flights.yaml").read_text()
    wrong = tmp_path / "include" / "pipelines" / "flights.yaml"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(spec.replace("weather.wind_speed", "weather.wind_sped"))
    command = [sys.executable, "-m", "airflow_provider_sml.pipelines", "check", "include/pipelines/flights.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    shown = next(block for block in blocks(README, "text") if block.startswith("PipelineSpecError"))
    pattern = re.escape(shown.strip()).replace(re.escape("..."), ".*")
    assert done.returncode == 1
    assert re.search(pattern, done.stderr), done.stderr


def test_the_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z]+)\b(?= *(?:#|`|$))", page.read_text())}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_that_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = []
    for link in links:
        if re.match(r"\w+://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            missing.append(link)
    assert missing == []


def anchors(markdown):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def test_pages_speak_of_the_project_alone():
    """No path of one machine, no address but examples and loopback."""
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"/(?:work|root|home|Users)/", text), page
        hosts = set(re.findall(r"https?://([\w.\-]+)", text))
        assert {h for h in hosts if not h.endswith(("example.com", "example.org", "semver.org"))} <= {
            "127.0.0.1",
            "localhost",
        }, page


def test_the_picture_is_readable_in_light_and_dark():
    picture = (ROOT / "docs" / "images" / "life.svg").read_text()
    assert "prefers-color-scheme: dark" in picture
    assert "<title" in picture and "<desc" in picture
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", textwrap.dedent(picture))
