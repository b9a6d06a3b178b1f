"""Shared by all tests: Airflow's home and database, one Spark session, a small dataset with real dirt."""

import gc
import os
import sys
from pathlib import Path

import pytest

pytest_plugins = [
    *(f"airflow_provider_sml.testing.{name}" for name in ("plugin", "clouds", "stores", "spark")),
    "tests.trained",
    "tests.mlflow_server",
    "tests.mlflow_tables",
]

ROOT = Path(__file__).resolve().parents[1]

# The libraries are millions of objects that stay; looking for garbage among them takes a sixth of a run otherwise.
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def roots_of_grpc():
    """gRPC reads its trusted roots once in a process: those of the fakes, whichever test is the first to use it."""
    from airflow_provider_sml.testing.google.tls import certificate

    os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(certificate().root)


@pytest.fixture(scope="session")
def spark():
    """One Spark session for the whole run, on the loopback interface, set up as the ETL sets up its own."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    from airflow_provider_sml.cloud.spark_submit import find_spark_submit, java_options
    from airflow_provider_sml.ml.etl.plan import SPARK_CONF

    builder = SparkSession.builder.master("local[2]").appName("tests")
    settings = SPARK_CONF | {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": java_options(find_spark_submit()),
        "spark.sql.shuffle.partitions": "2",
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parents[1]),  # Python workers take the package from here
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def bigquery():
    """BigQuery on this machine: the emulator behind a strict gateway; one for the whole run."""
    from airflow_provider_sml.testing.bigquery import bigquery_server
    from airflow_provider_sml.testing.processes import ServerUnavailableError

    try:
        with bigquery_server() as server:
            yield server
    except ServerUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_dsn():
    """A PostgreSQL with an empty database; one for the whole run."""
    from airflow_provider_sml.testing.postgres import postgres
    from airflow_provider_sml.testing.processes import ServerUnavailableError

    try:
        with postgres() as dsn:
            yield dsn
    except ServerUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kubernetes():
    """A control plane of Kubernetes without nodes; it ends with its module, because it takes a twentieth of a processor
    as long as it runs."""
    from airflow_provider_sml.testing.kubernetes_api import kubernetes_api
    from airflow_provider_sml.testing.processes import ServerUnavailableError

    try:
        with kubernetes_api() as cluster:
            yield cluster
    except ServerUnavailableError as error:
        pytest.skip(str(error))
