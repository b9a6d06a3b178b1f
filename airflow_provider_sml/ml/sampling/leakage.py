"""The leakage guard: no row, and where entities are split no entity, may stand in two splits of a sample.

It looks at what was written, not at how it was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import identifier

if TYPE_CHECKING:
    import duckdb


def check_splits(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, Sequence[str]], group: Sequence[str] = ()
) -> None:
    """Refuse a sample whose splits share days (or, where entities are split, entities).

    :param connection: DuckDB, with the file systems of the files.
    :param files: parquet files of each split.
    :param group: columns that name an entity, where the splits are of entities; the splits are of days otherwise.
    :raises DataError: naming the splits and an example of what they share.
    """
    names = ", ".join(identifier(name, "duckdb") for name in group or (PARTITION,))
    values = f"SELECT {names} FROM read_parquet(?, union_by_name=true, hive_partitioning=false)"
    for one, other in combinations(files, 2):
        if not files[one] or not files[other]:
            continue
        [(count, example)] = connection.execute(
            f"SELECT count(*), min(concat_ws('|', {names})) FROM ({values} INTERSECT {values})",
            [list(files[one]), list(files[other])],
        ).fetchall()
        if count:
            what = f"entities ({', '.join(group)})" if group else "days"
            raise DataError(
                f"the splits {one} and {other} share {what}: what a model is tested on, it has seen",
                expected="none in common",
                found=f"{count:,}, such as {example}",
                todo="report this as a bug; do not use the sample",
            )
