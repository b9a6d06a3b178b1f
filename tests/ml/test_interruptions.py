"""Trainings that are interrupted end in the very bytes of one that was not: killed drivers and workers, and notices."""

import contextlib
import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import xgboost

from airflow_provider_sml.errors import ConfigurationError, IntegrityError, JobError
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import interruption
from airflow_provider_sml.ml.training.checkpoint import Checkpoint, State
from airflow_provider_sml.ml.training.cluster import Cluster, TooFewWorkersError, cluster
from airflow_provider_sml.ml.training.devices import resolve_device
from airflow_provider_sml.ml.training.memory import plan_memory
from airflow_provider_sml.ml.training.runner import InterruptedTraining, Work, run_rank
from airflow_provider_sml.ml.training.toll import Attempt, Ledger, Toll
from airflow_provider_sml.ml.training.trainer import DEFAULTS, Training, fit, train
from tests.ml.test_lake_shops import DATASET
from tests.processes import start
from tests.trained import PARAMS

RANDOM = {"subsample": 0.5, "colsample_bytree": 0.6, "learning_rate": 0.05, "rounds": 60, "early_stopping": 25}
PLAIN = {"learning_rate": 0.05, "rounds": 60, "early_stopping": 25}
#: Whatever goes wrong, no process is left.
pytestmark = pytest.mark.usefixtures("nothing_left")


def work(sample, folder, settings, **changes):
    files = {split: [split_files(sample, split)] for split in ("train", "validate")}
    rows = [sample.rows["train"] + sample.rows["validate"]]
    whole = Work(
        "t1", DATASET.feature_list, DEFAULTS | PARAMS | settings | {"device": "cpu"}, files["train"], files["validate"],
        rows, folder / "t1.ubj", every=10, seconds=0,
    )  # fmt: skip
    return replace(whole, **changes)


def go_after(monkeypatch, rounds):
    """This process is told to go after so many rounds."""
    update, done = xgboost.Booster.update, []

    def counted(self, *arguments, **keywords):
        done.append(1)
        update(self, *arguments, **keywords)
        if len(done) == rounds:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(xgboost.Booster, "update", counted)


def boost(todo, lines=None):
    return run_rank(0, todo, None, 1, (lines if lines is not None else []).append)


def resumed(todo):
    return replace(todo, start=Checkpoint(todo.checkpoint, todo.training).read())


# --- notices ----------------------------------------------------------------------------------------------------------


LONG = {"random": RANDOM | {"rounds": 600}, "plain": PLAIN | {"rounds": 600}}


@pytest.fixture(scope="module")
def undisturbed(shop_sample, tmp_path_factory):
    """The trainings of ``LONG`` that nobody interrupts."""
    return {name: boost(work(shop_sample, tmp_path_factory.mktemp("whole"), LONG[name])) for name in LONG}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("after", [1, 9, 10, 17, 31])
def test_a_training_that_was_told_to_go_ends_in_the_same_bytes(
    shop_sample, tmp_path, undisturbed, kind, after, monkeypatch
):
    settings, whole = LONG[kind], undisturbed[kind]
    assert 40 < whole.state.rounds < 600  # early stopping ends it
    todo = work(shop_sample, tmp_path / "spot", settings)
    handler = signal.getsignal(signal.SIGTERM)
    go_after(monkeypatch, after)
    with pytest.raises(InterruptedTraining, match=rf"round {after}(.|\n)*SIGTERM(.|\n)*last checkpoint"):
        boost(todo)
    start = Checkpoint(todo.checkpoint, "t1").read()
    kept = after // 10 * 10 if "subsample" in settings else after
    assert (start[1].rounds if start else 0) == kept
    again = boost(resumed(todo))
    assert again.model == whole.model
    assert again.state.history == whole.state.history and again.state.best_round == whole.state.best_round
    assert signal.getsignal(signal.SIGTERM) is handler


