"""What every benchmark shares: rows, fair timing, a table, and results/<name>.json.

A row says what was measured, in which unit, ours against the baseline in the same run, and the goal. Both sides are run
in turn, so that a slow minute of the machine falls on both; the medians are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure.

    :param case: what was measured.
    :param metric: the figure's name and unit, such as ``"seconds"``.
    :param ours: the figure.
    :param baseline: what it is compared with, measured in the same run; None where there is nothing to compare with.
    :param goal: what it ought to be, in words that a reader can check against the row.
    """

    case: str
    metric: str
    ours: float
    baseline: float | None
    goal: str | None = None
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", self.ours / self.baseline if self.baseline else None)


def interleave(ours: Callable[[], float], baseline: Callable[[], float], repeats: int = 7) -> tuple[float, float]:
    """Run both in turn and give the median of what each returns.

    :param ours: one measurement of ours.
    :param baseline: one measurement of the baseline.
    :param repeats: how often each is measured; one more run of each, before, is not counted.
    """
    ours()
    baseline()
    pairs = [(ours(), baseline()) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def seconds(command: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """The wall seconds of a whole process, from its start to its end.

    :raises RuntimeError: when the command fails; its last lines say why.
    """
    started = time.perf_counter()
    _run(command, env)
    return time.perf_counter() - started


def cpu_seconds(command: Sequence[str], env: Mapping[str, str] | None = None) -> float:
    """The CPU seconds of a whole process and its children, user and system; other work on the machine hardly moves it.

    :raises RuntimeError: when the command fails; its last lines say why.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(command, env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@contextlib.contextmanager
def _group(limit: int | None) -> Iterator[str | None]:
    """A control group with a limit of memory; needs root.

    :param limit: bytes; None for no group.
    """
    if limit is None:
        yield None
        return
    old = Path("/sys/fs/cgroup/memory")
    folder = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"sml-bench-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text(str(limit))
        yield str(folder)
    finally:
        folder.rmdir()


@dataclass(frozen=True)
class Process:
    """What a whole process took.

    :param wall: seconds.
    :param cpu: seconds of user and system, its children included.
    :param peak: most memory of it or of a child, in MB.
    """

    wall: float
    cpu: float
    peak: float


def process(command: Sequence[str], limit: int | None = None) -> Process:
    """Run a process and measure all of it at once.

    :param command: of it.
    :param limit: bytes of memory that it may hold, as a control group of its own counts them.
    :raises RuntimeError: when it fails; its last lines say why.
    """
    # The largest child so far would hide a smaller one, so each is waited for by a process of its own.
    code = (
        "import json, os, resource, subprocess, sys, time\n"
        "limit, command = json.loads(sys.argv[1])\n"
        "bound = limit and (lambda: open(limit + '/cgroup.procs', 'w').write(str(os.getpid())))\n"
        "began = time.perf_counter()\n"
        "done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound)\n"
        "wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "if done.returncode:\n"
        "    sys.exit((done.stderr or done.stdout or str(done.returncode))[-2000:])\n"
        "print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )
    with _group(limit) as group:
        argument = json.dumps([group, list(command)])
        done = subprocess.run([sys.executable, "-c", code, argument], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Process(*json.loads(done.stdout))


def _run(command: Sequence[str], env: Mapping[str, str] | None) -> None:
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{last}")


def report(name: str, rows: Sequence[Row]) -> Path:
    """Print the rows as a table and write them to ``benchmarks/results/<name>.json``."""
    order = ("case", "metric", "ours", "baseline", "ratio", "goal")
    records = [{column: asdict(row)[column] for column in order} for row in rows]
    cells = [list(order), *([_shown(record[column]) for column in order] for record in records)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(order))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([_rounded(record) for record in records], indent=2) + "\n")
    print(f"\nWritten to {path.relative_to(PROJECT)}")
    return path


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _rounded(record: dict[str, object]) -> dict[str, object]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
