"""Spark's cluster mode on Kubernetes: the real spark-submit and the real client against a fake API server."""

import json

import pytest

from airflow_provider_sml.cloud import spark_kubernetes
from airflow_provider_sml.cloud.remote_job import JobState
from airflow_provider_sml.cloud.spark_kubernetes import SparkKubernetesJob
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.hooks.clients import connected, forget_clients
from airflow_provider_sml.testing.kubernetes import fake_kubernetes, local_driver
from tests.jobs import APPLICATION, until


@pytest.fixture
def cluster(monkeypatch, airflow_db):
    forget_clients()
    with fake_kubernetes() as cluster:
        connection = {"conn_type": "kubernetes", "extra": {"kube_config": cluster.kubeconfig()}}
        monkeypatch.setenv("AIRFLOW_CONN_MY_CLUSTER", json.dumps(connection))
        yield cluster
    forget_clients()


@pytest.fixture
def make(cluster, tmp_path):
    application = tmp_path / "app.py"
    application.write_text(APPLICATION)

    def job(what="end", **changes):
        fixed = {
            "name": "Orders-etl-0123456789", "image": "spark:4.1", "connection": "my_cluster",
            "entry_point": str(application), "arguments": [str(tmp_path / "job"), what], "output": {"uri": "s3://a/1"},
            "conf": {"spark.executor.instances": "2", "spark.kubernetes.file.upload.path": str(tmp_path)},
            "tags": {"dag_id": "orders", "run_id": "no label: +"},
        }  # fmt: skip
        return connected(SparkKubernetesJob(**fixed | changes))

    return job


FIRST = "orders-etl-0123456789-1"


def test_one_pod_is_made_that_everybody_finds(cluster, make):
    job = make(conf={"spark.io.encryption.enabled": "true"}, entry_point="local:///opt/app.py",
               secret_refs={"SML_PRIVACY_KEYS": "privacy:keys"}, service_account="spark")  # fmt: skip
    assert job.submit({"SML_PRIVACY_KEYS": "hunter2"}) == FIRST
    pod = cluster.pods()[FIRST]
    assert pod["metadata"]["labels"]["dag_id"] == "orders" and "run_id" not in pod["metadata"]["labels"]
    assert pod["spec"]["serviceAccountName"] == "spark"
    [container] = pod["spec"]["containers"]
    assert container["image"] == "spark:4.1" and "local:///opt/app.py" in container["args"]
    [secret] = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if one["name"] == "SML_PRIVACY_KEYS"]
    assert (secret["name"], secret["key"]) == ("privacy", "keys")
    told = "".join(cluster.objects[key]["data"]["spark.properties"] for key in cluster.objects
                   if "spark.properties" in cluster.objects[key].get("data", {}))  # fmt: skip
    assert "spark.network.crypto.enabled=true" in told and "spark.authenticate=true" in told
    assert "hunter2" not in json.dumps(list(cluster.objects.values()))
    # Another process, another try: it attaches, and gives the output of the driver that runs.
    again = make(output={"uri": "s3://a/2"}, secret_refs=job.secret_refs)
    assert again.submit() == FIRST and len(cluster.pods()) == 1
    assert again.status(FIRST).state is JobState.PENDING
    cluster.set_phase(FIRST, "Running")
    cluster.logs[FIRST] = "26/11/24 18:00:00 INFO X: noise\nread 200 rows\n"
    assert again.status(FIRST).progress == ("read 200 rows",)
    cluster.set_phase(FIRST, "Succeeded", exit_code=0)
    assert again.status(FIRST).state is JobState.SUCCEEDED and again.result(FIRST) == {"uri": "s3://a/1"}
    again.cancel(FIRST)
    again.cancel(FIRST)  # a second time is no error
    assert again.status(FIRST).state is JobState.FAILED and cluster.pods() == {}
    assert not [key for key in cluster.objects if key[1] in ("configmaps", "services")], "its own things go with it"


