"""The fake Dataproc as a plain script with Google's client sees it."""

import json
import os
import subprocess
import sys
import time

import pytest
from google.api_core import exceptions as google
from google.auth.credentials import AnonymousCredentials
from google.cloud import dataproc_v1

PARENT = "projects/fake-project/locations/us-central1"
SCRIPT = f"""
from google.auth.credentials import AnonymousCredentials
from google.cloud import dataproc_v1

client = dataproc_v1.BatchControllerClient(
    credentials=AnonymousCredentials(), client_options={{"api_endpoint": "us-central1-dataproc.googleapis.com:443"}}
)
batch = {{"pyspark_batch": {{"main_python_file_uri": "gs://code/app.py"}}}}
client.create_batch(parent="{PARENT}", batch=batch, batch_id="night")
"""


@pytest.fixture
def client(fake_google):
    """Reaches the fake by the environment alone."""
    return dataproc_v1.BatchControllerClient(
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": "us-central1-dataproc.googleapis.com:443"},
    )


def create(client, batch_id="night", request_id="", **changes):
    batch = {"pyspark_batch": {"main_python_file_uri": "gs://code/app.py", "args": ["gs://x/plan.json"]}} | changes
    request = {"parent": PARENT, "batch": batch, "batch_id": batch_id, "request_id": request_id}
    return client.create_batch(request=request)


def get(client, batch_id="night"):
    return client.get_batch(name=f"{PARENT}/batches/{batch_id}")


def test_a_batch_goes_through_its_states_and_tells_what_it_used(fake_google, client):
    operation = create(client, labels={"team": "ops"})
    assert operation.metadata.batch == f"{PARENT}/batches/night"
    seen = []
    for _ in range(40):
        found = get(client)
        if found.state.name not in seen:
            seen.append(found.state.name)
            if found.state.name == "RUNNING":
                assert not found.runtime_info.approximate_usage.milli_dcu_seconds
                assert found.runtime_info.output_uri.endswith("/driveroutput")
        fake_google.clock.advance(10)
    assert seen == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert [past.state.name for past in found.state_history] == ["PENDING", "RUNNING"]
    assert found.state_history[1].state_start_time < found.state_time
    assert found.runtime_info.approximate_usage.milli_dcu_seconds == 12 * 1000 * 300
    assert found.runtime_info.approximate_usage.shuffle_storage_gb_seconds == 3 * 400 * 300
    assert found.runtime_config.properties["spark:spark.executor.instances"] == "2"
    assert found.environment_config.execution_config.ttl.total_seconds() == 4 * 3600
    assert dict(found.labels) == {"team": "ops"}
    assert operation.result(timeout=10).state.name == "SUCCEEDED"
    assert fake_google.bill.total() == pytest.approx(0.06 + 100 * 0.0000548, abs=1e-3)


def test_an_id_makes_one_batch_and_a_request_id_too(fake_google, client):
    first = create(client, request_id="one")
    again = create(client, batch_id="other", request_id="one")
    assert again.operation.name == first.operation.name
    with pytest.raises(google.AlreadyExists):
        create(client, request_id="two")
    assert list(fake_google.dataproc.batches) == [f"{PARENT}/batches/night"]
    fake_google.clock.advance(1000)
    with pytest.raises(google.AlreadyExists):  # an id stays used
        create(client)
    assert len(create(client, batch_id="").metadata.batch.rpartition("/")[2]) == 36


def test_a_batch_is_cancelled_by_its_operation_and_deleted_when_it_has_ended(fake_google, client):
    operation = create(client)
    assert get(client).operation == operation.operation.name
    with pytest.raises(google.FailedPrecondition):
        client.delete_batch(name=f"{PARENT}/batches/night")
    client.cancel_operation({"name": operation.operation.name})
    assert get(client).state.name == "CANCELLING"
    assert not client.get_operation({"name": operation.operation.name}).done
    fake_google.clock.advance(60)
    assert get(client).state.name == "CANCELLED"
    assert client.get_operation({"name": operation.operation.name}).error.code == 1
    with pytest.raises(google.FailedPrecondition):
        client.cancel_operation({"name": operation.operation.name})
    client.delete_batch(name=f"{PARENT}/batches/night")
    with pytest.raises(google.NotFound):
        get(client)
    create(client)


