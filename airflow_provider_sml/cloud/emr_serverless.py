"""Spark on EMR Serverless: one job run of an application file in S3.

Runs of one task are found by their name. ``submit`` attaches to one that runs, takes one that succeeded with the same
specification, and starts another otherwise; its client token makes a repeated start one run. A run tells its vCPU-hours
and a cost estimate. Secrets come from Secrets Manager only: a run's settings can be read by who may describe it.

It does not create or size applications; the limits of autoscaling are the application's ``maximumCapacity``.
"""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_sml.cloud.aws import AwsJob, AwsRefused
from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus, iso, spec_hash
from airflow_provider_sml.cloud.spark_submit import input_error
from airflow_provider_sml.errors import ConfigurationError, JobError

_SERVICE = "emr-serverless"
_SPEC, _OUTPUT = "sml-spec", "spark.sml.output"
_STATES = {
    "SUBMITTED": JobState.PENDING, "PENDING": JobState.PENDING, "SCHEDULED": JobState.PENDING,
    "QUEUED": JobState.PENDING, "RUNNING": JobState.RUNNING, "CANCELLING": JobState.RUNNING,
    "SUCCESS": JobState.SUCCEEDED, "FAILED": JobState.FAILED, "CANCELLED": JobState.CANCELLED,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EmrServerlessJob(AwsJob):
    """A job run.

    :param application_id: the EMR Serverless application.
    :param role: ARN of the role that the run has.
    :param entry_point: S3 address of the Python file.
    :param arguments: of the application.
    :param conf: Spark settings: sizes, ``spark.dynamicAllocation.maxExecutors``, jars and the like.
    :param secret_ids: Secrets Manager's id of each environment variable that is secret.
    :param log_uri: S3 folder of the logs.
    :param kms_key: encrypts the logs.
    :param timeout_minutes: after which AWS cancels the run.
    :param output: what ``result`` gives back.
    """

    application_id: str
    role: str
    entry_point: str
    arguments: list[str] = field(default_factory=list)
    conf: Mapping[str, str] = field(default_factory=dict)
    secret_ids: Mapping[str, str] = field(default_factory=dict)
    log_uri: str = ""
    kms_key: str = ""
    timeout_minutes: int = 720
    output: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Start the run, or attach to one of this name; gives its id.

        :raises ConfigurationError: when a secret has no id in Secrets Manager, or AWS refuses the run.
        """
        open_secrets = sorted(set(secrets or {}) - set(self.secret_ids))
        if open_secrets:
            raise ConfigurationError(
                "an EMR Serverless run cannot be given secrets as values",
                expected=f"an id in Secrets Manager for {', '.join(open_secrets)}", found="none",
                todo="store it there, let the run's role read it, and name it in secret_ids",
            )  # fmt: skip
        runs = self._runs()
        for run in runs:
            if not _STATES[run["state"]].final and run["state"] != "CANCELLING":
                return str(run["id"])
        for run in runs:
            if run["state"] == "SUCCESS" and self._get(run["id"]).get("tags", {}).get(_SPEC) == self.spec:
                return str(run["id"])
        token = spec_hash([self.name, self.spec, len(runs)])
        try:
            return str(self.call(_SERVICE, "start_job_run", clientToken=token, **self.request())["jobRunId"])
        except AwsRefused as error:
            if error.code == "ConflictException":  # another start of this name came in between
                raise JobError(f"another run of {self.name} is being started", found=error.said) from error
            raise

    def status(self, job_id: str) -> JobStatus:
        """Where the run stands; the driver's own reason when it failed."""
        run = self._get(job_id)
        state, said = _STATES[run["state"]], run.get("stateDetails", "")
        progress = (f"{run['state']}" + (f": {said}" if said not in ("", run["state"]) else ""),)
        if state is JobState.FAILED:
            told = input_error(f"{said}\n{self._log(job_id)}".splitlines())
            if told:
                return JobStatus(state, told, progress, configuration=True)
            return JobStatus(state, f"{said} ({self._log_place(job_id)})", progress)
        return JobStatus(state, said if state is JobState.CANCELLED else run["state"], progress)

    def result(self, job_id: str) -> dict[str, Any]:
        """The output of the run that ran, which an attached task did not start, and what it used."""
        run = self._get(job_id)
        used = run.get("billedResourceUtilization") or run.get("totalResourceUtilization") or {}
        hours = {key: float(used.get(name, 0)) for key, name in
                 (("vcpu", "vCPUHour"), ("gb", "memoryGBHour"), ("storage-gb", "storageGBHour"))}  # fmt: skip
        costs = [(price(f"emr-serverless-{key}", self.prices) or 0) * amount for key, amount in hours.items()]
        usage = {
            "job": job_id, "vcpu_hours": hours["vcpu"], "gb_hours": hours["gb"], "cost_usd": round(sum(costs), 4),
            "started": iso(run.get("startedAt")), "ended": iso(run.get("endedAt")),
        }  # fmt: skip
        return {**_recorded_output(run, self.output), "usage": usage}

    def page(self, job_id: str) -> str:
        """The run's logs in the console, or the list of applications where none are kept in S3.

        A run's own page belongs to an EMR Studio, whose address no API tells, and the address of its Spark UI
        (GetDashboardForJobRun) holds a token, which has no place in a link.
        """
        if not self.log_uri:
            return self.console("emr/home?region={region}#/serverless")
        place = urlsplit(self._log_folder(job_id))
        prefix = quote(place.path.lstrip("/"), safe="/")
        return self.console(f"s3/buckets/{quote(place.netloc)}?region={{region}}&prefix={prefix}")

    def cancel(self, job_id: str) -> None:
        """Cancel the run; one that has ended stays as it is."""
        try:
            self.call(_SERVICE, "cancel_job_run", applicationId=self.application_id, jobRunId=job_id)
        except AwsRefused:
            if not _STATES[self._get(job_id)["state"]].final:
                raise

    # --- the parts ------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> str:
        """Hash of what decides the output."""
        return spec_hash([self.entry_point, self.arguments, dict(self.conf), dict(self.output)])

    def request(self) -> dict[str, Any]:
        """The exact request, without its client token."""
        conf = dict(self.conf) | {_OUTPUT: base64.urlsafe_b64encode(json.dumps(dict(self.output)).encode()).decode()}
        for variable, secret in self.secret_ids.items():
            for process in ("spark.emr-serverless.driverEnv", "spark.executorEnv"):
                conf[f"{process}.{variable}"] = f"EMR.secret@{secret}"
        settings = " ".join(f"--conf {shlex.quote(f'{key}={value}')}" for key, value in sorted(conf.items()))
        driver: dict[str, Any] = {"entryPoint": self.entry_point, "sparkSubmitParameters": settings}
        if self.arguments:
            driver["entryPointArguments"] = self.arguments
        request: dict[str, Any] = {
            "applicationId": self.application_id,
            "executionRoleArn": self.role,
            "name": self.name,
            "jobDriver": {"sparkSubmit": driver},
            "executionTimeoutMinutes": self.timeout_minutes,
            "tags": {**self.tags, _SPEC: self.spec},
        }
        if self.log_uri:
            logs = {"logUri": self.log_uri} | ({"encryptionKeyArn": self.kms_key} if self.kms_key else {})
            request["configurationOverrides"] = {"monitoringConfiguration": {"s3MonitoringConfiguration": logs}}
        return request

    def _runs(self) -> list[dict[str, Any]]:
        """The runs of this name, the newest first."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = self.call(_SERVICE, "list_job_runs", applicationId=self.application_id, maxResults=50, **more)
            found += [run for run in page["jobRuns"] if run.get("name") == self.name]
            if not page.get("nextToken"):
                return sorted(found, key=lambda run: run["createdAt"], reverse=True)
            more = {"nextToken": page["nextToken"]}

    def _get(self, job_id: str) -> dict[str, Any]:
        return dict(self.call(_SERVICE, "get_job_run", applicationId=self.application_id, jobRunId=job_id)["jobRun"])

    def _log_place(self, job_id: str) -> str:
        """Where the driver's log lies (EMR Serverless User Guide, "Logging jobs")."""
        if not self.log_uri:
            return "no log_uri was given, so its log is in the application's console only"
        return f"log: {self._log_folder(job_id)}SPARK_DRIVER/"

    def _log_folder(self, job_id: str) -> str:
        return f"{self.log_uri.rstrip('/')}/applications/{self.application_id}/jobs/{job_id}/"

    def _log(self, job_id: str) -> str:
        """The driver's log, as far as it can be read."""
        if not self.log_uri:
            return ""
        place = urlsplit(self._log_place(job_id).removeprefix("log: "))
        text = []
        for name in ("stdout.gz", "stderr.gz"):
            try:
                key = f"{place.path.lstrip('/')}{name}"
                body = self.call("s3", "get_object", Bucket=place.netloc, Key=key)["Body"].read()
                text.append(gzip.decompress(body).decode(errors="replace"))
            except (ConfigurationError, JobError, OSError):  # the run's own state tells its failure all the same
                continue
        return "\n".join(text)


def _recorded_output(run: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    settings = shlex.split(run["jobDriver"]["sparkSubmit"].get("sparkSubmitParameters", ""))
    for setting in settings:
        if setting.startswith(f"{_OUTPUT}="):
            return dict(json.loads(base64.urlsafe_b64decode(setting.partition("=")[2])))
    return dict(default)
