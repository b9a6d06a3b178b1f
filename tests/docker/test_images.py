"""Images and compose file: what can be checked without building them."""

import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [ROOT / "Dockerfile", *sorted(DOCKER.glob("*Dockerfile"))]


def instructions(path):
    """The instructions of a Dockerfile: word and rest, continued lines joined, comments left out."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestDockerfile:
    """The rules that hadolint has under the numbers named."""

    def test_the_base_has_a_version(self, path):  # DL3006, DL3007
        arguments = dict(rest.split("=", 1) for word, rest in instructions(path) if word == "ARG" and "=" in rest)
        for word, rest in instructions(path):
            if word == "FROM":
                image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], rest.split()[0])
                assert re.search(r":(?!latest)[\w.\-]+$", image), image

    def test_it_does_not_run_as_root(self, path):  # DL3002
        users = [rest for word, rest in instructions(path) if word == "USER"]
        assert users and users[-1] not in ("root", "0")

    def test_packages_are_installed_cleanly(self, path):  # DL3009, DL3013, DL3015, DL3027, DL3042, DL3014
        for word, rest in instructions(path):
            if word != "RUN":
                continue
            assert not re.search(r"\bapt (install|update)\b", rest)
            if "apt-get install" in rest:
                assert "--yes" in rest and "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists" in rest
            for command in re.findall(r"pip install[^&]*", rest):
                assert "--no-cache-dir" in command
                assert "--no-deps" in command or "--constraint" in command or '"$@"' in command

    def test_its_form_is_sound(self, path):  # DL3000, DL3020, DL3025, DL3044, DL4000, DL4006
        for word, rest in instructions(path):
            assert word in {"ARG", "FROM", "SHELL", "USER", "RUN", "ENV", "WORKDIR", "COPY", "EXPOSE", "HEALTHCHECK",
                            "ENTRYPOINT", "CMD"}, word  # fmt: skip
            if word in ("ENTRYPOINT", "CMD"):
                assert rest.startswith("["), rest
            if word == "WORKDIR":
                assert rest.startswith(("/", "${"))
            if word == "RUN":
                done = subprocess.run(["bash", "-n", "-c", rest], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr

    def test_it_can_be_named_in_the_lineage_of_models(self, path):
        from airflow_provider_sml.ml.registry.lineage import IMAGE

        words = instructions(path)
        given = words.index(("ARG", "IMAGE_DIGEST="))
        set_by = [at for at, (word, rest) in enumerate(words) if word == "ENV" and f"{IMAGE}=${{IMAGE_DIGEST}}" in rest]
        assert len(set_by) == 1 and set_by[0] > given > [word for word, _ in words].index("FROM")
        commands = [at for at, (word, _) in enumerate(words) if word == "RUN"]
        assert given < commands[-1] < set_by[0], "podman sees another value by a command alone"
        assert commands[-2] < given, "the libraries are not installed again for another value"

    def test_what_it_copies_is_there(self, path):
        ignored = (ROOT / ".dockerignore").read_text().split()
        for word, rest in instructions(path):
            if word == "COPY":
                for source in [part for part in shlex.split(rest) if not part.startswith("--")][:-1]:
                    assert (ROOT / source).exists(), source
                    assert source.rstrip("/") not in ignored


def test_every_published_port_is_on_loopback(compose):
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert {"airflow-api", "mlflow", "s3", "spark-master", "dask-scheduler", "prometheus"} <= set(ports)
    assert [port for found in ports.values() for port in found if not str(port).startswith("127.0.0.1:")] == []
    published = [port.split(":")[1] for found in ports.values() for port in found]
    assert len(set(published)) == len(published)
    assert not [name for name, service in compose["services"].items() if service.get("network_mode") == "host"]


def test_the_whole_stack_is_there_with_fixed_versions(compose):
    services = compose["services"]
    assert {"postgres", "airflow-init", "airflow-api", "airflow-scheduler", "airflow-dag-processor",
            "airflow-triggerer", "mlflow", "s3", "spark-master", "spark-worker", "dask-scheduler", "dask-worker",
            "prometheus"} <= set(services)  # fmt: skip
    for name, service in services.items():
        if not service["image"].startswith("sml-"):
            assert re.search(r":v?\d[\w.\-]+$", service["image"]), f"{name}: {service['image']}"
        for needed in service.get("depends_on", []):
            assert needed in services
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("./"), volume
            if source.startswith("./") and source != "./bundle":
                assert (DOCKER / source).is_file(), volume
    built = {service["image"]: service["build"]["dockerfile"] for service in services.values() if "build" in service}
    assert built == {"sml-airflow": "docker/Dockerfile", "sml-scoring": "docker/scoring.Dockerfile"}


def test_the_volumes_of_tasks_are_first_those_of_airflow(compose):
    """A new volume gets owner and mode from the image of its first container: Airflow's tasks write there."""
    services = compose["services"]

    def waits_for_airflow(name):
        needed = services[name].get("depends_on", {})
        return "airflow-init" in needed or any(waits_for_airflow(each) for each in needed)

    sharing = [
        name for name, service in services.items() if "data:/opt/airflow/include/data" in service.get("volumes", [])
    ]
    assert {"airflow-init", "airflow-scheduler", "dask-scheduler", "dask-worker", "spark-worker"} <= set(sharing)
    assert [name for name in sharing if name != "airflow-init" and not waits_for_airflow(name)] == []


