"""From a failed call to the client's error: one table by status code, details from google.rpc.Status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # generated without types
    error_details_pb2,
    status_pb2,
)

from tightfit import errors

ERROR_BY_CODE: Mapping[grpc.StatusCode, type[errors.TightfitError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInputError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInputError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.PreconditionError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessError,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessError,
    grpc.StatusCode.DATA_LOSS: errors.IntegrityError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.UnavailableError,
    grpc.StatusCode.ABORTED: errors.UnavailableError,
    grpc.StatusCode.CANCELLED: errors.CancelledError,
    grpc.StatusCode.INTERNAL: errors.ServerError,
    grpc.StatusCode.UNKNOWN: errors.ServerError,
}
_DETAILS_KEY = "grpc-status-details-bin"
# what gRPC itself says when a peer dies in mid-stream; the server never answers with these words
_BROKEN_STREAM = ("RST_STREAM", "Stream removed", "Connection reset", "GOAWAY")
# what gRPC writes before the cause that a user can do something about
_NOT_CONNECTED = "Failed to connect to remote host: "
_NOT_TRUSTED = "CERTIFICATE_VERIFY_FAILED: "


def error_from_rpc(error: grpc.RpcError, *, server: str) -> errors.TightfitError:
    """Return the client's error for a failed call, with reason, field and remedy where the server gave them.

    Args:
        error: What a synchronous or an asyncio call raised.
        server: Address of the server, for the message when it cannot be reached.
    """
    code, text = error.code(), error.details() or ""
    status = _rich_status(error)
    if status is None:
        return _plain_error(code, text, server)
    reason = field = remedy = request_id = ""
    retry_seconds: float | None = None
    message = status.message or text
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
            remedy = info.metadata.get("remedy", remedy)
            field = info.metadata.get("field", field)
            request_id = info.metadata.get("request_id", request_id)
            continue
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request) and bad_request.field_violations:
            field = field or bad_request.field_violations[0].field
            continue
        help_ = error_details_pb2.Help()
        if detail.Unpack(help_) and help_.links:
            remedy = remedy or help_.links[0].description
            continue
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(request):
            request_id = request_id or request.request_id
            continue
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_seconds is not None:
        # a limit on what is asked at a time; of a quota or a full disk the server says no such delay
        return errors.LimitExceededError(
            message,
            field=field,
            remedy=remedy,
            reason=reason,
            request_id=request_id,
            retry_seconds=retry_seconds,
        )
    kind = ERROR_BY_CODE.get(code, errors.ServerError)
    return kind(message, field=field, remedy=remedy, reason=reason, request_id=request_id)


def _plain_error(code: grpc.StatusCode, text: str, server: str) -> errors.TightfitError:
    """Return the error for a status that gRPC made itself, or a server that is not ours."""
    kind = ERROR_BY_CODE.get(code, errors.ServerError)
    if kind is errors.ServerError and any(words in text for words in _BROKEN_STREAM):
        kind = errors.UnavailableError
    if kind is errors.UnavailableError and _NOT_TRUSTED in text:
        cause = text.rpartition(_NOT_TRUSTED)[2].removesuffix(": OK")
        return kind(
            f"the certificate of the server at {server} is not trusted: {cause}",
            field="--ca-file",
            remedy="give the PEM file of the authority that signed it",
        )
    if kind is errors.UnavailableError:
        cause = text.rpartition(_NOT_CONNECTED)[2] or code.name.lower()
        return kind(
            f"the server at {server} cannot be reached: {cause}",
            field="--server",
            remedy="check the address, --tls, and that the server runs (`tightfit serve`); "
            "--local needs none",
        )
    if kind is errors.UnsupportedError:
        remedy = "check that the address is that of a tightfit server of this version"
        return kind(text or "the server does not offer this call", remedy=remedy)
    return kind(text or f"the call failed with {code.name}")


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status in the trailing metadata, or None."""
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
