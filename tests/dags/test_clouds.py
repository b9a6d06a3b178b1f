"""The flights' pipeline on the fake SageMaker and the fake Vertex AI, which a profile of two lines chooses.

A version is trained on spot machines that go twice, rolled out in three steps, and stays the champion when the next
roll-out is taken back. Containers are processes; the model is that of a training on this machine which nobody disturbs.
"""

import datetime as dt
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest

from airflow_provider_sml.hooks.clients import forget_clients
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.ml import sampling, storage
from airflow_provider_sml.ml.lake import Lake
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.training.cluster import Cluster
from airflow_provider_sml.ml.training.trainer import Training, fit, train
from airflow_provider_sml.pipelines import load_spec
from airflow_provider_sml.refs import SampleRef
from include.demo.landing import lay_down

FLIGHTS = Path(__file__).resolve().parents[2] / "include" / "pipelines" / "flights.yaml"
FIRST, LAST = dt.date(2013, 3, 1), dt.date(2013, 3, 10)
ROUNDS = 200
#: Of the demonstration's spec: some days in place of months, and a gate that such a model passes.
SMALLER = [
    ("window: 120 days", "window: 5 days"),
    ("validate: 28 days", "validate: 2 days"),
    ("test: 28 days", "test: 2 days"),
    ("rounds: 300, early_stopping: 30", f"rounds: {ROUNDS}, early_stopping: {ROUNDS}"),
    ("auc: {min: 0.65, not_worse_than: champion, margin: 0.005}",
     "auc: {min: 0.5, not_worse_than: champion, margin: 0.2}"),
    ("ece: {max: 0.05}", "ece: {max: 0.9}"),
    ("  baseline: {by: [carrier, hour], margin: 0.0}\n", ""),
    ("min_auc: 0.6}", "min_auc: 0.3}"),
    ("rate: 0.5", "rate: 0.7"),
    ("  warehouse: include/data/warehouse.duckdb", "  warehouse: null"),
]  # fmt: skip
DAG_FILE = """
from airflow_provider_sml.pipelines import build_dags

build_dags({path!r}, into=globals(), profile={profile!r}, default_args={{"retries": 0, "poll_interval": 0.05}})
"""
SAGEMAKER = """
places: {lake: clouds_lake}
train: {cluster: sagemaker, spot: {checkpoint: "{lake}/checkpoints"}, cluster_settings: {
  image: "123456789012.dkr.ecr.us-east-1.amazonaws.com/sml-scoring:1", role: "arn:aws:iam::123456789012:role/sagemaker",
  instances: [ml.m5.xlarge], kms_key: alias/flights}}
deploy: {target: sagemaker, parity_rows: 50, settings: {artifacts: "s3://flights/served", instance: ml.m5.large,
  image: "123456789012.dkr.ecr.us-east-1.amazonaws.com/sml-scoring:1", role: "arn:aws:iam::123456789012:role/sagemaker",
  rollout: linear, step: 34, wait: 60}}
"""
VERTEX = """
places: {lake: clouds_lake}
train: {cluster: vertex, spot: {checkpoint: "{lake}/checkpoints"}, cluster_settings: {
  image: "europe-docker.pkg.dev/fake-project/images/sml-scoring:1", region: europe-west1, machines: [n1-standard-4],
  service_account: train@fake-project.iam.gserviceaccount.com}}
deploy: {target: vertex, parity_rows: 50, settings: {artifacts: "gs://flights/served", region: europe-west1,
  image: "europe-docker.pkg.dev/fake-project/images/sml-scoring:1", steps: [10, 50, 100], wait: 0}}
"""


@pytest.fixture(scope="module")
def ingested(airflow_db, tmp_path_factory):
    """The folder of a project whose ten days of flights went through the ingest DAG, into a lake on this disk."""
    from airflow_provider_sml.testing.plugin import Project

    root = tmp_path_factory.mktemp("clouds")
    text = FLIGHTS.read_text()
    for old, new in SMALLER:
        assert old in text, old
        text = text.replace(old, new)
    spec = root / "include" / "pipelines" / "flights.yaml"
    spec.parent.mkdir(parents=True)
    spec.write_text(text)
    lay_down(root / "include" / "data" / "landing")
    project = Project(Path(airflow_db) / "dags")
    file = project.write("flights_here.py", DAG_FILE.format(path=str(spec), profile=""))
    result = project.run(file, "flights_ingest", {"first_day": str(FIRST), "last_day": str(LAST)}, LAST)
    file.unlink()
    assert result.state == "success", result.tasks
    return root


@dataclass
class Life:
    """The pipeline on a cloud.

    :param root: of its project.
    :param spec: path of the spec.
    :param profile: the cloud.
    :param project: where its DAG file lies.
    """

    root: Path
    spec: Path
    profile: str
    project: Any

    def run(self, stage, **conf):
        text = DAG_FILE.format(path=str(self.spec), profile=self.profile)
        return self.project.run(self.project.write("flights_cloud.py", text), f"flights_{stage}", conf, LAST)

    @property
    def registry(self):
        return Registry(str(self.root / "include/data/mlflow"))

    @property
    def champion(self):
        found = self.registry.version("flights", alias=CHAMPION)
        return found.version if found else None

    def costs(self, result):
        """The report of a run."""
        return json.loads((Path(result.results["costs"]["uri"]) / "costs.json").read_text())


