"""The catalogue and estimates over a real gRPC connection."""

from __future__ import annotations

import grpc
import pytest

from fakes.grpc_service import Service
from fakes.rpc_errors import info_of
from tightfit.v1 import hardware_pb2
from tightfit.v1.hardware_pb2_grpc import HardwareServiceStub


async def test_targets_are_listed_in_pages(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    first = await stub.ListHardwareTargets(hardware_pb2.ListHardwareTargetsRequest(page_size=2))
    second = await stub.ListHardwareTargets(
        hardware_pb2.ListHardwareTargetsRequest(page_size=2, page_token=first.next_page_token)
    )

    names = [target.name for target in (*first.hardware_targets, *second.hardware_targets)]
    assert names == [f"hardwareTargets/board-{letter}" for letter in "abc"]
    assert second.next_page_token == ""


async def test_a_target_is_found_by_name(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    target = await stub.GetHardwareTarget(
        hardware_pb2.GetHardwareTargetRequest(name="hardwareTargets/board-b")
    )

    assert target.spec.name == "board-b"
    assert target.spec.memory.ram_bytes == 512 << 10
    assert not target.spec.power.HasField("active_mw")


async def test_an_unknown_target_offers_near_names(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetHardwareTarget(
            hardware_pb2.GetHardwareTargetRequest(name="hardwareTargets/bord-a")
        )

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "board-a" in info_of(caught.value)[1]["remedy"]


async def test_a_model_is_estimated_per_number_format(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    answer = await stub.EstimateModel(
        hardware_pb2.EstimateModelRequest(
            model="projects/p/models/m", hardware_target="hardwareTargets/board-a"
        )
    )

    assert service.hardware.asked == [("p", "m", "board-a")]
    assert answer.target.name == "test-board"
    assert {
        hardware_pb2.NumberFormat.Name(e.number_format): e.cost.estimated_latency_ms.value
        for e in answer.estimates
    } == {"NUMBER_FORMAT_FLOAT32": 40.0, "NUMBER_FORMAT_INT8": 10.0}


async def test_an_estimate_without_a_target_is_refused(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.EstimateModel(hardware_pb2.EstimateModelRequest(model="projects/p/models/m"))

    assert info_of(caught.value)[1]["field"] == "target"
