"""A fake YARN for tests of Spark's cluster mode: the ResourceManager's REST API, and a stand-in for spark-submit.

::

    with fake_yarn() as cluster:
        monkeypatch.setenv("SPARK_HOME", str(cluster.spark_home))      # its bin/spark-submit is the stand-in
        spark = {"on": "yarn", "resource_manager": cluster.url, "hadoop_conf": str(cluster.hadoop_conf)}
        cluster.driver = local_driver()     # runs the driver's application through Spark on this machine

The real spark-submit speaks Hadoop's RPC to a ResourceManager, which is not served here. So the stand-in takes the same
command line, finds the cluster by ``yarn-site.xml`` of ``HADOOP_CONF_DIR`` as it does, and registers the application
over HTTP. The REST part keeps what Hadoop's "ResourceManager REST APIs" tell: tags in lower case, ``{"apps": null}``
for none, states, usage, 202 while an application is killed, 403 for another user's. Applications stay ACCEPTED until a
test ends them, or ``driver`` runs them. What it does not do: schedule, restart attempts, forget, check a queue's ACLs.
HTTP on the loopback interface only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

from airflow_provider_sml.testing.core.faults import CALL_FAULTS, Faults
from airflow_provider_sml.testing.core.spark import DEFAULTS, local_settings

#: Gives exit code and output of a driver, from what was submitted; ends early when the event is set.
Driver = Callable[[dict[str, Any], threading.Event], tuple[int, str]]
_ADDRESS = "yarn.resourcemanager.webapp.address"
_STAND_IN = """#!{python}
import sys
sys.path[:0] = {path!r}
from airflow_provider_sml.testing.yarn import stand_in
sys.exit(stand_in(sys.argv[1:]))
"""


class FakeYarn:
    """The applications of a cluster, and the server that serves them.

    :param folder: a folder of its own, for the stand-in and the cluster's settings.
    :param driver: runs every application; None leaves them to the test.
    """

    def __init__(self, folder: Path, driver: Driver | None = None) -> None:
        self.driver = driver
        self.apps: dict[str, dict[str, Any]] = {}
        self.submitted: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self.faults = Faults()
        #: The value of ``Authorization`` that is wanted, and what a request without it is told to send.
        self.authorization, self.challenge = "", "Basic"
        self.standby = False
        self.queues = {"default"}
        #: Looks at the state that a killed application goes on running for.
        self.dying = 1
        self.lock = threading.RLock()
        self._killed: dict[str, threading.Event] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        self.spark_home, self.hadoop_conf = folder / "spark", folder / "conf"
        self._write()

    def close(self) -> None:
        """End it, and the drivers that run."""
        for event in self._killed.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()

    def _write(self) -> None:
        script = self.spark_home / "bin" / "spark-submit"
        script.parent.mkdir(parents=True)
        root = str(Path(__file__).resolve().parents[2])
        script.write_text(_STAND_IN.format(python=sys.executable, path=[root]))
        script.chmod(0o755)
        self.hadoop_conf.mkdir(parents=True)
        entry = f"<property><name>{_ADDRESS}</name><value>{self.url.removeprefix('http://')}</value></property>"
        (self.hadoop_conf / "yarn-site.xml").write_text(f"<configuration>{entry}</configuration>")

    def end(self, job_id: str, final: str = "SUCCEEDED", state: str = "FINISHED", diagnostics: str = "") -> None:
        """End an application, unless it has ended.

        :param final: its ``finalStatus``.
        """
        with self.lock:
            app = self.apps[job_id]
            if app["state"] not in ("FINISHED", "FAILED", "KILLED"):
                app |= {"state": state, "finalStatus": final, "diagnostics": diagnostics, "progress": 100.0}
                app |= {"finishedTime": int(time.time() * 1000), "memorySeconds": 7_372_800, "vcoreSeconds": 3_600}

    # --- what is asked --------------------------------------------------------------------------------------------

    def register(self, given: dict[str, Any]) -> str:
        """What a submission over RPC does.

        :param given: ``conf``, ``application``, ``arguments`` and ``user``.
        """
        conf, user = given["conf"], given["user"]
        tags = [tag.strip().lower() for tag in conf.get("spark.yarn.tags", "").split(",") if tag.strip()]
        if len(tags) > 10 or any(len(tag) > 100 or not tag.isascii() for tag in tags):
            raise ValueError("IllegalArgumentException: too many tags, or one that is too long or not ASCII")
        with self.lock:
            number = len(self.apps) + 1
            job_id = f"application_1700000000000_{number:04d}"
            container = f"container_1700000000000_{number:04d}_01_000001"
            queue = conf.get("spark.yarn.queue", "default")
            self.submitted[job_id] = given
            self.apps[job_id] = {
                "id": job_id, "user": user, "name": conf.get("spark.app.name", ""), "queue": queue, "state": "ACCEPTED",
                "finalStatus": "UNDEFINED", "progress": 0.0, "trackingUI": "UNASSIGNED", "applicationType": "SPARK",
                "trackingUrl": f"{self.url}/proxy/{job_id}/", "applicationTags": ",".join(sorted(tags)),
                "diagnostics": "waiting for AM container to be allocated", "startedTime": int(time.time() * 1000),
                "finishedTime": 0, "amContainerLogs": f"{self.url}/node/containerlogs/{container}/{user}",
            }  # fmt: skip
            self._killed[job_id] = threading.Event()
        if queue not in self.queues:
            said = f"Failed to submit {job_id} to YARN : Application submitted by {user} to unknown queue: {queue}"
            self.end(job_id, "FAILED", "FAILED", said)
            raise ValueError(f"org.apache.hadoop.yarn.exceptions.YarnException: {said}")
        if self.driver is not None:
            threading.Thread(target=self._drive, args=(job_id, self.driver), daemon=True).start()
        return job_id

    def _drive(self, job_id: str, driver: Driver) -> None:
        with self.lock:
            self.apps[job_id] |= {"state": "RUNNING", "diagnostics": ""}
        code, self.logs[job_id] = driver(self.submitted[job_id], self._killed[job_id])
        if self._killed[job_id].is_set():
            self.end(job_id, "KILLED", "KILLED", self._killed_by(job_id))
        said = f"User application exited with status {code}" if code else ""
        self.end(job_id, "FAILED" if code else "SUCCEEDED", "FINISHED", said)

    def _killed_by(self, job_id: str) -> str:
        return f"Application {job_id} was killed by user {self.apps[job_id]['user']}"

    def kill(self, job_id: str, user: str) -> tuple[int, dict[str, Any]]:
        """Kill an application; it goes on for as many looks as ``dying`` says."""
        with self.lock:
            app = self.apps[job_id]
            if app["state"] in ("FINISHED", "FAILED", "KILLED"):
                return 200, {"state": app["state"]}
            if user != app["user"]:
                return _refused(403, "ForbiddenException", f"User {user} cannot kill {job_id}")
            self._killed[job_id].set()
            app.setdefault("dying", self.dying)
            return 202, {"state": app["state"]}

    def look(self, job_id: str) -> dict[str, Any]:
        """An application as it is told."""
        with self.lock:
            app = self.apps[job_id]
            if "dying" in app:
                app["dying"] -= 1
                if app["dying"] < 0:
                    self.end(job_id, "KILLED", "KILLED", self._killed_by(job_id))
            return {key: value for key, value in app.items() if key != "dying"}

    def found(self, tags: list[str]) -> list[dict[str, Any]]:
        """The applications that have one of the tags; YARN tells them in no certain order."""
        with self.lock:
            fit = [key for key, app in self.apps.items() if set(tags) & set(app["applicationTags"].split(","))]
            return [self.look(key) for key in reversed(fit)]


def _refused(code: int, kind: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"RemoteException": {"exception": kind, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: FakeYarn

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query)
        cluster, given = self.cluster, self.headers.get("Authorization") or ""
        user = asked.get("user.name", ["dr.who"])[0] if not given else "gateway"
        cluster.asked.append((self.command, parts.path, user, given))
        fault = cluster.faults.take(CALL_FAULTS, self.command, parts.path)
        if fault is not None and fault.kind == "drop_before":
            self._drop()
        elif cluster.standby:
            self._send(307, "This is standby RM.", {"Location": "http://127.0.0.1:1/elsewhere"})
        elif parts.path.startswith("/ws/v1/cluster") and given != cluster.authorization:
            self._send(401, "Authentication required", {"WWW-Authenticate": cluster.challenge})
        elif fault is not None and fault.kind in ("denied", "server_error", "throttle"):
            code = {"denied": 403, "server_error": 500, "throttle": 429}[fault.kind]
            self._send(*_refused(code, "Exception", "as the test wants it"))
        else:
            answer = self._route(parts.path.strip("/").split("/"), asked, body, user)
            if fault is not None:
                self._drop()
            else:
                self._send(*answer)

    def _route(self, path: list[str], asked: dict[str, list[str]], body: bytes, user: str) -> tuple[int, Any]:
        cluster = self.cluster
        match (self.command, path):
            case "POST", ["fake", "submit"]:  # in the place of Hadoop's RPC
                try:
                    return 200, {"id": cluster.register(json.loads(body))}
                except ValueError as error:
                    return 400, {"error": str(error)}
            case "GET", ["ws", "v1", "cluster", "apps"]:
                found = cluster.found(asked.get("applicationTags", [""])[0].split(","))
                return 200, {"apps": {"app": found} if found else None}
            case "GET", ["ws", "v1", "cluster", "apps", job_id] if job_id in cluster.apps:
                return 200, {"app": cluster.look(job_id)}
            case "PUT", ["ws", "v1", "cluster", "apps", job_id, "state"] if job_id in cluster.apps:
                if json.loads(body) != {"state": "KILLED"}:
                    return _refused(400, "BadRequestException", "only KILLED")
                return cluster.kill(job_id, user)
            case "GET", ["ws", "v1", "node", "containers", container, "logs", "stdout"]:
                job_id = container.replace("container", "application").removesuffix("_01_000001")
                size = int(asked["size"][0])
                if job_id in cluster.logs:
                    return 200, cluster.logs[job_id][size:]
        return _refused(404, "NotFoundException", f"{'/'.join(path)} not found")

    def _send(self, status: int, content: Any, more: dict[str, str] | None = None) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for key, value in (more or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet; what was asked is recorded."""


