"""The scoring server over HTTP, its prediction log, and the local endpoint with real processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import xgboost
from fastapi.testclient import TestClient

from airflow_provider_sml.errors import ConfigurationError, DeploymentError
from airflow_provider_sml.ml.bundle import Bundle, Scorer, feature_types
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.serving import __main__ as command_line
from airflow_provider_sml.ml.serving import local, requests
from airflow_provider_sml.ml.serving.handover import ask_listener, cease_listening, pass_listener
from airflow_provider_sml.ml.serving.local import LocalEndpoint
from airflow_provider_sml.ml.serving.log import PredictionLog
from airflow_provider_sml.ml.serving.parity import check_parity
from airflow_provider_sml.ml.serving.process import _Process, bind
from airflow_provider_sml.ml.serving.requests import RequestChecker
from airflow_provider_sml.ml.serving.server import RequestLimits, create_app
from airflow_provider_sml.ml.serving.state import ServerRecord
from airflow_provider_sml.testing.processes import free_port

COLUMNS = {
    "at": {"type": "timestamp", "required": True},
    "carrier": {"type": "string", "required": True, "values": ["AA", "UA", "B6"]},
    "distance": {"type": "int", "required": True, "range": [50, 6000]},
    "fuel": {"type": "double"},
    "cargo": {"type": "boolean"},
    "delay": {"type": "double", "known": "after"},
}
DATASET = Dataset(
    name="toy",
    source={
        "path": "raw/{date}.csv",
        "joins": [
            {
                "name": "weather",
                "path": "weather/{date}.csv",
                "on": ["carrier"],
                "as_of": "at",
                "columns": {"visib": {"type": "double", "range": [0, 10]}},
            }
        ],
    },
    contract={"key": ["at", "carrier"], "event_time": "at", "columns": COLUMNS},
    features={
        "hour": "hour(at)",
        "distance": "distance",
        "fuel": "fuel",
        "cargo": "cargo",
        "visibility": "weather.visib",
        "carrier": "carrier",
    },
    label="delay > 15",
)
GOOD: dict[str, Any] = {
    "at": "2013-07-01T12:30:00Z",
    "carrier": "UA",
    "distance": 1400,
    "fuel": 0.5,
    "cargo": True,
    "weather.visib": 10,
}
JSON_LINES = {"content-type": "application/jsonlines"}


def _bundle(seed: int) -> Bundle:
    """A small model on synthetic rows."""
    random = np.random.default_rng(seed)
    features = DATASET.feature_list
    size = 300
    matrix = np.column_stack(
        [
            random.integers(0, 24, size),
            random.integers(50, 6000, size),
            random.random(size),
            random.integers(0, 2, size),
            random.random(size) * 10,
            random.integers(0, 3, size),
        ]
    ).astype(np.float32)
    label = (matrix[:, 4] + matrix[:, 0] / 4 + random.random(size) * 4 < 8).astype(np.float32)
    data = xgboost.DMatrix(
        matrix,
        label,
        feature_names=[f.name for f in features],
        feature_types=feature_types(features),
        enable_categorical=True,
    )
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": seed}, data, 8)
    return Bundle("toy", f"model{seed}", DATASET, 8, {}, bytes(booster.save_raw("ubj")))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return _bundle(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> list[Path]:
    """Two models' bundles on disk."""
    root = tmp_path_factory.mktemp("bundles")
    bundle.write(root / "one")
    _bundle(2).write(root / "two")
    return [root / "one", root / "two"]


@pytest.fixture
def client(bundle: Bundle) -> TestClient:
    app = create_app(bundle, version="7", limits=RequestLimits(body_bytes=20_000, instances=50), environ={})
    return TestClient(app)


def _post(client: TestClient, *instances: Any) -> httpx.Response:
    body = json.dumps({"instances": list(instances)})
    return client.post("/invocations", content=body, headers={"content-type": "application/json"})


def _rows(count: int) -> list[dict[str, Any]]:
    start = dt.datetime(2013, 7, 1)
    return [
        GOOD | {"at": (start + dt.timedelta(hours=n)).isoformat(), "distance": 100 + n, "weather.visib": n % 10}
        for n in range(count)
    ]


def _expected(bundle: Bundle, rows: list[dict[str, Any]]) -> list[float]:
    return Scorer(bundle, 1).score(RequestChecker(bundle).check(rows).rows).tolist()


