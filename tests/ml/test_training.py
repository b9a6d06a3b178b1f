"""Training on real Dask clusters: the same bytes twice, early stopping, and a clear end for all that goes wrong."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from distributed import Client, Scheduler
from distributed.utils import LoopRunner
from sklearn.metrics import log_loss

from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError, JobError
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, MODEL_FILE, Bundle, Scorer, feature_types
from airflow_provider_sml.ml.contract import LABEL
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.cluster import addresses, cluster
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.testing.processes import free_port
from tests import shops
from tests.ml.test_lake_shops import DATASET
from tests.processes import start
from tests.trained import PARAMS, make_sample, rows_of

FEATURES = DATASET.feature_list
#: Whatever goes wrong, no process is left.
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def local():
    with cluster("local") as client:
        yield client


@pytest.fixture(scope="module")
def processes():
    with cluster("processes", workers=2) as client:
        yield client


def fit(client, sample, models, lines=None, dataset=DATASET, workers=1, **params):
    training = Training(dataset, sample, PARAMS | params, workers)
    return train(training, client, models, (lines if lines is not None else []).append)


def changed(table, name, values):
    return table.set_column(table.column_names.index(name), table.schema.field(name), pa.array(values))


def splits(train=None, validate=None):
    return {"train": train or rows_of(0, 8), "validate": validate or rows_of(8, 10), "test": rows_of(10, 11)}


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_one_worker_gives_the_same_bytes_twice(local, shop_sample, tmp_path):
    one, two = (fit(local, shop_sample, tmp_path / name) for name in ("one", "two"))
    assert (one.digest, one.model_id, one.rounds) == (two.digest, two.model_id, two.rounds)
    assert (Path(one.uri) / MODEL_FILE).read_bytes() == (Path(two.uri) / MODEL_FILE).read_bytes()
    assert 1 < one.rounds < PARAMS["rounds"]


def count_teams(sample, models):
    """In a process in which nothing has trained yet: threads that are not Python's, before a training and after it."""

    def unknown():
        return set(os.listdir("/proc/self/task")) - {str(thread.native_id) for thread in threading.enumerate()}

    with cluster("local") as client:
        client.submit(lambda: data.label_counts(split_files(sample, "train"))).result()  # starts Arrow's threads
        before = unknown()
        fit(client, sample, Path(models))
        assert unknown() <= before


def test_a_training_leaves_no_team_of_threads_behind(shop_sample, tmp_path):
    """With the members of two teams, libgomp would let all of them sleep at every barrier of the next training."""
    child = start(count_teams, shop_sample, str(tmp_path))
    child.join(120)
    assert child.exitcode == 0


def test_two_worker_processes_give_the_same_bytes_twice(processes, shop_sample, tmp_path):
    one, two = (fit(processes, shop_sample, tmp_path / name, workers=2) for name in ("one", "two"))
    assert (Path(one.uri) / MODEL_FILE).read_bytes() == (Path(two.uri) / MODEL_FILE).read_bytes()
    assert (one.digest, one.rounds) == (two.digest, two.rounds) and one.rounds > 1
    left = processes.run(lambda dask_worker: getattr(dask_worker, "sml_trackers", {}))
    assert left == {address: {} for address in addresses(processes)}


def test_workers_of_a_machine_share_its_memory(processes, shop_sample, tmp_path):
    """Those that take part, and those that do not now: another training may be theirs."""
    for workers in (1, 2):
        model = fit(processes, shop_sample, tmp_path / str(workers), workers=workers)
        [limit] = re.findall(r"of ([\d.]+) GB", Bundle.read(Path(model.uri)).lineage["memory"])
        assert 0 < float(limit) <= psutil.virtual_memory().total / 2e9 + 0.05


def test_two_workers_learn_what_one_learns(local, processes, shop_sample, tmp_path):
    table = pa.concat_tables([pq.read_table(path) for path in split_files(shop_sample, "test")])
    found = []
    for client, workers in ((local, 1), (processes, 2)):
        model = fit(client, shop_sample, tmp_path, workers=workers)
        bundle = Bundle.read(Path(model.uri))
        found.append(Scorer(bundle).score_features(data.matrix(table, FEATURES)))
    assert np.abs(found[0] - found[1]).mean() < 0.03
    assert np.corrcoef(*found)[0, 1] > 0.95


