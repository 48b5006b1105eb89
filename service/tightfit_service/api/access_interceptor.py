"""Who calls, whether he may, and what is written down of it; between the boundary and the handlers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from tightfit_service.api.access_rules import AccessRule, AccessRules
from tightfit_service.api.codec.access import WILDCARD
from tightfit_service.api.errors import status_code
from tightfit_service.api.guarded_stream import until
from tightfit_service.api.handlers import form_of
from tightfit_service.api.request_scope import project_of, projects_of, resource_of
from tightfit_service.application.access.audit import AuditLog
from tightfit_service.application.access.authentication import Authenticator, Credentials
from tightfit_service.application.access.caller import calling
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.access import ALL_PROJECTS, Principal
from tightfit_service.domain.errors import (
    ExpiredCredentialsError,
    PermissionDeniedError,
    TightfitError,
    UnauthenticatedError,
    UnavailableError,
)

AUTHORIZATION_KEY = "authorization"
SCHEME = "bearer "
RECHECK_SECONDS = 5.0
"""How often the caller of an open stream is looked at again."""
STARTED = "STARTED"
MOST_NAME_CHARACTERS = 500
"""Of a name that is written down; callers may send names of megabytes."""
_CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")

_log = structlog.get_logger(__name__)


@dataclass
class _Call:
    """One RPC on its way, and what the audit log will say of it."""

    method: str
    rule: AccessRule
    principal: Principal
    address: str
    request_id: str
    project: str = ""
    resource: str = ""
    projects: tuple[str, ...] = ()
    is_denied: bool = False

    def check(self, request: Any) -> None:
        """Check that the caller may do what a message asks for.

        Raises:
            PermissionDeniedError: He may not. Nothing was looked up, so that resources of others
                and resources that do not exist are answered alike.
        """
        # Bytes that could not be parsed name nothing; the layer inside refuses them.
        named = projects_of(request) if isinstance(request, Message) else ()
        projects = tuple(ALL_PROJECTS if name == WILDCARD else name for name in named)
        if not self.resource and isinstance(request, Message):
            self.project, self.resource = project_of(request), resource_of(request)
        try:
            self.principal.require(self.rule.roles, projects)
        except PermissionDeniedError:
            self.is_denied = True
            raise
        self.projects = tuple(dict.fromkeys((*self.projects, *projects)))

    def made(self, response: Any) -> None:
        """Note what a call made, where the answer is a resource."""
        name = getattr(response, "name", "")
        if name and isinstance(name, str):
            self.resource = name

    def event(self, code: str) -> AuditEvent:
        """Return what the audit log says of the call."""
        return AuditEvent(
            event_time=datetime.now(UTC),
            principal=self.principal.name,
            method=self.method,
            project="" if self.project == WILDCARD else self.project[:MOST_NAME_CHARACTERS],
            resource=self.resource[:MOST_NAME_CHARACTERS],
            code=code,
            request_id=self.request_id,
            address=self.address,
        )


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates and authorises every RPC, stream messages included, and audits what the contract says."""

    def __init__(
        self,
        *,
        rules: AccessRules,
        authenticator: Authenticator,
        audit: AuditLog | None,
    ) -> None:
        self._rules = rules
        self._authenticator = authenticator
        self._audit = audit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method; those that are open to everybody are left as they are."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method).lstrip("/")
        rule = self._rules.rule(method)
        if rule is None:
            return handler
        make, behaviour = form_of(handler)
        wrap = self._streaming if handler.response_streaming else self._single
        wrapped = wrap(method, rule, behaviour, is_stream=handler.request_streaming)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(
        self, method: str, rule: AccessRule, behaviour: Callable[..., Any], *, is_stream: bool
    ) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> Any:
            async with self._admitted(method, rule, context) as call:
                response = await behaviour(_checked(request, call, is_stream=is_stream), context)
                call.made(response)
                return response

        return handle

    def _streaming(
        self, method: str, rule: AccessRule, behaviour: Callable[..., Any], *, is_stream: bool
    ) -> Callable[..., Any]:
        if not inspect.isasyncgenfunction(behaviour):
            # Such handlers write to the context themselves.
            return self._single(method, rule, behaviour, is_stream=is_stream)

        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._admitted(method, rule, context) as call:
                checked = _checked(request, call, is_stream=is_stream)
                ending = asyncio.ensure_future(self._dismissal(call, _credentials(context)))
                try:
                    async with (
                        aclosing(behaviour(checked, context)) as responses,
                        aclosing(until(responses, ending)) as guarded,  # type: ignore[type-var]  # a generator, typed as an iterator
                    ):
                        if is_stream and rule.audited:
                            await self._record(call, STARTED)
                        async for response in guarded:
                            yield response
                finally:
                    ending.cancel()
                    with suppress(asyncio.CancelledError):
                        await ending

        return handle

    @asynccontextmanager
    async def _admitted(self, method: str, rule: AccessRule, context: Any) -> AsyncIterator[_Call]:
        """Find out who calls, make him the caller of what happens inside, and write down how it ends."""
        address = str(context.peer() or "")
        try:
            principal = await self._authenticator.authenticate(_credentials(context))
        except UnauthenticatedError as error:
            # In the log only: strangers must not be able to fill the database.
            _log.warning("caller unknown", reason=error.reason, address=address)
            raise
        call = _Call(
            method=method,
            rule=rule,
            principal=principal,
            address=address,
            request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
        )
        with (
            calling(principal),
            structlog.contextvars.bound_contextvars(principal=principal.name),
        ):
            code = grpc.StatusCode.CANCELLED.name
            try:
                yield call
                code = grpc.StatusCode.OK.name
            except TightfitError as error:
                code = status_code(error).name
                raise
            except Exception:
                code = grpc.StatusCode.INTERNAL.name
                raise
            finally:
                if rule.audited or call.is_denied:
                    await self._record(call, code)

    async def _dismissal(self, call: _Call, credentials: Credentials) -> Exception:
        """Return the error that an open stream has to end with, once there is one."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                principal = await self._authenticator.authenticate(credentials)
                principal.require(call.rule.roles, call.projects)
            except ExpiredCredentialsError:
                return UnavailableError(
                    "the credentials that opened the stream have expired",
                    remedy="open it again with fresh ones; watches resume after the last number",
                )
            except (UnauthenticatedError, PermissionDeniedError) as error:
                return error
            except UnavailableError:
                # Nobody can be asked at present; that alone is no reason to end what is open.
                continue

    async def _record(self, call: _Call, code: str) -> None:
        if self._audit is not None:
            # What is cancelled happened nevertheless.
            await asyncio.shield(self._audit.record(call.event(code)))


def _checked(request: Any, call: _Call, *, is_stream: bool) -> Any:
    """Return the request, or the stream of them, with every message checked before it is handed on."""
    if is_stream:
        return _checked_stream(request, call)
    call.check(request)
    return request


async def _checked_stream(requests: AsyncIterator[Any], call: _Call) -> AsyncIterator[Any]:
    async for request in requests:
        call.check(request)
        yield request


def _credentials(context: Any) -> Credentials:
    token = ""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION_KEY and isinstance(value, str):
            is_bearer = value[: len(SCHEME)].lower() == SCHEME
            # Anything else is shown as it is, so that it is refused and not overlooked.
            token = value[len(SCHEME) :].strip() if is_bearer else value or "-"
    return Credentials(token=token, certificate_names=_certificate_names(context))


def _certificate_names(context: Any) -> tuple[str, ...]:
    found = context.auth_context() or {}
    return tuple(
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        for key in _CERTIFICATE_NAMES
        for name in found.get(key, ())
    )
