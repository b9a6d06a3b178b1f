"""Spark on Dataproc Serverless (Serverless for Apache Spark): one batch of an application file in Cloud Storage.

Batches of one task are found by a label of their name. ``submit`` attaches to one that runs, takes one that succeeded
with the same specification, and makes another otherwise. A batch's id can be used once, so it ends in a number; of two
that submit at once one meets ALREADY_EXISTS and attaches, and the request's id makes a repeated request one batch.

Settings of Spark that decide size and cost (Google's page "Spark properties",
cloud.google.com/dataproc-serverless/docs/concepts/properties):

- ``spark.driver.cores``, ``spark.executor.cores`` (4, 8 or 16), ``spark.executor.instances`` at the start
- ``spark.dynamicAllocation.minExecutors`` and ``.maxExecutors``, both 2 or more: ``min_executors``, ``max_executors``
- ``spark.dataproc.driver.compute.tier`` and ``spark.dataproc.executor.compute.tier``: ``tier``. Premium is faster, has
  more memory and costs more; there are no spot machines.
- ``spark.dataproc.executor.disk.tier``, ``spark.dataproc.executor.disk.size``: for shuffles, by ``conf``

Secrets come from Secret Manager only: a batch's settings can be read by who may describe it. The application asks
Hadoop's credential provider for them (runtimes 1.2.29, 2.2.29 and later), so a secret is in no setting and no
environment.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleJob, GoogleRefused, label
from airflow_provider_sml.cloud.prices import price
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus, iso, job_name, spec_hash
from airflow_provider_sml.cloud.spark_submit import input_error
from airflow_provider_sml.errors import ConfigurationError, JobError

_SPEC, _JOB, _OUTPUT, _SECRET = "sml_spec", "sml_job", "spark.sml.output", "spark.sml.secret."
_STATES = {
    "STATE_UNSPECIFIED": JobState.PENDING, "PENDING": JobState.PENDING, "RUNNING": JobState.RUNNING,
    "CANCELLING": JobState.RUNNING, "SUCCEEDED": JobState.SUCCEEDED, "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}  # fmt: skip
_ATTEMPTS = 1000
_TAIL_BYTES = 2**16
# The last line of a Python traceback, the first one of a Java stack, and its causes.
_REASON = re.compile(r"^(?:: |Caused by: )?[\w.$]+(?:Error|Exception)\b.*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class DataprocBatchJob(GoogleJob):
    """A batch.

    :param entry_point: address of the Python file in Cloud Storage.
    :param arguments: of the application.
    :param conf: Spark settings, over those that the other parameters make.
    :param tier: ``standard`` or ``premium``, of driver and executors; Google's default when empty.
    :param min_executors: fewest executors that autoscaling keeps, 2 or more.
    :param max_executors: most executors that autoscaling starts.
    :param secret_ids: Secret Manager's id of each variable that is secret.
    :param secret_project: project of the secrets; the batch's own when empty.
    :param service_account: that the batch runs as; Compute Engine's default one when empty.
    :param subnetwork: that it runs in; the region's default one when empty.
    :param network_tags: for firewalls.
    :param kms_key: full name of the Cloud KMS key that encrypts its disks and staged files.
    :param staging_bucket: name of the bucket of its output; one that Google makes when empty.
    :param runtime: version of the runtime, such as ``2.3``; Google's default when empty.
    :param container_image: instead of Google's own.
    :param jars: addresses of jars.
    :param ttl_minutes: after which Google cancels the batch, 10 to 20160.
    :param output: what ``result`` gives back.
    """

    entry_point: str
    arguments: list[str] = field(default_factory=list)
    conf: Mapping[str, str] = field(default_factory=dict)
    tier: str = ""
    min_executors: int | None = None
    max_executors: int | None = None
    secret_ids: Mapping[str, str] = field(default_factory=dict)
    secret_project: str = ""
    service_account: str = ""
    subnetwork: str = ""
    network_tags: list[str] = field(default_factory=list)
    kms_key: str = ""
    staging_bucket: str = ""
    runtime: str = ""
    container_image: str = ""
    jars: list[str] = field(default_factory=list)
    ttl_minutes: int = 720
    output: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Make the batch, or attach to one of this name; gives its id.

        :raises ConfigurationError: when a secret has no id in Secret Manager, or Google Cloud refuses the batch.
        """
        open_secrets = sorted(set(secrets or {}) - set(self.secret_ids))
        if open_secrets:
            raise ConfigurationError(
                "a Dataproc batch cannot be given secrets as values",
                expected=f"an id in Secret Manager for {', '.join(open_secrets)}", found="none",
                todo="store it there, let the batch's service account read it, and name it in secret_ids",
            )  # fmt: skip
        known = self._batches()
        for batch in known:
            if not self._over(batch):
                return _id(batch)
        for number in range(1 + max(map(_number, known), default=0), _ATTEMPTS):
            batch_id = f"{self._base}-{number}"
            if self._create(batch_id) or not self._over(self._get(batch_id)):
                return batch_id
        raise JobError(f"{self.name} was tried {_ATTEMPTS} times", todo="look into the batches' errors in Dataproc")

    def status(self, job_id: str) -> JobStatus:
        """Where the batch stands; the driver's own reason when it failed."""
        batch = self._get(job_id)
        name, said = batch.state.name, batch.state_message
        state = _STATES[name]
        progress = (f"batch: {self.page(job_id)}", f"log: {self.log_page(job_id)}", name)
        if state is not JobState.FAILED:
            return JobStatus(state, said or name, progress)
        log = self._driver_output(batch.runtime_info.output_uri)
        told = input_error(f"{said}\n{log}".splitlines())
        if told:
            return JobStatus(state, told, progress, configuration=True)
        found = [match[0].strip() for match in _REASON.finditer(log)]
        reason = "\n".join(dict.fromkeys(found[-3:])) or said
        return JobStatus(state, f"{reason[-1000:]} ({self.page(job_id)})", progress)

    def result(self, job_id: str) -> dict[str, Any]:
        """The output of the batch that ran, which an attached task did not make, and what it used."""
        batch = self._get(job_id)
        properties = _plain(batch.runtime_config.properties)
        used = batch.runtime_info.approximate_usage
        dcu_hours, shuffle = used.milli_dcu_seconds / 3_600_000, used.shuffle_storage_gb_seconds / 3600
        vcpus, gigabytes = _per_dcu(properties)
        costs = [(price(what, self.prices) or 0) * amount for what, amount in
                 ((_priced("dcu", "compute", properties), dcu_hours),
                  (_priced("shuffle-gb", "disk", properties), shuffle))]  # fmt: skip
        usage = {
            "job": job_id, "vcpu_hours": round(dcu_hours * vcpus, 3), "gb_hours": round(dcu_hours * gigabytes, 3),
            "dcu_hours": round(dcu_hours, 3), "shuffle_gb_hours": round(shuffle, 3), "cost_usd": round(sum(costs), 4),
            "started": iso(batch.create_time), "ended": iso(batch.state_time),
        }  # fmt: skip
        recorded = properties.get(_OUTPUT)
        output = json.loads(base64.urlsafe_b64decode(recorded)) if recorded else dict(self.output)
        return {**output, "usage": usage}

    def cancel(self, job_id: str) -> None:
        """Cancel the batch; one that has ended stays as it is."""
        batch = self._get(job_id)
        if _STATES[batch.state.name].final:
            return
        try:
            self._call("operations.cancel", "cancel_operation", {"name": batch.operation})
        except GoogleRefused:
            if not _STATES[self._get(job_id).state.name].final:
                raise

    # --- the parts ------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> str:
        """Hash of what decides the output."""
        return spec_hash([self.entry_point, self.arguments, dict(self.conf), dict(self.output)])

    @property
    def parent(self) -> str:
        """Where its batches are."""
        return f"projects/{self.project}/locations/{self.region}"

    def page(self, job_id: str) -> str:
        """The batch's page in Google's console."""
        place = f"{self.region}/{quote(job_id)}/monitoring?project={quote(self.project)}"
        return f"https://console.cloud.google.com/dataproc/batches/{place}"

    def log_page(self, job_id: str) -> str:
        """The batch's log in Cloud Logging."""
        query = quote(f'resource.type="cloud_dataproc_batch" resource.labels.batch_id="{job_id}"', safe="")
        return f"https://console.cloud.google.com/logs/query;query={query}?project={quote(self.project)}"

    def batch(self) -> dict[str, Any]:
        """The exact batch that is asked for."""
        execution: dict[str, Any] = {"ttl": {"seconds": self.ttl_minutes * 60}}
        # Without this, runtimes from 3.0 on run as whoever made the batch (AuthenticationConfig in the API).
        execution["authentication_config"] = {"user_workload_authentication_type": "SERVICE_ACCOUNT"}
        for key, value in (
            ("service_account", self.service_account), ("subnetwork_uri", self.subnetwork),
            ("network_tags", list(self.network_tags)), ("kms_key", self.kms_key),
            ("staging_bucket", self.staging_bucket),
        ):  # fmt: skip
            if value:
                execution[key] = value
        runtime: dict[str, Any] = {"properties": self._properties()}
        for key, value in (("version", self.runtime), ("container_image", self.container_image)):
            if value:
                runtime[key] = value
        own = {key: label(str(value)) for key, value in self.labels.items()} | {_SPEC: self.spec, _JOB: self._job}
        return {
            "pyspark_batch": {
                "main_python_file_uri": self.entry_point,
                "args": list(self.arguments),
                "jar_file_uris": list(self.jars),
            },
            "labels": {label(key): value for key, value in own.items() if value},
            "runtime_config": runtime,
            "environment_config": {"execution_config": execution},
        }

    def _properties(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.tier:
            found |= {f"spark.dataproc.{process}.compute.tier": self.tier for process in ("driver", "executor")}
        if self.min_executors is not None:
            found["spark.dynamicAllocation.minExecutors"] = str(self.min_executors)
        if self.max_executors is not None:
            found["spark.dynamicAllocation.maxExecutors"] = str(self.max_executors)
        if self.secret_ids:
            provider = f"gsm://projects/{self.secret_project or self.project}"
            found["spark.hadoop.hadoop.security.credential.provider.path"] = provider
            found |= {f"{_SECRET}{variable}": secret for variable, secret in self.secret_ids.items()}
        found[_OUTPUT] = base64.urlsafe_b64encode(json.dumps(dict(self.output)).encode()).decode()
        return found | {str(key): str(value) for key, value in self.conf.items()}

    @property
    def _job(self) -> str:
        """The label that all batches of this name have; a letter first, as in labels of RFC 1035."""
        return f"j{spec_hash(self.name)}"

    @property
    def _base(self) -> str:
        """What the ids of its batches start with: 4 to 63 small letters, digits and hyphens with the number."""
        fits = re.fullmatch(r"[a-z][a-z0-9-]{1,57}", self.name)
        return self.name if fits else f"b-{job_name(self.name, limit=56)}".lower()

    def _create(self, batch_id: str) -> bool:
        """Make a batch; whether there was none of this id before."""
        request = {
            "parent": self.parent, "batch": self.batch(), "batch_id": batch_id,
            "request_id": spec_hash([self.parent, batch_id, self.spec]),
        }  # fmt: skip
        try:
            self._call("batches.create", "create_batch", request)
        except GoogleRefused as error:
            if error.code != "ALREADY_EXISTS":
                raise
            return False
        return True

    def _over(self, batch: Any) -> bool:
        """Whether another batch is to be made in its place."""
        if batch.state.name == "SUCCEEDED":
            return bool(batch.labels.get(_SPEC) != self.spec)
        return batch.state.name in ("CANCELLING", "CANCELLED", "FAILED")

    def _batches(self) -> list[Any]:
        """The batches of this name: those that have not ended first, then the newest first."""
        request = {"parent": self.parent, "filter": f"labels.{_JOB} = {self._job}", "page_size": 100}
        found = self._call("batches.list", "list_batches", request, list)
        return sorted(found, key=lambda batch: (_STATES[batch.state.name].final, -_number(batch)))

    def _get(self, job_id: str) -> Any:
        return self._call("batches.get", "get_batch", {"name": f"{self.parent}/batches/{job_id}"})

    def _call(
        self, action: str, method: str, request: Mapping[str, Any], take: Callable[[Any], Any] = lambda found: found
    ) -> Any:
        """Call a method of Dataproc.

        :param take: makes of the reply what is wanted; pages are read by it.
        """
        return self.ask(
            "dataproc", f"dataproc.{action}",
            lambda client: take(getattr(client, method)(request=request, timeout=CALL_SECONDS, retry=None)),
        )  # fmt: skip

    def _driver_output(self, uri: str) -> str:
        """The end of what the driver printed, as far as it can be read.

        It lies in numbered parts, which are asked for one by one: to list them takes another permission.
        """
        if not uri:
            return ""
        tail = ""
        try:
            for number in range(_ATTEMPTS):
                part = self._end_of(f"{uri}.{number:09d}")
                if part is None:
                    break
                tail = (tail + part)[-_TAIL_BYTES:]
        except (ConfigurationError, JobError):  # the batch's own state tells its failure all the same
            pass
        return tail

    def _end_of(self, uri: str) -> str | None:
        """The last bytes of an object; None when there is none."""
        place = urlsplit(uri)

        def read(client: Any) -> str | None:
            blob = client.bucket(place.netloc).get_blob(place.path[1:], timeout=CALL_SECONDS, retry=None)
            if blob is None or not blob.size:
                return None if blob is None else ""
            start = max(0, blob.size - _TAIL_BYTES)
            content: bytes = blob.download_as_bytes(start=start, timeout=CALL_SECONDS, retry=None)
            return content.decode(errors="replace")

        found: str | None = self.ask("storage", "storage.objects.get", read)
        return found


def _id(batch: Any) -> str:
    return str(batch.name.rpartition("/")[2])


def _number(batch: Any) -> int:
    last = _id(batch).rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _plain(properties: Mapping[str, str]) -> dict[str, str]:
    """The settings of a batch; the service puts ``spark:`` before those of Spark."""
    return {key.removeprefix("spark:"): value for key, value in properties.items()}


def _priced(what: str, of: str, properties: Mapping[str, str]) -> str:
    premium = properties.get(f"spark.dataproc.executor.{of}.tier") == "premium"
    return f"dataproc-{what}{'-premium' if premium else ''}"


def _per_dcu(properties: Mapping[str, str]) -> tuple[float, float]:
    """vCPUs and gigabytes in a Data Compute Unit of such executors, an estimate: Google counts in units only.

    A vCPU counts 0.6 units, a gigabyte 0.1 up to 8 GB a vCPU and 0.2 above (Google's page "Pricing"); without a setting
    there are 4 GB to each vCPU. The driver is taken to be like the executors.
    """
    cores = int(properties.get("spark.executor.cores", 4))
    given = re.fullmatch(r"(\d+)([mg])b?", properties.get("spark.executor.memory", "").lower())
    # Spark adds a tenth for what is outside the JVM's heap.
    per_core = 1.1 * float(given[1]) / (1024 if given[2] == "m" else 1) / cores if given else 4.0
    units = 0.6 + 0.1 * min(per_core, 8) + 0.2 * max(0.0, per_core - 8)
    return 1 / units, per_core / units
