"""The warehouse: tables for analysts, published from the lake's snapshots.

Each warehouse replaces the days of a :class:`Publication` in one transaction, creates the table or adds its new
columns, and takes the rows over only when their number and their checksum are those of the lake. DuckDB does it in this
process (``duckdb``); for BigQuery and Redshift a plan is compiled here, and the adapters of ``cloud`` run it.

Every warehouse keeps a log of its publishes in the table ``sml_publishes``. Not here: how a warehouse is reached, which
the connections know, and rows of a table's own that no snapshot has: the days belong to the lake.
"""

from airflow_provider_sml.ml.warehouse.publication import PUBLISHES, LakeRows, Publication, added_columns

__all__ = ["PUBLISHES", "LakeRows", "Publication", "added_columns"]
