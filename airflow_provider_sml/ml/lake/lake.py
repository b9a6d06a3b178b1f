"""The lake: Iceberg tables in a folder, published by one atomic commit, read by snapshot.

A writer puts parquet files into a fresh folder (``stage``); ``publish`` replaces whole days by those files in one
commit, or changes nothing. Readers name a snapshot and never see anything half-made. Embedded: files on the local file
system, the catalog in SQLite beside them.

Not here: what the rows must fulfil (``audit``), and deleting what no snapshot refers to any more.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError, DataError, require
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import Type
from airflow_provider_sml.refs import SnapshotRef

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

NAMESPACE = "lake"
#: Prefix of what a publish records in the snapshot's summary.
LINEAGE = "sml."

_PROPERTIES = {
    # Publishes of many processes at once all land; metadata stays small over hundreds of days.
    "commit.retry.num-retries": "20",
    "commit.retry.max-wait-ms": "2000",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
}


@dataclass(frozen=True)
class LakeFile:
    """A data file of a snapshot.

    :param path: local path.
    :param rows: number of rows.
    :param bytes: size.
    :param day: the partition it belongs to.
    """

    path: str
    rows: int
    bytes: int
    day: dt.date


class Lake:
    """Tables in a folder.

    :param location: the folder, as a path or a ``file://`` address.
    """

    def __init__(self, location: str) -> None:
        require("pyiceberg", "lake")
        if "://" in location and not location.startswith("file://"):
            raise ConfigurationError(
                f"the lake {location} cannot be reached by this version",
                expected="a local folder, such as include/data/lake",
                found=location,
            )
        self.location = str(Path(location.removeprefix("file://")).absolute())

    @cached_property
    def _catalog(self) -> SqlCatalog:
        from pyiceberg.catalog.sql import SqlCatalog
        from sqlalchemy.exc import IntegrityError, OperationalError

        Path(self.location).mkdir(parents=True, exist_ok=True)
        for tries_left in reversed(range(20)):
            try:
                catalog = SqlCatalog(
                    "sml",
                    uri=f"sqlite:///{self.location}/catalog.db",
                    warehouse=f"file://{self.location}",
                    **{"pool_pre_ping": "true"},
                )
                catalog.create_namespace_if_not_exists(NAMESPACE)
            except (IntegrityError, OperationalError):
                # Another process is making the catalog of a new lake at this very moment.
                if not tries_left:
                    raise
                time.sleep(0.1)
            else:
                break
        return catalog

    # --- reading --------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """Names of the tables."""
        return sorted(name for _, name in self._catalog.list_tables(NAMESPACE))

    def exists(self, table: str) -> bool:
        """Whether a table has been published."""
        return bool(self._catalog.table_exists((NAMESPACE, table)))

    def snapshot_id(self, table: str) -> int | None:
        """The current snapshot of a table; None when it has none."""
        if not self.exists(table):
            return None
        snapshot = self._table(table).current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def snapshots(self, table: str) -> list[dict[str, Any]]:
        """The snapshots of a table, oldest first: id, time, rows, and the lineage that each publish recorded."""
        found = []
        for snapshot in self._table(table).snapshots():
            summary = snapshot.summary.additional_properties if snapshot.summary else {}
            found.append(
                {
                    "snapshot_id": snapshot.snapshot_id,
                    "time": dt.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, dt.UTC).isoformat(),
                    "rows": int(summary.get("total-records", 0)),
                    "lineage": {k.removeprefix(LINEAGE): v for k, v in summary.items() if k.startswith(LINEAGE)},
                }
            )
        return found

    def files(
        self, table: str, snapshot_id: int | None = None, first: dt.date | None = None, last: dt.date | None = None
    ) -> list[LakeFile]:
        """The data files of a snapshot, by path.

        :param table: name of the table.
        :param snapshot_id: the snapshot; None for the current one.
        :param first: only from this day.
        :param last: only to this day, inclusive.
        """
        loaded = self._table(table)
        if loaded.current_snapshot() is None:
            return []
        if snapshot_id is not None and loaded.snapshot_by_id(snapshot_id) is None:
            raise ConfigurationError(
                f"table {table} has no snapshot {snapshot_id}",
                expected="one of the last: " + ", ".join(str(s.snapshot_id) for s in loaded.snapshots()[-5:]),
                found=snapshot_id,
                todo="publish again, or name a snapshot that was not expired",
            )
        scan = loaded.scan(row_filter=_between(first, last), snapshot_id=snapshot_id)
        files = [
            LakeFile(
                task.file.file_path.removeprefix("file://"),
                task.file.record_count,
                task.file.file_size_in_bytes,
                _day(task.file.partition[0]),
            )
            for task in scan.plan_files()
        ]
        return sorted(files, key=lambda file: (file.day, file.path))

    def days(self, table: str, snapshot_id: int | None = None) -> dict[dt.date, int]:
        """Rows of each published day, by day."""
        if not self.exists(table):
            return {}
        counts: dict[dt.date, int] = {}
        for file in self.files(table, snapshot_id):
            counts[file.day] = counts.get(file.day, 0) + file.rows
        return counts

    def columns(self, table: str) -> list[str]:
        """Names of the columns of a table."""
        return [field.name for field in self._table(table).schema().fields]

    # --- writing --------------------------------------------------------------------------------------------------

    def stage(self, table: str, run: str) -> Path:
        """A fresh folder for the files of one run; it becomes part of the table only by ``publish``.

        :param run: readable part of its name.
        """
        return Path(self.location) / NAMESPACE / table / "data" / f"{run[:80]}-{uuid.uuid4().hex[:8]}"

    def publish(
        self,
        table: str,
        columns: Sequence[tuple[str, Type]],
        paths: Sequence[Path],
        first: dt.date,
        last: dt.date,
        lineage: Mapping[str, str],
    ) -> SnapshotRef:
        """Replace the days from first to last by the rows of the given files, in one commit.

        :param table: name of the table; it is created when it is not there.
        :param columns: its columns in order; the last one is the partition.
        :param paths: parquet files, each of rows of one day; none empties the days.
        :param first: first day.
        :param last: last day, inclusive.
        :param lineage: recorded in the snapshot.
        :returns: the snapshot made.
        :raises DataError: when a file does not fit the table or lies outside the days; nothing is changed then.
        """
        loaded = self._ensure(table, columns)
        partition_id = loaded.schema().find_field(PARTITION).field_id
        _check_columns(paths, {field.name for field in loaded.schema().fields})
        with loaded.transaction() as transaction:
            new = [_data_file(loaded, transaction.table_metadata, path, first, last) for path in paths]
            for file in new:
                _check_file(file, partition_id, first, last)
            predicate = _between(first, last)
            old = [task.file for task in loaded.scan(row_filter=predicate).plan_files()]
            if new and {file.file_path for file in old} == {file.file_path for file in new}:
                # A retry after the commit: these very files are published already.
                return self._published(loaded, table, new, first, last)
            summary = {f"{LINEAGE}{key}": str(value) for key, value in lineage.items()}
            summary |= {f"{LINEAGE}first": first.isoformat(), f"{LINEAGE}last": last.isoformat()}
            with transaction.update_snapshot(snapshot_properties=summary).overwrite() as overwrite:
                overwrite.delete_by_predicate(predicate)  # arms the check for conflicting publishes
                for file in old:
                    overwrite.delete_data_file(file)
                for file in new:
                    overwrite.append_data_file(file)
        # The commit left in ``loaded`` what it made, so no later publish of another process is taken for this one.
        return self._published(loaded, table, new, first, last)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _published(self, loaded: Table, table: str, files: Sequence[Any], first: dt.date, last: dt.date) -> SnapshotRef:
        snapshot = loaded.current_snapshot()
        assert snapshot is not None
        total = snapshot.summary.additional_properties.get("total-records", "0") if snapshot.summary else "0"
        return SnapshotRef(
            lake=self.location,
            table=table,
            snapshot_id=snapshot.snapshot_id,
            first=first.isoformat(),
            last=last.isoformat(),
            rows=sum(file.record_count for file in files),
            total_rows=int(total),
        )

    def _table(self, table: str) -> Table:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self._catalog.load_table((NAMESPACE, table))
        except NoSuchTableError:
            raise ConfigurationError(
                f"the lake {self.location} has no table {table}",
                expected=f"one of {', '.join(self.tables()) or 'none yet'}",
                found=table,
                todo="run the ingest first",
            ) from None

    def _ensure(self, table: str, columns: Sequence[tuple[str, Type]]) -> Table:
        """The table with all these columns; new ones are added, a changed or missing one is refused."""
        from pyiceberg.exceptions import TableAlreadyExistsError
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.transforms import IdentityTransform

        schema = _schema(columns)
        if not self.exists(table):
            source = schema.find_field(PARTITION).field_id
            spec = PartitionSpec(PartitionField(source, 1000, IdentityTransform(), PARTITION))
            mapping = {"schema.name-mapping.default": _name_mapping(schema)}
            try:
                return self._catalog.create_table(
                    (NAMESPACE, table), schema, partition_spec=spec, properties=_PROPERTIES | mapping
                )
            except TableAlreadyExistsError:
                pass  # another process was quicker
        loaded = self._table(table)
        current = {field.name: field.field_type for field in loaded.schema().fields}
        wanted = {field.name: field.field_type for field in schema.fields}
        removed = sorted(set(current) - set(wanted))
        changed = sorted(name for name in current if name in wanted and current[name] != wanted[name])
        if removed or changed:
            raise DataError(
                f"table {table} has other columns than the contract",
                expected=", ".join(f"{name}: {current[name]}" for name in removed + changed),
                found=", ".join(f"{name}: {wanted.get(name, 'gone')}" for name in removed + changed),
                todo="keep them in the contract, or publish to a table of another name",
            )
        added = [name for name in wanted if name not in current]
        if added:
            with loaded.update_schema() as update:
                for name in added:
                    update.add_column(name, wanted[name])
            loaded = self._table(table)
            with loaded.transaction() as transaction:
                transaction.set_properties(**{"schema.name-mapping.default": _name_mapping(loaded.schema())})
            loaded = self._table(table)
        return loaded


def _schema(columns: Sequence[tuple[str, Type]]) -> Schema:
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


def _name_mapping(schema: Schema) -> str:
    """Maps the files' columns by name; Spark writes no field ids."""
    return json.dumps([{"field-id": field.field_id, "names": [field.name]} for field in schema.fields])


