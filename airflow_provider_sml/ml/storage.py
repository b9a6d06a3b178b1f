"""Places: the folders and files of this package, on a local disk, S3 or Google Cloud Storage, read and written alike.

``place`` gives a plain ``pathlib.Path`` for what is local and, for ``s3://`` and ``gs://``, universal_pathlib's
``UPath``, which has the same methods. ``mount`` says how the store below an address is reached; whoever opens the lake
does that, so no credential is ever part of a path, a value in XCom or a plan. Without a mount the environment's own
credentials are taken (AWS's and Google's default chains).

Two things differ between disks and object stores, and are hidden here. A rename is atomic on a disk and a slow copy on
a store: ``fresh_folder`` and ``settle`` make a whole folder appear at once on both. And a store answers a listing
anew each time: nothing is cached, because other processes write there too.

Not here: tables and their commits (``ml.lake``), and what Spark writes (``Store.spark_conf`` tells it how to).
"""

from __future__ import annotations

import contextlib
import copyreg
import datetime as dt
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_sml.errors import ConfigurationError, require

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec import AbstractFileSystem

#: Schemes of object stores, the extra that each needs, and the module to look for.
STORES = {"s3": ("amazon", "s3fs"), "gs": ("google", "gcsfs")}
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_BLOCK = 8 * 2**20
_POINTER = ".current"


@dataclass(frozen=True)
class Store:
    """How an object store is reached; everything empty means by the environment's own credentials.

    :param endpoint: address of a store that is not the vendor's own, such as ``https://s3.example.com``.
    :param region: AWS region.
    :param access_key: id of an AWS access key.
    :param secret_key: its secret.
    :param session_token: its token, when the key is a temporary one.
    :param project: Google Cloud project.
    :param google: Google credentials: an object of google-auth, a service account's key as a dictionary, or ``anon``.
    :param kms_key: key that everything written is encrypted with: a KMS key's ARN, id or alias on AWS; on Google the
        full name ``projects/P/locations/L/keyRings/R/cryptoKeys/K``.
    :param attempts: tries of a call that S3 does not answer, or answers by SlowDown or an error of its own.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    project: str | None = None
    google: Any = field(default=None, repr=False)
    kms_key: str | None = None
    attempts: int = 10

    def options(self, scheme: str) -> dict[str, Any]:
        """What fsspec's file system of a scheme is made with."""
        common: dict[str, Any] = {"use_listings_cache": False}
        if scheme == "s3":
            client = {"endpoint_url": self.endpoint, "region_name": self.region}
            encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}
            return common | {
                "key": self.access_key,
                "secret": self.secret_key,
                "token": self.session_token,
                "client_kwargs": {key: value for key, value in client.items() if value},
                # SlowDown and 5xx are answered by waiting longer each time.
                "config_kwargs": {"retries": {"mode": "standard", "max_attempts": self.attempts}}
                | ({"s3": {"addressing_style": "path"}} if self.endpoint else {}),
                "s3_additional_kwargs": encryption,
                "default_block_size": _BLOCK,
            }
        return common | {
            "token": self.google,
            "project": self.project,
            "endpoint_url": self.endpoint,
            "default_block_size": _BLOCK,
            "kms_key": self.kms_key,
        }

    def spark_conf(self, scheme: str) -> dict[str, str]:
        """Spark's settings for a scheme, without secrets: those go through ``spark_env``.

        Google's connector encrypts by the bucket's default key; it has no setting for a key of its own.
        """
        if scheme == "s3":
            secure = not (self.endpoint or "").startswith("http://")
            found = {
                "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
                "spark.hadoop.fs.s3a.endpoint": self.endpoint,
                "spark.hadoop.fs.s3a.endpoint.region": self.region,
                "spark.hadoop.fs.s3a.path.style.access": "true" if self.endpoint else None,
                "spark.hadoop.fs.s3a.connection.ssl.enabled": None if secure else "false",
                "spark.hadoop.fs.s3a.encryption.algorithm": "SSE-KMS" if self.kms_key else None,
                "spark.hadoop.fs.s3a.encryption.key": self.kms_key,
            }
        else:
            found = {
                "spark.hadoop.fs.gs.impl": "com.google.cloud.hadoop.fs.gcs.GoogleHadoopFileSystem",
                "spark.hadoop.fs.AbstractFileSystem.gs.impl": "com.google.cloud.hadoop.fs.gcs.GoogleHadoopFS",
                "spark.hadoop.fs.gs.storage.root.url": f"{self.endpoint}/" if self.endpoint else None,
                "spark.hadoop.fs.gs.project.id": self.project,
            }
            if self.google == "anon":  # the first is read by connectors from 3.0 on, the other two by those before
                found |= {
                    "spark.hadoop.fs.gs.auth.type": "UNAUTHENTICATED",
                    "spark.hadoop.fs.gs.auth.service.account.enable": "false",
                    "spark.hadoop.fs.gs.auth.null.enable": "true",
                }
        return {key: value for key, value in found.items() if value}

    def spark_env(self) -> dict[str, str]:
        """Environment variables with the AWS credentials, which S3A's default chain of providers reads."""
        found = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session_token,
        }
        return {key: value for key, value in found.items() if value}


