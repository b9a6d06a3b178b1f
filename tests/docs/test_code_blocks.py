"""Every code block of the documentation runs, or says why it does not.

Python runs, page by page, in one namespace and an empty folder. YAML is laid over the demonstration's spec and must be
accepted. In bash, the project's own commands run; of the others (docker, astro, ...) the syntax is checked. A block
that cannot run stands below a comment ``<!-- not run: why -->``.
"""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<why>[^>]+) -->\n)?^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
OWN = ("python -m airflow_provider_sml", "python scripts/", "docker/env.sh")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    skipped: bool

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read(page):
    text = page.read_text()
    return [
        Block(page, text[: match.start("code")].count("\n") + 1, match["language"], textwrap.dedent(match["code"]),
              match["why"] is not None)
        for match in FENCE.finditer(text)
    ]  # fmt: skip


BLOCKS = [block for page in PAGES for block in read(page)]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def some(language):
    return [block for block in BLOCKS if block.language == language and not block.skipped and block.page != TUTORIAL]


def test_every_block_says_what_it_is_and_is_looked_at():
    assert {block.language for block in BLOCKS} <= {"python", "yaml", "bash", "text"}
    # as many closed fences as found blocks: none was missed by the pattern
    for page in PAGES:
        fences = len(re.findall(r"^ *```", page.read_text(), re.MULTILINE))
        assert fences == 2 * len([block for block in BLOCKS if block.page == page]), page


@pytest.mark.parametrize("page", sorted({block.page for block in some("python")}), ids=lambda page: page.stem)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", "PROJECT": ROOT}
    for block in some("python"):
        if block.page == page:
            exec(compile(block.code, str(block), "exec"), names)


@pytest.mark.parametrize("block", some("yaml"), ids=str)
def test_yaml_is_a_part_of_a_spec(block, tmp_path):
    from airflow_provider_sml.pipelines import load_spec

    assert isinstance(yaml.safe_load(block.code), dict)
    (tmp_path / "flights.yaml").write_text((ROOT / "include" / "pipelines" / "flights.yaml").read_text())
    (tmp_path / "flights.shown.yaml").write_text(block.code)
    load_spec(tmp_path / "flights.yaml", profile="shown")


@pytest.mark.parametrize("block", some("bash"), ids=str)
def test_bash_is_sound_and_the_commands_of_the_project_run(block, tmp_path):
    syntax = subprocess.run(["bash", "-n", "-c", block.code], capture_output=True, text=True)
    assert syntax.returncode == 0, syntax.stderr
    for name in re.findall(r"(?:-f|--constraint) (\S+\.\w+)", block.code):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", block.code, re.MULTILINE)) <= targets
    for line in block.code.replace("\\\n", " ").splitlines():
        if line.startswith(OWN):
            # in a copy of what the commands read, so that nothing is written into the tree
            for name in ("include", "dags", "plugins", "scripts", "docker", "requirements.txt", "airflow_provider_sml"):
                if not (tmp_path / name).exists():
                    copy(ROOT / name, tmp_path / name)
            done = run(line, tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_leads_to_a_judged_model(tmp_path):
    """The whole page, block by block, as a reader would type it."""
    from airflow_provider_sml.ml.lake import Lake

    script = ["set -e"]
    for block in read(TUTORIAL):
        if block.language == "python" and not block.skipped:
            script += ["python - <<'EOF_OF_BLOCK'", block.code, "EOF_OF_BLOCK"]
        elif block.language == "bash" and not block.skipped:
            script.append(block.code)
    done = run("\n".join(script), tmp_path, timeout=1400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    days = Lake(str(tmp_path / "include" / "data" / "lake")).days("churn")
    assert len(days) == 60 and set(days.values()) == {40}
    assert "guess" in (tmp_path / "include" / "pipelines" / "churn.yaml").read_text()
    verdict = (tmp_path / "include" / "reports" / "churn" / "gate" / "1" / "gate.json").read_text()
    assert '"passed": true' in verdict


def copy(source, target):
    import shutil

    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("data", "reports", "__pycache__", ".env"))
    else:
        shutil.copy(source, target)


def run(command, folder, timeout=240):
    """A command as a reader has it: this interpreter first on the path, no Airflow of the tests in the environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
