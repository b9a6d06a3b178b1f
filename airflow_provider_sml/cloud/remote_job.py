"""Remote jobs: whatever runs outside the task, driven by four verbs.

An adapter knows how one service submits, shows, finishes and cancels a job; it holds plain JSON values only, so that a
trigger in another process can make it again. What to do with a poll's outcome is decided once, in :class:`JobWatch`,
which does no I/O and does not sleep; the operator and the trigger both ask it.

A job's name is derived from the DAG, the task, the run and the map index. ``submit`` under a name that already runs
attaches to that job, so a retry after a crash never starts a second one.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self

from airflow_provider_sml.errors import ConfigurationError, JobError, SmlError


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether it stays like this."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobStatus:
    """One look at a job.

    :param state: where it stands.
    :param message: what the service says, for a person; the reason when it failed.
    :param progress: new lines of its output, for the task log.
    :param configuration: whether the failure is one that a retry cannot mend.
    :param again: whether the failed job is to be submitted again at once: there is another machine that it can try.
    :param leftover: whether the failed job has left something that ``cancel`` removes.
    """

    state: JobState
    message: str = ""
    progress: tuple[str, ...] = ()
    configuration: bool = False
    again: bool = False
    leftover: bool = False


class RemoteJob(Protocol):
    """The adapter of one service."""

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the job, or attach to the one of this name that runs already; gives the job's id.

        :param secrets: what the job needs and nobody may see; kept out of ``describe`` and of every record.
        """

    def status(self, job_id: str) -> JobStatus:
        """Look at the job."""

    def result(self, job_id: str) -> dict[str, Any]:
        """What a succeeded job made: plain JSON, below 1 kB."""

    def cancel(self, job_id: str) -> None:
        """End the job, also when it has ended already."""


@dataclass(frozen=True)
class Step:
    """What to do next.

    :param action: ``wait``, ``done``, ``fail``, or ``again``: submit the job anew and go on with that one.
    :param message: why, for a person.
    :param retryable: whether a retry may mend it.
    :param cancel: whether the job is to be cancelled first.
    :param settled: whether the job has ended, so that cancelling it only removes what it left.
    :param news: lines of the job's output that were not told before.
    """

    action: str
    message: str = ""
    retryable: bool = True
    cancel: bool = False
    settled: bool = False
    news: tuple[str, ...] = ()


@dataclass
class JobWatch:
    """Decides what follows from each poll.

    :param name: of the job, for messages.
    :param deadline: seconds since the epoch after which the job is cancelled; None for never.
    :param max_errors: failed polls in a row that are survived; the job itself may be well.
    """

    name: str
    deadline: float | None = None
    max_errors: int = 10
    errors: int = 0
    told: tuple[str, ...] = field(default=(), repr=False)

    def decide(self, outcome: JobStatus | Exception, now: float) -> Step:
        """The next step.

        :param outcome: what a poll gave, or the exception it raised.
        :param now: seconds since the epoch.
        """
        late = self.deadline is not None and now >= self.deadline
        if isinstance(outcome, Exception):
            return self._unknown(outcome, late)
        self.errors = 0
        news = tuple(line for line in outcome.progress if line not in self.told)
        self.told = outcome.progress or self.told
        if outcome.state is JobState.SUCCEEDED:
            return Step("done", news=news)
        if outcome.state.final:
            said = f": {outcome.message}" if outcome.message else ""
            message = f"job {self.name} {outcome.state}{said}"
            if outcome.again and not late:
                return Step("again", message, news=(*news, f"{message}. It is submitted again."))
            retryable, leftover = not outcome.configuration, outcome.leftover
            return Step("fail", message, retryable, cancel=leftover, settled=leftover, news=news)
        if late:
            message = f"job {self.name} was still {outcome.state} at its deadline"
            return Step("fail", message, cancel=True, news=news)
        return Step("wait", news=news)

    def _unknown(self, error: Exception, late: bool) -> Step:
        """The next step when a poll failed: the job may be well, so some of them are survived."""
        self.errors += 1
        if isinstance(error, SmlError) and not error.retryable:
            return Step("fail", f"job {self.name} cannot be asked: {error}", retryable=False)
        if late:
            return Step("fail", f"job {self.name} could not be asked at its deadline: {error}", cancel=True)
        if self.errors > self.max_errors:
            message = f"job {self.name} could not be asked {self.errors} times in a row, the last time: {error}"
            return Step("fail", f"{message}. It was left running; a retry attaches to it.")
        return Step("wait", news=(f"job {self.name} could not be asked: {error}",))


def settle(step: Step, job: RemoteJob, job_id: str) -> Step:
    """Cancel the job where the step says so; that it could not be cancelled is told and hides no other reason."""
    if not step.cancel:
        return step
    try:
        job.cancel(job_id)
    except Exception as error:
        what = "what it left could not be removed" if step.settled else "it could not be cancelled and may run on"
        return replace(step, message=f"{step.message}; {what}: {error}")
    if step.settled:
        return step
    return replace(step, message=f"{step.message}; it was cancelled")


class Clients(Protocol):
    """Makes the clients of a service's libraries, with credentials that no adapter holds."""

    def client(self, service: str, fresh: bool = False) -> Any:
        """A client.

        :param service: which one, in the words of the library.
        :param fresh: make it anew, with new credentials.
        """


@dataclass(frozen=True)
class Adapter:
    """Base of the adapters: makes them again from their path and their JSON values.

    An adapter of a cloud names its ``provider`` and the id of its ``connection``; who runs it connects it to clients
    of that connection. The clients are no part of what is described.
    """

    provider: ClassVar[str] = ""
    clients: ClassVar[Clients | None] = None

    def connect(self, clients: Clients) -> Self:
        """This adapter, with clients."""
        connected = replace(self)
        object.__setattr__(connected, "clients", clients)
        return connected

    def page(self, job_id: str) -> str:
        """Where a person looks at the job: a page of the service; empty when there is none.

        :param job_id: of the job.
        """
        return ""

    def describe(self) -> dict[str, Any]:
        """The adapter as JSON, for a trigger."""
        kind = type(self)
        return {"adapter": f"{kind.__module__}.{kind.__qualname__}", "arguments": asdict(self)}

    @classmethod
    def load(cls, described: dict[str, Any]) -> Self:
        """The adapter that ``describe`` described."""
        module, _, name = described["adapter"].rpartition(".")
        kind: Any = getattr(importlib.import_module(module), name)
        known = isinstance(kind, type) and issubclass(kind, Adapter)
        if not known:
            raise ConfigurationError(
                "not an adapter of a remote job", expected="an Adapter", found=described["adapter"]
            )
        return kind(**described["arguments"])


def job_name(*parts: str, limit: int = 63) -> str:
    """A name that many services take: letters, digits and hyphens, unique by a hash when it must be cut.

    :param parts: what makes the job itself: dag, task, run, map index.
    :param limit: longest name; 63 is SageMaker's.
    """
    whole = "-".join(parts)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", whole).strip("-")[: limit - 11].strip("-")
    return f"{readable or 'job'}-{digest}"


def spec_hash(spec: Any) -> str:
    """A short hash of what decides a job, to tell whether one of the same name is the same job."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()[:16]


def iso(moment: dt.datetime | None) -> str:
    """A moment that a service tells as text, in UTC to the second; empty for none."""
    return moment.astimezone(dt.UTC).isoformat(timespec="seconds") if moment else ""


def failure(step: Step) -> JobError:
    """The error of a failed step."""
    error = JobError(step.message)
    error.retryable = step.retryable
    return error
