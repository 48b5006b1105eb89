"""Objects in one bucket: written whole or in parts, listed, copied inside the store, signed for clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import structlog
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from tightfit_service.adapters.storage.s3_connection import (
    DEFAULT_REGION,
    MISSING,
    S3Options,
    StoreAwayError,
    encryption_headers,
    open_client,
    translated,
)
from tightfit_service.adapters.storage.s3_multipart import (
    MOST_COPY_BYTES,
    Multipart,
    copy_source,
    md5_header,
)
from tightfit_service.adapters.storage.s3_signing import signed_url
from tightfit_service.adapters.storage.store_metering import NotMeasured
from tightfit_service.application.ports import SignedUrl, StoreTelemetry

log = structlog.get_logger(__name__)

PART_BYTES = 16 << 20
LEAST_PART_BYTES = 5 << 20
"""What S3 asks of every part but the last."""

_READ_ATTEMPTS = 4
_MOST_PARTS = 10_000
_STORED_ALREADY = {"PreconditionFailed", "ConditionalRequestConflict"}
_NO_CONDITIONS = {"NotImplemented", "MethodNotAllowed"}
_RULE = "tightfit-incomplete-uploads"
_RULE_DAYS = 1


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What the store tells of an object; the time is by the store's clock."""

    key: str
    size_bytes: int
    modify_time: datetime


