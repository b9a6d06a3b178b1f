"""The wheel, built once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import PACKAGE, PROJECT, run


@pytest.fixture(scope="session")
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
