"""What has landed: the files behind the paths of a dataset, on a disk or an object store, and whether they are whole.

A path names one file, a pattern (``orders/2026-03-01/*.json.gz``), or a folder when its last part has no dot. Whether
what is there is whole is said by a rule; without one the name alone counts, so upstream must write to another name and
rename, or, on an object store, put the object at once. It looks and changes nothing.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml import storage

_PATTERN = set("*?[")


@dataclass(frozen=True)
class Completeness:
    """When the files of a path are whole; every rule that is given must hold.

    :param marker: name of a file that upstream writes last into the same folder, such as ``_SUCCESS``.
    :param count: fewest files of a pattern or folder.
    :param quiet: seconds since the last file was written.
    """

    marker: str | None = None
    count: int = 1
    quiet: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.quiet < 0 or (self.marker is not None and "/" in self.marker):
            raise ConfigurationError(
                "the completeness rule does not fit",
                expected="count from 1, quiet from 0 s, marker: a file's name",
                found=f"count {self.count}, quiet {self.quiet:g}, marker {self.marker}",
            )


@dataclass(frozen=True)
class Landed:
    """What was seen.

    :param missing: paths that are not whole yet, each with the reason, the first ones.
    :param waiting: how many paths are not whole yet.
    :param files: files of those that are.
    :param bytes: their size.
    :param newest: when the last of them was written, ISO 8601 in UTC; None without a file.
    """

    missing: list[str]
    waiting: int
    files: int
    bytes: int
    newest: str | None


def look(paths: Sequence[str], rule: Completeness, now: dt.datetime) -> Landed:
    """Look at all paths.

    :param paths: files, patterns or folders.
    :param rule: when they are whole.
    :param now: the present, with its zone.
    """
    missing: list[str] = []
    waiting = files = size = 0
    newest: dt.datetime | None = None
    for given in paths:
        path = re.sub(r"(?<!:)/{2,}", "/", given)  # a place that ends with a slash
        found = _files(path, rule.marker)
        reason = _reason(path, found, rule, now)
        if reason:
            waiting += 1
            missing += [f"{path}: {reason}"] if len(missing) < 3 else []
            continue
        files, size = files + len(found), size + sum(bytes_ for bytes_, _ in found)
        newest = max([moment for _, moment in found] + ([newest] if newest else []))
    return Landed(missing, waiting, files, size, newest.isoformat(timespec="seconds") if newest else None)


def _reason(path: str, found: list[tuple[int, dt.datetime]], rule: Completeness, now: dt.datetime) -> str | None:
    if len(found) < rule.count:
        return f"{len(found)} of {rule.count} files" if rule.count > 1 else "not there"
    if rule.marker and not _exists(f"{_folder(path)}/{rule.marker}"):
        return f"no {rule.marker} yet"
    if rule.quiet and (still := (now - max(moment for _, moment in found)).total_seconds()) < rule.quiet:
        return f"written {still:.0f} s ago"
    return None


def _files(path: str, marker: str | None) -> list[tuple[int, dt.datetime]]:
    """Size and time of each file behind a path."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    if _PATTERN & set(path):
        return [fact for one, fact in _matches(path) if one != marker]
    if path.endswith("/") or "." not in name:
        return [fact for one, fact in _matches(path.rstrip("/") + "/*") if one != marker and not one.startswith("_")]
    return [fact for _, fact in _matches(path)]


def _matches(pattern: str) -> list[tuple[str, tuple[int, dt.datetime]]]:
    """Name, size and time of the files that match; hidden ones are half-written, and left out."""
    if storage.is_remote(pattern):
        system: Any = storage.file_system(pattern)
        found = system.glob(pattern, detail=True) if _PATTERN & set(pattern) else _one(system, pattern)
        facts = [
            (key.rsplit("/", 1)[-1], (int(info.get("size") or 0), _moment(info)))
            for key, info in found.items()
            if info.get("type") == "file"
        ]
    else:
        local = Path(pattern.removeprefix("file://"))
        paths = (
            Path(local.anchor or ".").glob(str(local.relative_to(local.anchor))) if _PATTERN & set(pattern) else [local]
        )
        stats = [(one.name, one.stat()) for one in paths if one.is_file()]
        facts = [(name, (stat.st_size, dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC))) for name, stat in stats]
    return [(name, fact) for name, fact in facts if not name.startswith(".")]


def _one(system: Any, path: str) -> dict[str, Any]:
    try:
        return {path: system.info(path)}
    except FileNotFoundError:
        return {}


def _moment(info: dict[str, Any]) -> dt.datetime:
    """When an object was written: s3fs and gcsfs name it differently."""
    value = info.get("LastModified") or info.get("mtime") or info.get("updated")
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    return value if isinstance(value, dt.datetime) else dt.datetime.fromtimestamp(0, dt.UTC)


def _folder(path: str) -> str:
    stripped = path.rstrip("/")
    name = stripped.rsplit("/", 1)[-1]
    return stripped if "." not in name and not _PATTERN & set(name) else stripped.rsplit("/", 1)[0]


def _exists(path: str) -> bool:
    return bool(_matches(path))
