"""Runs the application over what has landed."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.ml.etl import application
from airflow_provider_sml.ml.etl.plan import compile_plan
from airflow_provider_sml.ml.lake.audit import Staged
from tests import shops


@pytest.fixture
def etl(spark, tmp_path):
    """Runs the ETL over what has landed; gives the staged run with its rows. ``plan`` changes the compiled plan."""

    def run(first=shops.FIRST, last=None, plan=None, **changes):
        spec = shops.make_spec(tmp_path, **changes)
        output = tmp_path / "staged" / os.urandom(4).hex()
        output.mkdir(parents=True)
        places = {"landing": str(tmp_path / "landing")}
        compiled = compile_plan(spec.dataset, places, first, last or first, str(output)) | (plan or {})
        application.run(spark, json.loads(json.dumps(compiled)))
        return Staged.read(output)

    return run


@pytest.fixture
def landing(tmp_path):
    return tmp_path / "landing"


def rows_of(files):
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path in files]).to_pylist() if files else []


def good(staged):
    return sorted(rows_of(staged.data), key=lambda row: (row["order"], row["ordered"]))


def bad(staged):
    return rows_of(staged.quarantine)


def section(root, name, **changes):
    """A section of the shops' spec as a dictionary, with changes; ``columns`` are laid over those that are there."""
    values = getattr(shops.make_spec(root), name).model_dump(mode="json")
    for column, change in changes.pop("columns", {}).items():
        values["columns"].setdefault(column, {}).pop("source", None)
        values["columns"][column].update(change)
    return values | changes
