"""Each fault of Vertex AI, met by the official operator and by ours: what the task says, and what it costs.

``scripts/faults.sh`` writes the second table of docs/faults.md from these runs.
"""

import pytest

from airflow_provider_sml.testing.google.vertex_containers import scoring_app
from tests import faults
from tests.operators.test_faults import Case

PARENT = "projects/fake-project/locations/europe-west1"
IMAGE = "europe-docker.pkg.dev/fake-project/images/train:1"
TRAIN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.google.cloud.operators.vertex_ai.custom_job import CreateCustomJobOperator
from airflow_provider_sml.operators.vertex import VertexTrainOperator

job = {{
    "display_name": "churn", "job_spec": {{
        "worker_pool_specs": [{{"machine_spec": {{"machine_type": "n1-standard-4"}}, "replica_count": 1,
                                "container_spec": {{"image_uri": {image!r}}}}}],
        "base_output_directory": {{"output_uri_prefix": "gs://models/churn"}},
        "scheduling": {{"strategy": {strategy!r}}},
    }},
}}
args = {{"retries": {retries}, "retry_delay": timedelta(0)}}
with DAG("official", default_args=args):
    CreateCustomJobOperator(
        task_id="run", project_id="fake-project", region="europe-west1", custom_job=job, poll_interval={interval},
        deferrable=False, {both}
    )
with DAG("ours", default_args=args):
    VertexTrainOperator(
        task_id="run", image={image!r}, region="europe-west1", output_path="gs://models/churn", poll_interval=0.01,
        machines=["n1-standard-4", "n1-standard-8"], strategy={ours!r}, {both}
    )
"""
DEPLOY = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.google.cloud.operators.vertex_ai.endpoint_service import DeployModelOperator as Official
from airflow_provider_sml.operators.deployment import DeployModelOperator

args = {{"retries": 1, "retry_delay": timedelta(0)}}
deployed = {{
    "model": "{parent}/models/churn", "display_name": "churn",
    "dedicated_resources": {{"machine_spec": {{"machine_type": "n1-standard-2"}}, "min_replica_count": 1}},
}}
with DAG("official", default_args=args):
    Official(
        task_id="run", project_id="fake-project", region="europe-west1", endpoint_id="churn", deployed_model=deployed,
        traffic_split={{"0": 100}}, {official}
    )
with DAG("ours", default_args=args):
    DeployModelOperator(
        task_id="run", name="toy", version={version!r}, target="vertex", mlflow={root!r} + "/mlflow",
        endpoints={root!r} + "/endpoints", parity_rows=5, poll_interval=0.01, {ours}
        settings={{"artifacts": "gs://models/toy", "image": {image!r}, "region": "europe-west1", "wait": 0,
                   "alarms": {{"error_rate": 0.05}}}},
    )
"""


CASES = [
    Case("no fault", (), ("success", 1, 0), ("success", 1, 0)),
    Case(
        "spot machines taken away twice, with checkpoints", ({"kind": "interrupt", "count": 2},),
        ("success", 1, 0), ("success", 1, 0), spot=True,
    ),
    Case(
        "the reply to the creation is lost", ({"kind": "drop_after", "operation": "CreateCustomJob"},),
        ("success", 2, 0), ("success", 1, 0), retries=1,
    ),
    Case(
        "the API fails once while it waits", ({"kind": "server_error", "operation": "GetCustomJob", "skip": 3},),
        ("success", 2, 0), ("success", 1, 0), retries=1,
    ),
    Case(
        "the creation is throttled once", ({"kind": "throttle", "operation": "CreateCustomJob"},),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the task is killed while it waits (execution_timeout), and retried", (), ("failed", 2, 0), ("failed", 2, 0),
        retries=1, still=True, both="execution_timeout=timedelta(seconds=6)",
    ),
    Case(
        "there is no capacity for the machine", ({"kind": "no_capacity", "operation": "CreateCustomJob"},),
        ("failed", 1, 0), ("success", 2, 0),
    ),
    Case(
        "the permission is missing", ({"kind": "denied", "operation": "CreateCustomJob", "times": 9},),
        ("failed", 0, 0), ("failed", 0, 0), retries=2,
    ),
    Case(
        "the token expires while it waits", ({"kind": "expired_token", "operation": "GetCustomJob", "skip": 3},),
        ("failed", 1, 1), ("success", 1, 0),
    ),
    Case(
        "the quota of the machine is reached", ({"kind": "quota", "operation": "CreateCustomJob"},),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the creation fails inside Google Cloud once", ({"kind": "server_error", "operation": "CreateCustomJob"},),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the connection is lost before the creation has an effect",
        ({"kind": "drop_before", "operation": "CreateCustomJob"},), ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the machines come half an hour late", ({"kind": "slow", "operation": "CreateCustomJob"},),
        ("success", 1, 0), ("success", 1, 0),
    ),
]  # fmt: skip


@pytest.mark.parametrize("who", ["official", "ours"])
@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_training(dag_project, google, case, who):
    for fault in case.faults:
        google.faults.add(**fault)
    if case.still:
        google.clock.per_call = 0
    text = TRAIN.format(
        retries=case.retries, image=IMAGE, strategy="SPOT" if case.spot else "STANDARD",
        ours="spot" if case.spot else "on-demand", both=case.both, interval=0.2 if case.still else 0.01,
    )  # fmt: skip
    result = dag_project.run(dag_project.write("faults.py", text), who)
    google.clock.per_call = 0
    google.clock.advance(300)
    found = (result.state, len(google.vertex.jobs.jobs), len(google.bill.running()))
    tries = google.calls.count("CreateCustomJob")
    cell = faults.jobs_cell(*found, google.bill.total(), result.results.get("run"), tries)
    faults.note("vertex", CASES.index(case), case.title, who, cell)
    assert found == getattr(case, who)


