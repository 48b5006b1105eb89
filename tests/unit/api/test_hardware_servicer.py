"""The catalogue and estimates over a real gRPC connection."""

from __future__ import annotations

from typing import Any

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
    assert target.emulator == "mcu"
    assert not target.HasField("create_time")
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


async def test_a_table_of_layers_is_estimated_with_another_runtime_and_a_usage(
    service: Service,
) -> None:
    stub = HardwareServiceStub(service.channel)

    answer = await stub.EstimateModel(
        hardware_pb2.EstimateModelRequest(
            layer_table="op,...",
            hardware_target="hardwareTargets/board-a",
            runtime=hardware_pb2.Runtime(name="TinyEngine"),
            usage=hardware_pb2.Usage(frames_per_second=5, battery_mah=100, battery_v=3),
        )
    )

    assert service.hardware.asked == [("", "op,...", "board-a")]
    (runtime,) = service.hardware.runtimes
    assert runtime is not None
    assert runtime.name == "TinyEngine"
    assert [e.duty_cycle.duty.value for e in answer.estimates] == pytest.approx([0.2, 0.05])
    slow, fast = (e.duty_cycle for e in answer.estimates)
    assert 0 < slow.battery_hours.value < fast.battery_hours.value


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"model": "projects/p/models/m", "layer_table": "op"}, "layer_table"),
        ({"model": "projects/p/models/m", "usage": {"frames_per_second": 0}}, "frames_per_second"),
        (
            {"model": "projects/p/models/m", "usage": {"frames_per_second": 1, "battery_mah": 9}},
            "battery_v",
        ),
    ],
)
async def test_contradictions_in_an_estimate_are_named(
    service: Service, request_: dict[str, Any], field: str
) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.EstimateModel(
            hardware_pb2.EstimateModelRequest(hardware_target="hardwareTargets/board-a", **request_)
        )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in info_of(caught.value)[1]["field"]


async def test_an_estimate_without_a_target_is_refused(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.EstimateModel(hardware_pb2.EstimateModelRequest(model="projects/p/models/m"))

    assert info_of(caught.value)[1]["field"] == "target"


async def test_a_target_of_a_project_is_created_listed_found_and_deleted(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)
    request = hardware_pb2.CreateHardwareTargetRequest(
        parent="projects/p",
        hardware_target=hardware_pb2.HardwareTarget(
            spec=hardware_pb2.HardwareSpec(
                name="board-aa",
                core="cortex-m55",
                accelerator=hardware_pb2.Accelerator(
                    kind="ethos-u55", clock_mhz=400, macs_per_cycle={"int8": 128}
                ),
            )
        ),
    )

    created = await stub.CreateHardwareTarget(request)
    mine = await stub.ListHardwareTargets(
        hardware_pb2.ListHardwareTargetsRequest(parent="projects/p")
    )
    theirs = await stub.ListHardwareTargets(
        hardware_pb2.ListHardwareTargetsRequest(parent="projects/q")
    )
    found = await stub.GetHardwareTarget(
        hardware_pb2.GetHardwareTargetRequest(name="projects/p/hardwareTargets/board-aa")
    )
    await stub.DeleteHardwareTarget(hardware_pb2.DeleteHardwareTargetRequest(name=created.name))

    assert service.hardware.descriptions == [
        {
            "name": "board-aa",
            "core": "cortex-m55",
            "accelerator": {
                "kind": "ethos-u55",
                "clock_mhz": 400.0,
                "macs_per_cycle": {"int8": 128.0},
            },
        }
    ]
    assert created == found
    assert created.name == "projects/p/hardwareTargets/board-aa"
    assert created.emulator == ""
    assert created.create_time.ToDatetime().year == 2030
    assert [target.spec.name for target in mine.hardware_targets] == [
        "board-a",
        "board-aa",
        "board-b",
        "board-c",
    ]
    assert len(theirs.hardware_targets) == 3
    assert not service.hardware.own


async def test_a_description_is_validated_without_being_stored(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    await stub.CreateHardwareTarget(
        hardware_pb2.CreateHardwareTargetRequest(
            parent="projects/p",
            hardware_target=hardware_pb2.HardwareTarget(
                spec=hardware_pb2.HardwareSpec(name="mine", core="cortex-m4")
            ),
            validate_only=True,
        )
    )

    assert not service.hardware.own


async def test_targets_of_the_catalogue_cannot_be_deleted(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteHardwareTarget(
            hardware_pb2.DeleteHardwareTargetRequest(name="hardwareTargets/board-a")
        )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(caught.value)[1]["field"] == "name"


@pytest.mark.parametrize("name", ["hardwareTargets/mine", "projects/p/hardwareTargets/mine"])
async def test_an_estimate_may_name_a_target_with_or_without_its_project(
    service: Service, name: str
) -> None:
    stub = HardwareServiceStub(service.channel)

    await stub.EstimateModel(
        hardware_pb2.EstimateModelRequest(model="projects/p/models/m", hardware_target=name)
    )

    assert service.hardware.asked == [("p", "m", "mine")]


async def test_targets_of_other_projects_are_refused(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.EstimateModel(
            hardware_pb2.EstimateModelRequest(
                model="projects/p/models/m", hardware_target="projects/q/hardwareTargets/mine"
            )
        )

    assert info_of(caught.value)[1]["field"] == "target"


async def test_a_calibration_tells_its_course_and_ends_with_a_report(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)
    request = hardware_pb2.CalibrateHardwareTargetRequest(
        parent="projects/p",
        hardware_target="hardwareTargets/board-a",
        runner="projects/p/runners/bench-1",
        network_count=40,
    )

    steps = [step async for step in stub.CalibrateHardwareTarget(request)]

    assert [step.fraction for step in steps] == [0.5, 1.0]
    assert not steps[0].HasField("report")
    report = steps[1].report
    assert report.runner == "projects/p/runners/bench-1"
    assert report.runtime == "litert 2.3"
    (quality,) = report.quality
    assert quality.network_count == 40
    assert quality.number_format == hardware_pb2.NUMBER_FORMAT_INT8
    assert quality.within_10_percent_ratio == pytest.approx(0.93)


async def test_measurements_are_kept_where_that_is_asked_for(service: Service) -> None:
    stub = HardwareServiceStub(service.channel)
    messages = []
    for keep in (False, True):
        request = hardware_pb2.CalibrateHardwareTargetRequest(
            parent="projects/p",
            hardware_target="hardwareTargets/board-a",
            runner="projects/p/runners/bench-1",
            keep_measurements=keep,
        )
        steps = [step async for step in stub.CalibrateHardwareTarget(request)]
        messages.append(steps[0].message)

    assert messages == ["measuring", "keeping"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("runner", "projects/other/runners/bench-1"),
        ("hardware_target", "projects/other/hardwareTargets/board-a"),
        ("parent", "p"),
    ],
)
async def test_a_calibration_stays_within_its_project(
    service: Service, field: str, value: str
) -> None:
    stub = HardwareServiceStub(service.channel)
    values = {
        "parent": "projects/p",
        "hardware_target": "hardwareTargets/board-a",
        "runner": "projects/p/runners/bench-1",
    }
    request = hardware_pb2.CalibrateHardwareTargetRequest()
    for name, text in (values | {field: value}).items():
        setattr(request, name, text)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.CalibrateHardwareTarget(request):
            pass

    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
