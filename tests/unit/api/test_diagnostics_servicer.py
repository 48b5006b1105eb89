"""A diagnosis over a real connection, and health that tells readiness from liveness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fakes.clock import FakeClock
from fakes.runners import make_desk
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from tightfit.contract import contract_digest
from tightfit.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from tightfit_service import __version__
from tightfit_service.api.server import LIVENESS, GrpcServer, ServerOptions
from tightfit_service.application.operations.diagnosis import Check, Diagnosis, Finding, Outcome
from tightfit_service.domain.errors import UnavailableError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def _fine() -> Finding:
    return Finding(subject="disk", outcome=Outcome.OK, message="7 GiB free")


async def _away() -> Finding:
    raise UnavailableError("the store is down", remedy="start it")


@dataclass(frozen=True)
class Service:
    server: GrpcServer
    channel: grpc.aio.Channel


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    checks: dict[str, Check] = {"disk": _fine, "artifacts": _away}
    clock = FakeClock()
    server = GrpcServer(
        assets=InMemoryAssets(),
        jobs=InMemoryJobs(),
        hardware=InMemoryHardware(),
        calibrations=InMemoryHardware(),
        runners=make_desk(clock),
        diagnosis=Diagnosis(checks, clock=clock),
        metrics=RecordingRpcMetrics(),
        options=ServerOptions(listen="127.0.0.1:0"),
    )
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Service(server, channel)
    await server.stop(grace_seconds=0.0)


async def test_what_was_found_is_told_with_versions_and_time(service: Service) -> None:
    stub = diagnostics_pb2_grpc.DiagnosticsServiceStub(service.channel)

    answer = await stub.Diagnose(diagnostics_pb2.DiagnoseRequest())

    assert [(c.subject, c.outcome, c.message, c.remedy) for c in answer.checks] == [
        ("disk", diagnostics_pb2.Check.OUTCOME_OK, "7 GiB free", ""),
        ("artifacts", diagnostics_pb2.Check.OUTCOME_FAILED, "the store is down", "start it"),
    ]
    assert answer.server_version == __version__
    assert answer.contract_digest == contract_digest()
    assert answer.server_time.ToDatetime().year == 2030


async def test_a_server_that_is_not_ready_is_alive(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    async def state(name: str) -> int:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return int(answer.status)

    compression = "tightfit.v1.CompressionService"
    assert [await state(name) for name in ("", compression, LIVENESS)] == [SERVING] * 3
    await service.server.set_ready(is_ready=False)
    assert [await state(n) for n in ("", compression, LIVENESS)] == [
        NOT_SERVING,
        NOT_SERVING,
        SERVING,
    ]
    await service.server.set_ready(is_ready=True)
    assert await state("") == SERVING
