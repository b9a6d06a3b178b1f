"""An alias that moves is one event of its asset: seen by the watcher, told by MLflow's webhook, or both."""

import asyncio
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.testing.processes import free_port
from airflow_provider_sml.triggers.alias import NOTING, TELLING, TOLD, AliasTrigger, asset_key, moved_to
from tests.mlflow_server import PASSWORD, USER

SECRET = "the-w0rd-of-the-webhook"
DAG = "example_champion"


def fill(registry):
    """Four versions of flights, the first of which is the champion."""
    with registry._client() as client:
        client.create_registered_model("flights")
        for number in range(4):
            tags = {"sml.model_id": f"m{number}"}
            client.create_model_version("flights", source="s3://nowhere/x", run_id="r", tags=tags)
    move(registry, 1)
    return registry


def move(registry, version):
    registry.set_alias(registry.version("flights", str(version)), CHAMPION)


def connect(monkeypatch, uri, **more):
    extra = {"tracking_uri": uri, "webhook_secret": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW", json.dumps({"conn_type": "mlflow", "extra": extra} | more))


@pytest.fixture
def waiting(dag_project):
    """The example DAG, known to Airflow and not paused, with no event yet; gives the id of its asset."""
    return wait_for_moves(dag_project)


def wait_for_moves(dag_project, **seconds):
    """Make the example DAG known; gives the id of its asset."""
    from airflow.models.asset import AssetDagRunQueue, AssetEvent, AssetModel
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    example = Path(importlib.import_module("airflow_provider_sml.example_dags.example_champion").__file__)
    called = 'alias_asset("flights", "champion"'
    text = example.read_text().replace(called, called + "".join(f", {key}={seconds[key]}" for key in seconds))
    file = dag_project.write("example_champion.py", text)
    run = dag_project.run(file, DAG)
    assert run.state == "success" and run.results["versions"] == []
    with create_session() as session:
        session.get(DagModel, DAG).is_paused = False
    dag_project.run(file, DAG)  # Airflow knows watchers of DAGs that are not paused, since it read them last
    with create_session() as session:
        asset = session.query(AssetModel).filter(AssetModel.uri == asset_key("flights", CHAMPION)[1]).one().id
        session.query(AssetEvent).filter(AssetEvent.asset_id == asset).delete()
        session.query(AssetDagRunQueue).delete()
        if (state := state_store()) is not None:
            session.query(state).delete()
    return asset


def state_store():
    try:
        from airflow.models.asset_state_store import AssetStateStoreModel
    except ImportError:
        return None
    return AssetStateStoreModel


def events(asset):
    """Versions of the events, and whether the DAG is queued for a run."""
    from airflow.models.asset import AssetDagRunQueue, AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        told = session.query(AssetEvent).filter(AssetEvent.asset_id == asset).order_by(AssetEvent.id).all()
        queued = session.query(AssetDagRunQueue).filter(AssetDagRunQueue.target_dag_id == DAG).count()
        return [moved_to(event)["version"] for event in told], bool(queued)


def found(asset):
    """The events."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        told = session.query(AssetEvent).filter(AssetEvent.asset_id == asset).order_by(AssetEvent.id).all()
        session.expunge_all()
        return told


def deliver(client, path="/mlflow", body=None, secret=SECRET, age=0, delivery=None, **headers):
    """A delivery, signed by MLflow's own code."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    data = {"name": "flights", "alias": CHAMPION, "version": "2"}
    told = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-01-01T00:00:00", "data": data}
    text = json.dumps(told) if body is None else body
    delivery, now = delivery or str(uuid.uuid4()), str(int(time.time()) - age)
    sent = {
        "X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": _generate_hmac_signature(secret, delivery, now, text),
    } | headers  # fmt: skip
    return client.post(path, content=text, headers={key: value for key, value in sent.items() if value})


@pytest.fixture
def client(airflow_db):
    from fastapi.testclient import TestClient

    from airflow_provider_sml.ui.webhooks import create_receiver

    return TestClient(create_receiver())


def test_what_is_not_genuine_is_refused_and_learns_nothing(client, monkeypatch):
    connect(monkeypatch, "/nowhere/mlflow")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http", "extra": {"webhook_secret": SECRET}}))
    monkeypatch.setenv("AIRFLOW_CONN_OPEN", json.dumps({"conn_type": "mlflow"}))
    refused = [
        deliver(client, secret="another"), deliver(client, secret=""), deliver(client, age=301),
        deliver(client, age=-301), deliver(client, **{"X-MLflow-Signature": ""}),
        deliver(client, **{"X-MLflow-Signature": "v1,"}), deliver(client, **{"X-MLflow-Delivery-Id": "another"}),
        deliver(client, **{"X-MLflow-Timestamp": str(int(time.time()) + 1)}),
        deliver(client, **{"X-MLflow-Timestamp": "now"}), deliver(client, "/mlflow/other"),
        deliver(client, "/mlflow/nobody"), deliver(client, "/mlflow/open", secret=""),
    ]  # fmt: skip
    assert {answer.status_code for answer in refused} == {401}
    assert len({answer.text for answer in refused}) == 1
    assert deliver(client, body="x" * 70_000).status_code == 413
    assert {deliver(client, body=body).status_code for body in ("{", "[]", '{"data": 1}')} == {400}
    tag = json.dumps({"entity": "model_version_tag", "action": "set", "data": {"name": "flights"}})
    assert deliver(client, body=tag).json() == {"done": "nothing: it tells of no alias that was set"}
    unheard = {"entity": "model_version_alias", "action": "created", "data": {"name": "nobody's", "alias": "x"}}
    assert deliver(client, body=json.dumps(unheard)).json() == {"done": "no DAG waits for this alias"}
    assert client.get("/mlflow").status_code == 405 and client.get("/docs").status_code == 404


class Kept:
    """What is known of the asset, in Airflow's own table, as the triggerer gives it to a watcher."""

    def __init__(self, asset):
        from airflow._shared.state import AssetScope
        from airflow.state.metastore import MetastoreBackend

        self.backend, self.scope = MetastoreBackend(), AssetScope(asset_id=asset)

    async def aget(self, key, default=None):
        value = self.backend.get(self.scope, key)
        return default if value is None else json.loads(value)

    async def aset(self, key, value):
        from airflow._shared.state import AssetStateStoreWriterKind

        kind = AssetStateStoreWriterKind.WATCHER
        self.backend.set_asset_state_store(self.scope, key, json.dumps(value), kind=kind)


def watch(asset, seconds, meanwhile=(), after=lambda event: None):
    """Run a watcher as a triggerer that starts does, and do other things meanwhile; its events go to Airflow, and
    before it goes on to ``after``."""
    from airflow.models.asset import AssetWatcherModel
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    with create_session() as session:
        watcher = session.query(AssetWatcherModel).filter(AssetWatcherModel.asset_id == asset).one()
        stored = session.get(Trigger, watcher.trigger_id)
        assert stored.classpath.endswith("triggers.alias.AliasTrigger")
        trigger, trigger_id = AliasTrigger(**{**stored.kwargs, "poll_interval": 0.02}), stored.id
    trigger.asset_state_store = Kept(asset)

    async def listen():
        async for event in trigger.run():
            await asyncio.to_thread(Trigger.submit_event, trigger_id, event)
            await asyncio.to_thread(after, event)

    async def both():
        listening = asyncio.create_task(listen())
        for act in (lambda: None, *meanwhile):
            await asyncio.sleep(seconds)
            await asyncio.to_thread(act)
        await asyncio.sleep(seconds)
        listening.cancel()

    asyncio.run(both())


@pytest.mark.skipif(state_store() is None, reason="before Airflow 3.3 nothing is kept with an asset")
def test_one_move_is_one_event_whoever_sees_it(client, waiting, monkeypatch, tmp_path):
    registry = fill(Registry(str(tmp_path / "mlflow")))
    connect(monkeypatch, str(tmp_path / "mlflow"))
    watch(waiting, 1.0)  # what is there at first is no move
    assert events(waiting) == ([], False)
    watch(waiting, 1.0, [lambda: move(registry, 2)])
    assert events(waiting) == (["2"], True)
    assert deliver(client).json() == {"done": "it was told before"}

    move(registry, 3)
    assert deliver(client, delivery="once").json() == {"done": "told"}
    assert deliver(client, delivery="once").json() == {"done": "it was told before"}
    watch(waiting, 1.0)
    move(registry, 4)  # while no triggerer runs
    watch(waiting, 1.0)
    watch(waiting, 1.0)
    assert events(waiting) == (["2", "3", "4"], True)
    move(registry, 1)
    assert deliver(client).json() == {"done": "told"}  # the body says 2; the registry is asked
    watch(waiting, 1.0)
    assert events(waiting)[0] == ["2", "3", "4", "1"]
    moves = [moved_to(event)["move"] for event in found(waiting)]
    lines = [line.move for line in registry.history("flights").lines]
    assert moves == lines[1:]


@pytest.mark.skipif(state_store() is None, reason="before Airflow 3.3 nothing is kept with an asset")
def test_a_watcher_and_a_webhook_in_the_same_moment_tell_a_move_once(client, waiting, monkeypatch, tmp_path):
    registry = fill(Registry(str(tmp_path / "mlflow")))
    connect(monkeypatch, str(tmp_path / "mlflow"))
    watch(waiting, 1.0)

    async def at_once(before, version):
        """A watcher that has seen the move, and a webhook that arrives before, or just after, it has claimed it."""
        watcher = AliasTrigger("flights", poll_interval=0.02)
        watcher.asset_state_store = Kept(waiting)
        move(registry, version)
        answers = [deliver(client).json()["done"]] if before else []
        claimed = await watcher._claim(str(version))
        answers += [] if before else [deliver(client).json()["done"]]
        return claimed, answers

    assert asyncio.run(at_once(True, 2)) == (False, ["told"])
    assert events(waiting)[0] == ["2"]
    # the watcher dies with its claim; the next one tells
    assert asyncio.run(at_once(False, 3)) == (True, ["the watcher tells it"])
    assert events(waiting)[0] == ["2"]
    watch(waiting, 1.0)
    assert events(waiting)[0] == ["2", "3"] and deliver(client).json() == {"done": "it was told before"}
    move(registry, 4)
    assert deliver(client).json() == {"done": "told"} and events(waiting)[0] == ["2", "3", "4"]
    # a watcher that ends between the event and its note tells the move again, and one can see that it is the same
    kept = Kept(waiting)
    asyncio.run(kept.aset(TOLD, "3"))
    watch(waiting, 1.0)
    assert events(waiting)[0] == ["2", "3", "4", "4"]
    assert len({moved_to(event)["move"] for event in found(waiting)}) == 3


@pytest.mark.skipif(state_store() is None, reason="before Airflow 3.3 nothing is kept with an asset")
def test_a_webhook_before_a_watcher_has_noted_what_it_told(client, waiting, monkeypatch, tmp_path):
    registry = fill(Registry(str(tmp_path / "mlflow")))
    connect(monkeypatch, str(tmp_path / "mlflow"))
    watch(waiting, 1.0)
    answers = []

    def move_on(event):
        if event.payload["version"] == "2":
            move(registry, 3)
            answers.append(deliver(client).json()["done"])

    watch(waiting, 1.0, [lambda: move(registry, 2), lambda: None], move_on)
    assert answers == ["told"] and events(waiting)[0] == ["2", "3"]
    kept = Kept(waiting)
    assert [asyncio.run(kept.aget(key)) for key in (TOLD, TELLING)] == ["3", ""]
    move(registry, 4)
    asyncio.run(kept.aset(TELLING, NOTING))
    assert deliver(client).json() == {"done": "the watcher tells it"} and events(waiting)[0] == ["2", "3"]
    watch(waiting, 1.0)
    assert events(waiting)[0] == ["2", "3", "4"] and asyncio.run(kept.aget(TELLING)) == ""


@pytest.mark.skipif(state_store() is None, reason="before Airflow 3.3 nothing is kept with an asset")
def test_a_watcher_that_claims_a_move_while_the_webhook_waits_for_the_database(client, waiting, monkeypatch, tmp_path):
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    registry = fill(Registry(str(tmp_path / "mlflow")))
    connect(monkeypatch, str(tmp_path / "mlflow"))
    watch(waiting, 1.0, [lambda: move(registry, 2)])
    move(registry, 3)
    watcher = AliasTrigger("flights", poll_interval=0.02)
    watcher.asset_state_store = Kept(waiting)
    claimed = []

    def claim(session, *_):
        """The webhook has read what watchers are about to tell, and has no lock yet."""
        from airflow.models.asset_state_store import AssetStateStoreModel

        if not claimed and any(isinstance(row, AssetStateStoreModel) for row in session.dirty):
            claimed.append(None)
            thread = threading.Thread(target=lambda: claimed.append(asyncio.run(watcher._claim("3"))))
            thread.start()
            thread.join(30)

    event.listen(Session, "before_flush", claim)
    try:
        answer = deliver(client).json()
    finally:
        event.remove(Session, "before_flush", claim)
    assert claimed == [None, True] and answer == {"done": "the watcher tells it"}
    assert events(waiting)[0] == ["2"]
    watch(waiting, 1.0)
    assert events(waiting)[0] == ["2", "3"]


@pytest.mark.slow
@pytest.mark.skipif(state_store() is None, reason="before Airflow 3.3 nothing is kept with an asset")
def test_a_running_triggerer_tells_a_move_and_the_scheduler_queues_one_run(client, dag_project, monkeypatch, tmp_path):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    registry = fill(Registry(str(tmp_path / "mlflow")))
    connect(monkeypatch, str(tmp_path / "mlflow"))
    asset = wait_for_moves(dag_project, poll_interval=0.5)
    with triggerer(tmp_path / "log"):
        until(lambda: kept(asset) == "1", "the first look")
        move(registry, 2)
        until(lambda: events(asset) == (["2"], True), "the watcher's event")
        first = schedule()
        assert len(first) == 1 and schedule() == first and not events(asset)[1]
        move(registry, 3)
        assert deliver(client).json()["done"] in ("told", "it was told before", "the watcher tells it")
        until(lambda: kept(asset) == "3" and events(asset)[0] == ["2", "3"], "the event of the second move")
        time.sleep(2)  # further looks
    assert events(asset) == (["2", "3"], True)
    second = schedule()
    assert len(second) == 2 and second[0] == first[0] and schedule() == second
    with create_session() as session:
        for run_id, version in zip(second, ("2", "3"), strict=True):
            [run] = session.query(DagRun).filter(DagRun.dag_id == DAG, DagRun.run_id == run_id).all()
            assert [moved_to(event)["version"] for event in run.consumed_asset_events] == [version]
            session.delete(run)


@contextlib.contextmanager
def triggerer(log):
    """Airflow's own triggerer as a process, on the database of the tests; ended with its children."""
    command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from error
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def schedule():
    """One look of Airflow's scheduler for DAGs that need a run; gives the runs by asset events that there are."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.sqlalchemy import prohibit_commit

    with create_session() as session:
        with prohibit_commit(session) as guard:
            SchedulerJobRunner(Job())._create_dagruns_for_dags(guard, session)
        runs = session.query(DagRun).filter(DagRun.dag_id == DAG, DagRun.run_type == "asset_triggered")
        return [run.run_id for run in runs.order_by(DagRun.id)]


def kept(asset):
    return asyncio.run(Kept(asset).aget(TOLD))


def until(ready, what, patience=90):
    deadline = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)


def test_mlflows_own_server_tells_and_tells_again_until_it_is_heard(mlflow_server, waiting, monkeypatch):
    import uvicorn
    from mlflow import MlflowClient
    from mlflow.entities.webhook import WebhookEvent

    from airflow_provider_sml.ui.webhooks import create_receiver

    registry = fill(Registry(mlflow_server.uri, {"username": USER, "password": PASSWORD}))
    connect(monkeypatch, mlflow_server.uri, login=USER, password=PASSWORD)
    port = free_port()
    heard = []

    async def receiver(scope, receive, send):
        async def note(message):
            if message["type"] == "http.response.start":
                heard.append(message["status"])
            await send(message)

        await app(scope, receive, note)

    app = create_receiver()
    server = uvicorn.Server(uvicorn.Config(receiver, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    broken = []

    def fail_once(method, path):  # the registry cannot be asked, so the receiver asks MLflow to send it again
        hit = method == "GET" and "registered-models/alias" in path and not broken
        broken.extend([path] * hit)
        return hit

    try:
        with registry._client() as mlflow:
            assert isinstance(mlflow, MlflowClient)
            hook = mlflow.create_webhook(
                "sml",
                f"http://127.0.0.1:{port}/mlflow",
                [WebhookEvent("model_version_alias", "created")],
                secret=SECRET,
            )
        mlflow_server.before = fail_once
        move(registry, 2)
        deadline = time.monotonic() + 60
        while not events(waiting)[0] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert events(waiting) == (["2"], True)
        assert broken and heard == [503, 200]
        with registry._client() as mlflow:
            mlflow.delete_webhook(hook.webhook_id)
    finally:
        server.should_exit = True
        thread.join(20)
