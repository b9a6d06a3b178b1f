"""Vertex AI's custom jobs: their states with and without spot machines, and containers that really run."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.cloud import aiplatform_v1
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from airflow_provider_sml.cloud.vertex_machines import machine_name, machine_price
from airflow_provider_sml.testing.core import Behaviour, Timeline
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment
from airflow_provider_sml.testing.google import vertex_rules as rules
from airflow_provider_sml.testing.google.errors import GoogleError, invalid
from airflow_provider_sml.testing.google.operations import LongRunning, Outcome

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

_API = "https://cloud.google.com/vertex-ai/docs/reference/rpc/google.cloud.aiplatform.v1"
_LIFE = "https://cloud.google.com/vertex-ai/docs/training/understanding-training-service"
_SPOT = "https://cloud.google.com/vertex-ai/docs/training/use-spot-vms"
_SAMPLES = "https://github.com/GoogleCloudPlatform/vertex-ai-samples"
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_STOCKOUT = (
    "Resources are insufficient in region: {region}. Please try a different region or use a different accelerator."
)
_EXIT = "The replica {replica} exited with a non-zero status of {code}. Termination reason: Error. \n{log}"
_LOG_TAIL = 2000


@dataclass
class FakeJob:
    """A custom job.

    :param message: what it was made with, and its name.
    :param created: seconds since the epoch.
    :param timeline: of its state, without ``JOB_STATE_``; the messages are its error.
    :param code: of its error: number of ``google.rpc.Code``.
    :param preemptions: how often a container that really runs is still to lose its machine.
    :param attempts: how often its containers were started.
    :param processes: the containers while they run, by the name of their replica.
    """

    message: aiplatform_v1.CustomJob
    created: float
    timeline: Timeline
    code: int = 0
    preemptions: int = 0
    attempts: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def spec(self) -> aiplatform_v1.CustomJobSpec:
        """What it runs."""
        return self.message.job_spec

    @property
    def region(self) -> str:
        """Where it runs."""
        return str(self.message.name.split("/")[3])

    @property
    def spot(self) -> bool:
        """Whether its machines can be taken away."""
        return self.spec.scheduling.strategy.name in ("SPOT", "LOW_COST")


class CustomJobs:
    """``google.cloud.aiplatform.v1.JobService``, as far as custom jobs go.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.aiplatform_v1.services.job_service.transports.grpc.JobServiceGrpcTransport"
    QUOTA = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_cpus"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("vertex", "A custom job has no id of the client's choice: every creation makes another job.",
                  DOCUMENTED, f"{_API}#createcustomjobrequest"),
        Behaviour("vertex", "States: QUEUED, PENDING, RUNNING once all workers are there, and SUCCEEDED, FAILED or "
                  "CANCELLED.", DOCUMENTED, _LIFE),
        Behaviour("vertex", "A cancelled job has the error CANCELLED (1); on its way there it is CANCELLING.",
                  DOCUMENTED, f"{_API}#jobservice"),
        Behaviour("vertex", "Cancelling or deleting a job in an unfit state is FAILED_PRECONDITION.", ASSUMED,
                  "AIP-136 on methods that do not fit the state of a resource"),
        Behaviour("vertex", "A spot job whose machines are taken away is restarted up to six times, then it fails with "
                  "a STOCKOUT error.", DOCUMENTED, _SPOT),
        Behaviour("vertex", "Queued and preempted time is not billed.", DOCUMENTED, _SPOT),
        Behaviour("vertex", "While it waits for machines again a preempted job is PENDING; it waits 120 s.", ASSUMED,
                  "no state of its own is documented, and the API counts no preemptions"),
        Behaviour("vertex", "A container that writes to AIP_CHECKPOINT_DIR goes on from there; without "
                  "base_output_directory it starts anew.", DOCUMENTED, f"{_API}#customjobspec"),
        Behaviour("vertex", "No capacity ends a job FAILED: Resources are insufficient in region; of spot machines the "
                  "message begins with STOCKOUT.", REPORTED, "https://github.com/openreview/openreview-expertise/issues/401"),
        Behaviour("vertex", "FLEX_START waits PENDING for max_wait_duration (24 h when not given) before it fails for "
                  "want of capacity.", DOCUMENTED, f"{_API}#scheduling"),
        Behaviour("vertex", "A quota that is used up at creation is RESOURCE_EXHAUSTED: The following quota metrics "
                  "exceed quota limits.", REPORTED, f"{_SAMPLES}/issues/3479"),
        Behaviour("vertex", "A container that fails ends the job with code 3 and the end of its log.", REPORTED,
                  f"{_SAMPLES}/pull/1504"),
        Behaviour("vertex", "A container that fails is not started again first.", ASSUMED,
                  "the service restarts workers for errors that it takes to pass; which these are is not stated"),
        Behaviour("vertex", "Past scheduling.timeout (7 days when not given) a job is FAILED with code 4.", ASSUMED,
                  "the limit is documented, its end is not"),
        Behaviour("vertex", "CLUSTER_SPEC tells each container of the worker pools and of its own place among them.",
                  DOCUMENTED, "https://cloud.google.com/vertex-ai/docs/training/distributed-training"),
        Behaviour("vertex", "A replica that fails ends the job and all of its replicas; one that is preempted lets all "
                  "of them start again.", ASSUMED, "the latter is restart_job_on_worker_restart; without it the "
                  "preempted one starts again alone, which a training that meets cannot use"),
        Behaviour("vertex", "The first worker pool has exactly one replica.", DOCUMENTED,
                  "https://cloud.google.com/vertex-ai/docs/training/distributed-training"),
        Behaviour("vertex", "Spot TPU pods are refused.", DOCUMENTED, _SPOT),
        Behaviour("vertex", "QUEUED takes 5 s, PENDING 90 s.", ASSUMED, "round figures in the range that users see"),
    )  # fmt: skip

    #: Virtual seconds that training takes when no container runs; set it before a job is made.
    training_seconds = 600.0
    #: Seconds between checkpoints: what an interruption loses at most.
    checkpoint_seconds = 60.0
    #: Starts the container of a job for real, from the job and its environment.
    container: Callable[[FakeJob, dict[str, str]], subprocess.Popen[bytes]] | None = None
    #: Whether a container that runs loses its spot machine now, where that fault was asked for: takes the job and the
    #: real seconds that the container has run.
    preempt_when: Callable[[FakeJob, float], bool] = staticmethod(lambda job, seconds: seconds >= 1.0)

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud
        self.jobs: dict[str, FakeJob] = {}

    def close(self) -> None:
        """End the containers."""
        for job in self.jobs.values():
            for process in job.processes.values():
                _end(process)

    # --- the methods ----------------------------------------------------------------------------------------------

    def create_custom_job(self, request: aiplatform_v1.CreateCustomJobRequest) -> aiplatform_v1.CustomJob:
        parent = rules.location(request.parent)
        _check(request.custom_job)
        now = self.cloud.clock.now()
        message = aiplatform_v1.CustomJob(request.custom_job)
        message.name = f"{parent}/customJobs/{uuid.uuid4().int % 10**19}"
        job = FakeJob(message, now, Timeline(now, [("QUEUED", 0, "")]))
        job.timeline = Timeline(now, self._plan(job))
        self.jobs[message.name] = job
        self._bill(job)
        return self._message(job)

    def get_custom_job(self, request: aiplatform_v1.GetCustomJobRequest) -> aiplatform_v1.CustomJob:
        return self._message(self._job(request.name))

    def list_custom_jobs(self, request: aiplatform_v1.ListCustomJobsRequest) -> aiplatform_v1.ListCustomJobsResponse:
        parent = rules.location(request.parent)
        found = [self._message(job) for name, job in self.jobs.items() if name.startswith(f"{parent}/")]
        found.reverse()  # the newest first
        page, token = rules.listed(
            found, request,
            lambda job: {"display_name": job.display_name, "state": job.state.name,
                         "create_time": job.create_time.strftime("%Y-%m-%dT%H:%M:%SZ")},
        )  # fmt: skip
        return aiplatform_v1.ListCustomJobsResponse(custom_jobs=page, next_page_token=token)

    def cancel_custom_job(self, request: aiplatform_v1.CancelCustomJobRequest) -> empty_pb2.Empty:
        job, now = self._job(request.name), self.cloud.clock.now()
        state = job.timeline.at(now).state
        if state in FINAL:
            raise GoogleError("FAILED_PRECONDITION", f"CustomJob {job.message.name} has ended: JOB_STATE_{state}")
        if state != "CANCELLING":
            job.code = 1
            job.timeline.change(now, [("CANCELLING", 30, ""), ("CANCELLED", 0, "CANCELED")])
            for process in job.processes.values():
                process.terminate()
        return empty_pb2.Empty()

    def delete_custom_job(self, request: aiplatform_v1.DeleteCustomJobRequest) -> operations_pb2.Operation:
        job = self._job(request.name)
        state = job.timeline.at(self.cloud.clock.now()).state
        if state not in FINAL:
            raise GoogleError("FAILED_PRECONDITION", f"CustomJob {job.message.name} is in JOB_STATE_{state}")
        del self.jobs[job.message.name]
        done = LongRunning(aiplatform_v1.DeleteOperationMetadata, lambda: Outcome(empty_pb2.Empty()), lambda: None)
        return self.cloud.operations.message(self.cloud.operations.start(job.message.name, done))

    # --- what a job is --------------------------------------------------------------------------------------------

    def _job(self, name: str) -> FakeJob:
        found = self.jobs.get(rules.resource(name, "customJobs"))
        if found is None:
            raise rules.missing(name)
        self._work(found)
        return found

    def _message(self, job: FakeJob) -> aiplatform_v1.CustomJob:
        now = self.cloud.clock.now()
        phase = job.timeline.at(now)
        found: Any = aiplatform_v1.CustomJob(job.message)
        found.state = f"JOB_STATE_{phase.state}"
        found.create_time, found.update_time = moment(job.created), moment(phase.start)
        if (began := job.timeline.began(("RUNNING",), now)) is not None:
            found.start_time = moment(began)
        if phase.state in FINAL:
            found.end_time = moment(phase.start)
        if phase.state in ("FAILED", "CANCELLED"):
            found.error = {"code": job.code, "message": phase.message}
        return found

    # --- its life -------------------------------------------------------------------------------------------------

    def _plan(self, job: FakeJob) -> list[tuple[str, float, str]]:
        """The phases that the job will go through, the faults that meet it included."""
        faults, name, scheduling = self.cloud.faults, job.message.display_name, job.spec.scheduling
        slow = faults.take(["slow"], "CreateCustomJob", name)
        waits = 90 + (float(slow.detail.get("seconds", 1800)) if slow else 0)
        steps: list[tuple[str, float, str]] = [("QUEUED", 5, "")]
        if short := faults.take(["no_capacity"], "CreateCustomJob", name):
            job.code = 8
            if scheduling.strategy.name == "FLEX_START":
                longest: Any = scheduling.max_wait_duration
                waits = longest.total_seconds() if longest else 24 * 3600.0
            return [*steps, ("PENDING", waits, ""), ("FAILED", 0, str(short.detail.get("reason", self._short(job))))]
        steps.append(("PENDING", waits, ""))
        interrupt = faults.take(["interrupt"], "CreateCustomJob", name) if job.spot else None
        times = int(interrupt.detail.get("count", 1)) if interrupt else 0
        if self.container is not None:
            job.preemptions = times
            return [*steps, ("RUNNING", 0, "")]
        if fail := faults.take(["fail"], "CreateCustomJob", name):
            job.code = 3
            said = str(
                fail.detail.get(
                    "reason", _EXIT.format(replica="workerpool0-0", code=1, log="ValueError: no such column")
                )
            )
            return [*steps, ("RUNNING", self.training_seconds / 2, ""), ("FAILED", 0, said)]
        steps += self._train(job, times)
        return self._in_time(job, steps)

    def _train(self, job: FakeJob, times: int) -> list[tuple[str, float, str]]:
        """Training, cut by preemptions into equal parts."""
        lasts = "base_output_directory" in job.spec
        part, left = self.training_seconds / (times + 1), self.training_seconds
        steps: list[tuple[str, float, str]] = []
        for number in range(times):
            steps.append(("RUNNING", part, ""))
            if number == rules.MOST_RESTARTS:
                job.code = 8
                return [*steps, ("FAILED", 0, self._short(job))]
            steps.append(("PENDING", 120.0, ""))
            if lasts:
                left -= part - min(self.checkpoint_seconds, part) / 2  # half an interval is lost on average
        return [*steps, ("RUNNING", left, ""), ("SUCCEEDED", 0, "")]

    def _in_time(self, job: FakeJob, steps: list[tuple[str, float, str]]) -> list[tuple[str, float, str]]:
        """The steps, cut where the job has run as long as it may."""
        given: Any = job.spec.scheduling.timeout
        left = given.total_seconds() if given else 7 * 86400.0
        for number, (state, seconds, _) in enumerate(steps):
            if state == "RUNNING" and seconds > left:
                job.code = 4
                said = f"The job was stopped: it ran longer than its timeout of {given}."
                return [*steps[:number], (state, left, ""), ("FAILED", 0, said)]
            left -= seconds if state == "RUNNING" else 0
        return steps

    def _short(self, job: FakeJob) -> str:
        return ("STOCKOUT: " if job.spot else "") + _STOCKOUT.format(region=job.region)

    def _work(self, job: FakeJob) -> None:
        """Run the containers of a job for real once it is RUNNING; the job ends when they do."""
        start, now = self.container, self.cloud.clock.now()
        if start is None or job.processes or job.timeline.at(now).state != "RUNNING":
            return
        job.attempts += 1
        job.processes = {f"{pool}-{index}": start(job, environment(job, pool, index)) for pool, index in replicas(job)}
        threading.Thread(target=self._watch, args=(job, dict(job.processes)), daemon=True).start()

    def _watch(self, job: FakeJob, processes: dict[str, subprocess.Popen[bytes]]) -> None:
        """Wait for the containers, or take their machines away; the first failure ends all."""
        began, logs, failed = time.monotonic(), dict[str, bytes](), ""

        def read(name: str) -> None:
            logs[name] = processes[name].communicate()[0] or b""

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in processes]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            readers[0].join(0.05)
            time.sleep(0.01)
            running = any(process.poll() is None for process in processes.values())
            failed = failed or next((name for name, one in processes.items() if one.poll()), "")
            lost = running and not failed and job.preemptions and self.preempt_when(job, time.monotonic() - began)
            if failed or lost:
                for process in processes.values():
                    _end(process)
            if lost:
                job.preemptions -= 1
                self._preempted(job)
                return
        failed = failed or next((name for name, one in processes.items() if one.poll()), "")
        now = self.cloud.clock.now()
        if job.timeline.at(now).state == "RUNNING":
            log = logs[failed].decode(errors="replace")[-_LOG_TAIL:] if failed else ""
            said = _EXIT.format(replica=failed, code=processes[failed].returncode, log=log) if failed else ""
            job.code = 3 if failed else 0
            job.timeline.change(now, [("FAILED", 0, said) if failed else ("SUCCEEDED", 0, "")])

    def _preempted(self, job: FakeJob) -> None:
        now = self.cloud.clock.now()
        if job.timeline.at(now).state != "RUNNING":
            return
        if job.attempts > rules.MOST_RESTARTS:
            job.code = 8
            job.timeline.change(now, [("FAILED", 0, self._short(job))])
        else:
            job.timeline.change(now, [("PENDING", 120, ""), ("RUNNING", 0, "")])
            job.processes = {}

    def _bill(self, job: FakeJob) -> None:
        for number, pool in enumerate(job.spec.worker_pool_specs):
            spec = pool.machine_spec
            used: dict[str, Any] = {"type": spec.machine_type}
            if spec.accelerator_count:
                used |= {"accelerator": spec.accelerator_type.name, "accelerator_count": spec.accelerator_count}
            count = pool.replica_count or 1
            self.cloud.bill.meter(
                job.message.name,
                f"{'spot ' if job.spot else ''}training {count} x {machine_name(used)}, pool {number}",
                machine_price(used, job.spot),
                lambda now, count=count: job.timeline.seconds(("RUNNING", "CANCELLING"), now) * count / 3600,  # type: ignore[misc]
                lambda now: job.timeline.at(now).state not in FINAL,
            )  # fmt: skip


