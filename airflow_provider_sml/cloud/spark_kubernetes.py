"""Spark on Kubernetes in cluster mode: the driver is a pod, made by ``spark-submit`` and watched through the API.

The driver is no child of the task, so nothing of it is remembered here. Its pod carries the job's name as a label and
what the job gives back as an annotation; whoever asks later, on whatever machine, finds both. Pods of one job are
numbered, and the API server lets one of several submitters make the next number: the others attach to its pod. A pod
whose submitter died before it had made the driver's settings never starts; it is removed and made again.

``spark-submit`` runs here only until the pod is made. Executors belong to the driver's pod, so cancelling deletes that
pod and Kubernetes removes them. Secrets are those of the namespace, by reference.

Not here: images, name spaces, quotas and service accounts, which are the cluster's.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sml.cloud.kubernetes import KubernetesAdapter, label_values, waits_for
from airflow_provider_sml.cloud.remote_job import JobState, JobStatus
from airflow_provider_sml.cloud.spark_submit import (
    check_settings,
    driver_reason,
    input_error,
    own_lines,
    submit_to_cluster,
)
from airflow_provider_sml.errors import ConfigurationError, JobError

#: Labels and the annotation of a driver's pod.
JOB, ATTEMPT, OUTPUT = "sml-job", "sml-attempt", "sml-output"
#: A pod that waits for its settings longer than this lost its submitter: they are made within a second of the pod.
HALF_MADE_S = 60.0
_CONTAINER = "spark-kubernetes-driver"
_SUBMIT_S = 300.0
#: Reasons of a container that waits for something that does not come by itself (kubelet's images and sync errors).
_STUCK = ("InvalidImageName", "ErrImageNeverPull", "ImagePullBackOff", "CreateContainerConfigError")
_STATES = {
    "Pending": JobState.PENDING, "Running": JobState.RUNNING, "Unknown": JobState.RUNNING,
    "Succeeded": JobState.SUCCEEDED, "Failed": JobState.FAILED,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SparkKubernetesJob(KubernetesAdapter):
    """One run of an application.

    :param name: of the job.
    :param image: container image of driver and executors, with Spark and Python.
    :param entry_point: address of the Python file that the driver reads, or ``local://`` with its path in the image.
    :param arguments: of the application.
    :param namespace: that the pods are made in.
    :param service_account: of the driver, which must be allowed to make pods there; the namespace's default when empty.
    :param conf: Spark settings: sizes, ``spark.executor.instances``, ``spark.dynamicAllocation.maxExecutors``, node
        selectors for spot machines, jars and the like.
    :param secret_refs: ``secret:key`` in the namespace for each environment variable that is secret.
    :param output: what ``result`` gives back.
    :param tags: labels for the pods, as far as their values may be labels.
    :param connection: id of the Airflow connection to the cluster.
    """

    name: str
    image: str
    entry_point: str
    arguments: list[str] = field(default_factory=list)
    namespace: str = "default"
    service_account: str = ""
    conf: Mapping[str, str] = field(default_factory=dict)
    secret_refs: Mapping[str, str] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    connection: str = "kubernetes_default"

    # --- the four verbs -------------------------------------------------------------------------------------------

    def submit(self, secrets: dict[str, str] | None = None) -> str:
        """Make the driver's pod, or attach to the one of this job that has not ended; gives the pod's name.

        :raises ConfigurationError: when a secret has no reference, or the cluster refuses the job.
        """
        check_settings(self.conf)
        if missing := sorted(set(secrets or {}) - set(self.secret_refs)):
            raise ConfigurationError(
                "a driver on Kubernetes cannot be given secrets as values",
                expected=f"a secret of the namespace for {', '.join(missing)}", found="none",
                todo="make the secret there, and name it in secret_refs as secret:key",
            )  # fmt: skip
        pods = self._pods()
        for pod in pods:
            if pod.metadata.deletion_timestamp or _STATES.get(pod.status.phase, JobState.RUNNING).final:
                continue
            if not self._half_made(pod):
                return str(pod.metadata.name)
            self.cancel(pod.metadata.name)
        number = 1 + max([int(pod.metadata.labels.get(ATTEMPT, 0)) for pod in pods], default=0)
        pod_name = f"{self._label}-{number}"
        code, said = self._run_submit(pod_name, number)
        if code and not any(pod.metadata.name == pod_name for pod in self._pods()):
            raise _refusal(self.name, said)
        return pod_name

    def status(self, job_id: str) -> JobStatus:
        """Where the driver's pod stands; the driver's own reason when it failed."""
        pod = self.call("read_namespaced_pod", job_id, missing=None)
        if pod is None:
            return JobStatus(JobState.FAILED, f"the driver's pod {job_id} is gone: it was deleted, or its node was")
        state = _STATES.get(pod.status.phase, JobState.RUNNING)
        if state is JobState.FAILED:
            return self._failure(pod)
        if state is JobState.RUNNING:
            return JobStatus(state, progress=tuple(self._told(job_id)[-5:]))
        if state is JobState.PENDING:
            if self._half_made(pod):
                return JobStatus(JobState.FAILED, f"pod {job_id} lost its submitter half-way", leftover=True)
            why = waits_for(pod)
            if why.partition(":")[0] in _STUCK:
                return JobStatus(JobState.FAILED, f"the driver cannot start: {why}", leftover=True)
            return JobStatus(state, why, (f"waiting: {why}",) if why else ())
        return JobStatus(state)

    def result(self, job_id: str) -> dict[str, Any]:
        """The output of the driver that ran, which an attached task did not start."""
        pod = self.call("read_namespaced_pod", job_id, missing=None)
        written = (pod.metadata.annotations or {}).get(OUTPUT) if pod else None
        return dict(json.loads(written)) if written else dict(self.output)

    def cancel(self, job_id: str) -> None:
        """Delete the driver's pod, and by that its executors; one that is gone is no error."""
        self.call("delete_namespaced_pod", job_id, missing=None)

    # --- the parts ------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return re.sub(r"[^a-z0-9-]+", "-", self.name.lower())[:60].strip("-")

    def settings(self, pod_name: str, number: int) -> dict[str, str]:
        """Spark's settings of one submission."""
        fixed = {
            "spark.app.name": self.name,
            "spark.kubernetes.namespace": self.namespace,
            "spark.kubernetes.container.image": self.image,
            "spark.kubernetes.driver.pod.name": pod_name,
            "spark.kubernetes.submission.waitAppCompletion": "false",
            f"spark.kubernetes.driver.label.{ATTEMPT}": str(number),
            f"spark.kubernetes.driver.annotation.{OUTPUT}": json.dumps(dict(self.output)),
        }
        if self.service_account:
            fixed["spark.kubernetes.authenticate.driver.serviceAccountName"] = self.service_account
        for pod in ("driver", "executor"):
            fixed[f"spark.kubernetes.{pod}.label.{JOB}"] = self._label
            for key, value in label_values(dict(self.tags)).items():
                fixed[f"spark.kubernetes.{pod}.label.{key}"] = value
            for variable, secret in self.secret_refs.items():
                fixed[f"spark.kubernetes.{pod}.secretKeyRef.{variable}"] = secret
        return encrypted_wire(self.conf) | fixed

    def _run_submit(self, pod_name: str, number: int) -> tuple[int, str]:
        """Run spark-submit until the pod is made; gives its exit code and what it said."""
        access = self.api().api_client.configuration
        with tempfile.TemporaryDirectory(prefix="spark-submit-") as folder:
            conf = self.settings(pod_name, number) | _access(access, Path(folder))
            settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
            command = [
                "--master", f"k8s://{access.host}", "--deploy-mode", "cluster", *settings,
                self.entry_point, *self.arguments,
            ]  # fmt: skip
            # A kubeconfig of this machine must not take the place of the connection's cluster.
            env = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG",)}
            env |= {"KUBERNETES_AUTH_TRYKUBECONFIG": "false", "PYSPARK_PYTHON": sys.executable}
            return submit_to_cluster(self.name, command, env, _SUBMIT_S)

    def _failure(self, pod: Any) -> JobStatus:
        """Why the driver failed: what it said, else how its container ended."""
        told = self._told(pod.metadata.name)
        wrong_input = input_error(told)
        if wrong_input:
            return JobStatus(JobState.FAILED, wrong_input, configuration=True)
        ended = next((one.state.terminated for one in pod.status.container_statuses or [] if one.state), None)
        where = f"pod {pod.metadata.name} in {self.namespace}"
        if ended is None or (ended.reason or "Error") != "Error":
            said = " ".join(filter(None, [pod.status.reason or (ended and ended.reason), pod.status.message]))
            return JobStatus(JobState.FAILED, f"{said or 'the pod failed'} ({where})")
        return JobStatus(JobState.FAILED, f"{driver_reason(told, ended.exit_code)} ({where})")

    def _half_made(self, pod: Any) -> bool:
        """Whether a pod waits for settings that nobody will make any more."""
        age = dt.datetime.now(dt.UTC) - pod.metadata.creation_timestamp
        if pod.status.phase != "Pending" or age.total_seconds() < HALF_MADE_S:
            return False
        maps = [volume.config_map.name for volume in pod.spec.volumes or [] if volume.config_map]
        return any(self.call("read_namespaced_config_map", name, missing=None) is None for name in maps)

    def _pods(self) -> list[Any]:
        """The driver's pods of this job, the newest first."""
        selector = f"{JOB}={self._label},{ATTEMPT}"
        found = self.call("list_namespaced_pod", label_selector=selector).items
        return sorted(found, key=lambda pod: int(pod.metadata.labels[ATTEMPT]), reverse=True)

    def _told(self, pod_name: str) -> list[str]:
        """The last lines of the driver's log, without Spark's own."""
        try:
            # Read as it comes: some versions of the client decode a log as the text of Python bytes.
            answer = self.call(
                "read_namespaced_pod_log", pod_name, container=_CONTAINER, tail_lines=400, missing=None,
                _preload_content=False,
            )  # fmt: skip
        except (JobError, ConfigurationError):  # the pod's own state tells how it ended all the same
            return []
        lines = answer.data.decode(errors="replace").splitlines() if answer else []
        return own_lines(lines)