class S3Bucket:
    """One bucket of one store. Safe for many threads.

    Uses what the SDK has for single requests, for its public calls know neither conditions nor
    checksums of parts. All methods raise the errors of `s3_connection.translated`.
    """

    def __init__(
        self, *, options: S3Options, name: str, telemetry: StoreTelemetry | None = None
    ) -> None:
        self.options = options
        self.name = name
        self.telemetry = telemetry or NotMeasured()
        self._client: Minio = open_client(options, telemetry=self.telemetry)
        self._public = open_client(options, telemetry=self.telemetry, public=True)
        self._encryption = encryption_headers(options)
        self._has_conditions = True

    def ensure(self, *, prefix: str) -> None:
        """Make the bucket unless it is there, and have the store drop unfinished multipart uploads.

        A store that allows or knows no rules is served without: `abort_unfinished` does the same.
        """
        with translated():
            if not self._client.bucket_exists(self.name):
                self._client.make_bucket(self.name)
        try:
            self._set_rule(prefix)
        except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
            log.warning(
                "the object store takes no lifecycle rule; unfinished uploads are collected by this "
                "service alone",
                bucket=self.name,
                code=getattr(error, "code", type(error).__name__),
            )

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object; the store verifies the bytes by their MD5.

        With `create_only` an object that is there stays, also when writers race.
        """
        headers = {**self._encryption, "Content-MD5": md5_header(data)}
        conditions = {"If-None-Match": "*"} if create_only and self._has_conditions else {}
        with translated():
            try:
                self._request("PUT", key, body=data, headers={**headers, **conditions})
            except S3Error as error:
                if error.code in _STORED_ALREADY:
                    return
                if not conditions or error.code not in _NO_CONDITIONS:
                    raise
                self._has_conditions = False
                self._request("PUT", key, body=data, headers=headers)

    def put_parts(self, key: str, parts: Iterable[bytes], *, size_bytes: int) -> None:
        """Write a large object in parts of `part_bytes(size_bytes)`; it appears when all are there.

        Whatever goes wrong, an exception from `parts` included, the parts are removed again.
        """
        with Multipart(self._client, self.name, key, headers=self._encryption) as upload:
            for data in parts:
                upload.add(data)
            upload.complete()
        self._expect(key, size_bytes)

    def compose(self, key: str, sources: Sequence[ObjectInfo]) -> None:
        """Join objects into one inside the store, without their bytes passing through here.

        All but the last must have `LEAST_PART_BYTES`.

        Raises:
            LookupError: One of them is gone.
        """
        if len(sources) == 1 and sources[0].size_bytes <= MOST_COPY_BYTES:
            if not self.copy(sources[0], key):
                raise LookupError(sources[0].key)
            return
        with Multipart(self._client, self.name, key, headers=self._encryption) as upload:
            for source in sources:
                upload.add_copy(source.key, size_bytes=source.size_bytes)
            upload.complete()
        self._expect(key, sum(source.size_bytes for source in sources))

    def copy(self, source: ObjectInfo, key: str) -> bool:
        """Copy an object inside the store; false when it is gone."""
        if source.size_bytes > MOST_COPY_BYTES:
            try:
                self.compose(key, [source])
            except LookupError:
                return False
            return True
        headers = {
            **self._encryption,
            "x-amz-copy-source": copy_source(self.name, source.key),
        }
        with translated():
            try:
                answer = self._request("PUT", key, headers=headers)
            except S3Error as error:
                if error.code in MISSING:
                    return False
                raise
        # a copy that fails late is answered with status 200 all the same
        if b"<Error>" in answer:
            raise StoreAwayError("the object store gave up a copy", remedy="try again")
        return True

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""
        with translated():
            try:
                found = self._client.stat_object(self.name, key)
            except S3Error as error:
                if error.code in MISSING:
                    return None
                raise
        return ObjectInfo(
            key=key,
            size_bytes=found.size or 0,
            modify_time=found.last_modified or datetime.now(UTC),
        )

    def stream(self, key: str, *, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of an object from `offset` on, which must lie before its end.

        Raises:
            LookupError: There is no such object.
        """
        with translated():
            try:
                answer = self._client.get_object(self.name, key, offset=offset)
            except S3Error as error:
                if error.code in MISSING:
                    raise LookupError(key) from error
                raise
            with closing(answer):
                yield from answer.stream(chunk_bytes)
                answer.release_conn()

    def stream_whole(
        self, source: ObjectInfo, *, offset: int = 0, chunk_bytes: int
    ) -> Iterator[bytes]:
        """Yield the bytes of an object from `offset` on; a connection that breaks is taken up again.

        Raises:
            LookupError: The object is gone.
        """
        failures = 0
        while offset < source.size_bytes:
            try:
                for chunk in self.stream(source.key, offset=offset, chunk_bytes=chunk_bytes):
                    offset += len(chunk)
                    failures = 0
                    yield chunk
            except StoreAwayError:
                failures += 1
                if failures == _READ_ATTEMPTS:
                    raise

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object, or None where there is none."""
        with translated():
            try:
                with closing(self._client.get_object(self.name, key)) as answer:
                    data = answer.read()
                    answer.release_conn()
            except S3Error as error:
                if error.code in MISSING:
                    return None
                raise
        return data

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix in the order of their keys."""
        with translated():
            for found in self._client.list_objects(self.name, prefix=prefix, recursive=True):
                yield ObjectInfo(
                    key=cast("str", found.object_name),
                    size_bytes=found.size or 0,
                    modify_time=found.last_modified or datetime.now(UTC),
                )

    def folders(self, prefix: str) -> list[str]:
        """Return the names between `prefix` and the next `/` of all keys."""
        with translated():
            found = [
                cast("str", entry.object_name)
                for entry in self._client.list_objects(self.name, prefix=prefix)
                if entry.is_dir
            ]
        return [name.removeprefix(prefix).rstrip("/") for name in found]

    def remove(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with translated():
            self._client.remove_object(self.name, key)

    def abort_unfinished(self, prefix: str, *, older_than: timedelta) -> int:
        """Drop multipart uploads below a prefix that were begun so long ago; return their number."""
        oldest = datetime.now(UTC) - older_than
        count = 0
        with translated():
            found = self._client._list_multipart_uploads(self.name, prefix=prefix)  # noqa: SLF001
            for upload in found.uploads:
                if upload.initiated_time is None or upload.initiated_time > oldest:
                    continue
                self._client._abort_multipart_upload(  # noqa: SLF001
                    self.name, upload.object_name, cast("str", upload.upload_id)
                )
                count += 1
        return count

    def sign(
        self, method: str, key: str, *, lifetime: timedelta, size_bytes: int | None = None
    ) -> SignedUrl:
        """Return an address at which a client may GET or PUT one object, a PUT of that size only."""
        headers = {} if size_bytes is None else {"Content-Length": str(size_bytes)}
        if method == "PUT":
            headers |= self._encryption
        with translated():
            url = self._public._base_url.build(  # noqa: SLF001
                method=method,
                region=self.options.region or DEFAULT_REGION,
                bucket_name=self.name,
                object_name=key,
            )
            credentials = self._public._provider.retrieve()  # type: ignore[union-attr]  # noqa: SLF001
        now = datetime.now(UTC)
        signed = signed_url(
            method,
            url,
            headers=headers,
            credentials=credentials,
            region=self.options.region or DEFAULT_REGION,
            now=now,
            lifetime=lifetime,
        )
        return SignedUrl(method=method, url=signed, headers=headers, expire_time=now + lifetime)

    def _expect(self, key: str, size_bytes: int) -> None:
        """Look at what became of a multipart upload: its last answer may be lost, or be an error after all.

        Raises:
            StoreAwayError: The object is not there, or not whole.
        """
        found = self.stat(key)
        if found is None or found.size_bytes != size_bytes:
            raise StoreAwayError("the object store did not keep what was sent", remedy="try again")

    def _set_rule(self, prefix: str) -> None:
        rule = Rule(
            ENABLED,
            rule_filter=Filter(prefix=prefix),
            rule_id=_RULE,
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(
                days_after_initiation=_RULE_DAYS
            ),
        )
        known = self._client.get_bucket_lifecycle(self.name)
        others = [other for other in known.rules if other.rule_id != _RULE] if known else []
        if known is None or rule not in known.rules:
            self._client.set_bucket_lifecycle(self.name, LifecycleConfig([*others, rule]))

    def _request(
        self,
        method: str,
        key: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str],
    ) -> bytes:
        """Make one request and return the body of the answer."""
        answer = self._client._execute(  # noqa: SLF001
            method, self.name, key, body=body, headers=dict(headers), no_body_trace=True
        )
        return bytes(answer.data or b"")


def part_bytes(size_bytes: int) -> int:
    """Return how large the parts of an object must be, for there may be 10,000 at most."""
    return max(PART_BYTES, -(-size_bytes // _MOST_PARTS))
