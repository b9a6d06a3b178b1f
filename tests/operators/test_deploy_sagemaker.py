"""Deployments to SageMaker through ``dag.test()``: a real model scores behind the fake endpoint, MLflow is real."""

import sqlite3

import boto3
import pytest

from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.testing.aws.containers import ScoringContainer, bundle_container
from tests.toy import make_other, register

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.deployment import (
    DeployModelOperator, PromoteModelOperator, RollbackModelOperator,
)

with DAG("toy_deploy", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    {operator}(
        task_id="deploy", name="toy", mlflow={root!r} + "/mlflow", poll_interval=0.01,
        endpoints={root!r} + "/endpoints", parity_rows=30,
        settings={{
            "artifacts": "s3://models/toy", "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1",
            "role": "arn:aws:iam::123456789012:role/sagemaker", "wait": 60,
        }} | {settings},
        **({{"target": "sagemaker"}} | dict({more})),
    )
"""


@pytest.fixture
def registry(toy):
    return Registry(str(toy / "mlflow"))


@pytest.fixture
def deploy(dag_project, cloud, toy):
    def deploy(version="", operator="DeployModelOperator", retries=0, more="", **settings):
        if "serverless" not in settings:
            settings.setdefault("instance", "ml.m5.large")
        text = DAG_FILE.format(
            operator=operator, retries=retries, root=str(toy), settings=settings,
            more=f"version={version!r}, {more}" if version else more,
        )  # fmt: skip
        return dag_project.run(dag_project.write("toy_deploy.py", text), "toy_deploy")

    return deploy


def champion(registry):
    found = registry.version("toy", alias=CHAMPION)
    return found.version if found else None


def config(cloud):
    return cloud.sagemaker.endpoint("toy").fleet.config


def test_a_classifier_of_scikit_learn_is_served_by_the_same_image(deploy, cloud, registry, toy):
    version = register(toy, make_other("sklearn"), registry)
    result = deploy(version)
    assert (result.state, result.results["deploy"]["parity_rows"], champion(registry)) == ("success", 30, version)


def test_a_version_is_deployed_checked_and_made_champion(deploy, cloud, registry):
    """By real scoring processes, on the archives that they get on SageMaker."""
    cloud.runtime.container = ScoringContainer
    result = deploy("1")
    assert result.state == "success"
    made = result.results["deploy"]
    assert (made["target"], made["version"], made["parity_rows"]) == ("sagemaker", "1", 30)
    assert champion(registry) == "1"
    assert config(cloud).startswith("toy-v1-")
    assert deploy("2", more="deferrable=True").state == "success"
    assert champion(registry) == "2"
    assert config(cloud).startswith("toy-v2-")
    assert len(cloud.bill.running()) == 1


def packages(cloud):
    """The approval of each version's package."""
    return {
        package["CustomerMetadataProperties"]["version"]: package["ModelApprovalStatus"]
        for package in cloud.sagemaker.packages.values()
    }


def test_a_champion_is_an_approved_model_package_once_and_one_taken_back_a_rejected_one(deploy, cloud, registry):
    group = {"model_package_group": "toys"}
    plan = deploy("1", more="plan=True", **group).results["deploy"]["calls"]
    assert plan[1:3] == ["sagemaker:create_model_package_group", "sagemaker:create_model_package"]
    assert plan[-1] == "sagemaker:update_model_package" and cloud.sagemaker.packages == {}
    for operation in ("CreateModelPackageGroup", "CreateModelPackage"):
        cloud.faults.add("drop_after", operation)
    assert deploy("1", retries=2, **group).state == "success"
    cloud.faults.add("roll_back", "UpdateEndpoint")
    assert deploy("2", more="deferrable=True", **group).state == "failed"
    assert packages(cloud) == {"1": "Approved", "2": "Rejected"}
    package, other = cloud.sagemaker.packages.values()
    assert "serves config" in other["ApprovalDescription"]
    container = package["InferenceSpecification"]["Containers"][0]
    assert container["ModelDataUrl"] == cloud.sagemaker.models[config(cloud)]["PrimaryContainer"]["ModelDataUrl"]
    assert deploy("2", **group).state == "success"
    assert packages(cloud) == {"1": "Approved", "2": "Approved"}
    assert deploy(operator="RollbackModelOperator", **group).state == "success"
    assert packages(cloud) == {"1": "Approved", "2": "Rejected"}


def test_an_alias_that_could_not_follow_is_moved_by_the_next_deployment(deploy, cloud, registry, toy):
    """MLflow's database refuses the alias after the roll-out has ended."""
    assert deploy("1").state == "success"
    refusal = "BEGIN SELECT RAISE(ABORT, 'no'); END"
    with sqlite3.connect(toy / "mlflow" / "mlflow.db") as database:
        for name, event in (("added", "INSERT"), ("changed", "UPDATE")):
            database.execute(f"CREATE TRIGGER {name} BEFORE {event} ON registered_model_aliases {refusal}")
    database.close()
    assert deploy("2").state == "failed"
    assert config(cloud).startswith("toy-v2-") and champion(registry) == "1"
    with sqlite3.connect(toy / "mlflow" / "mlflow.db") as database:
        for name in ("added", "changed"):
            database.execute(f"DROP TRIGGER {name}")
    database.close()
    assert deploy("3").state == "success"
    assert config(cloud).startswith("toy-v3-") and champion(registry) == "3"
    lines = [line for line in registry.history("toy").lines if line.alias == CHAMPION]
    assert [(line.before, line.after) for line in lines] == [("", "1"), ("1", "2"), ("2", "3")]
    assert lines[1].evidence["settled"] and registry.verify("toy") == []


def test_deploying_again_changes_nothing(deploy, cloud, registry):
    deploy("1")
    before = cloud.calls.count("CreateEndpoint"), cloud.calls.count("UpdateEndpoint")
    assert deploy("1").state == "success"
    assert (cloud.calls.count("CreateEndpoint"), cloud.calls.count("UpdateEndpoint")) == before


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_roll_back_ends_red_and_the_champion_serves_on(deploy, cloud, registry, deferrable, capfd):
    deploy("1")
    serving = config(cloud)
    cloud.faults.add("roll_back", "UpdateEndpoint")
    result = deploy("2", retries=2, more=f"deferrable={deferrable}")
    assert result.state == "failed"
    said = capfd.readouterr().out
    assert "DeploymentRolledBack" in said and f"serves config {serving} again" in said
    assert champion(registry) == "1"
    assert config(cloud) == serving
    assert set(cloud.sagemaker.configs) == set(cloud.sagemaker.models) == {serving}
    assert len(cloud.bill.running()) == 1
    assert cloud.calls.count("UpdateEndpoint") == 1


def test_a_failed_parity_takes_the_version_back(deploy, cloud, registry, monkeypatch, capfd):
    """The container answers with other scores than training did, as a wrong image would."""
    deploy("1")
    serving = config(cloud)

    def wrong(account, model):
        answer = bundle_container(account, model)
        if "-v2-" not in model["ModelName"]:
            return answer
        return lambda body, kind, accept: (200, b'{"predictions": [%s]}' % b",".join([b"0.5"] * 30), kind)

    cloud.runtime.container = wrong
    monkeypatch.setattr("airflow_provider_sml.cloud.sagemaker_endpoint.POLL_SECONDS", 0.01)
    assert deploy("2", retries=2).state == "failed"
    said = capfd.readouterr().out
    assert "was taken back" in said and f"serves {serving} again" in said
    assert champion(registry) == "1"
    assert config(cloud) == serving
    assert set(cloud.sagemaker.configs) == {serving}
    assert len(cloud.bill.running()) == 1


@pytest.mark.parametrize("operation", ["CreateModel", "CreateEndpointConfig", "UpdateEndpoint", "DescribeEndpoint"])
def test_a_crash_at_a_step_is_mended_by_a_retry(deploy, cloud, registry, operation):
    deploy("1")
    cloud.faults.add("drop_after", operation, times=2)
    assert deploy("2", retries=2).state == "success"
    assert champion(registry) == "2"
    assert len(cloud.sagemaker.models) == 2
    assert len(cloud.bill.running()) == 1


def live(registry):
    """What the page of the model says is live."""
    from airflow_provider_sml.ui.registered import Registered, Version

    rows = registry.described("name = 'toy'")
    return Registered(versions=[Version(row["version"], row["created"], row["tags"]) for row in rows]).deployments()


def test_an_a_b_test_gives_no_alias_and_is_promoted_then(deploy, cloud, registry):
    deploy("1")
    result = deploy("2", mode="ab", percent=20)
    assert result.state == "success", result.tasks
    assert result.results["deploy"]["parity_rows"] == 30
    assert champion(registry) == "1"
    assert [(one.version, one.percent) for one in live(registry)] == [("1", 80.0), ("2", 20.0)]
    assert len(cloud.bill.running()) == 2
    assert deploy("2", operator="PromoteModelOperator", mode="ab", percent=20).state == "success"
    assert champion(registry) == "2"
    assert [(one.version, one.percent, one.machine) for one in live(registry)] == [("2", 100.0, "ml.m5.large")]
    assert len(cloud.bill.running()) == 1


CHANGE_FILE = """
from airflow.sdk import DAG
from airflow_provider_sml.operators.endpoints import DeleteEndpointOperator, SetTrafficOperator

with DAG("toy_change"):
    {operator}(task_id="change", endpoint="toy", model="toy", mlflow={mlflow!r}, poll_interval=0.01, {more})
"""


def test_changes_of_an_endpoint_stand_on_its_versions(deploy, dag_project, cloud, registry, toy):
    def change(operator, more="", mlflow=str(toy / "mlflow")):
        text = CHANGE_FILE.format(operator=operator, more=more, mlflow=mlflow)
        return dag_project.run(dag_project.write("toy_change.py", text), "toy_change").state

    deploy("1")
    deploy("2", mode="ab", percent=20)
    weights = "weights={'champion': 3, 'challenger': 1}"
    assert change("SetTrafficOperator", weights) == "success"
    assert [(one.version, one.percent) for one in live(registry)] == [("1", 75.0), ("2", 25.0)]
    assert change("DeleteEndpointOperator") == "success"
    assert live(registry) == [] and cloud.bill.running() == []
    assert deploy("1").state == "success", "its alias stays where it is"
    assert [(one.version, one.percent) for one in live(registry)] == [("1", 100.0)]


def test_a_shadow_is_deployed_without_a_question_to_it(deploy, cloud, registry):
    deploy("1")
    result = deploy("2", mode="shadow")
    assert (result.state, result.results["deploy"]["parity_rows"]) == ("success", 0)
    assert champion(registry) == "1"


def test_going_back_takes_alias_and_endpoint_together(deploy, cloud, registry):
    for version in ("1", "2", "3"):
        assert deploy(version).state == "success"
    result = deploy(operator="RollbackModelOperator", retries=1)
    assert (result.state, result.results["deploy"]["version"]) == ("success", "2")
    assert champion(registry) == "2" and config(cloud).startswith("toy-v2-")
    planned = deploy(operator="RollbackModelOperator", more="plan=True").results["deploy"]
    assert "sagemaker:update_endpoint" in planned["calls"]
    assert champion(registry) == "2" and config(cloud).startswith("toy-v2-"), "a plan changes nothing"
    assert "withdrawn_by" not in {
        key for key, value in registry.tags(registry.version("toy", version="2")).items() if value
    }
    assert deploy(operator="RollbackModelOperator").results["deploy"]["version"] == "1"
    assert deploy(operator="RollbackModelOperator").state == "failed"
    assert champion(registry) == "1"


def test_serverless_and_asynchronous_endpoints_pass_parity(deploy, cloud, registry):
    boto3.client("s3").create_bucket(Bucket="answers")
    assert deploy("1", serverless={"memory_mb": 2048, "concurrency": 5}).state == "success"
    asynchronous = {"output": "s3://answers/toy"}
    result = deploy("2", more="endpoint='slow'", asynchronous=asynchronous, scaling={"min": 0, "max": 2})
    assert (result.state, result.results["deploy"]["parity_rows"]) == ("success", 30)
    assert cloud.autoscaling.targets["endpoint/slow/variant/champion"]["MinCapacity"] == 0
    cloud.clock.advance(10_000)
    assert cloud.bill.running() == []


def test_sagemaker_s_own_xgboost_image_serves_the_booster_and_passes_parity(deploy, cloud, registry):
    image = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:3.2-0"
    result = deploy("1", image=image, container="xgboost")
    assert (result.state, result.results["deploy"]["parity_rows"]) == ("success", 30)
    model = cloud.sagemaker.models[config(cloud)]["PrimaryContainer"]
    assert model["ModelDataUrl"].endswith("/xgboost/model.tar.gz") and model["Environment"] == {}
    assert deploy("2", image=image, container="xgbost").state == "failed"
    assert champion(registry) == "1"


def test_spot_is_refused_with_the_alternatives(deploy, cloud, capfd):
    assert deploy("1", spot=True, retries=2).state == "failed"
    said = capfd.readouterr().out
    assert "cannot run on spot" in said and "serverless" in said
    assert cloud.calls == []


def test_the_plan_shows_the_calls_and_changes_nothing(deploy, cloud, registry, capfd):
    result = deploy("1", more="plan=True", scaling={"min": 1, "max": 3})
    assert result.state == "success"
    assert result.results["deploy"]["calls"] == [
        "s3:put_object", "sagemaker:create_model", "sagemaker:create_endpoint_config", "sagemaker:create_endpoint",
        "application-autoscaling:register_scalable_target", "application-autoscaling:put_scaling_policy",
    ]  # fmt: skip
    assert result.results["deploy"]["cost"] == "0.1150 USD per hour while it serves"
    assert all(call.operation.startswith("Describe") for call in cloud.calls)
    assert champion(registry) is None
    assert '"EndpointConfigName": "toy-v1-' in capfd.readouterr().out


def test_a_target_that_there_is_not_is_named(deploy, capfd):
    assert deploy("1", more="target='sagemkaer'").state == "failed"
    assert "sagemkaer" in capfd.readouterr().out
