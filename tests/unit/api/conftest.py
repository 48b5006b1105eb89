"""A real gRPC server on loopback over use cases in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from fakes.clock import FakeClock
from fakes.diagnosis import no_checks
from fakes.grpc_service import Service
from fakes.runners import make_desk
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from tightfit_service.api.server import GrpcServer, ServerOptions


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    assets, jobs = InMemoryAssets(), InMemoryJobs()
    hardware = InMemoryHardware("board-a", "board-b", "board-c")
    runners = make_desk(FakeClock())
    metrics = RecordingRpcMetrics()
    server = GrpcServer(
        assets=assets,
        jobs=jobs,
        hardware=hardware,
        calibrations=hardware,
        runners=runners,
        diagnosis=no_checks(),
        metrics=metrics,
        options=ServerOptions(listen="127.0.0.1:0"),
    )
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Service(
            assets=assets,
            jobs=jobs,
            hardware=hardware,
            runners=runners,
            metrics=metrics,
            server=server,
            address=address,
            channel=channel,
        )
    await server.stop(grace_seconds=0)
