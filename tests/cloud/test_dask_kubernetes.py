"""Trainings on Kubernetes: a real control plane, whose pods run as processes of this machine."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_sml.cloud.dask_fleet import Bootstrap, FleetPlace
from airflow_provider_sml.cloud.dask_kubernetes import LABEL, SPOT, KubernetesWorkers
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.training.cluster import Cluster, TooFewWorkersError
from airflow_provider_sml.ml.training.trainer import Training, train
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

GKE, SPOT_TAINT = dict([SPOT["gke"]]), {"key": SPOT["gke"][0], "value": "true", "effect": "NoSchedule"}
NOTHING = Bootstrap(["sleep", "600"], {"key.pem": "k"})


class Clients:
    """Clients of a kubeconfig, as Airflow's connection gives them."""

    def __init__(self, config):
        from kubernetes import config as loader
        from kubernetes.client import BatchV1Api, CoreV1Api

        client = loader.new_client_from_config_dict(config)
        self.known = {"core": CoreV1Api(client), "batch": BatchV1Api(client)}

    def client(self, service, fresh=False):
        return self.known[service]


def workers(kubeconfig, namespace, **changes):
    fixed = {"name": "orders-train", "image": "registry/train:1", "namespace": namespace, "linger": 1, "cpu": "1"}
    return KubernetesWorkers(**fixed | changes).connect(Clients(kubeconfig))


@pytest.fixture
def space(kubernetes):
    """A name space of its own, and no nodes."""
    kubernetes.nodes.remove_all()
    name = kubernetes.namespace()
    yield SimpleNamespace(
        name=name,
        fleet=lambda **changes: workers(kubernetes.kubeconfig(), name, **changes),
        place=lambda **changes: FleetPlace(fleet=workers(kubernetes.kubeconfig(), name, **changes), host="127.0.0.1"),
        gone=lambda patience=30: until(lambda: not left(kubernetes, name), patience),
    )
    kubernetes.nodes.remove_all()
    kubernetes.call("DELETE", f"/api/v1/namespaces/{name}")


def left(kubernetes, namespace):
    """What a cluster has left there."""
    kinds = ("jobs", "pods", "secrets")
    return [one["metadata"]["name"] for kind in kinds for one in kubernetes.objects(namespace, kind)] + [
        str(pid) for pid in kubernetes.nodes.processes()
    ]