def test_rows_and_columns_are_really_drawn_at_random(shop_sample, tmp_path):
    plain, random = (boost(work(shop_sample, tmp_path / n, s)) for n, s in (("a", PLAIN), ("b", RANDOM)))
    other = boost(work(shop_sample, tmp_path / "c", RANDOM | {"seed": 8}))
    assert len({plain.model, random.model, other.model}) == 3


@pytest.fixture
def metadata():
    """A metadata server that announces when it is told to."""
    told = {"ec2": 404, "gce": "FALSE", "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.answer(200, "token-1")

        def do_GET(self):
            told["asked"].append((self.path, dict(self.headers)))
            if "spot/instance-action" in self.path:
                code = 200 if self.headers.get("X-aws-ec2-metadata-token") == "token-1" else 401
                return self.answer(
                    told["ec2"] if code == 200 and told["ec2"] == 404 else code, '{"action": "terminate"}'
                )
            code = 200 if self.headers.get("Metadata-Flavor") == "Google" else 403
            return self.answer(code, told["gce"]() if callable(told["gce"]) else told["gce"])

        def answer(self, code, text):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield told, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_notices_of_both_clouds_are_read(metadata, monkeypatch):
    told, url = metadata
    monkeypatch.setenv(interruption.EC2, url)
    monkeypatch.setenv(interruption.GCE, url)
    assert interruption.ec2_notice() is None and interruption.gce_notice() is None
    told["ec2"], told["gce"] = 200, "TRUE"
    assert "terminate" in interruption.ec2_notice()
    assert "preempted" in interruption.gce_notice()
    monkeypatch.setenv(interruption.EC2, "http://127.0.0.1:9")
    assert interruption.ec2_notice() is None  # nobody there is no notice


def test_a_notice_of_the_metadata_server_ends_a_training(metadata, shop_sample, tmp_path, monkeypatch):
    told, url = metadata
    monkeypatch.setenv(interruption.EC2, url)
    told["ec2"] = 200
    update = xgboost.Booster.update

    def slow(self, *arguments, **keywords):
        time.sleep(0.2)
        update(self, *arguments, **keywords)

    monkeypatch.setattr(xgboost.Booster, "update", slow)
    todo = work(shop_sample, tmp_path, PLAIN, machine="ec2")
    with pytest.raises(InterruptedTraining, match="EC2 spot"):
        boost(todo)
    assert Checkpoint(todo.checkpoint, "t1").read()[1].rounds >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "sml-interruption"]


# --- killed processes -------------------------------------------------------------------------------------------------


def drive(path):
    boost(resumed(pickle.loads(path.read_bytes())))


def test_a_killed_driver_goes_on_to_the_same_bytes(shop_sample, tmp_path):
    import cloudpickle

    settings = RANDOM | {"learning_rate": 0.005, "rounds": 3000, "early_stopping": 60}
    whole = boost(work(shop_sample, tmp_path, settings, every=30))
    assert 300 < whole.state.rounds < 3000  # early stopping ends it
    todo = work(shop_sample, tmp_path / "spot", settings, every=30)
    (tmp_path / "work").write_bytes(cloudpickle.dumps(todo))
    reached = [0]
    for _ in range(5):
        driver = start(drive, tmp_path / "work")
        while driver.is_alive():
            kept = Checkpoint(todo.checkpoint, "t1").read()
            if kept and kept[1].rounds > reached[-1]:
                driver.kill()
                reached.append(kept[1].rounds)
                driver.join()
            time.sleep(0.005)
        assert driver.exitcode == -signal.SIGKILL
    assert len(reached) == 6 and reached == sorted(reached)  # it got on from kill to kill
    again = boost(resumed(todo))
    assert again.model == whole.model and again.state.best_round == whole.state.best_round


