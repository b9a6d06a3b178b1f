"""Trainings on machines of EC2 and Compute Engine whose scripts really run: lost, taken away, left behind, refused."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import boto3
import pytest

from airflow_provider_sml.cloud.dask_ec2 import Ec2Machines
from airflow_provider_sml.cloud.dask_fleet import Bootstrap, Credentials, FleetPlace
from airflow_provider_sml.cloud.dask_gce import GceMachines
from airflow_provider_sml.cloud.machine_script import MachineFleet, MachineScript
from airflow_provider_sml.errors import JobError
from airflow_provider_sml.ml.training.cluster import Cluster, TooFewWorkersError
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.testing.google.compute import FakeCompute
from airflow_provider_sml.testing.machines import MotoInstances, machines
from tests.cloud.test_gce_machines import Clients
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS


@pytest.fixture
def ec2(fake_aws, monkeypatch):
    from airflow_provider_sml.cloud import aws

    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", fake_aws.s3)
    aws._client.cache_clear()
    yield boto3.client("ec2")
    aws._client.cache_clear()


def fleet(ami, label="orders-train", script=None):
    return MachineFleet(Ec2Machines(name=label, types=["m7i.large"], ami=ami), script or MachineScript([]))


def place(ami, label="orders-train", script=None, **changes):
    return FleetPlace(fleet=fleet(ami, label, script), host="127.0.0.1", python=sys.executable, **changes)


@pytest.fixture
def ami(ec2):
    return ec2.describe_images()["Images"][0]["ImageId"]


def until(so, patience=120):
    end = time.monotonic() + patience
    while not so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_training_on_spot_instances_survives_their_loss_and_leaves_nothing(ec2, ami, shop_sample, tmp_path):
    with machines(MotoInstances(ec2)) as hosts:
        training = Training(
            DATASET, shop_sample, PARAMS | {"rounds": 60, "early_stopping": 60}, 2, checkpoint=tmp_path / "ckpt",
            every=5, machine="ec2", patience=120,
        )  # fmt: skip
        lines, taken = [], []

        def log(line):
            lines.append(line)
            if line.startswith("round ") and not taken:  # more rounds may be told before the other machine is started
                taken.append(hosts.running()[0])
                hosts.interrupt(taken[0])

        with Cluster(place(ami), 2, 120, spot=True) as cluster:
            cluster.wait(120)
            assert cluster.client.scheduler.address.startswith("tls://127.0.0.1:")
            assert len(fleet(ami).alive()) == 2
            model = train(training, cluster, tmp_path, log)
        assert any("waiting for 2 workers" in line for line in lines)
        assert len(hosts.started) == 3
        until(lambda: not hosts.running())
        assert fleet(ami).alive() == []
    with Cluster("processes", 2) as cluster:
        assert train(training, cluster, tmp_path / "undisturbed", log).digest == model.digest


DRIVER = """
import sys, time
from tests.cloud.test_dask_machines import place
with place(sys.argv[1]).open(2) as made:
    print(made.address, flush=True)
    while len(made._scheduler.scheduler.workers) < 2:
        time.sleep(0.1)
    print("up", flush=True)
    time.sleep(600)