# --- answers --------------------------------------------------------------------------------------------------------


def test_a_good_request_is_scored_as_the_bundle_scores(client: TestClient, bundle: Bundle) -> None:
    rows = _rows(5)
    answer = _post(client, *rows)
    assert answer.status_code == 200
    assert answer.json() == {"predictions": _expected(bundle, rows), "model": "toy", "version": "7"}
    assert answer.headers["x-sml-model-version"] == "7"


def test_ping_and_what_is_off(client: TestClient) -> None:
    answer = client.get("/ping")
    assert answer.json() == {"status": "ok", "model": "toy", "version": "7", "model_id": "model1"}
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404
    assert client.get("/nowhere").headers["x-sml-model-version"] == "7"


def test_ids_are_echoed(client: TestClient) -> None:
    assert _post(client, GOOD | {"id": "a"}, GOOD).json()["ids"] == ["a", None]
    assert _post(client, GOOD | {"id": "half \ud83d pair"}).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"fuel": None},
        {"fuel": 3},
        {"distance": 1400.0},
        {"weather.visib": None},
        {"at": "2013-07-01T08:30:00-04:00"},
        {"at": "2013-07-01 12:30:00"},
        {"at": "2013-07-01T12:30:00.5Z"},
        {"at": "20130701T123000Z"},
    ],
)
def test_what_is_accepted(client: TestClient, change: dict[str, Any]) -> None:
    assert _post(client, GOOD | change).status_code == 200


def test_columns_that_are_not_required_may_be_left_out(client: TestClient) -> None:
    assert _post(client, {name: GOOD[name] for name in ("at", "carrier", "distance")}).status_code == 200


def test_offsets_become_utc(bundle: Bundle) -> None:
    checked = RequestChecker(bundle).check([GOOD | {"at": "2013-07-01T23:30:00-04:00"}])
    assert checked.rows["at"].tolist() == [dt.datetime(2013, 7, 2, 3, 30)]


NUMBER = "a finite number"
WHOLE = "a whole number; must lie in [50, 6000]"
TIME = "an ISO 8601 time such as 2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("field", "value", "expected", "found"),
    [
        ("fuel", True, NUMBER, "true"),
        ("fuel", "0.5", NUMBER, '"0.5"'),
        ("fuel", float("nan"), NUMBER, "NaN"),
        ("fuel", float("inf"), NUMBER, "Infinity"),
        ("fuel", [1], NUMBER, "[1]"),
        ("distance", True, WHOLE, "true"),
        ("distance", "100", WHOLE, '"100"'),
        ("distance", 100.5, WHOLE, "100.5"),
        ("distance", 2**63, WHOLE, str(2**63)),
        ("distance", None, WHOLE, "null"),
        ("distance", 49, "must lie in [50, 6000]", "49"),
        ("distance", 10**6, "must lie in [50, 6000]", "1000000"),
        ("carrier", "ZZ", "must be one of 'AA', 'UA', 'B6'", '"ZZ"'),
        ("carrier", 1, "text; must be one of 'AA', 'UA', 'B6'", "1"),
        ("cargo", 1, "true or false", "1"),
        ("weather.visib", 11, "must lie in [0, 10]", "11"),
        ("at", "yesterday", TIME, '"yesterday"'),
        ("at", "2013-07-01", TIME, '"2013-07-01"'),
        ("at", 1372681800, TIME, "1372681800"),
        ("at", "0001-01-01T00:00:00+23:00", TIME, '"0001-01-01T00:00:00+23:00"'),
        ("id", 5, "text of at most 256 characters", "5"),
    ],
)
def test_a_wrong_value_is_named(client: TestClient, field: str, value: Any, expected: str, found: str) -> None:
    answer = _post(client, GOOD, GOOD | {field: value})
    assert answer.status_code == 422
    assert answer.json()["problems"] == [{"instance": 1, "field": field, "expected": expected, "found": found}]


def test_an_unknown_key_is_named_with_the_one_that_was_meant(client: TestClient) -> None:
    problem = _post(client, GOOD | {"distanse": "x" * 500}).json()["problems"][0]
    assert problem["field"] == "distanse" and problem["expected"].endswith("did you mean distance?")
    assert len(problem["found"]) == requests.MAX_SHOWN