@pytest.mark.timeout(900)  # it starts clusters up to seven times, each time waiting for workers that were killed
def test_a_killed_worker_is_replaced_and_the_model_is_the_same(shop_sample, tmp_path):
    settings = PARAMS | RANDOM | {"learning_rate": 0.01, "rounds": 3000, "early_stopping": 60}
    whole_training = Training(DATASET, shop_sample, settings, 2, every=20)
    training = replace(
        whole_training, checkpoint=tmp_path / "ckpt", seconds=0, interruptions=5, patience=20, usd_per_hour=9
    )
    path = tmp_path / "ckpt" / f"{training.model_id}.ubj"
    lines, killed, ended = [], [], threading.Event()

    def kill_after_checkpoint(client):
        seen = path.stat().st_mtime_ns if path.exists() else 0
        while len(killed) < 5 and not ended.wait(0.02):
            stamp = path.stat().st_mtime_ns if path.exists() else 0
            if stamp > seen:
                seen = stamp
                with contextlib.suppress(Exception):  # a worker is coming up at this very moment
                    killed.append(next(iter(client.run(os.getpid).values())))
                    os.kill(killed[-1], signal.SIGKILL)

    with cluster("processes", workers=2) as client:
        whole = train(whole_training, client, tmp_path / "whole", lambda line: None)
    assert training.model_id == whole.model_id
    for _ in range(6):  # where a worker does not come back, the task's next try goes on with a cluster of its own
        ended.clear()
        try:
            with cluster("processes", workers=2) as client:
                killer = threading.Thread(target=kill_after_checkpoint, args=(client,), daemon=True)
                killer.start()
                try:
                    model = train(training, client, tmp_path / "one", lines.append)
                    break
                finally:
                    ended.set()
                    killer.join(30)
        except JobError:
            continue
    assert len(killed) == 5 and model.digest == whole.digest and whole.rounds < 3000 - 60  # early stopping ended it
    assert sum("going on from the checkpoint" in line for line in lines) >= 1
    kept = Bundle.read(Path(model.uri))
    assert kept.digest == whole.digest and not path.exists()
    toll = kept.lineage
    assert toll["rounds_regained"] >= 20 and toll["seconds_regained"] > 0  # an attempt went on from a checkpoint
    assert toll["usd_lost"] == pytest.approx((toll["seconds_lost"] + toll["seconds_waited"]) * 18 / 3600, abs=1e-3)
    assert sum("lost: " in line and "regained: " in line for line in lines) >= 1
    assert Bundle.read(Path(whole.uri)).lineage["rounds_regained"] == 0
    assert not [pid for pid in killed if psutil.pid_exists(pid)]


def test_the_toll_of_an_interruption():
    toll = Toll()
    toll.regain(State("t1", rounds=10, seconds=4.0), 36.0)
    attempt = Attempt(started=1000.0, last=1100.0, rounds=70, seconds=4.0, usd_per_hour=36.0)
    toll.lose(attempt, State("t1", rounds=50, seconds=64.0))
    toll.regain(State("t1", rounds=50, seconds=64.0), 36.0)
    toll.wait(20, 36.0)
    # of 100 s 60 are in the checkpoint; two attempts had not to make 10 and 50 rounds
    assert toll.figures() == {
        "interruptions": 1, "rounds_lost": 20, "seconds_lost": 40.0, "seconds_waited": 20,
        "rounds_regained": 60, "seconds_regained": 68.0, "usd_lost": 0.6, "usd_regained": 0.68, "usd": 1.2,
    }  # fmt: skip
    assert str(toll) == "lost: 20 rounds, 60 s, USD 0.6000; regained: 60 rounds, 68 s, USD 0.6800"
    toll.lose(replace(attempt, usd_per_hour=0.0), None)
    assert toll.rounds_lost == 90 and toll.interruptions == 2 and toll.figures()["usd_lost"] == 0.6


