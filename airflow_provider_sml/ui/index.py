"""An index of a model's reports, so that a page opens what is new and nothing else.

A night's JSON is read once, and read again only when its file has another time or size; a gate's, a cost report's or a
sampling plan's likewise, once a page shows it. What was read of the nights is also kept in ``index.cache`` beside the
reports, so that another process, or one that has just started, opens one file instead of a year of them. The index is
only a cache: it is made anew when it is missing, damaged or of another form, and where this process may not write there
it stays in memory.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from airflow_provider_sml.ui.forms import (
    Costs,
    Damaged,
    Day,
    Decision,
    Gate,
    Night,
    Performance,
    Plan,
    Worth,
)

#: Nights that are looked at; older ones are left where they are.
MOST_NIGHTS = 400
LARGEST_JSON = 4_000_000
LARGEST_INDEX = 64_000_000
#: Days before the oldest night whose performance is kept.
_BEFORE = dt.timedelta(days=60)
_MODELS = 256
_STORED = "index.cache"

DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
#: Kinds that are one JSON file a night, and the form of it.
_NIGHTLY: dict[str, type[BaseModel]] = {"nights": Night, "performance": Worth, "decisions": Decision}
#: Kinds that are a folder with a JSON file in it.
_FOLDERS: dict[str, tuple[re.Pattern[str], str, type[BaseModel]]] = {
    "gate": (WORD, "gate.json", Gate),
    "costs": (WORD, "costs.json", Costs),
    "sample": (DAY, "plan.json", Plan),
}

Form = TypeVar("Form", bound=BaseModel)
log = logging.getLogger(__name__)


class _Kept(BaseModel):
    """What was read of a file: its time and size then, and its numbers or what was wrong."""

    time: int
    size: int
    found: dict[str, Any] | None = None
    error: str | None = None


class _Stored(BaseModel):
    """The file that keeps the index."""

    form: int
    nights: dict[str, _Kept] = {}
    performance: dict[str, _Kept] = {}
    decisions: dict[str, _Kept] = {}
    realised: dict[dt.date, Day] = {}
    estimated: dict[dt.date, Day] = {}


_FORM = 1


class Index:
    """What is known of a model's reports.

    :param folder: of the model's reports.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._read: dict[str, dict[str, tuple[int, int, BaseModel | Damaged]]] = {
            kind: {} for kind in (*_NIGHTLY, *_FOLDERS)
        }
        self._pages: dict[str, set[str]] = {}
        self._days: dict[str, dict[dt.date, Day]] = {"realised": {}, "estimated": {}}
        self._restore()

    # --- asking ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the nights that are new or have changed."""
        with self._lock:
            made = sum(self._refresh(kind, form) for kind, form in _NIGHTLY.items())
            if made:
                self._forget_days()
                self._store()

    def newest(self, kind: str, form: type[Form], limit: int | None = None) -> list[Form | Damaged]:
        """Reports by falling day or version."""
        keys = self.keys(kind)[:limit]
        found = self.some(kind, form, keys)
        return [found[key] for key in keys if key in found]

    def latest(self, kind: str, form: type[Form], limit: int | None = None) -> list[tuple[str, Form | Damaged]]:
        """Reports that are folders, the one that changed last first."""
        listed = self._listed(kind)
        keys = sorted(listed, key=lambda key: (listed[key][0], key), reverse=True)[:limit]
        found = self.some(kind, form, keys)
        return [(key, found[key]) for key in keys if key in found]

    def some(self, kind: str, form: type[Form], keys: Iterable[str]) -> dict[str, Form | Damaged]:
        """Reports by key; what is not there is left out."""
        if kind in _NIGHTLY:
            known = self.every(kind, form)
            return {key: known[key] for key in keys if key in known}
        with self._lock:
            listed, found = self._listed(kind), {}
            for key in keys:
                if key in listed:
                    found[key] = self._one(kind, key)
            return found  # type: ignore[return-value]

    def every(self, kind: str, form: type[Form]) -> dict[str, Form | Damaged]:
        """All reports of nights, by day."""
        with self._lock:
            return {key: found for key, (_, _, found) in self._read[kind].items()}  # type: ignore[misc]

    def keys(self, kind: str) -> list[str]:
        """Days or versions of which there is a report, the newest first; nothing is opened."""
        with self._lock:
            listed = self._read[kind] if kind in _NIGHTLY else self._listed(kind)
            return sorted(listed, key=counted, reverse=True)

    def has_page(self, kind: str, key: str) -> bool:
        """Whether a night has an HTML page of a kind."""
        return key in self._pages.get(kind, ())

    def realised(self) -> dict[dt.date, Day]:
        """Performance of the days whose labels have come."""
        with self._lock:
            return dict(self._days["realised"])

    def estimated(self) -> dict[dt.date, Day]:
        """Expected performance of days, as it was told before their labels came."""
        with self._lock:
            return dict(self._days["estimated"])

    # --- reading --------------------------------------------------------------------------------------------------

    def _refresh(self, kind: str, form: type[BaseModel]) -> int:
        listed = _listing(self.folder / kind)
        days = {name[:-5]: at for name, at in listed.items() if name.endswith(".json") and DAY.fullmatch(name[:-5])}
        self._pages[kind] = {name[:-5] for name, (_, size, _) in listed.items() if name.endswith(".html") and size >= 0}
        wanted = sorted(days, reverse=True)[:MOST_NIGHTS]
        known, made = self._read[kind], 0
        gone = set(known) - set(wanted)
        for day in gone:
            del known[day]
        for day in sorted(wanted):
            time, size, _ = days[day]
            if day in known and known[day][:2] == (time, size):
                continue
            found = _load(self.folder / kind / f"{day}.json", day, form, size)
            known[day] = (time, size, self._without_days(found))
            made += 1
        return made + len(gone)

    def _without_days(self, found: BaseModel | Damaged) -> BaseModel | Damaged:
        """Keep the days that a night tells of apart, so that each is there once."""
        if isinstance(found, Night):
            self._take("realised", found.day, found.performance)
            return found.model_copy(update={"performance": []})
        if isinstance(found, Worth):
            self._take("realised", found.day, found.realised)
            self._take("estimated", found.day, found.estimated)
            return found.model_copy(update={"realised": [], "estimated": []})
        return found

    def _take(self, which: str, night: dt.date, days: Iterable[Performance]) -> None:
        for one in days:
            before = self._days[which].get(one.day)
            if before is None or (night, one.auc_low is not None) >= (before.night, before.auc_low is not None):
                self._days[which][one.day] = Day(**one.model_dump(), night=night)

    def _forget_days(self) -> None:
        nights = [dt.date.fromisoformat(key) for key in {*self._read["nights"], *self._read["performance"]}
                  if _is_day(key)]  # fmt: skip
        first = min(nights, default=dt.date.max)
        for days in self._days.values():
            for day in [day for day in days if day + _BEFORE < first]:
                del days[day]

    def _listed(self, kind: str) -> dict[str, tuple[int, int]]:
        """The folders of a kind, with the time at which something in them came or went."""
        form = _FOLDERS[kind][0]
        return {
            name: (time, size)
            for name, (time, size, is_folder) in _listing(self.folder / kind).items()
            if is_folder and form.fullmatch(name)
        }

    def _one(self, kind: str, key: str) -> BaseModel | Damaged:
        _, file, form = _FOLDERS[kind]
        known, path = self._read[kind], self.folder / kind / key / file
        try:
            stat = path.stat(follow_symlinks=False)
        except OSError:
            return Damaged(key, "there is no such file")
        if key not in known or known[key][:2] != (stat.st_mtime_ns, stat.st_size):
            known[key] = (stat.st_mtime_ns, stat.st_size, _load(path, key, form))
        return known[key][2]

    # --- the file that keeps it -----------------------------------------------------------------------------------

    def _restore(self) -> None:
        path = self.folder / _STORED
        try:
            if path.is_symlink() or path.stat().st_size > LARGEST_INDEX:
                return
            stored = _Stored.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return
        if stored.form != _FORM:
            return
        for kind, form in _NIGHTLY.items():
            for key, kept in getattr(stored, kind).items():
                with contextlib.suppress(ValidationError):
                    found = Damaged(key, kept.error) if kept.error else _rebuilt(form, kept.found or {})
                    self._read[kind][key] = (kept.time, kept.size, found)
        self._days = {"realised": stored.realised, "estimated": stored.estimated}

    def _store(self) -> None:
        from airflow_provider_sml.ml import storage

        kept: dict[str, Any] = {
            kind: {
                key: _Kept(time=time, size=size, error=found.error)
                if isinstance(found, Damaged)
                else _Kept(time=time, size=size, found=found.model_dump(mode="json", exclude_defaults=True))
                for key, (time, size, found) in self._read[kind].items()
            }
            for kind in _NIGHTLY
        }
        kept |= self._days
        stored = _Stored.model_construct(form=_FORM, **kept)
        text = stored.model_dump_json(exclude_defaults=True)
        try:
            storage.write(self.folder / _STORED, text)
        except OSError as error:  # such as a folder that only the workers may write to
            log.debug("the index of %s is kept in memory alone: %s", self.folder, error)


