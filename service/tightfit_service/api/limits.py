"""What one project may ask of the server at a time, so that nobody's load takes the service from others.

Limits are kept in the memory of each replica: with three replicas behind a balancer a project gets up to
three times as much. They protect the process; what a project may use in all is a quota of the database.
"""

from __future__ import annotations

import inspect
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from tightfit_service.api.deadlines import FIRST_MESSAGE_SECONDS, Deadline
from tightfit_service.api.handlers import form_of
from tightfit_service.api.request_scope import project_of
from tightfit_service.api.request_shape import Malformed, RequestShape, parsed_by
from tightfit_service.domain.errors import InvalidRequestError, LimitExceededError

WATCHES = frozenset({"tightfit.v1.CompressionService/WatchJob"})
"""Calls that stay open as long as a job runs; no deadline applies to them."""
RUNNERS = frozenset({"tightfit.v1.RunnerService/ConnectRunner"})
"""Calls that stay open as long as a device; their desk sends away who says nothing, and limits them."""
OWN_METHODS = "tightfit."
"""Health checks and reflection are not limited: probes must pass when a project is at its limit."""
MAX_PROJECTS = 10_000
"""Projects whose use is remembered; of more, those idle longest are forgotten first."""
CONCURRENCY_RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """Limits per project, 0 for none.

    Attributes:
        requests_per_second: Calls that may begin per second in the long run.
        burst_requests: Calls that may begin at once after a pause.
        concurrent_calls: Calls at work that are neither watches nor uploads.
        concurrent_watches: Open watches of jobs.
        concurrent_uploads: Uploads that are being received.
        default_deadline_seconds: Of calls that come without a deadline; watches have none.
        shape: How large and how deep a request may be.
    """

    requests_per_second: float = 0.0
    burst_requests: int = 0
    concurrent_calls: int = 0
    concurrent_watches: int = 0
    concurrent_uploads: int = 0
    default_deadline_seconds: float = 0.0
    shape: RequestShape = field(default_factory=RequestShape)


class LimitMetrics(Protocol):
    """Where refused calls are counted. Called on the event loop; must return quickly and not raise."""

    def limit_refused(self, limit: str) -> None:
        """Report a call that was refused, by the name of the limit (`requests_per_second`)."""
        ...


@dataclass
class _Use:
    """What a project uses now."""

    tokens: float
    refilled: float
    open: dict[str, int] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        return not any(self.open.values())


