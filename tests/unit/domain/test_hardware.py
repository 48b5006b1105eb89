"""Figures that no device has are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tightfit_service.domain.errors import InvalidTargetError
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Fallback,
    HardwareSpec,
    Memory,
    NumberFormat,
    Placement,
    Power,
    Runtime,
)
from tightfit_service.domain.network import OperatorKind


def npu(**changes: Any) -> Accelerator:
    values: dict[str, Any] = {"tops": {NumberFormat.INT8: 4.0}, **changes}
    return Accelerator(kind=AcceleratorKind.NPU, **values)


def spec(**changes: Any) -> HardwareSpec:
    memory = Memory(
        ram_bytes=changes.pop("ram_bytes", 1 << 18), flash_bytes=changes.pop("flash_bytes", 1 << 20)
    )
    values: dict[str, Any] = {
        "name": "board",
        "display_name": "A board",
        "core": "cortex-m4",
        "clock_mhz": 80.0,
        "memory": memory,
        "runtime": Runtime(name="TFLM"),
        **changes,
    }
    return HardwareSpec(**values)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"clock_mhz": 0.0}, "target.clock_mhz"),
        ({"clock_mhz": 1e6}, "target.clock_mhz"),
        ({"core_count": 0}, "target.core_count"),
        ({"ram_bytes": -1}, "target.memory.ram_bytes"),
        ({"flash_bytes": 0}, "target.memory.flash_bytes"),
        ({"channel_multiple": 0}, "target.channel_multiple"),
        ({"ram_bytes": 2**40 + 1}, "target.memory.ram_bytes"),
        ({"clock_mhz": float("nan")}, "target.clock_mhz"),
        ({"number_formats": ()}, "target.number_formats"),
        ({"power": Power(sleep_mw=-1.0)}, "target.power.sleep_mw"),
        ({"accelerator": npu(tops={NumberFormat.INT8: -1.0})}, "target.accelerator.tops.int8"),
        ({"accelerator": npu(memory_bytes=-1)}, "target.accelerator.memory_bytes"),
    ],
)
def test_impossible_figures_name_their_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        spec(**change)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tops": {}}, "target.accelerator.tops"),
        ({"tops": {}, "macs_per_cycle": {NumberFormat.INT8: 64.0}}, "target.accelerator.clock_mhz"),
    ],
)
def test_an_accelerator_needs_a_rate_that_means_something(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        npu(**change)
    assert caught.value.field == field


def test_rates_per_cycle_and_in_tops_are_the_same_thing() -> None:
    per_cycle = npu(tops={}, clock_mhz=500.0, macs_per_cycle={NumberFormat.INT8: 256.0})
    in_tops = npu(tops={NumberFormat.INT8: 0.256})
    rate = per_cycle.macs_per_second(NumberFormat.INT8)
    assert rate == pytest.approx(in_tops.macs_per_second(NumberFormat.INT8))
    assert rate == pytest.approx(128e9)
    assert per_cycle.macs_per_second(NumberFormat.FLOAT32) == 0


@pytest.mark.parametrize(
    ("fallback", "elsewhere"),
    [
        (Fallback.CPU, Placement.CPU),
        (Fallback.CPU_FROM_FIRST, Placement.CPU),
        (Fallback.REFUSED, Placement.REFUSED),
    ],
)
def test_what_an_accelerator_does_not_run_goes_where_its_fallback_says(
    fallback: Fallback, elsewhere: Placement
) -> None:
    target = spec(accelerator=npu(operators=(OperatorKind.CONV,), fallback=fallback))
    assert target.placement(OperatorKind.CONV, NumberFormat.INT8) is Placement.ACCELERATOR
    assert target.placement(OperatorKind.SOFTMAX, NumberFormat.INT8) is elsewhere


def test_without_an_accelerator_all_runs_on_the_cores() -> None:
    assert spec().placement(OperatorKind.OTHER, NumberFormat.INT4) is Placement.CPU


def test_a_usual_board_is_accepted() -> None:
    assert spec().clock_mhz == 80.0


def test_one_partition_means_that_what_follows_the_first_gap_stays_on_the_cores() -> None:
    network = [
        (kind, NumberFormat.INT8)
        for kind in (OperatorKind.CONV, OperatorKind.SOFTMAX, OperatorKind.CONV)
    ]
    many = npu(operators=(OperatorKind.CONV,))
    one = npu(operators=(OperatorKind.CONV,), fallback=Fallback.CPU_FROM_FIRST)
    on, off = Placement.ACCELERATOR, Placement.CPU
    assert many.placements(network) == (on, off, on)
    assert one.placements(network) == (on, off, off)


@pytest.mark.parametrize(
    ("offered", "fallback", "given", "computed"),
    [
        (("float16", "float32"), "cpu", "float32", "float16"),
        (("float32",), "cpu", "float32", "float32"),
        (("int8",), "cpu", "float32", "float32"),
        (("int8",), "refused", "float32", "int8"),
        (("int8",), "cpu", "int4", "int8"),
        (("int8", "int4"), "cpu", "int4", "int4"),
    ],
)
def test_a_format_is_computed_in_what_the_accelerator_has(
    offered: tuple[str, ...], fallback: str, given: str, computed: str
) -> None:
    accelerator = npu(
        tops={NumberFormat(name): 1.0 for name in offered}, fallback=Fallback(fallback)
    )
    assert accelerator.computed_format(NumberFormat(given)) == computed


def test_reshapes_are_where_their_neighbours_are() -> None:
    accelerator = npu(operators=(OperatorKind.CONV,), fallback=Fallback.REFUSED)
    assert accelerator.placement(OperatorKind.RESHAPE, NumberFormat.INT8) is Placement.ACCELERATOR
