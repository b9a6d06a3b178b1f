"""Profiles kept in the lake, one small object a partition, so that a window is a merge and never a second scan.

``PLACE/profiles/TABLE/DAY/DEFINITION-CONTENT.json``: the definition names how the profile was made (columns, what they
mean, the model that scored), the content the very files of the partition. So a partition that is published again, or
asked for other columns, gets a profile of its own, and a stale one is never read. Each is written in one step and
carries a hash of itself; one that is damaged is told by its name and made again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.monitoring.profile import Profile

FOLDER = "profiles"
#: Of what is written; another one is made again.
FORMAT = 1
#: Profiles read at once from an object store.
_AT_ONCE = 16

log = logging.getLogger(__name__)


class ProfileStore:
    """The profiles of one table, made in one way.

    :param lake: where they are kept, beside its tables.
    :param table: whose partitions they are of.
    :param definition: all that decides a profile beside the rows, as JSON: columns, expressions, model, segment.
    """

    def __init__(self, lake: Lake, table: str, definition: Mapping[str, Any]) -> None:
        self._lake = lake
        self._table = table
        self._definition = _digest({"format": FORMAT, **definition})
        self._folder = lake.root / FOLDER / table

    def days(self, days: Sequence[dt.date], make: Callable[[dt.date], Profile]) -> dict[dt.date, Profile]:
        """The profile of each day that is published, read or made.

        :param days: the days wanted; one that is not published is left out.
        :param make: profiles a day's rows; called for those whose profile is not there, or is damaged.
        """
        wanted = self.contents(days)
        found = self._stored(wanted)
        return {day: found[day] or self.put(day, content, make(day)) for day, content in wanted.items()}

    def lacking(self, days: Sequence[dt.date]) -> dict[dt.date, str]:
        """The content of each day that is published and whose profile is not there, or is damaged.

        :param days: the days wanted.
        """
        wanted = self.contents(days)
        found = self._stored(wanted)
        return {day: content for day, content in wanted.items() if found[day] is None}

    def named(self, content: str, make: Callable[[], Profile]) -> Profile:
        """The profile of rows that belong to no day, such as a sample's, read or made.

        :param content: names the rows, as ``content`` does.
        :param make: profiles them.
        """
        path = self._folder / f"{self._definition}-{content}.json"
        found = self._read(path)
        return _write(path, make()) if found is None else found

    def put(self, day: dt.date, content: str, profile: Profile) -> Profile:
        """Keep a day's profile; those of older contents of the day, made in the same way, are removed.

        :param content: what ``content`` gave for the files that were profiled.
        :returns: the profile as it will be read.
        """
        path = self._path(day, content)
        kept = _write(path, profile)
        for entry in list(storage.entries(path.parent)):
            name = entry.path.rsplit("/", 1)[1]
            if name.startswith(f"{self._definition}-") and name != path.name:
                storage.remove(entry.path)
        return kept

    def contents(self, days: Sequence[dt.date]) -> dict[dt.date, str]:
        """The content, as ``content`` names it, of each of the days that is published."""
        if not days or not self._lake.exists(self._table):
            return {}
        paths: dict[dt.date, list[str]] = {}
        for file in self._lake.files(self._table, None, min(days), max(days)):
            paths.setdefault(file.day, []).append(file.path)
        return {day: content(paths[day]) for day in sorted(set(days)) if day in paths}

    def _stored(self, wanted: Mapping[dt.date, str]) -> dict[dt.date, Profile | None]:
        """The stored profiles of days, by their contents; None for what is not there, or damaged."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = pool.map(lambda day: self._read(self._path(day, wanted[day])), wanted)
            return dict(zip(wanted, read, strict=True))

    def _path(self, day: dt.date, content: str) -> Path:
        return self._folder / day.isoformat() / f"{self._definition}-{content}.json"

    def _read(self, path: Path) -> Profile | None:
        """A stored profile; None when it is not there, or damaged, which is logged."""
        try:
            return load(path)
        except FileNotFoundError:
            return None
        except IntegrityError as error:
            log.warning("%s; it is made again", error)
            return None


def load(path: Path) -> Profile:
    """One stored profile.

    :raises FileNotFoundError: when it is not there.
    :raises IntegrityError: when it is damaged; names it.
    """
    raw = path.read_bytes()
    try:
        sealed = json.loads(raw)
        body = sealed["body"]
        found = hashlib.sha256(body.encode()).hexdigest()
        if found != sealed["sha256"]:
            raise ValueError(f"a hash of {found[:12]} instead of {str(sealed['sha256'])[:12]}")
        return Profile.load(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the profile {path} is damaged", expected="what was written, by its hash", found=error
        ) from error


def content(paths: Iterable[str]) -> str:
    """The name of a partition's content: its files, whose names are never used twice.

    :param paths: of all its files.
    """
    return _digest(sorted(paths))


def expire(lake: Lake, table: str, before: dt.date) -> int:
    """Remove the profiles of days before one; gives how many objects were removed."""
    removed = 0
    for entry in list(storage.entries(lake.root / FOLDER / table)):
        if entry.path.rsplit("/", 2)[1] < before.isoformat():
            storage.remove(entry.path)
            removed += 1
    return removed


def _write(path: Path, profile: Profile) -> Profile:
    """Write a profile; gives it as it will be read, so that what is made now and what was kept are the same in all."""
    body = json.dumps(profile.dump(), separators=(",", ":"), sort_keys=True)
    storage.write(path, json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}))
    return Profile.load(json.loads(body))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
