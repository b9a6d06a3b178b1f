"""A folder as the tar.gz that SageMaker unpacks: the same files are always the same bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
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
    archive = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for file in found:
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                tar.addfile(entry, content)
    return archive.getvalue()
