"""What answers an invocation: our own scoring application, or SageMaker's XGBoost image, on the model data in S3."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.testing.aws.errors import AwsError
from airflow_provider_sml.testing.processes import free_port
from airflow_provider_sml.testing.scoring import ScoringProcess, container_environment

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

#: Takes body, content type and accept; gives status, body and content type.
Container = Callable[[bytes, str, str], tuple[int, bytes, str]]


def bundle_container(cloud: FakeAws, model: dict[str, Any]) -> Container:
    """The scoring application of ``ml.serving``, in this process, on a model bundle in S3.

    On an archive with an ``xgboost-model`` in it, what SageMaker's own XGBoost image does.

    :param cloud: the account, which knows where S3 is.
    :param model: what the model was created with.
    :raises AwsError: when there is no bundle at ModelDataUrl.
    """
    from airflow_provider_sml.ml.bundle import Bundle
    from airflow_provider_sml.ml.serving.server import create_app

    container = _container(model)
    with tempfile.TemporaryDirectory() as folder:
        _unpack(cloud, container, Path(folder))
        if (booster := Path(folder, "xgboost-model")).exists():
            return xgboost_container(booster.read_bytes())
        try:
            bundle = Bundle.read(Path(folder))
        except Exception as error:
            raise _no_start(container, error) from error
    version = container.get("Environment", {}).get("SML_MODEL_VERSION") or bundle.model_id
    app = create_app(bundle, version=version, environ={})

    def answer(body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
        return asyncio.run(_ask(app, body, kind, accept))

    return answer


class ScoringContainer:
    """The scoring server as a process of its own, on a model bundle in S3, as SageMaker starts its image: ``serve``.

    Give it as ``fake_aws.runtime.container``; it ends with the account.

    :param cloud: the account, which knows where S3 is.
    :param model: what the model was created with.
    :raises AwsError: when there is no bundle at ModelDataUrl, or the server does not start on it.
    """

    def __init__(self, cloud: FakeAws, model: dict[str, Any]) -> None:
        container, port = _container(model), free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="container-")
        _unpack(cloud, container, Path(self._folder.name))
        given = {"SM_MODEL_DIR": self._folder.name, "SAGEMAKER_BIND_TO_PORT": str(port), "SML_SERVE_HOST": "127.0.0.1"}
        environment = container_environment() | container.get("Environment", {}) | given
        try:
            self._process = ScoringProcess(port, environment)
        except RuntimeError as error:
            self._folder.cleanup()
            raise _no_start(container, error) from error

    def __call__(self, body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
        """Ask it."""
        return self._process.ask(body, kind, accept or "*/*")

    def close(self) -> None:
        """End it."""
        self._process.close()
        self._folder.cleanup()


def _container(model: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = model.get("PrimaryContainer") or model["Containers"][0]
    return found


def _unpack(cloud: FakeAws, container: dict[str, Any], folder: Path) -> None:
    """The files of a model's archive in S3.

    :raises AwsError: when there is none.
    """
    place = urlsplit(container.get("ModelDataUrl", ""))
    try:
        stored = cloud.client("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(stored)) as archive:
            archive.extractall(folder, filter="data")
    except Exception as error:
        raise _no_start(container, error) from error


def _no_start(container: dict[str, Any], error: Exception) -> AwsError:
    return AwsError("ModelError", f"the container does not start on {container.get('ModelDataUrl')}: {error}", 424)


def xgboost_container(model: bytes) -> Container:
    """What SageMaker's XGBoost image does with CSV, in this process; it takes no other content here.

    :param model: the booster.
    """
    import numpy as np
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(model))

    def answer(body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
        if kind.partition(";")[0] != "text/csv" or accept not in ("text/csv", "application/json"):
            return 415, f"Content-type {kind} or Accept type {accept} not supported".encode(), "text/plain"
        try:
            lines = body.decode().strip().split("\n")
            rows = np.array([[text or "nan" for text in line.split(",")] for line in lines]).astype(float)
            scores = booster.predict(xgboost.DMatrix(rows), validate_features=False).tolist()
        except (ValueError, xgboost.core.XGBoostError) as error:
            return 400, str(error).encode(), "text/plain"
        if accept == "text/csv":
            return 200, ",".join(map(str, scores)).encode(), accept
        return 200, json.dumps(scores).encode(), accept

    return answer


async def _ask(app: Any, body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
    import httpx

    headers = {"content-type": kind, "accept": accept or "*/*"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://container") as client:
        found = await client.post("/invocations", content=body, headers=headers)
    return found.status_code, found.content, found.headers.get("content-type", "")