def test_all_problems_are_told_together_and_capped(client: TestClient) -> None:
    body = _post(client, {"carrier": "ZZ"}, 5, GOOD | {"fuel": "x"}).json()
    assert [(p["instance"], p["field"], p["found"]) for p in body["problems"]] == [
        (0, "at", "nothing"),
        (0, "carrier", '"ZZ"'),
        (0, "distance", "nothing"),
        (1, None, "5"),
        (2, "fuel", '"x"'),
    ]
    many = _post(client, *[{}] * 50).json()
    assert (len(many["problems"]), many["total"]) == (100, 150)


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "is not JSON"),
        (b"\xff\xfe", "application/json", 400, "is not JSON"),
        (b"[" * 5000, "application/json", 400, "is not JSON"),
        (b"[]", "application/json", 400, "another shape"),
        (b'{"instances": {}}', "application/json", 400, "another shape"),
        (b'{"instances": []}', "application/json", 400, "no instance"),
        (b'{"instances": [], "rows": 1}', "application/json", 400, "'rows'"),
        (b'{"at":\n', "application/jsonlines", 400, "line 1 is not JSON"),
        (b"x" * 20_001, "application/json", 413, "20,000 bytes"),
        (b"x" * 300_000, "application/json", 413, "20,000 bytes"),
        (b'{"instances": [' + b"1," * 50 + b"1]}", "application/json", 413, "limit of 50"),
        (b"{}", "text/csv", 415, "text/csv"),
        (b"{}", "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
    ],
)
def test_other_refusals(client: TestClient, body: bytes, kind: str, status: int, says: str) -> None:
    answer = client.post("/invocations", content=body, headers={"content-type": kind})
    assert answer.status_code == status and says in answer.json()["error"]
    assert answer.headers["x-sml-model-version"] == "7"


def test_a_chunked_body_over_the_limit_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/invocations", content=iter([b"x" * 15_000] * 20), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_a_failure_of_the_server_is_a_500_without_its_inside(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(create_app(bundle, version="7", environ={}))
    monkeypatch.setattr(Scorer, "score", lambda *_: 1 / 0)
    answer = _post(client, GOOD)
    assert answer.status_code == 500 and "division" not in answer.text
    assert 'sml_requests_total{status="500"} 1.0' in client.get("/metrics").text


def test_json_lines_in_and_out(client: TestClient, bundle: Bundle) -> None:
    rows = [GOOD | {"id": "a"}, GOOD | {"distance": 300}]
    expected = _expected(bundle, rows)
    body = "\n".join(map(json.dumps, rows)) + "\n"
    answer = client.post("/invocations", content=body, headers=JSON_LINES | {"accept": "*/*"})
    assert answer.headers["content-type"] == "application/jsonlines"
    assert list(map(json.loads, answer.text.splitlines())) == [
        {"prediction": expected[0], "id": "a"},
        {"prediction": expected[1]},
    ]
    as_json = client.post("/invocations", content=body, headers=JSON_LINES | {"accept": "application/json"})
    assert as_json.json()["predictions"] == expected


def test_vertex_gives_its_routes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/health")
    monkeypatch.setenv("AIP_HTTP_PORT", "9123")
    client = TestClient(create_app(bundle, version="7"))
    assert client.get("/v1/health").status_code == client.get("/ping").status_code == 200
    answer = client.post("/v1/predict", json={"instances": [GOOD], "parameters": None})
    assert answer.json()["predictions"] == _expected(bundle, [GOOD])
    assert command_line._parser(local.os.environ).parse_args(["serve"]).port == 9123
    with pytest.raises(ConfigurationError, match="AIP_PREDICT_ROUTE"):
        create_app(bundle, version="7", environ={"AIP_PREDICT_ROUTE": "predict"})


