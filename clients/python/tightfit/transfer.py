"""The two ends of a transfer on this side: a file that is sent in pieces, a file that arrives in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tightfit.errors import IntegrityError, InvalidInputError

CHUNK_BYTES = 1 << 20
ProgressCallback = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; returns quickly."""


def upload_messages(
    path: Path,
    *,
    header: Any,
    message: Callable[..., Any],
    offset: int,
    size: int,
    on_progress: ProgressCallback | None,
) -> Iterator[Any]:
    """Yield the header, then the bytes from `offset` on; never more than `size` in all.

    Args:
        path: The file.
        header: First message of the stream.
        message: Makes a message of `data=bytes`.
        offset: Bytes that the server has.
        size: Bytes that were announced.
        on_progress: Told after each piece that gRPC took.
    """
    yield header
    with path.open("rb") as file:
        file.seek(offset)
        while offset < size and (data := file.read(min(CHUNK_BYTES, size - offset))):
            yield message(data=data)
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
        self.was_resumed = self.offset > 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Drop what is there and begin again."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0
        self.was_resumed = False

    def is_whole(self) -> bool:
        """Whether the bytes so far have the digest."""
        return self._hash.hexdigest() == self.digest

    def finish(self) -> None:
        """Put the file in its place.

        Raises:
            IntegrityError: The bytes do not have the digest; they are removed.
        """
        self._file.close()
        if not self.is_whole():
            self._part.unlink()
            raise IntegrityError(
                f"{self.destination.name} arrived with sha-256 {self._hash.hexdigest()}, "
                f"not {self.digest}",
                remedy="download it again; if it happens twice, the store is damaged",
            )
        self._part.replace(self.destination)

    def close(self) -> None:
        """Close the part file, keeping it for a later attempt."""
        self._file.close()
