"""A fake API server of Kubernetes for tests of Spark's cluster mode: what spark-submit and a client of pods ask of it.

::

    with fake_kubernetes() as cluster:
        conn = {"conn_type": "kubernetes", "extra": {"kube_config": cluster.kubeconfig()}}
        cluster.driver = local_driver()     # runs the driver's application through Spark on this machine

It keeps pods, config maps, services and secrets of namespaces, refuses a name that is taken, a wrong token and what
``denied`` names, answers label selectors and watches, and deletes what an owner owns. Pods stay Pending until a test
sets their phase, or ``driver`` runs them. What it does not do: validate objects against Kubernetes' schema, schedule,
or check roles. HTTP on the loopback interface only.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_provider_sml.testing.core.faults import CALL_FAULTS, Faults
from airflow_provider_sml.testing.core.spark import DEFAULTS, local_settings

KINDS = {"pods": "Pod", "configmaps": "ConfigMap", "services": "Service", "secrets": "Secret"}
TOKEN = "token-of-the-tests"
#: Gives exit code and log of a driver's pod.
Driver = Callable[[dict[str, Any], dict[str, str]], tuple[int, str]]


class FakeKubernetes:
    """The objects of a cluster, and the server that serves them.

    :param driver: runs every driver's pod once it has its settings; None leaves pods to the test.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.faults = Faults()
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, token: str = TOKEN) -> dict[str, Any]:
        """A kubeconfig whose user may do everything, unless the token is wrong."""
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": self.url}}],
            "users": [{"name": "tests", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }  # fmt: skip

    def pods(self, namespace: str = "default") -> dict[str, dict[str, Any]]:
        """The pods of a namespace by name."""
        with self.lock:
            found = [key for key in self.objects if key[:2] == (namespace, "pods")]
            return {key[2]: self.objects[key] for key in sorted(found)}

    def set_phase(self, name: str, phase: str, namespace: str = "default", **more: Any) -> None:
        """Bring a pod to a phase.

        :param more: of its status, such as ``reason``; ``exit_code`` ends its container.
        """
        code = more.pop("exit_code", None)
        with self.lock:
            pod = self.objects[namespace, "pods", name]
            pod["status"] |= {"phase": phase} | more
            if code is not None:
                ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
                container = {"name": pod["spec"]["containers"][0]["name"], "ready": False, "restartCount": 0}
                pod["status"]["containerStatuses"] = [
                    container | {"image": "", "imageID": "", "state": {"terminated": ended}}
                ]

    def run_driver(self, namespace: str, name: str) -> None:
        """Run a driver's pod as soon as its settings are there."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with self.lock:
                pod = copy.deepcopy(self.objects.get((namespace, "pods", name)))
                maps = [volume["configMap"]["name"] for volume in _volumes(pod) if "configMap" in volume]
                found = [self.objects.get((namespace, "configmaps", one)) for one in maps]
            if pod is None:
                return
            if found and all(found):
                break
            time.sleep(0.05)
        else:
            return
        data = {key: value for one in found if one for key, value in one.get("data", {}).items()}
        self.set_phase(name, "Running", namespace)
        assert self.driver is not None
        code, self.logs[name] = self.driver(pod, data)
        with contextlib.suppress(KeyError):  # deleted meanwhile
            self.set_phase(name, "Failed" if code else "Succeeded", namespace, exit_code=code)

    # --- what is asked --------------------------------------------------------------------------------------------

    def make(self, namespace: str, kind: str, content: dict[str, Any], over: bool) -> tuple[int, dict[str, Any]]:
        """Make an object.

        :param over: whether one that is there is replaced, as server-side apply does.
        """
        name = content["metadata"].get("name") or content["metadata"]["generateName"] + uuid.uuid4().hex[:5]
        with self.lock:
            if (namespace, kind, name) in self.objects and not over:
                return _status(409, "AlreadyExists", f'{kind} "{name}" already exists')
            moment = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            content["metadata"] |= {
                "name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": moment,
                "resourceVersion": "1",
            }  # fmt: skip
            if kind == "pods":
                content["status"] = {"phase": "Pending"}
            self.objects[namespace, kind, name] = content
        if kind == "pods" and self.driver is not None:
            threading.Thread(target=self.run_driver, args=(namespace, name), daemon=True).start()
        return 201, content

    def delete(self, namespace: str, kind: str, name: str) -> tuple[int, dict[str, Any]]:
        """Delete an object, and what it owns."""
        with self.lock:
            gone = self.objects.pop((namespace, kind, name), None)
            if gone is None:
                return _status(404, "NotFound", f'{kind} "{name}" not found')
            owned = [key for key, one in self.objects.items() if gone["metadata"]["uid"] in _owners(one)]
            for key in owned:
                self.delete(*key)
        return 200, gone

    def list(self, namespace: str, kind: str, asked: dict[str, list[str]]) -> dict[str, Any]:
        """The objects of a kind that fit the selectors."""
        wanted = [part for part in asked.get("labelSelector", [""])[0].split(",") if part]
        named = asked.get("fieldSelector", [""])[0].removeprefix("metadata.name=")
        with self.lock:
            items = [
                one for key, one in sorted(self.objects.items())
                if key[:2] == (namespace, kind) and (not named or key[2] == named)
                and all(_fits(one["metadata"].get("labels", {}), part) for part in wanted)
            ]  # fmt: skip
        return {"kind": f"{KINDS[kind]}List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}


def _fits(labels: dict[str, str], part: str) -> bool:
    key, equal, value = part.partition("=")
    return labels.get(key) == value.lstrip("=") if equal else key in labels


def _owners(one: dict[str, Any]) -> list[str]:
    return [owner["uid"] for owner in one["metadata"].get("ownerReferences", [])]


def _volumes(pod: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list(pod["spec"].get("volumes", [])) if pod else []


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    }  # fmt: skip


def _events(items: list[dict[str, Any]]) -> str:
    """What a watch tells of things that are there; then it ends, and a client that wants more asks again."""
    return "".join(json.dumps({"type": "ADDED", "object": one}) + "\n" for one in items)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: FakeKubernetes

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query)
        self.cluster.asked.append((self.command, parts.path))
        fault = self.cluster.faults.take(CALL_FAULTS, self.command, parts.path)
        if fault is not None and fault.kind == "drop_before":
            self._drop()
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(*_status(401, "Unauthorized", "Unauthorized"))
        elif fault is not None and fault.kind == "denied":
            self._send(*_status(403, "Forbidden", f"User cannot {self.command} {parts.path}"))
        elif fault is not None and fault.kind in ("server_error", "throttle"):
            self._send(*_status(500 if fault.kind == "server_error" else 429, "InternalError", "try again"))
        else:
            answer = self._route(parts.path.strip("/").split("/"), asked, body)
            if fault is not None:
                self._drop()
            else:
                self._send(*answer)

    def _route(self, path: list[str], asked: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, Any] | str]:
        cluster = self.cluster
        match (self.command, path):
            case "GET", ["version"]:
                return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.4"}
            case "GET", ["api", "v1", "namespaces", space, kind] if kind in KINDS:
                found = cluster.list(space, kind, asked)
                return 200, _events(found["items"]) if asked.get("watch") == ["true"] else found
            case "POST", ["api", "v1", "namespaces", space, kind] if kind in KINDS:
                return cluster.make(space, kind, json.loads(body), over=False)
            case "PATCH", ["api", "v1", "namespaces", space, kind, _] if kind in KINDS:
                return cluster.make(space, kind, json.loads(body), over=True)
            case "GET", ["api", "v1", "namespaces", space, "pods", name, "log"]:
                if (space, "pods", name) in cluster.objects:
                    return 200, cluster.logs.get(name, "")
            case "GET", ["api", "v1", "namespaces", space, kind, name]:
                if (space, kind, name) in cluster.objects:
                    return 200, cluster.objects[space, kind, name]
            case "DELETE", ["api", "v1", "namespaces", space, kind, name]:
                return cluster.delete(space, kind, name)
        return _status(404, "NotFound", f"{self.command} {'/'.join(path)} not found")

    def _send(self, status: int, content: dict[str, Any] | str) -> None:
        with self.cluster.lock:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet; what was asked is recorded."""


@contextlib.contextmanager
def fake_kubernetes(driver: Driver | None = None) -> Iterator[FakeKubernetes]:
    """Run a cluster for as long as the context is open.

    :param driver: runs every driver's pod.
    """
    cluster = FakeKubernetes(driver)
    try:
        yield cluster
    finally:
        cluster.close()


def local_driver(secrets: dict[str, str] | None = None, within: float = 280.0) -> Driver:
    """Runs drivers through Spark on this machine, with the application, arguments and settings of the pod.

    :param secrets: values of the environment variables that the pod takes from secrets.
    :param within: seconds.
    """

    def drive(pod: dict[str, Any], data: dict[str, str]) -> tuple[int, str]:
        from airflow_provider_sml.cloud.spark_submit import find_spark_submit

        container = pod["spec"]["containers"][0]
        given = container["args"]
        application, *arguments = given[given.index("org.apache.spark.deploy.PythonRunner") + 1 :]
        named = {one["name"] for one in container.get("env", []) if "secretKeyRef" in one.get("valueFrom", {})}
        own = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        own |= {key: value for key, value in (secrets or {}).items() if key in named}
        with tempfile.TemporaryDirectory() as folder:
            properties = Path(folder) / "spark.properties"
            kept = [line for line in data["spark.properties"].splitlines() if not _of_the_cluster(line)]
            properties.write_text("\n".join([*(f"{key}={value}" for key, value in DEFAULTS.items()), *kept]))
            submit = find_spark_submit()
            local = local_settings(submit)
            settings = [part for key, value in local.items() for part in ("--conf", f"{key}={value}")]
            done = subprocess.run(
                [submit, "--master", "local[2]", "--properties-file", str(properties), *settings,
                 application, *arguments],
                env=dict(os.environ) | own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=within,
            )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    return drive


def _of_the_cluster(line: str) -> bool:
    key = line.partition("=")[0].strip()
    own = ("spark.master", "spark.submit", "spark.driver.", "spark.kubernetes", "spark.authenticate", "spark.network")
    return key.startswith(own)
