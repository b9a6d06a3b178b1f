"""A machine of a training job: it trains the bytes of a training on a cluster, alone or with others."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from google.auth.credentials import AnonymousCredentials
from xgboost.tracker import RabitTracker

from airflow_provider_sml.cloud.google import GoogleClients
from airflow_provider_sml.cloud.vertex_training import VertexTrainingJob
from airflow_provider_sml.ml.bundle import MODEL_FILE, Bundle
from airflow_provider_sml.ml.training.__main__ import main
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.host import PORT_VARIABLE, _tracker, sagemaker_host, vertex_host
from airflow_provider_sml.ml.training.request import REQUEST_FILE, read_request, write_request
from airflow_provider_sml.ml.training.runner import run_rank
from airflow_provider_sml.ml.training.trainer import Training, fit, work_of
from airflow_provider_sml.refs import SampleRef
from airflow_provider_sml.testing.google.vertex_containers import local_container
from airflow_provider_sml.testing.processes import free_port
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS


def of(sample, workers=1, **params):
    return Training(DATASET, sample, PARAMS | params, workers, every=10)


@pytest.fixture
def opt_ml(tmp_path):
    """Lays down what SageMaker gives a container; gives its folder."""

    def lay(training, rank=0, hosts=("127.0.0.1",), checkpoints=True):
        write_request(training, tmp_path / "request")
        base = tmp_path / f"opt-{rank}"
        (base / "input" / "config").mkdir(parents=True)
        (base / "model").mkdir()
        if checkpoints:
            (base / "checkpoints").mkdir()
        told = {"request": str(tmp_path / "request"), "store": "{}"}
        (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(told))
        resources = {"current_host": hosts[rank], "hosts": list(hosts)}
        (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
        return base

    return lay


def test_a_container_of_sagemaker_trains_the_bytes_of_a_local_training(shop_sample, opt_ml, monkeypatch, capfd):
    training = of(shop_sample)
    base = opt_ml(training)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    assert main(["train"]) == 0
    with cluster("local") as client:
        expected = fit(training, client, lambda line: None)
    made = Bundle.read(base / "model")
    assert (made.model, made.model_id) == (expected.model, expected.model_id)
    assert made.lineage["history"] == expected.lineage["history"]
    assert list((base / "checkpoints").iterdir()) == []
    assert "of at most 40: auc" in capfd.readouterr().out
    assert main(["train"]) == 0  # an attempt after that one finds the model
    assert "is there" in capfd.readouterr().out


def test_two_machines_that_were_taken_away_train_the_bytes_of_two_workers(shop_sample, opt_ml):
    """Each keeps checkpoints on a disk of its own, as on SageMaker, and only the first one has any; the notice comes to
    the other one."""
    training, hosts = of(shop_sample, workers=2, rounds=200, early_stopping=200), ("127.0.0.1", "127.0.0.2")
    bases = [opt_ml(training, rank, hosts) for rank in (0, 1)]

    def run(port, disturb):
        machines = [
            subprocess.Popen(
                [sys.executable, "-m", "airflow_provider_sml.ml.training", "train"], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
                env=os.environ | {"SAGEMAKER_BASE_DIR": str(base), PORT_VARIABLE: str(port)},
            )
            for base in bases
        ]  # fmt: skip
        try:
            disturb(machines)
            said = [machine.communicate(timeout=120)[0] for machine in machines]
        finally:
            for machine in machines:
                machine.kill()
        return [machine.returncode for machine in machines], said

    def take_away(machines):
        while not list((bases[0] / "checkpoints").glob("*.ubj")) and machines[1].poll() is None:
            time.sleep(0.005)
        machines[1].send_signal(signal.SIGTERM)

    ends, said = run(free_port(), take_away)
    assert 0 not in ends and "interrupted in round" in said[1], said
    assert list((bases[1] / "checkpoints").iterdir()) == []
    ends, said = run(free_port(), lambda machines: None)
    assert ends == [0, 0] and "going on from the checkpoint of round" in said[0], said
    assert Bundle.read(bases[0] / "model").model == expected_of(training)
    assert list((bases[1] / "model").iterdir()) == [], "the first machine alone writes the model"


def test_the_port_of_an_attempt_before_is_waited_for():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        threading.Timer(0.3, taken.close).start()
        _tracker(1, "127.0.0.1", port).free()


def test_two_machines_of_a_job_of_vertex_ai_train_the_bytes_of_two_workers(
    shop_sample, tmp_path, fake_google, fake_gcs_address
):
    """A job of two worker pools, whose containers are processes that meet on the loopback interface."""
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    training = of(shop_sample, workers=2, rounds=6)
    write_request(training, tmp_path / "request")
    fake_google.storage.write("gs://models/there", b"")
    command = [sys.executable, "-m", "airflow_provider_sml.ml.serving"]
    fake_google.vertex.jobs.container = local_container(fake_google, {"train:1": command})
    job = VertexTrainingJob(
        name="shops", project="fake-project", region="europe-west1", image="train:1", output="gs://models/shops",
        machines=["n1-standard-4"], count=2,
        arguments=["train", "--request", str(tmp_path / "request"), "--store", "{}"],
        environment={PORT_VARIABLE: str(free_port())},
    ).connect(GoogleClients("europe-west1", AnonymousCredentials()))  # fmt: skip
    job_id, end = job.submit(), time.monotonic() + 120
    while (found := job.status(job_id)).message in ("QUEUED", "PENDING", "RUNNING") and time.monotonic() < end:
        fake_google.clock.advance(60)
        time.sleep(0.1)
    assert found.state == "succeeded", found.message
    made = job.result(job_id)
    model = fake_google.storage.read(f"{made['model']}{MODEL_FILE}")
    assert (made["count"], model) == (2, expected_of(training))
    [kept] = fake_google.vertex.jobs.jobs.values()
    assert list(kept.processes) == ["workerpool0-0", "workerpool1-0"]


def expected_of(training):
    """The model of two ranks that meet as those of one worker of a cluster do."""
    work, tracker = work_of(training, None), RabitTracker(2, "127.0.0.1", sortby="task")
    tracker.start()
    with ThreadPoolExecutor(2) as pool:
        expected, _ = pool.map(lambda rank: run_rank(rank, work, tracker.worker_args(), 1, lambda line: None), (0, 1))
    return expected.model


def test_what_a_retry_cannot_mend_is_told_to_sagemaker(shop_sample, opt_ml, monkeypatch):
    base = opt_ml(of(shop_sample))
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    request = base.parent / "request" / REQUEST_FILE
    told = json.loads(request.read_text())
    for spoilt, said in (({"model_id": "0" * 12}, "another model"), ({"format": 99}, "cannot be read")):
        request.write_text(json.dumps(told | spoilt))
        assert main(["train"]) == 2
        failure = (base / "output" / "failure").read_text()
        assert failure.startswith("IntegrityError: ") and said in failure
    request.write_text(json.dumps(told))
    resources = {"current_host": "a", "hosts": ["a", "b"]}
    (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))
    assert main(["train"]) == 2
    assert "another number of machines" in (base / "output" / "failure").read_text()


def test_a_container_without_a_network_trains_from_its_channels(shop_sample, opt_ml, monkeypatch):
    base = opt_ml(of(shop_sample), checkpoints=False)
    shutil.copytree(shop_sample.uri, base / "input" / "data" / "sample")
    shutil.move(base.parent / "request", base / "input" / "data" / "request")
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    monkeypatch.setattr(SampleRef, "load", lambda told: replace(shop_sample, uri="/nowhere"))
    assert main(["train"]) == 0
    assert Bundle.read(base / "model").model_id == of(shop_sample).model_id


def test_a_request_gives_the_training_back(shop_sample, tmp_path):
    training = of(shop_sample, workers=2, class_weights="balanced")
    write_request(training, tmp_path)
    assert read_request(tmp_path) == training
    copy = read_request(tmp_path, tmp_path / "sample")
    assert copy == replace(training, sample=replace(training.sample, uri=str(tmp_path / "sample")))


def test_vertex_ai_tells_the_machines_and_the_places():
    told = {"cluster": {"workerpool0": ["one:2222"], "workerpool1": ["two:2222", "three:2222"]},
            "task": {"type": "workerpool1", "index": 1}}  # fmt: skip
    environ = {"AIP_MODEL_DIR": "gs://b/model/", "AIP_CHECKPOINT_DIR": "gs://b/kept/", "CLUSTER_SPEC": json.dumps(told)}
    host = vertex_host("gs://b/request", {}, environ)
    assert (host.hosts, host.rank) == (("one", "two", "three"), 2)
    assert (host.model, host.checkpoint) == ("gs://b/model/", "gs://b/kept/")
    assert vertex_host("x", {}, environ | {"SML_CHECKPOINT_DIR": "gs://c"}).checkpoint == "gs://c"


def test_without_a_service_there_is_nothing_to_train(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert sagemaker_host(os.environ) is None
    assert main(["train"]) == 2
    assert "there is nothing to train" in capfd.readouterr().err