def test_a_repeat_finds_the_model_and_trains_nothing(local, shop_sample, tmp_path):
    first = fit(local, shop_sample, tmp_path)
    stamp = (Path(first.uri) / MODEL_FILE).stat().st_mtime_ns
    lines = []
    assert fit(local, shop_sample, tmp_path, lines) == first
    assert (Path(first.uri) / MODEL_FILE).stat().st_mtime_ns == stamp
    assert not any("round " in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [first.model_id]


def test_a_training_that_was_killed_while_it_wrote_is_done_again(local, shop_sample, tmp_path):
    first = fit(local, shop_sample, tmp_path)
    Path(first.uri).joinpath(BUNDLE_FILE).unlink()  # the model is there, its description is not
    assert fit(local, shop_sample, tmp_path) == first
    assert Bundle.read(Path(first.uri)).digest == first.digest


def test_a_model_that_was_changed_on_disk_is_not_used(local, shop_sample, tmp_path):
    first = fit(local, shop_sample, tmp_path)
    with (Path(first.uri) / MODEL_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match="has changed"):
        fit(local, shop_sample, tmp_path)


def test_what_decides_the_model_is_in_its_id(shop_sample):
    def ident(dataset=DATASET, workers=1, **params):
        return Training(dataset, shop_sample, params, workers).model_id

    described = DATASET.model_dump()
    turned = DATASET.model_validate(described | {"features": dict(reversed(DATASET.features.items()))})
    other = DATASET.model_validate(described | {"label": "minutes_late > 20"})
    columns = described["contract"]["columns"]
    wider = columns | {"weight": columns["weight"] | {"range": [0, 60]}}
    served = DATASET.model_validate(described | {"contract": described["contract"] | {"columns": wider}})
    found = [
        ident(), ident(turned), ident(other), ident(served), ident(max_depth=3), ident(seed=8), ident(workers=2),
        Training(DATASET, replace(shop_sample, sample_id="other")).model_id,
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert ident() == ident(rounds=300)


# --- early stopping ---------------------------------------------------------------------------------------------------


def test_boosting_stops_where_the_validation_loss_is_lowest(local, shop_sample, tmp_path):
    model = fit(local, shop_sample, tmp_path, rounds=60, learning_rate=0.5, early_stopping=5)
    parts = {
        split: [data.read(p, FEATURES) for p in split_files(shop_sample, split)] for split in ("train", "validate")
    }
    matrices = {
        split: xgboost.DMatrix(
            np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found]),
            feature_names=[f.name for f in FEATURES], feature_types=feature_types(FEATURES), enable_categorical=True,
        )
        for split, found in parts.items()
    }  # fmt: skip
    longer = fit(local, shop_sample, tmp_path, rounds=model.rounds + 5, learning_rate=0.5, early_stopping=60)
    assert longer.rounds == model.rounds
    booster = xgboost.Booster()
    booster.load_model(bytearray(Bundle.read(Path(model.uri)).model))
    assert booster.num_boosted_rounds() == model.rounds
    truth = matrices["validate"].get_label()
    losses = [
        log_loss(truth, booster.predict(matrices["validate"], iteration_range=(0, n + 1))) for n in range(model.rounds)
    ]
    assert min(losses) == losses[-1] and model.rounds < 60


def test_progress_is_told_and_the_lineage_is_kept(local, shop_sample, tmp_path):
    lines = []
    model = fit(local, shop_sample, tmp_path, lines)
    deadline = time.monotonic() + 10
    while not lines and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lines[0].startswith("round 1 of at most 40: auc 0.")
    kept = Bundle.read(Path(model.uri)).lineage
    assert (kept["sample_id"], kept["snapshot_id"]) == (shop_sample.sample_id, shop_sample.snapshot_id)
    assert kept["params"]["max_depth"] == 3 and kept["params"]["seed"] == 7 and kept["contract"] == DATASET.hash


def test_the_speed_is_that_of_all_workers_together(processes, shop_sample, tmp_path):
    lines, told = [], None
    model = fit(processes, shop_sample, tmp_path, lines, workers=2, rounds=200, early_stopping=200)
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.05)
        told = next((match for line in lines if (match := re.search(r"^round 200 .* ([\d,]+) rows/s", line))), None)
    seconds = Bundle.read(Path(model.uri)).lineage["boosting_seconds"]
    boosted = float(told[1].replace(",", "")) * seconds
    # the lineage has tenths of a second
    assert boosted == pytest.approx(shop_sample.rows["train"] * 200, rel=0.15 + 0.05 / seconds)


# --- odd rows ---------------------------------------------------------------------------------------------------------


def test_columns_without_a_value_and_constant_ones_are_trained_on(local, tmp_path):
    table = rows_of(0, 8)
    table = changed(table, "rain", pa.nulls(table.num_rows, pa.float64()))
    table = changed(table, "age", np.full(table.num_rows, 7.0))
    sample = make_sample(tmp_path / "sample", splits(table))
    model = fit(local, sample, tmp_path / "models")
    scores = Scorer(Bundle.read(Path(model.uri))).score_features(data.matrix(rows_of(10, 11), FEATURES))
    assert np.isfinite(scores).all() and scores.std() > 0


