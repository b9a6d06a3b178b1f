"""The official provider's hooks and operators run against the fakes as they are; SageMaker's are in test_faults."""

import asyncio

import boto3
import pytest

EMR_FILE = """
from airflow.sdk import DAG
from airflow.providers.amazon.aws.operators.emr import EmrServerlessStartJobOperator

with DAG("official_emr"):
    EmrServerlessStartJobOperator(
        task_id="run", application_id={application!r}, execution_role_arn="arn:aws:iam::123456789012:role/spark",
        job_driver={{"sparkSubmit": {{"entryPoint": "s3://code/app.py"}}}}, configuration_overrides=None,
        waiter_delay=0, waiter_max_attempts=100, deferrable={deferrable},
    )
"""


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize(("fault", "state"), [(None, "success"), ("fail", "failed")])
def test_the_official_emr_serverless_operator(dag_project, fake_aws, deferrable, fault, state):
    fake_aws.clock.per_call = 60
    application = boto3.client("emr-serverless").create_application(releaseLabel="emr-7.9.0", type="SPARK")
    if fault:
        fake_aws.faults.add(fault, "StartJobRun")
    text = EMR_FILE.format(application=application["applicationId"], deferrable=deferrable)
    assert dag_project.run(dag_project.write("official.py", text), "official_emr").state == state
    assert len(fake_aws.emr.runs) == 1


DATAPROC_FILE = """
from airflow.sdk import DAG
from airflow.providers.google.cloud.operators.dataproc import DataprocCreateBatchOperator

with DAG("official_dataproc"):
    DataprocCreateBatchOperator(
        task_id="run", region="europe-west1", batch_id="official", deferrable={deferrable}, polling_interval_seconds=1,
        batch={{"pyspark_batch": {{"main_python_file_uri": "gs://code/app.py"}}}}, project_id="fake-project",
    )
"""


# Without deferral it sleeps for ten seconds between its looks at a batch that runs.
@pytest.mark.parametrize(
    ("deferrable", "fault", "state"), [(True, None, "success"), (True, "fail", "failed"), (False, "fail", "failed")]
)
def test_the_official_dataproc_operator(dag_project, fake_google, deferrable, fault, state):
    """Through the environment alone: a proxy, whom to trust, an anonymous connection."""
    fake_google.clock.per_call = 1000
    if fault:
        fake_google.faults.add(fault, "CreateBatch")
    text = DATAPROC_FILE.format(deferrable=deferrable)
    assert dag_project.run(dag_project.write("official.py", text), "official_dataproc").state == state
    assert list(fake_google.dataproc.batches) == ["projects/fake-project/locations/europe-west1/batches/official"]


VERTEX_FILE = """
from airflow.sdk import DAG
from airflow.providers.google.cloud.operators.vertex_ai.custom_job import CreateCustomJobOperator

with DAG("official_vertex"):
    CreateCustomJobOperator(
        task_id="run", region="europe-west1", project_id="fake-project", deferrable=True, poll_interval=1,
        custom_job={{"display_name": "churn", "job_spec": {{"worker_pool_specs": [{{
            "machine_spec": {{"machine_type": "n1-standard-4"}}, "replica_count": 1,
            "container_spec": {{"image_uri": "europe-docker.pkg.dev/p/i/train:1"}},
        }}]}}}},
    )
"""


@pytest.mark.parametrize(("fault", "state"), [(None, "success"), ("fail", "failed")])
def test_the_official_vertex_operator_defers(dag_project, fake_google, fault, state):
    """In a worker it runs in test_faults_vertex."""
    fake_google.clock.per_call = 1000
    if fault:
        fake_google.faults.add(fault, "CreateCustomJob")
    assert dag_project.run(dag_project.write("official.py", VERTEX_FILE.format()), "official_vertex").state == state
    assert len(fake_google.vertex.jobs.jobs) == 1


def test_the_official_hook_lists_and_describes(airflow_db, fake_aws):
    from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

    hook = SageMakerHook(aws_conn_id="aws_default")
    hook.create_model(
        {
            "ModelName": "churn", "ExecutionRoleArn": "arn:aws:iam::123456789012:role/sagemaker",
            "PrimaryContainer": {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serve:1"},
        }
    )  # fmt: skip
    assert hook.describe_model("churn")["ModelName"] == "churn"
    assert hook.list_training_jobs() == []


def test_aiobotocore_reaches_it_by_the_environment_alone(fake_aws):
    from aiobotocore.session import get_session

    async def endpoints():
        async with get_session().create_client("sagemaker") as client:
            return (await client.list_endpoints())["Endpoints"]

    assert asyncio.run(endpoints()) == []
