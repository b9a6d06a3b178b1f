"""What is recorded of server processes, and how one is recognised and ended.

A process is named by its id and its start time together, so that a recycled id never gets a stranger killed.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import psutil

from airflow_provider_sml.ml.serving.handover import remove_control
from airflow_provider_sml.ml.serving.process import write_atomically

#: Start times are counted from the boot time, which the system's clock may shift a little.
START_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True)
class ServerRecord:
    """One server process.

    :param pid: of the process.
    :param started: its start time, in seconds since 1970.
    :param host: public address.
    :param port: public port.
    :param private_port: loopback port that is its own.
    :param model: registered model.
    :param version: version that it serves.
    :param model_id: the trained model's id.
    :param bundle: folder that the model was read from.
    :param since: when it was started or went live, ISO 8601.
    :param control: its control socket.
    :param log: file with its output.
    :param previous: the server that it replaced, while that one is still to be ended.
    """

    pid: int
    started: float
    host: str
    port: int
    private_port: int
    model: str
    version: str
    model_id: str
    bundle: str
    since: str
    control: str
    log: str
    previous: ServerRecord | None = None

    @classmethod
    def read(cls, path: Path) -> ServerRecord | None:
        """The record in a file; None when there is none that can be read."""
        try:
            return cls._load(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    @classmethod
    def _load(cls, value: dict) -> ServerRecord:
        known = {item.name for item in fields(cls)}
        record = cls(**{key: item for key, item in value.items() if key in known})
        return replace(record, previous=cls._load(value["previous"]) if value.get("previous") else None)

    def write(self, path: Path) -> None:
        """Write the record, all or nothing."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    def same_process(self, other: ServerRecord | None) -> bool:
        """Whether both are records of one process."""
        return other is not None and (self.pid, self.started) == (other.pid, other.started)

    @property
    def process(self) -> psutil.Process | None:
        """The process, when it still runs."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_SECONDS
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def end(self, grace: float) -> None:
        """End the process: SIGTERM, and SIGKILL after a grace.

        :param grace: seconds it has to finish its requests.
        """
        process = self.process
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
                try:
                    process.wait(grace)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(grace)
        remove_control(Path(self.control))