@pytest.mark.parametrize("shards", [2, 3])
def test_a_worker_whose_files_hold_no_row(processes, tmp_path, shards):
    sample = make_sample(tmp_path / "sample", splits(), shards)
    for split in ("train", "validate"):
        path = split_files(sample, split)[1]
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    one, two = (fit(processes, sample, tmp_path / name, workers=2) for name in ("one", "two"))
    assert one.digest == two.digest and one.rounds > 1


def test_one_empty_file_among_others_changes_no_rows(local, tmp_path):
    sample = make_sample(tmp_path / "sample", splits(), 3)
    first = fit(local, sample, tmp_path / "one")
    empty = pq.read_table(split_files(sample, "train")[0]).slice(0, 0)
    pq.write_table(empty, Path(sample.uri) / "train" / "0005.parquet")
    assert fit(local, sample, tmp_path / "two").digest == first.digest


@pytest.mark.parametrize("label", [0, 1, 2, None])
def test_labels_that_allow_no_model(local, tmp_path, label):
    table = rows_of(0, 2)
    table = changed(table, LABEL, pa.array([label] * table.num_rows, pa.int64()))
    sample = make_sample(tmp_path / "sample", splits(table))
    with pytest.raises(DataError, match=r"both 0 and 1(.|\n)*240"):
        fit(local, sample, tmp_path / "models")
    assert not list(tmp_path.glob("models/*"))


def test_one_class_over_all_workers_is_refused_and_one_class_in_one_worker_is_not(processes, tmp_path):
    table = rows_of(0, 4)
    labels = table.column(LABEL).to_numpy()
    whole = make_sample(tmp_path / "sample", splits(table), 2)
    for path, label in zip(split_files(whole, "train"), (0, 1), strict=True):
        pq.write_table(table.filter(labels == label), path)
    assert fit(processes, whole, tmp_path / "models", workers=2).rounds > 1
    none = changed(table, LABEL, np.zeros(table.num_rows, np.int64))
    with pytest.raises(DataError, match="480 rows with 0, 0 with 1"):
        fit(processes, make_sample(tmp_path / "none", splits(none), 2), tmp_path / "models", workers=2)


def test_rows_without_a_feature_of_the_model():
    with pytest.raises(DataError, match="no rain"):
        data.matrix(rows_of(0, 1).drop_columns(["rain"]), FEATURES)


def test_booleans_and_whole_numbers_are_fed_as_numbers():
    features = {"gift": "gift", "order": "order", "city": "city"}
    dataset = shops.make_spec(Path("/nowhere"), features=features).dataset
    table = pa.table({"gift": [True, False, None], "order": [3, None, 5], "city": ["Rome", None, "Bern"]})
    expected = [[1, 3, 2], [0, np.nan, np.nan], [np.nan, 5, 0]]
    np.testing.assert_array_equal(data.matrix(table, dataset.feature_list), np.array(expected, np.float32))


# --- settings that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rounds": 0}, r"train.params.rounds(.|\n)*a whole number from 1; found: 0"),
        ({"rounds": "many"}, "found: many"),
        ({"early_stopping": None}, "train.params.early_stopping"),
        ({"early_stopping": True}, "train.params.early_stopping"),
        ({"objective": "reg:squarederror"}, "binary:logistic; found: reg:squarederror"),
        ({"max_depth": -3}, r"XGBoost refuses(.|\n)*max_depth"),
        ({"learning_rate": "fast"}, r"XGBoost refuses train.params"),
        ({"max_dept": 3}, r"does not know(.|\n)*max_dept"),
    ],
)
def test_parameters_that_do_not_fit(shop_sample, tmp_path, params, words):
    with pytest.raises(ConfigurationError, match=words):
        fit(None, shop_sample, tmp_path, **params)  # no cluster is asked
    assert not list(tmp_path.iterdir())


def test_more_workers_than_files(processes, tmp_path):
    sample = make_sample(tmp_path / "sample", splits(), 1)
    with pytest.raises(ConfigurationError, match="1 to 1; found: 2"):
        fit(processes, sample, tmp_path / "models", workers=2)


@pytest.mark.parametrize(
    ("where", "workers", "words"),
    [
        ("mars", 1, "local, processes, cuda, or a scheduler's address"),
        ("local", 2, "1, which has all cores; found: 2"),
        ("processes", 0, "at least 1; found: 0"),
        ("nonsense://host:1", 1, "no scheduler's address"),
    ],
)
def test_clusters_that_do_not_exist(where, workers, words):
    with pytest.raises(ConfigurationError, match=words), cluster(where, workers, patience=2):
        pass


