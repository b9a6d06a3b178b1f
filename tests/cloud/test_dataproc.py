"""The adapter of Dataproc Serverless against the fake one, through Google's own client."""

import json
import threading

import pytest
from google.auth.credentials import AnonymousCredentials

from airflow_provider_sml.cloud.dataproc import DataprocBatchJob
from airflow_provider_sml.cloud.google import GoogleClients, GoogleJob, GoogleQuota, GoogleUnavailable
from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.errors import ConfigurationError, JobError

REGION = "europe-west1"


@pytest.fixture
def cloud(fake_google, monkeypatch):
    """One try per call: what is tested is the adapter, not its patience."""
    monkeypatch.setattr(GoogleJob, "patience", 0.0)
    return fake_google


@pytest.fixture
def make(cloud):
    clients = GoogleClients(REGION, AnonymousCredentials(), cloud.project)

    def job(**changes):
        fixed = {
            "name": "orders-etl", "project": cloud.project, "region": REGION, "entry_point": "gs://code/application.py",
            "arguments": ["gs://lake/stage/1/plan.json"], "output": {"uri": "gs://lake/stage/1"},
        }  # fmt: skip
        return DataprocBatchJob(**fixed | changes).connect(clients)

    return job


def batches(cloud):
    return [name.rpartition("/")[2] for name in cloud.dataproc.batches]


def request(cloud, number=-1):
    return list(cloud.dataproc.batches.values())[number].request


def test_a_batch_is_made_watched_and_tells_what_it_used(cloud, make):
    job = make()
    made = job.submit()
    assert made == "orders-etl-1"
    assert job.status(made).state is JobState.PENDING
    cloud.clock.advance(100)
    running = job.status(made)
    assert running.state is JobState.RUNNING
    assert running.progress[0].endswith(f"/dataproc/batches/{REGION}/{made}/monitoring?project=fake-project")
    cloud.clock.advance(1000)
    assert job.status(made).state is JobState.SUCCEEDED
    result = job.result(made)
    assert result["uri"] == "gs://lake/stage/1"
    # 12 units for 5 minutes; a unit is a vCPU with 4 GB
    usage = result["usage"]
    assert (usage["dcu_hours"], usage["vcpu_hours"], usage["gb_hours"]) == (1.0, 1.0, 4.0)
    assert usage["shuffle_gb_hours"] == 100.0
    assert usage["cost_usd"] == pytest.approx(0.06 + 100 * 0.0000548, abs=1e-4)
    assert usage["cost_usd"] == pytest.approx(cloud.bill.total(), abs=1e-4)
    assert usage["started"] < usage["ended"]
    assert len(json.dumps(result)) < 1000


def test_the_request_has_every_setting_in_its_place(cloud, make):
    key = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"
    make(
        conf={"spark.executor.cores": "8", "spark.dynamicAllocation.maxExecutors": "12"}, tier="premium",
        min_executors=2, max_executors=40, service_account="etl@p.iam.gserviceaccount.com", subnetwork="private",
        network_tags=["spark"], kms_key=key, staging_bucket="staging", runtime="2.3", jars=["gs://code/a.jar"],
        container_image="europe-docker.pkg.dev/p/r/spark:1", ttl_minutes=30,
        labels={"dag_id": "Orders.ETL", "run_id": "manual__2026-03-01T00:00:00+00:00", "none": ""},
    ).submit()  # fmt: skip
    asked = request(cloud)
    batch, execution = asked.batch, asked.batch.environment_config.execution_config
    assert batch.pyspark_batch.main_python_file_uri == "gs://code/application.py"
    assert list(batch.pyspark_batch.jar_file_uris) == ["gs://code/a.jar"]
    properties = dict(batch.runtime_config.properties)
    assert properties["spark.dataproc.executor.compute.tier"] == "premium"
    assert properties["spark.dynamicAllocation.minExecutors"] == "2"
    assert properties["spark.dynamicAllocation.maxExecutors"] == "12"  # conf goes before
    assert batch.runtime_config.version == "2.3"
    assert batch.runtime_config.container_image == "europe-docker.pkg.dev/p/r/spark:1"
    assert (execution.service_account, execution.subnetwork_uri) == ("etl@p.iam.gserviceaccount.com", "private")
    assert (list(execution.network_tags), execution.kms_key, execution.staging_bucket) == (["spark"], key, "staging")
    assert execution.ttl.total_seconds() == 1800
    assert execution.authentication_config.user_workload_authentication_type.name == "SERVICE_ACCOUNT"
    assert batch.labels["dag_id"] == "orders-etl"
    assert batch.labels["run_id"] == "manual__2026-03-01t00-00-00-00-00"
    assert "none" not in batch.labels


