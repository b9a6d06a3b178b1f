"""Containers of the fake Vertex AI as processes of this machine: training programs, and our own scoring server.

There are no images: a training image is a command that the test names, and every scoring image is
``airflow_provider_sml.ml.serving``, which fetches the model from AIP_STORAGE_URI as it does on Vertex AI; but for
Google's own XGBoost images, which are what their predictor does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.testing.processes import free_port
from airflow_provider_sml.testing.scoring import ScoringProcess, container_environment

#: Of the names of Google's own XGBoost images.
PREBUILT = "/vertex-ai/prediction/xgboost-"

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle
    from airflow_provider_sml.testing.google.vertex_jobs import FakeJob


def local_container(
    cloud: FakeGoogle, images: Mapping[str, Sequence[str]]
) -> Callable[[FakeJob, dict[str, str]], subprocess.Popen[bytes]]:
    """Runs training containers as processes, for ``CustomJobs.container``.

    :param cloud: the project, which knows where Cloud Storage is.
    :param images: the command that stands for each image, such as ``[sys.executable, "train.py"]``.
    """

    def start(job: FakeJob, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        pool = json.loads(environment["CLUSTER_SPEC"])["task"]["type"]
        spec = job.spec.worker_pool_specs[int(pool.removeprefix("workerpool"))].container_spec
        command = [*(spec.command or images[spec.image_uri]), *spec.args]
        return subprocess.Popen(
            command, env=_environment(cloud) | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    return start


@dataclass
class Scoring:
    """A scoring container that runs.

    :param answer: takes a body and its content type; gives status, body and content type.
    :param close: ends it.
    """

    answer: Callable[[bytes, str], tuple[int, bytes, str]]
    close: Callable[[], None]


def scoring_process(cloud: FakeGoogle, model: Any, within: float = 60.0) -> Scoring:
    """Our scoring server as a process of its own, as a container of Vertex AI gets its environment.

    :param cloud: the project.
    :param model: the version, a message of the API.
    :param within: seconds until it must answer.
    :raises RuntimeError: with what it printed, when it does not.
    """
    if PREBUILT in model.container_spec.image_uri:
        return prebuilt_xgboost(cloud, model)
    spec, port = model.container_spec, free_port()
    routes = spec.predict_route or "/predict", spec.health_route or "/health"
    given = {
        "AIP_HTTP_PORT": str(port), "AIP_PREDICT_ROUTE": routes[0], "AIP_HEALTH_ROUTE": routes[1],
        "AIP_STORAGE_URI": model.artifact_uri, "SML_SERVE_HOST": "127.0.0.1",
    }  # fmt: skip
    own = {item.name: item.value for item in spec.env if item.name != "SML_SERVE_HOST"}
    arguments = spec.args or ["serve"]
    process = ScoringProcess(port, _environment(cloud) | own | given, arguments, routes, within)
    return Scoring(process.ask, process.close)


def scoring_app(cloud: FakeGoogle, model: Any) -> Scoring:
    """The same server's application in this process: no start-up, for tests that deploy often.

    :param cloud: the project.
    :param model: the version, a message of the API.
    :raises Exception: when there is no bundle at its artifact_uri.
    """
    from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle, file_of
    from airflow_provider_sml.ml.serving.server import create_app

    if PREBUILT in model.container_spec.image_uri:
        return prebuilt_xgboost(cloud, model)
    assert cloud.storage is not None, "give the fake a server of Cloud Storage: FakeGoogle(gcs=...)"
    with tempfile.TemporaryDirectory() as folder:
        place = model.artifact_uri.rstrip("/")
        described = cloud.storage.read(f"{place}/{BUNDLE_FILE}")
        for name in (BUNDLE_FILE, file_of(json.loads(described))):
            (Path(folder) / name).write_bytes(cloud.storage.read(f"{place}/{name}"))
        bundle = Bundle.read(Path(folder))
    app = create_app(bundle, version=bundle.model_id, environ={})
    return Scoring(lambda body, kind: asyncio.run(_ask(app, body, kind)), lambda: None)


def prebuilt_xgboost(cloud: FakeGoogle, model: Any) -> Scoring:
    """What Google's XGBoost image does, in this process: ``google.cloud.aiplatform.prediction.xgboost.predictor``.

    :param cloud: the project.
    :param model: the version, a message of the API.
    :raises Exception: when there is no model.bst at its artifact_uri, or XGBoost cannot read it.
    """
    import xgboost

    assert cloud.storage is not None, "give the fake a server of Cloud Storage: FakeGoogle(gcs=...)"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.bst"
        file.write_bytes(cloud.storage.read(f"{model.artifact_uri.rstrip('/')}/{file.name}"))
        booster = xgboost.Booster({"nthread": 1}, model_file=str(file))

    def answer(body: bytes, kind: str) -> tuple[int, bytes, str]:
        try:
            scores = booster.predict(xgboost.DMatrix(json.loads(body)["instances"])).tolist()
        except Exception as error:
            return 500, json.dumps({"error": str(error)}).encode(), "application/json"
        return 200, json.dumps({"predictions": scores}).encode(), "application/json"

    return Scoring(answer, lambda: None)


def _environment(cloud: FakeGoogle) -> dict[str, str]:
    return container_environment() | ({"STORAGE_EMULATOR_HOST": cloud.gcs} if cloud.gcs else {})


async def _ask(app: Any, body: bytes, kind: str) -> tuple[int, bytes, str]:
    import httpx

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://container") as client:
        found = await client.post("/invocations", content=body, headers={"content-type": kind})
    return found.status_code, found.content, found.headers.get("content-type", "")
