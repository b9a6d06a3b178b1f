"""The wheel with each extra alone, and with all: what the extra is for loads, and Airflow shows the provider."""

from __future__ import annotations

import configparser
import json
import os
from pathlib import Path

import pytest

from tests.packaging.environments import (
    DISTRIBUTION,
    PACKAGE,
    PROJECT,
    asked,
    check_surface,
    clean,
    empty_environment_with,
    last_json,
    run,
)
from tests.packaging.test_package import IMPORT_EACH

#: What must load of the package, and of others, with an extra alone; ``all`` has all of them.
LOADS = {
    "spark": ["pyspark.sql", "ml.etl.plan", "cloud.spark_submit"],
    "lake": ["ml.lake", "ml.sampling", "ml.warehouse.duckdb", "ml.etl.landing"],
    "dask": ["dask", "distributed", "hooks.dask"],
    "gateway": ["dask_gateway", "cloud.dask_gateway"],
    "xgboost": ["ml.bundle", "ml.flavours.xgboost_model", "sklearn"],
    "sklearn": ["ml.bundle", "ml.flavours.sklearn_model", "skops.io"],
    "onnx": ["ml.bundle", "ml.flavours.onnx_model", "onnxruntime", "onnx"],
    "search": ["optuna"],
    "mlflow": ["ml.registry", "ml.registry.report"],
    "drift": ["evidently", "ml.monitoring.decision"],
    "alerts": ["airflow.providers.slack", "airflow.providers.pagerduty", "airflow.providers.smtp"],
    "serving": ["ml.serving.server", "ml.serving.__main__"],
    "amazon": ["cloud.sagemaker_endpoint", "cloud.emr_serverless", "s3fs"],
    "google": ["cloud.vertex_endpoint", "cloud.dataproc", "cloud.bigquery", "gcsfs"],
    "testing": ["testing.plugin", "testing.aws.cloud", "moto"],
    "xgboost-gpu": [],
}
LOADS["all"] = [name for names in LOADS.values() for name in names]


def test_every_extra_is_looked_at() -> None:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    assert set(LOADS) == set(config["options.extras_require"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("extra", [name for name in LOADS if name != "xgboost-gpu"])
def test_an_extra_alone_brings_what_it_is_for(wheel: Path, tmp_path: Path, extra: str) -> None:
    if not os.environ.get("SML_EXTRAS"):
        pytest.skip("sixteen environments take minutes: SML_EXTRAS=1 asks for them")
    python = empty_environment_with(wheel, tmp_path, extra)
    own = ("ml.", "cloud.", "hooks.", "testing.")
    names = [f"{PACKAGE}.{name}" if name.startswith(own) else name for name in LOADS[extra]]
    statements = json.dumps([f"import {name}" for name in names])
    env = clean(tmp_path) | {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    assert last_json(run([python, "-c", IMPORT_EACH, statements], env=env, cwd=tmp_path)) == {}
    check_surface(python, tmp_path)
    told = asked(python, tmp_path, "providers list", "plugins")
    assert DISTRIBUTION in [provider["package_name"] for provider in told["providers list"]]
    assert "sml" in [plugin["name"] for plugin in told["plugins"]]