@pytest.mark.parametrize(
    "name", ["x", "9-lives", "Orders_ETL", "o" * 63, "etl-manual-2026-03-01T00-00-00-" + "long-" * 6 + "0123456789"]
)
def test_any_name_gives_an_id_that_dataproc_takes(cloud, make, name):
    first, other = make(name=name).submit(), make(name=name + "-").submit()
    assert first != other
    assert make(name=name).submit() == first


def test_a_retry_attaches_to_the_batch_and_gives_that_batch_s_output(cloud, make):
    first = make().submit()
    later = make(arguments=["gs://lake/stage/2/plan.json"], output={"uri": "gs://lake/stage/2"})
    assert later.submit() == first
    cloud.clock.advance(1000)
    assert later.result(first)["uri"] == "gs://lake/stage/1"
    assert make().submit() == first
    assert later.submit() == "orders-etl-2"
    assert batches(cloud) == ["orders-etl-1", "orders-etl-2"]


def test_one_that_runs_goes_before_one_that_succeeded(cloud, make):
    make().submit()
    cloud.clock.advance(1000)
    other = make(arguments=["gs://lake/stage/2/plan.json"])
    running = other.submit()
    assert make().submit() == running


def test_a_batch_that_was_deleted_does_not_bring_its_number_back(cloud, make):
    cloud.faults.add("fail", "CreateBatch")
    job = make()
    failed = job.submit()
    cloud.clock.advance(1000)
    running = job.submit()
    job.clients.client("dataproc").delete_batch(name=f"{job.parent}/batches/{failed}")
    assert job.submit() == running
    assert batches(cloud) == ["orders-etl-2"]


def test_two_that_submit_at_once_share_one_batch(cloud, make):
    """Both find none, and both ask for the first."""
    both, found = threading.Barrier(2), []

    class Late(DataprocBatchJob):
        def _batches(self):
            known = super()._batches()
            both.wait(20)
            return known

    def submit():
        found.append(Late(**make().describe()["arguments"]).connect(make().clients).submit())

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["orders-etl-1"] * 2
    assert batches(cloud) == ["orders-etl-1"]


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "throttle", "server_error"])
@pytest.mark.parametrize("operation", ["ListBatches", "CreateBatch"])
def test_a_submit_that_was_not_answered_makes_one_batch(cloud, make, fault, operation):
    cloud.faults.add(fault, operation)
    with pytest.raises(GoogleUnavailable):
        make().submit()
    assert make().submit() == "orders-etl-1"
    assert batches(cloud) == ["orders-etl-1"]


def test_a_failure_that_passes_is_waited_for(cloud, make, monkeypatch):
    monkeypatch.setattr(GoogleJob, "patience", 20.0)
    cloud.faults.add("drop_after", "CreateBatch")
    cloud.faults.add("server_error", "GetBatch", code="UNAVAILABLE")
    job = make()
    assert job.status(job.submit()).state is JobState.PENDING
    assert batches(cloud) == ["orders-etl-1"]
    assert cloud.calls.count("CreateBatch") == 2


