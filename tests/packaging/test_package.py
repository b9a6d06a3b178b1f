"""What is shipped: the wheel holds what it should, installs beside Airflow alone, and the lock's libraries import."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "airflow_provider_sml"
DISTRIBUTION = "airflow-provider-sml"

# `pip check` does not see a library that breaks on another one's version; only its import does.
HEAVY = {
    "spark and lake": [
        "import pyspark.sql",
        "import pandas",
        "import pyarrow.parquet",
        "import duckdb",
        "import pyiceberg.catalog.sql",
    ],
    "training": [
        "import dask",
        "import distributed",
        "import dask_gateway",
        "import xgboost",
        "import sklearn",
        "import optuna",
    ],
    "registry and serving": ["import mlflow", "import fastapi", "import uvicorn"],
    "drift": ["from evidently import Report"],
    "clouds": ["import boto3", "from google.cloud import bigquery"],
}
IMPORT_EACH = """
import json, sys, traceback
failed = {}
for statement in json.loads(sys.argv[1]):
    try:
        exec(statement)
    except BaseException as error:
        failed[statement] = "".join(traceback.format_exception_only(error)).strip()
print(json.dumps(failed))
"""

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


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that a build leaves nothing behind in the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (PACKAGE, "tests"):
        shutil.copytree(PROJECT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source], cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("group", HEAVY)
def test_heavy_libraries_import(group: str, tmp_path: Path) -> None:
    env = os.environ | {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    output = run([sys.executable, "-c", IMPORT_EACH, json.dumps(HEAVY[group])], env=env, cwd=tmp_path)
    assert last_json(output) == {}


def test_wheel_is_named_after_the_provider(wheel: Path) -> None:
    from airflow_provider_sml import __version__
    from airflow_provider_sml.get_provider_info import get_provider_info

    assert wheel.name == f"{PACKAGE}-{__version__}-py3-none-any.whl"
    assert get_provider_info()["package-name"] == DISTRIBUTION


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {PACKAGE, f"{PACKAGE}-{wheel.name.split('-')[1]}.dist-info"}
    assert f"{PACKAGE}/py.typed" in names
    assert not [name for name in names if "test_" in name or "/tests/" in name or name.endswith(".pyc")]
    # Every module and data file of the tree is there, so that nothing works only from a checkout.
    tree = {
        path.relative_to(PROJECT).as_posix()
        for path in (PROJECT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(tree - set(names)) == []


def test_wheel_declares_what_setup_cfg_says(wheel: Path, setup_cfg: configparser.ConfigParser, tmp_path: Path) -> None:
    distribution, folder = metadata(wheel, tmp_path)
    assert distribution.metadata["Name"] == DISTRIBUTION
    assert distribution.metadata["Requires-Python"] == setup_cfg["options"]["python_requires"]
    assert "Apache-2.0" in (distribution.metadata["License-Expression"], distribution.metadata["License"])
    assert (folder / "licenses" / "LICENSE").read_text() == (PROJECT / "LICENSE").read_text()

    declared = {(entry.group, entry.name): entry.value for entry in distribution.entry_points}
    wanted = {
        (group, line.partition("=")[0].strip()): line.partition("=")[2].strip()
        for group, lines in setup_cfg["options.entry_points"].items()
        for line in lines.strip().splitlines()
    }
    assert declared == wanted
    assert ("apache_airflow_provider", "provider_info") in declared

    extras = set(distribution.metadata.get_all("Provides-Extra"))
    assert extras == set(setup_cfg["options.extras_require"])
    used = {extra for line in distribution.requires or [] for extra in extras if f'extra == "{extra}"' in line}
    assert used == extras, "an extra without a requirement"
    pinned = [line for line in distribution.requires or [] if "==" in line.partition(";")[0]]
    assert pinned == [], "a provider gives ranges: a managed Airflow brings versions of its own"


def test_entry_points_name_modules_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    distribution, _ = metadata(wheel, tmp_path)
    modules = {entry.module.replace(".", "/") + ".py" for entry in distribution.entry_points}
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(modules - set(archive.namelist())) == []


def test_requirements_repeat_the_ranges_of_setup_cfg(setup_cfg: configparser.ConfigParser) -> None:
    lists = [setup_cfg["options"]["install_requires"]]
    lists += [
        text for name, text in setup_cfg["options.extras_require"].items() if name not in ("testing", "xgboost-gpu")
    ]
    ranges = {line for text in lists for line in text.split("\n") if line and not line.startswith((DISTRIBUTION, "#"))}
    ranges = {line for line in ranges if not line.startswith("apache-airflow>")}  # the platform brings it
    lines = {line.strip() for line in (PROJECT / "requirements.txt").read_text().splitlines()}
    assert {line for line in lines if line and not line.startswith("#")} == ranges


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_works_beside_airflow_alone(wheel: Path, tmp_path: Path) -> None:
    python = empty_environment_with(wheel, tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    env |= {"AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

    listed = run([python, "-m", "airflow", "providers", "list", "--output", "json"], env=env, cwd=tmp_path)
    providers = json.loads(listed[listed.index("[") :])
    assert DISTRIBUTION in [provider["package_name"] for provider in providers]

    result = last_json(run([python, "-c", IMPORT_SURFACE, *SURFACE], env=env, cwd=tmp_path))
    assert result["failed"] == {}
    for name, message in result["refused"].items():
        assert f"pip install '{DISTRIBUTION}[" in message, f"{name} does not say which extra it needs: {message}"
    assert {f"{PACKAGE}.{part}" for part in SURFACE} <= {*result["loaded"], *result["refused"]}


def metadata(wheel: Path, folder: Path) -> tuple[importlib.metadata.Distribution, Path]:
    """The wheel's metadata, and the folder that holds it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if ".dist-info/" in name])
    (info,) = folder.glob("*.dist-info")
    return importlib.metadata.Distribution.at(info), info


def empty_environment_with(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel and what it requires, at the lock's versions; skips without an index."""
    uv = shutil.which("uv") or shutil.which(PROJECT / ".tools" / "bin" / "uv")
    if uv is None:
        pytest.skip("uv is not installed")
    env = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    python = folder / "venv" / "bin" / "python"
    run([uv, "venv", "--quiet", "--python", os.path.realpath(sys.executable), folder / "venv"], env=env)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", PROJECT / "constraints.txt", wheel]
    done = subprocess.run([str(part) for part in install], env=env, capture_output=True, text=True, timeout=800)
    if done.returncode and any(word in done.stderr.lower() for word in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return python


UNREACHABLE = ("failed to fetch", "error sending request", "dns error", "connection refused", "timed out", "network")
