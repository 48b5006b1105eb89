"""The error tree of tightfit; every error says what is wrong, where, and what to do.

TightfitError
├── InvalidInputError            the caller sent something that cannot be used
│   ├── InvalidModelError        the model file: not ONNX, truncated, cyclic, NaN weights, ...
│   ├── InvalidDatasetError      the dataset: shapes, labels, empty splits, ...
│   ├── InvalidBudgetError       zero, negative, contradictory or unknown limits
│   ├── InvalidTargetError       a hardware description with impossible figures
│   └── InvalidRequestError      anything else in a request: names, page tokens, field masks
├── NotFoundError                the named resource does not exist (carries near names)
├── AlreadyExistsError           the resource exists with other contents
├── PreconditionError            the resource is in a state that forbids the operation
│   └── LeaseLostError           the job is run by somebody else by now
├── UnauthenticatedError         nobody knows who is calling
│   ├── InvalidCredentialsError  a token that nobody made, or that was changed
│   ├── ExpiredCredentialsError  a token whose time is over
│   └── RevokedCredentialsError  a token that was taken back
├── PermissionDeniedError        the caller is known, and may not do this
├── UnsupportedError             understood, but not offered (by this version, pass or target)
├── ResourceExhaustedError       a quota, the disk or a size limit
│   └── LimitExceededError       too much at a time; the same call passes later
├── DeadlineExceededError        the call took longer than calls may
├── IntegrityError               bytes do not match their digest
│   └── UnreadableRecordError    what is stored of a resource is damaged, or of another version
├── UnavailableError             a store or worker cannot be reached now; retrying helps
│   └── NoRunnerError            no runner of the target is connected
├── CancelledError               the user cancelled the job
└── WorkFailedError              a unit of work failed or its process died
    ├── WorkerDiedError          the process that ran it crashed or took too much memory
    ├── GivenUpError             whoever ran the job died of it, again and again
    ├── ParityError              a converted or exported model does not compute what its source does
    ├── DivergedError            training diverged beyond what rollback could repair
    └── MeasurementFailedError   runners tried to measure and could not
"""

from __future__ import annotations


class TightfitError(Exception):
    """Base of all errors that tightfit raises on purpose.

    Attributes:
        message: What is wrong, one sentence, no internals.
        field: Path of the field at fault in the caller's words (`budget.max_latency_ms`), or "".
        remedy: What the caller can do about it, or "".
    """

    reason: str = "INTERNAL"
    """Stable machine-readable reason, UPPER_SNAKE_CASE; part of the API contract."""

    def __init__(self, message: str, *, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the message, the field and the remedy in one line."""
        where = f" [{self.field}]" if self.field else ""
        what_to_do = f" ({self.remedy})" if self.remedy else ""
        return f"{self.message}{where}{what_to_do}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with field and remedy, so that errors cross process borders whole."""
        return (_rebuild, (type(self), self.message, self.field, self.remedy))


def _rebuild(kind: type[TightfitError], message: str, field: str, remedy: str) -> TightfitError:
    return kind(message, field=field, remedy=remedy)


class InvalidInputError(TightfitError):
    """The caller sent something that cannot be used."""

    reason = "INVALID_INPUT"


class InvalidModelError(InvalidInputError):
    """The model file cannot be used."""

    reason = "INVALID_MODEL"


class InvalidDatasetError(InvalidInputError):
    """The dataset cannot be used, or does not fit the model."""

    reason = "INVALID_DATASET"


class InvalidBudgetError(InvalidInputError):
    """A limit is zero, negative, unknown, or contradicts another."""

    reason = "INVALID_BUDGET"


class InvalidTargetError(InvalidInputError):
    """A hardware description has impossible or missing figures."""

    reason = "INVALID_TARGET"


class InvalidRequestError(InvalidInputError):
    """A request has a malformed name, token, mask or argument."""

    reason = "INVALID_REQUEST"


class NotFoundError(TightfitError):
    """The named resource does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(TightfitError):
    """The resource exists already, with other contents."""

    reason = "ALREADY_EXISTS"


class PreconditionError(TightfitError):
    """The resource is in a state that forbids the operation."""

    reason = "FAILED_PRECONDITION"


class UnauthenticatedError(TightfitError):
    """The caller says nothing about who calls."""

    reason = "CREDENTIALS_MISSING"


class InvalidCredentialsError(UnauthenticatedError):
    """The credentials are malformed, unknown, or not signed by whom they name."""

    reason = "CREDENTIALS_INVALID"


class ExpiredCredentialsError(UnauthenticatedError):
    """The credentials were good once."""

    reason = "CREDENTIALS_EXPIRED"


class RevokedCredentialsError(UnauthenticatedError):
    """The credentials were taken back."""

    reason = "CREDENTIALS_REVOKED"


class PermissionDeniedError(TightfitError):
    """The caller is known and lacks the role."""

    reason = "PERMISSION_DENIED"


class LeaseLostError(PreconditionError):
    """Whoever writes does not hold the job, or not any more; what it knows of it is out of date."""

    reason = "LEASE_LOST"


class UnsupportedError(TightfitError):
    """The request is understood but not offered."""

    reason = "UNSUPPORTED"


class ResourceExhaustedError(TightfitError):
    """A quota, the disk or a size limit is used up."""

    reason = "RESOURCE_EXHAUSTED"


class LimitExceededError(ResourceExhaustedError):
    """A project asks more at a time than it may; the same call passes later.

    Attributes:
        retry_seconds: After which it is worth while to ask again.
    """

    reason = "LIMIT_EXCEEDED"

    def __init__(
        self, message: str, *, field: str = "", remedy: str = "", retry_seconds: float = 1.0
    ) -> None:
        super().__init__(message, field=field, remedy=remedy)
        self.retry_seconds = retry_seconds


class DeadlineExceededError(TightfitError):
    """A call took longer than calls without a deadline may."""

    reason = "DEADLINE_EXCEEDED"


class IntegrityError(TightfitError):
    """Bytes do not match the digest they were announced with."""

    reason = "DIGEST_MISMATCH"


class UnreadableRecordError(IntegrityError):
    """What is stored of a resource is damaged, or was written by a version that this one does not understand."""

    reason = "UNREADABLE_RECORD"


class UnavailableError(TightfitError):
    """A store or a worker cannot be reached at present; retrying helps."""

    reason = "UNAVAILABLE"


class NoRunnerError(UnavailableError):
    """No runner of the target is connected."""

    reason = "NO_RUNNER"


class CancelledError(TightfitError):
    """The user cancelled the job."""

    reason = "CANCELLED"


class WorkFailedError(TightfitError):
    """A unit of work failed, or the process that ran it died."""

    reason = "WORK_FAILED"


class WorkerDiedError(WorkFailedError):
    """The process that ran a unit of work crashed, or was killed for the memory it held."""

    reason = "WORKER_DIED"


class GivenUpError(WorkFailedError):
    """Whoever ran the job ended without an orderly stop, several times at the same unit of work.

    Only lives count in which something of the job ran, not those in which it waited for a worker.
    """

    reason = "GIVEN_UP"


class ParityError(WorkFailedError):
    """A converted or exported model does not compute what its source computes."""

    reason = "PARITY_FAILED"


class DivergedError(WorkFailedError):
    """Training diverged beyond what rollback could repair."""

    reason = "TRAINING_DIVERGED"


class MeasurementFailedError(WorkFailedError):
    """Runners tried to measure a model on a device and could not."""

    reason = "MEASUREMENT_FAILED"
