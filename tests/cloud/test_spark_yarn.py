"""Spark's cluster mode on YARN: a fake ResourceManager over HTTP, and a stand-in for spark-submit, which needs RPC."""

import asyncio
import json
import threading

import pytest

from airflow_provider_sml.cloud import spark_yarn
from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.cloud.spark_yarn import SparkYarnJob
from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.hooks.clients import connected, forget_clients
from airflow_provider_sml.testing.yarn import fake_yarn, local_driver
from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger
from tests.jobs import APPLICATION, until

FIRST, SECOND = "application_1700000000000_0001", "application_1700000000000_0002"


@pytest.fixture
def cluster(monkeypatch, airflow_db):
    forget_clients()
    with fake_yarn() as cluster:
        monkeypatch.setenv("SPARK_HOME", str(cluster.spark_home))
        monkeypatch.setenv("PYSPARK_PYTHON", "/only/on/this/machine")
        monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
        monkeypatch.setenv("AIRFLOW_CONN_MY_YARN", json.dumps({"conn_type": "http", "login": "etl"}))
        yield cluster
    forget_clients()


@pytest.fixture
def make(cluster, tmp_path):
    application = tmp_path / "app.py"
    application.write_text(APPLICATION)

    def job(what="end", **changes):
        fixed = {
            "name": "Orders-etl-0123456789", "entry_point": str(application), "connection": "my_yarn",
            "arguments": [str(tmp_path / "job"), what], "output": {"uri": "s3://Lake/Orders/1", "first": "2026-03-01"},
            "resource_manager": cluster.url, "hadoop_conf": str(cluster.hadoop_conf),
            "tags": {"dag_id": "orders", "run_id": "no, tag"},
        }  # fmt: skip
        return connected(SparkYarnJob(**fixed | changes))

    return job


def state_of(job, job_id=FIRST):
    return job.status(job_id).state


def test_one_application_is_submitted_that_everybody_finds(cluster, make):
    secrets = {"credential_provider": "jceks://hdfs@nn/etl.jceks", "secret_aliases": {"SML_PRIVACY_KEYS": "privacy"}}
    encrypted = {"spark.io.encryption.enabled": "true"}
    job = make(queue="default", min_executors=1, max_executors=8, conf=encrypted, **secrets)
    assert job.submit({"SML_PRIVACY_KEYS": "hunter2"}) == FIRST
    given = cluster.submitted[FIRST]
    assert (given["user"], given["python"], given["arguments"]) == ("etl", None, job.arguments)
    wanted = {
        "spark.yarn.submit.waitAppCompletion": "false", "spark.yarn.maxAppAttempts": "1", "spark.yarn.queue": "default",
        "spark.dynamicAllocation.maxExecutors": "8", "spark.dynamicAllocation.minExecutors": "1",
        "spark.network.crypto.enabled": "true", "spark.sml.secret.SML_PRIVACY_KEYS": "privacy",
        "spark.hadoop.hadoop.security.credential.provider.path": "jceks://hdfs@nn/etl.jceks",
    }  # fmt: skip
    assert wanted.items() <= given["conf"].items()
    assert "hunter2" not in json.dumps([cluster.submitted, cluster.apps, cluster.asked])
    tags = cluster.apps[FIRST]["applicationTags"].split(",")
    assert "dag_id:orders" in tags and not any("run_id" in tag for tag in tags)
    # Another process, another try with another output: it attaches, and gives the output of what runs.
    again = make(output={"uri": "s3://Lake/Orders/2"}, arguments=["other"])
    assert again.submit() == FIRST and len(cluster.apps) == 1
    waiting = again.status(FIRST)
    assert waiting.state is JobState.PENDING and "AM container" in waiting.message
    cluster.apps[FIRST]["state"] = "RUNNING"
    running = again.status(FIRST)
    assert running.state is JobState.RUNNING and "/node/containerlogs/container_" in running.progress[0]
    cluster.end(FIRST)
    assert state_of(again) is JobState.SUCCEEDED
    result = again.result(FIRST)
    assert (result["uri"], result["first"]) == ("s3://Lake/Orders/1", "2026-03-01")
    usage = result["usage"]
    assert (usage["vcpu_hours"], usage["gb_hours"], usage["cost_usd"]) == (1.0, 2.0, None) and usage["ended"]
    assert make(prices={"yarn-vcpu": 0.05, "yarn-gb": 0.01}).result(FIRST)["usage"]["cost_usd"] == 0.07


def test_what_succeeded_is_taken_for_the_same_specification_only(cluster, make):
    assert make().submit() == FIRST
    cluster.end(FIRST)
    assert make().submit() == FIRST, "the task died between the end of the driver and its own"
    assert make(arguments=["another", "end"]).submit() == SECOND
    cluster.end(SECOND, "FAILED", diagnostics="User application exited with status 1")
    third = make(arguments=["another", "end"]).submit()
    assert third not in (FIRST, SECOND), "what failed is followed by another"


