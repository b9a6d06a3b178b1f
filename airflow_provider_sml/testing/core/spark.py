"""Runs a Spark application for real on this machine, for fakes of services that run it elsewhere.

The settings go to spark-submit in a file that only this user can read, because they may hold secrets. Nothing is
scaled; there is one machine, and Java is set up for drivers that are gone in seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_sml.cloud.spark_submit import java_options

#: What a job that says nothing else gets; Spark's own 200 are for clusters.
DEFAULTS = {"spark.sql.shuffle.partitions": "2"}
_PYTHON = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}


def local_settings(spark_submit: str) -> dict[str, str]:
    """What holds on this machine, whatever the job's own settings say.

    :param spark_submit: path of the ``spark-submit`` that starts the driver.
    """
    return {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": java_options(spark_submit),
    }


def run_application(
    code: bytes,
    arguments: Sequence[str],
    conf: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    within: float = 600.0,
) -> tuple[int, str]:
    """Run an application; gives its exit code and its log.

    :param code: of the Python file.
    :param arguments: of the application.
    :param conf: Spark settings.
    :param environment: variables for the driver, beside those of this process.
    :param within: seconds after which it is ended.
    """
    import pyspark

    with tempfile.TemporaryDirectory() as folder:
        application, settings = Path(folder) / "application.py", Path(folder) / "settings.conf"
        application.write_bytes(code)
        settings.touch(mode=0o600)
        submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
        whole = {**DEFAULTS, **conf, **local_settings(submit)}
        settings.write_text("".join(f"{key} {_escaped(value)}\n" for key, value in whole.items()))
        done = subprocess.run(
            [submit, "--master", "local[2]", "--properties-file", str(settings), str(application), *arguments],
            env={**os.environ, **_PYTHON, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=within, cwd=folder,
        )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace")


def _escaped(value: str) -> str:
    """A value in a file of Java's properties."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")