def test_commands_reach_their_programs(compose):
    """Airflow's entrypoint runs every other command as ``airflow COMMAND`` (its scripts/docker/entrypoint_prod.sh)."""
    for name, service in compose["services"].items():
        if service["image"] == "sml-airflow" and "entrypoint" not in service:
            assert service["command"][0] in ("airflow", "bash", "python"), name
        for word in service.get("entrypoint", [])[:1]:
            assert word in ("bash", "sh", "dask") or (Path(sys.executable).parent / word).exists(), name
        for text in service.get("command", []):
            if isinstance(text, str) and " " in text:
                done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
                assert done.returncode == 0, f"{name}: {done.stderr}"


def test_the_s3_server_of_the_stack_starts_on_a_new_volume_and_mlflow_finds_its_bucket(compose, tmp_path):
    """With the command lines of the file; only the folder and the port are this machine's."""
    import boto3

    from airflow_provider_sml.testing.processes import ServerUnavailableError, free_port, listens, server
    from airflow_provider_sml.testing.stores import program

    try:
        binary = program("versitygw")
    except ServerUnavailableError as error:
        pytest.skip(str(error))
    port, keys = free_port(), {"AWS_ACCESS_KEY_ID": "stack", "AWS_SECRET_ACCESS_KEY": "of-the-stack"}
    [volume] = compose["services"]["s3"]["volumes"]
    (tmp_path / "volume").mkdir()
    here = {volume.split(":")[1]: str(tmp_path / "volume"), ":7070": f"127.0.0.1:{port}"}
    command = [here.get(word, word) for word in compose["services"]["s3"]["command"]]
    roots = {"ROOT_ACCESS_KEY": "stack", "ROOT_SECRET_KEY": "of-the-stack"}
    address = {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    [text] = compose["services"]["mlflow"]["command"]
    make, serve = text.split("; exec ")
    with server([binary, *command], lambda: listens(port), env=os.environ | roots):
        for _ in range(2):
            env = os.environ | keys | address | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-ec", make], env=env, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr[-2000:]
        client = boto3.client("s3", endpoint_url=address["MLFLOW_S3_ENDPOINT_URL"], region_name="us-east-1",
                              aws_access_key_id="stack", aws_secret_access_key="of-the-stack")  # fmt: skip
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["mlflow"]
    from mlflow.cli import cli

    options = {option for param in cli.commands["server"].params for option in param.opts}
    assert {word for word in shlex.split(serve) if word.startswith("--")} <= options


COMPOSE = (["docker", "compose"], ["docker-compose"])


def test_compose_accepts_the_file(tmp_path):
    """By whichever of the programs is there, with the passwords that the script makes."""
    stack = tmp_path / "docker"
    shutil.copytree(DOCKER, stack, ignore=shutil.ignore_patterns(".env", "bundle"))
    assert subprocess.run(["bash", stack / "env.sh"], capture_output=True, timeout=30).returncode == 0
    for program in COMPOSE:
        there = shutil.which(program[0]) is not None
        asked = subprocess.run([*program, "version"], capture_output=True, text=True, timeout=60) if there else None
        if asked is not None and asked.returncode == 0:
            break
    else:
        pytest.skip("neither docker compose nor docker-compose is there")
    if "version 1." in asked.stdout:  # it knows all of the file but its name
        (stack / "compose.yaml").write_text((stack / "compose.yaml").read_text().replace("\nname: sml\n", "\n"))
    command = [*program, "-f", "compose.yaml", "config"]
    done = subprocess.run(command, cwd=stack, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = yaml.safe_load(done.stdout)["services"]
    assert {"postgres", "airflow-api", "mlflow", "s3", "spark-worker", "dask-worker", "prometheus"} <= set(found)
    assert found["airflow-scheduler"]["environment"]["SML_PROFILE"] == "compose"
    assert "AIRFLOW_ADMIN_PASSWORD" not in found["airflow-scheduler"]["environment"]


def test_prometheus_accepts_its_configuration():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there")
    done = subprocess.run(["promtool", "check", "config", DOCKER / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_secret_has_a_default_and_each_is_generated(compose, tmp_path):
    text = (DOCKER / "compose.yaml").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?", text))
    assert set(re.findall(r"\$\{(\w+)", text)) == wanted, "a variable without a value must stop compose"
    for service in compose["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD$|SECRET|_KEY$|JWT", name):
                assert str(value).startswith("${"), name
            assert not re.search(r"://[^$/]*:[^$/]+@", str(value)), name

    script = tmp_path / "docker" / "env.sh"
    script.parent.mkdir()
    shutil.copy(DOCKER / "env.sh", script)
    first = subprocess.run(["bash", script], capture_output=True, text=True, timeout=30)
    assert first.returncode == 0, first.stderr
    made = script.parent / ".env"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    values = dict(line.split("=", 1) for line in made.read_text().splitlines())
    assert set(values) == wanted
    assert len(set(values.values())) == len(values)
    assert all(len(value) >= 16 for value in values.values())
    assert not [value for value in values.values() if value in first.stdout]
    from cryptography.fernet import Fernet

    Fernet(values["AIRFLOW_FERNET_KEY"])
    before = made.read_text()
    assert subprocess.run(["bash", script], capture_output=True, timeout=30).returncode == 0
    assert made.read_text() == before, "a second call must not lock anyone out of the volumes"
    assert [path.name for path in script.parent.iterdir() if path.name not in (".env", "env.sh")] == []


def test_the_profile_of_the_stack_fits_the_spec():
    from airflow_provider_sml.pipelines import load_spec

    spec = load_spec(ROOT / "include" / "pipelines" / "flights.yaml", profile="compose")
    assert (spec.places.mlflow, spec.train.cluster) == ("mlflow", "dask")


def test_prometheus_asks_services_of_the_stack(compose):
    jobs = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    hosts = {target.split(":")[0] for job in jobs for config in job["static_configs"] for target in config["targets"]}
    assert hosts - {"127.0.0.1"} <= set(compose["services"])


def test_the_scoring_image_installs_no_airflow():
    found = importlib.util.spec_from_file_location("extras", DOCKER / "extras.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    asked = [
        "lake", "dask", "xgboost", "sklearn:skops", "onnx:onnxruntime", "serving", "amazon:s3fs", "google:gcsfs",
    ]  # fmt: skip
    assert " ".join(asked).replace("xgboost", '"${XGBOOST}"') in (DOCKER / "scoring.Dockerfile").read_text()
    lines = module.requirements(asked, ROOT / "setup.cfg")
    names = {re.match(r"[\w\-]+", line)[0] for line in lines}
    assert {"fastapi", "dask", "xgboost-cpu", "pydantic", "pyarrow", "s3fs", "gcsfs", "skops",
            "onnxruntime", "universal-pathlib"} <= names  # fmt: skip
    assert not [name for name in names if "airflow" in name]
    gpu = module.requirements(["serving", "xgboost-gpu"], ROOT / "setup.cfg")
    assert [line for line in gpu if line.startswith("xgboost")] == ["xgboost>=3.2,<3.3"]
    assert [line for line in gpu if line.startswith("cupy")] and not [line for line in gpu if "dask-cuda" in line]
    for asked, said in (("nothing", "no extra nothing"), ("google:s3fs", "google has no requirement s3fs")):
        with pytest.raises(SystemExit, match=said):
            module.requirements([asked], ROOT / "setup.cfg")
