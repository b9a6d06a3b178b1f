"""The lake: Iceberg tables in a folder, published by one atomic commit, read by snapshot.

A writer puts parquet files into a fresh folder (``stage``); ``publish`` replaces whole days by those files in one
commit, or changes nothing. Readers name a snapshot and never see anything half-made. Embedded: files on the local file
system, the catalog in SQLite beside them.

Not here: what the rows must fulfil (``audit``), and deleting what no snapshot refers to any more.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import CommitError, ConfigurationError, ConflictError, DataError, require
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.contract.dataset import PARTITION
from airflow_provider_sml.ml.expressions import Type
from airflow_provider_sml.ml.lake import lives
from airflow_provider_sml.ml.lake.catalog import CatalogSettings, open_catalog
from airflow_provider_sml.ml.lake.files import (
    as_day,
    between,
    check_columns,
    check_file,
    data_file,
    iceberg_schema,
    name_mapping,
    uri,
)
from airflow_provider_sml.refs import SnapshotRef

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

#: Folder of the tables below the lake's place.
TABLES = "lake"
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

    :param path: its path, or its address on an object store.
    :param rows: number of rows.
    :param bytes: size.
    :param day: the partition it belongs to.
    :param nulls: how many of its values are null, by column; a column that nobody counted is missing.
    """

    path: str
    rows: int
    bytes: int
    day: dt.date
    nulls: Mapping[str, int] = field(default_factory=dict, compare=False)