def test_an_expired_token_is_renewed_once(cloud, make):
    cloud.faults.add("expired_token", "GetBatch")
    job = make()
    made = job.submit()
    before = job.clients.client("dataproc")
    assert job.status(made).state is JobState.PENDING
    assert job.clients.client("dataproc") is not before
    cloud.faults.add("expired_token", "GetBatch", times=2)
    with pytest.raises(GoogleUnavailable, match="UNAUTHENTICATED"):
        job.status(made)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [("quota", GoogleQuota, "'CPUS' quota"), ("denied", ConfigurationError, "grant dataproc.batches.create")],
)
def test_a_quota_may_be_tried_again_and_a_permission_must_be_granted(cloud, make, fault, error, said):
    cloud.faults.add(fault, "CreateBatch")
    with pytest.raises(error, match=said) as caught:
        make().submit()
    assert caught.value.retryable is (fault == "quota")
    assert batches(cloud) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entry_point": "gs://code/app.jar"}, "must be a .py file"),
        ({"conf": {"spark.executor.cores": "3"}}, "one of 4, 8, 16"),
        ({"conf": {"spark.executor.memory": "60g"}}, "1024-7424 MB per core"),
        ({"max_executors": 1}, "between 2 and 2000"),
        ({"tier": "cheap"}, "standard, premium"),
        ({"ttl_minutes": 5}, "between 10 minutes and 14 days"),
        ({"staging_bucket": "gs://staging"}, "not a URI"),
        ({"labels": {f"k{n}": "v" for n in range(40)}}, "32 labels"),
        ({"project": "no such/project"}, "Invalid resource name"),
    ],
)
def test_what_dataproc_refuses_is_a_configuration_error(cloud, make, changes, said):
    with pytest.raises(ConfigurationError, match=said):
        make(**changes).submit()
    assert batches(cloud) == []


def test_a_batch_that_is_not_there_is_a_configuration_error(cloud, make):
    with pytest.raises(ConfigurationError, match="NOT_FOUND"):
        make().status("orders-etl-9")


def test_a_failed_batch_is_followed_by_another(cloud, make):
    cloud.faults.add("fail", "CreateBatch")
    first = make().submit()
    cloud.clock.advance(1000)
    found = make().status(first)
    assert found.state is JobState.FAILED and not found.configuration
    assert "orders-etl-1" in found.message
    assert make().submit() == "orders-etl-2"


def test_a_failed_driver_is_quoted_from_its_output(cloud, make, fake_gcs_address):
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    reason = "java.lang.OutOfMemoryError: Java heap space"
    cloud.faults.add("fail", "CreateBatch", reason=reason)
    job = make(staging_bucket="staging")
    made = job.submit()
    cloud.clock.advance(1000)
    found = job.status(made)
    assert found.message.startswith(reason) and not found.configuration
    assert "console.cloud.google.com" in found.message


def test_a_driver_that_blames_its_input_is_not_tried_again(cloud, make, fake_gcs_address):
    """Its output is long and in parts; the last one counts."""
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    cloud.faults.add("fail", "CreateBatch")
    job = make()
    made = job.submit()
    cloud.clock.advance(1000)
    [batch] = cloud.dataproc.batches.values()
    output = cloud.dataproc.output_uri(batch)
    job.status(made)  # the fake writes its own
    cloud.storage.write(f"{output}.000000000", b"ValueError: an early one\n" + b"x" * 200_000)
    cloud.storage.write(f"{output}.000000001", b"")
    last = "INFO ends\nSML-INPUT-ERROR: orders.csv lacks the columns ['wéight']\n".encode()
    cloud.storage.write(f"{output}.000000002", last)
    found = job.status(made)
    assert found.configuration
    assert found.message == "orders.csv lacks the columns ['wéight']"


def test_no_capacity_is_told_and_may_be_tried_again(cloud, make):
    cloud.faults.add("no_capacity", "CreateBatch")
    job = make()
    made = job.submit()
    cloud.clock.advance(1000)
    found = job.status(made)
    assert "'CPUS' quota" in found.message and not found.configuration


