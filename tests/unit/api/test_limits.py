"""Limits per project: who is refused, with what, and who is not touched by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no types

from fakes.clock import FakeClock
from fakes.diagnosis import no_checks
from fakes.grpc_service import Service
from fakes.records import make_job
from fakes.rpc_errors import details_of, info_of
from fakes.runners import make_desk
from fakes.streams import send
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from fakes.waiting import until
from tightfit.v1 import compression_pb2, job_pb2, model_pb2, recipe_pb2, transfer_pb2
from tightfit.v1.compression_pb2_grpc import CompressionServiceStub
from tightfit.v1.model_pb2_grpc import ModelServiceStub
from tightfit_service.api import limits as limits_module
from tightfit_service.api.limits import CallLimits, ProjectLimits, kind_of
from tightfit_service.api.request_shape import RequestShape
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.domain.errors import LimitExceededError

CALLS = "concurrent_calls"


class Desk:
    """The count of what projects use, with a clock of its own."""

    def __init__(self, limits: CallLimits) -> None:
        self.clock = FakeClock()
        self.metrics = RecordingRpcMetrics()
        self.projects = ProjectLimits(limits, metrics=self.metrics, monotonic=self.clock.monotonic)

    def call(self, project: str = "p") -> None:
        with self.projects.admitted(project, CALLS):
            pass


@asynccontextmanager
async def serving(limits: CallLimits) -> AsyncIterator[Service]:
    assets, jobs, metrics = InMemoryAssets(), InMemoryJobs(), RecordingRpcMetrics()
    hardware, runners = InMemoryHardware("board-a"), make_desk(FakeClock())
    server = GrpcServer(
        assets=assets,
        jobs=jobs,
        hardware=hardware,
        calibrations=hardware,
        runners=runners,
        diagnosis=no_checks(),
        metrics=metrics,
        options=ServerOptions(listen="127.0.0.1:0", limits=limits),
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


def test_a_burst_passes_and_then_the_rate_counts() -> None:
    desk = Desk(CallLimits(requests_per_second=2.0, burst_requests=3))
    for _ in range(3):
        desk.call()
    with pytest.raises(LimitExceededError) as caught:
        desk.call()
    assert caught.value.field == "requests_per_second"
    assert caught.value.retry_seconds == pytest.approx(0.5)
    desk.call("another")
    desk.clock.advance(0.5)
    desk.call()
    with pytest.raises(LimitExceededError):
        desk.call()
    desk.clock.advance(3_600)
    for _ in range(3):
        desk.call()
    with pytest.raises(LimitExceededError):
        desk.call()
    assert desk.metrics.limits == ["requests_per_second"] * 3


def test_a_place_is_free_again_after_the_call_however_it_ended() -> None:
    desk = Desk(CallLimits(concurrent_calls=1))
    with desk.projects.admitted("p", CALLS):
        with pytest.raises(LimitExceededError, match="concurrent_calls"):
            desk.call()
        desk.call("another")
        with desk.projects.admitted("p", "concurrent_watches"):
            pass
    with pytest.raises(ZeroDivisionError), desk.projects.admitted("p", CALLS):
        raise ZeroDivisionError
    desk.call()


def test_a_refused_call_takes_no_token() -> None:
    desk = Desk(CallLimits(requests_per_second=1.0, burst_requests=2, concurrent_calls=1))
    with desk.projects.admitted("p", CALLS):
        for _ in range(5):
            with pytest.raises(LimitExceededError, match="concurrent_calls"):
                desk.call()
    desk.call()


def test_zero_is_no_limit() -> None:
    desk = Desk(CallLimits())
    with AsyncExitStackOf(desk, 1_000):
        desk.call()


class AsyncExitStackOf:
    """Holds so many calls open."""

    def __init__(self, desk: Desk, count: int) -> None:
        self._held = [desk.projects.admitted("p", CALLS) for _ in range(count)]

    def __enter__(self) -> None:
        for call in self._held:
            call.__enter__()

    def __exit__(self, *_: object) -> None:
        for call in self._held:
            call.__exit__(None, None, None)


def test_made_up_projects_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_PROJECTS", 10)
    desk = Desk(CallLimits(concurrent_calls=1))
    with desk.projects.admitted("busy", CALLS):
        for number in range(100):
            desk.call(f"made-up-{number}")
        with pytest.raises(LimitExceededError):
            desk.call("busy")
    assert len(desk.projects._uses) == 10


def test_every_kind_of_call_has_its_limit() -> None:
    assert kind_of("tightfit.v1.CompressionService/GetJob", has_request_stream=False) == CALLS
    watch = kind_of("tightfit.v1.CompressionService/WatchJob", has_request_stream=False)
    assert watch == "concurrent_watches"
    upload = kind_of("tightfit.v1.ModelService/UploadModel", has_request_stream=True)
    assert upload == "concurrent_uploads"


async def test_a_refusal_says_when_to_ask_again_and_by_which_limit() -> None:
    async with serving(CallLimits(requests_per_second=0.001, burst_requests=1)) as service:
        stub = CompressionServiceStub(service.channel)
        await stub.ListJobs(compression_pb2.ListJobsRequest(parent="projects/p"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListJobs(compression_pb2.ListJobsRequest(parent="projects/p"))
        await stub.ListJobs(compression_pb2.ListJobsRequest(parent="projects/other"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    reason, metadata = info_of(caught.value)
    assert reason == "LIMIT_EXCEEDED"
    assert metadata["field"] == "requests_per_second"
    (retry,) = details_of(caught.value, error_details_pb2.RetryInfo)
    assert 900 < retry.retry_delay.ToSeconds() <= 1_000
    assert service.metrics.limits == ["requests_per_second"]


async def test_watches_are_limited_apart_from_calls() -> None:
    async with serving(CallLimits(concurrent_watches=1, concurrent_calls=1)) as service:
        service.jobs.add("p", make_job("j", project="p"))
        stub = CompressionServiceStub(service.channel)
        first = stub.WatchJob(compression_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        await until(lambda: service.jobs.watchers)
        second = stub.WatchJob(compression_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        with pytest.raises(grpc.aio.AioRpcError, match="concurrent_watches"):
            _ = [event async for event in second]
        await stub.GetJob(compression_pb2.GetJobRequest(name="projects/p/jobs/j"))
        first.cancel()
        await until(lambda: not service.jobs.watchers)
        third = stub.WatchJob(compression_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        await until(lambda: service.jobs.watchers)
        third.cancel()


async def test_uploads_count_from_their_header_on() -> None:
    async with serving(CallLimits(concurrent_uploads=1)) as service, AsyncExitStack() as stack:
        stub = ModelServiceStub(service.channel)
        opened = await stub.StartModelUpload(
            model_pb2.StartModelUploadRequest(
                parent="projects/p", size_bytes=4, digest="0" * 64, upload_id="u"
            )
        )
        header = model_pb2.UploadModelRequest(
            header=transfer_pb2.UploadHeader(upload=opened.name, offset=0)
        )
        first = stub.UploadModel()
        stack.callback(first.cancel)
        await first.write(header)
        method = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name[
            "UploadModel"
        ]
        refused = None
        for _ in range(100):  # the first one's header may still be on its way
            with pytest.raises(grpc.RpcError) as caught:
                await send(service.address, method, [header])
            refused = caught.value.code()
            if refused is grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
            await asyncio.sleep(0.01)
        assert refused is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_empty_stream_is_refused_with_the_field() -> None:
    async with serving(CallLimits()) as service:
        call = ModelServiceStub(service.channel).UploadModel()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"] == "header"


async def test_a_call_without_a_deadline_gets_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(CallLimits(default_deadline_seconds=0.05)) as service:
        never = asyncio.Event()
        cancelled = asyncio.Event()

        async def hang(*_: object) -> None:
            try:
                await never.wait()
            finally:
                cancelled.set()

        monkeypatch.setattr(service.jobs, "get", hang)
        stub = CompressionServiceStub(service.channel)
        request = compression_pb2.GetJobRequest(name="projects/p/jobs/j")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetJob(request)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert info_of(caught.value)[0] == "DEADLINE_EXCEEDED"
        assert cancelled.is_set()


async def test_watches_have_no_deadline() -> None:
    async with serving(CallLimits(default_deadline_seconds=0.05)) as service:
        service.jobs.add("p", make_job("j", project="p"))
        stub = CompressionServiceStub(service.channel)
        call = stub.WatchJob(compression_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        await until(lambda: service.jobs.watchers)
        await asyncio.sleep(0.2)
        assert not call.done()
        call.cancel()


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7fshort", b"\x0a\x02\xff\xfe"])
async def test_bytes_that_are_no_message_are_refused_and_not_internal(data: bytes) -> None:
    async with serving(CallLimits()) as service:
        call: Any = service.channel.unary_unary("/tightfit.v1.CompressionService/GetJob")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"] == "request"


def nested(depth: int) -> Struct:
    value = Value(number_value=1)
    for _ in range(depth):
        value = Value(list_value=ListValue(values=[value]))
    return Struct(fields={"a": value})


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (nested(20), "nested more than 20 deep"),
        (Struct(fields={"a": Value(list_value=ListValue(values=[Value()] * 200))}), "100 items"),
    ],
)
async def test_requests_of_great_depth_or_length_are_refused(parameters: Struct, says: str) -> None:
    recipe = recipe_pb2.Recipe(steps=[recipe_pb2.PassStep(pass_name="x", parameters=parameters)])
    shape = RequestShape(max_depth=20, max_items=100)
    async with serving(CallLimits(shape=shape)) as service:
        with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
            await CompressionServiceStub(service.channel).ApplyRecipe(
                compression_pb2.ApplyRecipeRequest(
                    parent="projects/p", spec=job_pb2.CompressionSpec(), recipe=recipe
                )
            )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"].startswith("recipe")


async def test_health_is_not_limited() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving(CallLimits(requests_per_second=0.001, burst_requests=1)) as service:
        stub = health_pb2_grpc.HealthStub(service.channel)
        for _ in range(10):
            await stub.Check(health_pb2.HealthCheckRequest())
