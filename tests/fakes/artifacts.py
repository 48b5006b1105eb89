"""An artifact store that keeps bytes in memory."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tightfit_service.adapters.storage.content import check_project
from tightfit_service.application.ports import SignedUrl, StoredArtifact
from tightfit_service.domain.errors import (
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


class InMemoryArtifactStore:
    """Implements `ArtifactStore`; `is_down` and `capacity_bytes` play failures."""

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.contents: dict[str, bytes] = {}
        self.is_down = False
        self.capacity_bytes = capacity_bytes
        self.fetch_count = 0
        self.aside: dict[str, tuple[bytes, datetime]] = {}
        self.put_times: dict[str, datetime] = {}
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.public_url = ""
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
            self.put_times[digest] = self.clock()

    def size(self, digest: str) -> int | None:
        self._check_usable(digest)
        data = self.contents.get(digest)
        return None if data is None else len(data)

    def read(self, digest: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        if offset < 0 or chunk_bytes < 1:
            raise InvalidRequestError("offset or chunk size out of range", field="offset")
        data = self._stored(digest)
        self.fetch_count += 1
        return (data[at : at + chunk_bytes] for at in range(offset, len(data), chunk_bytes))

    def fetch(self, digest: str, destination: Path) -> None:
        if digest not in self.contents:
            self.restore(digest)
        data = self._stored(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise IntegrityError("stored bytes do not match their digest", field="digest")
        self.fetch_count += 1
        destination.write_bytes(data)

    def delete(self, digest: str) -> None:
        self._check_usable(digest)
        self.contents.pop(digest, None)
        for handle in [name for name in self.aside if name.startswith(f"{digest}.")]:
            del self.aside[handle]

    def list_stored(self) -> Iterator[StoredArtifact]:
        self._check_usable("0" * 64)
        for digest, data in list(self.contents.items()):
            yield StoredArtifact(
                digest=digest, size_bytes=len(data), modify_time=self.put_times.get(digest, _EPOCH)
            )

    def set_aside(self, digest: str) -> int:
        self._check_usable(digest)
        with self._lock:
            data = self.contents.pop(digest, None)
            if data is None:
                return 0
            handle = f"{digest}.{len(self.aside)}.{uuid.uuid4().hex}"
            self.aside[handle] = (data, self.clock())
            return len(data)

    def list_set_aside(self) -> Iterator[StoredArtifact]:
        self._check_usable("0" * 64)
        for handle, (data, when) in list(self.aside.items()):
            yield StoredArtifact(
                digest=handle.partition(".")[0],
                size_bytes=len(data),
                modify_time=when,
                handle=handle,
            )

    def restore(self, digest: str) -> bool:
        with self._lock:
            for handle in [name for name in self.aside if name.startswith(f"{digest}.")]:
                self.contents[digest], _ = self.aside.pop(handle)
                self.put_times[digest] = self.clock()
                return True
        return False

    def purge(self, aside: StoredArtifact) -> None:
        self.aside.pop(aside.handle, None)

    def download_url(self, digest: str, *, lifetime: timedelta) -> SignedUrl | None:
        self._check_usable(digest)
        if not self.public_url:
            return None
        return SignedUrl(
            method="GET", url=f"{self.public_url}/{digest}", expire_time=self.clock() + lifetime
        )

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

    def projects(self) -> Sequence[str]:
        return sorted(self.stores)

    def collect_remains(self, *, older_than: timedelta) -> int:
        del older_than
        return 0

    def check(self) -> None:
        if any(store.is_down for store in self.stores.values()):
            raise UnavailableError("the artifact store is down")