_mounts: dict[str, Store] = {}


def mount(location: str, store: Store) -> None:
    """From now on reach everything below an address by these settings, in this process.

    :param location: such as ``s3://bucket/lake``; a local place needs no mount and has none.
    """
    if is_remote(location):
        _mounts[address(location)] = store


def is_reached(location: str | Path) -> bool:
    """Whether what was mounted in this process says how to reach an address."""
    return _mounted(address(location)) is not None


def place(location: str | Path) -> Path:
    """A place by its path or address.

    :param location: a path, or a ``file://``, ``s3://`` or ``gs://`` address.
    :returns: a ``Path``, or an object with the methods of one.
    :raises ConfigurationError: when the address is of another kind.
    """
    if not isinstance(location, str):
        return location
    if not is_remote(location):
        return Path(location.removeprefix("file://"))
    uri = address(location)
    scheme = uri.split("://", 1)[0]
    extra, module = STORES[scheme]
    require(module, extra)
    return _made(uri, _store_of(uri).options(scheme))


def is_remote(location: str | Path) -> bool:
    """Whether a place lies on an object store.

    :raises ConfigurationError: when the address is of a kind that nothing here can read.
    """
    text = str(location)
    if "://" not in text or text.startswith("file://"):
        return False
    scheme = text.split("://", 1)[0]
    if _ALIASES.get(scheme, scheme) not in STORES:
        raise ConfigurationError(
            f"{text} cannot be reached",
            expected="a path, or an address that starts with file://, s3:// or gs://",
            found=f"{scheme}://",
        )
    return True


def address(location: str | Path) -> str:
    """The address of a place: an absolute path, or ``scheme://bucket/key`` under the scheme's usual name."""
    if not is_remote(location):
        return str(Path(str(location).removeprefix("file://")).absolute())
    scheme, rest = str(location).split("://", 1)
    return f"{_ALIASES.get(scheme, scheme)}://{rest.rstrip('/')}"


def file_system(location: str | Path) -> AbstractFileSystem:
    """fsspec's file system of a place on an object store."""
    return cast(Any, place(location) if isinstance(location, str) else location).fs


def default_key(location: str) -> str | None:
    """The KMS key that a bucket of Google Cloud Storage encrypts with what names no key; None when it has none.

    :param location: an address in the bucket.
    :raises ConfigurationError: when the credentials may not see it (``storage.buckets.get``).
    """
    bucket = address(location).split("/")[2]
    try:
        told = cast(Any, file_system(location)).call("GET", "b/{}", bucket, json_out=True)
    except (OSError, ValueError) as error:  # gcsfs tells a refusal by several classes
        raise ConfigurationError(
            f"the default key of bucket {bucket} cannot be looked up",
            expected="the permission storage.buckets.get",
            found=error,
        ) from error
    key: str | None = told.get("encryption", {}).get("defaultKmsKeyName")
    return key


def _store_of(uri: str) -> Store:
    return _mounted(uri) or Store()


def _mounted(uri: str) -> Store | None:
    above = [mounted for mounted in _mounts if uri == mounted or uri.startswith(f"{mounted}/")]
    if above:
        return _mounts[max(above, key=len)]
    # A bucket of its own beside the lake is reached as the lake is.
    beside = [mounted for mounted in _mounts if mounted.split("://")[0] == uri.split("://")[0]]
    return _mounts[beside[0]] if len(beside) == 1 else None


def _register(scheme: str) -> None:
    if scheme == "gs":
        import fsspec

        for name in ("gs", "gcs"):
            fsspec.register_implementation(name, "airflow_provider_sml.ml.storage_gcs.GcsFileSystem", clobber=True)


def _carried(path: Any) -> tuple[Any, ...]:
    """How a place goes to another process, such as a worker: with its settings, and made there as ``place`` makes it.

    By itself fsspec would take a file system of its own there, which knows of no key.
    """
    return _made, (str(path), dict(path.storage_options))


def _made(uri: str, options: dict[str, Any]) -> Path:
    scheme = uri.split("://", 1)[0]
    _register(scheme)
    from upath import UPath

    found = UPath(uri, protocol=scheme, **options)
    copyreg.pickle(type(found), _carried)
    return cast(Path, found)


# --- whole files ------------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader sees a part of it; its folder is made."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        file_system(path).pipe_file(str(path), data)
        return
    partial = _partial(path, data)
    os.replace(partial, path)


