"""The fake Vertex AI as a plain script with Google's clients sees it."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from google.api_core import exceptions as google
from google.auth.credentials import AnonymousCredentials

from airflow_provider_sml.testing.google.vertex_containers import local_container, scoring_app, scoring_process
from tests.toy import make_bundle, make_rows

PARENT = "projects/fake-project/locations/europe-west1"
IMAGE = "europe-docker.pkg.dev/fake-project/images/train:1"


def make(kind):
    from google.cloud import aiplatform_v1

    options = {"api_endpoint": "europe-west1-aiplatform.googleapis.com:443"}
    return getattr(aiplatform_v1, kind)(credentials=AnonymousCredentials(), client_options=options)


@pytest.fixture
def jobs(fake_google):
    return make("JobServiceClient")


def job(strategy="STANDARD", output="gs://models/churn", args=(), **changes):
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1,
        "container_spec": {"image_uri": IMAGE, "args": list(args)},
    }  # fmt: skip
    spec = {"worker_pool_specs": [pool], "scheduling": {"strategy": strategy}}
    if output:
        spec["base_output_directory"] = {"output_uri_prefix": output}
    return {"display_name": "churn", "job_spec": spec} | changes


def create(jobs, **changes):
    return jobs.create_custom_job(parent=PARENT, custom_job=job(**changes))


def states(fake_google, jobs, name, step=20, most=400):
    """The states that a job is seen in, until it has ended, and the job."""
    seen = []
    for _ in range(most):
        found = jobs.get_custom_job(name=name)
        state = found.state.name.removeprefix("JOB_STATE_")
        if [state] != seen[-1:]:
            seen.append(state)
        if state in ("SUCCEEDED", "FAILED", "CANCELLED"):
            break
        fake_google.clock.advance(step)
    return seen, found


def test_a_job_goes_through_its_states_and_is_billed_while_it_runs(fake_google, jobs):
    made = create(jobs, labels={"team": "ops"})
    seen, found = states(fake_google, jobs, made.name)
    assert seen == ["QUEUED", "PENDING", "RUNNING", "SUCCEEDED"]
    assert (found.end_time - found.start_time).total_seconds() == 600
    assert found.labels == {"team": "ops"}
    assert fake_google.bill.total() == pytest.approx(0.219 * 600 / 3600, abs=1e-3)
    assert fake_google.bill.running() == []
    assert create(jobs).name != made.name  # there is no id of the client's choice
    assert len(list(jobs.list_custom_jobs(parent=PARENT))) == 2


def test_a_spot_job_is_preempted_and_restarted_and_not_billed_meanwhile(fake_google, jobs):
    fake_google.faults.add("interrupt", count=2)
    seen, found = states(fake_google, jobs, create(jobs, strategy="SPOT").name)
    assert seen == ["QUEUED", "PENDING", "RUNNING", "PENDING", "RUNNING", "PENDING", "RUNNING", "SUCCEEDED"]
    [line] = fake_google.bill.lines()
    assert line.price == 0.0876 and line.hours < (found.end_time - found.start_time).total_seconds() / 3600


def test_a_spot_job_that_is_preempted_too_often_fails_with_stockout(fake_google, jobs):
    fake_google.faults.add("interrupt", count=9)
    seen, found = states(fake_google, jobs, create(jobs, strategy="SPOT").name)
    assert seen.count("RUNNING") == 7 and seen[-1] == "FAILED"
    assert found.error.message.startswith("STOCKOUT")


def test_without_capacity_a_job_fails_and_flex_start_waits_for_it(fake_google, jobs):
    fake_google.faults.add("no_capacity", times=2)
    seen, found = states(fake_google, jobs, create(jobs).name)
    assert seen == ["QUEUED", "PENDING", "FAILED"]
    assert (found.error.code, "Resources are insufficient in region: europe-west1" in found.error.message) == (8, True)
    waits = job(strategy="FLEX_START")
    waits["job_spec"]["scheduling"]["max_wait_duration"] = {"seconds": 7200}
    made = jobs.create_custom_job(parent=PARENT, custom_job=waits)
    fake_google.clock.advance(7000)
    assert jobs.get_custom_job(name=made.name).state.name == "JOB_STATE_PENDING"
    fake_google.clock.advance(300)
    assert jobs.get_custom_job(name=made.name).state.name == "JOB_STATE_FAILED"
    assert fake_google.bill.total() == 0


def test_a_job_is_cancelled_and_a_slow_or_failing_one_says_so(fake_google, jobs):
    fake_google.faults.add("slow", seconds=5000)
    name = create(jobs).name
    fake_google.clock.advance(4000)
    assert jobs.get_custom_job(name=name).state.name == "JOB_STATE_PENDING"
    jobs.cancel_custom_job(name=name)
    assert jobs.get_custom_job(name=name).state.name == "JOB_STATE_CANCELLING"
    with pytest.raises(google.FailedPrecondition):
        jobs.delete_custom_job(name=name)
    seen, found = states(fake_google, jobs, name)
    assert (seen[-1], found.error.code) == ("CANCELLED", 1)
    with pytest.raises(google.FailedPrecondition):
        jobs.cancel_custom_job(name=name)
    jobs.delete_custom_job(name=name).result(timeout=10)
    with pytest.raises(google.NotFound):
        jobs.get_custom_job(name=name)
    fake_google.faults.add("fail")
    seen, found = states(fake_google, jobs, create(jobs).name)
    assert (found.error.code, "exited with a non-zero status of 1" in found.error.message) == (3, True)


def test_jobs_are_listed_by_filter_in_pages(fake_google, jobs):
    for number in range(5):
        create(jobs, labels={"kind": "even" if number % 2 == 0 else "odd"}, display_name=f"churn-{number}")
    fake_google.clock.advance(5000)
    create(jobs, labels={"kind": "odd"}, display_name="late")

    def names(**request):
        found = jobs.list_custom_jobs(request={"parent": PARENT, "page_size": 2} | request)
        return [item.display_name for item in found]

    assert names() == ["late", "churn-4", "churn-3", "churn-2", "churn-1", "churn-0"]
    assert names(filter='labels.kind=odd AND state="JOB_STATE_SUCCEEDED"') == ["churn-3", "churn-1"]
    assert names(filter='display_name:"churn-*" AND labels.kind="even"') == ["churn-4", "churn-2", "churn-0"]
    for wrong in ("labels.kind = odd OR state = x", "colour=red"):
        with pytest.raises(google.InvalidArgument):
            names(filter=wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"display_name": ""}, "custom_job.display_name"), ({"labels": {"Team": "Ops"}}, "Label"),
        ({"display_name": "x" * 129}, "128"), ({"output": "models"}, "Cloud Storage"),
        ({"job_spec": {"worker_pool_specs": [{"replica_count": 1}]}}, "machine_type"),
        ({"encryption_spec": {"kms_key_name": "key"}}, "KMS"),
    ],
)  # fmt: skip
def test_a_job_that_does_not_fit_is_refused(fake_google, jobs, changes, said):
    with pytest.raises(google.InvalidArgument, match=said):
        create(jobs, **changes)
    assert fake_google.vertex.jobs.jobs == {}


def test_what_goes_together_is_checked(jobs):
    with pytest.raises(google.InvalidArgument, match="accelerator_count"):
        wrong = job()
        wrong["job_spec"]["worker_pool_specs"][0]["machine_spec"]["accelerator_type"] = "NVIDIA_TESLA_T4"
        jobs.create_custom_job(parent=PARENT, custom_job=wrong)
    with pytest.raises(google.InvalidArgument, match="FLEX_START"):
        wrong = job()
        wrong["job_spec"]["scheduling"]["max_wait_duration"] = {"seconds": 60}
        jobs.create_custom_job(parent=PARENT, custom_job=wrong)


@pytest.mark.parametrize(
    ("fault", "error", "effect"),
    [
        ("throttle", google.ResourceExhausted, False), ("quota", google.ResourceExhausted, False),
        ("server_error", google.InternalServerError, False), ("denied", google.PermissionDenied, False),
        ("expired_token", google.Unauthenticated, False), ("drop_before", google.ServiceUnavailable, False),
        ("drop_after", google.ServiceUnavailable, True),
    ],
)  # fmt: skip
def test_faults_are_what_the_client_library_makes_of_them(fake_google, jobs, fault, error, effect):
    fake_google.faults.add(fault, "CreateCustomJob")
    with pytest.raises(error) as raised:
        create(jobs)
    assert bool(fake_google.vertex.jobs.jobs) is effect
    if fault == "quota":
        assert "custom_model_training_cpus" in str(raised.value)


TRAIN = """
    import os, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1])
    assert os.environ["AIP_CHECKPOINT_DIR"] == "gs://models/churn/checkpoints/", dict(os.environ)
    assert os.environ["SML"] == "1"
    first = len(list(folder.iterdir()))
    for number in range(first, 6):
        (folder / f"{number}").touch()
        time.sleep(0.1)
    print("resumed at", first)
    if len(sys.argv) > 2:
        sys.exit("ValueError: no such column")
