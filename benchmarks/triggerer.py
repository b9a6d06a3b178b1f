"""A thousand deferred training jobs in one process: the longest time that its event loop was blocked, and its memory.

The jobs run at the fake SageMaker, in a process of its own; ``SML_JOBS`` says how many, ``SML_SECONDS`` for how long
they are watched. Ours is ``RemoteJobTrigger``, the baseline Airflow's official ``SageMakerTrigger``; each in a fresh
process that makes its triggers from what Airflow stores of them, as its triggerer does, and looks at each job every ten
seconds. A loop that is blocked for long delays every other trigger; Airflow's triggerer warns from 200 ms on. Python's
own full garbage collections stop every thread of a process that has imported Airflow, whatever it waits for; the block
is told with and without them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks._harness import PROJECT, Row, report

JOBS = int(os.environ.get("SML_JOBS", "1000"))
SECONDS = float(os.environ.get("SML_SECONDS", "40"))
POLL = 10.0

SERVE = """
import json, sys
from airflow_provider_sml.testing.aws.cloud import FakeAws
cloud = FakeAws()
print(json.dumps(cloud.environment()), flush=True)
sys.stdin.read()
"""


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        where = json.loads(server.stdout.readline())
        with tempfile.TemporaryDirectory(prefix="bench-") as home:
            env = os.environ | where | {
                "AIRFLOW_HOME": home, "AIRFLOW_CONN_AWS_DEFAULT": '{"conn_type": "aws"}', "AWS_MAX_ATTEMPTS": "1",
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "_AIRFLOW__AS_LIBRARY": "1",
            }  # fmt: skip
            ours, official = (watch(which, env) for which in ("ours", "official"))
    finally:
        server.kill()
        server.wait()
    case = f"{JOBS:,} deferred jobs, {SECONDS:g} s"
    report(
        "triggerer",
        [
            Row(case, "block ms", ours["block"], official["block"], "ours < 100 ms"),
            Row(f"{case}, garbage collection included", "block ms", ours["whole"], official["whole"]),
            Row(case, "memory MB", ours["memory"], official["memory"]),
            Row(case, "cpu", ours["cpu"], official["cpu"]),
            Row(case, "looks at each job", ours["looks"], official["looks"]),
        ],
    )


def watch(which: str, env: dict[str, str]) -> dict[str, float]:
    """One side, in a process of its own."""
    code = f"from benchmarks.triggerer import run; run({which!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(which: str) -> None:
    """Submit the jobs, then watch them."""
    from airflow_provider_sml.hooks.clients import connected

    jobs = [_job(f"{which}-{number}") for number in range(JOBS)]
    for job in jobs:
        connected(job).submit()
    stored = [_stored(which, job) for job in jobs]
    began = time.process_time()
    block, whole = asyncio.run(_watch(stored))
    print(
        json.dumps(
            {
                "block": block * 1000, "whole": whole * 1000,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "cpu": time.process_time() - began, "looks": _looks[0] / JOBS,
            }
        )
    )  # fmt: skip


def _job(name: str) -> Any:
    from airflow_provider_sml.cloud.sagemaker_training import SageMakerTrainingJob

    return SageMakerTrainingJob(
        name=name, image="123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1", output="s3://models/churn",
        role="arn:aws:iam::123456789012:role/sagemaker", instances=["ml.m5.xlarge"],
    )  # fmt: skip


def _stored(which: str, job: Any) -> tuple[str, dict[str, Any]]:
    """What Airflow stores of a trigger."""
    if which == "ours":
        from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger

        return RemoteJobTrigger(job.describe(), job.name, POLL).serialize()
    from airflow.providers.amazon.aws.triggers.sagemaker import SageMakerTrigger

    found: tuple[str, dict[str, Any]] = SageMakerTrigger(
        job_name=job.name, job_type="Training", poke_interval=int(POLL), max_attempts=10_000
    ).serialize()
    return found


_looks = [0]


class _Collector:
    """The seconds that garbage collections have taken."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0
        gc.callbacks.append(self._told)

    def _told(self, phase: str, _: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.seconds += now - self._began


async def _watch(stored: list[tuple[str, dict[str, Any]]]) -> tuple[float, float]:
    """Run the triggers for a while; gives the longest block of the loop in seconds, without and with collections."""
    import importlib

    import botocore.endpoint

    sent = botocore.endpoint.Endpoint._send_request

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        _looks[0] += 1
        return sent(self, *arguments, **named)

    botocore.endpoint.Endpoint._send_request = counted
    _count_async()

    async def drive(path: str, values: dict[str, Any]) -> None:
        module, _, name = path.rpartition(".")
        trigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(values)))
        async for _ in trigger.run():
            raise AssertionError("no job ends")

    longest = whole = 0.0
    collector = _Collector()

    async def feel() -> None:
        nonlocal longest, whole
        while True:
            now, collected = time.perf_counter(), collector.seconds
            await asyncio.sleep(0.005)
            late = time.perf_counter() - now - 0.005
            longest, whole = max(longest, late - (collector.seconds - collected)), max(whole, late)

    feeling = asyncio.create_task(feel())
    tasks = []
    for each in stored:
        tasks.append(asyncio.create_task(drive(*each)))
        await asyncio.sleep(0)  # as Airflow's triggerer does between two new triggers
    await asyncio.sleep(SECONDS)
    feeling.cancel()
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not ended, f"{len(ended)} triggers ended: {ended[0].exception() if ended else ''}"
    return longest, whole


def _count_async() -> None:
    """Count the requests of aiobotocore, too."""
    try:
        from aiobotocore.endpoint import AioEndpoint
    except ImportError:
        return
    sent = AioEndpoint._send_request

    async def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        _looks[0] += 1
        return await sent(self, *arguments, **named)

    AioEndpoint._send_request = counted


if __name__ == "__main__":
    main()
