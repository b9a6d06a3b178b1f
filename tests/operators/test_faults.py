"""Each fault, met by the official operator and by ours: what the task says, and what it costs.

``scripts/faults.sh`` writes the first table of docs/faults.md from these runs.
"""

from dataclasses import dataclass

import pytest

from tests import faults

#: botocore's patience with a call, set by AWS_MAX_ATTEMPTS; its default of 5 takes longer and shows the same.
BOTOCORE_TRIES = 2
REQUEST = {
    "TrainingJobName": "churn-train",
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1", "TrainingInputMode": "File"
    },
    "RoleArn": "arn:aws:iam::123456789012:role/sagemaker",
    "OutputDataConfig": {"S3OutputPath": "s3://models/churn"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
}  # fmt: skip
SPOT = {
    "EnableManagedSpotTraining": True, "CheckpointConfig": {"S3Uri": "s3://models/checkpoints"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
}  # fmt: skip
TRAIN = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.amazon.aws.operators.sagemaker import SageMakerTrainingOperator
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator

with DAG("official", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    SageMakerTrainingOperator(task_id="run", config={request}, check_interval={interval}, print_log=False, {official})
with DAG("ours", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    SageMakerTrainOperator(
        task_id="run", image={request}["AlgorithmSpecification"]["TrainingImage"], role={request}["RoleArn"],
        output_path="s3://models/churn", instances={instances}, poll_interval=0.01, {ours}
    )
"""


@dataclass(frozen=True)
class Case:
    """A fault and how it is met.

    :param title: of the row.
    :param faults: given to the fake before the run.
    :param official: state, jobs created and jobs left running of the official operator.
    :param ours: the same of ours.
    """

    title: str
    faults: tuple[dict, ...]
    official: tuple[str, int, int]
    ours: tuple[str, int, int]
    retries: int = 0
    spot: bool = False
    instances: tuple[str, ...] = ("ml.m5.xlarge",)
    both: str = ""
    still: bool = False
    official_more: str = ""
    ours_more: str = ""
    interval: float = 0.01


def _creation(kind):
    return {"kind": kind, "operation": "CreateTrainingJob", "times": BOTOCORE_TRIES}


POLLS_FAIL = {"kind": "server_error", "operation": "DescribeTrainingJob", "skip": 3, "times": BOTOCORE_TRIES}
CASES = [
    Case("no fault", (), ("success", 1, 0), ("success", 1, 0)),
    Case(
        "spot machines taken away twice, with checkpoints", ({"kind": "interrupt", "count": 2},),
        ("success", 1, 0), ("success", 1, 0), spot=True,
    ),
    Case(
        "the reply to the creation is lost; botocore repeats it and meets its own job",
        ({"kind": "drop_after", "operation": "CreateTrainingJob"},), ("success", 2, 0), ("success", 1, 0), retries=1,
    ),
    Case(
        "the API fails while it waits, longer than botocore is patient", (POLLS_FAIL,),
        ("success", 2, 0), ("success", 1, 0), retries=1,
    ),
    Case(
        "the look whether the job exists is throttled",
        ({"kind": "throttle", "operation": "DescribeTrainingJob", "times": BOTOCORE_TRIES},),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the task is killed while it waits (execution_timeout), and retried", (),
        ("failed", 2, 2), ("failed", 2, 0), retries=1, still=True, both="execution_timeout=timedelta(seconds=6)",
        interval=0.2,
    ),
    Case(
        "it waits in the triggerer longer than it may", (), ("failed", 1, 1), ("failed", 1, 0), still=True,
        official_more="deferrable=True, max_attempts=2", ours_more="deferrable=True, deadline=timedelta(seconds=2)",
        interval=1,
    ),
    Case(
        "there is no capacity for the machine type", ({"kind": "no_capacity", "operation": "CreateTrainingJob"},),
        ("failed", 1, 0), ("success", 2, 0), instances=("ml.m5.xlarge", "ml.m5.2xlarge"),
    ),
    Case(
        "the permission is missing", ({"kind": "denied", "operation": "CreateTrainingJob", "times": 9},),
        ("failed", 0, 0), ("failed", 0, 0), retries=2,
    ),
    Case(
        "the token expires while it waits", ({"kind": "expired_token", "operation": "DescribeTrainingJob", "skip": 3},),
        ("failed", 1, 1), ("success", 1, 0),
    ),
    Case(
        "the quota of the machine type is reached", ({"kind": "quota", "operation": "CreateTrainingJob"},),
        ("failed", 0, 0), ("success", 1, 0), instances=("ml.m5.xlarge", "ml.m5.2xlarge"),
    ),
    Case(
        "the creation is throttled, longer than botocore is patient", (_creation("throttle"),),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the creation fails inside AWS (status 500), longer than botocore is patient", (_creation("server_error"),),
        ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the connection is lost before the creation has an effect, longer than botocore is patient",
        (_creation("drop_before"),), ("failed", 0, 0), ("success", 1, 0),
    ),
    Case(
        "the machines come half an hour late", ({"kind": "slow", "operation": "CreateTrainingJob"},),
        ("success", 1, 0), ("success", 1, 0),
    ),
]  # fmt: skip


@pytest.fixture
def patient(cloud, monkeypatch):
    """Clients that try a call twice."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(BOTOCORE_TRIES))
    return cloud


def measure(cloud, result):
    """State, jobs created and jobs left running; and the cell of the table."""
    cloud.clock.per_call = 0
    cloud.clock.advance(300)
    found = (result.state, len(cloud.sagemaker.jobs), len(cloud.bill.running()))
    tries = cloud.calls.count("CreateTrainingJob")
    return found, faults.jobs_cell(*found, cloud.bill.total(), result.results.get("run"), tries)


@pytest.mark.parametrize("who", ["official", "ours"])
@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_training(dag_project, patient, case, who):
    cloud = patient
    for fault in case.faults:
        cloud.faults.add(**fault)
    if case.still:
        cloud.clock.per_call = 0
    request = REQUEST | (SPOT if case.spot else {})
    spot = "spot=True, checkpoint='s3://models/checkpoints', options={'max_runtime': 3600}," if case.spot else ""
    text = TRAIN.format(
        retries=case.retries, request=request, instances=list(case.instances), interval=case.interval,
        official=f"{case.official_more or ''}{',' if case.official_more else ''}{case.both}",
        ours=f"{spot}{case.ours_more}{',' if case.ours_more else ''}{case.both}",
    )  # fmt: skip
    found, words = measure(cloud, dag_project.run(dag_project.write("faults.py", text), who))
    faults.note("sagemaker", CASES.index(case), case.title, who, words)
    assert found == getattr(case, who)


ENDPOINT = """
from airflow.sdk import DAG
from airflow.providers.amazon.aws.operators.sagemaker import SageMakerEndpointOperator
from airflow_provider_sml.operators.deployment import DeployModelOperator

image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1"
role = "arn:aws:iam::123456789012:role/sagemaker"
with DAG("official"):
    SageMakerEndpointOperator(
        task_id="run", operation={operation!r}, check_interval=0.01, deferrable={deferrable},
        config={{
            "Model": {{"ModelName": {name!r}, "ExecutionRoleArn": role, "PrimaryContainer": {{"Image": image}}}},
            "EndpointConfig": {{"EndpointConfigName": {name!r}, "ProductionVariants": [{{
                "VariantName": "champion", "ModelName": {name!r}, "InstanceType": "ml.m5.large",
                "InitialInstanceCount": 1,
            }}]}},
            "Endpoint": {{"EndpointName": "toy", "EndpointConfigName": {name!r}}},
        }},
    )
with DAG("ours"):
    DeployModelOperator(
        task_id="run", name="toy", version={version!r}, target="sagemaker", mlflow={root!r} + "/mlflow",
        endpoints={root!r} + "/endpoints", parity_rows=5, poll_interval=0.01, deferrable={deferrable},
        settings={{"artifacts": "s3://models/toy", "image": image, "role": role, "instance": "ml.m5.large"}},
    )
"""


@pytest.mark.parametrize("who", ["official", "ours"])
@pytest.mark.parametrize("deferrable", [False, True], ids=["in a worker", "in the triggerer"])
def test_an_endpoint_update_that_is_rolled_back(dag_project, patient, toy, who, deferrable):
    cloud = patient

    def run(version):
        text = ENDPOINT.format(
            operation="update" if cloud.sagemaker.endpoints else "create", name=f"toy-{version}", version=version,
            root=str(toy), deferrable=deferrable,
        )  # fmt: skip
        return dag_project.run(dag_project.write("faults.py", text), who)

    assert run("1").state == "success"
    before = cloud.sagemaker.endpoint("toy").fleet.config
    cloud.faults.add("roll_back", "UpdateEndpoint")
    result = run("2")
    cloud.clock.advance(3000)
    assert cloud.sagemaker.endpoint("toy").fleet.config == before
    left = sorted(set(cloud.sagemaker.configs) - {before})
    colour = {"success": "green", "failed": "red"}[result.state]
    said = "; the old version serves" + (f"; left behind: {', '.join(left)}" if left else "; nothing is left behind")
    title = f"an endpoint update is rolled back, waited for {'in the triggerer' if deferrable else 'in a worker'}"
    faults.note("sagemaker", faults.ENDPOINTS + int(deferrable), title, who, f"{colour}{said}")
    assert (result.state, len(left)) == (("success", 1) if who == "official" else ("failed", 0))
