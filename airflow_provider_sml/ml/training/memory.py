"""How the rows of one worker fit into its memory: in memory, in an external cache on disk, or not at all.

The plan is made from row counts before anything is read, so that a training is refused rather than killed. The bytes
per value were measured on 10 million rows of 17 features under XGBoost 3.2 (``benchmarks/training.py`` measures them
again): a ``QuantileDMatrix`` over a ``DataIter`` peaked at 1.6 GB, an ``ExtMemQuantileDMatrix`` at 0.74 GB with 0.9 GB
of cache on disk, each with about 0.4 GB of the process itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airflow_provider_sml.errors import ConfigurationError

#: Bytes of memory per value (row x feature) while boosting, and bytes that do not depend on the rows.
IN_MEMORY, EXTERNAL, PROCESS = 7.5, 2.2, 450_000_000
#: Bytes of disk per value of the external cache.
CACHE = 5.5
#: Share of the memory that may be planned with; the rest is for what nobody foresees.
USABLE = 0.8

Mode = Literal["memory", "external"]


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided.

    :param mode: ``memory`` or ``external``.
    :param needed: bytes of memory that it will need.
    :param limit: bytes of memory there are.
    :param disk: bytes of disk that the external cache will need.
    """

    mode: Mode
    needed: int
    limit: int
    disk: int = 0

    def __str__(self) -> str:
        cache = f", {self.disk / 1e9:.1f} GB of cache on disk" if self.disk else ""
        return f"{self.mode}: about {self.needed / 1e9:.1f} of {self.limit / 1e9:.1f} GB{cache}"


def plan_memory(rows: int, features: int, limit: int, free_disk: int | None = None) -> MemoryPlan:
    """Decide how to hold the rows of one worker, training and validation together.

    :param rows: of the worker.
    :param features: columns.
    :param limit: bytes of memory that the worker has.
    :param free_disk: bytes of disk for a cache; None when not known.
    :raises ConfigurationError: when they fit in neither way.
    """
    values = rows * features
    inside = round(PROCESS + IN_MEMORY * values)
    if inside <= USABLE * limit:
        return MemoryPlan("memory", inside, limit)
    outside, disk = round(PROCESS + EXTERNAL * values), round(CACHE * values)
    if outside <= USABLE * limit and (free_disk is None or disk <= free_disk):
        return MemoryPlan("external", outside, limit, disk)
    short = "disk" if outside <= USABLE * limit else "memory"
    raise ConfigurationError(
        f"{rows:,} rows of {features} features do not fit into one worker's {short}",
        expected=f"{outside / USABLE / 1e9:.1f} GB of memory and {disk / 1e9:.1f} GB of disk",
        found=f"{limit / 1e9:.1f} GB of memory"
        + ("" if free_disk is None else f" and {free_disk / 1e9:.1f} GB of free disk"),
        todo="take more workers or larger ones, or a smaller sample (sample.rate: auto finds how few rows do)",
    )


def memory_limit() -> int:
    """Bytes of memory that this process may use: what is available, or its control group's limit when that is less."""
    import psutil

    limit = int(psutil.virtual_memory().available)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(name).read_text()))
        except (OSError, ValueError):  # no limit reads as "max"
            continue
    return limit
