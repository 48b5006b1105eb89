"""Figures that no device has are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tightfit_service.domain.errors import InvalidTargetError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime


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
    ],
)
def test_impossible_figures_name_their_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidTargetError) as caught:
        spec(**change)
    assert caught.value.field == field


def test_a_usual_board_is_accepted() -> None:
    assert spec().clock_mhz == 80.0