"""


@pytest.mark.parametrize(("more", "ended"), [((), "SUCCEEDED"), (("fail",), "FAILED")])
def test_the_container_really_runs_and_loses_its_machine(fake_google, jobs, tmp_path, more, ended):
    script, folder = tmp_path / "train.py", tmp_path / "checkpoints"
    script.write_text(textwrap.dedent(TRAIN))
    folder.mkdir()
    fake_google.vertex.jobs.container = local_container(fake_google, {IMAGE: [sys.executable, str(script)]})
    fake_google.vertex.jobs.preempt_when = lambda job, seconds: len(list(folder.iterdir())) > 1
    fake_google.faults.add("interrupt", count=1)
    wanted = job(strategy="SPOT", args=[str(folder), *more])
    wanted["job_spec"]["worker_pool_specs"][0]["container_spec"]["env"] = [{"name": "SML", "value": "1"}]
    name = jobs.create_custom_job(parent=PARENT, custom_job=wanted).name
    seen, until = [], time.monotonic() + 30
    while time.monotonic() < until and seen[-1:] not in (["SUCCEEDED"], ["FAILED"]):
        found = jobs.get_custom_job(name=name)
        seen.append(found.state.name.removeprefix("JOB_STATE_"))
        if seen[-1] != "RUNNING":
            fake_google.clock.advance(200)
        time.sleep(0.02)
    assert seen[-1] == ended, found.error.message
    assert fake_google.vertex.jobs.jobs[name].attempts == 2
    assert "PENDING" in seen[seen.index("RUNNING") :]
    if more:
        assert "ValueError: no such column" in found.error.message and "resumed at 0" not in found.error.message


# --- models and endpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(fake_google, fake_gcs_address):
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    fake_google.vertex.endpoints.container = scoring_app
    return fake_google


def upload(cloud, tmp_path, seed=1, model_id="toy", parent=""):
    """A version of the model toy, with its bundle in Cloud Storage."""
    bundle, models = make_bundle(seed), make("ModelServiceClient")
    bundle.write(tmp_path / bundle.model_id)
    for file in (tmp_path / bundle.model_id).iterdir():
        cloud.storage.write(f"gs://models/toy/{bundle.model_id}/{file.name}", file.read_bytes())
    spec = {"image_uri": IMAGE, "predict_route": "/predict", "health_route": "/health"}
    message = {
        "display_name": "toy", "artifact_uri": f"gs://models/toy/{bundle.model_id}", "container_spec": spec,
        "version_aliases": [f"v{seed}-toy"],
    }  # fmt: skip
    request = {"parent": PARENT, "model": message} | ({"parent_model": parent} if parent else {"model_id": model_id})
    operation = models.upload_model(request=request)
    cloud.clock.advance(30)
    return operation.result(timeout=30), models


def endpoint(cloud, name="toy", **more):
    endpoints = make("EndpointServiceClient")
    request = {"parent": PARENT, "endpoint": {"display_name": name} | more, "endpoint_id": name}
    operation = endpoints.create_endpoint(request=request)
    cloud.clock.advance(30)
    return operation.result(timeout=30).name, endpoints


def deploy(cloud, endpoints, name, model, key="1", split=None, spot=False, wait=True):
    resources = {"machine_spec": {"machine_type": "n1-standard-2"}, "min_replica_count": 1, "spot": spot}
    deployed = {"model": model, "id": key, "dedicated_resources": resources}
    operation = endpoints.deploy_model(
        request={"endpoint": name, "deployed_model": deployed, "traffic_split": split or {}}
    )
    if wait:
        cloud.clock.advance(600)
        operation.result(timeout=30)
    return operation


def rows(count):
    table = make_rows().slice(0, count).to_pylist()
    return [{"at": row["at"].isoformat(), "weight": row["weight"], "fuel": row["fuel"]} for row in table]


def ask(name, count=4):
    from google.api import httpbody_pb2

    body = httpbody_pb2.HttpBody(data=json.dumps({"instances": rows(count)}).encode(), content_type="application/json")
    return json.loads(make("PredictionServiceClient").raw_predict(endpoint=name, http_body=body).data)["predictions"]


def test_versions_count_up_and_aliases_move(cloud, tmp_path):
    first, models = upload(cloud, tmp_path, 1)
    assert (first.model, first.model_version_id) == (f"{PARENT}/models/toy", "1")
    with pytest.raises(google.AlreadyExists):
        upload(cloud, tmp_path, 1)
    second, _ = upload(cloud, tmp_path, 2, parent=first.model)
    assert second.model_version_id == "2"
    assert list(models.get_model(name=first.model).version_aliases) == ["default", "v1-toy"]
    moved = models.merge_version_aliases(name=f"{first.model}@v2-toy", version_aliases=["default", "champion"])
    assert list(moved.version_aliases) == ["champion", "default", "v2-toy"]
    assert models.get_model(name=f"{first.model}@champion").version_id == "2"
    assert [item.version_id for item in models.list_model_versions(name=first.model)] == ["1", "2"]
    models.delete_model_version(name=f"{first.model}@1").result(timeout=10)
    with pytest.raises(google.FailedPrecondition, match="only version"):
        models.delete_model_version(name=f"{first.model}@2")
    models.delete_model(name=first.model).result(timeout=10)
    with pytest.raises(google.NotFound):
        models.get_model(name=first.model)


def test_a_canary_takes_its_share_and_the_bill_stops_with_the_model(cloud, tmp_path):
    first, models = upload(cloud, tmp_path, 1)
    upload(cloud, tmp_path, 2, parent=first.model)
    name, endpoints = endpoint(cloud)
    with pytest.raises(google.FailedPrecondition, match="traffic_split"):
        ask(name)
    deploy(cloud, endpoints, name, f"{first.model}@1", "1", {"0": 100})
    old = ask(name)
    deploy(cloud, endpoints, name, f"{first.model}@2", "2", {"0": 20, "1": 80})
    assert dict(endpoints.get_endpoint(name=name).traffic_split) == {"1": 80, "2": 20}
    answers = [ask(name) for _ in range(10)]
    assert sum(answer != old for answer in answers) == 2
    with pytest.raises(google.FailedPrecondition):
        models.delete_model_version(name=f"{first.model}@1")
    with pytest.raises(google.InvalidArgument, match="traffic"):
        endpoints.undeploy_model(endpoint=name, deployed_model_id="1")
    with pytest.raises(google.InvalidArgument, match="100"):
        endpoints.update_endpoint(
            endpoint={"name": name, "traffic_split": {"2": 90}}, update_mask={"paths": ["traffic_split"]}
        )
    endpoints.update_endpoint(
        endpoint={"name": name, "traffic_split": {"2": 100}}, update_mask={"paths": ["traffic_split"]}
    )
    undeployed = endpoints.undeploy_model(endpoint=name, deployed_model_id="1")
    cloud.clock.advance(100)
    undeployed.result(timeout=10)
    assert len(cloud.bill.running()) == 1
    with pytest.raises(google.FailedPrecondition):
        endpoints.delete_endpoint(name=name)
    endpoints.undeploy_model(endpoint=name, deployed_model_id="2")
    cloud.clock.advance(100)
    endpoints.delete_endpoint(name=name).result(timeout=10)
    assert cloud.bill.running() == []


def test_predictions_come_from_a_real_scoring_process(cloud, tmp_path):
    cloud.vertex.endpoints.container = scoring_process
    first, _ = upload(cloud, tmp_path)
    logging = {"enabled": True, "sampling_rate": 1.0, "bigquery_destination": {"output_uri": "bq://fake-project"}}
    name, endpoints = endpoint(cloud, predict_request_response_logging_config=logging)
    deploy(cloud, endpoints, name, first.model, "1", {"0": 100}, spot=True)
    scores = ask(name)
    assert len(scores) == 4 and all(0 < score < 1 for score in scores)
    found = make("PredictionServiceClient").predict(endpoint=name, instances=rows(4))
    assert (found.deployed_model_id, found.model_version_id, list(found.predictions)) == ("1", "1", scores)
    assert len(cloud.vertex.predictions.logged) == 2
    cloud.vertex.endpoints.preempt(name, "1")
    assert endpoints.get_endpoint(name=name).deployed_models[0].status.available_replica_count == 0
    with pytest.raises(google.ServiceUnavailable):
        ask(name)


@pytest.mark.parametrize(
    ("fault", "error"), [("no_capacity", "insufficient"), ("fail", "Model server exited unexpectedly")]
)
def test_a_deployment_that_fails_leaves_nothing_deployed(cloud, tmp_path, fault, error):
    first, _ = upload(cloud, tmp_path)
    name, endpoints = endpoint(cloud)
    cloud.faults.add(fault, "DeployModel", "toy")
    operation = deploy(cloud, endpoints, name, first.model, wait=False)
    cloud.clock.advance(600)
    with pytest.raises(google.GoogleAPICallError, match=error):
        operation.result(timeout=10)
    assert list(endpoints.get_endpoint(name=name).deployed_models) == []
    assert cloud.bill.running() == []


def test_a_model_without_its_bundle_does_not_start(cloud, tmp_path):
    first, _ = upload(cloud, tmp_path)
    cloud.vertex.models.models[first.model].versions[1].message.artifact_uri = "gs://models/nothing"
    name, endpoints = endpoint(cloud)
    operation = deploy(cloud, endpoints, name, first.model, wait=False)
    cloud.clock.advance(600)
    with pytest.raises(google.FailedPrecondition, match="Model server exited"):
        operation.result(timeout=10)


def test_an_operation_is_cancelled_and_listed_below_its_endpoint(cloud, tmp_path):
    first, _ = upload(cloud, tmp_path)
    name, endpoints = endpoint(cloud)
    operation = deploy(cloud, endpoints, name, first.model, wait=False)
    found = endpoints.list_operations({"name": name}).operations
    assert [item.done for item in found] == [True, False]
    endpoints.cancel_operation({"name": operation.operation.name})
    assert endpoints.get_operation({"name": operation.operation.name}).error.code == 1
    cloud.clock.advance(600)
    assert list(endpoints.get_endpoint(name=name).deployed_models) == []


SDK = """
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

