"""Artifacts in an S3-compatible object store."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from tightfit_service.adapters.storage.content import (
    CHUNK_BYTES,
    check_digest,
    check_project,
    check_range,
    mismatch,
    not_stored,
    verified,
)
from tightfit_service.domain.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

_PART_BYTES = 16 << 20
_MISSING = {"NoSuchKey", "NoSuchObject"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_READ_ATTEMPTS = 4


class S3ArtifactStores:
    """Implements `ArtifactStores` in one bucket: a prefix for each project.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT` of the store.
        bucket: Must exist, or see `ensure_bucket`.
        prefix: Start of all keys, such as `tightfit/`; that of a project goes on with its id.
        ca_file: Certificates to trust instead of the usual authorities.
        timeout_seconds: For connecting (5 at most), and for each wait for bytes.
        retry_seconds: Wait before the first of three repetitions of a failed request; doubles each time.

    Raises:
        InvalidRequestError: `url` is not the address of a server.
    """

    def __init__(
        self,
        *,
        url: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        prefix: str = "",
        region: str | None = None,
        ca_file: Path | None = None,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 0.2,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
            raise InvalidRequestError(
                f"{url!r} is not the address of an object store",
                field="artifact_url",
                remedy="give http://HOST:PORT or https://HOST:PORT",
            )
        self._bucket = bucket
        self._prefix = prefix
        self._client = Minio(
            parts.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=parts.scheme == "https",
            # a known region saves a request for it, and some stores refuse to tell
            region=region or "us-east-1",
            http_client=_http_pool(ca_file, timeout_seconds, retry_seconds),
        )

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there.

        Raises:
            UnavailableError: The store cannot be reached or does not allow it.
        """
        with _translated():
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket)

    def of(self, project: str) -> S3Artifacts:
        """See `ArtifactStores`."""
        check_project(project)
        return S3Artifacts(
            client=self._client, bucket=self._bucket, prefix=f"{self._prefix}{project}/"
        )

    def check(self) -> None:
        """See `ArtifactStores`. Writes, reads and removes a small object."""
        key = f"{self._prefix}check/{uuid.uuid4().hex}"
        probe = uuid.uuid4().bytes
        with _translated():
            try:
                self._client.put_object(self._bucket, key, io.BytesIO(probe), len(probe))
                with closing(self._client.get_object(self._bucket, key)) as answer:
                    kept = answer.read() == probe
                    answer.release_conn()
                self._client.remove_object(self._bucket, key)
            except S3Error as error:
                raise _unusable(error) from error
        if not kept:
            raise UnavailableError("the object store does not keep what is written")


class S3Artifacts:
    """Implements `ArtifactStore`: one object `prefix/ab/abcd...` for each digest.

    Large files go up in parts and become visible when the last part has proved the digest right.
    """

    def __init__(self, *, client: Minio, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        """See `ArtifactStore`. All bytes pass through here and are verified in any case."""
        del is_verified
        check_digest(digest)
        with source.open("rb") as opened:
            length = os.fstat(opened.fileno()).st_size
            if self.size(digest) is not None:
                return
            with _translated():
                self._client.put_object(
                    self._bucket,
                    self._key(digest),
                    cast("BinaryIO", _VerifiedReader(opened, digest, length)),
                    length,
                    part_size=_PART_BYTES,
                    # one after the other: an error in the middle then leaves no thread behind
                    num_parallel_uploads=1,
                )

    def size(self, digest: str) -> int | None:
        """See `ArtifactStore`."""
        check_digest(digest)
        with _translated():
            try:
                return self._client.stat_object(self._bucket, self._key(digest)).size
            except S3Error as error:
                if error.code in _MISSING:
                    return None
                raise

    def read(
        self, digest: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[bytes]:
        """See `ArtifactStore`. From offset 0 the last chunk comes only when the digest was right.

        A connection that breaks off is taken up again where it stopped.
        """
        check_digest(digest)
        check_range(offset, chunk_bytes)
        length = self.size(digest)
        if length is None:
            raise not_stored(digest)
        chunks = self._chunks(digest, offset, length, chunk_bytes)
        return verified(chunks, digest) if offset == 0 else chunks

    def fetch(self, digest: str, destination: Path) -> None:
        """See `ArtifactStore`. The destination appears whole or not at all."""
        partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
        try:
            with partial.open("xb") as copy:
                for chunk in self.read(digest):
                    copy.write(chunk)
            partial.rename(destination)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self, digest: str) -> None:
        """See `ArtifactStore`."""
        check_digest(digest)
        with _translated():
            self._client.remove_object(self._bucket, self._key(digest))

    def _key(self, digest: str) -> str:
        return f"{self._prefix}{digest[:2]}/{digest}"

    def _chunks(self, digest: str, offset: int, length: int, chunk_bytes: int) -> Iterator[bytes]:
        failures = 0
        while offset < length:
            try:
                for chunk in self._stream(digest, offset, chunk_bytes):
                    offset += len(chunk)
                    yield chunk
            except UnavailableError:
                failures += 1
                if failures == _READ_ATTEMPTS:
                    raise

    def _stream(self, digest: str, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        with _translated():
            try:
                answer = self._client.get_object(self._bucket, self._key(digest), offset=offset)
            except S3Error as error:
                if error.code in _MISSING:
                    raise not_stored(digest) from error
                raise
            with closing(answer):
                yield from answer.stream(chunk_bytes)
                answer.release_conn()


class _VerifiedReader:
    """Reads a file once, and raises instead of returning its last bytes when the digest is wrong."""

    def __init__(self, source: BinaryIO, digest: str, length: int) -> None:
        self._source = source
        self._digest = digest
        self._left = length
        self._seen = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._seen.update(data)
        self._left -= len(data)
        if self._left <= 0 and self._seen.hexdigest() != self._digest:
            raise mismatch(self._digest, self._seen.hexdigest())
        return data


def _http_pool(
    ca_file: Path | None, timeout_seconds: float, retry_seconds: float
) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=min(timeout_seconds, 5.0), read=timeout_seconds),
        maxsize=16,
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(ca_file) if ca_file else None,
        # the answer of the last attempt is returned, so that its error code is not lost
        retries=urllib3.Retry(
            total=3,
            backoff_factor=retry_seconds,
            status_forcelist=[500, 502, 503, 504],
            raise_on_status=False,
        ),
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> TightfitError:
    code = error.code if isinstance(error, S3Error) else type(error).__name__
    if code in _FULL:
        return ResourceExhaustedError(
            "the object store has no room left",
            remedy="raise its quota or delete jobs, models and datasets",
        )
    if code in _REFUSED:
        return UnavailableError(
            f"the object store refuses the credentials ({code})",
            remedy="check the access key, the secret key and the policy of the bucket",
        )
    if code == "NoSuchBucket":
        return UnavailableError(
            "the bucket for artifacts does not exist", remedy="make it, or name another"
        )
    return UnavailableError(
        f"the object store cannot be used at present ({code})",
        remedy="try again; check its address and its state",
    )
