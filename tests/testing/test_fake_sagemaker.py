"""The fake SageMaker as a plain boto3 script sees it: states, times, refusals, faults and the bill."""

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

ROLE = "arn:aws:iam::123456789012:role/sagemaker"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"


def training(name="churn-1", **changes):
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://models/churn"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
    return request | changes


SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
    "CheckpointConfig": {"S3Uri": "s3://models/checkpoints"},
}


@pytest.fixture
def sagemaker(fake_aws):
    return boto3.client("sagemaker", config=Config(retries={"total_max_attempts": 1}))


def code(error):
    return error.value.response["Error"]["Code"]


def serve(client, endpoint="churn", version="v1", **update):
    client.create_model(
        ModelName=f"churn-{version}", ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "s3://models/churn/model.tar.gz"},
    )  # fmt: skip
    variant = {
        "VariantName": "main", "ModelName": f"churn-{version}", "InstanceType": "ml.m5.large", "InitialInstanceCount": 2
    }  # fmt: skip
    client.create_endpoint_config(EndpointConfigName=f"churn-{version}", ProductionVariants=[variant])
    if version == "v1":
        client.create_endpoint(EndpointName=endpoint, EndpointConfigName="churn-v1")
    else:
        client.update_endpoint(EndpointName=endpoint, EndpointConfigName=f"churn-{version}", **update)


def canary(*alarms):
    return {
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "CANARY", "WaitIntervalInSeconds": 300,
                    "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
                },
                "TerminationWaitInSeconds": 60,
            },
            **({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in alarms]}} if alarms else {}),
        }
    }  # fmt: skip


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_training_job_goes_through_its_states_by_the_clock(fake_aws, sagemaker):
    sagemaker.create_training_job(**training())
    seen = []
    for _ in range(40):
        found = sagemaker.describe_training_job(TrainingJobName="churn-1")
        if found["SecondaryStatus"] not in seen:
            seen.append(found["SecondaryStatus"])
        fake_aws.clock.advance(20)
    assert seen == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    assert found["TrainingJobStatus"] == "Completed"
    assert found["TrainingTimeInSeconds"] == found["BillableTimeInSeconds"] == 650
    assert found["ModelArtifacts"]["S3ModelArtifacts"] == "s3://models/churn/churn-1/output/model.tar.gz"
    assert fake_aws.bill.total() == pytest.approx(650 / 3600 * 0.23, abs=1e-3)
    assert fake_aws.bill.running() == []


def test_spot_is_interrupted_goes_on_from_its_checkpoint_and_is_cheaper(fake_aws, sagemaker):
    fake_aws.faults.add("interrupt", "CreateTrainingJob", count=2)
    sagemaker.create_training_job(**training(**SPOT))
    fake_aws.clock.advance(3000)
    found = sagemaker.describe_training_job(TrainingJobName="churn-1")
    states = [item["Status"] for item in found["SecondaryStatusTransitions"]]
    assert states.count("Interrupted") == states.count("Restarting") == 2
    assert found["TrainingJobStatus"] == "Completed"
    # twice half a minute of training is lost, and twice the image is loaded again
    assert found["TrainingTimeInSeconds"] == 650 + 2 * 30 + 2 * 30
    assert found["BillableTimeInSeconds"] == round(0.3 * found["TrainingTimeInSeconds"])


def test_without_a_checkpoint_an_interruption_costs_all_that_was_trained(fake_aws, sagemaker):
    fake_aws.faults.add("interrupt")
    spot = {key: value for key, value in SPOT.items() if key != "CheckpointConfig"}
    sagemaker.create_training_job(**training(**spot))
    fake_aws.clock.advance(3000)
    found = sagemaker.describe_training_job(TrainingJobName="churn-1")
    assert found["TrainingTimeInSeconds"] == 650 + 300 + 30


