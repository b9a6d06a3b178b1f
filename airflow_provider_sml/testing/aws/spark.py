"""Lets the fake EMR Serverless run its applications for real, through Spark on this machine.

::

    fake_aws.emr.driver = local_spark(fake_aws)

The application is fetched from the fake's S3 and run by spark-submit with the settings and arguments of the job run, so
that what it writes is real. Its log goes to the run's ``logUri``, as on EMR. Nothing is scaled; there is one machine.
"""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

#: Settings that belong to EMR and mean nothing to Spark on one machine.
_EMR_ONLY = ("spark.emr-serverless", "spark.executor.instances", "spark.executorEnv", "spark.dynamicAllocation")


def local_spark(
    cloud: FakeAws, secrets: dict[str, str] | None = None, within: float = 600.0
) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """A driver for ``EmrServerless.driver``.

    :param cloud: the account, which knows where S3 is.
    :param secrets: values of Secrets Manager by their id, for settings such as ``EMR.secret@ID``.
    :param within: seconds after which a run is ended.
    """

    def drive(request: dict[str, Any]) -> tuple[int, str]:
        submit = request["jobDriver"]["sparkSubmit"]
        place = urlsplit(submit["entryPoint"])
        code = cloud.client("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()
        words = shlex.split(submit.get("sparkSubmitParameters", ""))
        given = [word for word in words if "=" in word]
        conf = {key: value for key, _, value in (word.partition("=") for word in given)}
        with tempfile.TemporaryDirectory() as folder:
            application = Path(folder) / "application.py"
            application.write_bytes(code)
            done = subprocess.run(
                [*_command(conf), str(application), *submit.get("entryPointArguments", [])],
                env=_environment(conf, secrets or {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=within, cwd=folder,
            )  # fmt: skip
        log = done.stdout.decode(errors="replace")
        _keep_log(cloud, request, log)
        return done.returncode, log

    return drive


def _command(conf: dict[str, str]) -> list[str]:
    import pyspark

    kept = {key: value for key, value in conf.items() if not key.startswith(_EMR_ONLY)}
    local = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    settings = [word for key, value in (kept | local).items() for word in ("--conf", f"{key}={value}")]
    return [str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[2]", *settings]


def _environment(conf: dict[str, str], secrets: dict[str, str]) -> dict[str, str]:
    own = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    prefix = "spark.emr-serverless.driverEnv."
    for key, value in conf.items():
        if key.startswith(prefix):
            found = secrets[value.removeprefix("EMR.secret@")] if value.startswith("EMR.secret@") else value
            own[key.removeprefix(prefix)] = found
    return dict(os.environ) | own


def _keep_log(cloud: FakeAws, request: dict[str, Any], log: str) -> None:
    monitoring = request.get("configurationOverrides", {}).get("monitoringConfiguration", {})
    uri = monitoring.get("s3MonitoringConfiguration", {}).get("logUri")
    if not uri:
        return
    run = next(made for made, kept in cloud.emr.runs.items() if kept.request is request)
    place = urlsplit(f"{uri.rstrip('/')}/applications/{request['applicationId']}/jobs/{run}/SPARK_DRIVER/stderr.gz")
    cloud.client("s3").put_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Body=gzip.compress(log.encode()))
