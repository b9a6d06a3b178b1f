"""Places on a disk and on object stores behave alike; whole files and folders appear at once; writes carry the key."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake import CatalogSettings, Lake, maintenance, versions
from tests.ml.lake_tables import DAY, publish, rows

KEY = "arn:aws:kms:eu-west-1:123456789012:key/0a1b2c3d"
GOOGLE_KEY = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"


@pytest.fixture(params=["disk", "moto_store", "versity_store", "gcs_store"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "lake ü"
    server = request.getfixturevalue(request.param)
    location = f"{server.bucket()}/lake ü"
    storage.mount(location, server.store)
    return storage.place(location)


def test_files_are_written_listed_and_removed(folder):
    storage.write(folder / "a" / "one.txt", "eins")
    storage.write(folder / "a" / "one.txt", b"zwei")
    table = pa.table({"n": [1, 2, 3], "s": ["x", None, "z"]})
    storage.write_table(table, folder / "a b" / "t.parquet")
    with storage.parquet_writer(folder / "a b" / "u.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    assert (folder / "a" / "one.txt").read_text() == "zwei"
    assert storage.read_table(folder / "a b" / "t.parquet") == table
    assert storage.read_table(str(folder / "a b" / "u.parquet"), ["n"]).num_rows == 6
    assert storage.read_schema(folder / "a b" / "t.parquet").names == ["n", "s"]
    listed = {entry.path: entry.bytes for entry in storage.entries(folder)}
    assert set(listed) == {str(folder / "a" / "one.txt"), *(str(folder / "a b" / f"{n}.parquet") for n in "tu")}
    assert listed[str(folder / "a" / "one.txt")] == 4
    assert [path.name for path in sorted((folder / "a b").glob("*.parquet"))] == ["t.parquet", "u.parquet"]
    with storage.connect_duckdb([folder]) as connection:
        connection.execute(f"COPY (SELECT * FROM range(1000)) TO '{folder / 'a b' / 'v.parquet'}' (FORMAT parquet)")
        (found,) = connection.execute("SELECT count(*) FROM read_parquet(?)", [f"{folder}/a b/v.parquet"]).fetchone()
    assert found == 1000
    storage.remove(str(folder / "a" / "one.txt"))
    storage.remove(str(folder / "a" / "one.txt"))
    storage.remove_folder(folder / "a b")
    storage.remove_folder(folder / "a b")
    assert list(storage.entries(folder)) == []
    with pytest.raises(FileNotFoundError):
        storage.read_table(folder / "none.parquet")


def test_one_of_many_creates_a_file(folder):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.create(folder / "lock", str(n)), range(8)))
    assert sum(won) == 1 and (folder / "lock").read_text() == str(won.index(True))
    assert [entry.path for entry in storage.entries(folder)] == [str(folder / "lock")]


def test_the_quickest_of_many_settles_a_folder_and_the_others_are_gone(folder):
    name = folder / "samples" / "abc"
    assert storage.find_folder(name) is None

    def fill(number):
        filled = storage.fresh_folder(name)
        for part in ("train", "test"):
            storage.write(filled / part / "0.txt", str(number))
        return storage.settle(filled, name)

    with ThreadPoolExecutor(6) as pool:
        found = set(map(str, pool.map(fill, range(6))))
    assert found == {str(storage.find_folder(name))}
    settled = storage.find_folder(name)
    assert len({(settled / part / "0.txt").read_text() for part in ("train", "test")}) == 1
    assert len([entry for entry in storage.entries(folder) if entry.path.endswith(".txt")]) == 2


def test_a_folder_that_was_not_settled_is_not_found(folder):
    storage.write(storage.fresh_folder(folder / "abc") / "part.txt", "half")
    assert storage.find_folder(folder / "abc") is None


def test_addresses_and_unknown_ones(tmp_path):
    assert storage.place(f"file://{tmp_path}/x") == tmp_path / "x" and storage.place(tmp_path) is tmp_path
    assert storage.address("s3a://bucket/lake/") == "s3://bucket/lake" and storage.address("gcs://b/x") == "gs://b/x"
    assert not storage.is_remote("/data/lake") and isinstance(storage.place("relative"), Path)
    with pytest.raises(ConfigurationError, match=r"hdfs://host/x cannot be reached(.|\n)*s3://"):
        storage.place("hdfs://host/x")


def test_secrets_show_in_no_text(moto_store):
    store = replace(moto_store.store, secret_key="top-secret", session_token="top-token")
    storage.mount("s3://hidden", store)
    place = storage.place("s3://hidden/lake/x")
    shown = f"{store} {store!r} {place} {place!r} {place.parent!r} {store.spark_conf('s3')}"
    assert "top-" not in shown and str(place) == "s3://hidden/lake/x"
    assert store.spark_env()["AWS_SECRET_ACCESS_KEY"] == "top-secret"


def test_wrong_credentials_are_refused(versity_store):
    location = f"{versity_store.bucket()}/lake"
    storage.mount(location, replace(versity_store.store, secret_key="wrong"))
    with pytest.raises(PermissionError):
        storage.write(storage.place(location) / "x", "1")


# --- encryption -------------------------------------------------------------------------------------------------------


def test_every_object_of_a_lake_on_s3_is_written_with_the_key(moto_store, tmp_path):
    bucket = moto_store.bucket()
    store = replace(moto_store.store, kms_key=KEY)
    lake = Lake(f"{bucket}/lake", store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
    lake.require_encryption()
    first = publish(lake, *[rows(DAY, 3, start=3 * n) for n in range(4)])
    versions.tag(lake, "orders", "training", first.snapshot_id)
    maintenance.compact(lake, "orders")
    publish(lake, rows(DAY, 3, version=2))
    storage.create(lake.root / "once", "1")
    folder = storage.fresh_folder(lake.root / "models" / "m")
    storage.write(folder / "bundle.json", "{}")
    storage.settle(folder, lake.root / "models" / "m")
    noise = pa.table({"n": np.random.default_rng(1).random(2_000_000)})  # 16 MB: a multipart upload
    with storage.parquet_writer(lake.root / "big.parquet", noise.schema) as writer:
        writer.write_table(noise)
    with storage.connect_duckdb([lake.root]) as connection:
        connection.execute(f"COPY (SELECT * FROM range(1000)) TO '{lake.root / 'copy.parquet'}' (FORMAT parquet)")
    found = moto_store.objects(bucket)
    assert found["lake/big.parquet"]["ETag"].endswith('-2"')
    assert len(found) > 15 and {key.rsplit(".", 1)[-1] for key in found} >= {"avro", "json", "parquet", "current"}
    headers = {(head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) for head in found.values()}
    assert headers == {("aws:kms", KEY)}


@contextlib.contextmanager
def _recorded(target):
    """A gateway that writes down what is asked of a server."""
    asked = []

    class Gateway(BaseHTTPRequestHandler):
        def _pass(self):
            asked.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            names = ("Content-Type", "Content-Range", "Range")
            headers = {name: self.headers[name] for name in names if self.headers.get(name)}
            request = urllib.request.Request(target + self.path, body, headers, method=self.command)
            try:
                answer = urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                answer = error
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_every_upload_to_google_cloud_storage_names_the_key(gcs_store, tmp_path):
    bucket = gcs_store.bucket()
    with _recorded(gcs_store.store.endpoint) as (endpoint, asked):
        store = replace(gcs_store.store, endpoint=endpoint, kms_key=GOOGLE_KEY)
        lake = Lake(f"{bucket}/lake", store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
        publish(lake, rows(DAY, 3))
        storage.create(lake.root / "once", "1")
        noise = pa.table({"n": np.random.default_rng(1).random(2_000_000)})
        with storage.parquet_writer(lake.root / "big.parquet", noise.schema) as writer:
            writer.write_table(noise)
        assert lake.days("orders") == {DAY: 3} and storage.read_table(lake.root / "big.parquet").num_rows == 2_000_000
    uploads = [path for method, path in asked if method == "POST" and path.startswith("/upload/")]
    assert len(uploads) >= 6 and any("uploadType=resumable" in path for path in uploads)
    assert [path for path in uploads if f"kmsKeyName={GOOGLE_KEY.replace('/', '%2F')}" not in path
            and f"kmsKeyName={GOOGLE_KEY}" not in path] == []  # fmt: skip


def test_a_lake_without_a_key_is_refused_where_one_is_required(moto_store, tmp_path):
    with pytest.raises(ConfigurationError, match="files on a disk"):
        Lake(str(tmp_path)).require_encryption()
    with pytest.raises(ConfigurationError, match=r"no KMS key(.|\n)*fill in the KMS key"):
        Lake("s3://bucket/lake", moto_store.store, name="sml_lake").require_encryption()


class _Bucket(BaseHTTPRequestHandler):
    """Tells of a bucket what Google Cloud Storage tells, as far as its encryption goes; fake-gcs-server drops it."""

    def do_GET(self):
        key = self.server.key
        status = 403 if key == "hidden" else 200
        found = {"kind": "storage#bucket", "name": "lake"} | ({"encryption": {"defaultKmsKeyName": key}} if key else {})
        data = json.dumps({"error": {"code": 403, "message": "no permission"}} if status == 403 else found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (GOOGLE_KEY, None),
        (GOOGLE_KEY + "2", "Spark would write to gs://lake/x without the lake's key"),
        (None, "no default key"),
        ("hidden", "storage.buckets.get"),
    ],
)
def test_on_google_cloud_the_bucket_s_default_key_must_be_the_lake_s(key, said, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    server.key = key
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        store = storage.Store(f"http://127.0.0.1:{server.server_port}", project="p", google="anon", kms_key=GOOGLE_KEY)
        lake = Lake("gs://lake/x", store, CatalogSettings(uri=str(tmp_path / "catalog.db")))
        if said is None:
            lake.require_encryption()
        else:
            with pytest.raises(ConfigurationError, match=said):
                lake.require_encryption()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("uri", ["s3://bucket/a b/c", "gs://bucket/a b/c"])
def test_a_place_goes_to_another_process_with_its_key(uri, monkeypatch):
    """A worker of Dask gets places; what it writes there is to be encrypted, too."""
    import cloudpickle

    monkeypatch.setattr(storage, "_mounts", {})
    storage.mount(uri.rpartition("/")[0], storage.Store(kms_key="projects/p/key", google="anon"))
    carried = cloudpickle.dumps({"place": storage.place(uri) / "d"})
    code = (
        "import sys, pickle; found = pickle.loads(sys.stdin.buffer.read())['place']; kind = type(found.fs);"
        "print(str(found), kind.__module__, 'projects/p/key' in str(found.storage_options))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GCSFS", "AWS"))}
    told = subprocess.run([sys.executable, "-c", code], input=carried, capture_output=True, check=True, env=env)
    kind = "s3fs.core" if uri.startswith("s3") else "airflow_provider_sml.ml.storage_gcs"
    assert told.stdout.decode().rsplit(" ", 2) == [f"{uri}/d", kind, "True\n"]