def _rebuilt(form: type[BaseModel], found: Mapping[str, Any]) -> BaseModel:
    """A stored form, checked: an index is as little trusted as the reports are."""
    # What a decision says lies below another field in its own file.
    return form.model_validate({"decision": found} if form is Decision else found)


def _listing(folder: Path) -> dict[str, tuple[int, int, bool]]:
    """What lies in a folder: time (ns), size, -1 for a link, and whether it is a folder."""
    try:
        if folder.is_symlink():
            return {}
        with os.scandir(folder) as entries:
            found = {}
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                size = -1 if entry.is_symlink() else stat.st_size
                found[entry.name] = (stat.st_mtime_ns, size, entry.is_dir(follow_symlinks=False))
            return found
    except OSError:
        return {}


def _load(path: Path, key: str, form: type[BaseModel], size: int = 0) -> BaseModel | Damaged:
    try:
        if path.is_symlink() or not path.is_file():
            return Damaged(key, "there is no such file")
        if max(size, path.stat().st_size) > LARGEST_JSON:
            return Damaged(key, f"the file is larger than {LARGEST_JSON:,} bytes")
        return form.model_validate_json(path.read_bytes())
    except OSError as error:
        return Damaged(key, error.strerror or "it cannot be read")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Damaged(key, ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]])))


def counted(key: str) -> tuple[int, str]:
    """The order of versions, by number, and of days."""
    return (int(key) if key.isdecimal() else -1, key)


def _is_day(key: str) -> bool:
    try:
        dt.date.fromisoformat(key)
    except ValueError:
        return False
    return True


_indexes: OrderedDict[Path, Index] = OrderedDict()
_lock = threading.Lock()


def index_of(folder: Path) -> Index | None:
    """The index of a model's reports, brought up to date; None when the folder is a link or not there.

    :param folder: of the model's reports; what is above it may be a link.
    """
    try:
        place = folder.parent.resolve(strict=True) / folder.name
        if place.is_symlink() or not place.is_dir():
            return None
    except (OSError, RuntimeError):
        return None
    with _lock:
        index = _indexes.get(place)
        if index is None:
            index = _indexes[place] = Index(place)
        _indexes.move_to_end(place)
        while len(_indexes) > _MODELS:
            _indexes.popitem(last=False)
    index.refresh()
    return index