def _between(first: dt.date | None, last: dt.date | None) -> Any:
    from pyiceberg.expressions import AlwaysTrue, And, EqualTo, GreaterThanOrEqual, LessThanOrEqual

    if first is not None and first == last:
        return EqualTo(PARTITION, first.isoformat())
    low = AlwaysTrue() if first is None else GreaterThanOrEqual(PARTITION, first.isoformat())
    high = AlwaysTrue() if last is None else LessThanOrEqual(PARTITION, last.isoformat())
    return And(low, high)


def _day(value: Any) -> dt.date:
    return value if isinstance(value, dt.date) else dt.date(1970, 1, 1) + dt.timedelta(days=value)


def _check_columns(paths: Sequence[Path], names: set[str]) -> None:
    import pyarrow.parquet as pq

    for path in paths:
        try:
            found = set(pq.read_schema(path).names)
        except ValueError as error:  # Arrow's own errors are ValueErrors
            raise DataError(f"{path} is no parquet file", found=error, todo="run the ETL again") from error
        if found != names:
            raise DataError(
                f"{path} has other columns than the table",
                expected=", ".join(sorted(names - found)) + " as well" if names - found else "no other columns",
                found=", ".join(sorted(found - names)) or "none of them",
            )


def _data_file(loaded: Table, metadata: Any, path: Path, first: dt.date, last: dt.date) -> Any:
    """A file as Iceberg's metadata describe it, from its footer."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    try:
        return parquet_file_to_data_file(loaded.io, metadata, f"file://{path}")
    except ValueError as error:
        raise DataError(
            f"{path} cannot be published",
            expected=f"the table's types, and rows of one day from {first} to {last}",
            found=error,
        ) from error


def _check_file(file: Any, partition_id: int, first: dt.date, last: dt.date) -> None:
    """A file of several days, or with no day, would land in a partition that nobody replaces."""
    value = file.partition[0]
    day = None if value is None else _day(value)
    nulls = (file.null_value_counts or {}).get(partition_id, 0)
    if file.record_count == 0 or day is None or nulls or not first <= day <= last:
        dateless = f", {nulls} without a day" if nulls else ""
        raise DataError(
            f"{file.file_path} cannot be published",
            expected=f"rows of one day from {first} to {last}",
            found=f"{file.record_count} rows of {day or 'no single day'}{dateless}",
        )
