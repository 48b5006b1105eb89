"""Runners are refused with the reason."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from fakes.grpc_service import Service
from fakes.rpc_errors import info_of
from tightfit.v1 import runner_pb2
from tightfit.v1.runner_pb2_grpc import RunnerServiceStub

REQUESTS = {
    "GetRunner": runner_pb2.GetRunnerRequest,
    "ListRunners": runner_pb2.ListRunnersRequest,
}


async def _outcome(call: Any) -> None:
    if isinstance(call, grpc.aio.StreamStreamCall):
        await call.read()
    else:
        await call


@pytest.mark.parametrize("method", ["GetRunner", "ListRunners", "ConnectRunner"])
async def test_every_method_is_refused_with_the_reason(service: Service, method: str) -> None:
    stub = RunnerServiceStub(service.channel)

    call = getattr(stub, method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _outcome(call(iter([]) if method == "ConnectRunner" else REQUESTS[method]()))

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert info_of(caught.value)[0] == "NOT_IMPLEMENTED_YET"
