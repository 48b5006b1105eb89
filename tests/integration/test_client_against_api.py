"""The clients against the service's own gRPC layer: both ends understand one another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import tightfit
from fakes.clock import FakeClock
from fakes.diagnosis import no_checks
from fakes.runners import make_desk
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from tightfit import AsyncClient, Client, Patience, compression_spec
from tightfit.v1 import hardware_pb2, job_pb2
from tightfit_service.api.limits import CallLimits
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.domain.job import JobState

DATA = bytes(range(256)) * 10_000
QUICK = Patience(first_seconds=0.01, most_seconds=0.05, total_seconds=20)


class Service:
    """A server over use cases in memory that can be stopped and started again."""

    def __init__(self, limits: CallLimits | None = None) -> None:
        self.limits = limits or CallLimits()
        self.metrics = RecordingRpcMetrics()
        self.assets = InMemoryAssets()
        self.jobs = InMemoryJobs()
        self.hardware = InMemoryHardware("board-a", "board-b")
        self.runners = make_desk(FakeClock())
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        self.server = GrpcServer(
            assets=self.assets,
            jobs=self.jobs,
            hardware=self.hardware,
            calibrations=self.hardware,
            runners=self.runners,
            diagnosis=no_checks(),
            metrics=self.metrics,
            options=ServerOptions(listen=self.address, limits=self.limits),
        )
        self.address = await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(grace_seconds=0)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address, patience=QUICK) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(DATA)
    return path


async def test_a_model_is_uploaded_once_and_can_be_read_back(
    service: Service, client: AsyncClient, model: Path, tmp_path: Path
) -> None:
    uploaded = await client.upload_model(model)
    assert (await client.upload_model(model)).name == uploaded.name
    await client.download_artifact(uploaded.digest, tmp_path / "back.onnx")
    assert await asyncio.to_thread((tmp_path / "back.onnx").read_bytes) == DATA


async def test_calls_beyond_the_limits_of_a_project_are_answered_in_their_turn() -> None:
    service = Service(CallLimits(requests_per_second=40.0, burst_requests=1, concurrent_calls=2))
    await service.start()
    async with AsyncClient(service.address, patience=QUICK) as client:
        calls = [client.get_target("board-a") for _ in range(12)]
        assert {target.spec.name for target in await asyncio.gather(*calls)} == {"board-a"}
    with Client(service.address, patience=QUICK) as blocking:
        for _ in range(3):
            assert await asyncio.to_thread(blocking.get_target, "board-a")
    assert service.metrics.limits
    await service.stop()


async def test_an_upload_that_another_process_began_is_finished(
    service: Service, client: AsyncClient, model: Path
) -> None:
    service.assets.append_seconds = 0.05
    first = asyncio.create_task(client.upload_model(model))
    while not service.assets.uploads:  # noqa: ASYNC110  # the fake has no event for it
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await client.upload_model(model)).size_bytes == len(DATA)


async def test_a_watch_survives_a_restart_of_the_server(
    service: Service, client: AsyncClient, model: Path
) -> None:
    uploaded = await client.upload_model(model)
    job = await client.create_job(compression_spec(model=uploaded.name, target="board-a"))
    job_id = job.name.rpartition("/")[2]
    seen: list[int] = []
    three = asyncio.Event()

    async def follow() -> None:
        async for event in client.watch_job(job.name):
            seen.append(event.sequence)
            if len(seen) == 3:
                three.set()

    watching = asyncio.create_task(follow())
    for number in range(3):
        await service.jobs.tell("default", job_id, f"event {number}")
    await asyncio.wait_for(three.wait(), 20)
    await service.stop()
    await service.jobs.tell("default", job_id, "while it was away", state=JobState.RUNNING)
    await service.start()
    await service.jobs.tell("default", job_id, "the end", state=JobState.SUCCEEDED)
    await asyncio.wait_for(watching, 30)
    assert seen == [1, 2, 3, 4, 5]
    assert (await client.get_job(job.name)).state == job_pb2.CompressionJob.STATE_SUCCEEDED


async def test_errors_keep_their_reason_field_and_remedy(client: AsyncClient, model: Path) -> None:
    with pytest.raises(tightfit.NotFoundError) as unknown:
        await client.get_target("board-x")
    assert "board-a" in unknown.value.remedy
    uploaded = await client.upload_model(model)
    spec = compression_spec(model=uploaded.name, target="board-a")
    spec.budget.max_latency_ms = -1
    with pytest.raises(tightfit.InvalidInputError) as budget:
        await client.create_job(spec)
    assert budget.value.reason == "INVALID_BUDGET"
    assert "max_latency_ms" in budget.value.field
    with pytest.raises(tightfit.NotFoundError):
        await client.download_artifact("0" * 64, model.with_name("none"))
    job = await client.create_job(compression_spec(model=uploaded.name, target="board-a"))
    with pytest.raises(tightfit.PreconditionError) as running:
        await client.delete_job(job.name)
    assert "cancel" in running.value.remedy


async def test_the_blocking_client_speaks_the_same(service: Service, model: Path) -> None:
    def work() -> None:
        with Client(service.address, patience=QUICK) as client:
            uploaded = client.upload_model(model)
            names = [target.spec.name for target in client.list_targets(page_size=1)]
            assert names == ["board-a", "board-b"]
            formats = client.estimate(uploaded.name, "board-b").estimates
            assert {item.number_format for item in formats} == {
                hardware_pb2.NUMBER_FORMAT_FLOAT32,
                hardware_pb2.NUMBER_FORMAT_INT8,
            }
            spec = compression_spec(model=uploaded.name, target="board-a")
            assert client.check(spec).HasField("baseline")
            job = client.create_job(spec)
            assert [found.name for found in client.list_jobs(page_size=1)] == [job.name]
            cancelled = client.cancel_job(job.name)
            assert cancelled.state == job_pb2.CompressionJob.STATE_CANCELLED
            assert client.wait(job.name).name == job.name
            client.delete_job(job.name)
            with pytest.raises(tightfit.NotFoundError):
                client.get_job(job.name)

    await asyncio.to_thread(work)