class Lake:
    """Tables below one place.

    :param location: a folder, or an ``s3://`` or ``gs://`` address.
    :param store: how an object store is reached; by the environment's own credentials when None.
    :param catalog: where the tables' current states are kept; SQLite in the folder when None.
    :param name: what operators open this lake by, a connection's id for instance; the location when None. It is all
        that a ref says of the lake, so that no credential leaves the connection.
    """

    def __init__(
        self,
        location: str,
        store: storage.Store | None = None,
        catalog: CatalogSettings | None = None,
        name: str | None = None,
    ) -> None:
        require("pyiceberg", "lake")
        self.location = storage.address(location)
        self.name = name or self.location
        self.store = store or storage.Store()
        self.settings = catalog or CatalogSettings()
        if store is not None:
            storage.mount(self.location, store)

    @cached_property
    def root(self) -> Path:
        """The lake's own folder."""
        return storage.place(self.location)

    @property
    def is_remote(self) -> bool:
        """Whether the lake lies on an object store."""
        return storage.is_remote(self.location)

    @cached_property
    def catalog(self) -> Catalog:
        """Iceberg's own object of the catalog."""
        return open_catalog(self.settings, self.location, self.store)

    def spark_conf(self) -> dict[str, str]:
        """Spark's settings that reach the lake's store and encrypt as its key says; none for a folder on a disk."""
        return self.store.spark_conf(self.location.split("://")[0]) if self.is_remote else {}

    def spark_env(self) -> dict[str, str]:
        """The secrets that go with ``spark_conf``, as environment variables of the driver."""
        return self.store.spark_env() if self.is_remote else {}

    def require_encryption(self) -> None:
        """Refuse a lake whose files are not encrypted with a key of one's own.

        On Google Cloud the bucket must have that key as its default one too: Spark's connector cannot name a key of
        Cloud KMS (its ``fs.gs.encryption.*`` are for keys that the customer sends along).

        :raises ConfigurationError: when the lake lies on a disk, its store has no key, or its bucket another one.
        """
        if not (self.is_remote and self.store.kms_key):
            raise ConfigurationError(
                f"the lake {self.name} would be written without a key",
                expected="an object store with a KMS key, because the spec says encryption: required",
                found="files on a disk" if not self.is_remote else "no KMS key",
                todo="fill in the KMS key of the lake's connection",
            )
        if self.location.startswith("gs://"):
            found = storage.default_key(self.location)
            if found != self.store.kms_key:
                raise ConfigurationError(
                    f"Spark would write to {self.location} without the lake's key",
                    expected=f"{self.store.kms_key} as the bucket's default key",
                    found=found or "no default key",
                    todo="gcloud storage buckets update gs://BUCKET --default-encryption-key=KEY",
                )

    # --- reading --------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """Names of the tables."""
        return sorted(name[-1] for name in self.catalog.list_tables(self.settings.namespace))

    def exists(self, table: str) -> bool:
        """Whether a table has been published."""
        return bool(self.catalog.table_exists((self.settings.namespace, table)))

    def snapshot_id(self, table: str) -> int | None:
        """The current snapshot of a table; None when it has none."""
        if not self.exists(table):
            return None
        snapshot = self.load(table).current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def snapshots(self, table: str) -> list[dict[str, Any]]:
        """The snapshots of a table, oldest first: id, time, rows, and the lineage that each publish recorded."""
        found = []
        for snapshot in self.load(table).snapshots():
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
        loaded = self.load(table)
        if loaded.current_snapshot() is None:
            return []
        if snapshot_id is not None and loaded.snapshot_by_id(snapshot_id) is None:
            raise ConfigurationError(
                f"table {table} has no snapshot {snapshot_id}",
                expected="one of the last: " + ", ".join(str(s.snapshot_id) for s in loaded.snapshots()[-5:]),
                found=snapshot_id,
                todo="publish again, or name a snapshot that was not expired",
            )
        scan = loaded.scan(row_filter=between(first, last), snapshot_id=snapshot_id)
        names = {column.field_id: column.name for column in scan.projection().fields}
        files = [
            LakeFile(
                task.file.file_path.removeprefix("file://"),
                task.file.record_count,
                task.file.file_size_in_bytes,
                as_day(task.file.partition[0]),
                {names[n]: count for n, count in (task.file.null_value_counts or {}).items() if n in names},
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
        return [field.name for field in self.load(table).schema().fields]

    def properties(self, table: str) -> dict[str, str]:
        """Properties of a table; none when it is not there."""
        return dict(self.load(table).properties) if self.exists(table) else {}

    # --- writing --------------------------------------------------------------------------------------------------

    def stage(self, table: str, run: str) -> Path:
        """A fresh folder for the files of one run; it becomes part of the table only by ``publish``.

        :param run: readable part of its name.
        """
        return self.folder(table) / "data" / f"{run[:80]}-{uuid.uuid4().hex[:8]}"

    def publish(
        self,
        table: str,
        columns: Sequence[tuple[str, Type]],
        paths: Sequence[Path],
        first: dt.date,
        last: dt.date,
        lineage: Mapping[str, str],
        properties: Mapping[str, str] | None = None,
    ) -> SnapshotRef:
        """Replace the days from first to last by the rows of the given files, in one commit.

        :param table: name of the table; it is created when it is not there.
        :param columns: its columns in order; the last one is the partition.
        :param paths: parquet files, each of rows of one day; none empties the days.
        :param first: first day.
        :param last: last day, inclusive.
        :param lineage: recorded in the snapshot.
        :param properties: set on the table in the same commit.
        :returns: the snapshot made.
        :raises DataError: when a file does not fit the table or lies outside the days; nothing is changed then.
        :raises ConflictError: when another process published some of these days meanwhile; what it made stays.
        """
        loaded = self._ensure(table, columns)
        lives.claim(self.root, paths)
        check_columns(paths, {field.name for field in loaded.schema().fields})
        summary = {f"{LINEAGE}{key}": str(value) for key, value in lineage.items()}
        summary |= {f"{LINEAGE}first": first.isoformat(), f"{LINEAGE}last": last.isoformat()}
        return self.replace(loaded, table, paths, first, last, summary, properties=properties)

    def replace(
        self,
        loaded: Table,
        table: str,
        paths: Sequence[Path],
        first: dt.date,
        last: dt.date,
        summary: Mapping[str, str],
        only: Collection[str] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> SnapshotRef:
        """One commit that takes the files of some days out and puts others in.

        :param loaded: the table as it was when this work began; whoever changed these days since then stays.
        :param paths: the files to put in.
        :param summary: properties of the snapshot.
        :param only: paths of the files to take out; all those of the days when None.
        :param properties: set on the table in the same commit.
        """
        partition_id = loaded.schema().find_field(PARTITION).field_id
        with conflicts_named(table, f"from {first} to {last}"), loaded.transaction() as transaction:
            if changed := {k: v for k, v in (properties or {}).items() if loaded.properties.get(k) != v}:
                transaction.set_properties(**changed)
            new = [data_file(loaded, transaction.table_metadata, path, first, last) for path in paths]
            for file in new:
                check_file(file, partition_id, first, last)
            predicate = between(first, last)
            old = [task.file for task in loaded.scan(row_filter=predicate).plan_files()]
            if new and {file.file_path for file in old} == {file.file_path for file in new}:
                # A retry after the commit: these very files are published already.
                return self._published(loaded, table, new, first, last)
            with transaction.update_snapshot(snapshot_properties=dict(summary)).overwrite() as overwrite:
                overwrite.delete_by_predicate(predicate)  # arms the check for conflicting publishes
                for file in old:
                    if only is None or file.file_path in only:
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
            lake=self.name,
            table=table,
            snapshot_id=snapshot.snapshot_id,
            first=first.isoformat(),
            last=last.isoformat(),
            rows=sum(file.record_count for file in files),
            total_rows=int(total),
        )

    def folder(self, table: str) -> Path:
        """Where a table lies."""
        return self.root / TABLES / table

    def load(self, table: str) -> Table:
        """Iceberg's own object of a table, fresh from the catalog.

        :raises ConfigurationError: when there is no such table.
        """
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self.catalog.load_table((self.settings.namespace, table))
        except NoSuchTableError:
            raise ConfigurationError(
                f"the lake {self.name} has no table {table}",
                expected=f"one of {', '.join(self.tables()) or 'none yet'}",
                found=table,
                todo="run the ingest first",
            ) from None

    def _ensure(self, table: str, columns: Sequence[tuple[str, Type]]) -> Table:
        """The table with all these columns; new ones are added, a changed or missing one is refused."""
        from pyiceberg.exceptions import TableAlreadyExistsError
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.transforms import IdentityTransform

        schema = iceberg_schema(columns)
        if not self.exists(table):
            source = schema.find_field(PARTITION).field_id
            spec = PartitionSpec(PartitionField(source, 1000, IdentityTransform(), PARTITION))
            mapping = {"schema.name-mapping.default": name_mapping(schema)}
            try:
                return self.catalog.create_table(
                    (self.settings.namespace, table),
                    schema,
                    location=uri(self.folder(table)),
                    partition_spec=spec,
                    properties=_PROPERTIES | mapping,
                )
            except TableAlreadyExistsError:
                pass  # another process was quicker
        loaded = self.load(table)
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
            loaded = self.load(table)
            with loaded.transaction() as transaction:
                transaction.set_properties(**{"schema.name-mapping.default": name_mapping(loaded.schema())})
            loaded = self.load(table)
        return loaded


@contextmanager
def conflicts_named(table: str, what: str) -> Iterator[None]:
    """Tell Iceberg's refusals of a commit in this package's errors."""
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    try:
        yield
    except ValidationException as error:
        raise ConflictError(
            f"another process changed {table} {what} while this one was about to",
            expected="nobody else at work on the same days",
            found=str(error),
            todo="nothing of this one is visible; clear this task if it shall replace what the other one made",
        ) from error
    except CommitFailedException as error:
        raise CommitError(
            f"{table} was changed by others at every attempt to commit",
            expected="a gap between two commits of other processes",
            found=str(error),
            todo="nothing was changed; try again",
        ) from error