aiplatform.init(
    project="fake-project", location="europe-west1", credentials=AnonymousCredentials(), staging_bucket="gs://models"
)
image = "europe-docker.pkg.dev/fake-project/images/any:1"
pool = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1, "container_spec": {"image_uri": image}}
job = aiplatform.CustomJob(display_name="x", worker_pool_specs=[pool], base_output_dir="gs://models/x")
job.submit(scheduling_strategy=aiplatform.compat.types.custom_job.Scheduling.Strategy.SPOT)
model = aiplatform.Model.upload(
    display_name="toy", serving_container_image_uri=image, artifact_uri="gs://models/toy/toy1",
    serving_container_predict_route="/predict", serving_container_health_route="/health",
)
endpoint = aiplatform.Endpoint.create(display_name="toy")
model.deploy(endpoint=endpoint, machine_type="n1-standard-2", traffic_percentage=100, spot=True)
row = {"at": "2026-01-01T00:00:00", "weight": 3.0, "fuel": 0.5}
print("score", endpoint.predict(instances=[row]).predictions[0])
endpoint.undeploy_all()
endpoint.delete()
model.delete()
"""


@pytest.mark.slow
def test_google_s_whole_sdk_works_on_what_the_shell_serves(fake_gcs_address, tmp_path):
    """The fake is a process of its own, the scoring server another; the script knows of neither."""
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    from airflow_provider_sml.testing.google.storage import Objects

    make_bundle(1).write(tmp_path)
    for file in tmp_path.iterdir():
        Objects(fake_gcs_address, "fake-project").write(f"gs://models/toy/toy1/{file.name}", file.read_bytes())
    command = [sys.executable, "-m", "airflow_provider_sml.testing"]
    server = subprocess.Popen(
        [*command, "serve", "google", "--scale", "200", "--gcs", fake_gcs_address], stdout=subprocess.PIPE, text=True
    )
    try:
        told = {}
        for line in server.stdout:
            if line.startswith("#"):
                break
            name, _, value = line.removeprefix("export ").strip().partition("=")
            told[name] = value
        environment = os.environ | told
        done = subprocess.run(
            [sys.executable, "-c", SDK], env=environment, capture_output=True, text=True, timeout=250
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert 0 < float(done.stdout.partition("score ")[2].split()[0]) < 1
        bill = subprocess.run([*command, "bill"], env=environment, capture_output=True, text=True, timeout=60).stdout
        assert "spot endpoint 1 x n1-standard-2" in bill and "spot training 1 x n1-standard-4" in bill
    finally:
        server.terminate()
        server.wait(10)
