"""SageMaker training jobs: managed spot with checkpoints, other machines when there are none, a small result.

A job's name can be used once for ever, so the tries of one task are numbered: NAME, NAME-2, NAME-3. ``submit`` walks
them: it attaches to one that runs, takes one that completed with the same specification, and starts the next number
otherwise. A job that failed for want of capacity asks to be submitted again, on the next machine of its list.

It does not tune parameters and runs no processing jobs. Secrets cannot be given: SageMaker shows a job's environment.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_sml.cloud.aws import AwsJob, AwsQuota, AwsRefused
from airflow_provider_sml.cloud.prices import estimate
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus, iso, spec_hash
from airflow_provider_sml.cloud.source_archive import pack
from airflow_provider_sml.errors import ConfigurationError, JobError

#: Names that ``job_name`` makes for SageMaker leave room for the number of the try.
NAME_LIMIT = 59
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
SPEC = "SML_SPEC_HASH"
_CAPACITY = ("CapacityError", "InsufficientInstanceCapacity", "Insufficient capacity")
_MOST_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class SageMakerTrainingJob(AwsJob):
    """A training job.

    :param image: the container.
    :param role: ARN of the role that it runs as.
    :param output: S3 folder of the model.
    :param instances: machine types, the preferred one first; the others are taken when there is no capacity.
    :param count: machines.
    :param volume_gb: disk of each.
    :param inputs: S3 folder of each channel.
    :param hyperparameters: given to the container as text.
    :param environment: variables of the container; AWS shows them to everyone who may describe the job.
    :param entrypoint: command of the container; the image's when empty.
    :param arguments: of that command.
    :param script: script mode of SageMaker's own images, XGBoost's among them: a folder of this machine with the
        training code, which is put below ``output``, or the S3 address of its tar.gz.
    :param entry: the file of ``script`` that is run; the image hands it the hyperparameters as arguments.
    :param spot: use spot machines; needs ``checkpoint``.
    :param on_demand_last: when no spot machine was to be had, take the first type on demand.
    :param checkpoint: S3 folder of the checkpoints.
    :param max_runtime: seconds of training.
    :param max_wait: seconds of waiting for spot and training; twice ``max_runtime`` when 0.
    :param kms_key: encrypts the output and the disks.
    :param subnets: of the VPC that it runs in.
    :param security_groups: in that VPC.
    :param network_isolation: the container reaches no network.
    :param encrypt_traffic: between the machines.
    """

    image: str
    role: str
    output: str
    instances: list[str]
    count: int = 1
    volume_gb: int = 30
    inputs: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    script: str = ""
    entry: str = "train.py"
    spot: bool = False
    on_demand_last: bool = False
    checkpoint: str = ""
    max_runtime: int = 86_400
    max_wait: int = 0
    kms_key: str = ""
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    network_isolation: bool = False
    encrypt_traffic: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the job, or attach to a try of it; gives the name of the try.

        :raises ConfigurationError: when the job cannot be right, or AWS refuses it.
        """
        if secrets:
            raise ConfigurationError(
                "a SageMaker job cannot be given secrets", expected="a role that may read them in Secrets Manager",
                found=", ".join(secrets), todo="AWS shows a job's environment to everyone who may describe it",
            )  # fmt: skip
        self.check()
        if self.script:
            self._bring_script()
        choice = 0
        for number in range(1, _MOST_TRIES + 1):
            name = self.name if number == 1 else f"{self.name}-{number}"
            found = self._describe(name)
            if found is None:
                created = self._create(name, choice)
                if created:
                    return name
                found = self._describe(name)  # the reply to our own creation was lost
                if found is None:
                    continue
            if self._is_ours(name, found):
                return name
            choice = self._next_choice(found)
        raise ConfigurationError(
            f"job {self.name} was tried {_MOST_TRIES} times", expected="a try that succeeds", found="none",
            todo="look at the failed jobs in the console, then run the task in a new DAG run",
        )  # fmt: skip

    def status(self, job_id: str) -> JobStatus:
        """Where the job stands, with its latest transitions as progress."""
        found = self._describe(job_id)
        if found is None:
            return JobStatus(JobState.FAILED, f"SageMaker knows no job {job_id}")
        progress = tuple(
            f"{item['StartTime']:%H:%M:%S} {item['Status']}: {item.get('StatusMessage', '')}".rstrip(": ")
            for item in found.get("SecondaryStatusTransitions", [])[-6:]
        )
        state, second = found["TrainingJobStatus"], found["SecondaryStatus"]
        if state == "Completed":
            return JobStatus(JobState.SUCCEEDED, progress=progress)
        if state == "Failed":
            reason = found.get("FailureReason", "SageMaker gave no reason")
            again = self._lacks_capacity(found) and self._next_choice(found) > 0
            wrong = reason.startswith("ClientError")
            return JobStatus(JobState.FAILED, f"{reason}{self._log_tail(job_id)}", progress, wrong, again=again)
        if state == "Stopped":
            if second in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded"):
                limit = f"max_runtime ({self.max_runtime} s)" if "Runtime" in second else f"max_wait ({self._wait} s)"
                again = self._lacks_capacity(found) and self._next_choice(found) > 0
                return JobStatus(JobState.FAILED, f"{second}: it was stopped at {limit}", progress, again=again)
            return JobStatus(JobState.CANCELLED, "it was stopped", progress)
        pending = second in ("Starting", "Pending", "LaunchingMLInstances")
        return JobStatus(JobState.PENDING if pending else JobState.RUNNING, second, progress)

    def result(self, job_id: str) -> dict[str, Any]:
        """What the job made, took and cost.

        Savings are AWS's formula: ``(1 - BillableTimeInSeconds / TrainingTimeInSeconds) x 100``
        (docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html).
        """
        found = self._describe(job_id) or {}
        kind, count = found["ResourceConfig"]["InstanceType"], found["ResourceConfig"]["InstanceCount"]
        trained, billed = found.get("TrainingTimeInSeconds", 0), found.get("BillableTimeInSeconds", 0)
        states = [item["Status"] for item in found.get("SecondaryStatusTransitions", [])]
        return {
            "job": job_id,
            "model": found["ModelArtifacts"]["S3ModelArtifacts"],
            "instance": kind,
            "count": count,
            "spot": found.get("EnableManagedSpotTraining", False),
            "started": iso(found.get("TrainingStartTime")),
            "ended": iso(found.get("TrainingEndTime")),
            "training_seconds": trained,
            "billable_seconds": billed,
            "interruptions": states.count("Interrupted"),
            "savings_percent": round((1 - billed / trained) * 100, 1) if trained else 0.0,
            "cost_usd": estimate(kind, billed * count / 3600, self.prices),
        }

    def page(self, job_id: str) -> str:
        """The job's page in the console."""
        return self.console(f"sagemaker/home?region={{region}}#/jobs/{quote(job_id, safe='')}")

    def cancel(self, job_id: str) -> None:
        """Stop the job; one that has ended stays as it is."""
        try:
            self.call("sagemaker", "stop_training_job", TrainingJobName=job_id)
        except AwsRefused as error:
            found = self._describe(job_id)
            if found is not None and found["TrainingJobStatus"] == "InProgress":
                raise error

    # --- the parts ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what cannot be right before anything is asked of AWS.

        :raises ConfigurationError: naming what is wrong.
        """
        if self.spot and not self.checkpoint:
            raise ConfigurationError(
                "spot training needs a place for checkpoints", expected="checkpoint: an S3 folder", found="none",
                todo="without one an interruption loses all that was trained; give one, or spot=False",
            )  # fmt: skip
        if not self.instances:
            raise ConfigurationError("no machine type is given", expected="instances: at least one", found="none")
        if len(self.name) > NAME_LIMIT:
            raise ConfigurationError(
                "the job's name is too long", expected=f"at most {NAME_LIMIT} characters", found=self.name
            )
        if self.script and (self.entrypoint or self.arguments):
            raise ConfigurationError(
                "in script mode the image's own command runs the script", expected="no entrypoint and no arguments",
                found="script with one of them",
            )  # fmt: skip
        if bool(self.subnets) != bool(self.security_groups):
            raise ConfigurationError(
                "a VPC needs subnets and security groups", expected="both", found="one of them alone"
            )

    def request(self, name: str, choice: int = 0) -> dict[str, Any]:
        """The exact request that creates a try.

        :param name: of the try.
        :param choice: which machine of the list it takes.
        """
        kind, spot = self._choices()[choice]
        request: dict[str, Any] = {
            "TrainingJobName": name,
            "AlgorithmSpecification": {"TrainingImage": self.image, "TrainingInputMode": "File"},
            "RoleArn": self.role,
            "OutputDataConfig": {"S3OutputPath": self.output},
            "ResourceConfig": {"InstanceType": kind, "InstanceCount": self.count, "VolumeSizeInGB": self.volume_gb},
            "StoppingCondition": {"MaxRuntimeInSeconds": self.max_runtime},
            "EnableManagedSpotTraining": spot,
            "EnableNetworkIsolation": self.network_isolation,
            "EnableInterContainerTrafficEncryption": self.encrypt_traffic,
            "HyperParameters": {key: str(value) for key, value in self.hyperparameters.items()} | self._script_mode(),
            "Environment": {**self.environment, SPEC: self.spec},
            "Tags": self.aws_tags(**{"sml-name": self.name}),
        }
        if spot:
            request["StoppingCondition"]["MaxWaitTimeInSeconds"] = self._wait
        if self.checkpoint:
            request["CheckpointConfig"] = {"S3Uri": self.checkpoint, "LocalPath": "/opt/ml/checkpoints"}
        if self.inputs:
            request["InputDataConfig"] = [_channel(channel, uri) for channel, uri in self.inputs.items()]
        if self.entrypoint:
            request["AlgorithmSpecification"]["ContainerEntrypoint"] = self.entrypoint
        if self.arguments:
            request["AlgorithmSpecification"]["ContainerArguments"] = self.arguments
        if self.kms_key:
            request["OutputDataConfig"]["KmsKeyId"] = self.kms_key
            request["ResourceConfig"]["VolumeKmsKeyId"] = self.kms_key
        if self.subnets:
            request["VpcConfig"] = {"Subnets": self.subnets, "SecurityGroupIds": self.security_groups}
        return request

    @property
    def spec(self) -> str:
        """Hash of what decides the model: not of the machines, tags or time limits."""
        decisive = (self.image, self.inputs, self.hyperparameters, self.environment, self.entrypoint, self.arguments)
        return spec_hash([*decisive, self.output, self.count, self._script_mode()])

    @cached_property
    def _packed(self) -> tuple[str, bytes]:
        """Where the training code lies, and its archive; an empty one where it lies there already."""
        if self.script.startswith("s3://"):
            return self.script, b""
        packed = pack(Path(self.script))
        digest = hashlib.sha256(packed).hexdigest()[:16]
        return f"{self.output.rstrip('/')}/source/{digest}/sourcedir.tar.gz", packed

    def _script_mode(self) -> dict[str, str]:
        """The hyperparameters of script mode, as JSON each (the SageMaker Training Toolkit's README)."""
        if not self.script:
            return {}
        own = {"sagemaker_program": self.entry, "sagemaker_submit_directory": self._packed[0]}
        return {key: json.dumps(value) for key, value in own.items()}

    def _bring_script(self) -> None:
        """Put the training code to S3; its address names its content."""
        place, packed = urlsplit(self._packed[0]), self._packed[1]
        if packed:
            locked = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}
            self.call("s3", "put_object", Bucket=place.netloc, Key=place.path.lstrip("/"), Body=packed, **locked)

    @property
    def _wait(self) -> int:
        return self.max_wait or 2 * self.max_runtime

    def _choices(self) -> list[tuple[str, bool]]:
        found = [(kind, self.spot) for kind in self.instances]
        return [*found, (self.instances[0], False)] if self.spot and self.on_demand_last else found

    def _next_choice(self, found: dict[str, Any]) -> int:
        """The machine that follows the one of a try; 0, the first, after any other failure or the last machine."""
        if not self._lacks_capacity(found):
            return 0
        had = (found["ResourceConfig"]["InstanceType"], found.get("EnableManagedSpotTraining", False))
        choices = self._choices()
        following = choices.index(had) + 1 if had in choices else 0
        return following if following < len(choices) else 0

    def _lacks_capacity(self, found: dict[str, Any]) -> bool:
        reason = found.get("FailureReason", "")
        return found["SecondaryStatus"] == "MaxWaitTimeExceeded" or any(word in reason for word in _CAPACITY)

    def _is_ours(self, name: str, found: dict[str, Any]) -> bool:
        """Whether a try can be attached to; one that runs with another specification is stopped."""
        same = found.get("Environment", {}).get(SPEC) == self.spec
        if found["TrainingJobStatus"] == "InProgress" and not same:
            self.cancel(name)
        return same and found["TrainingJobStatus"] in ("InProgress", "Completed")

    def _create(self, name: str, choice: int) -> bool:
        """Create a try; whether it was, or else the name is taken already."""
        for number in itertools.count(choice):
            try:
                self.call("sagemaker", "create_training_job", **self.request(name, number))
                return True
            except AwsQuota:
                if number + 1 >= len(self._choices()):
                    raise
            except AwsRefused as error:
                if error.code != "ResourceInUse":
                    raise
                return False
        raise AssertionError("unreachable")

    def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(self.call("sagemaker", "describe_training_job", TrainingJobName=name))
        except AwsRefused as error:
            if error.code == "ResourceNotFound" or "Requested resource not found" in error.said:
                return None
            raise

    def _log_tail(self, job: str, lines: int = 5) -> str:
        """The last lines of the container's log, for the error; empty when the log cannot be read."""
        try:
            streams = self.call(
                "logs", "describe_log_streams", logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job}/", limit=1
            )["logStreams"]
            if not streams:
                return ""
            stream = streams[0]["logStreamName"]
            events = self.call(
                "logs", "get_log_events", logGroupName=LOG_GROUP, logStreamName=stream, limit=lines, startFromHead=False
            )["events"]
        except (ConfigurationError, JobError):  # the reason of the failure matters more than its log
            return ""
        return "".join(f"\n  log: {event['message'][:300]}" for event in events[-lines:])


def _channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}