@contextlib.contextmanager
def fake_yarn(driver: Driver | None = None) -> Iterator[FakeYarn]:
    """Run a cluster for as long as the context is open.

    :param driver: runs every application.
    """
    with tempfile.TemporaryDirectory(prefix="yarn-") as folder:
        cluster = FakeYarn(Path(folder), driver)
        try:
            yield cluster
        finally:
            cluster.close()


def stand_in(arguments: list[str]) -> int:
    """What the stand-in for spark-submit does: register the application of a command line; gives the exit code.

    :param arguments: of spark-submit, as ``SparkYarnJob`` gives them.
    """
    folder = os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR")
    if not folder:
        print("Exception: either HADOOP_CONF_DIR or YARN_CONF_DIR must be set in the environment.")
        return 1
    if arguments[:4] != ["--master", "yarn", "--deploy-mode", "cluster"]:
        print("Exception: this stand-in knows YARN's cluster mode only")
        return 1
    rest, conf = arguments[4:], {}
    while rest[:1] == ["--conf"]:
        key, _, value = rest[1].partition("=")
        conf[key], rest = value, rest[2:]
    properties = ElementTree.parse(Path(folder) / "yarn-site.xml").getroot()
    address = next(one.findtext("value") for one in properties if one.findtext("name") == _ADDRESS)
    user = os.environ.get("HADOOP_USER_NAME", "worker")
    given: dict[str, Any] = {"conf": conf, "application": rest[0], "arguments": rest[1:], "user": user}
    given["python"] = os.environ.get("PYSPARK_PYTHON")
    request = urllib.request.Request(f"http://{address}/fake/submit", json.dumps(given).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            print(f"INFO Client: Submitted application {json.load(answer)['id']}")
    except OSError as error:
        read = getattr(error, "read", None)
        print(f"Exception in thread main {json.loads(read())['error'] if read else error}")
        return 1
    return 0


def local_driver(within: float = 280.0) -> Driver:
    """Runs applications through Spark on this machine, with the arguments and settings of the submission.

    :param within: seconds.
    """

    def drive(given: dict[str, Any], killed: threading.Event) -> tuple[int, str]:
        import pyspark

        own = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        env = {key: value for key, value in os.environ.items() if key != "SPARK_HOME"} | own
        away = ("spark.yarn", "spark.authenticate", "spark.network", "spark.dynamicAllocation", "spark.driver.")
        submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
        kept = {key: value for key, value in given["conf"].items() if not key.startswith(away)}
        conf = DEFAULTS | kept | local_settings(submit)
        settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
        command = [submit, "--master", "local[2]", *settings, given["application"], *given["arguments"]]
        with tempfile.TemporaryFile() as out:
            running = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            end = time.monotonic() + within
            while running.poll() is None:
                if killed.wait(0.1) or time.monotonic() > end:
                    os.killpg(running.pid, signal.SIGKILL)  # Java, and the Python that it started
                    running.wait()
            out.seek(0)
            return abs(running.returncode), out.read().decode(errors="replace")

    return drive
