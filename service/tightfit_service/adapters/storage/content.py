"""Digests of content: checking their form, and verifying bytes while they pass by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from tightfit_service.domain.errors import IntegrityError, InvalidRequestError, NotFoundError

CHUNK_BYTES = 1 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")


def check_digest(digest: str) -> None:
    """Refuse anything but a lower-case hex sha-256, before it becomes part of a path or a key.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequestError(
            f"{digest[:80]!r} is not a sha-256 digest",
            field="digest",
            remedy="give 64 hexadecimal digits in lower case",
        )


def is_digest(name: str) -> bool:
    """Whether a name in a store is a digest, and not something else that lies beside artifacts."""
    return _DIGEST.fullmatch(name) is not None


def is_project(name: str) -> bool:
    """Whether a name in a store can be the id of a project."""
    return _PROJECT.fullmatch(name) is not None


def check_project(project: str) -> None:
    """Refuse anything but the id of a project, before it becomes part of a path or a key.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not _PROJECT.fullmatch(project):
        raise InvalidRequestError(
            f"{project[:80]!r} is not the id of a project",
            field="project",
            remedy="use letters, digits, dots, dashes, underscores; begin with a letter or digit",
        )


def check_range(offset: int, chunk_bytes: int) -> None:
    """Refuse a negative offset and an empty chunk.

    Raises:
        InvalidRequestError: One of them is out of range.
    """
    if offset < 0:
        raise InvalidRequestError(
            f"offset is {offset}", field="offset", remedy="start at 0 or later"
        )
    if chunk_bytes < 1:
        raise InvalidRequestError(
            f"chunk_bytes is {chunk_bytes}", field="chunk_bytes", remedy="ask for a byte at least"
        )


def verified(chunks: Iterable[bytes], digest: str) -> Iterator[bytes]:
    """Yield whole contents chunk by chunk, the last one only when the digest proved right.

    Raises:
        IntegrityError: The contents have another digest.
    """
    seen = hashlib.sha256()
    held: bytes | None = None
    for chunk in chunks:
        seen.update(chunk)
        if held is not None:
            yield held
        held = chunk
    if seen.hexdigest() != digest:
        raise mismatch(digest, seen.hexdigest())
    if held is not None:
        yield held


def mismatch(expected: str, actual: str) -> IntegrityError:
    """Return the error for bytes that have another digest than expected."""
    return IntegrityError(
        f"the bytes have digest {actual}, not {expected}",
        field="digest",
        remedy="send the file again; if this repeats, check the disk or the network",
    )


def not_stored(digest: str) -> NotFoundError:
    """Return the error for a digest that the store does not hold."""
    return NotFoundError(
        f"no artifact has the digest {digest}",
        field="digest",
        remedy="it may have been deleted; upload it again",
    )