def test_a_failed_batch_says_where_to_look_and_not_why(fake_google, client, fake_gcs_address):
    fake_google.faults.add("fail", "CreateBatch", reason="ValueError: no such column")
    operation = create(client)
    fake_google.clock.advance(1000)
    found = get(client)
    assert found.state.name == "FAILED"
    assert "Agent reports job failure" in found.state_message and "ValueError" not in found.state_message
    with pytest.raises(google.GoogleAPICallError, match="Agent reports job failure"):
        operation.result(timeout=10)
    if fake_gcs_address:
        output = fake_google.storage.read(f"{found.runtime_info.output_uri}.000000000").decode()
        assert "ValueError: no such column" in output


def test_batches_are_listed_by_filter_in_pages(fake_google, client):
    for number in range(5):
        create(client, batch_id=f"night-{number}", labels={"kind": "even" if number % 2 == 0 else "odd"})
        fake_google.clock.advance(1)
    fake_google.clock.advance(1000)
    create(client, batch_id="late", labels={"kind": "odd"})

    def ids(**request):
        found = client.list_batches(request={"parent": PARENT, "page_size": 2} | request)
        return [batch.name.rpartition("/")[2] for batch in found]

    assert ids() == ["night-0", "night-1", "night-2", "night-3", "night-4", "late"]
    assert ids(filter="labels.kind = odd AND state = SUCCEEDED", order_by="create_time desc") == ["night-3", "night-1"]
    assert ids(filter='state != "SUCCEEDED"') == ["late"]
    assert ids(filter='create_time < "2000-01-01T00:00:00Z"') == []
    for wrong in ({"filter": "labels.kind = odd OR state = FAILED"}, {"filter": "colour = red"}, {"order_by": "name"}):
        with pytest.raises(google.InvalidArgument):
            ids(**wrong)
    assert list(client.list_batches(parent="projects/fake-project/locations/us-east1")) == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "missing required fields: parent, batch"),
        ({"parent": PARENT, "batch": {}}, "One of the batch configs"),
        ({"parent": PARENT, "batch": {"pyspark_batch": {"args": ["x"]}}}, "batch.pyspark_batch.main_python_file_uri"),
        ({"batch_id": "abc"}, "4-63"), ({"batch_id": "a" * 64}, "4-63"), ({"batch_id": "night_1"}, "4-63"),
        ({"request_id": "x" * 41}, "at most 40"),
        ({"parent": "us-central1"}, "Invalid resource name"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_refused(fake_google, client, request_, said):
    whole = {"parent": PARENT, "batch": {"pyspark_batch": {"main_python_file_uri": "gs://code/app.py"}}}
    request = request_ if not request_ or "batch" in request_ else whole | request_
    with pytest.raises(google.InvalidArgument, match=said):
        client.create_batch(request=request)
    assert fake_google.dataproc.batches == {}
    assert fake_google.calls[-1].error == "INVALID_ARGUMENT"


def test_idle_time_belongs_to_sessions(client):
    with pytest.raises(google.InvalidArgument, match="idle_ttl"):
        create(client, environment_config={"execution_config": {"idle_ttl": {"seconds": 600}}})


@pytest.mark.parametrize(
    ("fault", "error", "effect"),
    [
        ("throttle", google.ResourceExhausted, False), ("quota", google.ResourceExhausted, False),
        ("server_error", google.InternalServerError, False), ("denied", google.PermissionDenied, False),
        ("expired_token", google.Unauthenticated, False), ("drop_before", google.ServiceUnavailable, False),
        ("drop_after", google.ServiceUnavailable, True),
    ],
)  # fmt: skip
def test_faults_are_what_the_client_library_makes_of_them(fake_google, client, fault, error, effect):
    fake_google.faults.add(fault, "CreateBatch", "night")
    with pytest.raises(error):
        create(client)
    assert bool(fake_google.dataproc.batches) is effect
    [call] = fake_google.calls
    assert (call.effect, call.replied) == (effect, not fault.startswith("drop"))
    fake_google.faults.add("server_error", "GetBatch", code="UNAVAILABLE")
    with pytest.raises(google.ServiceUnavailable):
        get(client)


def test_a_method_that_is_not_faked_is_named(client):
    with pytest.raises(google.MethodNotImplemented, match="TestIamPermissions"):
        client.test_iam_permissions({"resource": PARENT, "permissions": ["x"]})
    sessions = dataproc_v1.SessionControllerClient(
        credentials=AnonymousCredentials(), client_options={"api_endpoint": "us-central1-dataproc.googleapis.com:443"}
    )
    with pytest.raises(google.MethodNotImplemented, match="SessionController/ListSessions"):
        sessions.list_sessions(parent=PARENT)


def test_nothing_but_google_s_hosts_is_reached_through_it(fake_google):
    """A client that is sent elsewhere gets no connection, so no test reaches the network by mistake."""
    elsewhere = dataproc_v1.BatchControllerClient(
        credentials=AnonymousCredentials(), client_options={"api_endpoint": "dataproc.example.com:443"}
    )
    with pytest.raises(google.ServiceUnavailable):
        elsewhere.get_batch(name=f"{PARENT}/batches/night", timeout=5)
    assert fake_google.calls == []


@pytest.mark.parametrize(("code", "ended"), [(0, "SUCCEEDED"), (1, "FAILED")])
def test_the_work_can_be_done_for_real(fake_google, client, code, ended, fake_gcs_address):
    asked = []

    def driver(batch):
        asked.append(list(batch.request.batch.pyspark_batch.args))
        return code, "INFO fine\nValueError: no such file\n"

    fake_google.dataproc.driver = driver
    create(client)
    fake_google.clock.advance(100)
    until = time.monotonic() + 20
    while get(client).state.name == "RUNNING" and time.monotonic() < until:
        time.sleep(0.01)
    found = get(client)
    assert found.state.name == ended
    assert asked == [["gs://x/plan.json"]]
    if fake_gcs_address:
        assert b"no such file" in fake_google.storage.read(f"{found.runtime_info.output_uri}.000000000")


def test_the_shell_serves_it_to_another_process(tmp_path):
    """The server runs as a process of its own; a client and the verbs reach it by what it printed."""
    command = [sys.executable, "-m", "airflow_provider_sml.testing"]
    server = subprocess.Popen(
        [*command, "serve", "google", "--scale", "0", "--gcs", "http://127.0.0.1:9"], stdout=subprocess.PIPE, text=True
    )
    try:
        told = {}
        for line in server.stdout:
            if line.startswith("#"):
                break
            name, _, value = line.removeprefix("export ").strip().partition("=")
            told[name] = value

        def run(*words):
            done = subprocess.run(words, env=os.environ | told, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(*command, "fault", "fail", "CreateBatch")
        run(sys.executable, "-c", SCRIPT)
        run(*command, "advance", "3600")
        assert "0 left running" in run(*command, "bill")
        [call] = json.loads(run(*command, "calls"))
        assert (call["operation"], call["params"]["batch_id"], call["error"]) == ("CreateBatch", "night", "")
    finally:
        server.terminate()
        server.wait(10)


def test_each_behaviour_has_its_basis(fake_google):
    found = fake_google.behaviours()
    assert {item.service for item in found} == {"dataproc", "monitoring", "operations", "vertex"}
    assert {item.basis for item in found} == {"documented", "publicly reported", "assumed"}
