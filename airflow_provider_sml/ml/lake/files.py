"""How a table and its files are described to Iceberg: schema, name mapping, partition, footers, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import DataError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import Type

if TYPE_CHECKING:
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table


def iceberg_schema(columns: Sequence[tuple[str, Type]]) -> Schema:
    """The columns as Iceberg's schema; all of them may be NULL."""
    from pyiceberg import types
    from pyiceberg.schema import Schema

    kinds: dict[str, Any] = {
        "int": types.LongType(),
        "double": types.DoubleType(),
        "string": types.StringType(),
        "boolean": types.BooleanType(),
        "timestamp": types.TimestampType(),
        "date": types.DateType(),
    }
    fields = [
        types.NestedField(number, name, kinds[kind], required=False) for number, (name, kind) in enumerate(columns, 1)
    ]
    return Schema(*fields)


def name_mapping(schema: Schema) -> str:
    """Maps the files' columns by name; Spark writes no field ids."""
    return json.dumps([{"field-id": field.field_id, "names": [field.name]} for field in schema.fields])


def between(first: dt.date | None, last: dt.date | None) -> Any:
    """Iceberg's expression for the days from first to last; None leaves a side open."""
    from pyiceberg.expressions import AlwaysTrue, And, EqualTo, GreaterThanOrEqual, LessThanOrEqual

    if first is not None and first == last:
        return EqualTo(PARTITION, first.isoformat())
    low = AlwaysTrue() if first is None else GreaterThanOrEqual(PARTITION, first.isoformat())
    high = AlwaysTrue() if last is None else LessThanOrEqual(PARTITION, last.isoformat())
    return And(low, high)


def as_day(value: Any) -> dt.date:
    """A partition's value, which Iceberg gives as a date or as days since 1970."""
    return value if isinstance(value, dt.date) else dt.date(1970, 1, 1) + dt.timedelta(days=value)


def check_columns(paths: Sequence[Path], names: set[str]) -> None:
    """Refuse files with other columns than the table has."""
    for path in paths:
        try:
            found = set(storage.read_schema(path).names)
        except ValueError as error:  # Arrow's own errors are ValueErrors
            raise DataError(f"{path} is no parquet file", found=error, todo="run the ETL again") from error
        except FileNotFoundError:
            raise DataError(f"{path} is gone", expected="the staged file", todo="run the ETL again") from None
        if found != names:
            raise DataError(
                f"{path} has other columns than the table",
                expected=", ".join(sorted(names - found)) + " as well" if names - found else "no other columns",
                found=", ".join(sorted(found - names)) or "none of them",
            )


def uri(path: Path | str) -> str:
    """A file's name in Iceberg's metadata."""
    return str(path) if storage.is_remote(path) else f"file://{path}"


def data_file(loaded: Table, metadata: Any, path: Path, first: dt.date, last: dt.date) -> Any:
    """A file as Iceberg's metadata describe it, from its footer."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    try:
        return parquet_file_to_data_file(loaded.io, metadata, uri(path))
    except ValueError as error:
        raise DataError(
            f"{path} cannot be published",
            expected=f"the table's types, and rows of one day from {first} to {last}",
            found=error,
        ) from error


def check_file(file: Any, partition_id: int, first: dt.date, last: dt.date) -> None:
    """A file of several days, or with no day, would land in a partition that nobody replaces."""
    value = file.partition[0]
    day = None if value is None else as_day(value)
    nulls = (file.null_value_counts or {}).get(partition_id, 0)
    if file.record_count == 0 or day is None or nulls or not first <= day <= last:
        dateless = f", {nulls} without a day" if nulls else ""
        raise DataError(
            f"{file.file_path} cannot be published",
            expected=f"rows of one day from {first} to {last}",
            found=f"{file.record_count} rows of {day or 'no single day'}{dateless}",
        )
