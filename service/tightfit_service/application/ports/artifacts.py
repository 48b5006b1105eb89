"""Immutable bytes and resumable uploads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """What a listing tells of stored bytes.

    Attributes:
        modify_time: When they were stored, or set aside; by the store's clock, UTC.
        handle: Of bytes that were set aside: which ones, for `ArtifactStore.purge`.
    """

    digest: str
    size_bytes: int
    modify_time: datetime
    handle: str = ""


@dataclass(frozen=True, kw_only=True)
class SignedUrl:
    """An address at which a client sends or fetches bytes without this service; a secret until it expires.

    Attributes:
        method: HTTP method, `GET` or `PUT`.
        headers: That the request must carry exactly so.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    expire_time: datetime


class ArtifactStore(Protocol):
    """Immutable bytes of one project by digest (lower-case hex sha-256). Safe for many threads and processes.

    All methods raise UnavailableError when the store is down and ResourceExhaustedError when it is full.
    """

    def put(self, source: Path, digest: str, *, is_verified: bool = False) -> None:
        """Store a file under its digest; storing what is there already does nothing.

        The bytes are verified while they are copied, and appear whole or not at all. `is_verified`
        says that the caller has just computed the digest of this file, so that a store which need
        not read it may leave that out.

        Raises:
            IntegrityError: The file does not have that digest.
        """
        ...

    def size(self, digest: str) -> int | None:
        """Return the size in bytes, or None when the digest is not stored."""
        ...

    def read(self, digest: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Yield the bytes from `offset` on.

        Raises:
            NotFoundError: The digest is not stored.
        """
        ...

    def fetch(self, digest: str, destination: Path) -> None:
        """Copy to a local file, verifying the digest; bytes that were set aside are restored for it.

        Raises:
            NotFoundError: The digest is not stored.
            IntegrityError: What is stored does not match the digest.
        """
        ...

    def delete(self, digest: str) -> None:
        """Remove the bytes for good; removing what is not there does nothing."""
        ...

    def list_stored(self) -> Iterator[StoredArtifact]:
        """Yield all that is stored, in no order; what was set aside is not among it."""
        ...

    def set_aside(self, digest: str) -> int:
        """Take the bytes out of sight and return how many they were; 0 where they are not stored.

        `size` and `read` no longer find them and `put` stores them anew, while `fetch` and `restore`
        bring them back, until `purge` removes them for good.
        """
        ...

    def list_set_aside(self) -> Iterator[StoredArtifact]:
        """Yield what was set aside and is not purged, in no order."""
        ...

    def restore(self, digest: str) -> bool:
        """Bring back what was set aside; false where there is nothing to bring back."""
        ...

    def purge(self, aside: StoredArtifact) -> None:
        """Remove bytes that `list_set_aside` told of; those that are gone already do no harm."""
        ...

    def download_url(self, digest: str, *, lifetime: timedelta) -> SignedUrl | None:
        """Return where clients may fetch the bytes directly; None where this store offers no such thing."""
        ...


class ArtifactStores(Protocol):
    """The artifacts of all projects, each apart from the others."""

    def of(self, project: str) -> ArtifactStore:
        """Return the store of a project; it sees nothing of what others stored, equal bytes included."""
        ...

    def projects(self) -> Sequence[str]:
        """Return the projects that something is stored or set aside for."""
        ...

    def collect_remains(self, *, older_than: timedelta) -> int:
        """Remove what writers that died left unfinished so long ago; return the bytes, 0 where unknown."""
        ...

    def check(self) -> None:
        """Raise UnavailableError unless artifacts can be read and written now."""
        ...


@dataclass(frozen=True, kw_only=True)
class UploadTicket:
    """What was announced when an upload was opened."""

    upload_id: str
    project: str
    kind: str
    size_bytes: int
    digest: str
    display_name: str


class UploadStaging(Protocol):
    """Where unfinished uploads wait, apart by project; they survive a restart of the server.

    One caller at a time per upload; different uploads may be written from different threads.
    """

    def open(self, ticket: UploadTicket) -> int:
        """Open an upload, or find it again, and return the committed size in bytes.

        Raises:
            AlreadyExistsError: The project uses the id for other bytes.
            ResourceExhaustedError: There is no room for what was announced.
        """
        ...

    def find(self, project: str, upload_id: str) -> tuple[UploadTicket, int]:
        """Return the ticket and the committed size. Raises NotFoundError."""
        ...

    def append(self, project: str, upload_id: str, *, offset: int, data: bytes) -> int:
        """Take bytes for `offset`, which must be the size so far, and return the new size.

        They are committed by the next `flush` or `complete` at the latest.

        Raises:
            PreconditionError: Another offset; the message tells the right one.
            InvalidRequestError: More bytes than announced.
            ResourceExhaustedError: The disk is full; what was committed stays.
        """
        ...

    def flush(self, project: str, upload_id: str) -> int:
        """Commit what was appended and return the committed size; an unknown upload has none."""
        ...

    def complete(self, project: str, upload_id: str) -> None:
        """Verify size and digest and store the bytes as an artifact; the upload stays until `discard`.

        Raises:
            PreconditionError: Bytes are missing.
            IntegrityError: The digest differs; the upload is discarded.
        """
        ...

    def discard(self, project: str, upload_id: str) -> None:
        """Remove an upload; one that is not there is no error."""
        ...

    def direct_url(self, ticket: UploadTicket, *, lifetime: timedelta) -> SignedUrl | None:
        """Return where a client may send all bytes of an open upload at once; None where it must not.

        What arrives there counts as committed when it has the announced size.
        """
        ...

    def expire(self, *, older_than: timedelta, dry_run: bool = False) -> int:
        """Remove uploads that nothing was appended to for so long; return their number."""
        ...


class StoreTelemetry(Protocol):
    """Where stores of artifacts tell what was asked of them. Thread-safe; returns at once."""

    def store_request(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        """Report a request that ended.

        Args:
            store: `s3` or `folder`.
            operation: `put`, `get`, `stat`, `list`, `copy`, `delete`, `multipart`, or `other`.
            outcome: `ok`, `missing`, `conflict` (it is there already), `refused`, `busy`, `full`,
                `corrupt`, or `failed`.
            seconds: What it took.
        """
        ...

    def store_retried(self, store: str, reason: str) -> None:
        """Report that something is tried again: the answer's HTTP status, `connection`, or `transfer`."""
        ...
