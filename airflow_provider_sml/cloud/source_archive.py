"""Files as the tar.gz that SageMaker unpacks: the same files are always the same bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError


def pack(folder: Path) -> bytes:
    """The archive of a folder's files, without byte code and hidden files.

    :param folder: whose files lie at the top of the archive.
    :raises ConfigurationError: when there is no such folder, or nothing in it.
    """
    found = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    )  # fmt: skip
    if not found:
        raise ConfigurationError(f"there is nothing in {folder}", expected="a folder with files", found="none")
    return pack_files({str(path.relative_to(folder)): path.read_bytes() for path in found})


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """The archive of some files.

    :param files: content by name.
    """
    archive = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()