def encrypted_wire(conf: Mapping[str, str]) -> dict[str, str]:
    """Settings of a job whose spill is encrypted, with its traffic encrypted too: the key of that, and the keys of
    hashed columns, go from driver to executors. Kubernetes and YARN make the secret that this takes by themselves."""
    wire = {"spark.authenticate": "true", "spark.network.crypto.enabled": "true"}
    return (wire if conf.get("spark.io.encryption.enabled") == "true" else {}) | dict(conf)


def _access(access: Any, folder: Path) -> dict[str, str]:
    """The connection's way to the API server as Spark's settings; a token goes by a file that only this user reads."""
    prefix = "spark.kubernetes.authenticate.submission"
    found = {
        f"{prefix}.caCertFile": access.ssl_ca_cert,
        f"{prefix}.clientCertFile": access.cert_file,
        f"{prefix}.clientKeyFile": access.key_file,
    }
    token = access.get_api_key_with_prefix("BearerToken") or access.get_api_key_with_prefix("authorization")
    if token:
        path = folder / "token"
        path.touch(mode=0o600)
        path.write_text(str(token).removeprefix("Bearer ").strip())
        found[f"{prefix}.oauthTokenFile"] = str(path)
    return {key: str(value) for key, value in found.items() if value}


def _refusal(name: str, said: str) -> Exception:
    """The error of a spark-submit that made no pod."""
    lines = own_lines(said.splitlines())
    reason = driver_reason(lines, 1)
    status = re.search(r"code[=:] ?(\d{3})", said)
    if status and status[1] in ("401", "403", "404", "422", "400"):
        return ConfigurationError(
            f"the cluster refuses the driver of {name}", found=reason, todo="see what the connection's user may make"
        )
    return JobError(f"spark-submit of {name} made no driver", found=reason)
