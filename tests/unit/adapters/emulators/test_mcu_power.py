"""Power of microcontrollers from what is known of the board."""

from __future__ import annotations

import math

import pytest

from tightfit_service.adapters.emulators.mcu_power import (
    CONVERTED_VOLTS,
    PowerModel,
    effective_volts,
)
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec

MODEL = PowerModel(
    setups={"nucleo-l4r5zi+x-cube-ai/9.0": math.log(0.18)},
    boards={"nucleo-l4r5zi": math.log(0.2)},
    cores={"cortex-m4": math.log(0.15)},
    supplies={"nucleo-l4r5zi": 1.8},
    log_sd={"known": 0.05, "assumed": 0.25},
)


def board(name: str, **power: float) -> HardwareSpec:
    return YamlTargetCatalogue().complete(
        {"core": "cortex-m4", "display_name": name, "clock_mhz": 100, "power": power}
    )


@pytest.mark.parametrize(
    ("name", "runtime", "rate", "volts"),
    [
        ("NUCLEO-L4R5ZI", ("x-cube-ai", "x-cube-ai/9.0"), 0.18, 1.8),
        ("NUCLEO-L4R5ZI", ("tflm", "tflm/cmsis-nn"), 0.2, 1.8),
        ("Some Board", ("tflm",), 0.15, 3.0),
    ],
)
def test_the_nearest_that_is_known_counts(
    name: str, runtime: tuple[str, ...], rate: float, volts: float
) -> None:
    assert MODEL.active_mw(board(name), runtime) == pytest.approx(rate * 100 * volts)


def test_a_stated_power_and_a_stated_supply_come_first() -> None:
    assert MODEL.active_mw(board("X", active_mw=7.0), ("tflm",)) == 7.0
    linear = MODEL.active_mw(board("NUCLEO-L4R5ZI", supply_v=3.0), ("tflm",))
    assert linear == pytest.approx(0.2 * 100 * 3.0)


def test_converters_draw_power_whatever_the_supply() -> None:
    assert effective_volts("NUCLEO-L4R5ZI-P", 1.8) == effective_volts("NUCLEO-L4R5ZI-P", 3.3)
    assert effective_volts("NUCLEO-H7A3ZI-Q", 3.0) == CONVERTED_VOLTS
    assert effective_volts("EK-RA6M4", 3.0) == 3.0


def test_unknown_boards_have_wider_intervals() -> None:
    assert MODEL.deviation(board("NUCLEO-L4R5ZI")) < MODEL.deviation(board("X"))
    assert MODEL.deviation(board("X", active_mw=7.0)) == MODEL.log_sd["known"]
