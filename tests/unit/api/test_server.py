"""The server as a whole: health, reflection, every method of the contract, and a graceful end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import (
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (
    reflection_pb2,
    reflection_pb2_grpc,
)

from fakes.clock import FakeClock
from fakes.diagnosis import no_checks
from fakes.grpc_service import Service
from fakes.records import make_job
from fakes.runners import make_desk
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from fakes.waiting import until
from tightfit.v1 import compression_pb2, hardware_pb2
from tightfit.v1.compression_pb2_grpc import CompressionServiceStub
from tightfit.v1.hardware_pb2_grpc import HardwareServiceStub
from tightfit_service.api.server import SERVICES, GrpcServer, ServerOptions
from tightfit_service.domain.errors import UnavailableError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", *SERVICES])
async def test_health_knows_every_service(service: Service, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))

    assert answer.status == SERVING


async def test_health_of_an_unknown_service_is_not_found(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nonsense"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await until(lambda: service.metrics.finished)
    assert service.metrics.finished == [("grpc.health.v1.Health/Check", "NOT_FOUND")]


async def test_reflection_lists_services_and_describes_them(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="tightfit.v1.CompressionService"
        ),
    ]

    names, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]

    listed = {s.name for s in names.list_services_response.service}
    assert listed >= {*SERVICES, "grpc.health.v1.Health"}
    files = [
        FileDescriptorProto.FromString(data)
        for data in described.file_descriptor_response.file_descriptor_proto
    ]
    assert "tightfit/v1/compression.proto" in {file.name for file in files}


async def test_every_method_of_the_contract_is_answered(service: Service) -> None:
    for module in (compression_pb2, hardware_pb2):
        for descriptor in module.DESCRIPTOR.services_by_name.values():
            for method in descriptor.methods:
                if method.client_streaming:
                    continue
                call: Any = service.channel.unary_stream(f"/{descriptor.full_name}/{method.name}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in call(b"\xff"):
                        pass
                # A method without a handler is UNIMPLEMENTED before its request is parsed.
                assert caught.value.code() is not grpc.StatusCode.UNIMPLEMENTED, method.full_name


async def test_messages_beyond_the_limit_are_refused(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetJob(compression_pb2.GetJobRequest(name="x" * (9 << 20)))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_port_in_use_is_refused(service: Service) -> None:
    second = GrpcServer(
        assets=InMemoryAssets(),
        jobs=InMemoryJobs(),
        hardware=InMemoryHardware(),
        calibrations=InMemoryHardware(),
        runners=make_desk(FakeClock()),
        diagnosis=no_checks(),
        metrics=RecordingRpcMetrics(),
        options=ServerOptions(listen=service.address),
    )

    with pytest.raises(UnavailableError) as caught:
        await second.start()

    assert caught.value.field == "listen"


async def test_probes_have_a_port_of_their_own_with_health_and_nothing_else() -> None:
    server = GrpcServer(
        assets=InMemoryAssets(),
        jobs=InMemoryJobs(),
        hardware=InMemoryHardware(),
        calibrations=InMemoryHardware(),
        runners=make_desk(FakeClock()),
        diagnosis=no_checks(),
        metrics=RecordingRpcMetrics(),
        options=ServerOptions(listen="127.0.0.1:0", health_listen="127.0.0.1:0"),
    )
    address = await server.start()
    assert server.health_address not in ("", address)
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await HardwareServiceStub(channel).ListHardwareTargets(
                hardware_pb2.ListHardwareTargetsRequest()
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

        await server.stop(grace_seconds=0)

        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await health.Check(health_pb2.HealthCheckRequest())
        assert gone.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_for_probes_in_use_is_named(service: Service) -> None:
    second = GrpcServer(
        assets=InMemoryAssets(),
        jobs=InMemoryJobs(),
        hardware=InMemoryHardware(),
        calibrations=InMemoryHardware(),
        runners=make_desk(FakeClock()),
        diagnosis=no_checks(),
        metrics=RecordingRpcMetrics(),
        options=ServerOptions(listen="127.0.0.1:0", health_listen=service.address),
    )

    with pytest.raises(UnavailableError) as caught:
        await second.start()

    assert caught.value.field == "health_listen"


async def test_draining_ends_watches_and_health_streams_at_once(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"))
    stub = CompressionServiceStub(service.channel)
    watch = stub.WatchJob(compression_pb2.WatchJobRequest(name="projects/p/jobs/j"))
    health = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await health.read()).status == SERVING
    await until(lambda: service.jobs.watchers)

    # Were a stream to hold it up, this would last longer than a test may.
    await service.server.stop(grace_seconds=3600)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert service.jobs.watchers == 0
    assert (await health.read()).status == NOT_SERVING


async def test_calls_at_work_may_finish_while_the_server_drains(service: Service) -> None:
    release = asyncio.Event()
    begun = asyncio.Event()
    get_target = service.hardware.get_target

    async def slow(project: str, name: str) -> object:
        begun.set()
        await release.wait()
        return await get_target(project, name)

    service.hardware.get_target = slow  # type: ignore[method-assign, assignment]  # slowed down
    stub = HardwareServiceStub(service.channel)
    name = "hardwareTargets/board-a"
    call = asyncio.ensure_future(
        stub.GetHardwareTarget(hardware_pb2.GetHardwareTargetRequest(name=name))
    )
    await begun.wait()

    stopping = asyncio.create_task(service.server.stop(grace_seconds=3600))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    release.set()

    assert (await call).name == name
    await stopping


async def test_stopping_twice_is_no_error(service: Service) -> None:
    await service.server.stop(grace_seconds=0)
    await service.server.stop(grace_seconds=0)