@pytest.fixture
def life(ingested, dag_project, tmp_path, monkeypatch):
    """Brings the ingested days into a lake of a cloud, and registers a first, weak version that was trained here."""

    def begin(profile, settings, connection):
        root = tmp_path / "project"
        spec = root / "include" / "pipelines" / "flights.yaml"
        spec.parent.mkdir(parents=True)
        shutil.copyfile(ingested / "include/pipelines/flights.yaml", spec)
        spec.with_name(f"flights.{profile}.yaml").write_text(settings)
        extra = {"catalog": "sqlite", "catalog_uri": str(tmp_path / "catalog.db"), **connection}
        monkeypatch.setenv("AIRFLOW_CONN_CLOUDS_LAKE", json.dumps({"conn_type": "sml_lake", "extra": extra}))
        monkeypatch.setenv("AIRFLOW__SML__HOME", str(tmp_path / "home"))
        dataset, lake = load_spec(spec, profile).dataset, LakeHook("clouds_lake").get_conn()
        here = Lake(str(ingested / "include/data/lake"))
        folder, paths = lake.stage("flights", "copied"), []
        for number, file in enumerate(here.files("flights")):
            paths.append(folder / f"{number:03d}.parquet")
            storage.write_table(pq.read_table(file.path, partitioning=None), paths[-1])
        lake.publish("flights", dataset.table_columns, paths, FIRST, LAST, {"run": "copied"})
        found = Life(root, spec, profile, dag_project)
        sample = sampling.draw(lake, "flights", sampling.windows(LAST, 2, 2, 2, dt.timedelta(days=1)), method="all")
        model = train_here(dataset, sample, root / "models", rounds=5, early_stopping=5)
        tags = {"sample_uri": sample.uri, "lake": "clouds_lake", "gate": "passed"}
        found.registry.register("flights", model, np.zeros((1, len(dataset.features))), lineage=tags)
        return found

    forget_clients()
    yield begin
    forget_clients()


def train_here(dataset, sample, models, **params):
    with Cluster("local") as cluster:
        return train(Training(dataset, sample, params), cluster, models, lambda line: None)


class Kept:
    """Whether a container has kept more rounds than before, so that its machine may go now."""

    def __init__(self) -> None:
        self.rounds = 0

    def __call__(self, checkpoint: bytes) -> bool:
        rounds = json.loads(checkpoint.partition(b"\n")[0])["state"]["rounds"] if checkpoint else 0
        more = rounds > self.rounds and rounds % 50 == 0  # not one that an interruption has left
        self.rounds = rounds if more else self.rounds
        return more


