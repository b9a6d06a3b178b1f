"""Environments of their own for the wheel, and what is asked in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "airflow_provider_sml"
DISTRIBUTION = "airflow-provider-sml"
UNREACHABLE = ("failed to fetch", "error sending request", "dns error", "connection refused", "timed out", "network")

# Every module of the Airflow surface, imported where no extra is installed. Modules are looked for at run time.
IMPORT_SURFACE = """
import importlib, json, pkgutil, sys
from airflow_provider_sml.errors import MissingExtraError

loaded, refused, failed = [], {}, {}

def load(name):
    try:
        module = importlib.import_module(name)
    except MissingExtraError as error:
        refused[name] = str(error)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
    else:
        loaded.append(name)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
            load(found.name)

for part in sys.argv[1:]:
    load("airflow_provider_sml." + part)
print(json.dumps({"loaded": loaded, "refused": refused, "failed": failed}))
"""
SURFACE = ("operators", "sensors", "triggers", "hooks", "links", "notifications", "pipelines", "ui")


def run(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: int = 240
) -> str:
    """Run a command and give its output; fail the test with its last lines."""
    words = [str(part) for part in command]
    done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def last_json(output: str) -> dict:
    """The JSON of the last line; libraries may print before it."""
    return json.loads(output.splitlines()[-1])


def clean(folder: Path) -> dict[str, str]:
    """The environment of a process that knows nothing of this project's tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    return env | {"AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}


def check_surface(python: Path, folder: Path) -> None:
    """Every module of the Airflow surface loads, or says which extra it needs."""
    result = last_json(run([python, "-c", IMPORT_SURFACE, *SURFACE], env=clean(folder), cwd=folder))
    assert result["failed"] == {}
    for name, message in result["refused"].items():
        assert f"pip install '{DISTRIBUTION}[" in message, f"{name} does not say which extra it needs: {message}"
    assert {f"{PACKAGE}.{part}" for part in SURFACE} <= {*result["loaded"], *result["refused"]}


ASK = """
import contextlib, io, json, sys
from airflow.cli import cli_parser

parser, told = cli_parser.get_parser(), {}
for command in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        options = parser.parse_args([*command.split(), "--output", "json"])
        options.func(options)
    text = said.getvalue()
    told[command] = json.loads(text[text.index("["):])
print(json.dumps(told))
"""


def asked(python: Path, folder: Path, *commands: str) -> dict:
    """What commands of ``airflow`` answer as JSON, all in one process, because each start takes seconds."""
    return last_json(run([python, "-c", ASK, *commands], env=clean(folder), cwd=folder))


def empty_environment_with(wheel: Path, folder: Path, extra: str = "") -> Path:
    """A fresh environment with the wheel and what it requires, at the lock's versions; skips without an index."""
    uv = shutil.which("uv") or shutil.which(PROJECT / ".tools" / "bin" / "uv")
    if uv is None:
        pytest.skip("uv is not installed")
    env = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    python = folder / "venv" / "bin" / "python"
    run([uv, "venv", "--quiet", "--python", os.path.realpath(sys.executable), folder / "venv"], env=env)
    asked_for = f"{DISTRIBUTION}[{extra}] @ {wheel.as_uri()}" if extra else wheel
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", PROJECT / "constraints.txt"]
    install.append(asked_for)
    done = subprocess.run([str(part) for part in install], env=env, capture_output=True, text=True, timeout=800)
    if done.returncode and any(word in done.stderr.lower() for word in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return python
