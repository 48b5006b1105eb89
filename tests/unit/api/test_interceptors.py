"""Around every RPC: request ids, metrics by method and code, and no internals in unforeseen errors."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from fakes.grpc_service import Service
from fakes.records import make_job
from fakes.rpc_errors import info_of
from fakes.waiting import until
from tightfit.v1 import compression_pb2
from tightfit.v1.compression_pb2_grpc import CompressionServiceStub
from tightfit_service.domain.errors import UnavailableError

GET_JOB = "tightfit.v1.CompressionService/GetJob"
WATCH_JOB = "tightfit.v1.CompressionService/WatchJob"
NAME = "projects/p/jobs/j"


async def test_a_domain_error_arrives_with_its_details(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetJob(compression_pb2.GetJobRequest(name=NAME))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    reason, metadata = info_of(caught.value)
    assert reason == "NOT_FOUND"
    assert (metadata["field"], metadata["remedy"]) == ("job", "list the jobs")
    await until(lambda: service.metrics.finished)
    assert service.metrics.finished == [(GET_JOB, "NOT_FOUND")]


async def test_an_unforeseen_error_tells_an_id_and_nothing_else(service: Service) -> None:
    service.jobs.failure = RuntimeError("password=hunter2 at /secret/path")
    stub = CompressionServiceStub(service.channel)

    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetJob(
            compression_pb2.GetJobRequest(name=NAME), metadata=(("x-request-id", "my-id"),)
        )

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert info_of(caught.value) == ("INTERNAL", {"request_id": "my-id"})
    assert "hunter2" not in repr(caught.value)
    assert any(entry["log_level"] == "error" for entry in logs)
    await until(lambda: service.metrics.finished)
    assert service.metrics.finished == [(GET_JOB, "INTERNAL")]


async def test_an_error_in_a_stream_arrives_with_its_details(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [e async for e in stub.WatchJob(compression_pb2.WatchJobRequest(name=NAME))]

    assert info_of(caught.value)[0] == "NOT_FOUND"
    await until(lambda: service.metrics.finished)
    assert service.metrics.finished == [(WATCH_JOB, "NOT_FOUND")]


async def test_unavailable_survives_as_unavailable(service: Service) -> None:
    service.jobs.failure = UnavailableError("the store is down", remedy="try again")
    stub = CompressionServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetJob(compression_pb2.GetJobRequest(name=NAME))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_request_id_comes_back(service: Service) -> None:
    stub = CompressionServiceStub(service.channel)
    call = stub.ListJobs(
        compression_pb2.ListJobsRequest(parent="projects/p"),
        metadata=(("x-request-id", "chosen-by-the-caller"),),
    )

    await call

    assert ("x-request-id", "chosen-by-the-caller") in list(await call.trailing_metadata())
    await until(lambda: service.metrics.finished)
    assert service.metrics.finished == [("tightfit.v1.CompressionService/ListJobs", "OK")]


@pytest.mark.parametrize("bad", ["", "x" * 129])
async def test_an_unusable_request_id_is_replaced(service: Service, bad: str) -> None:
    stub = CompressionServiceStub(service.channel)
    call = stub.ListJobs(
        compression_pb2.ListJobsRequest(parent="projects/p"), metadata=(("x-request-id", bad),)
    )

    await call

    (given,) = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]
    assert given
    assert given != bad


async def test_a_call_that_the_caller_cancels_is_counted_as_cancelled(service: Service) -> None:
    service.jobs.add("p", make_job("j", project="p"))
    stub = CompressionServiceStub(service.channel)
    call = stub.WatchJob(compression_pb2.WatchJobRequest(name=NAME))
    await until(lambda: service.jobs.watchers)

    call.cancel()
    await until(lambda: service.metrics.finished)

    assert service.jobs.watchers == 0
    assert service.metrics.finished == [(WATCH_JOB, "CANCELLED")]


async def test_unknown_methods_are_refused_and_not_counted(service: Service) -> None:
    call: Any = service.channel.unary_unary("/tightfit.v1.CompressionService/Nonsense")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert service.metrics.finished == []
