"""What every staging of uploads refuses, in the same words."""

from __future__ import annotations

from tightfit_service.application.ports import UploadTicket
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    IntegrityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)


def check_same_upload(known: UploadTicket, asked: UploadTicket) -> None:
    """Refuse to open an upload under an id that stands for other bytes.

    Raises:
        AlreadyExistsError: It does.
    """
    if (known.digest, known.size_bytes, known.kind) != (asked.digest, asked.size_bytes, asked.kind):
        raise AlreadyExistsError(
            f"upload {asked.upload_id!r} was opened for other bytes",
            field="upload_id",
            remedy="leave the id out to let the server choose one",
        )


def check_next(ticket: UploadTicket, committed: int, *, offset: int, data: bytes) -> None:
    """Refuse bytes that do not go on where an upload stands, and more than were announced.

    Raises:
        PreconditionError: Another offset is due, which the message tells.
        InvalidRequestError: Too many bytes.
    """
    if offset != committed:
        raise PreconditionError(
            f"bytes were sent for offset {offset}, but {committed} are committed",
            field="offset",
            remedy=f"resume at {committed}",
        )
    if offset + len(data) > ticket.size_bytes:
        raise InvalidRequestError(
            f"more than the announced {ticket.size_bytes} bytes were sent",
            field="data",
            remedy="announce the file's true size",
        )


def check_whole(ticket: UploadTicket, committed: int) -> None:
    """Refuse to complete an upload before its last byte.

    Raises:
        PreconditionError: Bytes are missing.
    """
    if committed != ticket.size_bytes:
        raise PreconditionError(
            f"{committed} of {ticket.size_bytes} bytes have arrived",
            field="offset",
            remedy=f"resume at {committed}",
        )


def other_bytes() -> IntegrityError:
    """Return the error for an upload whose bytes have another digest than announced."""
    return IntegrityError(
        "the bytes that arrived do not have the announced digest; the upload was discarded",
        field="digest",
        remedy="send the file again",
    )


def no_upload(upload_id: str) -> NotFoundError:
    """Return the error for an upload that is not there."""
    return NotFoundError(f"no upload {upload_id!r}", field="upload_id", remedy="start a new upload")