@pytest.mark.parametrize(
    ("seconds", "stopping", "state"),
    [
        (5000, {"MaxRuntimeInSeconds": 3600}, "MaxRuntimeExceeded"),
        (3000, {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 3600}, "MaxWaitTimeExceeded"),
    ],
)
def test_a_job_is_stopped_when_it_takes_too_long(fake_aws, sagemaker, seconds, stopping, state):
    fake_aws.sagemaker.training_seconds = seconds
    fake_aws.faults.add("slow", seconds=900)
    spot = {**SPOT, "StoppingCondition": stopping} if "MaxWaitTimeInSeconds" in stopping else {}
    sagemaker.create_training_job(**training(**(spot or {"StoppingCondition": stopping})))
    fake_aws.clock.advance(20_000)
    found = sagemaker.describe_training_job(TrainingJobName="churn-1")
    assert (found["TrainingJobStatus"], found["SecondaryStatus"]) == ("Stopped", state)


def test_no_capacity_fails_with_the_reason_that_sagemaker_gives(fake_aws, sagemaker):
    fake_aws.faults.add("no_capacity", "CreateTrainingJob")
    sagemaker.create_training_job(**training())
    fake_aws.clock.advance(3000)
    assert sagemaker.describe_training_job(TrainingJobName="churn-1")["FailureReason"].startswith("CapacityError")


def test_stopping_a_job(fake_aws, sagemaker):
    sagemaker.create_training_job(**training())
    fake_aws.clock.advance(200)
    sagemaker.stop_training_job(TrainingJobName="churn-1")
    assert sagemaker.describe_training_job(TrainingJobName="churn-1")["TrainingJobStatus"] == "Stopping"
    fake_aws.clock.advance(200)
    assert sagemaker.describe_training_job(TrainingJobName="churn-1")["TrainingJobStatus"] == "Stopped"
    with pytest.raises(botocore.exceptions.ClientError, match="is in status Stopped"):
        sagemaker.stop_training_job(TrainingJobName="churn-1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"TrainingJobName": "no_underscores"}, "regular expression pattern"),
        ({"ResourceConfig": {"InstanceType": "ml.m5.tiny", "InstanceCount": 1, "VolumeSizeInGB": 1}}, "enum value set"),
        ({"EnableManagedSpotTraining": True}, "MaxWaitTimeInSeconds"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}}, "EnableManagedSpotTraining"),
        ({"HyperParameters": {"x" * 300: "1"}}, "length less than or equal to 256"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "File"}}, "algorithm name or a training image"),
    ],
)
def test_a_request_that_sagemaker_refuses_is_refused(fake_aws, sagemaker, changes, said):
    with pytest.raises(botocore.exceptions.ClientError, match=said) as error:
        sagemaker.create_training_job(**training(**changes))
    assert code(error) == "ValidationException"
    assert fake_aws.sagemaker.jobs == {}


def test_a_name_is_taken_for_ever(fake_aws, sagemaker):
    sagemaker.create_training_job(**training())
    with pytest.raises(botocore.exceptions.ClientError) as error:
        sagemaker.create_training_job(**training())
    assert code(error) == "ResourceInUse"


def test_what_is_not_implemented_says_so_by_name(sagemaker):
    with pytest.raises(botocore.exceptions.ClientError, match="does not implement sagemaker:ListHubs"):
        sagemaker.list_hubs()


# --- faults of calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("throttle", "ThrottlingException"),
        ("server_error", "InternalFailure"),
        ("denied", "AccessDeniedException"),
        ("expired_token", "ExpiredTokenException"),
        ("quota", "ResourceLimitExceeded"),
    ],
)
def test_a_refused_call_has_no_effect_and_the_next_one_passes(fake_aws, sagemaker, kind, wanted):
    fake_aws.faults.add(kind, "CreateTrainingJob")
    with pytest.raises(botocore.exceptions.ClientError) as error:
        sagemaker.create_training_job(**training())
    assert code(error) == wanted
    assert fake_aws.sagemaker.jobs == {}
    sagemaker.create_training_job(**training())
    assert [call.error for call in fake_aws.calls.of("CreateTrainingJob")] == [wanted, ""]


