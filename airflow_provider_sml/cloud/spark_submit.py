"""Spark by ``spark-submit`` on this machine: the local default, and any master that the client mode reaches.

The driver is a process of its own session, so it survives the worker that started it. Whether one runs under a name is
known from a lock on a file in ``work``, which the driver's processes hold and the kernel frees when the last of them is
gone; what runs is recorded before it starts. So there is no moment at which a crash could leave a driver that nobody
knows: a retry attaches to a driver that still runs, and starts a new one otherwise. Its log lies beside the record.

``work`` must be on a local file system, and whoever asks for the status (a triggerer too) on the same machine. What it
does not do: cluster mode, where the driver is not a child of this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sml.cloud.class_archive import archive_options
from airflow_provider_sml.cloud.remote_job import Adapter, JobState, JobStatus
from airflow_provider_sml.errors import ConfigurationError, JobError

#: The application prints this before a message about its input; another try would find the same input.
INPUT_ERROR = "SML-INPUT-ERROR: "

#: A local driver does all the work itself, beside few cores, so the simple collector is the best. A wide contract makes
#: methods of more than 8,000 bytes, which HotSpot otherwise leaves to its interpreter.
JAVA_OPTIONS = "-XX:+UseSerialGC -XX:-DontCompileHugeMethods"
#: For drivers that live less than half a minute: the quick compiler halves their time on 2 cores; from about a million
#: rows on, the thorough one is quicker in the end (``benchmarks/etl.py``).
LOCAL_JAVA_OPTIONS = f"-XX:TieredStopAtLevel=1 {JAVA_OPTIONS}"
LARGE_BYTES = 64 * 2**20

NOISE = re.compile(r"^(\d\d/\d\d/\d\d |WARNING: |Setting default|Using Spark|To adjust|:: )")
_FRAME = re.compile(r"\s+(at |File |\.\.\. )")
_SECRET = re.compile(r"(secret|password|token|(secret|access)[.]?key)$", re.IGNORECASE)
#: Bytes at the end of a log that are read for progress, and for the reason of a failure.
_TAIL, _ENDING = 20_000, 1_000_000

#: Runs the driver for a task that may be gone when it ends. It records its process group, leaves the shell's parent at
#: once, and leaves the exit code behind; SIGTERM to the group reaches the driver, whose end it then sees.
_WRAPPER = """
echo $$ > "$0.pid"
(
  "$@" & driver=$!
  trap "" TERM
  wait $driver
  echo $? > "$0.tmp" && mv "$0.tmp" "$0.rc"
) &
"""


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
    :param grace: seconds that a cancelled driver has before it is killed.
    :param input_bytes: what a local driver reads, 0 when it is small or not known.
    """

    name: str
    application: str
    arguments: list[str]
    work: str
    master: str = "local[*]"
    conf: dict[str, str] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    grace: float = 10.0
    input_bytes: int = 0

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the driver, or attach to the one that runs under this name.

        :param secrets: environment variables for the driver alone; they are written nowhere.
        :raises ConfigurationError: when there is no spark-submit, or a setting would show a secret to every user.
        """
        command = self._command()
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock() as (lock, mine):
            if not mine:
                return self._running()
            job_id = uuid.uuid4().hex[:8]
            record = {"id": job_id, "output": self.output}
            _write(self._folder / f"{job_id}.json", record)
            _write(self._folder / "current.json", record)
            with (self._folder / f"{job_id}.log").open("wb") as log:
                subprocess.run(
                    ["/bin/sh", "-c", _WRAPPER, str(self._folder / job_id), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment() | (secrets or {}),
                    start_new_session=True,
                    pass_fds=[lock],
                    check=True,
                )
            return job_id

    def status(self, job_id: str) -> JobStatus:
        """Whether the driver lives, and how it ended."""
        self._record(job_id)
        if self._alive(job_id):
            lines = _lines(self._folder / f"{job_id}.log", _TAIL)
            return JobStatus(JobState.RUNNING, progress=tuple(own_lines(lines)[-5:]))
        code = _exit_code(self._folder / f"{job_id}.rc")
        if code == 0:
            return JobStatus(JobState.SUCCEEDED)
        log = self._folder / f"{job_id}.log"
        lines = _lines(log, _ENDING)
        told = [line.removeprefix(INPUT_ERROR) for line in lines if line.startswith(INPUT_ERROR)]
        if told:
            return JobStatus(JobState.FAILED, told[-1], configuration=True)
        return JobStatus(JobState.FAILED, f"{driver_reason(lines, code)} (log: {log})")

    def result(self, job_id: str) -> dict[str, Any]:
        """What the submission named as its output: of the driver that ran, which an attached task did not start."""
        return dict(self._record(job_id)["output"])

    def cancel(self, job_id: str) -> None:
        """End the driver and all its processes: asked first, killed after ``grace``."""
        self._record(job_id)
        if not self._alive(job_id):
            return
        # While one of its processes holds the lock, the number of their group belongs to no other.
        group = int((self._folder / f"{job_id}.pid").read_text())
        _end(group, signal.SIGTERM)
        until = time.monotonic() + self.grace
        while time.monotonic() < until and self._alive(job_id):
            time.sleep(0.1)
        _end(group, signal.SIGKILL)  # also a Python driver that Java had just started, and which holds no lock
        until = time.monotonic() + 10.0
        while self._alive(job_id):
            if time.monotonic() > until:
                raise JobError(f"job {self.name} does not end", found=f"job {job_id} lives after SIGKILL")
            time.sleep(0.1)

    # --- the parts ------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return Path(self.work) / self.name

    @contextlib.contextmanager
    def _lock(self, tries: int = 10) -> Iterator[tuple[int, bool]]:
        """The lock of this name, and whether it was free; it is held until the last process that has it is gone.

        :param tries: tenths of a second after which it counts as taken: a look at a job holds it for a moment too.
        """
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for left in reversed(range(tries)):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if left:
                        time.sleep(0.1)
                else:
                    yield lock, True
                    return
            yield lock, False
        finally:
            os.close(lock)

    def _alive(self, job_id: str) -> bool:
        """Whether the driver of a job runs."""
        if self._current() != job_id:
            return False
        with self._lock(tries=1) as (_, free):
            return not free

    def _current(self) -> str | None:
        """The job that was started last under this name."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads((self._folder / "current.json").read_text())["id"])
        return None

    def _running(self) -> str:
        """The job that holds the lock."""
        job_id = self._current()
        if job_id and not (self._folder / f"{job_id}.rc").exists():
            return job_id
        raise JobError(f"job {self.name} is being started or ended by another process at this moment", todo="try again")

    def _record(self, job_id: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / f"{job_id}.json").read_text()))
        except FileNotFoundError:
            raise JobError(
                f"job {self.name} has no record of {job_id}",
                expected=f"{job_id}.json in {self._folder}",
                found="none",
                todo="ask on the machine that started it",
            ) from None

    def _command(self) -> list[str]:
        conf = dict(self.conf)
        check_settings(conf)
        spark_submit = find_spark_submit()
        if self.master.startswith("local"):
            conf = {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.driver.extraJavaOptions": java_options(spark_submit, self.input_bytes),
                "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
            } | conf
        settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
        return [spark_submit, "--master", self.master, *settings, self.application, *self.arguments]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ) | {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
        if self.master.startswith("local"):
            environment["SPARK_LOCAL_IP"] = "127.0.0.1"
        return environment


def check_settings(conf: Mapping[str, str]) -> None:
    """Refuse settings that would show a secret.

    :raises ConfigurationError: with their names.
    """
    if told := sorted(key for key in conf if _SECRET.search(key)):
        raise ConfigurationError(
            "a secret must not be among the Spark settings: every user of the machine sees a process's arguments",
            expected="settings that name a credentials provider, or a file that only the driver reads",
            found=", ".join(told),
        )


def java_options(spark_submit: str, input_bytes: int = 0) -> str:
    """The options of Java for a driver that does all the work itself, on this machine.

    :param spark_submit: path of the ``spark-submit`` that starts it.
    :param input_bytes: what it reads, 0 when it is small or not known.
    """
    options = LOCAL_JAVA_OPTIONS if input_bytes < LARGE_BYTES else JAVA_OPTIONS
    return f"{options} {archive_options(spark_submit)}".rstrip()


def find_spark_submit() -> str:
    """The path of spark-submit: of ``SPARK_HOME``, else of the pyspark that is installed.

    :raises ConfigurationError: when there is none.
    """
    if home := os.environ.get("SPARK_HOME"):
        path = Path(home) / "bin" / "spark-submit"
        if not path.is_file():
            raise ConfigurationError("SPARK_HOME holds no Spark", expected=str(path), found="no such file")
        return str(path)
    try:
        import pyspark
    except ImportError:
        raise ConfigurationError(
            "there is no spark-submit",
            expected="SPARK_HOME, or the extra 'spark' of airflow-provider-sml",
            todo="pip install 'airflow-provider-sml[spark]'",
        ) from None
    return str(Path(pyspark.__file__).parent / "bin" / "spark-submit")


def _end(group: int, number: signal.Signals) -> None:
    """Send a signal to the processes of a group that are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _exit_code(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def input_error(lines: Iterable[str]) -> str | None:
    """What the application said last about its input; None when it did not blame that.

    :param lines: of the driver's log.
    """
    told = [line.partition(INPUT_ERROR)[2] for line in lines if INPUT_ERROR in line]
    return told[-1] if told else None


def own_lines(lines: Iterable[str]) -> list[str]:
    """The lines of a log that are not Spark's own."""
    return [line for line in lines if line.strip() and not NOISE.match(line)]


def submit_to_cluster(name: str, command: list[str], env: Mapping[str, str], within: float) -> tuple[int, str]:
    """Run spark-submit in cluster mode until the cluster has the driver; gives its exit code and what it said.

    :param name: of the job.
    :param command: what follows ``spark-submit``.
    :param env: of the process.
    :param within: seconds that it may take.
    :raises JobError: when it has not ended by then.
    """
    spark_submit = find_spark_submit()
    options = {"SPARK_SUBMIT_OPTS": f"{java_options(spark_submit)} {env.get('SPARK_SUBMIT_OPTS', '')}"}
    try:
        done = subprocess.run(
            [spark_submit, *command], env={**env, **options}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=within,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise JobError(f"spark-submit of {name} did not end in {within:.0f} seconds") from error
    return done.returncode, done.stdout.decode(errors="replace")


def driver_reason(lines: list[str], code: int | None) -> str:
    """Why a driver failed.

    :param lines: the end of its log.
    :param code: its exit code; None when it left none.
    """
    if code is None or code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        return "it was killed" if code is None else f"it was killed by {signal.Signals(code - 128).name}"
    said = [line for line in reversed(lines) if line.strip()]
    blamed = (line for line in said if re.search(r"(Error|Exception)\b", line) and not _FRAME.match(line))
    line = next(blamed, said[0] if said else "it said nothing")
    return f"{line.strip()[:500]} (exit code {code})"


def _lines(path: Path, most: int) -> list[str]:
    """The last lines of a file.

    :param most: bytes that are read.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most))
        lines = file.read().decode(errors="replace").splitlines()
        return lines if size <= most else lines[1:]
    return []


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)
