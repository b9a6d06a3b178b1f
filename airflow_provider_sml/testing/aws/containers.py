"""What answers an invocation: our own scoring application on the model data that the fake SageMaker was given."""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_sml.testing.aws.errors import AwsError

if TYPE_CHECKING:
    from airflow_provider_sml.testing.aws.cloud import FakeAws

#: Takes body, content type and accept; gives status, body and content type.
Container = Callable[[bytes, str, str], tuple[int, bytes, str]]


def bundle_container(cloud: FakeAws, model: dict[str, Any]) -> Container:
    """The scoring application of ``ml.serving``, in this process, on a model bundle in S3.

    :param cloud: the account, which knows where S3 is.
    :param model: what the model was created with.
    :raises AwsError: when there is no bundle at ModelDataUrl.
    """
    from airflow_provider_sml.ml.bundle import Bundle
    from airflow_provider_sml.ml.serving.server import create_app

    container = model.get("PrimaryContainer") or model["Containers"][0]
    place = urlsplit(container.get("ModelDataUrl", ""))
    try:
        stored = cloud.client("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(stored)) as archive:
            archive.extractall(folder, filter="data")
            bundle = Bundle.read(Path(folder))
    except Exception as error:
        raise AwsError("ModelError", f"the container does not start on {place.geturl()}: {error}", 424) from error
    version = container.get("Environment", {}).get("SML_MODEL_VERSION") or bundle.model_id
    app = create_app(bundle, version=version, environ={})

    def answer(body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
        return asyncio.run(_ask(app, body, kind, accept))

    return answer


async def _ask(app: Any, body: bytes, kind: str, accept: str) -> tuple[int, bytes, str]:
    import httpx

    headers = {"content-type": kind, "accept": accept or "*/*"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://container") as client:
        found = await client.post("/invocations", content=body, headers=headers)
    return found.status_code, found.content, found.headers.get("content-type", "")