@pytest.mark.parametrize(("kind", "jobs"), [("drop_before", 0), ("drop_after", 1)])
def test_a_connection_is_lost_before_or_after_the_effect(fake_aws, sagemaker, kind, jobs):
    fake_aws.faults.add(kind, "CreateTrainingJob")
    with pytest.raises((botocore.exceptions.ConnectionClosedError, botocore.exceptions.EndpointConnectionError)):
        sagemaker.create_training_job(**training())
    assert len(fake_aws.sagemaker.jobs) == jobs


def test_botocore_that_lost_a_reply_meets_its_own_job(fake_aws):
    fake_aws.faults.add("drop_after", "CreateTrainingJob")
    patient = boto3.client("sagemaker", config=Config(retries={"total_max_attempts": 2}))
    with pytest.raises(botocore.exceptions.ClientError) as error:
        patient.create_training_job(**training())
    assert code(error) == "ResourceInUse"


def test_a_fault_meets_only_what_it_names(fake_aws, sagemaker):
    fake_aws.faults.add("throttle", "Create*", name="other-*")
    sagemaker.create_training_job(**training())
    assert len(fake_aws.faults.waiting()) == 1
    with pytest.raises(ValueError, match="there is no fault 'flood'"):
        fake_aws.faults.add("flood")


# --- endpoints --------------------------------------------------------------------------------------------------------


def status(client):
    found = client.describe_endpoint(EndpointName="churn")
    return found["EndpointStatus"], found["EndpointConfigName"]


def test_an_endpoint_is_made_updated_and_deleted(fake_aws, sagemaker):
    serve(sagemaker)
    assert status(sagemaker) == ("Creating", "churn-v1")
    with pytest.raises(botocore.exceptions.ClientError, match="Cannot update in-progress endpoint"):
        sagemaker.delete_endpoint(EndpointName="churn")
    fake_aws.clock.advance(300)
    assert status(sagemaker) == ("InService", "churn-v1")
    serve(sagemaker, version="v2")
    assert status(sagemaker) == ("Updating", "churn-v1")
    fake_aws.clock.advance(600)
    assert status(sagemaker) == ("InService", "churn-v2")
    sagemaker.delete_endpoint(EndpointName="churn")
    fake_aws.clock.advance(60)
    with pytest.raises(botocore.exceptions.ClientError, match="Could not find endpoint"):
        status(sagemaker)
    assert fake_aws.bill.running() == []
    billed = {line.what: line.hours for line in fake_aws.bill.lines()}
    assert billed["endpoint ml.m5.large, churn-v1"] == pytest.approx(2 * 270 / 3600, abs=1e-3)


def test_a_roll_back_ends_in_service_on_the_old_configuration(fake_aws, sagemaker):
    alarm = {
        "AlarmName": "churn-5xx", "EvaluationPeriods": 1, "ComparisonOperator": "GreaterThanThreshold", "Threshold": 1.0
    }  # fmt: skip
    boto3.client("cloudwatch").put_metric_alarm(**alarm)
    serve(sagemaker)
    fake_aws.clock.advance(300)
    fake_aws.faults.add("roll_back", "UpdateEndpoint")
    serve(sagemaker, version="v2", **canary("churn-5xx"))
    fake_aws.clock.advance(250)
    assert sagemaker.describe_endpoint(EndpointName="churn")["PendingDeploymentSummary"] == {
        "EndpointConfigName": "churn-v2",
        "StartTime": sagemaker.describe_endpoint(EndpointName="churn")["PendingDeploymentSummary"]["StartTime"],
    }
    fake_aws.clock.advance(300)
    assert status(sagemaker) == ("RollingBack", "churn-v1")
    fake_aws.clock.advance(300)
    found = sagemaker.describe_endpoint(EndpointName="churn")
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", "churn-v1")
    assert "FailureReason" not in found
    [seen] = boto3.client("cloudwatch").describe_alarms(AlarmNames=["churn-5xx"])["MetricAlarms"]
    assert seen["StateValue"] == "ALARM"
    assert [line.what for line in fake_aws.bill.running()] == ["endpoint ml.m5.large, churn-v1"]