def replicas(job: FakeJob) -> list[tuple[str, int]]:
    """The machines of a job: worker pool and number in it."""
    pools = enumerate(job.spec.worker_pool_specs)
    return [(f"workerpool{number}", index) for number, pool in pools for index in range(pool.replica_count or 1)]


def environment(job: FakeJob, pool: str = "workerpool0", index: int = 0) -> dict[str, str]:
    """What Vertex AI puts into the environment of a container.

    :param pool: its worker pool.
    :param index: its number in that pool. The machines are addresses of the loopback interface.
    """
    name = job.message.name
    found = {"CLOUD_ML_PROJECT_ID": name.split("/")[1], "CLOUD_ML_JOB_ID": name.rpartition("/")[2],
             "CLOUD_ML_REGION": job.region}  # fmt: skip
    base = job.spec.base_output_directory.output_uri_prefix.rstrip("/")
    if base:
        found |= {"AIP_MODEL_DIR": f"{base}/model/", "AIP_CHECKPOINT_DIR": f"{base}/checkpoints/",
                  "AIP_TENSORBOARD_LOG_DIR": f"{base}/logs/"}  # fmt: skip
    cluster: dict[str, list[str]] = {}
    for number, (name, _) in enumerate(replicas(job)):
        cluster.setdefault(name, []).append(f"127.0.0.{number + 1}:2222")
    task = {"type": pool, "index": index, "trial": ""}
    found["CLUSTER_SPEC"] = json.dumps({"cluster": cluster, "environment": "cloud", "task": task, "job": ""})
    own = job.spec.worker_pool_specs[int(pool.removeprefix("workerpool"))].container_spec.env
    return found | {item.name: item.value for item in own}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a container: ten seconds after it was told to, at the latest."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _check(job: Any) -> None:
    """What the service refuses beyond what is marked as required."""
    rules.check_common(job)
    spec, scheduling = job.job_spec, job.job_spec.scheduling
    for number, pool in enumerate(spec.worker_pool_specs):
        what = f"worker_pool_specs[{number}]"
        if not pool.machine_spec.machine_type and not spec.persistent_resource_id:
            raise invalid(f"{what}.machine_spec.machine_type is required")
        rules.check_machine(pool.machine_spec, what)
        if not pool.container_spec.image_uri and not pool.python_package_spec.executor_image_uri:
            raise invalid(f"{what} needs a container_spec or a python_package_spec")
        if scheduling.strategy.name == "SPOT" and pool.machine_spec.tpu_topology:
            raise invalid("Spot VMs are not supported with TPU pods")
    if (spec.worker_pool_specs[0].replica_count or 1) != 1:
        raise invalid("The first worker pool must have exactly one replica")
    prefix = spec.base_output_directory.output_uri_prefix
    if "base_output_directory" in spec and not prefix.startswith("gs://"):
        raise invalid(f"Invalid Cloud Storage URI: {prefix}")
    if scheduling.max_wait_duration and scheduling.strategy.name != "FLEX_START":
        raise invalid("max_wait_duration may only be given with FLEX_START")
