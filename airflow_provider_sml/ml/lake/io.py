"""Iceberg's file access through this package's own stores, so that every file of a table, metadata included, is reached
with the lake's credentials and written with its key. Nothing secret stands in a catalog's properties.
"""

from __future__ import annotations

from fsspec import AbstractFileSystem
from pyiceberg.io.fsspec import FsspecFileIO

from airflow_provider_sml.ml import storage

#: The catalog's property that names the lake.
LOCATION = "sml.location"


class StoreFileIO(FsspecFileIO):
    """What a catalog's property ``py-io-impl`` names."""

    def get_fs(self, scheme: str, hostname: str | None = None) -> AbstractFileSystem:
        """The file system of the lake's own address."""
        return storage.file_system(self.properties[LOCATION])