def test_an_alarm_rolls_back_what_is_being_rolled_out(fake_aws, sagemaker):
    watch = boto3.client("cloudwatch")
    watch.put_metric_alarm(AlarmName="churn-5xx", EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold")
    serve(sagemaker)
    fake_aws.clock.advance(300)
    serve(sagemaker, version="v2", **canary("churn-5xx"))
    fake_aws.clock.advance(300)
    watch.set_alarm_state(AlarmName="churn-5xx", StateValue="ALARM", StateReason="test")
    assert status(sagemaker) == ("RollingBack", "churn-v1")
    fake_aws.clock.advance(1000)
    assert status(sagemaker) == ("InService", "churn-v1")


def test_an_endpoint_that_fails_says_why_and_can_be_deleted(fake_aws, sagemaker):
    fake_aws.faults.add("fail", "CreateEndpoint")
    serve(sagemaker)
    fake_aws.clock.advance(300)
    found = sagemaker.describe_endpoint(EndpointName="churn")
    assert found["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in found["FailureReason"]
    sagemaker.delete_endpoint(EndpointName="churn")


def test_requests_follow_the_weights_the_canary_and_the_shadow(fake_aws, sagemaker):
    def container(cloud, model):
        return lambda body, kind, accept: (200, model["ModelName"].encode(), "text/plain")

    fake_aws.runtime.container = container
    runtime = boto3.client("sagemaker-runtime")

    def answers(count):
        found = [runtime.invoke_endpoint(EndpointName="churn", Body=b"{}")["Body"].read() for _ in range(count)]
        return {name: found.count(name) for name in set(found)}

    serve(sagemaker)
    with pytest.raises(botocore.exceptions.ClientError, match="not found"):
        answers(1)
    fake_aws.clock.advance(300)
    assert answers(10) == {b"churn-v1": 10}
    serve(sagemaker, version="v2", **canary())
    fake_aws.clock.advance(300)
    assert answers(50) == {b"churn-v1": 45, b"churn-v2": 5}
    fake_aws.clock.advance(300)
    assert answers(10) == {b"churn-v2": 10}


def test_a_container_that_refuses_is_a_model_error(fake_aws, sagemaker):
    fake_aws.runtime.container = lambda cloud, model: lambda body, kind, accept: (422, b"no such column", "text/plain")
    serve(sagemaker)
    fake_aws.clock.advance(300)
    with pytest.raises(botocore.exceptions.ClientError, match="no such column") as error:
        boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName="churn", Body=b"{}")
    assert code(error) == "ModelError"
    assert error.value.response["OriginalStatusCode"] == 422


def test_an_asynchronous_endpoint_scales_to_zero_and_stops_costing(fake_aws, sagemaker):
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})
    variant = {"VariantName": "main", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(
        EndpointConfigName="m", ProductionVariants=[variant],
        AsyncInferenceConfig={"OutputConfig": {"S3OutputPath": "s3://out/x"}},
    )  # fmt: skip
    sagemaker.create_endpoint(EndpointName="churn", EndpointConfigName="m")
    scaling = boto3.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker", "ResourceId": "endpoint/churn/variant/main",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }  # fmt: skip
    scaling.register_scalable_target(**target, MinCapacity=0, MaxCapacity=3)
    fake_aws.clock.advance(300 + 899)
    variants = sagemaker.describe_endpoint(EndpointName="churn")["ProductionVariants"]
    assert variants[0]["CurrentInstanceCount"] == 1
    fake_aws.clock.advance(86_400)
    variants = sagemaker.describe_endpoint(EndpointName="churn")["ProductionVariants"]
    assert variants[0]["CurrentInstanceCount"] == 0
    assert fake_aws.bill.running() == []
    assert fake_aws.bill.lines()[0].hours == pytest.approx(0.25)


def test_weights_change_and_a_shadow_needs_one_variant_of_each_kind(fake_aws, sagemaker):
    serve(sagemaker)
    fake_aws.clock.advance(300)
    wanted = [{"VariantName": "main", "DesiredWeight": 0.25, "DesiredInstanceCount": 3}]
    sagemaker.update_endpoint_weights_and_capacities(EndpointName="churn", DesiredWeightsAndCapacities=wanted)
    fake_aws.clock.advance(60)
    [variant] = sagemaker.describe_endpoint(EndpointName="churn")["ProductionVariants"]
    assert (variant["CurrentWeight"], variant["CurrentInstanceCount"]) == (0.25, 3)
    one = {"VariantName": "a", "ModelName": "churn-v1", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    with pytest.raises(botocore.exceptions.ClientError, match="exactly one production and one shadow"):
        sagemaker.create_endpoint_config(
            EndpointConfigName="c", ProductionVariants=[one, one | {"VariantName": "b"}], ShadowProductionVariants=[one]
        )


def test_versions_are_registered_approved_and_deployed_as_model_packages(fake_aws, sagemaker):
    tags = [{"Key": "team", "Value": "churn"}]
    group = sagemaker.create_model_package_group(ModelPackageGroupName="churn", Tags=tags)["ModelPackageGroupArn"]
    assert sagemaker.list_tags(ResourceArn=group)["Tags"] == tags
    given = {
        "ModelPackageGroupName": "churn", "CustomerMetadataProperties": {"mlflow": "7"}, "InferenceSpecification": {
            "Containers": [{"Image": IMAGE, "ModelDataUrl": "s3://models/churn/model.tar.gz"}],
            "SupportedContentTypes": ["application/json"], "SupportedResponseMIMETypes": ["application/json"],
        },
    }  # fmt: skip
    arn = sagemaker.create_model_package(**given, ClientToken="a" * 8)["ModelPackageArn"]
    assert sagemaker.create_model_package(**given, ClientToken="a" * 8)["ModelPackageArn"] == arn
    second = sagemaker.create_model_package(**given)["ModelPackageArn"]
    assert (arn[-8:], second[-8:]) == ("/churn/1", "/churn/2")
    model = {"ModelName": "churn-v1", "ExecutionRoleArn": ROLE, "PrimaryContainer": {"ModelPackageName": arn}}
    with pytest.raises(botocore.exceptions.ClientError, match="PendingManualApproval"):
        sagemaker.create_model(**model)
    sagemaker.update_model_package(
        ModelPackageArn=arn, ModelApprovalStatus="Approved", ApprovalDescription="passed its gate",
        CustomerMetadataProperties={"gate": "passed"}, CustomerMetadataPropertiesToRemove=["mlflow"],
    )  # fmt: skip
    found = sagemaker.describe_model_package(ModelPackageName=arn)
    assert (found["ModelPackageVersion"], found["ModelApprovalStatus"]) == (1, "Approved")
    assert found["CustomerMetadataProperties"] == {"gate": "passed"}
    listed = sagemaker.list_model_packages(ModelPackageGroupName="churn")["ModelPackageSummaryList"]
    assert [item["ModelPackageVersion"] for item in listed] == [2, 1]
    approved = sagemaker.list_model_packages(ModelPackageGroupName="churn", ModelApprovalStatus="Approved")
    assert [item["ModelPackageArn"] for item in approved["ModelPackageSummaryList"]] == [arn]
    sagemaker.create_model(**model)
    assert fake_aws.sagemaker.served("churn-v1")["PrimaryContainer"]["ModelDataUrl"] == "s3://models/churn/model.tar.gz"
    with pytest.raises(botocore.exceptions.ClientError) as error:
        sagemaker.delete_model_package_group(ModelPackageGroupName="churn")
    assert code(error) == "ConflictException"
    for package in (arn, second):
        sagemaker.delete_model_package(ModelPackageName=package)
    sagemaker.delete_model_package_group(ModelPackageGroupName="churn")
    assert sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"] == []


def test_every_behaviour_says_where_it_is_from(fake_aws):
    found = fake_aws.behaviours()
    assert {item.basis for item in found} == {"documented", "publicly reported", "assumed"}
    assert all(item.source for item in found)
    assert {"sagemaker", "emr-serverless", "sagemaker-runtime"} <= {item.service for item in found}
