"""What is shipped: the wheel holds what it should, installs beside Airflow alone, and the lock's libraries import."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import (
    DISTRIBUTION,
    PACKAGE,
    PROJECT,
    asked,
    check_surface,
    empty_environment_with,
    last_json,
    run,
)

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


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    return config


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
    check_surface(python, tmp_path)
    told = asked(python, tmp_path, "providers list", "providers hooks", "providers links", "plugins")
    assert DISTRIBUTION in [provider["package_name"] for provider in told["providers list"]]
    forms = {hook["connection_type"]: hook["class"] for hook in told["providers hooks"]}
    assert {"sml_lake", "mlflow", "dask"} <= set(forms) and forms["mlflow"].startswith(PACKAGE)
    links = {link["extra_link_class_name"] for link in told["providers links"]}
    assert f"{PACKAGE}.links.pages.ModelLink" in links
    [plugin] = [plugin for plugin in told["plugins"] if plugin["name"] == "sml"]
    assert "sml" in json.dumps(plugin["fastapi_apps"]) and "Models" in json.dumps(plugin["external_views"])


def metadata(wheel: Path, folder: Path) -> tuple[importlib.metadata.Distribution, Path]:
    """The wheel's metadata, and the folder that holds it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if ".dist-info/" in name])
    (info,) = folder.glob("*.dist-info")
    return importlib.metadata.Distribution.at(info), info
