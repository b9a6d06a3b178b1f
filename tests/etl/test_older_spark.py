"""The same file on Spark 3.5, as managed Spark still has it, gives the same content."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sml.ml.bundle import Scorer
from airflow_provider_sml.ml.etl import application
from airflow_provider_sml.ml.etl.plan import SPARK_CONF, compile_plan, spark_conf
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.lake.audit import Staged
from airflow_provider_sml.ml.monitoring import spark_profiles
from airflow_provider_sml.ml.monitoring.night_profiles import NightProfiles
from tests import shops
from tests.etl.conftest import bad, good, section
from tests.ml.test_lake_shops import fit, publish, stored_day
from tests.ml.test_profiles import same
from tests.trained import NIGHT

PYSPARK = "3.5.8"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def older_python():
    """An interpreter with the older Spark, in an environment of its own that is kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "airflow-provider-sml" / "pyspark-3.5"
    python = home / "bin" / "python"
    if not list(home.glob(f"lib/python*/site-packages/pyspark-{PYSPARK}.dist-info")):
        uv = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
        if not Path(uv).exists():
            pytest.skip("uv is not there to make an environment for the older Spark")
        commands = [
            [uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)],
            [uv, "pip", "install", "-q", "--python", str(python), f"pyspark=={PYSPARK}", "setuptools<81"],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, timeout=280)
            if done.returncode:
                pytest.skip(f"no pyspark {PYSPARK}: {done.stderr.strip()[-200:]}")
    return python


def run_older(python, conf, plan):
    """Run the application on the older Spark."""
    conf = conf | {
        "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    }  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SPARK_HOME")}
    env |= {"PYSPARK_PYTHON": str(python), "PYSPARK_DRIVER_PYTHON": str(python)}
    [submit] = python.parents[1].glob("lib/python*/site-packages/pyspark/bin/spark-submit")
    command = [str(submit), "--master", "local[2]"]
    command += [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    command += [application.__file__, str(plan)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spark_3_5_without_a_library_makes_the_same_profiles_and_no_scores(older_python, tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, {NIGHT: stored_day(NIGHT, 60)})
    scorer = Scorer(fit(stored_day(NIGHT, 60)))
    nights = NightProfiles(lake, "orders", scorer, segment="city")
    output = lake.stage("orders", "profile")
    spark_profiles.write_plan(lake, "orders", nights, nights.unread([NIGHT]), output)
    run_older(older_python, SPARK_CONF, output / "plan.json")
    features, scores, reason = spark_profiles.take(lake, output)
    assert (features, scores) == ([NIGHT], []) and "must be installed" in reason
    by_spark = nights.nights([NIGHT])[NIGHT]
    shutil.rmtree(lake.root / "profiles")
    by_duckdb = nights.nights([NIGHT])[NIGHT]
    same(by_spark, by_duckdb)
    assert by_duckdb.segments
    for city, part in by_duckdb.segments.items():
        same(by_spark.segments[city], part)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spark_3_5_gives_the_same_rows(spark, older_python, tmp_path, monkeypatch):
    monkeypatch.setenv("SML_PRIVACY_KEYS", json.dumps({"customer_key": "0123456789abcdef"}))
    raw = shops.make_rows(shops.FIRST, 60)
    changes = {
        0: {"weight": "heavy"}, 1: {"weight": 51}, 2: {"shop": ""}, 3: {"city": " bern "}, 4: {"ordered": "yesterday"},
        5: {"ordered": "2026-03-02T00:00:00Z"}, 6: {"weight": "1e1"}, 7: {"gift": "TRUE"}, 8: {"order": "7.0"},
        9: {"ordered": "2026-03-01 10:00:00.123456+02:00"}, 10: {"minutes_late": "NaN"}, 11: {"weight": "1d"},
    }  # fmt: skip
    for number, change in changes.items():
        raw[number].update(change)
    shops.write_day(tmp_path / "landing", shops.FIRST, [*raw, dict(raw[20]), dict(raw[21], weight=3)])
    city = {"repair": {"trim": True, "case": "lower", "map": {"bern": "Bern", "oslo": "Oslo", "rome": "Rome"}}}
    contract = section(
        tmp_path, "contract",
        shard=["shop"], columns={"city": city, "customer": {"privacy": {"hash": "customer_key"}}},
    )  # fmt: skip
    dataset = shops.make_spec(tmp_path, contract=contract).dataset
    small = {"file_bytes": 2_000, "bytes_per_row": 100.0}

    def plan_for(name):
        output = tmp_path / name
        output.mkdir()
        places = {"landing": str(tmp_path / "landing")}
        plan = compile_plan(dataset, places, shops.FIRST, shops.FIRST, str(output)) | small
        (output / "plan.json").write_text(json.dumps(plan))
        return output

    newer = plan_for("newer")
    application.run(spark, json.loads((newer / "plan.json").read_text()))
    older = plan_for("older")
    run_older(older_python, spark_conf(dataset), older / "plan.json")
    one, other = Staged.read(newer), Staged.read(older)
    assert other.report["spark"] == PYSPARK and one.report["spark"].startswith("4.")
    assert good(one) == good(other) and len(good(one)) > 40
    order = lambda row: (row["reasons"], row["raw_row"])  # noqa: E731
    assert sorted(bad(one), key=order) == sorted(bad(other), key=order)
    same = ("days", "reasons", "repairs", "joins", "plan", "keys", "lacking", "unlisted")
    assert {name: one.report[name] for name in same} == {name: other.report[name] for name in same}
    by_file = [[str(path.relative_to(run.folder).parent) for path in run.data] for run in (one, other)]
    assert by_file[0] == by_file[1] and len(by_file[0]) > 1
