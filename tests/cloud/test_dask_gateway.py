"""Clusters of a real Dask Gateway on this machine: made with the task's options, gone with it come what may."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from dask_gateway import Gateway
from dask_gateway.auth import BasicAuth

from airflow_provider_sml.cloud.dask_gateway import DaskGateway, open_gateway
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.ml.training.cluster import Cluster, addresses
from airflow_provider_sml.ml.training.trainer import Training, train
from airflow_provider_sml.testing.dask_gateway import gateway_server
from airflow_provider_sml.testing.processes import ServerUnavailableError
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS


@pytest.fixture(scope="module")
def server():
    try:
        with gateway_server() as running:
            yield running
    except ServerUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def place(server):
    return DaskGateway(
        label="orders-train-1", connect=lambda: login(server.address, server.login, server.password),
        options={"worker_cores": 1}, spot_options={"capacity": "spot"}, patience=60,
    )  # fmt: skip


def login(address, user, password):
    return open_gateway(address, auth=BasicAuth(user, password))


def running(place):
    with place.connect() as gateway:
        return [report.name for report in gateway.list_clusters(status=["pending", "running"])]


def until(so, patience=30):
    end = time.monotonic() + patience
    while not so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_training_on_spot_workers_that_replaces_a_killed_one_and_leaves_nothing(server, place, shop_sample, tmp_path):
    training = Training(DATASET, shop_sample, PARAMS, 2, checkpoint=tmp_path / "ckpt")
    with Cluster(place, 2, 60, spot=True) as cluster:
        cluster.wait(60)
        nannies, pids = cluster.client.run(os.getppid), cluster.client.run(os.getpid)
        assert set(cluster.client.run(os.getenv, "SML_CAPACITY").values()) == {"spot"}
        model = train(training, cluster, tmp_path, lambda line: None)
        assert model.rounds > 1
        first, *_ = pids
        for pid in (nannies[first], pids[first]):  # the whole machine, as it were
            os.kill(pid, signal.SIGKILL)
        until(lambda: first not in addresses(cluster.client))
        cluster.wait(60)
        before = running(place)
        cluster.on_demand()  # gives the spot cluster back
        assert set(cluster.client.run(os.getenv, "SML_CAPACITY").values()) == {"on-demand"}
        assert len(running(place)) == 1 and running(place) != before
    assert running(place) == [] and server.processes() == []


def test_a_cluster_adapts_between_its_bounds(place):
    with Cluster(replace(place, minimum=1, maximum=2), 1, 60) as cluster:
        futures = cluster.client.map(lambda number: time.sleep(0.5), range(60))
        until(lambda: len(addresses(cluster.client)) == 2)
        cluster.client.cancel(futures)
        until(lambda: len(addresses(cluster.client)) == 1, 40)


DRIVER = """
import sys, time
from airflow_provider_sml.cloud.dask_gateway import DaskGateway
from tests.cloud.test_dask_gateway import login
address, user, password, label, tag, grace = sys.argv[1:]
connect = lambda: login(address, user, password)
with DaskGateway(label=label, connect=connect, tag_option=tag, grace=float(grace)).open(1) as made:
    print(made.name, flush=True)
    time.sleep(600)
"""


def killed_driver(server, label, tag="", grace=600):
    """Name of the cluster whose driver was killed."""
    arguments = [server.address, server.login, server.password, label, tag, str(grace)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        return driver.stdout.readline().strip()
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


@pytest.mark.parametrize("tag", ["", "tag"], ids=["asked of the scheduler", "told by an option"])
def test_the_next_try_stops_what_a_killed_driver_left_and_nothing_else(server, place, tag):
    left, other = killed_driver(server, place.label, tag), killed_driver(server, "another-task", tag)
    assert set(running(place)) == {left, other}
    place = replace(place, tag_option=tag)
    with place.open(1):
        assert left not in running(place) and other in running(place)
        assert server.processes(left) == []
    replace(place, label="another-task").end()
    assert running(place) == []


def test_a_cluster_whose_driver_was_killed_ends_by_itself(server, place):
    left = killed_driver(server, "nobody-retries", grace=2)
    until(lambda: left not in running(place))
    until(lambda: server.processes(left) == [])


def test_a_request_whose_answer_is_lost_leaves_nothing(server, place):
    class Lost(Gateway):
        def __del__(self):
            pass

        def submit(self, *arguments, **options):
            super().submit(*arguments, **options)
            raise ConnectionResetError("reset by peer")

    auth = BasicAuth(server.login, server.password)
    lost = replace(place, tag_option="tag", connect=lambda: Lost(server.address, auth=auth))
    with pytest.raises(JobError, match=r"would not make a cluster(.|\n)*reset by peer"), lost.open(1):
        pass
    assert running(place) == []


def test_what_the_gateway_refuses_is_told_and_not_retried(server, place):
    with pytest.raises(ConfigurationError, match=r"Unknown fields \['cores'\](.|\n)*cluster_options"):
        replace(place, options={"cores": 3}).open(1).__enter__()
    wrong = replace(place, connect=lambda: login(server.address, "ada", "guess"))
    with pytest.raises(ConfigurationError, match=r"401(.|\n)*auth of the connection"):
        wrong.open(1).__enter__()
    with pytest.raises(JobError, match="would not list the clusters"):
        replace(place, connect=lambda: open_gateway("http://127.0.0.1:9")).open(1).__enter__()
    with pytest.raises(ConfigurationError, match="wrong way round"):
        replace(place, minimum=3, maximum=2)
    with pytest.raises(ZeroDivisionError), place.open(1):
        _ = 1 / 0
    assert running(place) == []
