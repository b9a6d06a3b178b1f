"""The images as they are built and run: SML_BUILD_IMAGES=1, with podman, debootstrap and runc, as root."""

import contextlib
import json
import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.training.cluster import cluster
from airflow_provider_sml.ml.training.request import write_request
from airflow_provider_sml.ml.training.trainer import Training, fit
from airflow_provider_sml.testing.processes import free_port, listens
from tests.docker.images import wait_for
from tests.ml.test_lake_shops import DATASET
from tests.trained import PARAMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def expected(shop_sample):
    """The model of a training outside of any container."""
    training = Training(DATASET, shop_sample, PARAMS, every=10)
    with cluster("local") as client:
        return training, fit(training, client, lambda line: None)


# --- training and scoring without Airflow -------------------------------------------------------------------------


def test_the_scoring_image_serves_a_model_without_root_and_without_airflow(images, scoring, expected, tmp_path):
    folder, port = tmp_path / "bundle", free_port()
    expected[1].write(folder)
    options = ["--network=host", "--read-only", "--env=SML_SERVE_HOST=127.0.0.1"]
    root = images.build(
        "localhost/as-root:test", "docker/scoring.Dockerfile", images.debian(), RUN_AS="0", IMAGE_DIGEST="commit:abc"
    )
    said = images.run("--entrypoint=sh", root, "-c", "id -u; echo $SML_IMAGE_DIGEST").stdout
    assert said == "0\ncommit:abc\n"
    assert images.run(*options, "--entrypoint=id", scoring, "-u").stdout == "10001\n"
    images.run(*options, "--entrypoint=python", scoring, "-c", "import onnxruntime, skops.io, xgboost")
    missing = images.run(*options, "--entrypoint=python", scoring, "-c", "import airflow", check=False)
    assert "No module named 'airflow'" in missing.stderr
    given = [f"--volume={folder}:/opt/ml/model:ro", f"--env=SAGEMAKER_BIND_TO_PORT={port}"]

    def answers():
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200

    with images.running(*options, *given, scoring, "serve"):
        wait_for(answers)


def test_a_container_of_sagemaker_trains_without_a_network(images, scoring, expected, tmp_path):
    """All that SageMaker gives it lies below /opt/ml: files of configuration, two channels, folders to fill."""
    training, model = expected
    base = tmp_path / "ml"
    for folder in ("input/config", "model", "output", "checkpoints"):
        (base / folder).mkdir(parents=True)
        (base / folder).chmod(0o775)  # the group of the container's user is 0
    write_request(replace(training, sample=replace(training.sample, uri="/nowhere")), base / "input/data/request")
    shutil.copytree(training.sample.uri, base / "input/data/sample")
    told = {"request": "s3://nowhere/request", "store": json.dumps({"region": "us-east-1"})}
    (base / "input/config/hyperparameters.json").write_text(json.dumps(told))
    resources = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    (base / "input/config/resourceconfig.json").write_text(json.dumps(resources))
    places = [f"--volume={base}:/opt/ml", f"--volume={base}/input:/opt/ml/input:ro", "--tmpfs=/tmp"]
    environ = ["--env=SM_MODEL_DIR=/opt/ml/model", "--env=TRAINING_JOB_NAME=shops", "--env=AWS_REGION=us-east-1"]
    given = ["--network=none", "--read-only", *places, *environ]
    said = images.run(*given, scoring, "train").stdout
    made = Bundle.read(base / "model")
    assert (made.model, made.model_id) == (model.model, model.model_id)
    assert made.lineage["history"] == model.lineage["history"]
    assert f"digest {model.digest}" in said
    assert list((base / "checkpoints").iterdir()) == []
    assert (base / "model" / "bundle.json").stat().st_uid == 10001


def test_a_container_of_vertex_ai_trains_from_cloud_storage(images, scoring, expected, gcs_store):
    """Told by arguments and by AIP_ in its environment; sample, request and model lie in a bucket."""
    training, model = expected
    bucket = gcs_store.bucket()
    storage.mount(bucket, gcs_store.store)
    sample = storage.place(bucket) / "samples" / "orders"
    for path in Path(training.sample.uri).rglob("*"):
        if path.is_file():
            storage.write(sample / str(path.relative_to(training.sample.uri)), path.read_bytes())
    request = storage.place(bucket) / "requests" / "shops"
    write_request(replace(training, sample=replace(training.sample, uri=str(sample))), request)
    environ = {"AIP_MODEL_DIR": f"{bucket}/out/model/", "AIP_CHECKPOINT_DIR": f"{bucket}/out/checkpoints/",
               "CLOUD_ML_PROJECT_ID": "1", "STORAGE_EMULATOR_HOST": gcs_store.store.endpoint}  # fmt: skip
    given = ["--network=host", *(f"--env={key}={value}" for key, value in environ.items())]
    arguments = ["train", "--request", str(request), "--store", json.dumps({"endpoint": gcs_store.store.endpoint})]
    images.run(*given, scoring, *arguments)
    made = Bundle.read(storage.place(f"{bucket}/out/model"))
    assert (made.model, made.model_id) == (model.model, model.model_id)
    assert not list(storage.place(f"{bucket}/out/checkpoints").glob("*"))