@pytest.mark.parametrize(
    ("state", "final", "diagnostics", "log", "said", "configuration"),
    [
        ("FINISHED", "FAILED", "User application exited with status 3", "SML-INPUT-ERROR: day.csv lacks the columns",
         "day.csv lacks the columns", True),
        ("FINISHED", "FAILED", "User application exited with status 1", "26/11/24 18:00:00 INFO X: y\nValueError: no",
         "ValueError: no (exit code 1)", False),
        ("FINISHED", "FAILED", "User application exited with status 1", None, "exited with status 1 (log: http", False),
        ("FAILED", "FAILED", "AM Container exited\nrunning beyond physical memory limits", "counting",
         "AM Container exited running beyond physical memory", False),
        ("FAILED", "FAILED", "Application submitted by user etl to unknown queue: x", None, "unknown queue", True),
        ("FINISHED", "UNDEFINED", "", None, "it told no reason", False),
    ],
)  # fmt: skip
def test_why_a_driver_failed(cluster, make, state, final, diagnostics, log, said, configuration):
    job = make()
    job.submit()
    if log is not None:
        cluster.logs[FIRST] = log
    cluster.end(FIRST, final, state, diagnostics)
    status = job.status(FIRST)
    assert (status.state, status.configuration) == (JobState.FAILED, configuration) and said in status.message


def test_a_killed_application_has_ended_when_cancel_returns(cluster, make):
    job = make()
    job.submit()
    cluster.dying = 2
    job.cancel(FIRST)
    assert cluster.apps[FIRST]["state"] == "KILLED"
    status = job.status(FIRST)
    assert status.state is JobState.CANCELLED and "killed by user etl" in status.message
    job.cancel(FIRST)  # a second time is no error, and neither is one that nobody knows
    job.cancel("application_1_0009")
    assert "knows application_1_0009 no more" in job.status("application_1_0009").message
    assert job.submit() == SECOND


def test_one_that_cannot_be_killed_is_told(cluster, make, monkeypatch):
    job = make()
    job.submit()
    cluster.dying = 1000
    monkeypatch.setattr(spark_yarn, "_CANCEL_S", 0.1)
    with pytest.raises(JobError, match="does not end"):
        job.cancel(FIRST)
    forget_clients()
    with pytest.raises(ConfigurationError, match="refuses PUT"):
        make(connection="yarn_default").cancel(FIRST)  # nobody's application to kill


def test_two_submitters_at_once_keep_the_oldest(cluster, make):
    """Both have looked before either application was there."""
    jobs = [make(output={"uri": f"s3://lake/{number}"}) for number in (1, 2)]
    barrier, found = threading.Barrier(2), {}

    def submit(number):
        first, looks = type(jobs[number])._apps, []

        def held(self):
            apps = first(self)
            looks.append(apps)
            if len(looks) == 1:
                barrier.wait(20)
            return apps

        mine = type("Held", (SparkYarnJob,), {"_apps": held})
        job = connected(mine(**jobs[number].describe()["arguments"]))
        found[number] = job.submit()
        assert looks[0] == []

    threads = [threading.Thread(target=submit, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: FIRST, 1: FIRST}
    assert state_of(jobs[0]) is JobState.PENDING and state_of(jobs[0], SECOND) is JobState.CANCELLED


def test_one_that_a_dead_task_submitted_late_is_killed_by_the_next_look(cluster, make):
    job = make()
    job.submit()
    job._run_submit()  # it ran on when its task was killed
    assert len(cluster.apps) == 2
    assert state_of(job) is JobState.PENDING and cluster.apps[SECOND]["state"] == "KILLED"


def test_a_lost_reply_leaves_an_application_that_is_attached_to(cluster, make):
    cluster.faults.add("drop_after", "POST", "/fake/submit")
    assert make().submit() == FIRST and len(cluster.apps) == 1
    cluster.faults.add("server_error", "GET", "*/apps")
    with pytest.raises(JobError, match="500"):
        make().submit()
    assert make().submit() == FIRST and len(cluster.apps) == 1


def test_the_active_one_of_a_pair_is_asked(cluster, make):
    with fake_yarn() as other:
        other.standby = True
        pair = f"{other.url}, {cluster.url}/"
        assert make(resource_manager=pair).submit() == FIRST
        with pytest.raises(JobError, match="307"):
            make(resource_manager=other.url).submit()


def test_what_is_wrong_is_not_submitted(cluster, make, tmp_path, monkeypatch):
    for changes in ({}, {"secret_aliases": {"SML_PRIVACY_KEYS": "privacy"}}, {"credential_provider": "jceks://x"}):
        with pytest.raises(ConfigurationError, match="cannot be given secrets as values") as error:
            make(**changes).submit({"SML_PRIVACY_KEYS": "hunter2"})
        assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigurationError, match="must not be among the Spark settings"):
        make(conf={"spark.hadoop.fs.s3a.secret.key": "hunter2"}).submit()
    with pytest.raises(ConfigurationError, match="too long for YARN's tags"):
        make(output={"uri": "".join(str(hash(str(number))) for number in range(200))}).submit()
    with pytest.raises(ConfigurationError, match="HADOOP_CONF_DIR"):
        make(hadoop_conf="").submit()
    assert cluster.apps == {}
    with pytest.raises(ConfigurationError, match="does not show"), fake_yarn() as other:
        make(hadoop_conf=str(other.hadoop_conf)).submit()  # the settings are those of another cluster
    refused = make(queue="gone")
    assert "unknown queue: gone" in refused.status(refused.submit()).message