@pytest.fixture
def cloud(google, fake_gcs_address, monkeypatch, toy):
    """With a model and an endpoint for the official operator, which makes neither."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform_v1

    from tests.toy import make_bundle

    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    monkeypatch.setattr("airflow_provider_sml.cloud.vertex_model.POLL_SECONDS", 0.01)
    google.vertex.endpoints.container = scoring_app
    bundle = make_bundle(1)
    bundle.write(toy / "churn")
    for file in (toy / "churn").iterdir():
        google.storage.write(f"gs://models/churn/{file.name}", file.read_bytes())
    options = {"api_endpoint": "europe-west1-aiplatform.googleapis.com:443"}
    known = {"credentials": AnonymousCredentials(), "client_options": options}
    model = {"display_name": "churn", "artifact_uri": "gs://models/churn", "container_spec": {"image_uri": IMAGE}}
    aiplatform_v1.ModelServiceClient(**known).upload_model({"parent": PARENT, "model": model, "model_id": "churn"})
    aiplatform_v1.EndpointServiceClient(**known).create_endpoint(
        {"parent": PARENT, "endpoint": {"display_name": "churn"}, "endpoint_id": "churn"}
    )
    google.clock.advance(100)
    google.clock.per_call = 60
    return google


DEPLOYMENTS = [
    ("the reply to DeployModel is lost, and the task is retried", {"kind": "drop_after", "operation": "DeployModel"},
     ("success", 2), ("success", 1)),
    ("a deployment takes longer than the task waits for it, and the task is retried", None, ("failed", 2),
     ("failed", 0)),
    ("the container of the new version does not start (a roll-back)",
     {"kind": "fail", "operation": "DeployModel", "times": 9}, ("failed", 0), ("failed", 0)),
]  # fmt: skip


@pytest.mark.parametrize("who", ["official", "ours"])
@pytest.mark.parametrize("case", DEPLOYMENTS, ids=[case[0] for case in DEPLOYMENTS])
def test_deployment(dag_project, cloud, toy, who, case):
    title, fault, *wanted = case
    if who == "official":
        cloud.clock.per_call = 900  # it waits for seconds between two looks, and ever longer
    if fault:
        cloud.faults.add(**fault)
    else:
        cloud.vertex.endpoints.deploy_seconds = 100_000
    text = DEPLOY.format(
        parent=PARENT, image=IMAGE, root=str(toy), version="1", official="" if fault else "timeout=1",
        ours="" if fault else "deadline=timedelta(seconds=1),",
    )  # fmt: skip
    result = dag_project.run(dag_project.write("faults.py", text), who)
    cloud.clock.per_call = 0
    cloud.clock.advance(300_000)
    for endpoint in cloud.vertex.endpoints.endpoints.values():
        cloud.vertex.endpoints._settle(endpoint)
    running = len(cloud.bill.running())
    colour = {"success": "green", "failed": "red"}[result.state]
    left = running - (result.state == "success")
    orphans = f"; **{left} deployed that nobody asked for** and go on costing" if left else "; no orphan is left"
    cell = f"{colour}, {running} deployed{orphans}"
    faults.note("vertex", faults.ENDPOINTS + DEPLOYMENTS.index(case), title, who, cell)
    assert (result.state, running) == wanted[("official", "ours").index(who)]


@pytest.mark.parametrize("who", ["official", "ours"])
def test_a_version_that_answers_worse(dag_project, cloud, toy, who):
    """The model that serves before it is deployed by the same operator."""

    def deploy(version):
        text = DEPLOY.format(parent=PARENT, image=IMAGE, root=str(toy), version=version, official="", ours="")
        return dag_project.run(dag_project.write("faults.py", text), who).state

    if who == "official":
        cloud.clock.per_call = 900
    assert deploy("1") == "success"
    cloud.vertex.predictions.per_minute = 600
    cloud.faults.add("degraded", "DeployModel", share=0.3)
    state = deploy("2")
    endpoint = cloud.vertex.endpoints.endpoints[f"{PARENT}/endpoints/{'toy' if who == 'ours' else 'churn'}"]
    cloud.clock.per_call = 0
    cloud.clock.advance(300_000)
    cloud.vertex.endpoints._settle(endpoint)
    made = list(endpoint.deployed)
    worse = [key for key, deployed in endpoint.deployed.items() if deployed.errors]
    answered = {"success": "green", "failed": "red"}[state]
    serves = "the worse" if [key for key, share in endpoint.traffic.items() if share] == worse else "the old"
    cell = f"{answered}, {len(made)} deployed; {serves} version serves"
    title = "the new version answers a third of its requests with errors once it has traffic"
    faults.note("vertex", faults.ENDPOINTS + len(DEPLOYMENTS), title, who, cell)
    assert cell == {"official": "green, 2 deployed; the worse version serves",
                    "ours": "red, 1 deployed; the old version serves"}[who]  # fmt: skip