def until(so, patience=60):
    end = time.monotonic() + patience
    while not (found := so()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


def nodes_of(kubernetes, namespace):
    """Of the pods that run."""
    pods = [pod for pod in kubernetes.objects(namespace, "pods") if pod["status"]["phase"] == "Running"]
    return sorted(pod["spec"]["nodeName"] for pod in pods if "deletionTimestamp" not in pod["metadata"])


@pytest.fixture(scope="module")
def expected(shop_sample, tmp_path_factory):
    """The model of two processes of this machine, uninterrupted."""
    folder = tmp_path_factory.mktemp("expected")
    with Cluster("processes", 2) as cluster:
        return train(training(shop_sample, folder), cluster, folder, print)


def training(sample, folder, **changes):
    fixed = {"checkpoint": folder / "ckpt", "every": 5, "patience": 60}
    return Training(DATASET, sample, PARAMS | {"rounds": 12, "early_stopping": 12}, 2, **fixed | changes)


@pytest.mark.slow
def test_a_spot_node_that_is_taken_is_replaced_and_the_model_is_the_same(
    kubernetes, space, shop_sample, expected, tmp_path
):
    for name in ("spot-1", "spot-2", "spot-3"):
        kubernetes.nodes.add(name, labels=GKE, taints=[SPOT_TAINT])
    kubernetes.nodes.add("steady-1")
    lines, taken = [], []

    def log(line):
        lines.append(line)
        if line.startswith("round ") and not taken:
            taken.append(nodes_of(kubernetes, space.name)[0])
            kubernetes.nodes.take(taken[0])

    with Cluster(space.place(spot_on="gke"), 2, 60, spot=True) as cluster:
        cluster.wait(60)
        assert cluster.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert len(before := nodes_of(kubernetes, space.name)) == 2 and "steady-1" not in before  # one a host
        threads = cluster.client.run(lambda dask_worker: dask_worker.state.nthreads)
        assert set(threads.values()) == {os.cpu_count()}
        model = train(training(shop_sample, tmp_path), cluster, tmp_path, log)
        assert any("waiting for 2 workers" in line for line in lines), lines
        assert {"spot-1", "spot-2", "spot-3"} - set(taken) == set(nodes_of(kubernetes, space.name))
        cluster.workers = cluster.least = 1
        cluster.where.fleet.remove()
        cluster.on_demand()
        assert until(lambda: nodes_of(kubernetes, space.name)) == ["steady-1"]
    assert model.digest == expected.digest
    space.gone()


def test_a_gpu_that_nobody_has_is_told_and_pods_go_where_one_is(kubernetes, space):
    kubernetes.nodes.add("plain-1")
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    kubernetes.nodes.add("gpu-1", gpus=1, taints=[taint])
    with pytest.raises(TooFewWorkersError, match=r"Insufficient nvidia\.com/gpu"), Cluster(space.place(gpus=1), 2, 6):
        pass
    space.gone()
    fleet = space.fleet(gpus=1)
    assert fleet.launch(2, False, NOTHING) == 2
    until(lambda: [pod["status"]["phase"] for pod in kubernetes.objects(space.name, "pods")].count("Running") == 1)
    assert len(fleet.alive()) == 2 and nodes_of(kubernetes, space.name) == ["gpu-1"]
    fleet.remove()
    space.gone()


def test_what_keeps_pods_from_coming_is_told(kubernetes, space):
    kubernetes.nodes.add("plain-1")
    cases = [
        ({"image": "missing/train:1"}, NOTHING, "ImagePullBackOff: Back-off pulling image"),
        ({"secret_refs": {"AWS_SECRET_ACCESS_KEY": "lake:key"}}, NOTHING, "CreateContainerConfigError"),
        ({}, Bootstrap([sys.executable, "-c", "1 / 0"], {}), "exit code 1: ZeroDivisionError"),
        ({"cpu": "64"}, NOTHING, "Insufficient cpu"),
    ]  # fmt: skip
    fleets = []
    for number, (changes, bootstrap, _) in enumerate(cases):
        fleets.append(space.fleet(name=f"orders-{number}", linger=60, **changes))
        assert fleets[-1].launch(1, False, bootstrap) == 1
    for fleet, (_, _, told) in zip(fleets, cases, strict=True):
        until(lambda fleet=fleet, told=told: told in fleet.why(), 60)
        fleet.remove()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    kubernetes.apply(space.name, quota)
    fleet = space.fleet()
    fleet.launch(1, False, NOTHING)
    until(lambda: "exceeded quota: few" in fleet.why(), 15)
    assert len(fleet.remove()) == 1 and not fleet.alive()


DRIVER = """
import pickle, sys, time
from tests.cloud.test_dask_kubernetes import FleetPlace, workers
with FleetPlace(fleet=workers(*pickle.load(open(sys.argv[1], "rb"))), host="127.0.0.1").open(2) as made:
    while len(made._scheduler.scheduler.workers) < 2:
        time.sleep(0.1)
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_of_a_killed_driver_nothing_stays_and_the_next_try_removes_what_does(kubernetes, space, tmp_path):
    kubernetes.nodes.add("one")
    kubernetes.nodes.add("two")
    (tmp_path / "place").write_bytes(pickle.dumps((kubernetes.kubeconfig(), space.name)))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "place")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout.readline().strip() == "up"
        assert len(space.fleet().alive()) == 2
        os.kill(driver.pid, signal.SIGKILL)
        space.gone()  # the workers end, and Kubernetes deletes their Jobs with all that they own
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
    lost, other = space.fleet(one_per_host=False), space.fleet(name="another", one_per_host=False)
    assert (lost.launch(2, False, NOTHING), other.launch(1, False, NOTHING)) == (2, 1)  # they hear of no scheduler
    before = lost.alive()
    with pytest.raises(ZeroDivisionError), space.place().open(1):
        assert len(now := space.fleet().alive()) == 1 and not set(now) & set(before)
        _ = 1 / 0
    until(lambda: len(kubernetes.objects(space.name, "secrets")) == 1)  # the other's
    assert len(other.remove()) == 1
    space.gone()


def test_a_launch_that_fails_half_way_leaves_nothing(kubernetes, space):
    kubernetes.nodes.add("one")
    hard = {"count/jobs.batch": "1"}
    kubernetes.apply(
        space.name, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}
    )
    with pytest.raises(ConfigurationError, match="exceeded quota: q"):
        space.place().open(2).__enter__()
    space.gone()


def test_the_api_server_takes_every_setting_as_it_is_meant(kubernetes, space):
    fleet = space.fleet(
        name="Orders_train " + "x" * 60, gpus=1, memory="12Gi", one_per_host=True, spot_on="eks",
        node_selector={"pool": "train"}, tolerations=[{"key": "team", "operator": "Exists"}], service_account="trainer",
        secret_refs={"AWS_SECRET_ACCESS_KEY": "lake:key"}, claims={"home": "/opt/airflow/sml"}, pull_secrets=["pull"],
        priority_class="low", scheduler="volcano", labels={"team": "ml", "run_id": "no label: +"},
        annotations={"a": "b"},
    )  # fmt: skip
    for spot in (True, False):
        job = fleet.job(f"{fleet.label}-00001", spot, NOTHING)
        path = f"/apis/batch/v1/namespaces/{space.name}/jobs"
        made = kubernetes.call("POST", path, job, dryRun="All", fieldValidation="Strict")
        spec = made["spec"]["template"]["spec"]
        (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        (on,) = term["matchExpressions"]
        assert on["operator"] == ("In" if spot else "NotIn") and on["values"] == ["SPOT"]
        assert any(one.get("value") == "SPOT" for one in spec["tolerations"]) == spot
        assert made["metadata"]["labels"]["team"] == "ml" and "run_id" not in made["metadata"]["labels"]
        assert len(made["metadata"]["labels"][LABEL]) <= 50
    secret = fleet.secret("x", "0-0", NOTHING)
    secrets = f"/api/v1/namespaces/{space.name}/secrets"
    made = kubernetes.call("POST", secrets, secret, dryRun="All", fieldValidation="Strict")
    assert set(made["data"]) == {"key.pem"}


def test_a_small_role_is_enough_and_what_is_missing_is_told(kubernetes, space):
    kubernetes.nodes.add("one")
    token = kubernetes.token(space.name, "airflow")
    fleet = workers(kubernetes.kubeconfig(token), space.name)
    with pytest.raises(ConfigurationError, match=r'airflow" cannot list resource "jobs"(.|\n)*its roles'):
        fleet.remove()
    for manifest in manifests(space.name):
        kubernetes.apply(space.name, manifest)
    until(lambda: allowed(fleet))  # the API server hears of roles a moment later
    place = FleetPlace(fleet=fleet, host="127.0.0.1")
    with place.open(1) as made:
        until(lambda: made._scheduler.scheduler.workers)
        assert fleet.why() == ""
    space.gone()


def allowed(fleet):
    with contextlib.suppress(ConfigurationError):
        return fleet.remove() == []


def manifests(namespace):
    """The Role of the guide, bound to the service account ``airflow`` of a name space."""
    import yaml

    guide = (Path(__file__).parents[2] / "docs" / "howto" / "clusters.md").read_text()
    (block,) = [part.split("```")[0] for part in guide.split("```yaml\n")[1:] if "kind: RoleBinding" in part]
    found = list(yaml.safe_load_all(block.replace("namespace: ml", f"namespace: {namespace}")))
    assert [one["kind"] for one in found] == ["Role", "RoleBinding"]
    return found


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"image": ""}, "need an image"), ({"gpus": 2}, "one GPU"), ({"spot_on": "ovh"}, "gke, eks, karpenter, aks"),
     ({"secret_refs": {"KEY": "hunter2"}}, "secret:key of the namespace")],
)  # fmt: skip
def test_settings_that_cannot_be_right_are_refused(settings, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        KubernetesWorkers(**{"name": "a", "image": "b"} | settings)
    assert "hunter2" not in str(caught.value)
