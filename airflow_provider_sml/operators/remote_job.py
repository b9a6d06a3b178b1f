"""The base of operators that run a remote job: submit or attach, wait, take the result; cancel when killed.

A subclass names the adapter (``job``) and makes the result (``finish``). A retry under the same name attaches to a job
that still runs. Waiting blocks a worker slot, or is handed to the triggerer with ``deferrable=True``.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.cloud.remote_job import Adapter, JobWatch, Step, failure, settle
from airflow_provider_sml.errors import JobError
from airflow_provider_sml.hooks.clients import connected
from airflow_provider_sml.links.pages import CONSOLE, ConsoleLink, ModelLink
from airflow_provider_sml.operators.base import SmlOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_SUBMIT_TRIES = 6


class RemoteJobOperator(SmlOperator):
    """Runs a remote job.

    :param deferrable: wait in the triggerer rather than in a worker slot.
    :param poll_interval: seconds between polls.
    :param deadline: how long this try waits for the job, submitted or attached to; the job is cancelled then. None for
        ever.
    """

    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), ConsoleLink())

    def __init__(
        self,
        *,
        deferrable: bool = False,
        poll_interval: float = 1.0,
        deadline: timedelta | None = timedelta(hours=12),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.deadline = deadline
        self._running: tuple[Any, str] | None = None
        self._killed = False

    def job(self, context: Context) -> Adapter:
        """The adapter of the job."""
        raise NotImplementedError

    def secrets(self) -> dict[str, str]:
        """What the job needs and nobody may see."""
        return {}

    def finish(self, context: Context, result: dict[str, Any]) -> Any:
        """The task's result, from the job's."""
        return result

    def failed(self, step: Step) -> Exception:
        """The error of a job that failed."""
        return failure(step)

    def run(self, context: Context) -> Any:
        """Submit or attach, then wait."""
        job: Any = connected(self.job(context))
        job_id = self._submit(job)
        if self._killed:  # while it was submitting: Airflow calls on_kill and lets the task go on
            job.cancel(job_id)
            raise JobError(f"job {job.name} was cancelled: the task was killed")
        until = time.time() + self.deadline.total_seconds() if self.deadline else None
        self.log.info("job %s runs as %s", job.name, job_id)
        _link(context, job, job_id)
        if self.deferrable:
            from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger

            trigger = RemoteJobTrigger(job.describe(), job_id, self.poll_interval, until)
            self.defer(trigger=trigger, method_name="resume")
        job_id = self._wait(job, job_id, JobWatch(job.name, until))
        return self._end(context, job, job_id)

    def _end(self, context: Context, job: Any, job_id: str) -> Any:
        _link(context, job, job_id)  # the page of the last step, or of another try, is another one
        return self.finish(context, job.result(job_id))

    def _submit(self, job: Any) -> str:
        """Submit, patiently: to submit again under the same name is to attach, so a passing failure is survived."""
        watch = JobWatch(job.name, max_errors=_SUBMIT_TRIES - 1)
        while True:
            try:
                job_id: str = job.submit(self.secrets())
            except JobError as error:
                step = watch.decide(error, time.time())
                if step.action == "fail" or self._killed:
                    raise
                self.log.warning("job %s could not be submitted: %s", job.name, error)
                time.sleep(self.poll_interval)
            else:
                self._running = (job, job_id)
                return job_id

    def _wait(self, job: Any, job_id: str, watch: JobWatch) -> str:
        """Wait until the job has succeeded; gives the id of the one that has."""
        while True:
            outcome: Any
            try:
                outcome = job.status(job_id)
            except Exception as error:
                outcome = error
            step = watch.decide(outcome, time.time())
            for line in step.news:
                self.log.info("%s", line)
            if step.action == "done":
                return job_id
            if step.action == "fail":
                raise self.failed(settle(step, job, job_id))
            if step.action == "again":
                job_id = self._submit(job)
            time.sleep(self.poll_interval)

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the trigger's event."""
        return self.guarded(self._resume, context, event)

    def _resume(self, context: Context, event: dict[str, Any]) -> Any:
        if event["action"] == "fail":
            raise self.failed(Step("fail", event["message"], event["retryable"]))
        if event["action"] == "again":
            return self.run(context)
        job: Any = connected(Adapter.load(event["described"]))
        return self._end(context, job, event["job_id"])

    def on_kill(self) -> None:
        """Cancel the job that this task waits for, or is about to submit."""
        self._killed = True
        if self._running:
            job, job_id = self._running
            job.cancel(job_id)


def _link(context: Context, job: Any, job_id: str) -> None:
    """Let the task's link lead to the job's page."""
    if page := job.page(job_id):
        context["ti"].xcom_push(key=CONSOLE, value=page)
