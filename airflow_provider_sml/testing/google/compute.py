"""A fake Compute Engine: the part of its REST API that starts, lists and deletes instances.

Requests are read into the vendor's own message types, so that a field which they do not have is refused. An instance
takes its place at once, or there is no room for it, which shows in the operation as it does there. One request id makes
one instance. Not here: images, networks and quotas as such, permissions, other resources.

Google's client and Airflow's connections reach it by ``SML_COMPUTE_EMULATOR``.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.cloud import compute_v1
from google.protobuf.json_format import ParseError

from airflow_provider_sml.testing.google.errors import GoogleError

_PATH = re.compile(r"/compute/v1/projects/(?P<project>[^/]+)/zones/(?P<zone>[^/]+)/(?P<kind>\w+)(?:/(?P<name>[^/]+))?$")
_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403}
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}$")


class FakeCompute:
    """Serves on the loopback interface until it is closed.

    :param project: the project's id.
    """

    def __init__(self, project: str = "fake-project") -> None:
        self.project = project
        self.instances: dict[tuple[str, str], compute_v1.Instance] = {}
        self.requests: list[compute_v1.InsertInstanceRequest] = []
        #: Error of the operation for a type and zone, such as ``{"n2-standard-16 europe-west1-b": "QUOTA_EXCEEDED"}``.
        self.full: dict[str, str] = {}
        #: Replies to inserts that are lost.
        self.lost = 0
        self._operations: dict[str, dict[str, Any]] = {}
        self._by_request: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def scripts(self) -> dict[str, str]:
        """The startup script of each instance that runs, by its name."""
        with self._lock:
            found = {name: each for (_, name), each in self.instances.items() if each.status == "RUNNING"}
        return {
            name: next(item.value for item in each.metadata.items if item.key == "startup-script")
            for name, each in found.items()
        }

    def terminate(self, name: str) -> None:
        """An instance shuts itself down, or is preempted: a spot instance is deleted, as it asked."""
        with self._lock:
            for place, instance in list(self.instances.items()):
                if place[1] == name and instance.scheduling.provisioning_model == "SPOT":
                    del self.instances[place]
                elif place[1] == name:
                    instance.status = "TERMINATED"

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """Answer a request."""
        address = urlsplit(path)
        found = _PATH.match(address.path)
        asked = {key: values[0] for key, values in parse_qs(address.query).items()}
        if found is None or found["project"] != self.project:
            raise GoogleError("NOT_FOUND", f"The resource '{address.path}' was not found")
        zone, name = found["zone"], found["name"] or ""
        answers: dict[tuple[str, str, bool], Callable[[], dict[str, Any]]] = {
            ("POST", "instances", False): lambda: self._insert(zone, body, asked),
            ("GET", "instances", False): lambda: self._list(zone, asked.get("filter", "")),
            ("DELETE", "instances", True): lambda: self._delete(zone, name),
            ("GET", "operations", True): lambda: self._operation(name),
        }
        answer = answers.get((method, found["kind"], bool(name)))
        if answer is None:
            raise GoogleError("NOT_FOUND", f"the fake does not answer {method} {address.path}")
        with self._lock:
            return answer()

    def _insert(self, zone: str, body: bytes, asked: dict[str, str]) -> dict[str, Any]:
        request_id = asked.get("requestId", "")
        if request_id in self._by_request:
            return self._operation(self._by_request[request_id])
        try:
            instance = compute_v1.Instance.from_json(body.decode(), ignore_unknown_fields=False)
        except ParseError as error:
            raise GoogleError("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
        _check(instance, "sourceInstanceTemplate" in asked, zone)
        if (zone, instance.name) in self.instances:
            raise GoogleError("ALREADY_EXISTS", f"The resource '{instance.name}' already exists")
        self.requests.append(
            compute_v1.InsertInstanceRequest(
                project=self.project, zone=zone, instance_resource=instance, request_id=request_id,
                source_instance_template=asked.get("sourceInstanceTemplate"),
            )
        )  # fmt: skip
        code = self.full.get(f"{instance.machine_type.rpartition('/')[2]} {zone}", "")
        if not code:
            instance.status, instance.zone = "RUNNING", zone
            self.instances[zone, instance.name] = instance
        made = self._made("insert", zone, code)
        if request_id:
            self._by_request[request_id] = made["name"]
        return made

    def _list(self, zone: str, wanted: str) -> dict[str, Any]:
        key, _, value = wanted.removeprefix("labels.").partition("=")
        found = [
            json.loads(compute_v1.Instance.to_json(instance, including_default_value_fields=False))
            for place, instance in self.instances.items()
            if place[0] == zone and (not wanted or instance.labels.get(key) == value)
        ]
        return {"kind": "compute#instanceList", "items": found}

    def _delete(self, zone: str, name: str) -> dict[str, Any]:
        if self.instances.pop((zone, name), None) is None:
            raise GoogleError("NOT_FOUND", f"The resource '{name}' was not found")
        return self._made("delete", zone, "")

    def _made(self, kind: str, zone: str, code: str) -> dict[str, Any]:
        name = f"operation-{uuid.uuid4().hex}"
        made: dict[str, Any] = {"name": name, "operationType": kind, "zone": zone, "status": "DONE"}
        if code:
            made["error"] = {"errors": [{"code": code, "message": "There is no room."}]}
        self._operations[name] = made
        # The first look finds it at work.
        return {"name": name, "operationType": kind, "zone": zone, "status": "RUNNING"}

    def _operation(self, name: str) -> dict[str, Any]:
        if name not in self._operations:
            raise GoogleError("NOT_FOUND", f"The resource '{name}' was not found")
        return self._operations[name]


def _check(instance: compute_v1.Instance, template: bool, zone: str) -> None:
    """Refuse an instance as Compute Engine does."""
    given: dict[str, Any] = {"machineType": instance.machine_type}
    if not template:
        given |= {"disks": instance.disks, "networkInterfaces": instance.network_interfaces}
    for name, value in given.items():
        if not value:
            raise GoogleError("INVALID_ARGUMENT", f"Invalid value for field 'resource.{name}': ''. It is required.")
    if not _NAME.match(instance.name):
        raise GoogleError("INVALID_ARGUMENT", f"Invalid value for field 'resource.name': '{instance.name}'")
    for key, value in instance.labels.items():
        if not _LABEL.match(key) or not _LABEL.match(value):
            raise GoogleError("INVALID_ARGUMENT", f"Invalid value for field 'resource.labels': '{key}={value}'")
    if f"zones/{zone}/" not in instance.machine_type:
        raise GoogleError("INVALID_ARGUMENT", "The machine type is not of the zone of the instance")
    scheduling = instance.scheduling
    if scheduling.provisioning_model == "SPOT" and scheduling.automatic_restart:
        raise GoogleError("INVALID_ARGUMENT", "Scheduling automaticRestart must be false for SPOT instances.")


def _handler(fake: FakeCompute) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, found = 200, fake.answer(self.command, self.path, body)
            except GoogleError as error:
                status = _STATUS[error.code]
                found = {"error": {"code": status, "message": error.message, "status": error.code}}
            if self.command == "POST" and fake.lost:
                fake.lost -= 1
                self.connection.close()
                self.close_connection = True
                return
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    return Handler
