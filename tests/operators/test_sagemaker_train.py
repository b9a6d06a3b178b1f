"""SageMakerTrainOperator through ``dag.test()`` and Airflow's own AWS connection, against the fake SageMaker."""

import io
import json
import os
import subprocess
import sys
import tarfile
from urllib.parse import urlsplit

import boto3
import pytest

from airflow_provider_sml.ml import storage
from tests.links import console_page

DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator

with DAG("churn_train", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    SageMakerTrainOperator(
        task_id="train", image="123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
        role="arn:aws:iam::123456789012:role/sagemaker", output_path="s3://models/churn", poll_interval=0.01,
        **({{"instances": ["ml.m5.xlarge"]}} | dict({more})),
    )
"""
SPOT = "spot=True, checkpoint='s3://models/checkpoints'"


@pytest.fixture(params=[False, True], ids=["in a worker", "in the triggerer"])
def run(request, dag_project, cloud):
    """Runs the operator, in a worker or deferred."""

    def run(more="", retries=0):
        text = DAG_FILE.format(more=f"deferrable={request.param}, {more}", retries=retries)
        return dag_project.run(dag_project.write("churn.py", text), "churn_train")

    return run


def test_a_spot_job_that_is_interrupted_twice_ends_well_and_tells_its_savings(run, cloud):
    cloud.faults.add("interrupt", count=2)
    result = run(SPOT)
    assert result.state == "success"
    made = result.results["train"]
    assert (made["interruptions"], made["savings_percent"]) == (2, 70.0)
    assert made["cost_usd"] == pytest.approx(cloud.bill.total(), abs=1e-3)
    assert len(json.dumps(made)) < 1000
    assert cloud.calls.count("CreateTrainingJob") == 1


def test_the_console_is_linked_while_it_runs_and_when_it_failed(run, cloud):
    cloud.faults.add("denied", "DescribeTrainingJob", skip=2, times=99)
    assert run().state == "failed"
    (job,) = cloud.sagemaker.jobs
    region = "us-east-1"
    assert (
        console_page("churn_train")
        == f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{job}"
    )


def test_an_outage_while_it_waits_starts_no_second_job(run, cloud):
    cloud.faults.add("server_error", "DescribeTrainingJob", skip=1, times=5)
    assert run().state == "success"
    assert cloud.calls.count("CreateTrainingJob") == 1


def test_a_lost_reply_and_a_retry_make_one_job(run, cloud):
    cloud.faults.add("drop_after", "CreateTrainingJob")
    assert run(retries=1).state == "success"
    assert len(cloud.sagemaker.jobs) == 1


def test_throttling_of_the_submission_is_waited_out(run, cloud):
    cloud.faults.add("throttle", "DescribeTrainingJob", times=4)
    assert run().state == "success"
    assert len(cloud.sagemaker.jobs) == 1


def test_without_capacity_it_goes_on_with_the_next_machine(run, cloud):
    cloud.faults.add("no_capacity", "CreateTrainingJob")
    result = run("instances=['ml.g5.xlarge', 'ml.g4dn.xlarge']")
    assert result.state == "success"
    assert result.results["train"]["instance"] == "ml.g4dn.xlarge"
    assert cloud.calls.count("CreateTrainingJob") == 2


def test_a_missing_permission_is_not_retried(run, cloud):
    cloud.faults.add("denied", "CreateTrainingJob", times=9)
    assert run(retries=3).state == "failed"
    assert cloud.calls.count("CreateTrainingJob") == 1


def test_a_permission_lost_while_it_waits_fails_at_once(run, cloud):
    cloud.faults.add("denied", "DescribeTrainingJob", skip=2, times=99)
    assert run(retries=3).state == "failed"
    assert cloud.calls.count("DescribeTrainingJob") == 3


def test_an_expired_token_is_renewed(run, cloud):
    cloud.faults.add("expired_token", "DescribeTrainingJob", skip=2)
    assert run().state == "success"
    assert cloud.calls.count("CreateTrainingJob") == 1


def test_at_its_deadline_the_job_is_stopped(run, cloud):
    cloud.clock.per_call = 0
    assert run("deadline=timedelta(seconds=1)").state == "failed"
    cloud.clock.advance(300)
    assert cloud.bill.running() == []
    assert cloud.calls.count("StopTrainingJob") == 1


def test_spot_without_a_checkpoint_is_refused_before_aws_is_asked(run, cloud):
    assert run("spot=True", retries=2).state == "failed"
    assert cloud.calls == []


def test_a_wrong_option_is_named(run, cloud, capfd):
    assert run("options={'max_runtme': 60}").state == "failed"
    assert "max_runtme" in capfd.readouterr().out
    assert cloud.calls == []


def test_the_plan_shows_the_request_and_the_cost_and_asks_nothing(dag_project, cloud, capfd):
    text = DAG_FILE.format(more="plan=True, options={'max_runtime': 7200}", retries=0)
    result = dag_project.run(dag_project.write("churn.py", text), "churn_train")
    assert result.state == "success"
    assert result.results["train"]["calls"] == ["sagemaker:create_training_job"]
    assert "0.46 USD" in result.results["train"]["cost"]
    assert '"MaxRuntimeInSeconds": 7200' in capfd.readouterr().out
    assert cloud.calls == []


def test_a_killed_task_stops_its_job(dag_project, cloud):
    """``execution_timeout`` ends the task as a person does: Airflow calls ``on_kill``."""
    cloud.clock.per_call = 0
    text = DAG_FILE.format(more="execution_timeout=timedelta(seconds=6)", retries=0)
    assert dag_project.run(dag_project.write("churn.py", text), "churn_train").state == "failed"
    cloud.clock.advance(300)
    assert cloud.calls.count("StopTrainingJob") == 1
    assert cloud.bill.running() == []


SCRIPT = """
import argparse, json, os, pathlib
from helper import double

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int)
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text().split()
model = {"depth": double(parser.parse_args().depth), "rows": len(rows)}
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps(model))
"""


def script_mode(s3, folder):
    """What an image with script mode does: fetch the code, run it with the hyperparameters, pack the model."""

    def fetch(address):
        place = urlsplit(address)
        return s3.get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()

    def train(request):
        given = {key: json.loads(value) for key, value in request["HyperParameters"].items()}
        for name in ("code", "model", "train"):
            (folder / name).mkdir()
        with tarfile.open(fileobj=io.BytesIO(fetch(given["sagemaker_submit_directory"]))) as archive:
            archive.extractall(folder / "code", filter="data")
        [channel] = request["InputDataConfig"]
        rows = fetch(channel["DataSource"]["S3DataSource"]["S3Uri"] + "/rows.csv")
        (folder / "train" / "rows.csv").write_bytes(rows)
        own = [
            word
            for key, value in given.items()
            if not key.startswith("sagemaker_")
            for word in (f"--{key}", str(value))
        ]
        places = {"SM_CHANNEL_TRAIN": str(folder / "train"), "SM_MODEL_DIR": str(folder / "model")}
        command = [sys.executable, given["sagemaker_program"], *own]
        subprocess.run(command, cwd=folder / "code", env=os.environ | places, check=True)

    return train


def test_script_mode_runs_the_code_of_a_folder(dag_project, cloud, fake_s3, tmp_path):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="models")
    s3.put_object(Bucket="models", Key="rows/rows.csv", Body=b"1 2 3")
    source = tmp_path / "source"
    (source / "__pycache__").mkdir(parents=True)
    for name, text in (("train.py", SCRIPT), ("helper.py", "double = lambda n: 2 * n\n"), ("__pycache__/x.pyc", "x")):
        (source / name).write_text(text)
    cloud.sagemaker.train = script_mode(s3, tmp_path)
    more = "inputs={{'train': 's3://models/rows'}}, hyperparameters={{'depth': 3}}, options={{'script': {!r}}}"
    cloud.faults.add("drop_after", "CreateTrainingJob")
    text = DAG_FILE.format(more=more.format(str(source)), retries=1)
    assert dag_project.run(dag_project.write("churn.py", text), "churn_train").state == "success"
    assert json.loads((tmp_path / "model" / "model.json").read_text()) == {"depth": 6, "rows": 3}
    assert sorted(path.name for path in (tmp_path / "code").iterdir() if path.is_file()) == ["helper.py", "train.py"]
    [job] = cloud.sagemaker.jobs.values()
    place = json.loads(job.request["HyperParameters"]["sagemaker_submit_directory"])
    assert place.startswith("s3://models/churn/source/") and place.endswith("/sourcedir.tar.gz")


MODEL = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.sagemaker import SageMakerTrainOperator
from airflow_provider_sml.refs import SampleRef
from tests.toy import DATASET

SAMPLE = SampleRef("s3://models/lake/samples/toy/abc", "abc", "toy", 1, "all", 1.0, {{"train": 9}}, "s3://models/lake")

with DAG("toy_train", default_args={{"retries": 2, "retry_delay": timedelta(0)}}):
    SageMakerTrainOperator(
        task_id="train", image="123456789012.dkr.ecr.us-east-1.amazonaws.com/sml-scoring:1", spot=True,
        role="arn:aws:iam::123456789012:role/sagemaker", output_path="{{lake}}/jobs", poll_interval=0.01,
        checkpoint="{{lake}}/kept", instances=["ml.m5.xlarge"], dataset=DATASET,
        **({{"training": {{"sample": SAMPLE, "workers": 2}}}} | dict({more})),
    )
"""