def create(path: Path, content: str | bytes) -> bool:
    """Write a file unless it is there, as one step that only one of many processes can win.

    :returns: whether this call made it.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        try:
            file_system(path).pipe_file(str(path), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # gcsfs tells a failed precondition by its HTTP status only
            if "412" in str(error) or "condition" in str(error).lower():
                return False
            raise
        return True
    partial = _partial(path, data)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def _partial(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    return Path(name)


@dataclass(frozen=True)
class Entry:
    """A file as a listing tells it.

    :param path: its path or address.
    :param bytes: size.
    :param modified: when it was last written, by the clock of the store.
    """

    path: str
    bytes: int
    modified: dt.datetime


def entries(folder: Path) -> Iterator[Entry]:
    """Every file below a folder; none when it is not there."""
    if not is_remote(folder):
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                if path.is_file():
                    stat = path.stat()
                    yield Entry(str(path), stat.st_size, dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC))
        return
    scheme = str(folder).split("://", 1)[0]
    for name, info in file_system(folder).find(str(folder), detail=True).items():
        modified = info.get("LastModified") or info.get("mtime") or info["updated"]
        if isinstance(modified, str):
            modified = dt.datetime.fromisoformat(modified.replace("Z", "+00:00"))
        yield Entry(f"{scheme}://{name}", int(info["size"]), modified)


def remove(path: str) -> None:
    """Remove a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        place(path).unlink()


# --- whole folders ----------------------------------------------------------------------------------------------------


def fresh_folder(folder: Path) -> Path:
    """A new empty folder beside ``folder``, to be filled and then given to ``settle``."""
    suffix = uuid.uuid4().hex[:8]
    return folder.with_name(f"{folder.name}.{suffix}" if is_remote(folder) else f"{folder.name}.{suffix}.tmp")


def settle(filled: Path, folder: Path) -> Path:
    """Make a filled folder the one that ``find_folder`` finds, unless another process was quicker.

    On a disk it is renamed. On an object store it stays where it is, and a small object made by a conditional write
    points to it. The loser's folder is removed.

    :returns: the folder that counts, this one or the quicker one's.
    """
    if is_remote(folder):
        if not create(folder.with_name(folder.name + _POINTER), filled.name):
            remove_folder(filled)
        found = find_folder(folder)
        assert found is not None
        return found
    try:
        filled.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        remove_folder(filled)
    return folder


def find_folder(folder: Path) -> Path | None:
    """The folder that was settled under this name; None when there is none yet."""
    if not is_remote(folder):
        return folder if folder.exists() else None
    try:
        return folder.with_name(folder.with_name(folder.name + _POINTER).read_text())
    except FileNotFoundError:
        return None


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; one that is not there is no error."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        file_system(folder).rm(str(folder), recursive=True)


# --- parquet ----------------------------------------------------------------------------------------------------------


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a parquet file.

    :param columns: the ones to read; all when None.
    """
    import pyarrow.parquet as pq

    if not is_remote(path):
        return pq.read_table(path, columns=columns, partitioning=None)
    with file_system(path).open(str(path), "rb") as file:
        return pq.read_table(file, columns=columns)


def read_schema(path: Path) -> pa.Schema:
    """The columns of a parquet file, from its footer."""
    import pyarrow.parquet as pq

    if not is_remote(path):
        return pq.read_schema(path)
    with file_system(path).open(str(path), "rb") as file:
        return pq.read_schema(file)


def write_table(table: pa.Table, path: Path, **settings: Any) -> None:
    """Write rows as one parquet file; its folder is made.

    :param settings: of ``pyarrow.parquet.write_table``; zstd unless they say otherwise.
    """
    import pyarrow.parquet as pq

    settings = {"compression": "zstd"} | settings
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **settings)
        return
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **settings)
    file_system(path).pipe_file(str(path), buffer.getvalue())


@contextlib.contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a parquet file of any size piece by piece; its folder is made."""
    import pyarrow.parquet as pq

    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    target = file_system(path).open(str(path), "wb") if is_remote(path) else path.open("wb")
    with target as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer


def connect_duckdb(
    places: Iterable[str | Path] = (), config: Mapping[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """DuckDB in memory, able to read and write some places through fsspec.

    :param places: whose stores are made known; local ones need nothing.
    :param config: of ``duckdb.connect``.
    """
    import duckdb

    connection = duckdb.connect(config=dict(config or {}))
    register_stores(connection, places)
    return connection


def register_stores(connection: duckdb.DuckDBPyConnection, places: Iterable[str | Path]) -> None:
    """Let a connection of DuckDB reach the stores of some places; its own httpfs is never loaded."""
    for one in {str(path).split("://", 1)[0]: path for path in places if is_remote(path)}.values():
        name = file_system(one).protocol
        if not any(connection.filesystem_is_registered(n) for n in ([name] if isinstance(name, str) else name)):
            connection.register_filesystem(file_system(one))
