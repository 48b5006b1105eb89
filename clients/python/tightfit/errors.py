"""The errors that the client raises, mirrored from google.rpc.Status; every one says what to do.

TightfitError
├── InvalidInputError       the request, a file or an option cannot be used (exit code 2)
├── NotFoundError           the named resource does not exist
├── AlreadyExistsError      the resource exists with other contents
├── PreconditionError       the resource is in a state that forbids the operation
├── UnsupportedError        understood, but not offered by this server
├── ResourceExhaustedError  a quota, the disk or a size limit is used up
│   └── LimitExceededError  too much at a time; the same call passes later
├── AccessError             the caller is not known, or may not do this
├── IntegrityError          bytes do not match their digest
├── UnavailableError        the server cannot be reached now; retrying helps (exit code 5)
├── CancelledError          the call was cancelled
└── ServerError             the server failed in a way that it did not mean to
"""

from __future__ import annotations


class TightfitError(Exception):
    """Base of all errors that the client raises on purpose.

    Attributes:
        message: What is wrong, one sentence.
        reason: Stable machine-readable reason of the server (`INVALID_BUDGET`), or "".
        field: Path of the field, option or file at fault, or "".
        remedy: What to do about it, or "".
        request_id: Id under which the server logged the failure, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        remedy: str = "",
        reason: str = "",
        request_id: str = "",
    ) -> None:
        """Keep the parts of the message for those who show them apart."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.reason = reason
        self.request_id = request_id

    def __str__(self) -> str:
        """Return the message, the field and the remedy in one line."""
        where = f" [{self.field}]" if self.field else ""
        what_to_do = f" ({self.remedy})" if self.remedy else ""
        return f"{self.message}{where}{what_to_do}"


class InvalidInputError(TightfitError):
    """The request, a file or an option cannot be used."""


class NotFoundError(TightfitError):
    """The named resource does not exist."""


class AlreadyExistsError(TightfitError):
    """The resource exists already, with other contents."""


class PreconditionError(TightfitError):
    """The resource is in a state that forbids the operation."""


class UnsupportedError(TightfitError):
    """The request is understood but not offered by this server."""


class ResourceExhaustedError(TightfitError):
    """A quota, the disk or a size limit is used up."""


class LimitExceededError(ResourceExhaustedError):
    """The project asks more at a time than it may; clients wait and repeat the call by themselves.

    Attributes:
        retry_seconds: After which the server says that it is worth while to ask again.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        remedy: str = "",
        reason: str = "",
        request_id: str = "",
        retry_seconds: float = 0.0,
    ) -> None:
        """Keep the delay with the parts of the message."""
        super().__init__(message, field=field, remedy=remedy, reason=reason, request_id=request_id)
        self.retry_seconds = retry_seconds


class AccessError(TightfitError):
    """The caller is not known to the server, or may not do this."""


class IntegrityError(TightfitError):
    """Bytes do not match the digest they were announced with."""


class UnavailableError(TightfitError):
    """The server cannot be reached now; retrying helps."""


class CancelledError(TightfitError):
    """The call was cancelled."""


class ServerError(TightfitError):
    """The server failed in a way that it did not mean to."""
