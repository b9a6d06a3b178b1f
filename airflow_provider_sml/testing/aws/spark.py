"""Lets the fake EMR Serverless run its applications for real, through Spark on this machine.

::

    fake_aws.emr.driver = local_spark(fake_aws)

The application is fetched from the fake's S3 and run by spark-submit with the settings and arguments of the job run, so
that what it writes is real. Its log goes to the run's ``logUri``, as on EMR. Nothing is scaled; there is one machine.
"""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.testing.core.spark import run_application

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
        conf = {key: value for key, given, value in (word.partition("=") for word in words) if given}
        kept = {key: value for key, value in conf.items() if not key.startswith(_EMR_ONLY)}
        environment = _environment(conf, secrets or {})
        exit_code, log = run_application(code, submit.get("entryPointArguments", []), kept, environment, within)
        _keep_log(cloud, request, log)
        return exit_code, log

    return drive


def _environment(conf: dict[str, str], secrets: dict[str, str]) -> dict[str, str]:
    found, prefix = {}, "spark.emr-serverless.driverEnv."
    for key, value in conf.items():
        if key.startswith(prefix):
            secret = value.removeprefix("EMR.secret@")
            found[key.removeprefix(prefix)] = secrets[secret] if secret != value else value
    return found


def _keep_log(cloud: FakeAws, request: dict[str, Any], log: str) -> None:
    monitoring = request.get("configurationOverrides", {}).get("monitoringConfiguration", {})
    uri = monitoring.get("s3MonitoringConfiguration", {}).get("logUri")
    if not uri:
        return
    run = next(made for made, kept in cloud.emr.runs.items() if kept.request is request)
    place = urlsplit(f"{uri.rstrip('/')}/applications/{request['applicationId']}/jobs/{run}/SPARK_DRIVER/stderr.gz")
    cloud.client("s3").put_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Body=gzip.compress(log.encode()))
