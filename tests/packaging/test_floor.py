"""The floor: what the package asks of Airflow is there in 3.1, and the DAGs of a model run on it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "airflow_provider_sml"
FLOOR = "3.1.8"
#: Names of Airflow 3.1.8's task SDK; ``airflow.sdk.__all__`` there, and what its exceptions are.
SDK = {
    "airflow.sdk": {
        "Asset", "AssetAlias", "AssetAll", "AssetAny", "AssetWatcher", "BaseHook", "BaseNotifier", "BaseOperator",
        "BaseOperatorLink", "BaseSensorOperator", "Connection", "Context", "DAG", "DagRunState", "EdgeModifier",
        "Label", "Metadata", "ObjectStoragePath", "Param", "ParamsDict", "PokeReturnValue", "TaskGroup",
        "TaskInstanceState", "TriggerRule", "Variable", "WeightRule", "XComArg", "asset", "chain", "chain_linear",
        "cross_downstream", "dag", "get_current_context", "get_parsing_context", "literal", "setup", "task",
        "task_group", "teardown", "timezone",
    },
    "airflow.sdk.exceptions": {"AirflowRuntimeError", "ErrorType"},
    "airflow.triggers.base": {"BaseEventTrigger", "BaseTrigger", "TriggerEvent"},
}  # fmt: skip
#: Modules that are not there yet.
LATER = {"airflow.dag_processing.dagbag", "airflow.sdk.configuration", "airflow.sdk.plugins_manager"}


def unguarded_imports(path):
    """What a module imports outside a ``try`` that catches ImportError."""

    def visit(node, guarded):
        if isinstance(node, ast.Try):
            caught = {name.id for handler in node.handlers for name in ast.walk(handler) if isinstance(name, ast.Name)}
            for part in node.body:
                yield from visit(part, guarded or "ImportError" in caught)
            for part in [*node.handlers, *node.orelse, *node.finalbody]:
                yield from visit(part, True)
            return
        if isinstance(node, ast.ImportFrom) and node.module and not guarded:
            yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded)

    return visit(ast.parse(path.read_text()), False)


def test_what_is_imported_of_airflow_is_there_at_the_floor():
    missing = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "include").rglob("*.py")]:
        for node in unguarded_imports(path):
            known = SDK.get(node.module)
            unknown = {alias.name for alias in node.names} - known if known else set()
            if unknown or node.module in LATER:
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                missing.append(f"{where}: {node.module} {', '.join(sorted(unknown))}")
    assert missing == [], f"not in Airflow {FLOOR}; airflow_provider_sml/compat.py has what moved"


def test_the_floor_is_the_one_that_is_declared():
    assert re.search(r"^\s+apache-airflow>=3\.1,<4$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_dags_of_a_model_run_at_the_floor(tmp_path):
    """In an environment of its own, with that Airflow's own providers: the tests of the four DAGs, and approval."""
    if not os.environ.get("SML_FLOOR"):
        pytest.skip(f"it installs Airflow {FLOOR} and the libraries, 1.6 GB: SML_FLOOR=1 asks for it")
    uv = shutil.which("uv") or shutil.which(ROOT / ".tools" / "bin" / "uv")
    if uv is None:
        pytest.skip("uv is not installed")
    pins = re.compile(r"^(pyspark|pyiceberg|duckdb|pyarrow|dask|distributed|xgboost|mlflow|evidently|pandas|numpy|sci)")
    constraints = tmp_path / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join(line for line in lines if pins.match(line)) + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    env = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    run([uv, "venv", "--quiet", "--python", os.path.realpath(sys.executable), tmp_path / "venv"], env)
    source = tmp_path / "source"  # a build leaves files beside what it builds
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    extras = "spark,lake,dask,xgboost,mlflow,drift,serving"
    run(
        [uv, "pip", "install", "--quiet", "--python", python, "--constraint", constraints, f"{source}[{extras}]",
         f"apache-airflow=={FLOOR}", "structlog<25.5", "setuptools<81", "pytest", "pytest-timeout"], env,
    )  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    for tests in (
        # SageMaker's client is not among the extras above
        ["tests/dags/test_pipeline.py", "-k", "not sagemaker"],
        ["tests/packaging/at_the_floor.py"],
    ):
        command = [python, "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider"]
        told = run(command, env | {"PYTHONPATH": str(ROOT)})
        assert re.search(r"\d+ passed", told) or "[100%]" in told


def run(command, env):
    """A command in the project; fails the test with its last lines."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout
