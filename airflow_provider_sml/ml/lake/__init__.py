"""The lake: Iceberg tables published by one atomic commit after an audit, read by snapshot."""

from airflow_provider_sml.ml.lake.catalog import CatalogSettings
from airflow_provider_sml.ml.lake.lake import Lake, LakeFile

__all__ = ["CatalogSettings", "Lake", "LakeFile"]
