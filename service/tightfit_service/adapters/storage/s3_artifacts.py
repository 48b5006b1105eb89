"""Artifacts in an S3-compatible object store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tightfit_service.adapters.storage.content import (
    CHUNK_BYTES,
    check_digest,
    check_project,
    check_range,
    is_digest,
    not_stored,
    verified,
)
from tightfit_service.adapters.storage.s3_bucket import (
    LEAST_PART_BYTES,
    PART_BYTES,
    ObjectInfo,
    S3Bucket,
    part_bytes,
)
from tightfit_service.adapters.storage.s3_connection import patiently
from tightfit_service.application.ports import SignedUrl, StoredArtifact
from tightfit_service.domain.errors import UnavailableError

_ASIDE = ".aside/"
_CHECK = ".check/"


class S3ArtifactStores:
    """Implements `ArtifactStores` in one bucket: a prefix for each project.

    Ids of projects do not begin with a dot: `.aside/`, `.check/` and `.uploads/` are no project's.

    Args:
        bucket: Must exist, or see `S3Bucket.ensure`.
        prefix: Start of all keys, such as `tightfit/`; that of a project goes on with its id.
        offers_urls: Whether clients may fetch from the store directly.
    """

    def __init__(self, *, bucket: S3Bucket, prefix: str = "", offers_urls: bool = False) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._offers_urls = offers_urls

    def of(self, project: str) -> S3Artifacts:
        """See `ArtifactStores`."""
        check_project(project)
        return S3Artifacts(
            bucket=self.bucket,
            prefix=f"{self.prefix}{project}/",
            aside=f"{self.prefix}{_ASIDE}{project}/",
            offers_urls=self._offers_urls,
        )

    def projects(self) -> Sequence[str]:
        """See `ArtifactStores`."""
        stored = self.bucket.folders(self.prefix)
        aside = self.bucket.folders(f"{self.prefix}{_ASIDE}")
        return sorted({name for name in (*stored, *aside) if not name.startswith(".")})

    def collect_remains(self, *, older_than: timedelta) -> int:
        """See `ArtifactStores`. The store does not tell how large the parts are."""
        self.bucket.abort_unfinished(self.prefix, older_than=older_than)
        return 0

    def check(self) -> None:
        """See `ArtifactStores`. Writes, reads and removes a small object."""
        key = f"{self.prefix}{_CHECK}{uuid.uuid4().hex}"
        probe = uuid.uuid4().bytes
        self.bucket.put(key, probe)
        kept = self.bucket.read(key) == probe
        self.bucket.remove(key)
        if not kept:
            raise UnavailableError("the object store does not keep what is written")


class S3Artifacts:
    """Implements `ArtifactStore`: one object `prefix/ab/abcd...` for each digest.

    Writers of one digest may race: each writes the same bytes, and an object appears whole. Large
    files go up in parts and become visible when the last part has proved the digest right. `put` and
    `fetch` wait for a store that is away as long as its options say, for hours of work may hang on them.
    """

    def __init__(
        self,
        *,
        bucket: S3Bucket,
        prefix: str,
        aside: str,
        offers_urls: bool,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._aside = aside
        self._offers_urls = offers_urls

    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        """See `ArtifactStore`. All bytes pass through here and are verified in any case."""
        del is_verified
        check_digest(digest)
        patiently(
            partial(self._put, source, digest),
            seconds=self._bucket.options.patience_seconds,
            telemetry=self._bucket.telemetry,
        )

    def put_joined(self, digest: str, sources: Sequence[ObjectInfo]) -> None:
        """Store the bytes of other objects of the bucket, in order, whose digest was verified.

        The store joins them itself unless one is smaller than it takes as a part.

        Raises:
            LookupError: One of them is gone.
        """
        check_digest(digest)
        if self.size(digest) is not None:
            return
        key, size = self._key(digest), sum(source.size_bytes for source in sources)
        if all(source.size_bytes >= LEAST_PART_BYTES for source in sources[:-1]):
            self._bucket.compose(key, sources)
        else:
            parts = regrouped(verified(self._joined(sources), digest), part_bytes(size))
            self._bucket.put_parts(key, parts, size_bytes=size)

    def size(self, digest: str) -> int | None:
        """See `ArtifactStore`."""
        check_digest(digest)
        found = self._bucket.stat(self._key(digest))
        return None if found is None else found.size_bytes

    def read(
        self, digest: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[bytes]:
        """See `ArtifactStore`. From offset 0 the last chunk comes only when the digest was right.

        A connection that breaks off is taken up again where it stopped.
        """
        check_digest(digest)
        check_range(offset, chunk_bytes)
        found = self._bucket.stat(self._key(digest))
        if found is None:
            raise not_stored(digest)
        chunks = self._chunks(digest, found, offset, chunk_bytes)
        return verified(chunks, digest) if offset == 0 else chunks

    def fetch(self, digest: str, destination: Path) -> None:
        """See `ArtifactStore`. The destination appears whole or not at all."""
        patiently(
            partial(self._fetch, digest, destination),
            seconds=self._bucket.options.patience_seconds,
            telemetry=self._bucket.telemetry,
        )

    def delete(self, digest: str) -> None:
        """See `ArtifactStore`."""
        check_digest(digest)
        self._bucket.remove(self._key(digest))
        for aside in self._entries(digest):
            self._bucket.remove(aside.key)

    def list_stored(self) -> Iterator[StoredArtifact]:
        """See `ArtifactStore`."""
        for found in self._bucket.objects(self._prefix):
            name = found.key.rpartition("/")[2]
            if is_digest(name):
                yield StoredArtifact(
                    digest=name, size_bytes=found.size_bytes, modify_time=found.modify_time
                )

    def set_aside(self, digest: str) -> int:
        """See `ArtifactStore`. S3 cannot rename: the bytes are copied inside the store, then removed."""
        check_digest(digest)
        found = self._bucket.stat(self._key(digest))
        if found is None:
            return 0
        entry = f"{self._aside}{digest}.{uuid.uuid4().hex}"
        if not self._bucket.copy(found, entry):
            return 0  # another collection was faster
        self._bucket.remove(found.key)
        return found.size_bytes

    def list_set_aside(self) -> Iterator[StoredArtifact]:
        """See `ArtifactStore`."""
        for found in self._entries(""):
            handle = found.key.rpartition("/")[2]
            yield StoredArtifact(
                digest=handle.partition(".")[0],
                size_bytes=found.size_bytes,
                modify_time=found.modify_time,
                handle=handle,
            )

    def restore(self, digest: str) -> bool:
        """See `ArtifactStore`."""
        check_digest(digest)
        for found in self._entries(digest):
            if self.size(digest) is None and not self._bucket.copy(found, self._key(digest)):
                continue
            self._bucket.remove(found.key)
            return True
        return False

    def purge(self, aside: StoredArtifact) -> None:
        """See `ArtifactStore`."""
        self._bucket.remove(f"{self._aside}{aside.handle}")

    def download_url(self, digest: str, *, lifetime: timedelta) -> SignedUrl | None:
        """See `ArtifactStore`."""
        check_digest(digest)
        if not self._offers_urls:
            return None
        return self._bucket.sign("GET", self._key(digest), lifetime=lifetime)

    def _key(self, digest: str) -> str:
        return f"{self._prefix}{digest[:2]}/{digest}"

    def _entries(self, digest: str) -> Iterator[ObjectInfo]:
        return self._bucket.objects(f"{self._aside}{digest}")

    def _put(self, source: Path, digest: str) -> None:
        key = self._key(digest)
        with source.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if self.size(digest) is not None:
                return
            parts = verified(_parts(opened, part_bytes(size)), digest)
            if size <= PART_BYTES:
                self._bucket.put(key, b"".join(parts), create_only=True)
            else:
                self._bucket.put_parts(key, parts, size_bytes=size)

    def _fetch(self, digest: str, destination: Path) -> None:
        beside = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}")
        try:
            with beside.open("xb") as copy:
                if self.size(digest) is None:
                    self.restore(digest)
                for chunk in self.read(digest):
                    copy.write(chunk)
            beside.rename(destination)
        finally:
            beside.unlink(missing_ok=True)

    def _chunks(self, digest: str, source: ObjectInfo, offset: int, size: int) -> Iterator[bytes]:
        try:
            yield from self._bucket.stream_whole(source, offset=offset, chunk_bytes=size)
        except LookupError as error:
            raise not_stored(digest) from error

    def _joined(self, sources: Sequence[ObjectInfo]) -> Iterator[bytes]:
        for source in sources:
            yield from self._bucket.stream_whole(source, chunk_bytes=CHUNK_BYTES)


def regrouped(chunks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Yield the same bytes in parts of one size, the last one excepted."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= size_bytes:
            yield bytes(held[:size_bytes])
            del held[:size_bytes]
    if held:
        yield bytes(held)


def _parts(source: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    while data := source.read(size_bytes):
        yield data
