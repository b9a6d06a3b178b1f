"""SageMaker's training jobs: their states with and without spot machines, their seconds, their failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.testing.aws.errors import AwsError, invalid
from airflow_provider_sml.testing.core import Behaviour, Timeline
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED, REPORTED
from airflow_provider_sml.testing.core.clock import moment

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

_API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_"
_SPOT = "https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html"
#: SecondaryStatus -> TrainingJobStatus of those that are not InProgress.
_STATUS = {
    "Completed": "Completed", "Failed": "Failed", "Stopping": "Stopping", "Stopped": "Stopped",
    "MaxRuntimeExceeded": "Stopped", "MaxWaitTimeExceeded": "Stopped",
}  # fmt: skip
#: The states whose seconds count as training.
_USED = ("Downloading", "Training", "Uploading")
_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


@dataclass
class TrainingJob:
    """A training job.

    :param request: what it was created with.
    :param created: seconds since the epoch.
    :param timeline: of its secondary status.
    :param discount: share of the training seconds that is not billed.
    :param reason: why it failed.
    """

    request: dict[str, Any]
    created: float
    timeline: Timeline
    discount: float
    reason: str = ""
    tags: list[dict[str, str]] = field(default_factory=list)
    ran: bool = False


class Training:
    """The operations on training jobs.

    :param cloud: the account.
    """

    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("sagemaker", "A training job's name is taken for ever; the same name again is ResourceInUse.",
                  DOCUMENTED, f"{_API}CreateTrainingJob.html"),
        Behaviour("sagemaker", "Managed spot needs MaxWaitTimeInSeconds, at least MaxRuntimeInSeconds.",
                  DOCUMENTED, f"{_API}StoppingCondition.html"),
        Behaviour("sagemaker", "A spot job that is interrupted goes Interrupted, Restarting, Downloading, Training.",
                  DOCUMENTED, _SPOT),
        Behaviour("sagemaker", "With a checkpoint location it goes on from its last checkpoint, without one from the "
                  "start.", DOCUMENTED, _SPOT),
        Behaviour("sagemaker", "Savings of spot are (1 - BillableTimeInSeconds / TrainingTimeInSeconds) x 100.",
                  DOCUMENTED, _SPOT),
        Behaviour("sagemaker", "Billable seconds of spot are a fixed share of the training seconds; interruptions "
                  "count in neither.", ASSUMED, "the share follows spot prices, which no document states"),
        Behaviour("sagemaker", "A job that is not there is ValidationException: Requested resource not found.",
                  REPORTED, "https://github.com/apache/airflow: SageMakerBaseOperator relies on it"),
        Behaviour("sagemaker", "No capacity ends a job Failed with CapacityError in FailureReason.",
                  REPORTED, "https://repost.aws: CapacityError: Unable to provision requested ML compute capacity"),
        Behaviour("sagemaker", "Past MaxRuntimeInSeconds a job is Stopped with MaxRuntimeExceeded, past "
                  "MaxWaitTimeInSeconds with MaxWaitTimeExceeded.", DOCUMENTED, f"{_API}DescribeTrainingJob.html"),
        Behaviour("sagemaker", "Stopping takes 120 s at most, as the container gets that long.", DOCUMENTED,
                  f"{_API}StopTrainingJob.html"),
        Behaviour("sagemaker", "ModelArtifacts names the place of the model from the start.", ASSUMED,
                  "the model of the API has it as required"),
        Behaviour("sagemaker", "Stopping a job that has ended is a ValidationException.", REPORTED,
                  "the message names the status that the job is in"),
        Behaviour("sagemaker", "Start-up, download and upload take 10, 60, 30 and 20 s.", ASSUMED,
                  "round figures in the range that users see"),
    )  # fmt: skip

    #: Seconds that training takes; set it before a job is created.
    training_seconds = 600.0
    #: Share of the training seconds that spot does not bill.
    spot_discount = 0.7
    #: Seconds between checkpoints: what an interruption loses at most.
    checkpoint_seconds = 60.0
    #: Runs the training for real when the job gets to it: takes the request; an exception fails the job.
    train: Callable[[dict[str, Any]], None] | None = None

    def __init__(self, cloud: FakeAws) -> None:
        super().__init__(cloud)  # type: ignore[call-arg]  # the other half of SageMaker
        self.cloud = cloud
        self.jobs: dict[str, TrainingJob] = {}

    # --- operations -----------------------------------------------------------------------------------------------

    def create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        arn = self.cloud.arn("sagemaker", f"training-job/{name}")
        if name in self.jobs:
            raise AwsError(
                "ResourceInUse",
                "Job name must be unique within an AWS account and region, "
                f"and a job with this name already exists ({arn})",
            )
        _check(request)
        now = self.cloud.clock.now()
        spot = request.get("EnableManagedSpotTraining", False)
        job = TrainingJob(request, now, Timeline(now, [("Starting", 0, "")]), self.spot_discount if spot else 0.0)
        job.timeline = Timeline(now, self._plan(job))
        job.tags = list(request.get("Tags", []))
        self.jobs[name] = job
        resources = request["ResourceConfig"]
        kind, count = resources.get("InstanceType", "ml.m5.large"), resources.get("InstanceCount", 1)
        self.cloud.bill.meter(
            name, f"{'spot ' if spot else ''}training {count} x {kind}", price(kind),
            lambda now: self._seconds(job, now)[1] * count / 3600,
            lambda now: job.timeline.at(now).state not in _STATUS,
        )  # fmt: skip
        self.cloud.logs.write(
            "/aws/sagemaker/TrainingJobs", f"{name}/algo-1-{int(now)}", now, f"starting {name} on {kind}"
        )
        return {"TrainingJobArn": arn}

    def describe_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request["TrainingJobName"])
        now = self.cloud.clock.now()
        self._run(job, now)
        phase = job.timeline.at(now)
        kept = (
            "TrainingJobName", "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig",
            "OutputDataConfig", "ResourceConfig", "VpcConfig", "StoppingCondition", "CheckpointConfig", "Environment",
        )  # fmt: skip
        found = {key: job.request[key] for key in kept if key in job.request}
        base = job.request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        found |= {
            "TrainingJobArn": self.cloud.arn("sagemaker", f"training-job/{job.request['TrainingJobName']}"),
            "TrainingJobStatus": _STATUS.get(phase.state, "InProgress"),
            "SecondaryStatus": phase.state,
            "CreationTime": moment(job.created),
            "LastModifiedTime": moment(phase.start),
            "ModelArtifacts": {"S3ModelArtifacts": f"{base}/{job.request['TrainingJobName']}/output/model.tar.gz"},
            "EnableNetworkIsolation": job.request.get("EnableNetworkIsolation", False),
            "EnableInterContainerTrafficEncryption": job.request.get("EnableInterContainerTrafficEncryption", False),
            "EnableManagedSpotTraining": job.request.get("EnableManagedSpotTraining", False),
            "SecondaryStatusTransitions": [
                {"Status": past.state, "StartTime": moment(past.start), "StatusMessage": past.message or past.state}
                | ({"EndTime": moment(past.end)} if past.end <= now else {})
                for past in job.timeline.history(now)
            ],
        }
        if (began := job.timeline.began(("Downloading",), now)) is not None:
            found["TrainingStartTime"] = moment(began)
        if phase.state in _STATUS and phase.state != "Stopping":
            found["TrainingEndTime"] = moment(phase.start)
            found["TrainingTimeInSeconds"], found["BillableTimeInSeconds"] = (
                max(1, round(seconds)) for seconds in self._seconds(job, now)
            )
        if phase.state == "Failed":
            found["FailureReason"] = job.reason
        return found

    def stop_training_job(self, request: dict[str, Any]) -> None:
        job, now = self._job(request["TrainingJobName"]), self.cloud.clock.now()
        status = _STATUS.get(job.timeline.at(now).state, "InProgress")
        if status != "InProgress":
            raise invalid(
                f"The request was rejected because the training job is in status {status}. "
                "Only jobs that are InProgress can be stopped."
            )
        job.timeline.change(
            now, [("Stopping", 60, "Stopping the training job"), ("Stopped", 0, "Training job stopped")]
        )

    def list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        now, found = self.cloud.clock.now(), []
        for name, job in sorted(self.jobs.items(), key=lambda item: -item[1].created):
            phase = job.timeline.at(now)
            status = _STATUS.get(phase.state, "InProgress")
            wanted = request.get("NameContains", "") in name and request.get("StatusEquals", status) == status
            if wanted:
                found.append(
                    {
                        "TrainingJobName": name, "TrainingJobArn": self.cloud.arn("sagemaker", f"training-job/{name}"),
                        "CreationTime": moment(job.created), "LastModifiedTime": moment(phase.start),
                        "TrainingJobStatus": status,
                    }
                )  # fmt: skip
        return {"TrainingJobSummaries": found[: request.get("MaxResults", 100)]}

    # --- the parts ------------------------------------------------------------------------------------------------

    def _job(self, name: str) -> TrainingJob:
        if name not in self.jobs:
            raise invalid("Requested resource not found.")
        return self.jobs[name]

    def job_tags(self, name: str) -> list[dict[str, str]]:
        """Tags of a job."""
        return self._job(name).tags

    def _plan(self, job: TrainingJob) -> list[tuple[str, float, str]]:
        """The phases that the job will go through, the faults that meet it included."""
        faults, name = self.cloud.faults, job.request["TrainingJobName"]
        spot = job.request.get("EnableManagedSpotTraining", False)
        slow = faults.take(["slow"], "CreateTrainingJob", name)
        pending = 60 + (float(slow.detail.get("seconds", 1800)) if slow else 0)
        steps: list[tuple[str, float, str]] = [
            ("Starting", 10, "Starting the training job"),
            ("Pending", pending, "Preparing the instances for training"),
        ]
        if faults.take(["no_capacity"], "CreateTrainingJob", name):
            job.reason = _CAPACITY
            return [*steps, ("Failed", 0, f"Training job failed: {_CAPACITY}")]
        fail = faults.take(["fail"], "CreateTrainingJob", name)
        interrupt = faults.take(["interrupt"], "CreateTrainingJob", name) if spot else None
        times = int(interrupt.detail.get("count", 1)) if interrupt else 0
        steps += self._train(times, "CheckpointConfig" in job.request)
        if fail:
            job.reason = str(fail.detail.get("reason", "AlgorithmError: ExecuteUserScriptError: ExitCode 1"))
            steps.append(("Failed", 0, f"Training job failed: {job.reason}"))
        else:
            steps.append(("Uploading", 20, "Uploading generated training model"))
            steps.append(("Completed", 0, "Training job completed"))
        return _stopped_in_time(steps, job.request["StoppingCondition"])

    def _train(self, times: int, checkpoints: bool) -> list[tuple[str, float, str]]:
        """Training, cut by interruptions into equal parts."""
        part = self.training_seconds / (times + 1)
        steps, left = [("Downloading", 30.0, "Downloading the training image")], self.training_seconds
        for _ in range(times):
            steps += [
                ("Training", part, "Training image download completed. Training in progress."),
                ("Interrupted", 120.0, "Training job interrupted; waiting for spot capacity"),
                ("Restarting", 30.0, "Restarting the training job"),
                ("Downloading", 30.0, "Downloading the training image"),
            ]
            if checkpoints:
                left -= part - min(self.checkpoint_seconds, part) / 2  # half an interval is lost on average
        return [*steps, ("Training", left, "Training image download completed. Training in progress.")]

    def _seconds(self, job: TrainingJob, now: float) -> tuple[float, float]:
        """Training seconds and billable seconds."""
        used = job.timeline.seconds(_USED, now)
        return used, used * (1 - job.discount)

    def _run(self, job: TrainingJob, now: float) -> None:
        """Train for real, once, when the job has got to the upload."""
        if self.train is None or job.ran or job.timeline.began(("Uploading",), now) is None:
            return
        job.ran = True
        try:
            self.train(job.request)
        except Exception as error:
            job.reason = f"AlgorithmError: {type(error).__name__}: {error}"[:1024]
            job.timeline.change(now, [("Failed", 0, f"Training job failed: {job.reason}"[:1024])])


def _check(request: dict[str, Any]) -> None:
    """What the service refuses beyond its model."""
    algorithm = request.get("AlgorithmSpecification", {})
    if bool(algorithm.get("TrainingImage")) == bool(algorithm.get("AlgorithmName")):
        raise invalid("You must specify either an algorithm name or a training image")
    if "ResourceConfig" not in request or "StoppingCondition" not in request:
        raise invalid("ResourceConfig and StoppingCondition are required")
    stopping = request["StoppingCondition"]
    longest, wait = stopping.get("MaxRuntimeInSeconds", 86400), stopping.get("MaxWaitTimeInSeconds")
    if not request.get("EnableManagedSpotTraining", False):
        if wait is not None:
            raise invalid("MaxWaitTimeInSeconds may only be given when EnableManagedSpotTraining is true")
    elif wait is None or wait < longest:
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to "
            f"MaxRuntimeInSeconds ({longest})"
        )


def _stopped_in_time(steps: list[tuple[str, float, str]], stopping: dict[str, int]) -> list[tuple[str, float, str]]:
    """The steps, cut where the job has trained, or waited and trained, as long as it may."""
    train, wait = stopping.get("MaxRuntimeInSeconds", 86400), stopping.get("MaxWaitTimeInSeconds", float("inf"))
    kept: list[tuple[str, float, str]] = []
    trained = passed = 0.0
    for state, seconds, message in steps:
        for over, limit, spent in (
            ("MaxRuntimeExceeded", train, trained if state == "Training" else float("-inf")),
            ("MaxWaitTimeExceeded", wait, passed),
        ):
            if spent + seconds > limit:
                return [*kept, (state, limit - spent, message), (over, 0, f"Training job stopped: {over}")]
        kept.append((state, seconds, message))
        passed += seconds
        trained += seconds if state == "Training" else 0
    return kept