def test_containers_are_a_dask_cluster(images, scoring, expected):
    training, model = expected
    port, dashboard = free_port(), free_port()
    sample = Path(training.sample.uri)
    given = ["--network=host", f"--volume={sample}:{sample}:ro", "--entrypoint=dask", scoring]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["scheduler", "--host=127.0.0.1", f"--port={port}", f"--dashboard-address=127.0.0.1:{dashboard}"]
    worker = ["worker", address, "--nworkers=1", "--host=127.0.0.1", "--no-dashboard"]
    with images.running(*given, *scheduler):
        wait_for(lambda: listens(port))
        with images.running(*given, *worker), cluster(address) as client:
            made = fit(training, client, lambda line: None)
    assert made.model == model.model


# --- Airflow ------------------------------------------------------------------------------------------------------

#: Prints as JSON what an image of Airflow holds.
LOOK = """
import importlib.util, json, os, subprocess, sysconfig
from importlib.metadata import distributions
from pathlib import Path

def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

def last(*command):
    return said(*command).splitlines()[-1]

def writable(folder):
    return os.access(folder, os.W_OK) if folder.exists() else writable(folder.parent)

libraries = Path(sysconfig.get_path("purelib"))
package = Path(importlib.util.find_spec("airflow_provider_sml").origin).parent
roots = (libraries / "airflow", libraries / "pandas", package, Path("dags"))
sources = [path for root in roots for path in root.rglob("*.py")]
print(json.dumps({
    "uid": os.getuid(), "folder": os.getcwd(), "version": said("airflow", "version").strip(),
    "providers": said("airflow", "providers", "list", "--output", "plain").split(),
    "plugins": said("airflow", "plugins", "--output", "plain").split(),
    "dags": [dag["dag_id"] for dag in json.loads(last("airflow", "dags", "list", "--local", "--output", "json"))],
    "errors": last("airflow", "dags", "list-import-errors", "--local", "--output", "plain"),
    "java": subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.split()[2],
    "below the libraries": package.parent == libraries,
    "installed": sum(found.metadata["Name"] == "airflow-provider-sml" for found in distributions()),
    "without byte code": [str(path) for path in sources if not os.path.exists(importlib.util.cache_from_source(path))],
    "read-only": [name for name in ("include/data", "include/reports", "logs") if not writable(Path(name))],
    "digest": os.environ.get("SML_IMAGE_DIGEST"), "build": os.path.exists("build"),
}))
"""


def check_airflow(images, image, folder):
    """What every image of Airflow with this project has to hold."""
    script = 'airflow db migrate >&2; exec python -c "$1"'
    done = images.run("--network=none", image, "bash", "-ec", script, "look", LOOK)
    found = json.loads(done.stdout.splitlines()[-1])
    [pinned] = re.findall(r"^apache-airflow==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert (found.pop("uid"), found.pop("folder"), found.pop("version")) == (50000, folder, pinned)
    assert "airflow-provider-sml" in found.pop("providers")
    assert "sml" in found.pop("plugins")
    assert sorted(found.pop("dags")) == ["flights_deploy", "flights_ingest", "flights_monitor", "flights_train"]
    assert found.pop("java").startswith('"17')
    assert found == {
        "errors": "No data found", "below the libraries": True, "installed": 1, "without byte code": [],
        "read-only": [], "digest": "commit:abc", "build": False,
    }  # fmt: skip


def test_the_airflow_image_has_the_project_in_it(images, airflow):
    check_airflow(images, airflow, "/opt/airflow")


def test_the_image_of_an_astro_project_has_the_project_in_it(images):
    base = images.build("localhost/astro:test", "tests/docker/astro.Dockerfile", images.debian())
    built = images.build("localhost/sml-astro:test", "Dockerfile", base, IMAGE_DIGEST="commit:abc")
    check_airflow(images, built, "/usr/local/airflow")
