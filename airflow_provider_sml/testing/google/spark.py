"""Lets the fake Dataproc run its batches for real, through Spark on this machine.

::

    fake_google.dataproc.driver = local_spark(fake_google)

The application is fetched from the fake's Cloud Storage and run by spark-submit with the settings and arguments of the
batch, so that what it writes is real. What it prints goes to the batch's driver output, as on Dataproc. Nothing is
scaled; there is one machine. Secrets are found through Hadoop's own lookup of credentials, in clear text in a file that
only this user can read and that is gone with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_provider_sml.testing.core.spark import run_application

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle
    from airflow_provider_sml.testing.google.dataproc import FakeBatch

_PROVIDER = "spark.hadoop.hadoop.security.credential.provider.path"
#: Settings that belong to Dataproc and mean nothing to Spark on one machine.
_DATAPROC_ONLY = ("spark.dataproc", "spark.executor.", "spark.executorEnv", "spark.driver.cores", "spark.driver.memory",
                  "spark.dynamicAllocation", _PROVIDER)  # fmt: skip


def local_spark(
    cloud: FakeGoogle,
    secrets: Mapping[str, str] | None = None,
    jars: Sequence[str] = (),
    within: float = 600.0,
) -> Callable[[FakeBatch], tuple[int, str]]:
    """A driver for ``Dataproc.driver``.

    :param cloud: the project, which knows where Cloud Storage is.
    :param secrets: values of Secret Manager by their id.
    :param jars: what Dataproc has and Spark has not: paths of the connector to Cloud Storage.
    :param within: seconds after which a batch is ended.
    """

    def drive(batch: FakeBatch) -> tuple[int, str]:
        assert cloud.storage is not None, "give the fake a server of Cloud Storage: FakeGoogle(gcs=...)"
        job, given = batch.request.batch.pyspark_batch, batch.properties
        conf = {key: value for key, value in given.items() if not key.startswith(_DATAPROC_ONLY)}
        if given.get(_PROVIDER, "").startswith("gsm://"):
            conf |= {f"spark.hadoop.{name}": value for name, value in (secrets or {}).items()}
        if jars:
            conf["spark.jars"] = ",".join(jars)
        prefix = "spark.dataproc.driverEnv."
        environment = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        code = cloud.storage.read(job.main_python_file_uri)
        return run_application(code, list(job.args), conf, environment, within)

    return drive