def test_the_toll_is_kept_over_tries_and_counts_a_killed_driver(tmp_path):
    path = tmp_path / "t1.toll.json"
    first = Ledger(path)
    first.start(None, 36.0)
    first._written -= 10  # the pulse
    first.tell(70)
    # its process is killed here; the next one finds a checkpoint of round 50
    second = Ledger(path, State("t1", rounds=50, seconds=0.0))
    assert (second.toll.interruptions, second.toll.rounds_lost) == (1, 20)
    second.start(State("t1", rounds=50), 36.0)
    second.interrupted(State("t1", rounds=50))
    third = Ledger(path, State("t1", rounds=50))
    assert (third.toll.interruptions, third.toll.rounds_lost, third.toll.rounds_regained) == (2, 20, 50)
    assert third.toll.began == first.toll.began
    path.write_text("{")  # costs the figures, not the training
    assert Ledger(path).toll == Toll()
    third.remove()
    assert not path.exists()


# --- other capacity ---------------------------------------------------------------------------------------------------


class Machines:
    """A service that makes clusters of this machine's processes, and takes those on spare capacity away."""

    def __init__(self, workers=2, spot_comes=True):
        self.made, self.open_now, self.spot_comes, self.workers = [], 0, spot_comes, workers
        self.cluster = None

    @contextlib.contextmanager
    def open(self, workers, spot):
        from distributed import LocalCluster

        self.made.append(spot)
        count = 0 if spot and not self.spot_comes else self.workers
        quiet = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
        with LocalCluster(n_workers=count, threads_per_worker=1, host="127.0.0.1", **quiet) as self.cluster:
            self.open_now += 1
            try:
                yield SimpleNamespace(
                    address=self.cluster.scheduler_address, security=None, replenish=self._replenish, why=str
                )
            finally:
                self.open_now -= 1

    def _replenish(self):
        if self.made[-1] and not self.spot_comes:
            return
        self.cluster.scale(len(self.cluster.worker_spec) + self.workers - len(self.cluster.scheduler.workers))

    def take_away(self):
        """Nobody restarts what is taken."""
        for nanny in list(self.cluster.workers.values()):
            nanny.auto_restart = False
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(nanny.pid, signal.SIGKILL)


