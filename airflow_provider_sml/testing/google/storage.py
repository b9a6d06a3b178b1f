"""Objects in a server of Cloud Storage, as the services of the fake read and write them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit


class Objects:
    """Reads and writes objects without credentials.

    :param endpoint: address of the server.
    :param project: that new buckets belong to.
    """

    def __init__(self, endpoint: str, project: str) -> None:
        self.endpoint, self.project = endpoint, project

    def read(self, uri: str) -> bytes:
        """The content of an object.

        :param uri: such as ``gs://bucket/key``.
        :raises FileNotFoundError: when it is not there.
        """
        place = urlsplit(uri)
        key = quote(place.path.lstrip("/"), safe="")
        return self._ask(f"/storage/v1/b/{place.netloc}/o/{key}?alt=media", None, uri)

    def write(self, uri: str, content: bytes) -> None:
        """Write an object; its bucket is made when it is not there."""
        place = urlsplit(uri)
        try:
            self._ask(f"/storage/v1/b/{place.netloc}", None, uri)
        except FileNotFoundError:
            bucket = json.dumps({"name": place.netloc}).encode()
            self._ask(f"/storage/v1/b?project={self.project}", bucket, uri, "application/json")
        key = quote(place.path.lstrip("/"), safe="")
        self._ask(f"/upload/storage/v1/b/{place.netloc}/o?uploadType=media&name={key}", content, uri)

    def _ask(self, path: str, body: bytes | None, uri: str, kind: str = "application/octet-stream") -> bytes:
        request = urllib.request.Request(f"{self.endpoint}{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(uri) from error
            raise
