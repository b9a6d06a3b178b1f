"""What sensors ask again and again, as plain functions of JSON values: a worker asks them, and so does a triggerer.

Each gives a ``Finding``; what cannot be waited for is a ``ConfigurationError``. They look and change nothing.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.hooks.lake import LakeHook


@dataclass(frozen=True)
class Finding:
    """What a look gave.

    :param done: whether the waiting is over.
    :param told: one line for the log.
    :param facts: the result when it is over: plain JSON.
    """

    done: bool
    told: str
    facts: dict[str, Any] = field(default_factory=dict)


def landed(paths: list[str], rule: dict[str, Any], lake: str, due: str | None = None) -> Finding:
    """Whether all files have landed.

    :param paths: files, patterns or folders.
    :param rule: fields of ``ml.etl.landing.Completeness``.
    :param lake: the lake whose store reaches paths on an object store: its location, or the id of its connection.
    :param due: when the last file ought to have been there, ISO 8601; a later one is told.
    """
    from airflow_provider_sml.ml import storage
    from airflow_provider_sml.ml.etl.landing import Completeness, look

    if any(storage.is_remote(path) for path in paths):
        LakeHook(lake).get_conn()
    found = look(paths, Completeness(**rule), dt.datetime.now(dt.UTC))
    if found.waiting:
        return Finding(False, f"{found.waiting} of {len(paths)} paths are not whole: {'; '.join(found.missing)}")
    late = 0.0
    if due and found.newest:
        late = max(0.0, (dt.datetime.fromisoformat(found.newest) - dt.datetime.fromisoformat(due)).total_seconds())
    told = f"{found.files} files, {found.bytes:,} bytes" + (f", {dt.timedelta(seconds=int(late))} late" if late else "")
    facts = {"files": found.files, "bytes": found.bytes, "newest": found.newest, "late_seconds": round(late)}
    return Finding(True, told, facts)


def published(table: str, first: str, last: str, newer_than: int | None, lake: str) -> Finding:
    """Whether days of a table are published, by a snapshot that is newer than a given one.

    :param table: name of the table.
    :param first: first day, ``YYYY-MM-DD``; empty for any day.
    :param last: last day, inclusive.
    :param newer_than: id of a snapshot that has been seen; None when any will do. One that a roll-back brought back is
        not newer.
    :param lake: location of the lake, or the id of its connection.
    """
    opened = LakeHook(lake).get_conn()
    snapshot = opened.snapshot_id(table)
    made = [known["snapshot_id"] for known in opened.snapshots(table)] if snapshot and newer_than else []
    # After a roll-back the current snapshot is another one than the one seen, and older. One that has expired is older.
    if snapshot is None or (newer_than in made and made.index(snapshot) <= made.index(newer_than)):
        return Finding(False, f"{table} has no {'newer ' if newer_than else ''}snapshot yet")
    days = opened.days(table, snapshot)
    begin, end = (dt.date.fromisoformat(day) for day in (first, last)) if first else (None, None)
    if begin and end:
        wanted = [begin + dt.timedelta(days=n) for n in range((end - begin).days + 1)]
        lacking = [day for day in wanted if day not in days]
        if lacking:
            return Finding(False, f"{len(lacking)} of {len(wanted)} days are not published, the first is {lacking[0]}")
    rows = sum(count for day, count in days.items() if begin is None or (end and begin <= day <= end))
    return Finding(True, f"{table}: snapshot {snapshot}, {rows:,} rows", {"snapshot_id": snapshot, "rows": rows})


def registered(name: str, newer_than: int, gate: str, mlflow: str) -> Finding:
    """Whether a registered model has a version above a number.

    :param name: registered model.
    :param newer_than: number of a version that has been seen; 0 for none.
    :param gate: what its gate must have said, ``passed`` or ``failed``; empty when it does not matter.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """
    from airflow_provider_sml.hooks.mlflow import MlflowHook

    found = MlflowHook(mlflow).get_conn().newest(name, above=newer_than, gate=gate)
    if found is None:
        which = f" that {gate} its gate" if gate else ""
        return Finding(False, f"{name} has no version above {newer_than}{which} yet")
    return Finding(True, f"{name} has version {found.version}", found.to_xcom())


def pointed(name: str, alias: str, version: str, other_than: str, mlflow: str) -> Finding:
    """Whether an alias of a registered model points to a version.

    :param name: registered model.
    :param alias: such as ``champion``.
    :param version: number of the version that it must point to; empty for any.
    :param other_than: number of a version that has been seen; empty for none.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """
    from airflow_provider_sml.hooks.mlflow import MlflowHook

    found = MlflowHook(mlflow).get_conn().version(name, alias=alias)
    if found is None:
        return Finding(False, f"{name} has no {alias} yet")
    if (version and found.version != version) or found.version == other_than:
        return Finding(False, f"{alias} of {name} is still version {found.version}")
    return Finding(True, f"{alias} of {name} is version {found.version}", found.to_xcom())


def move(name: str, alias: str, version: str, mlflow: str) -> str:
    """Id of the move by which an alias came to a version; empty when the history does not tell of it.

    :param name: registered model.
    :param alias: the alias.
    :param version: that it points to.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """
    from airflow_provider_sml.hooks.mlflow import MlflowHook

    return MlflowHook(mlflow).get_conn().move(name, alias, version)
