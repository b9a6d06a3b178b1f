"""Keeps a lake small: merges small files, lets old snapshots go, deletes what no snapshot refers to.

Each is safe beside running publishers and readers, and a repeat after a crash goes on where it stopped. Rows disappear
from the disk only after all three of: replaced, expired, deleted; a tag or a sample that holds a snapshot keeps them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_sml.errors import ConflictError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake.files import uri
from airflow_provider_sml.ml.lake.lake import LINEAGE, TABLES, Lake, LakeFile, conflicts_named
from airflow_provider_sml.ml.lake.lives import DOOMED

DAY = dt.timedelta(days=1)
#: What a file of a good size has.
TARGET_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Compacted:
    """What compaction did.

    :param days: days that were rewritten.
    :param files_before: their files before.
    :param files_after: and after.
    :param bytes: bytes rewritten.
    :param skipped: days that somebody published meanwhile; they are left as they are.
    """

    days: list[dt.date]
    files_before: int
    files_after: int
    bytes: int
    skipped: list[dt.date]


def compact(
    lake: Lake,
    table: str,
    *,
    target_bytes: int = TARGET_BYTES,
    least_files: int = 4,
    first: dt.date | None = None,
    last: dt.date | None = None,
) -> Compacted:
    """Merge the small files of each day into files of about a given size, with one commit a day.

    The rows stay the same. Files are merged in their order, whole, so a day's sorting is kept within each of them.

    :param target_bytes: size that a merged file may reach.
    :param least_files: a day with fewer small files is left alone.
    :param first: only from this day.
    :param last: only to this day, inclusive.
    """
    by_day: dict[dt.date, list[LakeFile]] = {}
    for file in lake.files(table, None, first, last):
        by_day.setdefault(file.day, []).append(file)
    done, skipped, before, after, moved = [], [], 0, 0, 0
    for day in sorted(by_day):
        groups = [group for group in _groups(by_day[day], target_bytes) if len(group) > 1]
        if sum(map(len, groups)) < least_files or not groups:
            continue
        try:
            made = _merge(lake, table, day, groups)
        except ConflictError:
            made = False
        if not made:
            skipped.append(day)
            continue
        done.append(day)
        before += len(by_day[day])
        after += len(by_day[day]) - sum(map(len, groups)) + len(groups)
        moved += sum(file.bytes for group in groups for file in group)
    return Compacted(done, before, after, moved, skipped)


def _groups(files: Sequence[LakeFile], target_bytes: int) -> list[list[LakeFile]]:
    """Small files, one after the other, until a group has reached the size."""
    groups: list[list[LakeFile]] = [[]]
    for file in files:
        if file.bytes >= target_bytes / 2:
            continue
        if groups[-1] and sum(other.bytes for other in groups[-1]) + file.bytes > target_bytes:
            groups.append([])
        groups[-1].append(file)
    return groups


def _merge(lake: Lake, table: str, day: dt.date, groups: Sequence[Sequence[LakeFile]]) -> bool:
    """Rewrite groups of files of a day; says whether they were still there."""
    loaded = lake.load(table)
    old = {file.path for group in groups for file in group}
    if not old <= {file.path for file in lake.files(table, None, day, day)}:
        return False
    folder = lake.stage(table, f"compact-{day}")
    paths = []
    for number, group in enumerate(groups):
        path = folder / f"{number:03d}.parquet"
        with storage.parquet_writer(path, storage.read_schema(storage.place(group[0].path))) as writer:
            for file in group:
                writer.write_table(storage.read_table(file.path).cast(writer.schema))
        paths.append(path)
    summary = {f"{LINEAGE}compaction": day.isoformat()}
    lake.replace(loaded, table, paths, day, day, summary, only={uri(path) for path in old})
    return True


def expire(
    lake: Lake,
    table: str,
    *,
    older_than: dt.timedelta = 7 * DAY,
    keep: int = 10,
    now: dt.datetime | None = None,
) -> list[int]:
    """Let old snapshots go; their files are deleted by ``delete_orphans`` afterwards.

    Kept are the current snapshot, those with a tag, those that a sample in the lake was drawn from, the newest ones
    and those that are not old enough.

    :param older_than: age from which a snapshot may go.
    :param keep: how many of the newest stay whatever their age.
    :param now: the time that ages are counted from.
    :returns: the snapshots that went.
    """
    loaded = lake.load(table)
    limit = (now or dt.datetime.now(dt.UTC)) - older_than
    snapshots = sorted(loaded.snapshots(), key=lambda snapshot: snapshot.timestamp_ms)
    held = {ref.snapshot_id for ref in loaded.refs().values()} | sampled(lake, table)
    held |= {snapshot.snapshot_id for snapshot in snapshots[-max(keep, 1) :]}
    old = [
        snapshot.snapshot_id
        for snapshot in snapshots
        if snapshot.snapshot_id not in held and snapshot.timestamp_ms < limit.timestamp() * 1000
    ]
    if old:
        with conflicts_named(table, "and its old snapshots"):
            loaded.maintenance.expire_snapshots().by_ids(old).commit()
    return old


def sampled(lake: Lake, table: str) -> set[int]:
    """The snapshots that the samples of a table were drawn from."""
    found = set()
    for path in (lake.root / "samples" / table).glob("*/manifest.json"):
        found.add(int(json.loads(path.read_text())["snapshot_id"]))
    return found


@dataclass(frozen=True)
class Deleted:
    """What the clean-up did.

    :param files: files deleted.
    :param bytes: their size.
    :param spared: folders that a publisher claimed at the last moment.
    :param unknown: folders of tables that the catalog does not know; nothing in them is touched.
    """

    files: int
    bytes: int
    spared: list[str]
    unknown: list[str]


def delete_orphans(
    lake: Lake, *, grace: dt.timedelta = 3 * DAY, now: dt.datetime | None = None, dry_run: bool = False
) -> Deleted:
    """Delete the files of the tables that no snapshot refers to: of failed runs, expired snapshots, lost commits.

    Listed first and compared with the catalog afterwards, so that what is published meanwhile counts as referred to.
    A run's folder is left alone while any file in it is younger than the grace time, and while its publisher has a
    flag up in it; reports beside published files stay. A table that the catalog does not know is not touched: its
    catalog may be the wrong one.

    :param grace: how old a file must be; longer than the longest time from a run's last write to its publish.
    :param now: the time that ages are counted from.
    :param dry_run: only count.
    """
    limit = (now or dt.datetime.now(dt.UTC)) - grace
    tables_root = lake.root / TABLES
    listed: dict[str, list[storage.Entry]] = {}
    unknown: set[str] = set()
    everything = list(storage.entries(tables_root))
    tables = set(lake.tables())
    for entry in everything:
        parts = entry.path.removeprefix(f"{tables_root}/").split("/")
        if parts[0] not in tables:
            unknown.add(parts[0])
        elif parts[1] == "metadata" or len(parts) > 3:
            listed.setdefault("/".join(parts[: 2 if parts[1] == "metadata" else 3]), []).append(entry)
    live = reachable(lake, sorted(tables))
    files, size, spared = 0, 0, []
    for name, entries in sorted(listed.items()):
        doomed = _doomed(entries, live, limit, whole="/data/" in name)
        if not doomed:
            continue
        if not dry_run and not _delete(tables_root / name, doomed, limit, flagged="/data/" in name):
            spared.append(name)
            continue
        files += len(doomed)
        size += sum(entry.bytes for entry in doomed)
    return Deleted(files, size, spared, sorted(unknown))


def reachable(lake: Lake, tables: Sequence[str]) -> set[str]:
    """Paths of all files that any snapshot of some tables refers to, metadata included."""
    found: set[str] = set()
    for table in tables:
        loaded = lake.load(table)
        found.add(loaded.metadata_location)
        found.update(entry.metadata_file for entry in loaded.metadata.metadata_log)
        read: set[str] = set()
        for snapshot in loaded.snapshots():
            found.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(loaded.io):
                if manifest.manifest_path not in read:
                    read.add(manifest.manifest_path)
                    entries = manifest.fetch_manifest_entry(loaded.io, discard_deleted=True)
                    found.update(entry.data_file.file_path for entry in entries)
        found |= read
    return {path.removeprefix("file://") for path in found}


def _doomed(
    entries: Sequence[storage.Entry], live: Collection[str], limit: dt.datetime, whole: bool
) -> list[storage.Entry]:
    """What of a folder may go."""
    orphans = [entry for entry in entries if entry.path not in live]
    if not whole:
        return [entry for entry in orphans if entry.modified < limit]
    if any(entry.modified >= limit for entry in entries if not entry.path.endswith(f"/{DOOMED}")):
        return []
    if len(orphans) < len(entries):  # a published run: its report stays beside its files
        return [entry for entry in orphans if entry.path.endswith(".parquet")]
    return orphans


def _delete(folder: Path, doomed: Sequence[storage.Entry], limit: dt.datetime, flagged: bool) -> bool:
    """Delete files of a folder unless a publisher has a flag up in it; says whether it did."""
    flag = folder / DOOMED
    if flagged:
        storage.write(flag, "")
        young = [e for e in storage.entries(folder) if e.modified >= limit and not e.path.endswith(f"/{DOOMED}")]
        if young:
            storage.remove(str(flag))
            return False
    for entry in doomed:
        if not entry.path.endswith(f"/{DOOMED}"):
            storage.remove(entry.path)
    if flagged:
        storage.remove(str(flag))
    if not storage.is_remote(folder):
        _prune(folder)
    return True


def _prune(folder: Path) -> None:
    """Remove empty folders, which only a disk has."""
    for path in sorted((p for p in [folder, *folder.rglob("*")] if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
