"""RunnerService, which this version of the server does not offer yet."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tightfit.v1 import runner_pb2, runner_pb2_grpc
from tightfit_service.api.errors import NotImplementedYetError


class RunnerServicer(runner_pb2_grpc.RunnerServiceServicer):
    """Refuses every method, with the reason."""

    async def GetRunner(
        self, request: runner_pb2.GetRunnerRequest, context: Any
    ) -> runner_pb2.Runner:
        raise _not_yet()

    async def ListRunners(
        self, request: runner_pb2.ListRunnersRequest, context: Any
    ) -> runner_pb2.ListRunnersResponse:
        raise _not_yet()

    async def ConnectRunner(
        self, request_iterator: AsyncIterator[runner_pb2.ConnectRunnerRequest], context: Any
    ) -> AsyncIterator[runner_pb2.ConnectRunnerResponse]:
        raise _not_yet()
        yield  # makes it a stream of answers, as the contract has it


def _not_yet() -> NotImplementedYetError:
    return NotImplementedYetError(
        "this version of the server takes no runners",
        remedy="use the estimates of the emulators",
    )