@pytest.fixture
def run_model(dag_project, cloud, monkeypatch):
    """Runs the operator with a model of ours to train; no lake of an earlier test is mounted."""
    monkeypatch.setattr(storage, "_mounts", {})
    cloud.client("s3").create_bucket(Bucket="models")
    return lambda more="": dag_project.run(dag_project.write("toy.py", MODEL.format(more=more)), "toy_train")


def test_without_a_network_the_job_is_given_copies_of_request_and_sample(run_model, cloud, capfd):
    result = run_model("plan=True, options={'network_isolation': True}")
    assert result.state == "success"
    said = capfd.readouterr().out
    for part in ('"ChannelName": "request"', '"s3://models/lake/samples/toy/abc/"', '"InstanceCount": 2',
                 '"S3Uri": "s3://models/lake/kept/toy/'):  # fmt: skip
        assert part in said, part
    assert cloud.client("s3").list_objects_v2(Bucket="models")["KeyCount"] == 0, "a plan writes nothing"


def test_what_the_training_itself_refuses_is_not_tried_again(run_model, cloud, capfd):
    cloud.faults.add("fail", "CreateTrainingJob", reason="AlgorithmError: DataError: no label, exit code: 2", times=9)
    assert run_model().state == "failed"
    assert "DataError: no label" in capfd.readouterr().out
    assert cloud.calls.count("CreateTrainingJob") == 1
    [call] = cloud.calls.of("CreateTrainingJob")
    assert call.params["HyperParameters"]["request"].startswith("s3://models/lake/requests/toy/")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("training={'sample': SAMPLE, 'workrs': 2}", "did you mean workers?"),
        ("options={'count': 3}", "training decides count"),
        ("training={'sample': SampleRef('/tmp/s', 'abc', 'toy', 1, 'all', 1.0, {}, '/tmp/lake')}", "out of reach"),
    ],
)
def test_what_does_not_fit_a_model_of_ours_is_named(run_model, cloud, capfd, more, said):
    assert run_model(more).state == "failed"
    assert said in capfd.readouterr().out
    assert cloud.calls == []