def on_spot(shop_sample, tmp_path, **changes):
    settings = PARAMS | RANDOM | {"rounds": 120, "early_stopping": 120}
    return replace(
        Training(DATASET, shop_sample, settings, 2, every=20), checkpoint=tmp_path / "ckpt", seconds=0, patience=20,
        usd_per_hour=1.0, on_demand_usd_per_hour=3.0, **changes,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_spare_capacity_that_is_taken_away_gives_way_to_machines_on_demand(shop_sample, tmp_path):
    training = on_spot(shop_sample, tmp_path, on_demand_after=1)
    machines, lines = Machines(), []

    def log(line):
        lines.append(line)
        if machines.made == [True] and line.startswith("round"):
            machines.take_away()

    with Cluster(machines, 2, spot=True) as made:
        model = train(training, made, tmp_path / "spot", log)
    assert machines.made == [True, False] and machines.open_now == 0
    assert any("gives way to machines on demand after 1 interruptions" in line for line in lines)
    assert model.toll["interruptions"] == 1 and model.toll["usd_lost"] > 0
    with cluster("processes", workers=2) as client:
        whole = train(replace(training, checkpoint=None), client, tmp_path / "whole", lambda line: None)
    assert whole.digest == model.digest and set(whole.toll) == {"usd"}  # it was not interrupted
    assert not list((tmp_path / "ckpt").iterdir())


def test_spare_capacity_that_does_not_come_gives_way_too(shop_sample, tmp_path):
    machines, lines = Machines(spot_comes=False), []
    training = replace(on_spot(shop_sample, tmp_path, on_demand_deadline=600.0), patience=0.5)
    with Cluster(machines, 2, spot=True) as made:
        train(training, made, tmp_path / "models", lines.append)
    assert machines.made == [True, False] and any("because it did not come: 0" in line for line in lines)
    late = Machines()
    Ledger(tmp_path / "ckpt" / f"{training.model_id}.toll.json").start(None, 0.0)  # a try that began long ago
    with Cluster(late, 2, spot=True) as made:
        fit(replace(training, on_demand_deadline=1e-9), made, lines.append)
    assert late.made == [False]  # spare capacity is not even asked for
    nothing = Machines(spot_comes=False)
    with (
        pytest.raises(TooFewWorkersError, match="too few workers"),
        Cluster(nothing, 2, spot=True) as made,
    ):
        fit(replace(training, on_demand_deadline=0.0), made, lines.append)
    assert nothing.made == [True] and nothing.open_now == 0


def test_fewer_workers_do_the_parts_of_all(shop_sample, tmp_path):
    training = Training(DATASET, shop_sample, PARAMS | RANDOM | {"rounds": 30, "early_stopping": 30}, 2, every=10)
    machines = Machines(workers=1)
    with Cluster(machines, 2, patience=0.5, least=1) as made:
        few = train(replace(training, patience=0.5), made, tmp_path / "few", lambda line: None)
    with cluster("processes", workers=2) as client:
        all_of_them = train(training, client, tmp_path / "all", lambda line: None)
    assert few.digest == all_of_them.digest
    with pytest.raises(TooFewWorkersError, match="expected: 2"), Cluster(Machines(workers=1), 2, patience=0.5):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_machine_that_is_told_to_go_leaves_the_cluster_and_the_training_goes_on(
    metadata, shop_sample, tmp_path, monkeypatch
):
    """The workers run elsewhere: the task stays, and other machines take the place of those that go, five times."""
    told, url = metadata
    monkeypatch.setenv(interruption.GCE, url)  # the workers inherit it
    training = on_spot(shop_sample, tmp_path, machine="gce", interruptions=6)
    slow = {"learning_rate": 0.01, "rounds": 3000, "early_stopping": 60}
    training = replace(training, params=training.params | slow)
    machines, lines, before, left = Machines(), [], [], [0]
    path = tmp_path / "ckpt" / f"{training.model_id}.ubj"

    def written():
        return path.stat().st_mtime_ns if path.exists() else 0

    def gone():
        """The notice comes once the attempt has written a checkpoint of its own."""
        until = time.monotonic() + 0.8 * interruption.ASK_SECONDS
        while len(left) <= 5 and time.monotonic() < until:
            if written() > left[-1]:
                return "TRUE"
            time.sleep(0.02)
        return "FALSE"

    def log(line):
        before.extend([] if lines else machines.cluster.scheduler.workers)
        lines.append(line)
        if "; waiting for " in line:  # it was interrupted, or, on a slow machine, gone before it could tell
            left.append(written())

    told["gce"] = gone
    with Cluster(machines, 2, spot=True) as made:
        bundle = fit(training, made, log)
        assert machines.made == [True] and made.spot  # no limit was set
        assert set(before) - set(machines.cluster.scheduler.workers)  # a machine that stays may go on
    assert bundle.lineage["interruptions"] == 5 and len(before) == 2 and bundle.rounds < 3000 - 60
    assert sum("going on from the checkpoint" in line for line in lines) == 5
    with cluster("processes", workers=2) as client:
        assert fit(replace(training, checkpoint=None), client, lines.append).digest == bundle.digest


# --- the checkpoint ---------------------------------------------------------------------------------------------------


@pytest.fixture
def written(shop_sample, tmp_path):
    todo = work(shop_sample, tmp_path, PLAIN | {"rounds": 10})
    boost(todo)
    return Checkpoint(todo.checkpoint, "t1")


def test_a_checkpoint_of_another_training_is_refused(written):
    with pytest.raises(IntegrityError, match=r"another training(.|\n)*t2(.|\n)*t1(.|\n)*move it away"):
        Checkpoint(written.path, "t2").read()
    assert written.path.exists()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-40], lambda raw: b"no", lambda raw: b"", lambda raw: b"{}\n" + raw]
)
def test_a_broken_checkpoint_is_refused(written, damage):
    written.path.write_bytes(damage(written.path.read_bytes()))
    with pytest.raises(IntegrityError, match="is damaged"):
        written.read()


