"""Traffic, removal and the sensor of endpoints, through ``dag.test()`` against the fake SageMaker."""

import pytest

from airflow_provider_sml.cloud.sagemaker_endpoint import SageMakerRollout
from airflow_provider_sml.hooks.clients import AwsHookClients

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
    if operation is None:
        assert not any("-v2-" in name for name in (*cloud.sagemaker.configs, *cloud.sagemaker.models))


def test_deleting_what_is_gone_is_well(run, cloud):
    assert run(DELETE).state == "success"


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
