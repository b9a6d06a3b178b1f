"""The trigger of remote jobs: it polls, and leaves what follows to ``JobWatch``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_sml.cloud.remote_job import Adapter, JobWatch, settle
from airflow_provider_sml.hooks.clients import connected


class RemoteJobTrigger(BaseTrigger):
    """Waits for a job and gives one event: what ``JobWatch`` decided, and the job itself for who goes on with it.

    :param described: the adapter, as it describes itself.
    :param job_id: the job.
    :param poll_interval: seconds between polls.
    :param deadline: seconds since the epoch after which the job is cancelled; None for never.
    """

    def __init__(
        self, described: dict[str, Any], job_id: str, poll_interval: float = 10.0, deadline: float | None = None
    ) -> None:
        super().__init__()
        self.described = described
        self.job_id = job_id
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path and arguments, to make the trigger again in a triggerer."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "described": self.described,
                "job_id": self.job_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll in a thread, so that a slow service does not block other triggers."""
        job: Any = await asyncio.to_thread(connected, Adapter.load(self.described))
        watch = JobWatch(job.name, self.deadline)
        while True:
            outcome: Any
            try:
                outcome = await asyncio.to_thread(job.status, self.job_id)
            except Exception as error:
                outcome = error
            step = watch.decide(outcome, time.time())
            for line in step.news:
                self.log.info("%s", line)
            if step.action != "wait":
                step = await asyncio.to_thread(settle, step, job, self.job_id)
                yield TriggerEvent(
                    {
                        "action": step.action,
                        "message": step.message,
                        "retryable": step.retryable,
                        "described": self.described,
                        "job_id": self.job_id,
                    }
                )
                return
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Cancel the job when the task is killed; Airflow calls this from 3.3 on."""
        job: Any = await asyncio.to_thread(connected, Adapter.load(self.described))
        await asyncio.to_thread(job.cancel, self.job_id)
