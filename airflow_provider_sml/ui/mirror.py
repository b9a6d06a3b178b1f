"""A copy on this machine of a folder of reports that lies on an object store, for the pages, which read files.

What is new or has changed there is brought here when a page asks for it, at most every ``AGAIN`` seconds a model; what
is gone there is removed here. A file appears whole or not at all. While the store cannot be reached, what was read
before is shown. The copies lie below Airflow's home, readable by its user alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow_provider_sml.ml.storage import Entry

#: Seconds for which a copy is taken for fresh.
AGAIN = 30.0
_AT_ONCE = 16
_SUFFIXES = (".json", ".html")

log = logging.getLogger(__name__)
_looked: dict[tuple[str, str], float] = {}
_locks: dict[tuple[str, str], threading.Lock] = {}
_guard = threading.Lock()


def mirrored(location: str, name: str, root: Path | None = None) -> Path:
    """The folder of all reports as it lies here, with those of one model brought up to date.

    :param location: ``s3://`` or ``gs://`` address of the folder of all reports.
    :param name: of the model.
    :param root: folder of the copies; below ``[sml] home`` when None.
    """
    from airflow_provider_sml.hooks.places import home

    folder = (root or Path(home()) / "reports-of-stores") / quote(location.rstrip("/"), safe="")
    key = (str(folder), name)
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    if not lock.acquire(blocking=not (folder / name).is_dir()):  # another page is at it; what is here will do
        return folder
    try:
        if time.monotonic() - _looked.get(key, -AGAIN) >= AGAIN:
            _bring(f"{location.rstrip('/')}/{name}", folder / name)
            _looked[key] = time.monotonic()
    except Exception as error:  # whatever a store's client raises: an old page is better than none
        log.warning("The reports in %s cannot be read, what was read before is shown: %s", location, error)
    finally:
        lock.release()
    return folder


def _bring(location: str, folder: Path) -> None:
    from airflow_provider_sml.hooks.places import reached
    from airflow_provider_sml.ml import storage

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    base = f"{storage.address(location)}/"
    found = {
        entry.path.removeprefix(base): entry
        for entry in storage.entries(reached(location))
        if entry.path.startswith(base) and entry.path.endswith(_SUFFIXES)
    }
    # A key of a store may hold anything; one with such a part would lie outside of the folder.
    wanted = {name: entry for name, entry in found.items() if not {"", ".", ".."} & set(name.split("/"))}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda item: _copy(item[1], folder / item[0]), wanted.items()))
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in _SUFFIXES and str(path.relative_to(folder)) not in wanted:
            path.unlink(missing_ok=True)


def _copy(entry: Entry, path: Path) -> None:
    """Bring a file unless it is here already, by size and time."""
    from airflow_provider_sml.ml import storage

    moment = entry.modified.timestamp()
    try:
        here = path.stat()
        if here.st_size == entry.bytes and abs(here.st_mtime - moment) < 1:
            return
    except FileNotFoundError:
        pass
    storage.write(path, storage.place(entry.path).read_bytes())
    os.utime(path, (moment, moment))
