"""Immutable bytes and resumable uploads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
        """Copy to a local file, verifying the digest.

        Raises:
            NotFoundError: The digest is not stored.
            IntegrityError: What is stored does not match the digest.
        """
        ...

    def delete(self, digest: str) -> None:
        """Remove the bytes; removing what is not there does nothing."""
        ...


class ArtifactStores(Protocol):
    """The artifacts of all projects, each apart from the others."""

    def of(self, project: str) -> ArtifactStore:
        """Return the store of a project; it sees nothing of what others stored, equal bytes included."""
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
    """Where unfinished uploads wait; they survive a restart of the server.

    One caller at a time per upload; different uploads may be written from different threads.
    """

    def open(self, ticket: UploadTicket) -> int:
        """Open an upload, or find it again, and return the committed size in bytes.

        Raises:
            AlreadyExistsError: The id is in use for other bytes.
            ResourceExhaustedError: There is no room for what was announced.
        """
        ...

    def find(self, upload_id: str) -> tuple[UploadTicket, int]:
        """Return the ticket and the committed size. Raises NotFoundError."""
        ...

    def append(self, upload_id: str, *, offset: int, data: bytes) -> int:
        """Write at the committed size, which `offset` must be, and return the new size.

        Raises:
            PreconditionError: Another offset; the message tells the right one.
            InvalidRequestError: More bytes than announced.
            ResourceExhaustedError: The disk is full; what was committed stays.
        """
        ...

    def complete(self, upload_id: str) -> Path:
        """Verify size and digest and return the file, which stays until `discard`.

        Raises:
            PreconditionError: Bytes are missing.
            IntegrityError: The digest differs; the upload is discarded.
        """
        ...

    def discard(self, upload_id: str) -> None:
        """Remove an upload; one that is not there is no error."""
        ...
