"""The history of a table: tags that keep a snapshot, the difference of two snapshots, the way back to one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sml.errors import ConfigurationError, ConflictError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.lake.lake import Lake, LakeFile, conflicts_named
from airflow_provider_sml.refs import SnapshotRef


def tags(lake: Lake, table: str) -> dict[str, int]:
    """The snapshot of each tag, by its name."""
    return {name: ref.snapshot_id for name, ref in lake.load(table).refs().items() if ref.snapshot_ref_type == "tag"}


def tag(lake: Lake, table: str, name: str, snapshot_id: int | None = None) -> int:
    """Give a snapshot a name, which keeps it from expiring; a repeat changes nothing.

    :param name: such as ``training-2026-03-01``.
    :param snapshot_id: the snapshot; None for the current one.
    :returns: the snapshot.
    :raises ConflictError: when the name belongs to another snapshot; it is never moved.
    """
    loaded = lake.load(table)
    snapshot_id = known(lake, table, snapshot_id)
    ref = loaded.refs().get(name)
    if ref is None:
        with conflicts_named(table, f"and its tag {name}"):
            loaded.manage_snapshots().create_tag(snapshot_id, name).commit()
        ref = lake.load(table).refs().get(name)
    if ref is None or ref.snapshot_id != snapshot_id:
        raise ConflictError(
            f"the tag {name} of {table} is taken",
            expected=f"snapshot {snapshot_id}",
            found=f"snapshot {ref.snapshot_id}" if ref else "that the snapshot was expired meanwhile",
            todo="choose another name, or remove the tag first",
        )
    return snapshot_id


def untag(lake: Lake, table: str, name: str) -> None:
    """Remove a tag; its snapshot may expire then. One that is not there is no error."""
    if name in tags(lake, table):
        with conflicts_named(table, f"and its tag {name}"):
            lake.load(table).manage_snapshots().remove_tag(name).commit()


def known(lake: Lake, table: str, snapshot_id: int | None) -> int:
    """A snapshot that the table has; the current one for None.

    :raises ConfigurationError: when it has none, or not this one.
    """
    lake.files(table, snapshot_id, dt.date.min, dt.date.min)  # refuses an unknown one
    found = snapshot_id if snapshot_id is not None else lake.snapshot_id(table)
    if found is None:
        raise ConfigurationError(f"the table {table} has no snapshot", todo="publish to it first")
    return found


@dataclass(frozen=True)
class Difference:
    """What lies between two snapshots.

    :param before: rows of each day that differs, in the first one.
    :param after: rows of each day that differs, in the second one.
    :param rows_added: rows that only the second one has; with a key, of new keys.
    :param rows_removed: rows that only the first one has; with a key, of keys that are gone.
    :param rows_changed: keys with other values; 0 without a key.
    """

    before: dict[dt.date, int]
    after: dict[dt.date, int]
    rows_added: int
    rows_removed: int
    rows_changed: int

    @property
    def days_added(self) -> list[dt.date]:
        """Days that only the second one has."""
        return sorted(set(self.after) - set(self.before))

    @property
    def days_removed(self) -> list[dt.date]:
        """Days that only the first one has."""
        return sorted(set(self.before) - set(self.after))

    @property
    def days_changed(self) -> list[dt.date]:
        """Days of both with other files."""
        return sorted(set(self.before) & set(self.after))


def diff(lake: Lake, table: str, before: int, after: int | None = None, key: Sequence[str] = ()) -> Difference:
    """Compare two snapshots: by their files, and within the days that differ by their rows.

    Only files that one of them lacks are read, so the cost is that of what was changed.

    :param before: the first snapshot.
    :param after: the second one; None for the current one.
    :param key: columns that name a row; without them a changed row counts as one removed and one added.
    """
    sides = [lake.files(table, known(lake, table, snapshot_id)) for snapshot_id in (before, after)]
    days = [_days(side) for side in sides]
    differ = {day for day in {*days[0], *days[1]} if days[0].get(day) != days[1].get(day)}
    counts = [{day: sum(file.rows for file in files[day]) for day in sorted(differ & set(files))} for files in days]
    common = {file.path for file in sides[0]} & {file.path for file in sides[1]}
    changed = [[file.path for file in side if file.day in differ and file.path not in common] for side in sides]
    added, removed, altered = _rows(lake, table, changed[0], changed[1], key)
    return Difference(counts[0], counts[1], added, removed, altered)


def _days(files: Sequence[LakeFile]) -> dict[dt.date, list[LakeFile]]:
    found: dict[dt.date, list[LakeFile]] = {}
    for file in files:
        found.setdefault(file.day, []).append(file)
    return found


def _rows(lake: Lake, table: str, old: list[str], new: list[str], key: Sequence[str]) -> tuple[int, int, int]:
    with storage.connect_duckdb([lake.root]) as connection:

        def read(files: list[str]) -> Any:
            return connection.read_parquet(files, union_by_name=True, hive_partitioning=False)

        if not old or not new:
            return (_count(read(new)) if new else 0), (_count(read(old)) if old else 0), 0
        columns = [name for name in lake.columns(table) if name in read(old).columns and name in read(new).columns]
        if unknown := [name for name in key if name not in columns]:
            raise ConfigurationError("the key names unknown columns", expected=", ".join(columns), found=unknown)
        listed = ", ".join(identifier(name, "duckdb") for name in columns)
        connection.register("old_rows", read(old).select(listed))
        connection.register("new_rows", read(new).select(listed))
        added = "SELECT * FROM new_rows EXCEPT ALL SELECT * FROM old_rows"
        removed = "SELECT * FROM old_rows EXCEPT ALL SELECT * FROM new_rows"
        connection.execute(f"CREATE TEMP TABLE added AS {added}")
        connection.execute(f"CREATE TEMP TABLE removed AS {removed}")
        more, less = _count(connection.table("added")), _count(connection.table("removed"))
        if not key:
            return more, less, 0
        same = " AND ".join(
            f"a.{identifier(n, 'duckdb')} IS NOT DISTINCT FROM r.{identifier(n, 'duckdb')}" for n in key
        )
        [(both, gone)] = connection.execute(
            f"SELECT (SELECT count(*) FROM added a WHERE EXISTS (SELECT 1 FROM removed r WHERE {same})), "
            f"(SELECT count(*) FROM removed r WHERE NOT EXISTS (SELECT 1 FROM added a WHERE {same}))"
        ).fetchall()
        return more - int(both), int(gone), int(both)


def _count(relation: Any) -> int:
    [(count,)] = relation.aggregate("count(*)").fetchall()
    return int(count)


def roll_back(lake: Lake, table: str, snapshot_id: int) -> SnapshotRef:
    """Make a snapshot the current one again, in one commit; later ones stay readable by their ids.

    :returns: the days that this changed, from the first to the last, as the snapshot holds them, so that a warehouse
        can be brought along.
    :raises ConfigurationError: when the table has no such snapshot.
    :raises ConflictError: when another process published meanwhile.
    """
    known(lake, table, snapshot_id)
    loaded = lake.load(table)
    current = loaded.current_snapshot()
    assert current is not None
    files = {side: lake.files(table, side) for side in (current.snapshot_id, snapshot_id)}
    before, after = _days(files[current.snapshot_id]), _days(files[snapshot_id])
    days = sorted(day for day in {*before, *after} if before.get(day) != after.get(day))
    if current.snapshot_id != snapshot_id:
        with conflicts_named(table, f"back to snapshot {snapshot_id}"):
            loaded.manage_snapshots().set_current_snapshot(snapshot_id).commit()
    return SnapshotRef(
        lake=lake.name,
        table=table,
        snapshot_id=snapshot_id,
        first=days[0].isoformat() if days else "",
        last=days[-1].isoformat() if days else "",
        rows=sum(file.rows for file in files[snapshot_id] if days and days[0] <= file.day <= days[-1]),
        total_rows=sum(file.rows for file in files[snapshot_id]),
    )
