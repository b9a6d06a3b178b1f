"""The archive of Spark's classes: used where it fits, done without where it does not, made whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_sml.cloud import class_archive
from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob, find_spark_submit
from airflow_provider_sml.errors import ConfigurationError

APPLICATION = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print("rows", spark.range(7).count())
spark.stop()
"""


def run(tmp_path, **environment):
    """A job as the adapter starts it; what it printed."""
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    job = SparkSubmitJob("archived", str(script), [], str(tmp_path))
    done = subprocess.run(
        job._command(), env=job._environment() | environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_driver_takes_its_classes_from_the_archive(tmp_path):
    if not class_archive.archive_of(find_spark_submit()).is_file():
        pytest.skip("this Java makes no archive (make setup says why)")
    log = tmp_path / "classes.log"

    done = run(tmp_path, SPARK_SUBMIT_OPTS=f"-Xlog:class+load:file={log}")

    # Lambdas are made anew by every run.
    loaded = [line for line in log.read_text().splitlines() if "org.apache.spark" in line and "Lambda" not in line]
    mapped = [line for line in loaded if "shared objects file (top)" in line]
    assert "rows 7" in done.stdout
    assert len(loaded) > 3000 and len(mapped) > 0.95 * len(loaded)


def spark_home(tmp_path):
    """The installed Spark under a folder of its own, by links."""
    home, real = tmp_path / "spark", Path(find_spark_submit()).resolve().parent.parent
    (home / "bin").mkdir(parents=True)
    for script in (real / "bin").iterdir():
        if script.is_file():
            (home / "bin" / script.name).write_bytes(script.read_bytes())
            (home / "bin" / script.name).chmod(0o755)
    for name in ("jars", "python"):
        if (real / name).exists():
            (home / name).symlink_to(real / name)
    return home


def test_a_damaged_archive_is_done_without(tmp_path, monkeypatch):
    home = spark_home(tmp_path)
    monkeypatch.setenv("SPARK_HOME", str(home))
    (home / class_archive.NAME).write_bytes(b"no archive" * 1000)
    assert str(home / class_archive.NAME) in class_archive.archive_options(find_spark_submit())

    done = run(tmp_path)

    assert "rows 7" in done.stdout
    assert "archive" not in (done.stdout + done.stderr).lower().replace(str(home).lower(), "")


def test_there_are_no_options_without_an_archive_or_with_a_space_in_its_path(tmp_path):
    home = tmp_path / "with space"
    (home / "bin").mkdir(parents=True)
    assert class_archive.archive_options(str(home / "bin" / "spark-submit")) == ""
    (home / class_archive.NAME).touch()
    assert class_archive.archive_options(str(home / "bin" / "spark-submit")) == ""


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'java.lang.OutOfMemoryError: no room'; exit 1", "OutOfMemoryError: no room"),
        ("true", "it said nothing"),
    ],
)
def test_a_java_that_makes_no_archive_is_told_and_leaves_nothing(tmp_path, script, told):
    submit = tmp_path / "bin" / "spark-submit"
    submit.parent.mkdir()
    submit.write_text(f"#!/bin/sh\n{script}\n")
    submit.chmod(0o755)
    (tmp_path / class_archive.NAME).write_text("of before")

    with pytest.raises(ConfigurationError, match="made no archive") as error:
        class_archive.make_archive(str(submit))

    assert told in str(error.value) and "without the archive" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == [class_archive.NAME, "bin"]
    assert (tmp_path / class_archive.NAME).read_text() == "of before"


def test_a_folder_that_cannot_be_written_is_told():
    with pytest.raises(ConfigurationError, match="cannot be written"):
        class_archive.make_archive("/proc/1/bin/spark-submit")


def test_the_command_line_makes_it(tmp_path):
    submit = tmp_path / "bin" / "spark-submit"
    submit.parent.mkdir()
    submit.write_text('#!/bin/sh\nfor part in "$@"; do case "$part" in *ArchiveClassesAtExit=*) '
                      'echo made > "${part##*ArchiveClassesAtExit=}";; esac; done\n')  # fmt: skip
    submit.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-m", "airflow_provider_sml.cloud.class_archive"],
        env=os.environ | {"SPARK_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == str(tmp_path / class_archive.NAME)
    assert (tmp_path / class_archive.NAME).read_text() == "made\n"
