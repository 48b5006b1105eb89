"""The one table of domain errors and status codes, and how an error travels: as `google.rpc.Status`."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import (  # type: ignore[import-untyped]  # ships no types
    error_details_pb2,
    status_pb2,
)

from tightfit_service.domain.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    IntegrityError,
    InvalidInputError,
    LimitExceededError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    ResourceExhaustedError,
    TightfitError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    WorkFailedError,
)

ERROR_DOMAIN = "tightfit.dev"
DETAILS_KEY = "grpc-status-details-bin"
"""Metadata key under which gRPC carries a serialized `google.rpc.Status`."""

RETRY_SECONDS = 1.0
MAX_MESSAGE_CHARACTERS = 2_000
"""Trailing metadata is bounded (8 KiB by default in gRPC), and carries the message twice."""

STATUS_CODES: Mapping[type[TightfitError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    IntegrityError: grpc.StatusCode.DATA_LOSS,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    CancelledError: grpc.StatusCode.CANCELLED,
    WorkFailedError: grpc.StatusCode.INTERNAL,
    TightfitError: grpc.StatusCode.INTERNAL,
}


def status_code(error: TightfitError) -> grpc.StatusCode:
    """Return the code of the error's nearest class in the table."""
    return next(STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)


def to_status(
    error: TightfitError, *, resource_name: str = "", request_id: str = ""
) -> status_pb2.Status:
    """Return the error as it travels.

    Args:
        error: What went wrong.
        resource_name: The name that the request was about, for errors on missing resources.
        request_id: Id under which the server logs the request.
    """
    code = status_code(error)
    message = _bounded(error.message)
    facts = {"field": error.field, "remedy": _bounded(error.remedy), "request_id": request_id}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=ERROR_DOMAIN,
            metadata={key: value for key, value in facts.items() if value},
        )
    ]
    if code is grpc.StatusCode.INVALID_ARGUMENT and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=facts["remedy"] or message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS):
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=error.field, resource_name=resource_name, description=facts["remedy"]
            )
        )
    retry_seconds = _retry_seconds(error, code)
    if retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(code, message, details)


def _retry_seconds(error: TightfitError, code: grpc.StatusCode) -> float | None:
    """Return when it is worth while to ask again, None where it never is."""
    if isinstance(error, LimitExceededError):
        return error.retry_seconds
    return RETRY_SECONDS if code is grpc.StatusCode.UNAVAILABLE else None


def internal_status(*, request_id: str) -> status_pb2.Status:
    """Return what a caller learns of an error that was not foreseen: the id to look it up by."""
    info = error_details_pb2.ErrorInfo(
        reason="INTERNAL", domain=ERROR_DOMAIN, metadata={"request_id": request_id}
    )
    return _status(
        grpc.StatusCode.INTERNAL,
        f"the server failed in a way that was not foreseen; its log has more under {request_id}",
        [info],
    )


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        item = AnyMessage()
        item.Pack(detail)
        packed.append(item)
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=message, details=packed)


def _bounded(text: str) -> str:
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    return text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
