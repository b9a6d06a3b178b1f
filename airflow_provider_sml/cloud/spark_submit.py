"""Spark by ``spark-submit`` on this machine: the local default, and any master that the client mode reaches.

The driver is a process of its own session, so it survives the worker that started it; a record in ``work`` says what
runs under a name. A retry attaches to a driver that still runs, and starts a new one otherwise. Its log lies beside
the record. What it does not do: cluster mode, where the driver is not a child of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sml.cloud.remote_job import Adapter, JobState, JobStatus
from airflow_provider_sml.errors import ConfigurationError, JobError

#: The application prints this before a message about its input; another try would find the same input.
INPUT_ERROR = "SML-INPUT-ERROR: "

#: For drivers that live seconds to minutes: the quick compiler and the simple collector halve their time on 2 cores.
LOCAL_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

_NOISE = re.compile(r"^(\d\d/\d\d/\d\d |WARNING: |Setting default|Using Spark|To adjust|:: )")


@dataclass(frozen=True)
class SparkSubmitJob(Adapter):
    """One run of an application by spark-submit.

    :param name: of the job; running under the same name means attach.
    :param application: path of the Python file.
    :param arguments: of the application.
    :param work: folder for the record and the log.
    :param master: Spark master, such as ``local[*]``.
    :param conf: Spark settings.
    :param output: what ``result`` gives back.
    """

    name: str
    application: str
    arguments: list[str]
    work: str
    master: str = "local[*]"
    conf: dict[str, str] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the driver, or attach to the one that runs under this name.

        :param secrets: environment variables for the driver alone; they are written nowhere.
        """
        folder = Path(self.work) / self.name
        folder.mkdir(parents=True, exist_ok=True)
        current = self._current()
        if current and _alive(current["pid"], current["started"]):
            return str(current["id"])
        job_id = uuid.uuid4().hex[:8]
        with (folder / f"{job_id}.log").open("wb") as log:
            process = subprocess.Popen(
                [*_watched(folder / f"{job_id}.rc"), *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment() | (secrets or {}),
                start_new_session=True,
            )
        record = {"id": job_id, "pid": process.pid, "started": _started(process.pid), "output": self.output}
        _write(folder / f"{job_id}.json", record)
        _write(folder / "current.json", record)
        _CHILDREN[process.pid] = process
        return job_id

    def status(self, job_id: str) -> JobStatus:
        """Whether the driver lives, and how it ended."""
        folder = Path(self.work) / self.name
        record = json.loads((folder / f"{job_id}.json").read_text())
        code = _exit_code(folder / f"{job_id}.rc")
        if code is None and _alive(record["pid"], record["started"]):
            return JobStatus(JobState.RUNNING, progress=tuple(self._progress(folder / f"{job_id}.log")))
        code = _exit_code(folder / f"{job_id}.rc") if code is None else code
        if code == 0:
            return JobStatus(JobState.SUCCEEDED)
        lines = (folder / f"{job_id}.log").read_text(errors="replace").splitlines()
        told = [line.removeprefix(INPUT_ERROR) for line in lines if line.startswith(INPUT_ERROR)]
        if told:
            return JobStatus(JobState.FAILED, told[-1], configuration=True)
        reason = next((line for line in reversed(lines) if re.search(r"(Error|Exception)\b", line)), "it was killed")
        return JobStatus(JobState.FAILED, f"{reason.strip()[:500]} (exit code {code}; log: {folder / job_id}.log)")

    def result(self, job_id: str) -> dict[str, Any]:
        """What the submission named as its output: of the driver that ran, which an attached task did not start."""
        record = json.loads((Path(self.work) / self.name / f"{job_id}.json").read_text())
        return dict(record["output"])

    def cancel(self, job_id: str) -> None:
        """End the driver and all its processes: asked first, killed after ten seconds."""
        record = json.loads((Path(self.work) / self.name / f"{job_id}.json").read_text())
        for number, grace in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if not _alive(record["pid"], record["started"]):
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record["pid"], number)
            until = time.monotonic() + grace
            while time.monotonic() < until and _alive(record["pid"], record["started"]):
                time.sleep(0.1)
        if _alive(record["pid"], record["started"]):
            raise JobError(f"job {self.name} does not end", found=f"process {record['pid']} lives after SIGKILL")

    # --- the parts ------------------------------------------------------------------------------------------------

    def _current(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return dict(json.loads((Path(self.work) / self.name / "current.json").read_text()))
        return None

    def _command(self) -> list[str]:
        conf = dict(self.conf)
        if self.master.startswith("local"):
            conf = {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.driver.extraJavaOptions": LOCAL_JAVA_OPTIONS,
                "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
            } | conf
        settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
        return [_spark_submit(), "--master", self.master, *settings, self.application, *self.arguments]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ) | {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
        if self.master.startswith("local"):
            environment["SPARK_LOCAL_IP"] = "127.0.0.1"
        return environment

    def _progress(self, log: Path) -> list[str]:
        lines = log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and not _NOISE.match(line)][-5:]


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


def _spark_submit() -> str:
    if home := os.environ.get("SPARK_HOME"):
        return str(Path(home) / "bin" / "spark-submit")
    try:
        import pyspark
    except ImportError:
        raise ConfigurationError(
            "there is no spark-submit",
            expected="SPARK_HOME, or the extra 'spark' of airflow-provider-sml",
            todo="pip install 'airflow-provider-sml[spark]'",
        ) from None
    return str(Path(pyspark.__file__).parent / "bin" / "spark-submit")


def _watched(exit_file: Path) -> list[str]:
    """A wrapper that leaves the exit code behind, for a task that did not start the driver."""
    script = '"$@" & child=$!; trap "kill -TERM $child" TERM INT; wait $child; code=$?; ' \
        'wait $child 2>/dev/null; echo $code > "$0.tmp" && mv "$0.tmp" "$0"; exit $code'  # fmt: skip
    return ["/bin/sh", "-c", script, str(exit_file)]


def _exit_code(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def _started(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).create_time())


def _alive(pid: int, started: float) -> bool:
    """Whether that very process lives; a later one with the same number does not count."""
    import psutil

    if child := _CHILDREN.get(pid):
        child.poll()  # reaps it when it has ended
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)
