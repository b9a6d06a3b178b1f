"""Simulated nodes of a real Kubernetes control plane: a small kubelet that runs pods as processes of this machine.

A pod that the scheduler has put on one of these nodes runs its first container's command, with the variables of the
manifest and of Secrets, in a process group of its own; folders that the pod mounts are folders of this machine, and the
command's words and variables are rewritten to them. Its state is told as a kubelet does. A pod that is deleted ends by
SIGTERM, then SIGKILL. ``Nodes.take`` takes a node away as spot capacity is: its pods end by SIGTERM within a notice,
then the node is gone. ``Nodes.lose`` takes it without a word.

An image whose name begins with ``missing/`` cannot be pulled. Not simulated: images, users, cgroups, probes, volumes
other than Secrets and emptyDir, more than one container.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_PULSE = 0.15


class Api(Protocol):
    """How the API server is asked."""

    def call(self, method: str, path: str, body: Any = None, kind: str = ..., **query: Any) -> Any:
        """Ask it."""


@dataclass
class _Pod:
    """A pod that runs here.

    :param process: of its container.
    :param folder: of its files and its log.
    :param kill_at: monotonic time of SIGKILL; None while it may run.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    kill_at: float | None = None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Nodes:
    """The nodes of a cluster, and the pods on them.

    :param api: of the cluster.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        #: Of the nodes that are there.
        self.names: set[str] = set()
        self._pods: dict[str, _Pod] = {}
        self._told: set[tuple[str, str]] = set()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        #: Errors of this kubelet itself, for the test that wonders.
        self.errors: list[str] = []

    def add(
        self, name: str, *, cpu: float = 4, memory: str = "16Gi", gpus: int = 0,
        labels: Mapping[str, str] | None = None, taints: Sequence[Mapping[str, str]] = (),
    ) -> None:  # fmt: skip
        """Add a node.

        :param name: of the node.
        :param cpu: processors that pods may ask for.
        :param memory: that they may ask for.
        :param gpus: of type ``nvidia.com/gpu``.
        :param labels: besides its host name.
        :param taints: with key, value and effect.
        """
        own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})}
        node = {"metadata": {"name": name, "labels": own}, "spec": {"taints": [dict(taint) for taint in taints]}}
        self._api.call("POST", "/api/v1/nodes", node)
        size = {"cpu": str(cpu), "memory": memory, "pods": "110", "ephemeral-storage": "100Gi"}
        size |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
        status = {"capacity": size, "allocatable": size, "conditions": [ready]}
        self._api.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})
        with self._lock:
            self.names.add(name)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="kubelet", daemon=True)
                self._thread.start()

    def remove_all(self) -> None:
        """Take all nodes away at once."""
        for name in list(self.names):
            self.take(name, notice=0)

    def take(self, name: str, notice: float = 1.0) -> None:
        """Take a node away as spot capacity is.

        :param notice: seconds that its pods have between SIGTERM and SIGKILL.
        """
        with self._lock:
            own = [pod for pod in self._listed() if pod["spec"].get("nodeName") == name]
            for pod in own:
                self._end(pod["metadata"]["uid"], notice)
        until = time.monotonic() + notice + 2
        while any(self._runs(pod["metadata"]["uid"]) for pod in own) and time.monotonic() < until:
            time.sleep(_PULSE)
        for pod in own:
            with self._lock, contextlib.suppress(Exception):
                self._tell(pod, {"phase": "Failed", "reason": "Terminated", "message": "the node was shut down"})
        self.lose(name)

    def lose(self, name: str) -> None:
        """Take a node away without a word: its processes are killed, and nothing tells of them."""
        with self._lock:
            self.names.discard(name)
            for pod in self._listed():
                if pod["spec"].get("nodeName") == name:
                    self._end(pod["metadata"]["uid"], 0)
                    self._reap(pod["metadata"]["uid"])
            with contextlib.suppress(Exception):
                self._api.call("DELETE", f"/api/v1/nodes/{name}")

    def processes(self) -> list[int]:
        """Ids of the processes of pods that run."""
        with self._lock:
            return [pod.process.pid for pod in self._pods.values() if pod.process.poll() is None]

    def log(self, uid: str) -> str:
        """What a pod has said so far.

        :param uid: of the pod.
        """
        pod = self._pods.get(uid)
        return (pod.folder / "log").read_text(errors="replace") if pod else ""

    def close(self) -> None:
        """End all that runs."""
        self._ended.set()
        if self._thread:
            self._thread.join()
        for uid in list(self._pods):
            self._end(uid, 0)
            self._reap(uid)

    # --- the kubelet ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended.wait(_PULSE):
            try:
                with self._lock:
                    self._sync()
            except Exception as error:  # the API server may be gone for a moment; the next look is better
                self.errors.append(repr(error))

    def _listed(self) -> list[dict[str, Any]]:
        return list(
            self._api.call("GET", "/api/v1/pods", fieldSelector="spec.nodeName!=", resourceVersion="0")["items"]
        )

    def _sync(self) -> None:
        pods = {pod["metadata"]["uid"]: pod for pod in self._listed() if pod["spec"]["nodeName"] in self.names}
        for uid, pod in pods.items():
            try:
                self._one(uid, pod)
            except Exception as error:  # of this pod; the others go on
                self.errors.append(f"{pod['metadata']['name']}: {error!r}")
        for uid in set(self._pods) - set(pods):
            self._end(uid, 0)
            self._reap(uid)
        for running in self._pods.values():
            if running.kill_at is not None and time.monotonic() >= running.kill_at:
                running.signal(signal.SIGKILL)

    def _one(self, uid: str, pod: dict[str, Any]) -> None:
        phase, deleted = pod["status"].get("phase"), "deletionTimestamp" in pod["metadata"]
        running = self._pods.get(uid)
        if running is None:
            if deleted:
                self._forget(pod)
            elif phase == "Pending":
                self._start(uid, pod)
            return
        if deleted and running.kill_at is None:
            self._end(uid, pod["metadata"].get("deletionGracePeriodSeconds", 30))
        if (code := running.process.poll()) is not None:
            if phase in ("Pending", "Running"):
                self._tell(pod, self._outcome(running, code))
            if deleted:
                self._forget(pod)

    def _start(self, uid: str, pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        if container["image"].startswith("missing/"):
            self._waits(uid, pod, "ImagePullBackOff", f'Back-off pulling image "{container["image"]}"')
            return
        try:
            folder, mounts = self._mounted(pod, container)
            env = self._env(pod, container)
        except Exception as error:  # its Secret is not there yet, or never will be
            self._waits(uid, pod, "CreateContainerConfigError", str(error))
            return
        words = [_inside(word, mounts) for word in [*container.get("command", []), *container.get("args", [])]]
        env = {key: _inside(value, mounts) for key, value in env.items()}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        own = {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                words, env=own | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pods[uid] = _Pod(process, folder)
        state = {"running": {"startedAt": _now()}}
        ready = [
            {"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "Initialized", "PodScheduled")
        ]
        self._tell(pod, {"phase": "Running", "podIP": "127.0.0.1", "conditions": ready, **_container(pod, state, True)})

    def _waits(self, uid: str, pod: dict[str, Any], reason: str, message: str) -> None:
        if (uid, message) not in self._told:
            self._told.add((uid, message))
            self._tell(
                pod, {"phase": "Pending", **_container(pod, {"waiting": {"reason": reason, "message": message}})}
            )

    def _mounted(self, pod: dict[str, Any], container: dict[str, Any]) -> tuple[Path, dict[str, str]]:
        """The folder of a pod, and the folder of this machine for each that it mounts."""
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        contents = {
            name: self._secret(pod, volume["secret"]["secretName"])
            for name, volume in volumes.items() if "secret" in volume
        }  # fmt: skip
        folder, mounts = Path(tempfile.mkdtemp(prefix="sml-pod-")), {}
        for mount in container.get("volumeMounts", []):
            place = folder / mount["name"]
            place.mkdir(exist_ok=True)
            mounts[mount["mountPath"].rstrip("/")] = str(place)
            for key, value in contents.get(mount["name"], {}).items():
                (place / key).touch(mode=0o600)
                (place / key).write_bytes(value)
        return folder, mounts

    def _env(self, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        found = {}
        for one in container.get("env", []):
            ref = one.get("valueFrom", {}).get("secretKeyRef")
            value = self._secret(pod, ref["name"])[ref["key"]].decode() if ref else one.get("value", "")
            found[one["name"]] = value
        return found

    def _secret(self, pod: dict[str, Any], name: str) -> dict[str, bytes]:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{name}"
        data = self._api.call("GET", path).get("data", {})
        return {key: base64.b64decode(value) for key, value in data.items()}

    def _outcome(self, running: _Pod, code: int) -> dict[str, Any]:
        said = (running.folder / "log").read_text(errors="replace")[-2048:]
        code = code if code >= 0 else 128 - code
        state = {
            "exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": _now(),
            "message": said if code else "",
        }  # fmt: skip
        return {"phase": "Failed" if code else "Succeeded", "_state": {"terminated": state}}

    def _tell(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        if state := status.pop("_state", None):
            status |= _container(pod, state)
        own = pod["metadata"]
        self._api.call("PATCH", f"/api/v1/namespaces/{own['namespace']}/pods/{own['name']}/status", {"status": status})

    def _forget(self, pod: dict[str, Any]) -> None:
        own = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": own["uid"]}}
        with contextlib.suppress(Exception):  # it may be gone already
            self._api.call("DELETE", f"/api/v1/namespaces/{own['namespace']}/pods/{own['name']}", options)

    def _runs(self, uid: str) -> bool:
        return uid in self._pods and self._pods[uid].process.poll() is None

    def _end(self, uid: str, grace: float) -> None:
        """Let a pod's processes end: SIGTERM now, and SIGKILL after the grace."""
        if (running := self._pods.get(uid)) and self._runs(uid):
            running.signal(signal.SIGTERM if grace else signal.SIGKILL)
            running.kill_at = time.monotonic() + grace

    def _reap(self, uid: str) -> None:
        """Forget a pod whose processes end now."""
        if running := self._pods.pop(uid, None):
            running.signal(signal.SIGKILL)
            running.process.wait()
            shutil.rmtree(running.folder, ignore_errors=True)


def _container(pod: dict[str, Any], state: dict[str, Any], ready: bool = False) -> dict[str, Any]:
    container = pod["spec"]["containers"][0]
    one = {
        "name": container["name"], "image": container["image"], "imageID": "", "ready": ready, "restartCount": 0,
        "state": state,
    }  # fmt: skip
    return {"containerStatuses": [one]}


def _inside(word: str, mounts: Mapping[str, str]) -> str:
    """A word with a folder of the pod turned into one of this machine; a file that is there, such as Python, stays."""
    if Path(word).is_file():
        return word
    for path, place in mounts.items():
        if word == path or word.startswith(f"{path}/"):
            return place + word[len(path) :]
    return word


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
