"""The layouts of managed Airflows: the bucket of Cloud Composer, and the root of an Astro project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, sys
from pathlib import Path
import airflow_provider_sml
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.file import find_path_from_directory

out = Path(sys.argv[1])
bag = DagBag(str(out / "dags"))
scanned = [str(Path(p).relative_to(out)) for p in find_path_from_directory(str(out / "plugins"), ".airflowignore")]
sys.path.insert(0, str(out / "plugins"))
import sml_project
print(json.dumps({"package": airflow_provider_sml.__file__, "dags": sorted(bag.dags), "errors": bag.import_errors,
                  "scanned": sorted(p for p in scanned if p.endswith(".py")), "plugin": sml_project.SmlPlugin.name}))
"""


def lay_out(out, *options):
    command = [sys.executable, ROOT / "scripts" / "composer.py", out, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_dags_load_from_the_bucket_of_composer(tmp_path):
    out = tmp_path / "bucket"
    done = lay_out(out)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "home"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(home), "PYTHONPATH": str(out / "plugins"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(out / "dags"), "AIRFLOW__CORE__PLUGINS_FOLDER": str(out / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/a.db",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", LOAD, out], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["package"] == str(out / "plugins" / "airflow_provider_sml" / "__init__.py")
    assert found["errors"] == {}
    assert found["dags"] == ["flights_deploy", "flights_ingest", "flights_monitor", "flights_train"]
    assert found["scanned"] == ["plugins/sml_project.py"], "Airflow imports every file that it scans"
    assert found["plugin"] == "sml"


def test_the_requirements_of_composer_have_no_markers(tmp_path):
    assert lay_out(tmp_path / "out", "--installed").returncode == 0
    lines = (tmp_path / "out" / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("xgboost-cpu") for line in lines)
    assert not [line for line in lines if ";" in line or "#" in line or line.startswith("xgboost<")]
    assert lines[-1].startswith("airflow-provider-sml[")
    assert not (tmp_path / "out" / "plugins" / "airflow_provider_sml").exists()


def test_the_layout_replaces_itself_and_nothing_else(tmp_path):
    assert lay_out(tmp_path / "out").returncode == 0
    (tmp_path / "out" / "dags" / "old.py").touch()
    assert lay_out(tmp_path / "out").returncode == 0
    assert not (tmp_path / "out" / "dags" / "old.py").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    done = lay_out(tmp_path / "mine")
    assert done.returncode == 1 and "holds something else" in done.stderr
    assert (tmp_path / "mine" / "precious.txt").exists()


def test_the_root_is_an_astro_project():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0].startswith("FROM ") and "/runtime:" in code[0], "Astro reads the version of Airflow there"
    assert code[-1] == "USER astro"
    assert (ROOT / "packages.txt").read_text().split() == ["default-jre-headless"]
    settings = yaml.safe_load((ROOT / "airflow_settings.yaml").read_text())["airflow"]
    assert set(settings) == {"connections", "pools", "variables"}
    from airflow_provider_sml.get_provider_info import get_provider_info

    known = {kind["connection-type"]: kind for kind in get_provider_info()["connection-types"]}
    for connection in settings["connections"]:
        assert set(connection) == {"conn_id", "conn_type", "conn_extra"}, "no secret stands in the repository"
        assert set(connection["conn_extra"]) <= set(known[connection["conn_type"]]["conn-fields"])
