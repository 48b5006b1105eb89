"""The two ends of a transfer on this side: a file that is sent in pieces, a file that arrives in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tightfit.errors import IntegrityError, InvalidInputError, TightfitError

if TYPE_CHECKING:
    from typing_extensions import Self

CHUNK_BYTES = 2 << 20
"""Of a message: uploads over loopback take a quarter less time than with 1 MiB; servers take 4 MiB at most."""
ProgressCallback = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; returns quickly."""


@dataclass(frozen=True)
class OutgoingFile:
    """A file as it is announced to the server; `digest` is its lower-case hex sha-256."""

    path: Path
    display_name: str
    digest: str
    size_bytes: int


def file_digest(path: Path) -> str:
    """Return the lower-case hex sha-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Sending:
    """One client stream that sends a file from an offset on, never more than `size` bytes in all.

    Attributes:
        stub: Stub of the service.
        method: Name of the streaming method.
        path: The file.
        header: First message of the stream.
        message: Makes a message of `data=bytes`.
        offset: Bytes that the server has.
        size: Bytes that were announced.
        on_progress: Told after each piece that gRPC took.
    """

    stub: type
    method: str
    path: Path
    header: Any
    message: Callable[..., Any]
    offset: int
    size: int
    on_progress: ProgressCallback | None


def upload_messages(sending: Sending, *, on_progress: ProgressCallback | None) -> Iterator[Any]:
    """Yield the header, then the bytes from the offset on."""
    yield sending.header
    offset, size = sending.offset, sending.size
    with sending.path.open("rb") as file:
        file.seek(offset)
        while offset < size and (data := file.read(min(CHUNK_BYTES, size - offset))):
            yield sending.message(data=data)
            offset += len(data)
            if on_progress is not None:
                on_progress(offset, size)


class ArrivingFile:
    """A file that is written beside its destination and appears there whole and verified, or not at all.

    What an earlier attempt left (`<name>.part`) is taken up again. Not safe for several threads.
    """

    def __init__(self, destination: Path, digest: str) -> None:
        """Open the part file and digest what is in it.

        Raises:
            InvalidInputError: The folder is missing or cannot be written.
        """
        self.destination = destination
        self.digest = digest
        self.is_placed = False
        self._part = destination.with_name(destination.name + ".part")
        self._hash = hashlib.sha256()
        try:
            self._file = self._part.open("a+b")
        except OSError as error:
            raise InvalidInputError(
                f"cannot write {destination}: {error}",
                field=str(destination),
                remedy="give a folder that exists and can be written",
            ) from error
        self._file.seek(0)
        while block := self._file.read(CHUNK_BYTES):
            self._hash.update(block)
        self.offset = self._file.tell()
        self._was_resumed = self.offset > 0

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the part file; unless it was put into its place, it stays for a later attempt."""
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def refused(self, error: TightfitError) -> None:
        """Begin again where the offset cannot be: what an earlier attempt left is something else.

        Raises:
            TightfitError: `error` itself, where nothing was left that could be to blame.
        """
        if not (self._was_resumed and isinstance(error, InvalidInputError)):
            raise error
        self._restart()

    def distrust(self) -> None:
        """Begin again, rather than give up, where what arrives now turns out to be something else."""
        self._was_resumed = True

    def finish(self) -> None:
        """Put the file in its place; where leftovers spoilt it, begin again instead.

        Raises:
            IntegrityError: The bytes do not have the digest; they are removed.
        """
        found = self._hash.hexdigest()
        if found == self.digest:
            self._file.close()
            self._part.replace(self.destination)
            self.is_placed = True
        elif self._was_resumed:
            self._restart()
        else:
            self._file.close()
            self._part.unlink()
            raise IntegrityError(
                f"{self.destination.name} arrived with sha-256 {found}, not {self.digest}",
                remedy="download it again; if it happens twice, the store is damaged",
            )

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0
        self._was_resumed = False
