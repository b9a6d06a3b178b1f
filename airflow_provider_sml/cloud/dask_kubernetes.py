"""Workers of a Dask cluster on Kubernetes: one pod a worker, on spot nodes or others, gone with the task.

Each worker is a Job of one pod, which is what cleans up when nobody else does. A worker ends when its scheduler, in the
task, is gone; its Job has then ended, and Kubernetes deletes it ``linger`` seconds later, and by owner references its
pod and its Secret with it. Jobs carry the label ``sml-cluster``; whoever opens a cluster of the same label deletes
those that are left first. A Job never starts a second pod: the task asks for another one where it still needs it.

The Secret holds the certificate and key by which a worker is let in by this one scheduler, made for this cluster alone.

What the pods ask for fits the *restricted* Pod Security Standard: no root, no capabilities, no service account token,
a root file system that cannot be written (``/tmp`` can). They need no rights at the API server; those that the task's
own user needs are in docs/howto/clusters.md.

Not here: images, node pools, quotas and their autoscaler, which are the cluster's.

API facts: Kubernetes API reference, batch/v1 Job (``ttlSecondsAfterFinished``, ``backoffLimit``, conditions) and
core/v1 PodSpec; labels of spot nodes: the documentation of GKE, EKS, Karpenter and AKS.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.cloud.dask_fleet import Bootstrap
from airflow_provider_sml.cloud.kubernetes import KubernetesAdapter, label_values, waits_for
from airflow_provider_sml.cloud.machine_script import FOLDER, THREADS
from airflow_provider_sml.cloud.remote_job import job_name
from airflow_provider_sml.errors import ConfigurationError, JobError

LABEL = "sml-cluster"
#: Label and value of spot nodes, whose taint, where they have one, is the same.
SPOT = {
    "gke": ("cloud.google.com/gke-spot", "true"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
}
_GPU = "nvidia.com/gpu"
_OF_JOB = "batch.kubernetes.io/job-name"
_FOLDER = "/etc/sml-cluster"
#: Conditions of a Job that has ended or is about to.
_ENDED = ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet")
#: Seconds that a pod stays bound to a node that does not answer; Kubernetes' own default is 300.
_LOST_NODE = 30
#: Seconds that a worker has to end; spot nodes give 15 (GKE) to 120 (EKS).
_GRACE = 15


@dataclass(frozen=True, kw_only=True)
class KubernetesWorkers(KubernetesAdapter):
    """The pods of one cluster.

    :param name: label of the cluster, the same for each try of the task.
    :param image: container image with this package, or with Dask and XGBoost of the same versions.
    :param namespace: that the pods are made in.
    :param cpu: processors that a worker asks for, such as ``"3500m"``. It may use all of its node's that are free,
        and has as many threads as the node has processors.
    :param memory: that a worker gets and may not exceed, such as ``"12Gi"``; no limit when empty.
    :param gpus: of a worker: 0 or 1.
    :param one_per_host: no two workers of the cluster on one node; when None, where they have no GPU.
    :param spot_on: whose spot nodes these are: ``gke``, ``eks``, ``karpenter`` or ``aks``. Workers on spare capacity go
        to them, and the others to other nodes.
    :param spot_label: label and value of spot nodes elsewhere, such as ``{"pool": "spot"}``, in place of ``spot_on``.
    :param node_selector: labels that the nodes must have.
    :param tolerations: of the pods, as in a manifest; those for spot nodes and GPUs are there already.
    :param service_account: of the pods, as which the cloud knows them (Workload Identity, IRSA); its token is not
        mounted.
    :param secret_refs: ``secret:key`` in the namespace for each environment variable that is secret.
    :param claims: folder for each persistent volume claim that is mounted, by the claim's name.
    :param pull_secrets: names of secrets with which the image is pulled.
    :param user: id of the user in the container; 50000 is that of Airflow's image.
    :param priority_class: of the pods.
    :param scheduler: name of the Kubernetes scheduler, where it is not the default one.
    :param labels: of jobs and pods.
    :param annotations: of the pods.
    :param hours: after which Kubernetes ends a worker, whatever it does.
    :param linger: seconds that an ended Job is kept, for its log.
    :param connection: id of the Airflow connection to the cluster.
    """

    name: str
    image: str
    namespace: str = "default"
    cpu: str = ""
    memory: str = ""
    gpus: int = 0
    one_per_host: bool | None = None
    spot_on: str = ""
    spot_label: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    service_account: str = ""
    secret_refs: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)
    pull_secrets: Sequence[str] = ()
    user: int = 50000
    priority_class: str = ""
    scheduler: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    hours: float = 24.0
    linger: float = 120.0
    connection: str = "kubernetes_default"

    def __post_init__(self) -> None:
        if not self.image:
            raise ConfigurationError("workers on Kubernetes need an image", expected="image", found="none")
        if self.gpus not in (0, 1):
            raise ConfigurationError(
                "a worker trains on one GPU", expected="gpus: 0 or 1", found=self.gpus, todo="ask for more workers"
            )
        if self.spot_on and self.spot_on not in SPOT:
            raise ConfigurationError(
                f"the spot nodes of {self.spot_on!r} are unknown", expected=", ".join(SPOT), found=self.spot_on,
                todo="name their label in spot_label",
            )  # fmt: skip
        for variable, ref in self.secret_refs.items():
            if not re.fullmatch(r"[^:\s]+:[^:\s]+", str(ref)):
                raise ConfigurationError(
                    f"{variable} is no reference to a secret", expected="secret:key of the namespace",
                    found="something else",
                )  # fmt: skip

    # --- the verbs of a fleet -------------------------------------------------------------------------------------

    def launch(self, count: int, spot: bool, bootstrap: Bootstrap) -> int:
        """Make pods; whether there is room for them is seen later, in ``why``.

        :param count: how many.
        :param spot: on spot nodes.
        :param bootstrap: what each runs.
        :raises ConfigurationError: when the API server refuses them.
        """
        for _ in range(count):
            name = f"{self.label}-{uuid.uuid4().hex[:5]}"
            made = self.call("create_namespaced_job", body=self.job(name, spot, bootstrap), group="batch")
            # After its owner, so that it never stays without one; the pod waits for it.
            self.call("create_namespaced_secret", body=self.secret(name, made.metadata.uid, bootstrap))
        return count

    def alive(self) -> list[str]:
        """Names of the Jobs whose pod runs or is about to."""
        pods: dict[str, list[Any]] = {}
        for pod in self._pods():
            pods.setdefault(pod.metadata.labels.get(_OF_JOB, ""), []).append(pod)
        return [
            job.metadata.name for job in self._jobs()
            if not job.metadata.deletion_timestamp and not _has_ended(job)
            and all(_may_run(pod) for pod in pods.get(job.metadata.name, []))
        ]  # fmt: skip

    def remove(self) -> list[str]:
        """Delete all Jobs of this label, also those of earlier tries, and by that their pods and secrets."""
        gone = sorted(job.metadata.name for job in self._jobs() if not job.metadata.deletion_timestamp)
        for name in gone:
            self.call("delete_namespaced_job", name, group="batch", propagation_policy="Background", missing=None)
        return gone

    def why(self) -> str:
        """What keeps the pods from running, or has ended them; empty when nothing is known."""
        try:
            pods, jobs = self._pods(), self._jobs()
            told = dict.fromkeys(filter(None, map(_of_pod, sorted(pods, key=lambda pod: str(pod.metadata.name)))))
            without = {job.metadata.name for job in jobs} - {pod.metadata.labels.get(_OF_JOB) for pod in pods}
            if without and not told:
                told = dict.fromkeys(self._refusals(without))
        except (JobError, ConfigurationError) as error:
            return f"the cluster does not tell: {error}"
        return "; ".join(told)

    # --- what is asked for ----------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The cluster's name as part of a pod's name."""
        short = self.name if len(self.name) <= 50 else job_name(self.name, limit=50)
        return re.sub(r"[^a-z0-9-]+", "-", short.lower()).strip("-")

    def job(self, name: str, spot: bool, bootstrap: Bootstrap) -> dict[str, Any]:
        """The manifest of one worker.

        :param name: of the Job and its Secret.
        :param spot: on a spot node.
        :param bootstrap: what it runs.
        """
        labels = {**label_values(dict(self.labels)), LABEL: self.label}
        seconds = round(self.hours * 3600)
        return {
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "backoffLimit": 0, "activeDeadlineSeconds": seconds, "ttlSecondsAfterFinished": round(self.linger),
                "template": {
                    "metadata": {"labels": labels, "annotations": _kept_on_their_node() | dict(self.annotations)},
                    "spec": self._pod(name, spot, bootstrap),
                },
            },
        }  # fmt: skip

    def secret(self, name: str, owner: str, bootstrap: Bootstrap) -> dict[str, Any]:
        """The manifest of a worker's files.

        :param name: of its Job.
        :param owner: uid of its Job.
        :param bootstrap: what it runs.
        """
        own = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner, "blockOwnerDeletion": False}
        return {
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": True,
            "metadata": {"name": name, "labels": {LABEL: self.label}, "ownerReferences": [own]},
            "stringData": dict(bootstrap.files),
        }  # fmt: skip

    def _pod(self, name: str, spot: bool, bootstrap: Bootstrap) -> dict[str, Any]:
        found = {
            "restartPolicy": "Never", "automountServiceAccountToken": False, "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": self.user, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self._container(bootstrap)],
            "volumes": [
                # Only this pod mounts it, whatever its user is.
                {"name": "files", "secret": {"secretName": name, "defaultMode": 0o444}},
                {"name": "tmp", "emptyDir": {}},
                *({"name": f"claim-{at}", "persistentVolumeClaim": {"claimName": claim}}
                  for at, claim in enumerate(self.claims)),
            ],
            "nodeSelector": dict(self.node_selector), "affinity": self._affinity(spot),
            "tolerations": [dict(one) for one in self.tolerations] + self._tolerations(spot),
            "serviceAccountName": self.service_account, "priorityClassName": self.priority_class,
            "schedulerName": self.scheduler,
            "imagePullSecrets": [{"name": secret} for secret in self.pull_secrets],
        }  # fmt: skip
        return {key: value for key, value in found.items() if value not in ("", [], {})}

    def _container(self, bootstrap: Bootstrap) -> dict[str, Any]:
        env = {"HOME": "/tmp", "TMPDIR": "/tmp", "DASK_TEMPORARY_DIRECTORY": "/tmp", **bootstrap.env}
        variables: list[dict[str, Any]] = [{"name": key, "value": str(value)} for key, value in env.items()]
        for variable, ref in self.secret_refs.items():
            secret, _, key = ref.partition(":")
            variables.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
        requests = {"cpu": self.cpu, "memory": self.memory}
        limits = {"memory": self.memory, _GPU: str(self.gpus or "")}
        return {
            "name": "worker", "image": self.image,
            "command": [word.replace(FOLDER, _FOLDER) for word in bootstrap.command if THREADS not in word],
            "env": variables,
            "resources": {"requests": {key: value for key, value in requests.items() if value},
                          "limits": {key: value for key, value in limits.items() if value}},
            "securityContext": {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "files", "mountPath": _FOLDER, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"},
                *({"name": f"claim-{at}", "mountPath": path} for at, path in enumerate(self.claims.values())),
            ],
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }  # fmt: skip

    def _spot(self) -> dict[str, str]:
        return dict(self.spot_label) or (dict([SPOT[self.spot_on]]) if self.spot_on else {})

    def _affinity(self, spot: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        on = [
            {"key": key, "operator": "In" if spot else "NotIn", "values": [value]}
            for key, value in self._spot().items()
        ]
        if on:
            terms = {"nodeSelectorTerms": [{"matchExpressions": on}]}
            found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        if self.one_per_host if self.one_per_host is not None else not self.gpus:
            alone = {
                "labelSelector": {"matchLabels": {LABEL: self.label}},
                "topologyKey": "kubernetes.io/hostname",
            }
            found["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}
        return found

    def _tolerations(self, spot: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": _LOST_NODE} for state in ("not-ready", "unreachable")
        ]  # fmt: skip
        if self.gpus:
            found.append({"key": _GPU, "operator": "Exists", "effect": "NoSchedule"})
        if spot:
            found += [{"key": key, "operator": "Equal", "value": value} for key, value in self._spot().items()]
        return found

    # --- what is there --------------------------------------------------------------------------------------------

    def _jobs(self) -> list[Any]:
        return list(self.call("list_namespaced_job", group="batch", label_selector=f"{LABEL}={self.label}").items)

    def _pods(self) -> list[Any]:
        return list(self.call("list_namespaced_pod", label_selector=f"{LABEL}={self.label}").items)

    def _refusals(self, jobs: set[str]) -> list[str]:
        """Why Jobs have no pod, such as a quota that is used up."""
        try:
            events = self.call("list_namespaced_event", field_selector="involvedObject.kind=Job,type=Warning").items
        except ConfigurationError:  # nobody must be allowed to read events
            return []
        # Each names its own pod.
        return sorted({re.sub(r'"[^"]*" ', "", str(one.message)) for one in events if one.involved_object.name in jobs})


def _kept_on_their_node() -> dict[str, str]:
    """An autoscaler that tidies up must not move a worker: its rows would be read anew."""
    return {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def _has_ended(job: Any) -> bool:
    return any(one.type in _ENDED and one.status == "True" for one in job.status.conditions or [])


def _may_run(pod: Any) -> bool:
    return not pod.metadata.deletion_timestamp and pod.status.phase not in ("Succeeded", "Failed")


def _of_pod(pod: Any) -> str:
    """What keeps a pod from running, or how it ended."""
    if pod.status.phase == "Pending":
        return waits_for(pod)
    if pod.status.phase != "Failed":
        return ""
    state = next((one.state for one in pod.status.container_statuses or [] if one.state and one.state.terminated), None)
    if state is None:
        return ": ".join(filter(None, [pod.status.reason or "a worker failed", pod.status.message]))
    ended = state.terminated
    lines = (ended.message or "").strip().splitlines()
    said = f": {lines[-1].strip()}" if lines else ""
    return f"a worker ended with {ended.reason or 'Error'}, exit code {ended.exit_code}{said}"
