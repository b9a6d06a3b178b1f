"""Fetches a model bundle from Cloud Storage, as a container on Vertex AI has to.

Vertex AI copies the model into a bucket of its own, names it in AIP_STORAGE_URI, and lets the container read it with
the credentials of the machine's metadata server
(cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements). Plain HTTP, so that the scoring image needs
no library of Google's.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from airflow_provider_sml.errors import DeploymentError
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, file_of

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"
_TRIES = 5


def fetch_bundle(uri: str, environ: Mapping[str, str]) -> Path:
    """Fetch a bundle into a temporary folder; gives the folder.

    :param uri: folder of the bundle, ``gs://bucket/folder``.
    :param environ: STORAGE_EMULATOR_HOST in it names another server, which is asked without credentials.
    :raises DeploymentError: when it cannot be read.
    """
    server = environ.get("STORAGE_EMULATOR_HOST", "")
    headers = {} if server else {"Authorization": f"Bearer {_token()}"}
    place = urlsplit(uri)
    folder = Path(tempfile.mkdtemp(prefix="sml-bundle-"))

    def fetch(name: str) -> bytes:
        key = quote(f"{place.path.strip('/')}/{name}".lstrip("/"), safe="")
        address = f"{server or 'https://storage.googleapis.com'}/storage/v1/b/{place.netloc}/o/{key}?alt=media"
        content = _get(address, headers, f"{uri.rstrip('/')}/{name}")
        (folder / name).write_bytes(content)
        return content

    try:
        fetch(file_of(json.loads(fetch(BUNDLE_FILE))))
    except ValueError as error:
        raise DeploymentError(f"{uri} holds no model bundle", expected=BUNDLE_FILE, found=error) from error
    return folder


def _token() -> str:
    answer = _get(_METADATA, {"Metadata-Flavor": "Google"}, "the token of the metadata server")
    return str(json.loads(answer)["access_token"])


def _get(address: str, headers: Mapping[str, str], what: str) -> bytes:
    for number in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=dict(headers)), timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except OSError as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if final or number == _TRIES:
                raise DeploymentError(
                    f"{what} cannot be read", found=f"{type(error).__name__}: {error}",
                    todo="let the endpoint's service account read the bucket (storage.objects.get)",
                ) from error  # fmt: skip
            time.sleep(min(8.0, 0.5 * 2**number))
    raise AssertionError("the last try returns or raises")