@pytest.mark.parametrize(
    ("ended", "log", "said", "configuration"),
    [
        ({"exit_code": 3}, "SML-INPUT-ERROR: day.csv lacks the columns ['weight']", "day.csv lacks the columns", True),
        ({"exit_code": 1}, "Traceback\nValueError: no such place", "ValueError: no such place", False),
        ({"reason": "Evicted", "message": "the node was low on memory"}, "", "Evicted the node was low", False),
        ({"exit_code": 137}, "counting", "killed by SIGKILL", False),
    ],
)
def test_why_a_driver_failed(cluster, make, ended, log, said, configuration):
    _pod(cluster, FIRST)
    cluster.logs[FIRST] = log
    cluster.set_phase(FIRST, "Failed", **ended)
    status = make().status(FIRST)
    assert (status.state, status.configuration) == (JobState.FAILED, configuration) and said in status.message


def test_a_driver_that_waits_in_vain_is_told(cluster, make):
    _pod(cluster, FIRST)
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    container = {"name": "c", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    cluster.set_phase(FIRST, "Pending", containerStatuses=[container | waiting])
    status = make().status(FIRST)
    assert (status.state, status.leftover) == (JobState.FAILED, True) and "no such image" in status.message
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}
    cluster.set_phase(FIRST, "Pending", containerStatuses=[], conditions=[unschedulable])
    status = make().status(FIRST)
    assert (status.state, status.message) == (JobState.PENDING, "Unschedulable: no node")


def test_a_failed_driver_is_followed_by_another_and_a_dying_one_is_not_attached_to(cluster, make):
    _pod(cluster, FIRST)
    cluster.set_phase(FIRST, "Failed", exit_code=1)
    job = make(entry_point="local:///opt/app.py")
    assert job.submit() == FIRST[:-1] + "2"
    cluster.pods()[FIRST[:-1] + "2"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert job.submit() == FIRST[:-1] + "3"


def test_a_pod_whose_submitter_died_half_way_is_made_again(cluster, make, monkeypatch):
    _pod(cluster, FIRST)
    cluster.pods()[FIRST]["spec"]["volumes"] = [{"name": "conf", "configMap": {"name": "never-made"}}]
    job = make(entry_point="local:///opt/app.py")
    assert job.submit() == FIRST and job.status(FIRST).state is JobState.PENDING, "it may still be being made"
    monkeypatch.setattr(spark_kubernetes, "HALF_MADE_S", -1)
    status = job.status(FIRST)
    assert (status.state, status.leftover) == (JobState.FAILED, True)
    assert job.submit() == FIRST[:-1] + "2" and list(cluster.pods()) == [FIRST[:-1] + "2"]


def test_two_submitters_at_once_make_one_driver(cluster, make):
    """The second one looks before the first one's pod is there, and submits the same name."""
    job = make(entry_point="local:///opt/app.py")
    first, _ = job._run_submit(FIRST, 1)
    uid = cluster.pods()[FIRST]["metadata"]["uid"]
    second, said = job._run_submit(FIRST, 1)
    assert first == 0 and second != 0 and "already exists" in said
    assert cluster.pods()[FIRST]["metadata"]["uid"] == uid and job.submit() == FIRST


def test_what_the_cluster_refuses_is_not_retried_and_what_fails_is(cluster, make):
    job = make(entry_point="local:///opt/app.py")
    cluster.faults.add("denied", "POST", "*/pods")
    with pytest.raises(ConfigurationError, match="refuses the driver"):
        job.submit()
    cluster.faults.add("server_error", "GET", "*/pods")
    with pytest.raises(JobError, match="500"):
        job.submit()
    cluster.faults.add("denied", "GET", "*/pods")
    with pytest.raises(ConfigurationError, match="403"):
        job.submit()
    assert cluster.pods() == {}
    with pytest.raises(ConfigurationError, match="cannot be given secrets as values") as error:
        job.submit({"SML_PRIVACY_KEYS": "hunter2"})
    assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigurationError, match="must not be among the Spark settings"):
        make(conf={"spark.hadoop.fs.s3a.secret.key": "hunter2"}).submit()


@pytest.mark.slow
def test_the_application_is_run_by_its_driver_and_its_log_is_read(cluster, make):
    cluster.driver = local_driver()
    job = make("spark")
    job_id = job.submit()
    assert until(lambda: job.status(job_id).state.final, 120)
    assert job.status(job_id).state is JobState.SUCCEEDED, cluster.logs
    assert "rows 500" in cluster.logs[job_id]


def _pod(cluster, name):
    labels = {"sml-job": name.rpartition("-")[0], "sml-attempt": name.rpartition("-")[2]}
    cluster.make("default", "pods", {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "spark-kubernetes-driver"}]},
    }, over=False)  # fmt: skip
