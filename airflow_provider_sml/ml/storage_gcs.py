"""Google Cloud Storage through gcsfs, with the one thing that gcsfs lacks: a customer's key for every write.

gcsfs takes ``kms_key_name`` when a file is opened for writing and not when bytes are written at once, so both are
given it here. Kept apart because importing gcsfs costs half a second.
"""

from __future__ import annotations

from typing import Any

# Not from gcsfs itself: that name is the class for zonal buckets, which asks for a bucket's layout over gRPC.
from gcsfs.core import GCSFileSystem, simple_upload


class GcsFileSystem(GCSFileSystem):
    """gcsfs with a default key.

    :param kms_key: full name of the key; None leaves encryption to the bucket.
    """

    def __init__(self, *args: Any, kms_key: str | None = None, **kwargs: Any) -> None:
        self.kms_key = kms_key
        super().__init__(*args, **kwargs)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode != "rb" and self.kms_key:
            kwargs.setdefault("kms_key_name", self.kms_key)
        return super()._open(path, mode, *args, **kwargs)

    async def _pipe_file(self, path: str, data: bytes, *args: Any, mode: str = "overwrite", **kwargs: Any) -> Any:
        if not self.kms_key:
            return await super()._pipe_file(path, data, *args, mode=mode, **kwargs)
        bucket, key, _ = self.split_path(path)
        await simple_upload(self, bucket, key, data, mode=mode, kms_key_name=self.kms_key)
        self.invalidate_cache(self._parent(path))
        return None