@pytest.mark.parametrize(
    ("connection", "header"),
    [
        ({"login": "etl", "password": "hunter2"}, "Basic ZXRsOmh1bnRlcjI="),
        ({"password": "hunter2", "extra": {"auth": "bearer"}}, "Bearer hunter2"),
    ],
)
def test_passwords_come_from_the_connection_and_go_to_the_resource_manager_only(
    cluster, make, monkeypatch, connection, header
):
    monkeypatch.setenv("AIRFLOW_CONN_MY_YARN", json.dumps({"conn_type": "http"} | connection))
    cluster.authorization = header
    job = make()
    job.submit()
    cluster.end(FIRST, "FAILED", diagnostics="User application exited with status 1")
    cluster.logs[FIRST] = "ValueError: no"
    assert "ValueError: no" in job.status(FIRST).message
    assert {given for _, path, _, given in cluster.asked if "/node/" in path} == {""}
    assert "hunter2" not in repr(job.clients.client("yarn").auth) + json.dumps(job.describe())
    with pytest.raises(ConfigurationError, match="go where it must not"):
        make(resource_manager="http://rm.example.com:8088").submit()
    forget_clients()
    monkeypatch.setenv("AIRFLOW_CONN_MY_YARN", json.dumps({"conn_type": "http", "host": "rm.other"} | connection))
    with pytest.raises(ConfigurationError, match="go where it must not"):
        make().submit()
    forget_clients()
    monkeypatch.setenv("AIRFLOW_CONN_MY_YARN", json.dumps({"conn_type": "http", "login": "etl"}))
    cluster.challenge = "Negotiate"
    with pytest.raises(ConfigurationError, match="SPNEGO"):
        make().submit()


def test_an_unknown_authentication_is_refused(cluster, make, monkeypatch):
    extra = {"conn_type": "http", "extra": {"auth": "kerberos"}}
    monkeypatch.setenv("AIRFLOW_CONN_MY_YARN", json.dumps(extra))
    with pytest.raises(ConfigurationError, match="not spoken"):
        make().submit()


def test_the_trigger_waits_in_another_process(cluster, make):
    job = make()
    job.submit()
    described = json.loads(json.dumps(job.describe()))
    assert Adapter.load(described).describe() == described

    async def first_event():
        async for event in RemoteJobTrigger(described, FIRST, 0.05).run():
            return event.payload

    threading.Timer(0.3, cluster.end, (FIRST,)).start()
    event = asyncio.run(first_event())
    assert (event["action"], event["job_id"]) == ("done", FIRST)


@pytest.mark.slow
def test_a_real_spark_submit_takes_the_command_line_and_asks_the_resource_manager(cluster, make, monkeypatch, tmp_path):
    """Its RPC goes to a port that nobody listens at: as far as it comes without a cluster."""
    monkeypatch.delenv("SPARK_HOME")
    retries = {"ipc.client.connect.max.retries": "0", "yarn.resourcemanager.connect.max-wait.ms": "1000",
               "yarn.resourcemanager.connect.retry-interval.ms": "500"}  # fmt: skip
    conf = {f"spark.hadoop.{key}": value for key, value in retries.items()}
    entry = "<property><name>yarn.resourcemanager.address</name><value>127.0.0.1:1</value></property>"
    (tmp_path / "yarn-site.xml").write_text(f"<configuration>{entry}</configuration>")
    with pytest.raises(JobError, match="ConnectException"):
        make(hadoop_conf=str(tmp_path), conf=conf, queue="etl", max_executors=2).submit()


@pytest.mark.slow
def test_the_application_is_run_by_its_driver_and_killed_with_it(cluster, make, tmp_path):
    cluster.driver = local_driver()
    job = make("spark")
    job_id = job.submit()
    assert until(lambda: state_of(job, job_id).final, 120)
    assert state_of(job, job_id) is JobState.SUCCEEDED, cluster.logs
    assert "rows 500" in cluster.logs[job_id]
    waiting = make("wait", name="waits")
    job_id = waiting.submit()
    assert until(lambda: len((tmp_path / "job.starts").read_text().splitlines()) == 2, 60)
    waiting.cancel(job_id)
    assert until(lambda: job_id in cluster.logs, 20), "the driver is gone"
    assert state_of(waiting, job_id) is JobState.CANCELLED