def check_training(life, result):
    """The version is that of an undisturbed training here, went through two interruptions, and says so."""
    assert result.state == "success", result.tasks
    sample = SampleRef.load(result.results["sample"])
    spec = load_spec(life.spec, life.profile)
    with Cluster("local") as cluster:
        expected = fit(Training(spec.dataset, sample, spec.train.hyperparameters), cluster, lambda line: None)
    model = result.results["train"]
    assert (model["digest"], model["model_id"]) == (expected.digest, expected.model_id)
    assert model["toll"]["interruptions"] == 2
    assert model["toll"]["rounds_regained"] >= 50 + 100
    version = life.registry.version("flights", alias="challenger")
    bundle = life.registry.bundle(version)
    assert (version.version, bundle.model) == ("2", expected.model)
    assert bundle.lineage["job"]["spot"] is True
    tags = life.registry.tags(version)
    assert (tags["gate"], tags["dag_id"], tags["lake"]) == ("passed", "flights_train", "clouds_lake")
    return bundle.lineage["job"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flights_on_sagemaker(life, fake_aws, fake_s3):
    from airflow_provider_sml.testing.aws.training_containers import training_containers

    boto3.client("s3").create_bucket(Bucket="flights")
    flights = life("sagemaker", SAGEMAKER, {"location": "s3://flights/lake", "endpoint": fake_s3,
                                            "region": "us-east-1"})  # fmt: skip
    fake_aws.clock.per_call = 60
    assert flights.run("deploy", version="1").state == "success"
    assert flights.champion == "1"

    kept = Kept()

    def interrupt(folder, seconds):
        return any(kept(path.read_bytes()) for path in folder.glob("*.ubj"))

    fake_aws.faults.add("interrupt", "CreateTrainingJob", count=2)
    with training_containers(fake_aws, interrupt_when=interrupt) as printed:
        trained = flights.run("train")
    assert len(printed) == 3 and ["going on from the checkpoint" in text for text in printed] == [False, True, True]
    job = check_training(flights, trained)
    assert (job["interruptions"], job["savings_percent"]) == (2, 70.0)
    assert job["billable_seconds"] == pytest.approx(0.3 * job["training_seconds"], abs=1)
    [call] = fake_aws.calls.of("CreateTrainingJob")
    assert call.params["EnableManagedSpotTraining"] and call.params["OutputDataConfig"]["KmsKeyId"] == "alias/flights"
    assert call.params["CheckpointConfig"]["S3Uri"].startswith("s3://flights/lake/checkpoints/flights/")
    told = flights.costs(trained)
    assert told["totals"]["usd"] == pytest.approx(job["cost_usd"]) and told["totals"]["saved_usd"] > 0
    assert [line.what.rpartition("-")[0] for line in fake_aws.bill.running()] == ["endpoint ml.m5.large, flights-v1"]

    assert flights.run("deploy").state == "success"
    assert flights.champion == "2"
    [update] = fake_aws.calls.of("UpdateEndpoint")
    routing = update.params["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert (routing["Type"], routing["LinearStepSize"]["Value"]) == ("LINEAR", 34)  # 34, 68, 100 percent
    serving = fake_aws.sagemaker.endpoint("flights").fleet.config
    assert serving.startswith("flights-v2-")

    fake_aws.faults.add("roll_back", "UpdateEndpoint")
    back = flights.run("deploy", version="1")
    assert (back.state, back.tasks) == ("failed", {"deploy": "failed", "costs": "success"})
    assert flights.champion == "2"
    assert fake_aws.sagemaker.endpoint("flights").fleet.config == serving
    fake_aws.clock.advance(1000)
    assert [line.what.rpartition("-")[0] for line in fake_aws.bill.running()] == ["endpoint ml.m5.large, flights-v2"]
    assert fake_aws.calls.count("CreateTrainingJob") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flights_on_vertex(life, fake_google, fake_gcs_address, monkeypatch):
    from airflow_provider_sml.testing.google.vertex_containers import Scoring, local_container, scoring_app

    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    monkeypatch.setattr("airflow_provider_sml.cloud.vertex_model.POLL_SECONDS", 0.01)
    fake_google.storage.write("gs://flights/there", b"")
    flights = life("vertex", VERTEX, {"location": "gs://flights/lake", "endpoint": fake_gcs_address,
                                      "access_key": "anonymous", "project": fake_google.project})  # fmt: skip
    jobs, endpoints = fake_google.vertex.jobs, fake_google.vertex.endpoints
    endpoints.container = scoring_app
    fake_google.clock.per_call = 60
    assert flights.run("deploy", version="1").state == "success"
    assert flights.champion == "1"

    kept = Kept()

    def preempt(job, seconds):
        [place] = [item.value for item in job.spec.worker_pool_specs[0].container_spec.env
                   if item.name == "SML_CHECKPOINT_DIR"]  # fmt: skip
        try:
            return kept(fake_google.storage.read(f"{place}/{place.rpartition('/')[2]}.ubj"))
        except FileNotFoundError:
            return False

    command = [sys.executable, "-m", "airflow_provider_sml.ml.serving"]
    image = "europe-docker.pkg.dev/fake-project/images/sml-scoring:1"
    jobs.container = local_container(fake_google, {image: command})
    jobs.preempt_when = preempt
    fake_google.faults.add("interrupt", "CreateCustomJob", count=2)
    trained = flights.run("train")
    job = check_training(flights, trained)
    [made] = jobs.jobs.values()
    assert (made.attempts, made.spec.scheduling.strategy.name) == (3, "SPOT")
    assert made.spec.service_account == "train@fake-project.iam.gserviceaccount.com"
    assert job["cost_usd"] >= sum(line.cost or 0 for line in fake_google.bill.lines() if "training" in line.what) > 0
    assert flights.costs(trained)["totals"]["usd"] == pytest.approx(job["cost_usd"])
    assert [line.what for line in fake_google.bill.running()] == ["endpoint 1 x n1-standard-2"]

    assert flights.run("deploy").state == "success"
    assert flights.champion == "2"
    asked = [call.params.get("traffic_split", {}) for call in fake_google.calls.of("DeployModel")]
    moved = [call.params["endpoint"].get("traffic_split", {}) for call in fake_google.calls.of("UpdateEndpoint")]
    assert asked[1]["0"] == 10 and [sorted(split.values()) for split in moved if split] == [[50, 50], [100]]

    wrong = b'{"predictions": [%s]}' % b",".join([b"0.5"] * 50)
    endpoints.container = lambda project, model: Scoring(lambda body, kind: (200, wrong, kind), lambda: None)
    back = flights.run("deploy", version="1")
    assert (back.state, back.tasks) == ("failed", {"deploy": "failed", "costs": "success"})
    assert flights.champion == "2"
    fake_google.clock.advance(1000)
    [endpoint] = endpoints.endpoints.values()
    endpoints._settle(endpoint)
    [serves] = endpoint.traffic
    described = fake_google.vertex.models.models["projects/fake-project/locations/europe-west1/models/flights"]
    number = endpoint.deployed[serves].number
    assert described.versions[number].message.version_description.startswith("v2-")
    assert [line.what for line in fake_google.bill.running()] == ["endpoint 1 x n1-standard-2"]
    assert len(jobs.jobs) == 1
