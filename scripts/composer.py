r"""Lays the project out as the bucket of a Cloud Composer environment wants it; uploads nothing.

    python scripts/composer.py build/composer
    gcloud composer environments update ENV --location=REGION \
      --update-pypi-packages-from-file=build/composer/requirements.txt
    gcloud storage rsync --recursive build/composer/dags    gs://BUCKET/dags
    gcloud storage rsync --recursive build/composer/plugins gs://BUCKET/plugins

Composer syncs dags/ and plugins/ and nothing beside them, so include/ goes into dags/, and the package itself into
plugins/, which is on Python's path. As it is not installed there, its connection types have no form; connections are
given as ``AIRFLOW_CONN_...`` or with type ``generic`` and the same fields. Where a private index holds the wheel, take
``--installed``: the package is then named in requirements.txt and left out of plugins/.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_provider_sml"
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
PLUGIN = '''"""Makes the page "Models" known: the package lies in this folder and is not installed."""

from airflow_provider_sml.ui.plugin import SmlPlugin

__all__ = ["SmlPlugin"]
'''
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "data", "reports", "demo", "testing", "example_dags")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make; what was in it is replaced")
    parser.add_argument("--installed", action="store_true", help="the package comes from an index")
    given = parser.parse_args(arguments)
    out: Path = given.out
    if out.exists() and any(out.iterdir()) and not (out / ".composer").exists():
        print(f"{out} holds something else; give an empty folder, or one that this command made", file=sys.stderr)
        return 1
    if out.exists():
        shutil.rmtree(out)
    lay_out(out, given.installed)
    print(f"{out}: dags/ and plugins/ for the bucket, requirements.txt for the environment")
    return 0


def lay_out(out: Path, installed: bool) -> None:
    """Make the folders.

    :param out: a folder that is not there yet.
    :param installed: whether the package comes from an index.
    """
    (out / "plugins").mkdir(parents=True)
    (out / ".composer").touch()
    shutil.copytree(ROOT / "dags", out / "dags", ignore=LEFT_OUT)
    shutil.copytree(ROOT / "include", out / "dags" / "include", ignore=LEFT_OUT)
    (out / "dags" / ".airflowignore").write_text("include/\n")
    for path in (ROOT / "plugins").glob("*.py"):
        shutil.copy(path, out / "plugins")
    lines = requirements((ROOT / "requirements.txt").read_text())
    if installed:
        lines.append("airflow-provider-sml[spark,lake,dask,xgboost,mlflow,drift,serving]")
    else:
        shutil.copytree(ROOT / PACKAGE, out / "plugins" / PACKAGE, ignore=LEFT_OUT)
        (out / "plugins" / "sml_project.py").write_text(PLUGIN)
        # Airflow would import every file of the folder to look for plugins.
        (out / "plugins" / ".airflowignore").write_text(f"{PACKAGE}/\n")
    (out / "requirements.txt").write_text("\n".join(lines) + "\n")


def requirements(text: str) -> list[str]:
    """The requirements that hold on Linux, without markers and comments: Composer's updater takes neither."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate(LINUX):
                one.marker = None
                found.append(str(one))
    return found


if __name__ == "__main__":
    sys.exit(main())
