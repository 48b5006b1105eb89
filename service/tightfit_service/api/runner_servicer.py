"""RunnerService over the use case `Runners`."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from tightfit.v1 import runner_pb2, runner_pb2_grpc
from tightfit_service.api import resource_names
from tightfit_service.api.codec.runner import (
    command_to_proto,
    failure_kind_from_proto,
    hello_from_proto,
    measurement_from_proto,
    runner_to_proto,
)
from tightfit_service.api.drain import Drain
from tightfit_service.api.paging import page_cursor
from tightfit_service.application.runners.sessions import RunnerSession
from tightfit_service.application.use_cases import Runners
from tightfit_service.domain.errors import InvalidRequestError, TightfitError

HELLO_SECONDS = 30.0
"""Within which an agent says who it is."""


class RunnerServicer(runner_pb2_grpc.RunnerServiceServicer):
    """Translates RunnerService."""

    def __init__(self, *, runners: Runners, drain: Drain) -> None:
        self._runners = runners
        self._drain = drain

    async def GetRunner(
        self, request: runner_pb2.GetRunnerRequest, context: Any
    ) -> runner_pb2.Runner:
        project_id, runner_id = resource_names.RUNNER.ids(request.name)
        return runner_to_proto(await self._runners.get(project_id, runner_id))

    async def ListRunners(
        self, request: runner_pb2.ListRunnersRequest, context: Any
    ) -> runner_pb2.ListRunnersResponse:
        project_id = resource_names.parse_project(request.parent)
        cursor = page_cursor(request, project_id)
        fetched = await self._runners.list(project_id, cursor.page)
        runners, token = cursor.cut(fetched, lambda runner: runner.runner_id)
        return runner_pb2.ListRunnersResponse(
            runners=[runner_to_proto(runner) for runner in runners], next_page_token=token
        )

    async def ConnectRunner(
        self, request_iterator: AsyncIterator[runner_pb2.ConnectRunnerRequest], context: Any
    ) -> AsyncIterator[runner_pb2.ConnectRunnerResponse]:
        hello = await _hello(request_iterator)
        project_id, runner_id = resource_names.RUNNER.ids(hello.name, field="hello.name")
        session = await self._runners.connect(project_id, runner_id, hello_from_proto(hello))
        listening = asyncio.create_task(self._listen(request_iterator, session))
        try:
            async with aclosing(self._drain.guard(session.commands())) as commands:  # type: ignore[type-var]  # a generator, typed as an iterator
                async for command in commands:
                    yield command_to_proto(command)
        finally:
            self._runners.disconnect(session)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _listen(
        self, messages: AsyncIterator[runner_pb2.ConnectRunnerRequest], session: RunnerSession
    ) -> None:
        """Pass on what the agent says, until it ends the stream or says what cannot be understood."""
        try:
            async for message in messages:
                self._pass_on(message, session)
                if not session.is_open:
                    return
        except TightfitError as error:
            session.end(error)
        else:
            session.end()

    def _pass_on(self, message: runner_pb2.ConnectRunnerRequest, session: RunnerSession) -> None:
        kind = message.WhichOneof("message")
        if kind == "heartbeat":
            self._runners.heartbeat(session, tuple(message.heartbeat.order_ids))
        elif kind == "accepted":
            self._runners.accepted(session, message.accepted.order_id)
        elif kind == "measurement":
            self._runners.measured(
                session, message.measurement.order_id, measurement_from_proto(message.measurement)
            )
        elif kind == "failure":
            failure = message.failure
            self._runners.failed(
                session, failure.order_id, failure_kind_from_proto(failure.kind), failure.message
            )
        else:
            raise InvalidRequestError(
                f"{kind or 'an empty message'} has no place after the hello",
                field="message",
                remedy="send heartbeat, accepted, measurement or failure",
            )


async def _hello(
    messages: AsyncIterator[runner_pb2.ConnectRunnerRequest],
) -> runner_pb2.RunnerHello:
    """Return the first message.

    Raises:
        InvalidRequestError: It is another one, or does not come.
    """
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            async for message in messages:
                if message.HasField("hello"):
                    return message.hello
                break
    except TimeoutError:
        pass
    raise InvalidRequestError(
        "the stream does not begin with a hello",
        field="hello",
        remedy="send it first; tightfit-runner does",
    )
