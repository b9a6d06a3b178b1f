"""Traffic, removal and the sensor of endpoints, through ``dag.test()`` against the fake clouds."""

import pytest

from airflow_provider_sml.cloud.sagemaker_endpoint import SageMakerRollout
from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout
from airflow_provider_sml.hooks.clients import AwsHookClients, GoogleHookClients
from airflow_provider_sml.testing.google.vertex_containers import Scoring

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.endpoints import DeleteEndpointOperator, SetTrafficOperator
from airflow_provider_sml.sensors.endpoint import EndpointSensor

with DAG("churn_endpoint", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    {task}
"""
SPEC = {
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1", "model_data": "s3://models/churn/model.tar.gz",
    "role": "arn:aws:iam::123456789012:role/sagemaker", "instance": "ml.m5.large", "scaling": {"min": 1, "max": 2},
}  # fmt: skip


@pytest.fixture
def run(dag_project, cloud):
    def run(task, retries=0):
        file = dag_project.write("churn_endpoint.py", DAG_FILE.format(task=task, retries=retries))
        return dag_project.run(file, "churn_endpoint")

    return run


def submit(version, **changes):
    job = SageMakerRollout(name="churn", version=version, spec=SPEC | changes).connect(AwsHookClients("aws_default"))
    return job, job.submit()


@pytest.fixture
def endpoint(cloud):
    """An endpoint with a champion and a challenger."""
    for version, mode in (("1", {}), ("2", {"mode": "ab"})):
        job, made = submit(version, **mode)
        cloud.clock.advance(5000)
        job.result(made)
    return cloud.sagemaker.endpoint("churn")


TRAFFIC = "SetTrafficOperator(task_id='set', endpoint='churn', weights={weights}, poll_interval=0.01)"


@pytest.mark.parametrize("fault", [None, "drop_after", "throttle"])
def test_the_traffic_is_set_once_whatever_happens(run, cloud, endpoint, fault):
    if fault:
        cloud.faults.add(fault, "UpdateEndpointWeightsAndCapacities")
    result = run(TRAFFIC.format(weights={"champion": 60, "challenger": 40}), retries=2)
    assert result.state == "success"
    weights = {name: variant.weight for name, variant in endpoint.fleet.variants.items()}
    assert weights == {"champion": 60, "challenger": 40}
    effects = [call for call in cloud.calls.of("UpdateEndpointWeightsAndCapacities") if call.effect]
    assert len(effects) == 1


@pytest.mark.parametrize("weights", [{"chalenger": 1}, {"champion": 0}, {"champion": -1, "challenger": 2}])
def test_wrong_weights_are_refused_and_nothing_changes(run, cloud, endpoint, weights):
    assert run(TRAFFIC.format(weights=weights), retries=2).state == "failed"
    assert cloud.calls.count("UpdateEndpointWeightsAndCapacities") == 0


DELETE = "DeleteEndpointOperator(task_id='delete', endpoint='churn', poll_interval=0.01)"


@pytest.mark.parametrize("operation", [None, "DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"])
def test_an_endpoint_is_deleted_with_all_that_costs(run, cloud, endpoint, operation):
    if operation:
        cloud.faults.add("drop_after", operation)
    assert run(DELETE, retries=2).state == "success"
    assert cloud.bill.running() == []
    assert cloud.autoscaling.targets == {}
    assert cloud.sagemaker.endpoints == {}
    assert (cloud.sagemaker.configs, cloud.sagemaker.models) == ({}, {})


def test_deleting_what_is_gone_is_well(run, cloud):
    assert run(DELETE).state == "success"


def test_what_an_endpoint_that_is_gone_has_left_is_found_and_deleted(run, cloud, endpoint):
    """As after a try that was killed once the endpoint was gone. What another endpoint of such a name has stays."""
    other = SageMakerRollout(name="churn-vip", version="1", spec=SPEC).connect(AwsHookClients("aws_default"))
    cloud.client("sagemaker").create_model(
        ModelName="churn-v9-by-hand", PrimaryContainer={"Image": SPEC["image"]}, ExecutionRoleArn=SPEC["role"]
    )
    other.submit()
    cloud.client("sagemaker").delete_endpoint(EndpointName="churn")
    cloud.clock.advance(100)
    made = [f"sagemaker:{name}" for name in ["delete_endpoint_config"] * 2 + ["delete_model"] * 2]
    assert run(DELETE.replace("poll_interval=0.01", "plan=True")).results["delete"]["calls"] == made
    cloud.faults.add("drop_after", "DeleteModel")
    result = run(DELETE, retries=1)
    assert result.state == "success" and len(result.results["delete"]["deleted"]) >= 2
    assert [name.partition("-v1-")[0] for name in cloud.sagemaker.configs] == ["churn-vip"]
    assert sorted(name.rpartition("-")[0] for name in cloud.sagemaker.models) == ["churn-v9-by", "churn-vip-v1"]


def test_plans_show_the_calls_and_change_nothing(run, cloud, endpoint, capfd):
    def planned(task):
        result = run(task.replace("poll_interval=0.01", "plan=True"))
        assert result.state == "success"
        [plan] = result.results.values()
        return plan["calls"]

    before = len(cloud.calls)
    assert planned(TRAFFIC.format(weights={"champion": 60, "challenger": 40})) == [
        "sagemaker:update_endpoint_weights_and_capacities"
    ]
    assert '"DesiredWeight": 60.0' in capfd.readouterr().out
    calls = planned(DELETE)
    assert calls[0] == calls[1] == "application-autoscaling:deregister_scalable_target"
    assert calls[2:] == [
        f"sagemaker:{name}" for name in ("delete_endpoint", *["delete_endpoint_config"] * 2, *["delete_model"] * 2)
    ]
    assert all(call.operation.startswith(("Describe", "List")) for call in cloud.calls[before:])


SENSOR = "EndpointSensor(task_id='wait', endpoint='churn', version={version!r}, poke_interval=0.01, timeout={timeout})"


def test_the_sensor_waits_for_the_version(run, cloud):
    submit("1")
    cloud.faults.add("throttle", "DescribeEndpoint", times=2)
    assert run(SENSOR.format(version="1", timeout=60)).state == "success"
    assert run(SENSOR.format(version="2", timeout=1)).state == "failed"


def test_the_sensor_fails_when_the_endpoint_has(run, cloud):
    cloud.faults.add("fail", "CreateEndpoint")
    submit("1")
    assert run(SENSOR.format(version="", timeout=60)).state == "failed"
    assert cloud.sagemaker.endpoint("churn").timeline.at(cloud.clock.now()).state == "Failed"


# --- Vertex AI --------------------------------------------------------------------------------------------------------

ON_VERTEX = "target='vertex', region='europe-west1'"


@pytest.fixture
def run_on_vertex(dag_project, google, monkeypatch):
    """Runs a task against an endpoint on which version 1 serves, and version 2 is deployed beside it."""
    monkeypatch.setattr("airflow_provider_sml.cloud.vertex_model.POLL_SECONDS", 0.01)
    google.vertex.endpoints.container = lambda project, model: Scoring(
        lambda body, kind: (200, b"", kind), lambda: None
    )
    google.clock.per_call = 60
    spec = {"image": "europe-docker.pkg.dev/p/i/serve:1", "artifact": "gs://models/churn", "steps": [20, 100]}
    for version, share in (("1", 100), ("2", 20)):
        rollout = VertexRollout(
            name="churn", model="churn", version=version, spec=spec, project="fake-project", region="europe-west1"
        ).connect(GoogleHookClients("google_cloud_default", "europe-west1"))
        made = rollout.submit()
        assert any(rollout.status(made).message in ("", f"{share} percent") for _ in range(50))
        if version == "1":
            rollout.complete()

    def run(task, retries=0):
        file = dag_project.write("churn_endpoint.py", DAG_FILE.format(task=task, retries=retries))
        return dag_project.run(file, "churn_endpoint")

    return run


def traffic(google):
    [endpoint] = google.vertex.endpoints.endpoints.values()
    return sorted(endpoint.traffic.values())


def test_traffic_plan_sensor_and_removal_on_vertex(run_on_vertex, google):
    common = f"task_id='t', endpoint='churn', {ON_VERTEX}"
    set_traffic = f"SetTrafficOperator({common}, poll_interval=0.01, weights={{weights}})"
    sensor = f"EndpointSensor({common}, version={{version!r}}, poke_interval=0.01, timeout=1)"
    assert traffic(google) == [20, 80]
    plan = set_traffic.format(weights={"1": 1, "2": 2}).replace("poll_interval=0.01", "plan=True")
    assert run_on_vertex(plan).results["t"]["calls"] == ["aiplatform:update_endpoint"]
    assert run_on_vertex(set_traffic.format(weights={"3": 1}), retries=2).state == "failed"
    assert run_on_vertex(sensor.format(version="2")).state == "failed"
    assert traffic(google) == [20, 80]
    google.faults.add("drop_after", "UpdateEndpoint")
    assert run_on_vertex(set_traffic.format(weights={"1": 1, "2": 2}), retries=1).results["t"]["weights"] == {
        "1": 33, "2": 67
    }  # fmt: skip
    assert run_on_vertex(set_traffic.format(weights={"2": 1})).state == "success"
    for version in ("2", ""):
        assert run_on_vertex(sensor.format(version=version)).state == "success"
    delete = f"DeleteEndpointOperator({common}, poll_interval=0.01)"
    assert run_on_vertex(delete.replace("poll_interval=0.01", "plan=True")).results["t"]["calls"] == [
        f"aiplatform:{name}"
        for name in (
            "update_endpoint",
            *["undeploy_model"] * 2,
            "delete_endpoint",
            "delete_model_version",
            "delete_model",
        )
    ]
    google.faults.add("drop_after", "UndeployModel")
    result = run_on_vertex(delete, retries=1)
    assert result.state == "success" and result.results["t"]["deleted"] == ["churn", "churn@1", "churn@2"]
    assert (google.vertex.endpoints.endpoints, google.vertex.models.models, google.bill.running()) == ({}, {}, [])
    assert run_on_vertex(delete).state == "success"
    assert run_on_vertex(delete.replace("region='europe-west1'", "region=''"), retries=2).state == "failed"


def test_versions_of_an_endpoint_on_vertex_that_is_gone_are_found_and_deleted(run_on_vertex, google):
    """Those that another endpoint serves, and those of nobody, stay."""
    from google.cloud import aiplatform_v1

    endpoints, models = google.vertex.endpoints, google.vertex.models
    [endpoint] = endpoints.endpoints.values()
    for key in list(endpoint.deployed):
        endpoint.deployed.pop(key).closed = google.clock.now()
    endpoints.endpoints.clear()
    [model] = models.models.values()
    stranger = aiplatform_v1.Model(display_name="churn", artifact_uri="gs://models/churn")
    models.upload_model(aiplatform_v1.UploadModelRequest(parent=model.name.rpartition("/models/")[0], model=stranger,
                                                         parent_model=model.name))  # fmt: skip
    google.clock.advance(100)
    delete = f"DeleteEndpointOperator(task_id='t', endpoint='churn', {ON_VERTEX}, poll_interval=0.01)"
    result = run_on_vertex(delete)
    assert result.results["t"]["deleted"] == ["churn", "churn@1", "churn@2"]
    assert list(model.versions) == [3]
