"""An artifact store that keeps bytes in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from tightfit_service.adapters.storage.content import check_project
from tightfit_service.domain.errors import (
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)


class InMemoryArtifactStore:
    """Implements `ArtifactStore`; `is_down` and `capacity_bytes` play failures."""

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.contents: dict[str, bytes] = {}
        self.is_down = False
        self.capacity_bytes = capacity_bytes
        self.fetch_count = 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> str:
        """Store bytes directly and return their digest: a short cut for tests."""
        digest = hashlib.sha256(data).hexdigest()
        self.contents[digest] = data
        return digest

    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        del is_verified
        self._check_usable(digest)
        with self._lock:
            if digest in self.contents:
                return
            data = source.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise IntegrityError("the bytes do not have the announced digest", field="digest")
            used = sum(map(len, self.contents.values()))
            if self.capacity_bytes is not None and used + len(data) > self.capacity_bytes:
                raise ResourceExhaustedError("the artifact store is full")
            self.contents[digest] = data

    def size(self, digest: str) -> int | None:
        self._check_usable(digest)
        data = self.contents.get(digest)
        return None if data is None else len(data)

    def read(self, digest: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        if offset < 0 or chunk_bytes < 1:
            raise InvalidRequestError("offset or chunk size out of range", field="offset")
        data = self._stored(digest)
        return (data[at : at + chunk_bytes] for at in range(offset, len(data), chunk_bytes))

    def fetch(self, digest: str, destination: Path) -> None:
        data = self._stored(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise IntegrityError("stored bytes do not match their digest", field="digest")
        self.fetch_count += 1
        destination.write_bytes(data)

    def delete(self, digest: str) -> None:
        self._check_usable(digest)
        self.contents.pop(digest, None)

    def _stored(self, digest: str) -> bytes:
        self._check_usable(digest)
        data = self.contents.get(digest)
        if data is None:
            raise NotFoundError(f"no artifact has the digest {digest}", field="digest")
        return data

    def _check_usable(self, digest: str) -> None:
        if self.is_down:
            raise UnavailableError("the artifact store is down")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise InvalidRequestError(f"{digest!r} is not a sha-256 digest", field="digest")


class InMemoryArtifactStores:
    """Implements `ArtifactStores`; `default` is the store that most tests use."""

    def __init__(self, default: InMemoryArtifactStore | None = None) -> None:
        self.stores = {"default": default or InMemoryArtifactStore()}

    @property
    def default(self) -> InMemoryArtifactStore:
        """The store of the project `default`."""
        return self.of("default")

    def of(self, project: str) -> InMemoryArtifactStore:
        check_project(project)
        return self.stores.setdefault(project, InMemoryArtifactStore())

    def check(self) -> None:
        if any(store.is_down for store in self.stores.values()):
            raise UnavailableError("the artifact store is down")
