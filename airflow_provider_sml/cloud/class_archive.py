"""An archive of Spark's loaded classes, from which a driver on this machine starts some seconds sooner.

A driver loads some twenty thousand classes from jars and verifies each; from an archive (class data sharing) they are
mapped into memory as they were left. The archive lies in the Spark installation that it was made of, is made once, by
``python -m airflow_provider_sml.cloud.class_archive`` (``make setup`` does it), and takes some 200 MB. Java itself
checks that it fits the Java and the jars it was made of, and does without where it does not; so does a driver where
there is none.

Source: "Class Data Sharing" in the ``java`` command's reference of JDK 17, ``-XX:ArchiveClassesAtExit``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError

NAME = "airflow-provider-sml.jsa"

#: What the archive is made of: a run that uses what an ETL uses. It sees no data but its own.
_RUN = """
import sys
from pyspark.sql import SparkSession, Window, functions as F

folder = sys.argv[1]
spark = SparkSession.builder.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
for name in ("left", "right"):
    spark.range(100).selectExpr("CAST(id % 50 AS STRING) AS k", "CAST(id AS STRING) AS v",
        "'2026-01-01T00:00:00' AS t").write.option("header", True).csv(f"{folder}/{name}")
schema = "k STRING, v STRING, t STRING, _bad STRING"
read = spark.read.schema(schema).option("header", True).option("columnNameOfCorruptRecord", "_bad")
rows = read.csv(f"{folder}/left").select("*", F.col("_metadata.file_path").alias("file"))
rows = rows.selectExpr("file", "k", "CASE WHEN v RLIKE '^[0-9]+$' THEN try_cast(trim(v) AS BIGINT) END AS v",
    "CAST(try_cast(t AS TIMESTAMP) AS TIMESTAMP_NTZ) AS t", "try_cast(v AS DOUBLE) AS d",
    "concat_ws('; ', CASE WHEN _bad IS NOT NULL THEN 'bad' END, CASE WHEN NOT (v > '3') THEN 'v' END) AS why",
    "to_json(struct(k, v)) AS raw", "xxhash64(k, v) AS tie", "to_date(regexp_extract(file, '(x)', 1)) AS day")
rows.write.option("compression", "snappy").parquet(f"{folder}/kept")
rows = spark.read.schema(rows.schema).parquet(f"{folder}/kept")
several = rows.groupBy("tie").count().where("count > 1").select("tie").persist()
several.take(1)
order = Window.partitionBy("k").orderBy(F.col("t").desc(), "tie")
firsts = rows.withColumn("n", F.row_number().over(order)).where("n = 1").drop("n")
counts = rows.groupBy("why", "day").agg(F.count(F.lit(1)).alias("n"), F.max("t").alias("newest"))
told = F.struct(F.to_json(F.struct("why", "day")), "n", F.col("newest").cast("string"))
counts.select(F.inline(F.array(told))).collect()
right = read.csv(f"{folder}/right").selectExpr("k AS _k", "CAST(v AS DOUBLE) AS w", "CAST(t AS TIMESTAMP_NTZ) AS _t")
right = right.withColumn("_span", F.explode(F.expr("sequence(unix_seconds(CAST(_t AS TIMESTAMP)), 1767225600)")))
right = right.withColumn("_next", F.lead("w").over(Window.partitionBy("_k").orderBy("_t")))
joined = firsts.join(right, (firsts.k == right._k) & (firsts.t >= right._t), "left")
joined = joined.join(rows.selectExpr("tie AS _x", "d AS e").hint("merge"), F.col("tie") == F.col("_x"), "left")
joined = joined.selectExpr("*", "coalesce(ln(w), sin(d), 0D) AS f", "date_trunc('MONTH', t) AS m", "'p' AS _p")
joined.repartition(2, "_p").sortWithinPartitions("_p", "t").write.partitionBy("_p").parquet(f"{folder}/out")
spark.stop()
"""


def archive_of(spark_submit: str) -> Path:
    """Where the archive of an installation lies, whether it is there or not.

    :param spark_submit: path of its ``spark-submit``.
    """
    return Path(spark_submit).resolve().parent.parent / NAME


def archive_options(spark_submit: str) -> str:
    """The options of a driver's Java that use the archive; none where there is no archive.

    :param spark_submit: path of the installation's ``spark-submit``.
    """
    archive = archive_of(spark_submit)
    if not archive.is_file() or any(character.isspace() for character in str(archive)):  # Spark splits at spaces
        return ""
    return f"-XX:SharedArchiveFile={archive} -Xlog:cds*=off -Xlog:class+path=off"


def make_archive(spark_submit: str) -> Path:
    """Make the archive of an installation, new or again; it is there whole or not at all.

    :param spark_submit: path of its ``spark-submit``.
    :raises ConfigurationError: when the folder cannot be written, or Java made none.
    """
    from airflow_provider_sml.cloud.spark_submit import driver_reason  # which asks this module for its options

    archive = archive_of(spark_submit)
    try:
        made = Path(tempfile.mkdtemp(prefix=".archive-", dir=archive.parent))
    except OSError as error:
        raise ConfigurationError(
            "the archive of Spark's classes cannot be written",
            expected=f"the right to write to {archive.parent}",
            found=str(error),
            todo="run this as the user that installed Spark, or do without the archive",
        ) from None
    try:
        script = made / "run.py"
        script.write_text(_RUN)
        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.ansi.enabled": "false",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.warehouse.dir": str(made / "warehouse"),
            # The quick compiler: what is compiled does not get into the archive.
            "spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC "
            f"-XX:ArchiveClassesAtExit={made / NAME}",
        }
        command = [spark_submit, "--master", "local[1]"]
        command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
        python = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
        done = subprocess.run(
            [*command, str(script), str(made / "data")],
            env=dict(os.environ) | python | {"SPARK_LOCAL_IP": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode or not (made / NAME).is_file():
            raise ConfigurationError(
                "Java made no archive of Spark's classes",
                expected="a Java of 17 or later with its own archive (classes.jsa), as every build of OpenJDK has",
                found=driver_reason((done.stdout + done.stderr).splitlines(), done.returncode),
                todo="do without the archive, or run Spark with another Java",
            )
        (made / NAME).replace(archive)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return archive


if __name__ == "__main__":
    from airflow_provider_sml.cloud.spark_submit import find_spark_submit

    print(make_archive(find_spark_submit()))
