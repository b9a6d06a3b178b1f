"""Training containers of the fake SageMaker as processes of this machine, which really lose their machine.

There are no images: a training image is a command that the test names, and every other one is the image of
``docker/scoring.Dockerfile``. A process gets what a container does, below a folder of its own that SAGEMAKER_BASE_DIR
names in place of ``/opt/ml``: its files of configuration, its channels, its checkpoints of earlier attempts. Machines
of one job are addresses of the loopback interface.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws
    from airflow_provider_sml.testing.aws.training import TrainingJob

#: What a container inherits of this process: enough to start Python, and nothing secret.
_KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
OUR_IMAGE = (sys.executable, "-m", "airflow_provider_sml.ml.serving")
_TRAINING = "Training image download completed. Training in progress."


@contextlib.contextmanager
def training_containers(
    cloud: FakeAws,
    images: Mapping[str, Sequence[str]] | None = None,
    interrupt_when: Callable[[Path, float], bool] = lambda checkpoints, seconds: seconds >= 1.0,
) -> Iterator[list[str]]:
    """Run training jobs for real for as long as the context is open.

    The job's timeline goes by first; when it has got to the upload, the containers run, and the job is ``Training``
    until they have ended. They are interrupted as often as its timeline was.

    :param cloud: the account, which knows where S3 is.
    :param images: the command that stands for each image; ``OUR_IMAGE`` for every other one.
    :param interrupt_when: whether a container loses its machine now: takes its folder of checkpoints, and the seconds
        that it has run.
    :returns: what the containers printed, one text an attempt.
    """
    printed: list[str] = []
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def train(request: dict[str, Any]) -> None:
        job = cloud.sagemaker.jobs[request["TrainingJobName"]]
        now = cloud.clock.now()
        run = _Run(cloud, job, dict(images or {}), interrupt_when, printed, ended)
        run.interruptions = job.timeline.count("Interrupted", now)
        job.timeline.change(now, [("Training", 0, _TRAINING)])
        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    before, cloud.sagemaker.train = cloud.sagemaker.train, train
    try:
        yield printed
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
        cloud.sagemaker.train = before


class _Run:
    """The containers of one job, attempt by attempt."""

    interruptions = 0

    def __init__(
        self,
        cloud: FakeAws,
        job: TrainingJob,
        images: Mapping[str, Sequence[str]],
        interrupt_when: Callable[[Path, float], bool],
        printed: list[str],
        ended: threading.Event,
    ) -> None:
        self.cloud, self.job, self.images, self.printed, self.ended = cloud, job, images, printed, ended
        self.interrupt_when = interrupt_when
        self.request = job.request
        self.s3 = cloud.client("s3")
        self.hosts = [f"127.0.0.{number + 1}" for number in range(self.request["ResourceConfig"]["InstanceCount"])]

    def __call__(self) -> None:
        """Run to the end, and let the job end with it."""
        with tempfile.TemporaryDirectory(prefix="sagemaker-") as folder:
            bases = [Path(folder) / host for host in self.hosts]
            try:
                reason = self._attempts(bases)
            except Exception as error:  # of the fake itself, or of S3
                reason = f"InternalServerError: {type(error).__name__}: {error}"
        now = self.cloud.clock.now()
        if self._stopped() or self.ended.is_set():
            return
        if reason:
            self.job.reason = reason[:1024]
            self.job.timeline.change(now, [("Failed", 0, f"Training job failed: {reason}"[:1024])])
        else:
            uploading = ("Uploading", 20, "Uploading generated training model")
            self.job.timeline.change(now, [uploading, ("Completed", 0, "Training job completed")])

    def _attempts(self, bases: list[Path]) -> str:
        """Why the job failed; empty when it did not."""
        while True:
            for rank, base in enumerate(bases):
                shutil.rmtree(base, ignore_errors=True)
                self._lay(base, self.hosts[rank])
            codes = self._attempt(bases)
            if codes is not None:
                break
            self.interruptions -= 1
        failed = [(code, base) for code, base in zip(codes, bases, strict=True) if code]
        if failed:
            code, base = failed[0]
            told = base / "output" / "failure"
            said = told.read_text() if told.is_file() else self.printed[-1][-600:]
            return f"AlgorithmError: {said}, exit code: {code}"
        self._upload_model(bases[0])
        return ""

    def _attempt(self, bases: list[Path]) -> list[int] | None:
        """The exit codes; None for an attempt that lost its machines."""
        containers = [self._start(base) for base in bases]
        began, lost = time.monotonic(), False
        while any(container.poll() is None for container in containers):
            time.sleep(0.02)
            over = self._stopped() or self.ended.is_set()
            lost = self.interruptions > 0 and self.interrupt_when(bases[0] / "checkpoints", time.monotonic() - began)
            if over or lost:
                for container in containers:
                    container.terminate()
                break
        codes = []
        for container, base in zip(containers, bases, strict=True):
            try:
                codes.append(container.wait(10))
            except subprocess.TimeoutExpired:
                container.kill()
                codes.append(container.wait())
            self.printed.append((base / "log").read_text(errors="replace"))
        self._keep_checkpoints(bases[0])
        return None if lost else codes

    def _stopped(self) -> bool:
        return self.job.timeline.at(self.cloud.clock.now()).state in ("Stopping", "Stopped")

    # --- a container ----------------------------------------------------------------------------------------------

    def _start(self, base: Path) -> subprocess.Popen[bytes]:
        algorithm = self.request["AlgorithmSpecification"]
        command = algorithm.get("ContainerEntrypoint") or self.images.get(algorithm["TrainingImage"], OUR_IMAGE)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"SAGEMAKER_BASE_DIR": str(base), "AWS_REGION": self.cloud.region, "PYTHONUNBUFFERED": "1",
               "TRAINING_JOB_NAME": self.request["TrainingJobName"]}  # fmt: skip
        with (base / "log").open("wb") as log:
            return subprocess.Popen(
                [*command, *algorithm.get("ContainerArguments", ["train"])], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=kept | self.cloud.environment() | self.request["Environment"] | own,
            )  # fmt: skip

    def _lay(self, base: Path, host: str) -> None:
        """What a container finds: configuration, channels, checkpoints, and empty folders."""
        config = base / "input" / "config"
        for folder in (config, base / "model", base / "output"):
            folder.mkdir(parents=True)
        (config / "hyperparameters.json").write_text(json.dumps(self.request.get("HyperParameters", {})))
        resources = {"current_host": host, "hosts": self.hosts, "network_interface_name": "lo"}
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        for channel in self.request.get("InputDataConfig", []):
            self._download(channel["DataSource"]["S3DataSource"]["S3Uri"], base / "input/data" / channel["ChannelName"])
        if "CheckpointConfig" in self.request:
            self._download(self.request["CheckpointConfig"]["S3Uri"], base / "checkpoints")

    def _download(self, uri: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        place = urlsplit(uri)
        prefix = place.path.strip("/") + "/"
        for each in self.s3.list_objects_v2(Bucket=place.netloc, Prefix=prefix).get("Contents", []):
            path = folder / each["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.s3.get_object(Bucket=place.netloc, Key=each["Key"])["Body"].read())

    def _keep_checkpoints(self, base: Path) -> None:
        """Bring what is new to S3; what the container has deleted stays there."""
        if "CheckpointConfig" in self.request:
            place = urlsplit(self.request["CheckpointConfig"]["S3Uri"])
            for path in [path for path in (base / "checkpoints").rglob("*") if path.is_file()]:
                key = f"{place.path.strip('/')}/{path.relative_to(base / 'checkpoints')}"
                self.s3.put_object(Bucket=place.netloc, Key=key, Body=path.read_bytes())

    def _upload_model(self, base: Path) -> None:
        output = urlsplit(self.request["OutputDataConfig"]["S3OutputPath"])
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as packed:
            for path in sorted((base / "model").iterdir()):
                packed.add(path, path.name)
        key = f"{output.path.strip('/')}/{self.request['TrainingJobName']}/output/model.tar.gz".lstrip("/")
        self.s3.put_object(Bucket=output.netloc, Key=key, Body=archive.getvalue())
