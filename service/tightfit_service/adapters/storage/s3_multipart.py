"""One multipart upload: parts with checksums, completed once, removed whatever goes wrong."""

from __future__ import annotations

import base64
import hashlib
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog
from minio import Minio
from minio.datatypes import Part
from minio.error import S3Error

from tightfit_service.adapters.storage.s3_connection import MISSING, translated
from tightfit_service.domain.errors import TightfitError

if TYPE_CHECKING:
    from typing import Self

MOST_COPY_BYTES = 5 << 30
"""Largest object, or part, that S3 copies in one request."""

log = structlog.get_logger(__name__)


def md5_header(data: bytes) -> str:
    """Return the value of Content-MD5, by which the store verifies what it is given."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def copy_source(bucket: str, key: str) -> str:
    """Return the value of x-amz-copy-source."""
    return quote(f"/{bucket}/{key}")


class Multipart:
    """A context: the parts are dropped unless `complete` was reached. Not safe for several threads.

    Completing may be repeated after a lost answer; that the upload is then unknown says nothing, so
    the caller looks whether the object is there and whole.
    """

    def __init__(self, client: Minio, bucket: str, key: str, *, headers: dict[str, str]) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._headers = headers
        self._upload_id = ""
        self._parts: list[Part] = []

    def __enter__(self) -> Self:
        with translated():
            self._upload_id = self._client._create_multipart_upload(  # noqa: SLF001
                self._bucket, self._key, dict(self._headers)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        try:
            with translated():
                self._client._abort_multipart_upload(  # noqa: SLF001
                    self._bucket, self._key, self._upload_id
                )
        except TightfitError:
            # the store's rule or the next collection removes them
            log.warning("parts of an upload were left behind", bucket=self._bucket)

    def add(self, data: bytes) -> None:
        """Send the next part."""
        number = len(self._parts) + 1
        with translated():
            etag = self._client._upload_part(  # noqa: SLF001
                self._bucket,
                self._key,
                data,
                {"Content-MD5": md5_header(data)},
                self._upload_id,
                number,
            )
        self._parts.append(Part(number, etag))

    def add_copy(self, source: str, *, size_bytes: int) -> None:
        """Make another object of the bucket the next part, or parts, inside the store.

        Raises:
            LookupError: It is gone.
        """
        for start in range(0, size_bytes, MOST_COPY_BYTES):
            end = min(start + MOST_COPY_BYTES, size_bytes) - 1
            self._copy(source, f"bytes={start}-{end}")

    def _copy(self, source: str, wanted: str) -> None:
        number = len(self._parts) + 1
        with translated():
            try:
                etag, _ = self._client._upload_part_copy(  # noqa: SLF001
                    self._bucket,
                    self._key,
                    self._upload_id,
                    number,
                    {
                        "x-amz-copy-source": copy_source(self._bucket, source),
                        "x-amz-copy-source-range": wanted,
                    },
                )
            except S3Error as error:
                if error.code in MISSING:
                    raise LookupError(source) from error
                raise
        self._parts.append(Part(number, etag))

    def complete(self) -> None:
        """Make the parts an object; where the upload is unknown, an earlier attempt did or nothing will."""
        with translated():
            try:
                self._client._complete_multipart_upload(  # noqa: SLF001
                    self._bucket, self._key, self._upload_id, self._parts
                )
            except S3Error as error:
                if error.code != "NoSuchUpload":
                    raise
