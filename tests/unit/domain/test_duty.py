"""Duty cycle, mean power and battery life."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.duty import Usage, duty_cycle
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Power, Runtime
from tightfit_service.domain.quantities import Interval

TARGET = HardwareSpec(
    name="board",
    display_name="Board",
    core="cortex-m7",
    clock_mhz=100,
    memory=Memory(ram_bytes=1, flash_bytes=1),
    runtime=Runtime(name="TFLM"),
    power=Power(sleep_mw=0.5),
)
COST = CostEstimate(
    latency_ms=Interval(value=100, low=80, high=150),
    energy_mj=Interval(value=10, low=7, high=16),
    peak_ram_bytes=Interval.exact(1),
    flash_bytes=Interval.exact(1),
    macs=1,
    layers=(),
    peak_node="",
    provenance="",
    confidence=0.9,
)


def test_energy_of_frames_and_rest_add_up() -> None:
    result = duty_cycle(COST, TARGET, Usage(frames_per_second=2, battery_mah=200, battery_v=3))
    assert result.duty == Interval(value=0.2, low=0.16, high=0.3)
    assert result.mean_power_mw.value == pytest.approx(2 * 10 + 0.8 * 0.5)
    assert result.mean_power_mw.low < result.mean_power_mw.value < result.mean_power_mw.high
    assert result.battery_hours is not None
    assert result.battery_hours.value == pytest.approx(600 / 20.4)
    assert result.battery_hours.low == pytest.approx(600 / result.mean_power_mw.high)
    assert result.notes == ()


def test_a_rate_beyond_the_target_is_said_and_costs_what_it_manages() -> None:
    result = duty_cycle(COST, TARGET, Usage(frames_per_second=30))
    assert result.duty.value == pytest.approx(3)
    assert result.mean_power_mw.value == pytest.approx(100)
    assert "about 10" in result.notes[0]
    assert result.battery_hours is None
    assert "may not" in duty_cycle(COST, TARGET, Usage(frames_per_second=8)).notes[0]


@pytest.mark.parametrize("core", ["cortex-m0+", "xtensa-lx7", "riscv32", "cortex-a72"])
def test_what_no_target_states_is_assumed_and_said(core: str) -> None:
    target = replace(TARGET, core=core, power=Power())
    result = duty_cycle(COST, target, Usage(frames_per_second=0.001))
    assert "assumed" in result.notes[0]
    assert result.mean_power_mw.high > 2 * result.mean_power_mw.low


@pytest.mark.parametrize(
    ("usage", "field"),
    [
        ({"frames_per_second": 0}, "frames_per_second"),
        ({"frames_per_second": float("nan")}, "frames_per_second"),
        ({"frames_per_second": 1, "battery_mah": 5}, "battery_v"),
        ({"frames_per_second": 1, "battery_v": 5}, "battery_mah"),
        ({"frames_per_second": 1, "battery_mah": -5, "battery_v": 3}, "battery_mah"),
    ],
)
def test_impossible_usages_are_refused(usage: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Usage(**usage)
    assert caught.value.field == f"usage.{field}"
    assert caught.value.remedy