"""


def test_instances_of_a_killed_driver_end_by_themselves_and_by_the_next_try(ec2, ami):
    with machines(MotoInstances(ec2)) as hosts:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, ami], stdout=subprocess.PIPE, text=True)
        try:
            address = driver.stdout.readline().strip()
            stranger(address)
            assert driver.stdout.readline().strip() == "up"
            assert len(fleet(ami).alive()) == 2
            os.kill(driver.pid, signal.SIGKILL)
            until(lambda: not hosts.running(), 30)  # the workers' ends have shut their machines down
            until(lambda: fleet(ami).alive() == [], 10)
        finally:
            driver.kill()
            driver.wait()
            driver.stdout.close()
    assert fleet(ami).launch(2, False, NOTHING) == 2  # nothing runs them: they stay, as after a lost network
    other = fleet(ami, "another-task")
    other.launch(1, False, NOTHING)
    left = fleet(ami).alive()
    with place(ami).open(1):
        assert not set(left) & set(fleet(ami).alive()) and len(fleet(ami).alive()) == 1
    assert fleet(ami).alive() == [] and len(other.remove()) == 1


NOTHING = Bootstrap(["true"], {})


def stranger(address):
    """Somebody without a certificate of the cluster is not let in."""
    from distributed import Client, Security

    own = Credentials.made(1).security()
    with pytest.raises(OSError, match=r"(?i)certificate|timed out|ssl|closed"):
        Client(address, security=own, timeout=3)
    with pytest.raises((OSError, TypeError)):
        Client(address.replace("tls://", "tcp://"), security=Security(), timeout=3)


def test_machines_that_do_not_come_are_told_and_not_asked_for_for_ever(ec2, ami, monkeypatch):
    monkeypatch.setattr("airflow_provider_sml.ml.training.cluster._REPLENISH_SECONDS", 0.2)
    broken = MachineScript([], prepare=["exit 3"])
    with machines(MotoInstances(ec2)) as hosts:
        told = r"within 6 s; found: 0 \((Client|3 machines were started)"
        with pytest.raises(TooFewWorkersError, match=told), Cluster(place(ami, script=broken), 1, 6):
            pass
        assert len(hosts.started) == 3 and fleet(ami).alive() == []
    with pytest.raises(ZeroDivisionError), place(ami).open(1):
        _ = 1 / 0
    assert fleet(ami).alive() == []


def test_a_cluster_that_is_ended_starts_no_machine_again(ec2, ami):
    where = place(ami)
    with where.open(2) as made:
        assert len(fleet(ami).alive()) == 2
        where.end()
        made.replenish()
        assert fleet(ami).alive() == []


def test_a_port_that_is_taken_is_told_before_a_machine_is_paid_for(ec2, ami):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(JobError, match=r"cannot listen on 127.0.0.1(.|\n)*host, bind and port"):
            place(ami, port=taken.getsockname()[1]).open(1).__enter__()
    assert fleet(ami).alive() == []


@pytest.mark.slow
def test_a_training_in_containers_on_compute_engine_goes_over_to_machines_on_demand(shop_sample, tmp_path, monkeypatch):
    cloud = FakeCompute()
    clients = Clients(cloud.address)
    fixed = {"project": cloud.project, "region": "r", "zones": ["r-b"], "types": ["n2-standard-16"], "disk_image": "i"}
    google = GceMachines(name="orders-train", **fixed).connect(clients)
    script = MachineScript([], image="registry/train:1", gpus=1)
    where = FleetPlace(fleet=MachineFleet(google, script), host="127.0.0.1", python=sys.executable)
    with machines(cloud) as hosts:
        training = Training(
            DATASET, shop_sample, PARAMS | {"rounds": 400, "early_stopping": 400}, 1, checkpoint=tmp_path / "ckpt",
            every=10, machine="gce", patience=120, on_demand_after=1,
        )  # fmt: skip
        lines, models = [], []

        def announce():
            while not (there := hosts.running()):
                time.sleep(0.05)
            hosts.metadata.notices.add(there[0])  # the rank leaves with a checkpoint, after its first round

        with Cluster(where, 1, 120, spot=True) as cluster:
            threading.Thread(target=announce, daemon=True).start()
            models.append(train(training, cluster, tmp_path, lines.append))
            assert [each.scheduling.provisioning_model for each in cloud.instances.values()] == ["STANDARD"]
            seen = cluster.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
            assert list(seen.values()) == ["0"]
        assert any("gives way to machines on demand" in line for line in lines), lines
        assert any("going on from the checkpoint of round" in line for line in lines), lines
        assert cloud.instances == {}
    cloud.close()
