"""Jars come from anywhere, and only the ones that were pinned are ever used."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from functools import partial

import pytest

from airflow_provider_sml.cloud import jars, pinned_jars
from airflow_provider_sml.cloud.spark_submit import find_spark_submit
from airflow_provider_sml.errors import ConfigurationError, IntegrityError
from airflow_provider_sml.testing.core.spark import local_settings


@pytest.fixture
def pinned(monkeypatch):
    """A set of two small jars in place of the real one; gives their contents by path."""
    content = {"a/b/c/1.0/c-1.0.jar": b"first", "a/d/2/d-2-shaded.jar": b"second"}
    sums = [hashlib.sha256(data).hexdigest() for data in content.values()]
    monkeypatch.setitem(pinned_jars.S3, "4.1", f"\n a.b:c:1.0 {sums[0]}\n a:d:2:shaded {sums[1]}\n")
    return content


def lay(folder, content, flat=False):
    for path, data in content.items():
        place = folder / (path.rsplit("/", 1)[1] if flat else path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


@pytest.mark.parametrize("flat", [True, False])
def test_from_a_folder(pinned, tmp_path, flat):
    source = lay(tmp_path / "mirror", pinned, flat)
    paths = jars.fetch("4.1.4", ["s3"], tmp_path / "cache", folder=source)
    assert [path.read_bytes() for path in paths] == [b"first", b"second"]
    assert jars.spark_jars(paths) == f"{tmp_path}/cache/c-1.0.jar,{tmp_path}/cache/d-2-shaded.jar"
    # What is there and right is not brought again.
    assert jars.fetch("4.1", ["s3"], tmp_path / "cache", folder=tmp_path / "nowhere") == paths


def test_from_a_repository(pinned, tmp_path):
    served = lay(tmp_path / "repository", pinned)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        paths = jars.fetch("4.1", ["s3"], tmp_path / "cache", repository=address)
        assert [path.read_bytes() for path in paths] == [b"first", b"second"]
        (served / "a/d/2/d-2-shaded.jar").unlink()
        with pytest.raises(ConfigurationError, match="a:d:2:shaded could not be had"):
            jars.fetch("4.1", ["s3"], tmp_path / "other", repository=address)
    finally:
        server.shutdown()
        server.server_close()


def test_another_file_under_the_right_name_is_refused_and_not_kept(pinned, tmp_path):
    source = lay(tmp_path / "mirror", pinned | {"a/d/2/d-2-shaded.jar": b"changed"})
    with pytest.raises(IntegrityError, match=r"d-2-shaded\.jar is not the file that was pinned"):
        jars.fetch("4.1", ["s3"], tmp_path / "cache", folder=source)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["c-1.0.jar"]


def test_a_damaged_file_in_the_cache_is_brought_again(pinned, tmp_path):
    source = lay(tmp_path / "mirror", pinned)
    [first, _] = jars.fetch("4.1", ["s3"], tmp_path / "cache", folder=source)
    first.write_bytes(b"fir")
    jars.fetch("4.1", ["s3"], tmp_path / "cache", folder=source)
    assert first.read_bytes() == b"first"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"spark": "4.2", "purposes": ["s3"]}, r"no jars are pinned for Spark 4\.2(.|\n)*3\.5, 4\.0, 4\.1"),
        ({"spark": "4.1", "purposes": ["hdfs"]}, "no jars are known for hdfs"),
        ({"spark": "4.1", "purposes": ["s3"], "repository": "http://example.org/maven"}, "not safe"),
        ({"spark": "4.1", "purposes": ["s3"], "repository": "file:///etc"}, "not safe"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path, arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        jars.fetch(cache=tmp_path, **arguments)


@pytest.mark.parametrize("line", jars.LINES)
def test_each_line_has_one_version_of_each_jar(line):
    found = jars.jars(line, jars.PURPOSES)
    assert len({jar.name for jar in found}) == len(found)
    assert len({jar.coordinates.rsplit(":", 1)[0] for jar in found}) == len(found)
    assert all(len(jar.sha256) == 64 for jar in found)
    assert not [jar.name for jar in found if "bundle" in jar.name]


def test_the_command(pinned, tmp_path, capsys):
    source = lay(tmp_path / "mirror", pinned)
    common = ["--spark", "4.1", "--for", "s3"]
    assert jars.main(["fetch", *common, "--to", str(tmp_path / "to"), "--folder", str(source)]) == 0
    assert capsys.readouterr().out.strip().split(",")[1].endswith("to/d-2-shaded.jar")
    assert jars.main(["list", *common]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(" a:d:2:shaded")
    assert jars.main(["fetch", *common, "--to", str(tmp_path / "to2"), "--folder", str(tmp_path)]) == 1
    assert "ConfigurationError: c-1.0.jar is not in" in capsys.readouterr().err


S3A = """
import sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
spark.range(1000).write.parquet("s3a://lake/numbers")
assert spark.read.parquet("s3a://lake/numbers").count() == 1000
spark.stop()
"""


@pytest.mark.slow
def test_spark_writes_to_s3_with_these_jars(tmp_path):
    import boto3
    import pyspark
    from moto.server import ThreadedMotoServer

    try:
        paths = jars.fetch(pyspark.__version__, ["s3"])
    except ConfigurationError as error:
        pytest.skip(f"no jars: {error}")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test-secret", "region_name": "us-east-1"}
        store = boto3.client("s3", endpoint_url=endpoint, **keys)
        store.create_bucket(Bucket="lake")
        script = tmp_path / "s3a.py"
        script.write_text(S3A)
        conf = {
            **local_settings(find_spark_submit()),
            "spark.jars": jars.spark_jars(paths), "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.endpoint.region": "us-east-1", "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            "spark.hadoop.fs.s3a.aws.credentials.provider": "software.amazon.awssdk.auth.credentials."
            "EnvironmentVariableCredentialsProvider",
        }  # fmt: skip
        command = [find_spark_submit(), "--master", "local[2]"]
        command += [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
        env = os.environ | {
            "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
        }  # fmt: skip
        done = subprocess.run([*command, str(script)], env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        names = [entry["Key"] for entry in store.list_objects_v2(Bucket="lake")["Contents"]]
        assert "numbers/_SUCCESS" in names and any(name.endswith(".parquet") for name in names)
    finally:
        server.stop()
