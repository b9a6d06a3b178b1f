"""Upkeep of the lake: small files, old snapshots, orphans; tags that keep a snapshot; the way back to one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml.contract.quantities import duration
from airflow_provider_sml.operators.base import SmlOperator, announce
from airflow_provider_sml.operators.openlineage import Data
from airflow_provider_sml.operators.openlineage import table as table_of
from airflow_provider_sml.refs import DifferenceRef, MaintenanceRef, SampleRef, SnapshotRef, TagRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.lake import Lake

#: A publish must find its staged files; a grace time below this is a slip.
LEAST_GRACE = dt.timedelta(hours=1)


class MaintainLakeOperator(SmlOperator):
    """Merges small files, lets old snapshots go and deletes the files that no snapshot refers to.

    Safe beside running ingests and readers. Never deleted: what the current snapshot, a tag or a sample's snapshot
    refers to, what is younger than ``grace``, and what a publish has claimed. A reader that began at a snapshot which
    expires while it reads keeps its files for the grace time.

    :param tables: tables whose files are merged and whose snapshots expire; all of the lake when empty.
    :param target_mb: size in MiB that a merged file may reach; 0 merges nothing.
    :param least_files: a day with fewer small files is not merged.
    :param expire_after: age from which a snapshot may go.
    :param keep: how many of the newest snapshots of a table stay whatever their age.
    :param grace: age from which an orphan may be deleted, at least an hour: longer than any run takes from its last
        written file to its publish.
    :param dry_run: only count the orphans; change nothing.
    :param lake: location of the lake, or the id of its connection.
    """

    template_fields: Sequence[str] = ("tables", "expire_after", "grace", "lake")
    ui_color = "#e8e8e8"

    def __init__(
        self,
        *,
        tables: Sequence[str] = (),
        target_mb: int = 256,
        least_files: int = 4,
        expire_after: str | dt.timedelta = "7 days",
        keep: int = 10,
        grace: str | dt.timedelta = "3 days",
        dry_run: bool = False,
        lake: str = LakeHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tables = tables
        self.target_mb = target_mb
        self.least_files = least_files
        self.expire_after = expire_after
        self.keep = keep
        self.grace = grace
        self.only_count = dry_run
        self.lake = lake

    def run(self, context: Context) -> MaintenanceRef:
        """Table by table; then the orphans of all of them."""
        from airflow_provider_sml.ml.lake import maintenance

        grace = duration(self.grace)
        if grace < LEAST_GRACE:
            raise ConfigurationError("the grace time is too short", expected="at least 1 hour", found=f"{self.grace}")
        lake = self.open_lake(self.lake)
        merged = expired = 0
        skipped: list[str] = []
        for table in [] if self.only_count else list(self.tables) or lake.tables():
            if self.target_mb:
                found = maintenance.compact(
                    lake, table, target_bytes=self.target_mb * 2**20, least_files=self.least_files
                )
                merged += found.files_before - found.files_after
                skipped += [f"{table} {day}" for day in found.skipped]
                self.log.info(
                    "%s: %d files of %d days became %d", table, found.files_before, len(found.days), found.files_after
                )
            gone = maintenance.expire(lake, table, older_than=duration(self.expire_after), keep=self.keep)
            expired += len(gone)
            self.log.info("%s: %d snapshots expired", table, len(gone))
        deleted = maintenance.delete_orphans(lake, grace=grace, dry_run=self.only_count)
        if deleted.unknown:
            self.log.warning("left alone, unknown to the catalog: %s", ", ".join(deleted.unknown))
        word = "orphans found" if self.only_count else "orphans deleted"
        self.log.info("%s: %s, %s bytes", word, f"{deleted.files:,}", f"{deleted.bytes:,}")
        return MaintenanceRef(
            lake=lake.name,
            files_merged=merged,
            snapshots_expired=expired,
            files_deleted=deleted.files,
            bytes_deleted=deleted.bytes,
            skipped=skipped + deleted.spared,
        )


class TagSnapshotOperator(SmlOperator):
    """Gives a snapshot a name, so that it is never expired: of a training set, or of a state to come back to.

    A repeat changes nothing; a name that another snapshot has is refused, never moved.

    :param snapshot: the output of a task that published (a snapshot) or sampled (then the snapshot of the sample).
    :param tag: the name, such as ``training-{{ ds }}``.
    :param lake: the lake; that of ``snapshot`` when empty.
    """

    template_fields: Sequence[str] = ("snapshot", "tag", "lake")
    ui_color = "#e8e8e8"

    def __init__(self, *, snapshot: Any, tag: str, lake: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot
        self.tag = tag
        self.lake = lake

    def run(self, context: Context) -> TagRef:
        """Tag."""
        from airflow_provider_sml.ml.lake import versions

        try:
            ref: SnapshotRef | SampleRef = SnapshotRef.load(self.snapshot)
        except ConfigurationError:
            ref = SampleRef.load(self.snapshot)
        lake = LakeHook(self.lake or ref.lake).get_conn()
        versions.tag(lake, ref.table, self.tag, ref.snapshot_id)
        self.log.info("%s: snapshot %d is %s", ref.table, ref.snapshot_id, self.tag)
        return TagRef(lake=lake.name, table=ref.table, tag=self.tag, snapshot_id=ref.snapshot_id)


class _VersionsOperator(SmlOperator):
    """What the two operators below share.

    :param table: name of the table.
    :param lake: location of the lake, or the id of its connection.
    """

    template_fields: Sequence[str] = ("table", "lake")
    ui_color = "#f6d5c9"

    def __init__(self, *, table: str, lake: str = LakeHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.lake = lake

    def snapshot_of(self, lake: Lake, value: Any) -> int | None:
        """A snapshot's id: given as such, by a tag's name, or by a published snapshot; None when empty."""
        from airflow_provider_sml.ml.lake import versions

        if value is None or value == "":
            return None
        if isinstance(value, int) or str(value).isdigit():
            return int(value)
        tags = versions.tags(lake, self.table)
        return tags[value] if isinstance(value, str) and value in tags else SnapshotRef.load(value).snapshot_id


class RollbackTableOperator(_VersionsOperator):
    """Makes an earlier snapshot of a table the current one, in one commit; nothing is deleted.

    Its outlets get an event with the days that changed, and its output brings a warehouse along.

    :param to: the snapshot: its id, the name of its tag, or the output of the task that published it.
    """

    template_fields: Sequence[str] = (*_VersionsOperator.template_fields, "to")
    __doc__ = f"{__doc__}\n{_VersionsOperator.__doc__}"

    def __init__(self, *, to: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to = to

    def run(self, context: Context) -> SnapshotRef:
        """Roll back."""
        from airflow_provider_sml.ml.lake import versions

        lake = LakeHook(self.lake).get_conn()
        snapshot_id = self.snapshot_of(lake, self.to)
        if snapshot_id is None:
            raise ConfigurationError("no snapshot to go back to is given", expected="an id, a tag or a snapshot")
        found = versions.roll_back(lake, self.table, snapshot_id)
        days = f"days from {found.first} to {found.last} changed" if found.first else "nothing changed"
        self.log.info("%s: snapshot %d is the current one again; %s", self.table, snapshot_id, days)
        announce(context, {"first": found.first, "last": found.last, "snapshot_id": str(snapshot_id)})
        return found

    def datasets(self, result: SnapshotRef) -> tuple[list[Data], list[Data]]:
        """The table, in the state that it has again."""
        return [], [table_of(result.lake, result.table, rows=result.rows, version=str(result.snapshot_id))]


class DiffSnapshotsOperator(_VersionsOperator):
    """Counts the days and rows that two snapshots of a table differ in.

    :param before: the first snapshot: its id, the name of its tag, or the output of the task that published it.
    :param after: the second one; the current one when empty.
    :param key: columns that name a row; without them a changed row counts as removed and added.
    """

    template_fields: Sequence[str] = (*_VersionsOperator.template_fields, "before", "after")
    __doc__ = f"{__doc__}\n{_VersionsOperator.__doc__}"

    def __init__(self, *, before: Any, after: Any = None, key: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.before = before
        self.after = after
        self.key = key

    def run(self, context: Context) -> DifferenceRef:
        """Compare."""
        from airflow_provider_sml.ml.lake import versions

        lake = LakeHook(self.lake).get_conn()
        before = versions.known(lake, self.table, self.snapshot_of(lake, self.before))
        after = versions.known(lake, self.table, self.snapshot_of(lake, self.after))
        found = versions.diff(lake, self.table, before, after, self.key)
        ref = DifferenceRef(
            lake=lake.name,
            table=self.table,
            before=before,
            after=after,
            days_added=len(found.days_added),
            days_removed=len(found.days_removed),
            days_changed=len(found.days_changed),
            rows_added=found.rows_added,
            rows_removed=found.rows_removed,
            rows_changed=found.rows_changed,
        )
        self.log.info(
            "%s: %d days added, %d removed, %d changed; %s rows added, %s removed, %s changed", self.table,
            ref.days_added, ref.days_removed, ref.days_changed, f"{ref.rows_added:,}", f"{ref.rows_removed:,}",
            f"{ref.rows_changed:,}",
        )  # fmt: skip
        return ref
