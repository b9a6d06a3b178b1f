"""The stack of docker/compose.yaml as podman-compose starts it: SML_BUILD_IMAGES=1, as root, with it on the PATH.

Our images are built as everywhere; PostgreSQL, Prometheus and the S3 server are stand-ins of other versions.
"""

import json
import os
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port
from airflow_provider_sml.testing.stores import program
from tests.docker.images import LIMITS, PATH, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]


def stand_ins(images, folder):
    """Build what stands in for the images of the stack that are not ours, under their names."""
    folder.mkdir()
    try:
        shutil.copy(program("versitygw"), folder / "versitygw")
    except ServerUnavailableError as error:
        pytest.skip(str(error))
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    for service, target in (("postgres", "postgres"), ("prometheus", "prometheus"), ("s3", "versitygw")):
        name = services[service]["image"]
        tag = f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"
        images.build(tag, "tests/docker/services.Dockerfile", images.debian(), folder, target)


@pytest.fixture
def stack(images, scoring, airflow, tmp_path):
    """The services of docker/compose.yaml, on ports of this machine that are free; gives those by service."""
    compose = shutil.which("podman-compose")
    if compose is None:
        pytest.skip("podman-compose is not on the PATH: pip install podman-compose")
    stand_ins(images, tmp_path / "context")
    folder = tmp_path / "docker"
    shutil.copytree(ROOT / "docker", folder, ignore=shutil.ignore_patterns(".env", "bundle"))
    subprocess.run(["bash", folder / "env.sh"], check=True, stdout=subprocess.DEVNULL)
    told, ports = yaml.safe_load((folder / "compose.yaml").read_text()), {}
    for name, service in told["services"].items():
        for number, port in enumerate(service.get("ports", [])):
            ports[name] = free_port()
            service["ports"][number] = f"127.0.0.1:{ports[name]}:{port.rpartition(':')[2]}"
    (folder / "compose.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    wrapper = tmp_path / "podman"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, images.command))} "$@"\n')
    wrapper.chmod(0o755)
    options = f"--podman-run-args={shlex.join(option for option in LIMITS if option != '--no-healthcheck')}"

    def do(*words):
        command = [compose, "--podman-path", wrapper, options, "-f", "compose.yaml", *words]
        environ = os.environ | {"PATH": PATH, "DISABLE_HC_SYSTEMD": "true"}
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
        print(done.stdout[-3000:], done.stderr[-3000:])
        return done

    def healthy(name):
        return images.podman("healthcheck", "run", f"sml_{name}_1", check=False).returncode == 0

    # In the order that depends_on has; waiting for health itself needs timers of systemd's.
    try:
        assert do("up", "--detach", "--no-deps", "postgres", "s3", "prometheus").returncode == 0
        wait_for(lambda: healthy("postgres"))
        assert do("up", "--detach", "--no-deps", "airflow-init").returncode == 0
        assert images.podman("wait", "sml_airflow-init_1").stdout.strip() == "0"
        rest = ["dask-scheduler", "spark-master", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dag-processor",
                "airflow-triggerer", "dask-worker", "spark-worker"]  # fmt: skip
        assert do("up", "--detach", "--no-deps", *rest).returncode == 0
        wait_for(lambda: healthy("airflow-api"), 300)
        yield ports
    finally:
        for name in ("airflow-api", "mlflow", "dask-worker"):
            images.podman("logs", "--tail=20", f"sml_{name}_1", check=False)
        do("down", "--volumes", "--timeout", "5")


def test_the_stack_comes_up_and_its_parts_find_each_other(images, stack):
    def asked(service, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{stack[service]}{path}", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def parts():
        return json.loads(asked("airflow-api", "/api/v2/monitor/health") or "{}")

    wait_for(lambda: {part.get("status") for part in parts().values()} == {"healthy"})
    assert {"scheduler", "triggerer", "dag_processor", "metadatabase"} == set(parts())
    wait_for(lambda: asked("mlflow", "/health") == "OK")
    wait_for(lambda: json.loads(asked("spark-master", "/json/") or '{"aliveworkers": 0}')["aliveworkers"] == 1)
    wait_for(lambda: "dask_scheduler_workers" in asked("dask-scheduler", "/metrics"))
    wait_for(lambda: '"job":"dask"},"scrapePool"' in asked("prometheus", "/api/v1/targets"))
    for name in ("airflow-scheduler", "spark-worker", "dask-worker"):
        images.podman("exec", f"sml_{name}_1", "touch", f"/opt/airflow/include/data/{name}")
    script = "import mlflow; mlflow.set_tracking_uri('http://mlflow:5000'); mlflow.start_run(); " \
             "mlflow.log_text('kept', 'kept.txt')"  # fmt: skip
    images.podman("exec", "sml_airflow-scheduler_1", "python", "-c", script)
    assert "kept.txt" in images.podman("exec", "sml_s3_1", "find", "/data/mlflow", "-name", "kept.txt").stdout