@pytest.mark.parametrize("damage", ["foreign", "changed"])
def test_a_training_refuses_such_a_checkpoint_and_leaves_it(shop_sample, tmp_path, written, damage):
    training = Training(DATASET, shop_sample, PARAMS | RANDOM, checkpoint=tmp_path / "ckpt")
    path = tmp_path / "ckpt" / f"{training.model_id}.ubj"
    path.parent.mkdir()
    raw = written.path.read_bytes()
    path.write_bytes(raw if damage == "foreign" else raw[:-9] + bytes(9))
    before = path.read_bytes()
    words = "belongs to another training" if damage == "foreign" else "is damaged"
    with cluster("local") as client, pytest.raises(IntegrityError, match=rf"{words}(.|\n)*move it away"):
        train(training, client, tmp_path / "models", lambda line: None)
    assert path.read_bytes() == before and not (tmp_path / "models").exists()


def test_a_model_without_a_state_is_no_checkpoint(written):
    raw, state = written.read()
    assert state.rounds == 10 and isinstance(state, State) and list(state.history) == ["auc", "logloss"]
    written.path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="is damaged"):
        written.read()


def test_a_checkpoint_is_replaced_as_a_whole(written):
    assert [path.name for path in written.path.parent.iterdir()] == ["t1.ubj"]
    assert Checkpoint(written.path.with_name("none.ubj"), "t1").read() is None


# --- memory and devices -----------------------------------------------------------------------------------------------


def test_the_plan_of_memory_goes_from_memory_to_disk_to_a_refusal():
    assert plan_memory(100_000, 17, 2 * 10**9).mode == "memory"
    outside = plan_memory(20_000_000, 17, 2 * 10**9)
    assert outside.mode == "external" and outside.disk > 10**9 and outside.needed < 1.6 * 10**9
    with pytest.raises(ConfigurationError, match=r"into one worker's memory(.|\n)*more workers"):
        plan_memory(10**9, 17, 2 * 10**9)
    with pytest.raises(ConfigurationError, match="into one worker's disk"):
        plan_memory(20_000_000, 17, 2 * 10**9, free_disk=10**8)


def test_the_limit_of_the_control_group_is_found(tmp_path):
    from airflow_provider_sml.ml.training.memory import _group_limits

    own = tmp_path / "own"
    own.write_text("4:memory,hugetlb:/a/b\n2:cpu:/c\n0::/u.slice/s\nnonsense\n")
    found = [str(path.relative_to(tmp_path)) for path in _group_limits(tmp_path, own)]
    assert found == [
        "memory/a/b/memory.limit_in_bytes", "memory/a/memory.limit_in_bytes", "memory/memory.limit_in_bytes",
        "u.slice/s/memory.max", "u.slice/memory.max", "memory.max", "memory/memory.limit_in_bytes", "memory.max",
    ]  # fmt: skip
    assert len(list(_group_limits(tmp_path, tmp_path / "none"))) == 2


def test_external_memory_gives_the_same_model(shop_sample, tmp_path, monkeypatch):
    inside = boost(work(shop_sample, tmp_path, PLAIN))
    todo = work(shop_sample, tmp_path / "disk", PLAIN, rows=[10**7])
    monkeypatch.setattr("airflow_provider_sml.ml.training.runner.memory_limit", lambda sharing: 900 * 10**6)
    outside = boost(todo)
    assert (inside.memory.mode, outside.memory.mode) == ("memory", "external")
    assert outside.model == inside.model


def test_a_gpu_is_asked_for_only_where_there_is_one():
    assert resolve_device("cpu") == "cpu"
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        assert resolve_device("auto") == "cpu"
        with pytest.raises(ConfigurationError, match=r"cannot train on a GPU(.|\n)*no GPU"):
            resolve_device("cuda")
    with pytest.raises(ConfigurationError, match="auto, cpu or cuda"):
        resolve_device("tpu")