def test_cancelling_ends_the_batch(cloud, make):
    job = make()
    made = job.submit()
    job.cancel(made)
    assert job.status(made).state is JobState.RUNNING  # CANCELLING
    assert job.submit() == "orders-etl-2"  # nobody attaches to one that is on its way out
    job.cancel("orders-etl-2")
    cloud.clock.advance(60)
    assert job.status(made).state is JobState.CANCELLED
    job.cancel(made)
    assert cloud.calls.count("CancelOperation") == 2
    assert cloud.bill.running() == []


@pytest.mark.parametrize("fault", ["drop_after", "throttle"])
def test_a_cancel_that_was_not_answered_is_told(cloud, make, fault):
    job = make()
    made = job.submit()
    cloud.faults.add(fault, "CancelOperation")
    with pytest.raises(JobError):
        job.cancel(made)
    job.cancel(made)
    cloud.clock.advance(60)
    assert job.status(made).state is JobState.CANCELLED


def test_past_its_time_google_cancels_it(cloud, make):
    cloud.dataproc.running_seconds = 3600.0
    job = make(ttl_minutes=10)
    made = job.submit()
    cloud.clock.advance(3000)
    found = job.status(made)
    assert (found.state, found.message) == (JobState.CANCELLED, "Batch was CANCELLED as ttl exceeded")


def test_secrets_go_through_secret_manager_only(cloud, make):
    with pytest.raises(ConfigurationError, match="SML_PRIVACY_KEYS") as error:
        make().submit({"SML_PRIVACY_KEYS": "a very secret key"})
    assert "a very secret key" not in str(error.value)
    assert batches(cloud) == []
    job = make(secret_ids={"SML_PRIVACY_KEYS": "privacy-keys"}, secret_project="vault")
    job.submit({"SML_PRIVACY_KEYS": "a very secret key"})
    properties = request(cloud).batch.runtime_config.properties
    assert properties["spark.hadoop.hadoop.security.credential.provider.path"] == "gsm://projects/vault"
    assert properties["spark.sml.secret.SML_PRIVACY_KEYS"] == "privacy-keys"
    seen = json.dumps([call.params for call in cloud.calls]) + json.dumps(job.describe())
    assert "a very secret key" not in seen


def test_prices_of_the_premium_tier_and_of_one_s_own(cloud, make):
    job = make(tier="premium", conf={"spark.dataproc.executor.disk.tier": "premium", "spark.executor.cores": "8",
                                     "spark.executor.memory": "80g"})  # fmt: skip
    made = job.submit()
    cloud.clock.advance(1000)
    usage = job.result(made)["usage"]
    assert usage["cost_usd"] == pytest.approx(cloud.bill.total(), abs=1e-3)
    # 88 GB on 8 vCPUs: 4.8 + 6.4 + 4.8 units
    assert usage["vcpu_hours"] == pytest.approx(usage["dcu_hours"] * 8 / 16, abs=1e-3)
    assert usage["gb_hours"] == pytest.approx(usage["dcu_hours"] * 88 / 16, abs=1e-2)
    own = make(tier="premium", prices={"dataproc-dcu-premium": 1.0, "dataproc-shuffle-gb": 0.0})
    assert own.result(made)["usage"]["cost_usd"] > usage["cost_usd"]


def test_an_object_is_kept_once_with_its_key(cloud, make, fake_gcs_address):
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    cloud.storage.write("gs://kept/other", b"")  # makes the bucket
    job = make()
    job.keep("gs://kept/sml/application-1.py", b"first", "projects/p/locations/l/keyRings/r/cryptoKeys/k")
    job.keep("gs://kept/sml/application-1.py", b"second")
    assert cloud.storage.read("gs://kept/sml/application-1.py") == b"first"
    with pytest.raises(ConfigurationError, match=r"storage\.objects\.create"):
        job.keep("gs://no-such-bucket-here/x.py", b"")


def test_it_is_made_again_from_json(make):
    assert Adapter.load(json.loads(json.dumps(make().describe()))) == make()
