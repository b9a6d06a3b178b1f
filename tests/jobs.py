"""Small applications for spark-submit, and a look at the processes that run them."""

import os
import time
from pathlib import Path

import psutil

from airflow_provider_sml.cloud.spark_submit import SparkSubmitJob

#: Notes each start, then does what its argument says.
APPLICATION = """
import os, sys, time
with open(sys.argv[1] + ".starts", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('SML_TEST_SECRET', '')}\\n")
print("counting rows", flush=True)
if sys.argv[2] == "wait":
    until = time.time() + 120
    while time.time() < until and not os.path.exists(sys.argv[1] + ".go"):
        time.sleep(0.05)
elif sys.argv[2] == "input":
    print("SML-INPUT-ERROR: day.csv lacks the columns ['weight']", flush=True)
    sys.exit(3)
elif sys.argv[2] == "error":
    raise ValueError("no such place")
elif sys.argv[2] == "spark":
    from pyspark.sql import SparkSession
    session = SparkSession.builder.getOrCreate()
    print("rows", session.range(1000).filter("id % 2 = 0").count(), flush=True)
    session.stop()
"""


class Work:
    """A folder of jobs, and the processes that they start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.application = root / "app.py"
        self.application.write_text(APPLICATION)

    def job(self, what: str = "wait", name: str = "job", **rest) -> SparkSubmitJob:
        arguments = [str(self.root / name), what]
        return SparkSubmitJob(name, str(self.application), arguments, str(self.root / "jobs"), **rest)

    def starts(self, name: str = "job") -> list[str]:
        path = self.root / f"{name}.starts"
        return path.read_text().splitlines() if path.exists() else []

    def release(self, name: str = "job") -> None:
        (self.root / f"{name}.go").touch()

    def processes(self) -> list[psutil.Process]:
        """All that run for these jobs: the wrapper, Java and the Python driver name the folder."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            named = str(self.root) in " ".join(process.info["cmdline"] or [])
            if named and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        return found

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            process.kill()

    def java(self) -> psutil.Process:
        return next(process for process in self.processes() if "java" in process.cmdline()[0])

    def gone(self, seconds: float = 30) -> bool:
        return until(lambda: not self.processes(), seconds)


def until(fact, seconds: float = 90) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(0.05)
    return bool(fact())
