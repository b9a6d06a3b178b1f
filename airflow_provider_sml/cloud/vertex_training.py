"""Vertex AI custom jobs: spot machines with checkpoints, other machines when there are none, a small result.

A custom job gets its id from Vertex AI, so the tries of one task are found by a label of their name. ``submit``
attaches to one that runs, takes one that succeeded with the same specification, and makes another otherwise. A job that
failed for want of capacity asks to be submitted again, on the next machine of its list.

One race is known: of two that submit at the same moment, or after a reply that was lost while the list does not show
the new job yet, each makes a job. Each looks again after it has made one, and the oldest job stays: the others are
cancelled. Where the list is still late then, the next ``submit`` cancels them.

It does not tune parameters and uploads no model. Secrets cannot be given: Vertex AI shows a job's environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleJob, GoogleQuota, GoogleRefused, label
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus, iso, spec_hash
from airflow_provider_sml.cloud.vertex_machines import machine, machine_name, machine_price, machine_spec
from airflow_provider_sml.errors import ConfigurationError

_JOB, _SPEC = "sml_job", "sml_spec"
_STRATEGIES = {"on-demand": "STANDARD", "spot": "SPOT", "flex-start": "FLEX_START"}
_STATES = {
    "QUEUED": JobState.PENDING, "PENDING": JobState.PENDING, "SUCCEEDED": JobState.SUCCEEDED,
    "PARTIALLY_SUCCEEDED": JobState.FAILED, "FAILED": JobState.FAILED, "EXPIRED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}  # fmt: skip
_CAPACITY = ("STOCKOUT", "Resources are insufficient", "RESOURCE_POOL_EXHAUSTED")
#: Codes of google.rpc that a retry does not mend: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED.
_WRONG = (3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class VertexTrainingJob(GoogleJob):
    """A custom job.

    :param image: the container.
    :param output: folder in Cloud Storage; the job's own folder is made below it. The container finds it as
        AIP_MODEL_DIR, and its checkpoints in AIP_CHECKPOINT_DIR, which a job that is made again finds as they were.
    :param machines: machines as ``vertex_machines.machine`` takes them, the preferred one first; the others are taken
        when there is no capacity.
    :param count: machines; the first is the chief.
    :param strategy: ``on-demand``, ``spot``, or ``flex-start``, which queues for machines.
    :param on_demand_last: when no machine was to be had by ``spot`` or ``flex-start``, take the first one on demand.
    :param checkpoint: folder in Cloud Storage for checkpoints, given to the container as SML_CHECKPOINT_DIR; it has to
        use AIP_CHECKPOINT_DIR otherwise.
    :param command: of the container; the image's when empty.
    :param arguments: of that command.
    :param environment: variables of the container; Vertex AI shows them to everyone who may see the job.
    :param max_runtime: seconds of training.
    :param max_wait: seconds of waiting for machines with ``flex-start``; Google's 24 hours when 0.
    :param restart_all: start all machines again when one of them is.
    :param disk_gb: boot disk of each.
    :param service_account: that the container runs as.
    :param network: full name of the network that it is peered with.
    :param kms_key: full name of the Cloud KMS key that encrypts what the job makes.
    """

    image: str
    output: str
    machines: list[Any]
    count: int = 1
    strategy: str = "on-demand"
    on_demand_last: bool = False
    checkpoint: str = ""
    command: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    max_runtime: int = 86_400
    max_wait: int = 0
    restart_all: bool = False
    disk_gb: int = 100
    service_account: str = ""
    network: str = ""
    kms_key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the job, or attach to a try of it; gives the try's id.

        :raises ConfigurationError: when the job cannot be right, or Google Cloud refuses it.
        """
        if secrets:
            raise ConfigurationError(
                "a Vertex AI job cannot be given secrets", expected="a service account that may read Secret Manager",
                found=", ".join(secrets), todo="Vertex AI shows a job's environment to everyone who may see it",
            )  # fmt: skip
        self.check()
        known = self._known()
        found = self._settled(known)
        if found is None:
            found = next((job for job in known if _state(job) == "SUCCEEDED" and self._same(job)), None)
        if found is None:
            made = self._create(self._next_choice(known[0]) if known else 0)
            found = self._settled(self._known()) or made
        return _id(found)

    def status(self, job_id: str) -> JobStatus:
        """Where the job stands; the container's own reason when it failed."""
        job = self._get(job_id)
        name = _state(job)
        state = _STATES.get(name, JobState.RUNNING)
        progress = (f"job: {self.page(job_id)}", f"log: {self.log_page(job_id)}", _told(job))
        if state is JobState.FAILED:
            said = job.error.message or "Vertex AI gave no reason"
            capacity = _lacks_capacity(job)
            wrong = not capacity and job.error.code in _WRONG and "exited with" not in said
            again = capacity and self._next_choice(job) > 0
            return JobStatus(state, f"{said[:1500]} ({self.page(job_id)})", progress, wrong, again=again)
        if state is JobState.CANCELLED:
            return JobStatus(state, "it was cancelled", progress)
        return JobStatus(state, name, progress)

    def result(self, job_id: str) -> dict[str, Any]:
        """What the job made, took and cost at most.

        Vertex AI tells neither how often spot machines were taken away nor the seconds without them, which it does not
        bill. So billable seconds are all from the start to the end, and the cost is the highest there can be.
        """
        job = self._get(job_id)
        pools = job.job_spec.worker_pool_specs
        used, spot = _machine_of(job), job.job_spec.scheduling.strategy.name == "SPOT"
        count = sum(pool.replica_count or 1 for pool in pools)
        seconds = round((job.end_time - job.start_time).total_seconds()) if job.start_time and job.end_time else 0
        hourly, full = machine_price(used, spot, self.prices), machine_price(used, False, self.prices)
        return {
            "job": job_id,
            "model": f"{job.job_spec.base_output_directory.output_uri_prefix.rstrip('/')}/model/",
            "instance": machine_name(used),
            "count": count,
            "spot": spot,
            "started": iso(job.start_time),
            "ended": iso(job.end_time),
            "training_seconds": seconds,
            "billable_seconds": seconds,
            "interruptions": None,
            "savings_percent": round((1 - hourly / full) * 100, 1) if hourly and full else None,
            "cost_usd": None if hourly is None else round(hourly * seconds * count / 3600, 4),
        }

    def cancel(self, job_id: str) -> None:
        """Cancel the job, and every other try of it that still runs; one that has ended stays as it is."""
        running = {_id(job) for job in self._known() if _live(job)}
        for one in sorted({job_id, *running} - {""}):
            self._cancel(one)

    # --- the parts ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what cannot be right before anything is asked of Google Cloud.

        :raises ConfigurationError: naming what is wrong.
        """
        choices = self._machines
        for wrong, expected, found in (
            (not choices, "machines: at least one", "none"),
            (self.strategy not in _STRATEGIES, f"strategy: one of {', '.join(_STRATEGIES)}", self.strategy),
            (not self.output.startswith("gs://"), "output: a folder in Cloud Storage", self.output),
            (bool(self.checkpoint) and not self.checkpoint.startswith("gs://"),
             "checkpoint: a folder in Cloud Storage", self.checkpoint),
            (self.count < 1, "count: 1 or more", self.count),
            (self.max_wait > 0 and self.strategy != "flex-start", "max_wait with strategy flex-start only",
             f"max_wait with {self.strategy}"),
            (self.strategy == "spot" and any(item.get("tpu_topology") for item in choices),
             "no TPU pod with strategy spot, as Vertex AI has none", "a TPU topology"),
        ):  # fmt: skip
            if wrong:
                raise ConfigurationError("the Vertex AI job cannot be made", expected=expected, found=str(found))

    def request(self, choice: int = 0) -> dict[str, Any]:
        """The exact request that creates a try.

        :param choice: which machine of the list it takes.
        """
        described, strategy = self._choices()[choice]
        container: dict[str, Any] = {"image_uri": self.image}
        if self.command:
            container["command"] = list(self.command)
        if self.arguments:
            container["args"] = list(self.arguments)
        variables = dict(self.environment) | ({"SML_CHECKPOINT_DIR": self.checkpoint} if self.checkpoint else {})
        if variables:
            container["env"] = [{"name": key, "value": str(value)} for key, value in variables.items()]
        pool = {
            "machine_spec": machine_spec(described), "container_spec": container,
            "disk_spec": {"boot_disk_size_gb": self.disk_gb},
        }  # fmt: skip
        pools = [pool | {"replica_count": 1}]  # the first pool has exactly one machine
        if self.count > 1:
            pools.append(pool | {"replica_count": self.count - 1})
        scheduling: dict[str, Any] = {"timeout": {"seconds": self.max_runtime}, "strategy": _STRATEGIES[strategy]}
        if self.restart_all:
            scheduling["restart_job_on_worker_restart"] = True
        if strategy == "flex-start" and self.max_wait:
            scheduling["max_wait_duration"] = {"seconds": self.max_wait}
        spec: dict[str, Any] = {
            "worker_pool_specs": pools, "scheduling": scheduling,
            "base_output_directory": {"output_uri_prefix": self.folder},
        }  # fmt: skip
        for key in ("service_account", "network"):
            if getattr(self, key):
                spec[key] = getattr(self, key)
        own = {label(key): label(str(value)) for key, value in self.labels.items()} | {
            _JOB: self._job,
            _SPEC: self.spec,
        }
        job: dict[str, Any] = {"display_name": self.name[:128], "job_spec": spec, "labels": own}
        if self.kms_key:
            job["encryption_spec"] = {"kms_key_name": self.kms_key}
        return {"parent": self.parent, "custom_job": job}

    @property
    def spec(self) -> str:
        """Hash of what decides the model: not of the machines, labels or time limits."""
        decisive = (self.image, self.command, self.arguments, dict(self.environment), self.checkpoint)
        return spec_hash([*decisive, self.output, self.count])

    @property
    def folder(self) -> str:
        """Where the job writes; another specification writes elsewhere, so it finds no checkpoints of this one."""
        return f"{self.output.rstrip('/')}/{self.name}/{self.spec}"

    @property
    def parent(self) -> str:
        """Where its jobs are."""
        return f"projects/{self.project}/locations/{self.region}"

    def page(self, job_id: str) -> str:
        """The job's page in Google's console."""
        place = f"{self.region}/training/{quote(job_id)}/cpu?project={quote(self.project)}"
        return f"https://console.cloud.google.com/vertex-ai/locations/{place}"

    def log_page(self, job_id: str) -> str:
        """The job's log in Cloud Logging."""
        query = quote(f'resource.type="ml_job" resource.labels.job_id="{job_id}"', safe="")
        return f"https://console.cloud.google.com/logs/query;query={query}?project={quote(self.project)}"

    def highest_cost(self) -> float | None:
        """USD when it runs as long as it may, on the first machine on demand."""
        hourly = machine_price(self._machines[0], False, self.prices)
        return None if hourly is None else hourly * self.count * self.max_runtime / 3600

    @cached_property
    def _machines(self) -> list[dict[str, Any]]:
        return [machine(item) for item in self.machines]

    @property
    def _job(self) -> str:
        """The label that all tries have."""
        return f"j{spec_hash(self.name)}"

    def _choices(self) -> list[tuple[dict[str, Any], str]]:
        found = [(item, self.strategy) for item in self._machines]
        last = self.on_demand_last and self.strategy != "on-demand"
        return [*found, (self._machines[0], "on-demand")] if last else found

    def _next_choice(self, job: Any) -> int:
        """The machine that follows the one of a try; 0, the first, after any other failure or the last machine."""
        if _state(job) != "FAILED" or not _lacks_capacity(job):
            return 0
        names = {name: strategy for strategy, name in _STRATEGIES.items()}
        had = (_machine_of(job), names.get(job.job_spec.scheduling.strategy.name, "on-demand"))
        choices = self._choices()
        following = choices.index(had) + 1 if had in choices else 0
        return following if following < len(choices) else 0

    def _same(self, job: Any) -> bool:
        return bool(job.labels.get(_SPEC) == self.spec)

    def _settled(self, known: list[Any]) -> Any:
        """The oldest of the tries that run with this specification; every other one that runs is cancelled."""
        running = [job for job in known if _live(job)]
        kept = next((job for job in reversed(running) if self._same(job)), None)
        for job in running:
            if job is not kept:
                self._cancel(_id(job))
        return kept

    def _create(self, choice: int) -> Any:
        """Make a try, on another machine when a quota refuses the first; gives the try."""
        for number in range(choice, len(self._choices())):
            request = self.request(number)

            def make(client: Any, request: dict[str, Any] = request) -> Any:
                # It is asked again when a reply was lost, and each creation makes another job: look first.
                there = [job for job in self._list(client) if _live(job) and self._same(job)]
                return there[-1] if there else client.create_custom_job(
                    request=request, timeout=CALL_SECONDS, retry=None
                )  # fmt: skip

            try:
                return self.ask("vertex_jobs", "aiplatform.customJobs.create", make)
            except GoogleQuota:
                if number + 1 >= len(self._choices()):
                    raise
        raise AssertionError("the last machine returns or raises")

    def _list(self, client: Any) -> list[Any]:
        request = {"parent": self.parent, "filter": f"labels.{_JOB}={self._job}", "page_size": 100}
        return list(client.list_custom_jobs(request=request, timeout=CALL_SECONDS, retry=None))

    def _known(self) -> list[Any]:
        """The tries of this name, the newest first."""
        found = self.ask("vertex_jobs", "aiplatform.customJobs.list", self._list)
        return sorted(found, key=lambda job: (job.create_time, job.name), reverse=True)

    def _get(self, job_id: str) -> Any:
        return self._call("get", "get_custom_job", job_id)

    def _cancel(self, job_id: str) -> None:
        try:
            self._call("cancel", "cancel_custom_job", job_id)
        except GoogleRefused:
            if _live(self._get(job_id)):
                raise

    def _call(self, action: str, method: str, job_id: str) -> Any:
        request = {"name": f"{self.parent}/customJobs/{job_id}"}
        question: Callable[[Any], Any] = lambda client: getattr(client, method)(  # noqa: E731
            request=request, timeout=CALL_SECONDS, retry=None
        )
        return self.ask("vertex_jobs", f"aiplatform.customJobs.{action}", question)


_FINAL = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED")


def _state(job: Any) -> str:
    return str(job.state.name.removeprefix("JOB_STATE_"))


def _live(job: Any) -> bool:
    return _state(job) not in (*_FINAL, "CANCELLING")


def _id(job: Any) -> str:
    return str(job.name.rpartition("/")[2])


def _told(job: Any) -> str:
    """A line of progress, the same until the state changes."""
    return f"{iso(job.update_time)} {_state(job)}"


def _lacks_capacity(job: Any) -> bool:
    return any(word in job.error.message for word in _CAPACITY)


def _machine_of(job: Any) -> dict[str, Any]:
    """The machine of a job, as ``machine`` describes it."""
    spec = job.job_spec.worker_pool_specs[0].machine_spec
    accelerator = spec.accelerator_type.name if spec.accelerator_count else ""
    described = {"type": spec.machine_type, "accelerator": accelerator, "accelerator_count": spec.accelerator_count,
                 "tpu_topology": spec.tpu_topology}  # fmt: skip
    return {key: value for key, value in described.items() if value}