class ProjectLimits:
    """Counts what projects use against the limits. Lives on one event loop; not thread-safe."""

    def __init__(
        self,
        limits: CallLimits,
        *,
        metrics: LimitMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._monotonic = monotonic
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    @contextmanager
    def admitted(self, project: str, kind: str) -> Iterator[None]:
        """Hold a place for a call of the project while it runs.

        Args:
            project: Id, "" for calls that name none; they share one allowance.
            kind: The limit on concurrency that applies: `concurrent_calls`, `concurrent_watches` or
                `concurrent_uploads`.

        Raises:
            LimitExceededError: A limit is reached; nothing was counted.
        """
        use = self._use(project)
        most: int = getattr(self._limits, kind)
        now_open = use.open.get(kind, 0)
        if most and now_open >= most:
            raise self._refused(kind, project, f"has {now_open} open", CONCURRENCY_RETRY_SECONDS)
        self._take_token(use, project)
        use.open[kind] = now_open + 1
        try:
            yield
        finally:
            use.open[kind] -= 1

    def _take_token(self, use: _Use, project: str) -> None:
        """Take a token from the project's bucket, which fills at the rate up to the burst."""
        rate = self._limits.requests_per_second
        if not rate:
            return
        now = self._monotonic()
        most = self._capacity
        use.tokens = min(most, use.tokens + max(0.0, now - use.refilled) * rate)
        use.refilled = now
        if use.tokens < 1:
            wait = (1 - use.tokens) / rate
            raise self._refused("requests_per_second", project, f"asks more than {rate:g}", wait)
        use.tokens -= 1

    @property
    def _capacity(self) -> float:
        return float(max(1.0, self._limits.burst_requests or self._limits.requests_per_second))

    def _use(self, project: str) -> _Use:
        use = self._uses.get(project)
        if use is None:
            use = self._uses[project] = _Use(tokens=self._capacity, refilled=self._monotonic())
            self._forget_oldest()
        self._uses.move_to_end(project)
        return use

    def _forget_oldest(self) -> None:
        """Keep the memory bounded when callers make up names of projects."""
        if len(self._uses) <= MAX_PROJECTS:
            return
        oldest = next((name for name, use in self._uses.items() if use.is_idle), None)
        if oldest is not None:
            del self._uses[oldest]

    def _refused(
        self, limit: str, project: str, what: str, retry_seconds: float
    ) -> LimitExceededError:
        self._metrics.limit_refused(limit)
        who = f"project {project!r}" if project else "what names no project"
        return LimitExceededError(
            f"{who} {what}: the limit {limit} is reached",
            field=limit,
            remedy="ask again after the delay in RetryInfo, or have the limit raised",
            retry_seconds=retry_seconds,
        )


class LimitInterceptor(grpc.aio.ServerInterceptor):
    """Holds calls to the limits of their project, to their deadline, and to a decent form.

    It stands inside the boundary, which turns its errors into statuses, and behind the check of who
    calls: nobody can use up the allowance of a project that is not theirs.
    """

    def __init__(
        self,
        limits: CallLimits,
        *,
        metrics: LimitMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._projects = ProjectLimits(limits, metrics=metrics, monotonic=monotonic)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method of the service's own."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).lstrip("/")
        if handler is None or not method.startswith(OWN_METHODS):
            return handler
        kind = kind_of(method, has_request_stream=handler.request_streaming)
        make, behaviour = form_of(handler)
        if method in RUNNERS:
            return make(
                self._runner(behaviour),
                parsed_by(handler.request_deserializer),
                handler.response_serializer,
            )
        wrap = self._streaming if inspect.isasyncgenfunction(behaviour) else self._single
        return make(
            wrap(behaviour, kind=kind, has_request_stream=handler.request_streaming),
            parsed_by(handler.request_deserializer),
            handler.response_serializer,
        )

    def _runner(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            checked = (self._checked(message) async for message in messages)
            async with aclosing(behaviour(checked, context)) as responses:
                async for response in responses:
                    yield response

        return handle

    def _single(
        self, behaviour: Callable[..., Any], *, kind: str, has_request_stream: bool
    ) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> Any:
            deadline = self._deadline(kind, context)
            if has_request_stream:
                first, request = await self._opened(request, deadline)
            else:
                first = self._checked(request)
            with self._projects.admitted(project_of(first), kind):
                return await deadline.of(behaviour(request, context))

        return handle

    def _streaming(
        self, behaviour: Callable[..., Any], *, kind: str, has_request_stream: bool
    ) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            deadline = self._deadline(kind, context)
            if has_request_stream:
                first, request = await self._opened(request, deadline)
            else:
                first = self._checked(request)
            with self._projects.admitted(project_of(first), kind):
                async for response in deadline.over(behaviour(request, context)):
                    yield response

        return handle

    def _deadline(self, kind: str, context: Any) -> Deadline:
        """Return the server's deadline for calls that have none of their own, which gRPC keeps."""
        is_open_ended = kind == "concurrent_watches" or context.time_remaining() is not None
        return Deadline(0.0 if is_open_ended else self._limits.default_deadline_seconds)

    async def _opened(
        self, messages: AsyncIterator[Any], deadline: Deadline
    ) -> tuple[Message, AsyncIterator[Any]]:
        """Return the first message of a stream, which says whose it is, and the stream with it."""
        patience = Deadline(min(FIRST_MESSAGE_SECONDS, deadline.seconds or FIRST_MESSAGE_SECONDS))
        iterator = aiter(messages)
        try:
            first = self._checked(await patience.of(anext(iterator)))
        except StopAsyncIteration:
            raise InvalidRequestError(
                "the stream ended before its first message",
                field="header",
                remedy="send the header first: it names what the stream is about",
            ) from None

        async def with_first() -> AsyncIterator[Any]:
            yield first
            async for message in iterator:
                yield self._checked(message)

        return first, with_first()

    def _checked(self, message: Message | Malformed) -> Message:
        return self._limits.shape.checked(message)


def kind_of(method: str, *, has_request_stream: bool) -> str:
    """Return the limit on concurrency that a method counts for."""
    if method in WATCHES:
        return "concurrent_watches"
    return "concurrent_uploads" if has_request_stream else "concurrent_calls"
