"""The reference of the site is made from the code: everything is in it, with what its docstring says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference():
    found = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # its dataclasses look their module up
    found.loader.exec_module(module)
    yield module
    del sys.modules[found.name]


def test_every_operator_and_each_of_its_parameters_is_described(reference):
    text = reference.operators()
    classes = [value for part in reference.SURFACE for value in reference.public_classes(part)]
    assert {"SparkEtlOperator", "TrainXGBoostOperator", "LandedFilesSensor"} <= {value.__name__ for value in classes}
    empty = []
    for value in classes:
        section = text.split(f"### {value.__name__}\n")[1].split("\n### ")[0]
        empty += [f"{value.__name__}: {row}" for row in section.splitlines() if row.endswith("|  |")]
    assert empty == [], "parameters without a :param: line"


def test_every_key_of_a_spec_is_listed(reference):
    from airflow_provider_sml.pipelines.spec import PipelineSpec

    text = reference.spec()
    for key in PipelineSpec.model_fields:
        assert f"| `{key}` |" in text
    assert "| `validate` | required | days after them, for early stopping. |" in text
    assert "### `source.joins[].columns.NAME`" in text


def test_every_function_of_the_expressions_is_listed(reference):
    from airflow_provider_sml.ml.expressions.functions import FUNCTIONS

    text = reference.expressions()
    assert all(function.usage in text for function in FUNCTIONS.values())
    assert "Dividing by zero gives NULL" in text


def test_every_connection_type_is_listed(reference):
    text = reference.connections()
    assert "### `mlflow`: MLflow" in text
    assert "| Tracking URI |" in text


def test_every_measurement_is_listed(reference):
    text = reference.measurements()
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(path.read_text()):
            assert f"| {row['case'].replace('|', chr(92) + '|')} |" in text
    assert text.count("| ---") >= 3


def test_the_markers_of_the_pages_are_filled(reference):
    for page in (ROOT / "docs").rglob("*.md"):
        filled = reference.on_page_markdown(page.read_text(), page=None)
        assert "<!-- reference" not in filled and "<!-- example" not in filled


def test_docstrings_become_markdown(reference):
    class Example:
        """Does ``this``, see :class:`Other`.

        A second paragraph.

        :param one: of two
            lines with a | in it.
        :raises ValueError: when wrong.
        """

    doc = reference.Doc.of(Example)
    assert doc.markdown == "Does `this`, see `Other`.\n\nA second paragraph."
    assert doc.params == {"one": "of two lines with a | in it."}
    assert doc.raises == ["`ValueError` when wrong."]
