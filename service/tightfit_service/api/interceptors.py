"""What happens around every RPC: errors become statuses, requests get ids, metrics and log lines."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol

import grpc
import structlog
from google.rpc import status_pb2  # type: ignore[import-untyped]  # ships no types

from tightfit_service.api.errors import DETAILS_KEY, internal_status, to_status
from tightfit_service.api.handlers import form_of
from tightfit_service.application import tracing
from tightfit_service.domain.errors import TightfitError

REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
MAX_REQUEST_ID_LENGTH = 128

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_log = structlog.get_logger(__name__)


class RpcMetrics(Protocol):
    """Where finished RPCs are counted. Called on the event loop; must return quickly and not raise."""

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """Report an RPC: `tightfit.v1.CompressionService/GetJob`, `OK`, and how long it took.

        For streams `seconds` is the life of the stream.
        """
        ...

    def rpc_refused(self, reason: str) -> None:
        """Report an error of the contract that a call ended with, by its reason."""
        ...


class BoundaryInterceptor(grpc.aio.ServerInterceptor):
    """The outermost layer of every RPC, and the only place of the API that catches what it does not know."""

    def __init__(
        self, *, metrics: RpcMetrics, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        self._metrics = metrics
        self._monotonic = monotonic

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method; unknown methods are left to gRPC, which refuses them."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method).lstrip("/")
        make, behaviour = form_of(handler)
        wrap = self._streaming if handler.response_streaming else self._single
        wrapped = wrap(method, behaviour)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> Any:
            async with self._boundary(method, request, context):
                return await behaviour(request, context)

        return handle

    def _streaming(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.isasyncgenfunction(behaviour):
            # Such handlers write to the context themselves (grpc_health does).
            return self._single(method, behaviour)

        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                self._boundary(method, request, context),
                aclosing(behaviour(request, context)) as responses,
            ):
                async for response in responses:
                    yield response

        return handle

    @asynccontextmanager
    async def _boundary(self, method: str, request: Any, context: Any) -> AsyncIterator[None]:
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        start = self._monotonic()
        code = "CANCELLED"
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id, method=method),
            _span(method, request_id, context),
        ):
            try:
                yield
                code = _code_of(context)
            except TightfitError as error:
                name = getattr(request, "name", "") or getattr(request, "parent", "")
                status = to_status(error, resource_name=str(name), request_id=request_id)
                code = _CODES[status.code].name
                self._metrics.rpc_refused(error.reason)
                _log.info("rpc refused", code=code, reason=error.reason, error=str(error))
                await _abort(context, status, request_id)
            except grpc.aio.AbortError:
                # Health and reflection choose their statuses themselves.
                code = _code_of(context)
                raise
            except asyncio.CancelledError:
                raise
            except Exception:  # noqa: BLE001  (the boundary: callers learn an id, the log the rest)
                code = "INTERNAL"
                _log.exception("rpc failed in a way that was not foreseen")
                await _abort(context, internal_status(request_id=request_id), request_id)
            finally:
                self._metrics.rpc_finished(method, code, self._monotonic() - start)


def _span(method: str, request_id: str, context: Any) -> AbstractContextManager[None]:
    """Open a span below that of the caller, or a new one where it sent none."""
    parent = ""
    for key, value in context.invocation_metadata() or ():
        if key == TRACE_KEY and isinstance(value, str) and tracing.is_traceparent(value):
            parent = value
    return tracing.span(method, parent=parent, is_call=True, request_id=request_id)


def _request_id(context: Any) -> str:
    """Return the id that the caller chose, or a new one where it chose none that can be logged."""
    for key, value in context.invocation_metadata() or ():
        if (
            key == REQUEST_ID_KEY
            and isinstance(value, str)
            and 0 < len(value) <= MAX_REQUEST_ID_LENGTH
            and value.isprintable()
        ):
            return value
    return uuid.uuid4().hex


def _code_of(context: Any) -> str:
    number = context.code()
    if isinstance(number, grpc.StatusCode):
        return number.name
    return _CODES.get(number or 0, grpc.StatusCode.UNKNOWN).name


async def _abort(context: Any, status: status_pb2.Status, request_id: str) -> None:
    await context.abort(
        _CODES[status.code],
        status.message,
        ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id)),
    )