def test_metrics_count(bundle: Bundle, tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    client = TestClient(create_app(bundle, version="7", log=log, environ={}))
    _post(client, GOOD, GOOD)
    _post(client, GOOD)
    _post(client, {})
    log.close()
    text = client.get("/metrics").text
    for line in (
        'sml_requests_total{status="200"} 2.0',
        'sml_requests_total{status="422"} 1.0',
        "sml_rows_total 3.0",
        "sml_request_seconds_count 3.0",
        'sml_model_info{model="toy",model_id="model1",version="7"} 1.0',
        "sml_predictions_logged_total 3.0",
        "sml_predictions_dropped_total 0.0",
    ):
        assert line in text


# --- prediction log -------------------------------------------------------------------------------------------------


def _logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def _record(number: int) -> dict[str, Any]:
    return {"id": str(number), "model": "toy", "version": "7", "features": {"fuel": number}, "score": 0.5}


def test_predictions_are_logged_as_they_were_sent(bundle: Bundle, tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "log")
    client = TestClient(create_app(bundle, version="7", log=log, environ={}))
    scores = _post(client, GOOD | {"id": "a"}, GOOD).json()["predictions"]
    end = time.monotonic() + 2
    while not log.written and time.monotonic() < end:  # flushed within a second, without close
        time.sleep(0.01)
    time.sleep(0.05)
    first, second = _logged(tmp_path / "log")
    assert list(first) == ["id", "time", "model", "version", "features", "score"]
    assert (first["id"], first["features"], first["score"]) == ("a", GOOD, scores[0])
    assert second["id"] != first["id"] and second["score"] == scores[1]
    assert abs(dt.datetime.fromisoformat(first["time"]) - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)
    log.close()
    (path,) = (tmp_path / "log").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_log_rotates_by_size_and_by_day(tmp_path: Path) -> None:
    now = dt.datetime(2013, 7, 1, 23, 59, tzinfo=dt.UTC)
    log = PredictionLog(tmp_path, file_bytes=300, clock=lambda: now)
    log.append([_record(n) for n in range(7)])
    now += dt.timedelta(minutes=2)
    log.append([_record(7)])
    log.close()
    assert [path.name[:10] for path in sorted(tmp_path.iterdir())] == ["2013-07-01"] * 3 + ["2013-07-02"]
    assert all(path.stat().st_size < 500 for path in tmp_path.iterdir())
    assert [row["id"] for row in _logged(tmp_path)] == [str(n) for n in range(8)]


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, original = threading.Event(), PredictionLog._write
    monkeypatch.setattr(PredictionLog, "_write", lambda *a: (let_go.wait(5), original(*a)))
    log = PredictionLog(tmp_path, queue_rows=10)
    began = time.monotonic()
    for _ in range(4):
        log.append([_record(n) for n in range(4)])
    assert time.monotonic() - began < 0.5
    let_go.set()
    log.close()
    assert (log.written, log.dropped, len(_logged(tmp_path))) == (8, 8, 8)
    log.append([_record(1)])
    assert log.dropped == 9


def test_a_disk_that_refuses_costs_predictions_not_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = PredictionLog(folder)
    folder.rmdir()
    log.append([_record(1)])
    end = time.monotonic() + 2
    while not log.dropped and time.monotonic() < end:
        time.sleep(0.01)
    folder.mkdir()
    log.append([_record(2)])
    log.close()
    assert (log.written, log.dropped) == (1, 1)
    assert [row["id"] for row in _logged(folder)] == ["2"]


# --- local endpoint -------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[LocalEndpoint]:
    made = LocalEndpoint(tmp_path / "endpoints", "toy", free_port())
    yield made
    made.stop()
    assert not [r for r in made._recorded() if r is not None and r.process]


class _Client(threading.Thread):
    """Sends requests without pause until it is told to end.

    :param keep: over one connection that is kept open, or each over a new one.
    """

    def __init__(self, url: str, keep: bool) -> None:
        super().__init__(daemon=True)
        self.url, self.keep = url, keep
        self.versions: list[str] = []
        self.failures: list[str] = []
        self.ended = threading.Event()

    def begin(self) -> None:
        """Start; returns after the first answer."""
        self.start()
        end = time.monotonic() + 10
        while not self.versions and not self.failures and time.monotonic() < end:
            time.sleep(0.005)

    def end(self) -> None:
        self.ended.set()
        self.join(10)

    def run(self) -> None:
        headers = {} if self.keep else {"Connection": "close"}
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self.ended.is_set():
                try:
                    answer = client.post(self.url, json={"instances": [GOOD]}, headers=headers)
                    assert answer.status_code == 200, answer.text
                    self.versions.append(answer.json()["version"])
                except Exception as error:
                    self.failures.append(repr(error))
                time.sleep(0.001)  # leaves the servers some of a small machine


def _deploy(endpoint: LocalEndpoint, folder: Path, version: str) -> ServerRecord:
    with endpoint.start_candidate(folder, "toy", version) as candidate:
        candidate.go_live()
    return candidate.record


def test_a_new_version_replaces_the_old_one_and_no_request_fails(
    endpoint: LocalEndpoint, folders: list[Path], bundle: Bundle
) -> None:
    rows = _rows(30)
    with endpoint.start_candidate(folders[0], "toy", "1") as candidate:
        result = check_parity(candidate.url, rows, _expected(bundle, rows), batch=20)
        assert (result.rows, result.worst) == (30, 0.0)
        candidate.go_live()
    first = candidate.record
    assert endpoint.serves("1", "model1") and not endpoint.serves("2", "model1") and not endpoint.serves("1", "model2")
    assert _logged(endpoint.predictions) == []  # what a candidate is tried out with is no prediction

    clients = [_Client(endpoint.url, keep) for keep in (True, False)]
    for client in clients:
        client.begin()
    second = _deploy(endpoint, folders[1], "2")
    time.sleep(0.3)
    for client in clients:
        client.end()
        assert client.failures == []
        assert client.versions[0] == "1" and client.versions[-1] == "2"
    status = endpoint.status()
    assert status.healthy and status.live is not None and status.live.pid == second.pid and status.candidate is None
    assert status.live.previous is None and endpoint.serves("2", "model2")
    assert not psutil.pid_exists(first.pid) and not Path(first.control).exists()
    sent = sum(len(client.versions) for client in clients)
    assert endpoint.stop() and not endpoint.stop()
    assert not psutil.pid_exists(second.pid) and not endpoint.status().healthy
    assert sent == len(_logged(endpoint.predictions))


def test_a_connection_that_was_just_accepted_is_answered_when_the_listener_closes(folders: list[Path]) -> None:
    async def scenario() -> bytes:
        process = _Process(create_app(Bundle.read(folders[0]), version="1", model="toy", log=None), None)
        listener = bind("127.0.0.1", 0)
        await process._take(listener)
        loop = asyncio.get_running_loop()
        with socket.create_connection(listener.getsockname()) as client:
            client.setblocking(False)
            await asyncio.sleep(0)  # the loop sees the connection in this turn ...
            await asyncio.sleep(0)  # ... has accepted it in this one, and gives it to a handler in the next
            await process._cease()
            await loop.sock_sendall(client, b"GET /ping HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(loop.sock_recv(client, 1000), 10)
        process._stop.set()
        await process._until_stopped()
        return answer

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 200")


def test_a_failed_parity_or_take_over_leaves_the_old_one_serving(
    endpoint: LocalEndpoint, folders: list[Path], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _rows(30)
    first = _deploy(endpoint, folders[0], "1")
    with (
        pytest.raises(DeploymentError, match="scores otherwise") as error,
        endpoint.start_candidate(folders[1], "toy", "2") as candidate,
    ):
        with pytest.raises(DeploymentError, match="another roll-out"):
            endpoint.start_candidate(folders[1], "toy", "3")
        check_parity(candidate.url, rows, _expected(bundle, rows))
    assert "for row" in str(error.value.expected)
    assert not psutil.pid_exists(candidate.record.pid)
    assert endpoint.serves("1", "model1") and endpoint.status().candidate is None
    with pytest.raises(DeploymentError, match="refuses stored rows"):
        check_parity(endpoint.url, [{"at": 1}], [0.5])
    with pytest.raises(DeploymentError, match="cannot be checked"):
        check_parity(endpoint.url, [], [])

    # The candidate has taken the port over and then does not answer: the old one gets it back.
    answers = local.answers
    candidate = endpoint.start_candidate(folders[1], "toy", "2")
    monkeypatch.setattr(local, "answers", lambda *_: False)
    with pytest.raises(DeploymentError, match="does not answer with version 2"):
        candidate.go_live(timeout=0.2)
    monkeypatch.setattr(local, "answers", answers)
    assert endpoint.serves("1", "model1") and endpoint.status().live.pid == first.pid  # type: ignore[union-attr]
    assert not psutil.pid_exists(candidate.record.pid)


def test_a_caller_that_died_is_mended(endpoint: LocalEndpoint, folders: list[Path]) -> None:
    # It died before the candidate was given anything.
    left = endpoint.start_candidate(folders[0], "toy", "1")
    left._lock.close()
    assert endpoint.status().candidate is not None and endpoint.status().live is None
    first = _deploy(endpoint, folders[0], "1")
    assert not psutil.pid_exists(left.record.pid)

    # It died after the candidate had taken the port and the old one had ceased to listen.
    left = endpoint.start_candidate(folders[1], "toy", "2")
    listener = ask_listener(Path(first.control))
    assert listener is not None
    with listener:
        pass_listener(Path(left.record.control), listener)
    cease_listening(Path(first.control))
    left._lock.close()
    assert httpx.get(endpoint.url.replace("invocations", "ping"), trust_env=False).json()["version"] == "2"
    client = _Client(endpoint.url, False)
    client.begin()
    second = _deploy(endpoint, folders[1], "3")
    client.end()
    assert client.failures == [] and set(client.versions) >= {"2", "3"}
    assert not psutil.pid_exists(left.record.pid) and not psutil.pid_exists(first.pid)
    assert endpoint.serves("3", "model2") and endpoint.status().live.pid == second.pid  # type: ignore[union-attr]


def test_a_live_server_that_was_killed_is_replaced(endpoint: LocalEndpoint, folders: list[Path]) -> None:
    first = _deploy(endpoint, folders[0], "1")
    psutil.Process(first.pid).kill()
    end = time.monotonic() + 5
    while first.process and time.monotonic() < end:
        time.sleep(0.01)
    assert endpoint.status().live is None and not endpoint.serves("1", "model1")
    _deploy(endpoint, folders[0], "1")
    assert endpoint.serves("1", "model1")


def test_a_candidate_that_dies_is_told_with_its_log(
    endpoint: LocalEndpoint, folders: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders[0], broken)
    replace(Bundle.read(broken), model=b"no model").write(broken)
    with pytest.raises(DeploymentError, match="died while it was starting") as error:
        endpoint.start_candidate(broken, "toy", "1")
    assert "XGBoostError" in str(error.value)
    assert endpoint.status().candidate is None and endpoint.status().live is None


def test_a_foreign_listener_is_named(endpoint: LocalEndpoint, folders: list[Path]) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", endpoint.port))
        foreign.listen()
        with pytest.raises(DeploymentError, match=str(endpoint.port)) as error:
            endpoint.start_candidate(folders[0], "toy", "1")
        assert "another port" in str(error.value) and str(local.os.getpid()) in str(error.value)
    assert not (endpoint.folder / local.CANDIDATE_FILE).exists()


def test_a_recycled_process_id_is_not_ended(endpoint: LocalEndpoint) -> None:
    stranger = psutil.Popen([sys.executable, "-c", "input()"], stdin=-1)
    try:
        endpoint.folder.mkdir(parents=True)
        record = ServerRecord(
            stranger.pid, stranger.create_time() - 60, "127.0.0.1", 1, 2, "toy", "1", "model1", "", "", "/none", ""
        )
        record.write(endpoint.folder / local.LIVE_FILE)
        assert endpoint.status().live is None and not endpoint.stop()
        assert stranger.is_running() and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_the_command_line(
    endpoint: LocalEndpoint, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "endpoints")
    assert command_line.main(["status", "--root", root]) == 0
    assert "no endpoints" in capsys.readouterr().out
    record = _deploy(endpoint, folders[0], "1")
    assert command_line.main(["status", "--root", root]) == 0
    shown = capsys.readouterr().out
    assert "toy: healthy  toy version 1" in shown and f"pid {record.pid}" in shown and endpoint.url in shown
    assert command_line.main(["stop", "other", "--root", root]) == 1
    assert "toy" in capsys.readouterr().err
    assert command_line.main(["stop", "--all", "--root", root]) == 0
    assert "toy: stopped" in capsys.readouterr().out
    assert not psutil.pid_exists(record.pid)
    with pytest.raises(ConfigurationError, match="cannot name"):
        LocalEndpoint(tmp_path, "../up", 8500)


def test_serve_as_a_container_runs_it(folders: list[Path], tmp_path: Path) -> None:
    port = free_port()
    process = psutil.Popen(
        [sys.executable, "-m", "airflow_provider_sml.ml.serving", "serve"],
        env={**local.environment(), "SM_MODEL_DIR": str(folders[0]), "AIP_HTTP_PORT": str(port)},
    )
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                told = httpx.get(f"http://127.0.0.1:{port}/ping", trust_env=False).json()
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        assert (told["model"], told["version"]) == ("toy", "model1")
        process.terminate()
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
