"""Who may touch a run's folder: a publisher that is about to commit its files, or the cleaner that deletes them.

Each raises its flag in the folder first and then looks for the other's. Stores and disks show a written file at once,
so at least one of the two sees the other and gives way: never does a commit name a file that is being deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage

#: Raised by a publisher. Its age counts as that of the folder's files, so a crashed publisher's flag ages with them.
PUBLISHING = "_publishing"
#: Raised by the cleaner.
DOOMED = "_doomed"


def claim(root: Path, paths: Sequence[Path]) -> None:
    """Raise the publisher's flag in the folders of some files.

    :param root: of the lake; files outside of it belong to nobody.
    :raises DataError: when the files are being deleted.
    """
    for folder in run_folders(root, paths):
        storage.write(folder / PUBLISHING, "")
        if (folder / DOOMED).exists():
            raise DataError(
                f"the files in {folder} are being deleted",
                expected="files that are younger than the grace time of the clean-up",
                found=f"the flag {DOOMED}",
                todo="run the ETL again",
            )


def run_folders(root: Path, paths: Iterable[Path]) -> list[Path]:
    """The folder of the run that wrote each file: ``lake/TABLE/data/RUN`` below the root."""
    found = set()
    base = str(root)
    for path in paths:
        parts = str(path).removeprefix(f"{base}/").split("/")
        if str(path).startswith(f"{base}/") and len(parts) > 4 and parts[2] == "data":
            found.add("/".join(parts[:4]))
    return [root / folder for folder in sorted(found)]
