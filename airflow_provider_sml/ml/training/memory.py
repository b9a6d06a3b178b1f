"""How the rows of one worker fit into its memory: in memory, in an external cache on disk, or not at all.

The plan is made from row counts before anything is read, so that a training is refused rather than killed. The bytes
per value were measured on 10 million rows of 17 features under XGBoost 3.2 (``benchmarks/training.py`` measures them
again): a ``QuantileDMatrix`` over a ``DataIter`` peaked at 1.6 GB, an ``ExtMemQuantileDMatrix`` at 0.74 GB with 0.9 GB
of cache on disk, each with about 0.4 GB of the process itself. What a GPU needs is reckoned, not measured: see
``plan_gpu_memory``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airflow_provider_sml.errors import ConfigurationError

#: Bytes of memory per value (row x feature) while boosting, and bytes that do not depend on the rows.
IN_MEMORY, EXTERNAL, PROCESS = 7.5, 2.2, 450_000_000
#: Bytes of disk per value of the external cache.
CACHE = 5.5
#: Bytes of a GPU's memory per value of its matrix: a bin number of at most 16 bits, and room for a copy in the making.
GPU_VALUE = 3.0
#: Per row: label, weight, margin, gradient pair, position in the tree, and the buffers that sort them.
GPU_ROW = 64
#: Per value of the rows that are put there at once: the value, its sorted copy with the index, and weights.
GPU_BATCH = 24
#: That do not depend on the rows: CUDA's context and libraries, histograms.
GPU_PROCESS = 1_000_000_000
#: Bytes of the host's memory per value of a cache for the GPU.
GPU_CACHE = 2.5
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
    :param gpu_needed: bytes of the GPU's memory that it will need; 0 without one.
    :param gpu_limit: bytes of the GPU's memory there are.
    """

    mode: Mode
    needed: int
    limit: int
    disk: int = 0
    gpu_needed: int = 0
    gpu_limit: int = 0

    @property
    def device(self) -> str:
        """Where the matrix is: ``cpu`` or ``cuda``."""
        return "cuda" if self.gpu_limit else "cpu"

    def __str__(self) -> str:
        cache = f", {self.disk / 1e9:.1f} GB of cache on disk" if self.disk else ""
        gpu = f", {self.gpu_needed / 1e9:.1f} of {self.gpu_limit / 1e9:.1f} GB on the GPU" if self.gpu_limit else ""
        return f"{self.mode}: about {self.needed / 1e9:.1f} of {self.limit / 1e9:.1f} GB{cache}{gpu}"


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


def plan_gpu_memory(
    rows: int, features: int, limit: int, gpu_limit: int, *, batch: int, direct: bool = True
) -> MemoryPlan:
    """Decide how to hold the rows of one worker with a GPU.

    The matrix lies on the GPU where it fits; otherwise its pages are cached in the host's memory and two of them, each
    a sixteenth of the GPU's memory (XGBoost's ``DataIter``, ``min_cache_page_bytes``), are on the GPU at a time.

    :param rows: of the worker, training and validation together.
    :param features: columns.
    :param limit: bytes of the host's memory that the worker has.
    :param gpu_limit: bytes that are free on the GPU.
    :param batch: rows of its largest file.
    :param direct: whether rows are put on the GPU as they are read; otherwise the matrix is built on the host first.
    :raises ConfigurationError: when they fit in neither way.
    """
    values, fixed = rows * features, GPU_PROCESS + GPU_ROW * rows + (GPU_BATCH * batch * features if direct else 0)
    on_gpu = round(fixed + GPU_VALUE * values)
    on_host = round(PROCESS + (8 * batch * features if direct else IN_MEMORY * values))
    if on_gpu <= USABLE * gpu_limit and on_host <= USABLE * limit:
        return MemoryPlan("memory", on_host, limit, 0, on_gpu, gpu_limit)
    paged, cached = round(fixed + gpu_limit / 8), round(PROCESS + GPU_CACHE * values + 8 * batch * features)
    if direct and paged <= USABLE * gpu_limit and cached <= USABLE * limit:
        return MemoryPlan("external", cached, limit, 0, paged, gpu_limit)
    todo = "take more workers or larger ones, or a smaller sample (sample.rate: auto finds how few rows do)"
    raise ConfigurationError(
        f"{rows:,} rows of {features} features do not fit into one worker's GPU and the memory behind it",
        expected=f"{on_gpu / USABLE / 1e9:.1f} GB on the GPU"
        + (f", or {cached / USABLE / 1e9:.1f} GB in the host's memory" if direct else ""),
        found=f"{gpu_limit / 1e9:.1f} GB on the GPU, {limit / 1e9:.1f} GB in the host's memory",
        todo=todo if direct else f"install CuPy ('airflow-provider-sml[xgboost-gpu]'), or {todo}",
    )


@dataclass(frozen=True)
class Sharing:
    """Who uses a machine beside a rank.

    :param here: ranks of the training in this process, it among them.
    :param together: ranks of the training on this machine, which ask for memory at the same time.
    :param most: ranks that all workers of the cluster on this machine may run: other trainings, such as the trials of
        a search, come and go beside this one.
    """

    here: int = 1
    together: int = 1
    most: int = 1


def memory_limit(sharing: Sharing) -> int:
    """Bytes of memory that a rank may use: its part of what is available, of the machine or its control group, and of
    what this process may have (``ulimit -d``, ``ulimit -v``), whichever is least.

    :param sharing: who else is there.
    """
    import resource

    import psutil

    memory = psutil.virtual_memory()
    most = max(sharing.most, sharing.together)
    limit = min(memory.available // sharing.together, memory.total // most)
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        if (allowed := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            limit = min(limit, allowed // sharing.here)
    for path in _group_limits():
        try:
            limit = min(limit, int(path.read_text()) // most)
        except (OSError, ValueError):  # no limit reads as "max"
            continue
    return limit


def _group_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """The files that may limit this process's control group and those above it.

    A container sees its own group as the root; elsewhere, as under systemd, ``/proc/self/cgroup`` names it (Linux
    documentation, cgroup-v2 ``memory.max``, and cgroup-v1 ``memory.limit_in_bytes``).

    :param root: where control groups are mounted.
    :param own: what names those of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    groups = [line.split(":", 2)[1:] for line in [*lines, ":memory:/", "::/"] if line.count(":") >= 2]
    for kinds, name in groups:
        if kinds and "memory" not in kinds.split(","):
            continue
        base, file = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        group = base / name.lstrip("/")
        yield from (each / file for each in (group, *group.parents) if each == base or base in each.parents)
