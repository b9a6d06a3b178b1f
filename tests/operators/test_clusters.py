"""Clusters that are made for a training: by ``dag.test()`` through Airflow's connections, and what is refused."""

import json
import sys
import threading
import time
from types import SimpleNamespace

import boto3
import pytest

from airflow_provider_sml.cloud.machine_script import MachineScript
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.hooks.clients import forget_clients
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.operators.clusters import Where, check_cluster, where
from airflow_provider_sml.operators.training import TrainXGBoostOperator
from airflow_provider_sml.testing.google.compute import FakeCompute
from airflow_provider_sml.testing.machines import MotoInstances, machines
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

DAG = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_sml.operators.training import TrainXGBoostOperator

    with DAG("elastic", schedule=None, start_date=datetime(2026, 1, 1)):
        TrainXGBoostOperator(task_id="train", sample={sample!r}, dataset={dataset!r}, models={models!r},
                             hyperparameters={params!r}, workers=2, spot=True, cluster={cluster!r})
"""
CONTEXT = {"ti": SimpleNamespace(dag_id="Orders", task_id="train", run_id="manual__2026", map_index=-1)}


@pytest.fixture
def clean():
    forget_clients()
    yield
    forget_clients()


@pytest.mark.slow
def test_a_task_trains_on_spot_instances_that_are_gone_after_it(dag_project, fake_aws, clean, shop_sample, tmp_path):
    ec2 = boto3.client("ec2", endpoint_url=fake_aws.s3)
    ami = ec2.describe_images()["Images"][0]["ImageId"]
    cluster = {"on": "ec2", "types": ["m7i.large"], "ami": ami, "host": "127.0.0.1", "python": sys.executable}
    text = DAG.format(
        sample=shop_sample.to_xcom(), dataset=DATASET.model_dump(mode="json"), models=str(tmp_path), params=PARAMS,
        cluster=cluster,
    )  # fmt: skip
    with machines(MotoInstances(ec2)) as hosts:
        result = dag_project.run(dag_project.write("elastic.py", text), "elastic")
        assert result.state == "success", result.tasks
        assert len(hosts.started) == 2
    made = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    assert {one["State"]["Name"] for one in made} == {"terminated"} and len(made) == 2
    assert {one["InstanceLifecycle"] for one in made} == {"spot"}
    tags = {tag["Key"]: tag["Value"] for tag in made[0]["Tags"]}
    assert tags["dag_id"] == "elastic" and tags["sml-cluster"].startswith("sml-elastic-train-")
    assert Bundle.read(tmp_path / result.results["train"]["model_id"]).lineage["workers"] == 2


@pytest.mark.slow
def test_a_task_trains_in_pods_that_are_gone_after_it(
    dag_project, kubernetes, clean, monkeypatch, shop_sample, tmp_path
):
    kubernetes.nodes.remove_all()
    for name in ("one", "two"):
        kubernetes.nodes.add(name)
    space = kubernetes.namespace()
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": kubernetes.kubeconfig()}}
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps(connection))
    text = DAG.format(
        sample=shop_sample.to_xcom(), dataset=DATASET.model_dump(mode="json"), models=str(tmp_path), params=PARAMS,
        cluster={"on": "kubernetes", "connection": "cluster", "image": "train:1", "namespace": space, "linger": 1,
                 "host": "127.0.0.1"},
    )  # fmt: skip
    seen, ended = {}, threading.Event()

    def look():
        while not ended.wait(0.2):
            for job in kubernetes.objects(space, "jobs"):
                seen[job["metadata"]["name"]] = job["metadata"]["labels"]

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = dag_project.run(dag_project.write("elastic.py", text), "elastic")
    finally:
        ended.set()
        looking.join()
    assert result.state == "success", result.tasks
    assert len(seen) == 2 and {labels["dag_id"] for labels in seen.values()} == {"elastic"}
    assert Bundle.read(tmp_path / result.results["train"]["model_id"]).lineage["workers"] == 2
    end = time.monotonic() + 30
    while any(kubernetes.objects(space, kind) for kind in ("jobs", "pods", "secrets")) or kubernetes.nodes.processes():
        assert time.monotonic() < end
        time.sleep(0.1)
    kubernetes.nodes.remove_all()
    kubernetes.call("DELETE", f"/api/v1/namespaces/{space}")


def test_a_place_on_compute_engine_uses_the_connection(airflow_db, clean, monkeypatch):
    cloud = FakeCompute()
    extra = {"project": cloud.project, "is_anonymous": True}
    monkeypatch.setenv("AIRFLOW_CONN_GCP", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
    monkeypatch.setenv("SML_COMPUTE_EMULATOR", cloud.address)
    settings = {"on": "gce", "gcp_conn_id": "gcp", "region": "r", "zones": ["r-b"], "types": ["n2-standard-8"]}
    found = where(settings | {"disk_image": "i", "hours": 2, "gpus": 2, "image": "train:1", "patience": 900}, CONTEXT)
    place = found.cluster
    assert (found.machine, found.patience, found.replacement, place.workers_per_machine) == ("gce", 900, 900, 2)
    assert place.hours == place.fleet.script.hours == place.fleet.machines.hours == 2
    place.fleet.machines.run(1, False, MachineScript(["true"]))
    (instance,) = cloud.instances.values()
    assert instance.labels["dag_id"] == "orders" and instance.labels["sml-cluster"].startswith("sml-orders-train-")
    assert len(where(settings | {"disk_image": "i"}, CONTEXT).cluster.fleet.remove()) == 1  # the next try's

    place.fleet.machines.run(2, False, MachineScript(["true"]))
    task = TrainXGBoostOperator(task_id="train", sample={}, dataset=DATASET, cluster=settings)
    task.on_kill()  # before it has a cluster
    task._place = found
    task.on_kill()
    assert cloud.instances == {}
    with pytest.raises(JobError, match="ended with its task"):
        place.open(1).__enter__()
    cloud.close()


def test_a_gateway_and_what_stands_already(airflow_db, monkeypatch):
    fields = {"conn_type": "dask", "host": "g.example.com", "schema": "https", "login": "ada", "password": "x"}
    monkeypatch.setenv("AIRFLOW_CONN_GATE", json.dumps(fields))
    found = where({"on": "gateway", "connection": "gate", "options": {"worker_cores": 4}, "maximum": 6}, CONTEXT)
    with found.cluster.connect() as gateway:
        assert gateway.address == "https://g.example.com"
    assert found.cluster.label.startswith("sml-Orders-train-") and found.machine == ""
    assert where("local", CONTEXT) == Where("local")
    assert where("tcp://host:8786", CONTEXT).cluster == "tcp://host:8786"


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"on": "ecs"}, r"no service(.|\n)*did you mean ec2"),
        ({}, "gateway, kubernetes, ec2, gce"),
        ({"on": "ec2", "types": ["m7i.large"]}, "ami or launch_template"),
        ({"on": "ec2", "amy": "ami-1"}, r"no setting amy(.|\n)*did you mean ami"),
        ({"on": "ec2", "name": "x"}, "no setting name"),
        ({"on": "ec2", "ami": "a", "types": "m7i.large"}, r"types of ec2(.|\n)*a list, each a text(.|\n)*'m7i.large'"),
        ({"on": "ec2", "ami": "a", "types": ["t"], "gpus": "2"}, "a whole number"),
        ({"on": "ec2", "ami": "a", "types": ["t"], "port": True}, r"port of ec2(.|\n)*a whole number; found: True"),
        ({"on": "ec2", "ami": "a", "types": ["t"], "env": {"A": 1}}, "a mapping of names, each to a text"),
        ({"on": "gce", "zones": ["z"], "types": ["t"], "disk_image": "i"}, "region"),
        ({"on": "gateway", "minimum": 3, "maximum": 2}, "wrong way round"),
        ({"on": "gateway", "label": "x"}, "no setting label"),
        ({"on": "gateway", "options": ["worker_cores"]}, r"options of gateway(.|\n)*a mapping"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_the_service(cluster, said):
    with pytest.raises(ConfigurationError, match=said):
        check_cluster(cluster)


def test_settings_that_fit_pass():
    check_cluster({"on": "ec2", "types": ["m7i.large"], "launch_template": "lt-1", "tags": {"team": "ml"}})
    check_cluster({"on": "gce", "region": "r", "zones": ["z"], "types": ["t"], "template": "t", "labels": {"a": "b"}})
    check_cluster({"on": "gateway"})