# --- clusters that fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def bare_scheduler():
    """A scheduler without workers."""
    runner = LoopRunner()
    runner.start()

    async def start():
        return await Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0")

    scheduler = runner.run_sync(start)
    yield scheduler.address
    runner.run_sync(scheduler.close)
    runner.stop()


def test_a_scheduler_that_does_not_answer():
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(JobError, match=f"{address} does not answer"), cluster(address, patience=1):
        pass


def test_workers_that_never_come_up(bare_scheduler):
    before = set(threading.enumerate())
    words = r"too few workers(.|\n)*2 within 1 s; found: 0"
    with pytest.raises(JobError, match=words), cluster(bare_scheduler, workers=2, patience=1):
        pass
    assert not [thread for thread in set(threading.enumerate()) - before if "IO loop" in thread.name]


def test_a_worker_that_is_killed_ends_the_training_and_the_cluster_is_fit_for_the_next(tmp_path, shop_sample):
    with cluster("processes", workers=2) as client:
        pids = list(client.run(os.getpid).values())
        killed = threading.Event()

        def kill(line):
            if "round 1 " in line and not killed.is_set():
                killed.set()
                os.kill(pids[1], signal.SIGKILL)

        training = Training(DATASET, shop_sample, {"rounds": 100_000, "early_stopping": 100_000}, 2)
        with pytest.raises(JobError) as caught:
            train(training, client, tmp_path, kill)
        assert killed.is_set() and caught.value.retryable
        assert not list(tmp_path.iterdir())
        client.wait_for_workers(2, timeout=60)
        assert fit(client, shop_sample, tmp_path, workers=2).rounds > 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_only_worker_is_killed(tmp_path, shop_sample):
    with cluster("processes", workers=1) as client:
        [pid] = client.run(os.getpid).values()
        training = Training(DATASET, shop_sample, {"rounds": 100_000, "early_stopping": 100_000})
        with pytest.raises(JobError, match="a worker was lost"):
            train(training, client, tmp_path, lambda line: os.kill(pid, signal.SIGKILL))
    assert not list(tmp_path.iterdir())


def test_a_file_that_one_worker_cannot_read_is_told(processes, tmp_path):
    sample = make_sample(tmp_path / "sample", splits(), 2)
    split_files(sample, "train")[1].write_bytes(b"no parquet")
    with pytest.raises(JobError, match=r"training failed on the cluster(.|\n)*(Parquet|magic)"):
        fit(processes, sample, tmp_path / "models", workers=2)
    assert len(addresses(processes)) == 2
    fit(processes, make_sample(tmp_path / "good", splits(), 2), tmp_path / "models", workers=2)


def test_the_scheduler_is_lost_during_training(tmp_path, shop_sample):
    with Client(processes=True, n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0", set_as_default=False) as client:  # fmt: skip
        training = Training(DATASET, shop_sample, {"rounds": 100_000, "early_stopping": 100_000})
        ended = threading.Event()

        def end(line):
            if not ended.is_set():
                ended.set()
                threading.Thread(target=client.cluster.close, daemon=True).start()

        with pytest.raises(JobError):
            train(training, client, tmp_path, end)


@pytest.mark.parametrize(("where", "workers"), [("local", 1), ("processes", 2)])
def test_clusters_of_this_machine_listen_on_the_loopback_alone_and_leave_nothing(where, workers):
    me = psutil.Process()

    def listening(processes):
        return {
            (process.pid, c.laddr.port, c.laddr.ip)
            for process in processes
            for c in process.net_connections(kind="tcp")
            if c.status == psutil.CONN_LISTEN
        }

    before, children = listening([me]), set(me.children(recursive=True))
    with cluster(where, workers):
        made = [child for child in me.children(recursive=True) if child not in children]
        found = listening([me, *made]) - before
        assert {ip for _, _, ip in found} == {"127.0.0.1"}
    _, alive = psutil.wait_procs(
        [child for child in made if "resource_tracker" not in " ".join(cmd(child))], timeout=10
    )
    assert alive == []
    assert listening([me]) <= before


def cmd(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_workers_end_with_a_caller_that_is_killed(tmp_path, shop_sample):
    script = tmp_path / "caller.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, time
            from airflow_provider_sml.ml.training.cluster import cluster

            if __name__ == "__main__":
                with cluster("processes", workers=2) as client:
                    print(*client.run(os.getpid).values(), flush=True)
                    time.sleep(600)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as caller:
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        caller.kill()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert len(pids) == 2 and alive == []
