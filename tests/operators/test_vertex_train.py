"""VertexTrainOperator through ``dag.test()`` and Airflow's own Google Cloud connection, against the fake Vertex AI."""

import json
import sys
import textwrap
import urllib.request

import pytest

from airflow_provider_sml.cloud.google import GoogleClients, GoogleJob
from airflow_provider_sml.cloud.vertex_training import VertexTrainingJob
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.testing.google.vertex_containers import local_container

IMAGE = "europe-docker.pkg.dev/fake-project/images/train:1"
DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.vertex import VertexTrainOperator

with DAG("churn_train", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    VertexTrainOperator(
        task_id="train", image="europe-docker.pkg.dev/fake-project/images/train:1", region="europe-west1",
        **({{"machines": ["n1-standard-4"], "output_path": "gs://models/churn", "poll_interval": 0.01}} | dict({more})),
    )
"""


@pytest.fixture
def jobs(google):
    """The custom jobs of the fake."""
    return google.vertex.jobs.jobs


@pytest.fixture(params=[False, True], ids=["in a worker", "in the triggerer"])
def run(request, dag_project, google):
    """Runs the operator, in a worker or deferred."""

    def run(more="", retries=0):
        text = DAG_FILE.format(more=f"deferrable={request.param}, {more}", retries=retries)
        return dag_project.run(dag_project.write("churn.py", text), "churn_train")

    return run


@pytest.fixture
def run_here(dag_project, google):
    """Runs the operator in a worker."""

    def run(more="", retries=0):
        return dag_project.run(
            dag_project.write("churn.py", DAG_FILE.format(more=more, retries=retries)), "churn_train"
        )

    return run


def test_a_spot_job_that_is_preempted_twice_ends_well_and_tells_its_cost(run, google, jobs):
    google.faults.add("interrupt", count=2)
    result = run("strategy='spot'")
    assert result.state == "success"
    made = result.results["train"]
    [job] = jobs.values()
    assert made["model"] == f"{job.spec.base_output_directory.output_uri_prefix}/model/"
    assert (made["spot"], made["interruptions"], made["savings_percent"]) == (True, None, 60.0)
    assert made["started"] < made["ended"] and made["started"].endswith("+00:00")
    assert made["cost_usd"] >= google.bill.total() > 0
    assert len(json.dumps(made)) < 1000
    assert google.calls.count("CreateCustomJob") == 1
    assert job.message.labels["dag_id"] == "churn_train"


def test_an_outage_while_it_waits_starts_no_second_job(run, google, jobs):
    google.faults.add("server_error", "GetCustomJob", skip=1, times=5)
    assert run().state == "success"
    assert google.calls.count("CreateCustomJob") == 1


def test_a_lost_reply_and_a_retry_make_one_job(run, google, jobs):
    google.faults.add("drop_after", "CreateCustomJob")
    assert run(retries=1).state == "success"
    assert len(jobs) == 1


def test_throttling_of_the_submission_is_waited_out(run_here, google, jobs):
    google.faults.add("throttle", "ListCustomJobs", times=3)
    assert run_here().state == "success"
    assert len(jobs) == 1


@pytest.mark.parametrize(("fault", "made"), [("no_capacity", 2), ("quota", 1)])
def test_without_capacity_or_quota_it_goes_on_with_the_next_machine(run_here, google, jobs, fault, made):
    google.faults.add(fault, "CreateCustomJob")
    gpu = {"type": "n1-standard-8", "accelerator": "nvidia_tesla_t4"}
    result = run_here(f"machines=[{gpu}, 'n1-standard-16'], strategy='spot'")
    assert result.state == "success"
    assert result.results["train"]["instance"] == "n1-standard-16"
    assert len(jobs) == made


def test_without_spot_machines_it_goes_on_on_demand(run_here, google, jobs):
    google.faults.add("no_capacity", "CreateCustomJob")
    result = run_here("strategy='spot', options={'on_demand_last': True, 'count': 3}")
    assert (result.state, result.results["train"]["spot"], result.results["train"]["count"]) == ("success", False, 3)
    assert [job.spec.scheduling.strategy.name for job in jobs.values()] == ["SPOT", "STANDARD"]


def test_a_missing_permission_is_not_retried(run_here, google, jobs):
    google.faults.add("denied", "CreateCustomJob", times=9)
    assert run_here(retries=3).state == "failed"
    assert google.calls.count("CreateCustomJob") == 1


def test_a_permission_lost_while_it_waits_fails_at_once(run_here, google, jobs):
    google.faults.add("denied", "GetCustomJob", skip=2, times=99)
    assert run_here(retries=3).state == "failed"
    assert google.calls.count("GetCustomJob") == 3


def test_an_expired_token_is_renewed(run_here, google, jobs):
    google.faults.add("expired_token", "GetCustomJob", skip=2)
    google.faults.add("expired_token", "CreateCustomJob")
    assert run_here().state == "success"
    assert len(jobs) == 1


def test_a_failed_container_tells_its_reason_and_is_tried_again(run_here, google, jobs, capfd):
    google.faults.add("fail", "CreateCustomJob")
    assert run_here(retries=1).state == "success"
    said = capfd.readouterr().out
    assert "ValueError: no such column" in said and "console.cloud.google.com/vertex-ai" in said
    assert len(jobs) == 2
    folders = {job.spec.base_output_directory.output_uri_prefix for job in jobs.values()}
    assert len(folders) == 1  # the second goes on from the checkpoints of the first


def test_at_its_deadline_the_job_is_cancelled(run, google, jobs):
    google.clock.per_call = 0
    assert run("deadline=timedelta(seconds=1)").state == "failed"
    google.clock.advance(300)
    assert google.bill.running() == []
    assert google.calls.count("CancelCustomJob") == 1


def test_a_killed_task_cancels_its_job(run_here, google, jobs):
    """``execution_timeout`` ends the task as a person does: Airflow calls ``on_kill``."""
    google.clock.per_call = 0
    assert run_here("execution_timeout=timedelta(seconds=3)").state == "failed"
    google.clock.advance(300)
    assert google.calls.count("CancelCustomJob") == 1
    assert google.bill.running() == []


def test_bad_input_is_refused_before_google_is_asked(run_here, google, capfd):
    assert run_here("options={'max_runtme': 60}", retries=2).state == "failed"
    assert "did you mean max_runtime?" in capfd.readouterr().out
    assert google.calls == []


def test_the_plan_shows_the_request_and_the_cost_and_asks_nothing(run_here, google, capfd):
    options = {"max_runtime": 7200, "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k", "network": "n",
               "service_account": "train@p.iam.gserviceaccount.com", "max_wait": 60}  # fmt: skip
    result = run_here(f"plan=True, strategy='flex-start', options={options}")
    assert result.state == "success"
    assert result.results["train"]["calls"] == ["aiplatform:create_custom_job"]
    assert "at most 0.44 USD" in result.results["train"]["cost"]
    said = capfd.readouterr().out
    for part in ('"strategy": "FLEX_START"', '"kms_key_name"', '"network": "n"', '"service_account"'):
        assert part in said
    assert google.calls == []


TRAIN = """
    import os, time, urllib.request
    from urllib.parse import quote, urlsplit

    def url(name):
        place = urlsplit(os.environ["AIP_CHECKPOINT_DIR"])
        key = quote(place.path.strip("/") + "/" + name, safe="")
        return os.environ["STORAGE_EMULATOR_HOST"], place.netloc, key

    def there(name):
        server, bucket, key = url(name)
        try:
            return bool(urllib.request.urlopen(f"{server}/storage/v1/b/{bucket}/o/{key}?alt=media"))
        except OSError:
            return False

    first = next(number for number in range(99) if not there(f"round-{number}"))
    for name in [f"from-{first}", *(f"round-{number}" for number in range(first, 6))]:
        server, bucket, key = url(name)
        request = urllib.request.Request(f"{server}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={key}", b"x")
        urllib.request.urlopen(request)
        time.sleep(0.1)
"""


def test_a_real_container_goes_on_from_its_checkpoints_after_a_preemption(
    run_here, google, jobs, tmp_path, fake_gcs_address
):
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN))
    google.storage.write("gs://rounds/there", b"")

    def written():
        with urllib.request.urlopen(f"{fake_gcs_address}/storage/v1/b/rounds/o?prefix=churn/") as answer:
            return sorted(item["name"].rpartition("/")[2] for item in json.load(answer).get("items", []))

    google.clock.per_call, google.clock.scale = 10, 300
    google.vertex.jobs.container = local_container(google, {IMAGE: [sys.executable, str(script)]})
    google.vertex.jobs.preempt_when = lambda job, seconds: len(written()) > 2
    google.faults.add("interrupt", count=1)
    assert run_here("strategy='spot', poll_interval=0.05, output_path='gs://rounds/churn'").state == "success"
    [job] = jobs.values()
    begun = [name for name in written() if name.startswith("from-")]
    assert (job.attempts, len(begun), begun[0], len(written())) == (2, 2, "from-0", 8)


# --- the adapter alone ------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(google):
    from google.auth.credentials import AnonymousCredentials

    def adapter(**changes):
        values = {"name": "churn-train-1", "project": "fake-project", "region": "europe-west1", "image": IMAGE,
                  "output": "gs://models/churn", "machines": ["n1-standard-4"]}  # fmt: skip
        job = VertexTrainingJob(**values | changes)
        return job.connect(GoogleClients("europe-west1", AnonymousCredentials()))

    return adapter


def test_a_finished_job_is_taken_again_only_with_the_same_specification(adapter, google, jobs):
    first = adapter().submit()
    google.clock.advance(5000)
    assert adapter(machines=["n1-standard-8"], max_runtime=60).submit() == first
    second = adapter(arguments=["--depth", "9"]).submit()
    assert second != first
    other = adapter(arguments=["--depth", "10"]).submit()  # the one that runs is of another specification
    google.clock.advance(5000)
    ended = {name.rpartition("/")[2]: job.timeline.at(google.clock.now()).state for name, job in jobs.items()}
    assert ended == {first: "SUCCEEDED", second: "CANCELLED", other: "SUCCEEDED"}


def test_of_two_that_were_made_at_once_the_oldest_stays(adapter, google, jobs):
    """A list that is late lets a second job be made; the next look cancels it."""
    first = adapter().submit()
    google.clock.advance(1)
    second, looks = adapter(), []

    def late(client):
        looks.append(client)
        return VertexTrainingJob._list(second, client) if len(looks) > 2 else []

    object.__setattr__(second, "_list", late)
    google.clock.per_call = 0
    assert second.submit() == first
    google.clock.advance(60)
    states = sorted(job.timeline.at(google.clock.now()).state for job in jobs.values())
    assert states == ["CANCELLED", "PENDING"]


def test_a_lost_reply_within_one_call_makes_one_job(adapter, google, jobs, monkeypatch):
    monkeypatch.setattr(GoogleJob, "patience", 10.0)
    google.faults.add("drop_after", "CreateCustomJob")
    adapter().submit()
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "spott"}, "spott"), ({"machines": []}, "at least one"), ({"output": "s3://x"}, "Cloud Storage"),
        ({"machines": [{"type": "n1-standard-4", "gpus": 1}]}, "gpus"), ({"max_wait": 60}, "flex-start"),
        ({"machines": [{"type": "n1-standard-4", "accelerator_count": 1}]}, "accelerator"), ({"count": 0}, "count"),
        ({"strategy": "spot", "machines": [{"type": "ct5lp-hightpu-4t", "tpu_topology": "2x2"}]}, "TPU"),
        ({"checkpoint": "/tmp/x"}, "checkpoint"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_named(adapter, google, changes, said):
    with pytest.raises(ConfigurationError) as raised:
        adapter(**changes).submit()
    assert said in str(raised.value)
    assert google.calls == []


@pytest.mark.parametrize(
    ("changes", "accelerator", "topology", "strategy"),
    [
        ({"machines": [{"type": "ct5lp-hightpu-4t", "tpu_topology": "2x2"}]}, "", "2x2", "STANDARD"),
        ({"machines": [{"type": "g2-standard-8", "accelerator": "NVIDIA_L4"}], "strategy": "flex-start",
          "max_wait": 7200}, "NVIDIA_L4", "", "FLEX_START"),
    ],
)  # fmt: skip
def test_tpus_gpus_and_the_queue_for_them_reach_the_job(
    adapter, google, jobs, changes, accelerator, topology, strategy
):
    made = adapter(**changes)
    job_id = made.submit()
    [job] = jobs.values()
    machine = job.spec.worker_pool_specs[0].machine_spec
    assert (machine.tpu_topology, job.spec.scheduling.strategy.name) == (topology, strategy)
    assert machine.accelerator_type.name == (accelerator or "ACCELERATOR_TYPE_UNSPECIFIED")
    google.clock.advance(5000)
    assert made.status(job_id).state == "succeeded"


def test_secrets_are_refused(adapter, google):
    with pytest.raises(ConfigurationError, match="secrets"):
        adapter().submit({"TOKEN": "hunter2"})
    assert google.calls == []
