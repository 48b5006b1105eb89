"""Arenas of float32 networks against what X-CUBE-AI reported for them."""

from __future__ import annotations

import pytest
from benchmarks.arena_fitting import planned_bytes
from benchmarks.arena_reports import REPORTS, Report

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.memory_plan import x_cube_ai_float_style
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.network import OperatorKind

EXACT = {
    # In place, two layers for convolution and pooling in 8.1, a fused pooling over the image before 8.
    "Floatkyun/MINIST_on_STM32_F4",
    "kiki442002/STM32_embeded_audio_classifier",
    "dorukduran/STM32-Keyword-Driven-Power-Socket",
    "mayssajr/STM32_digit_recognition",
    "barissskaan/Alexa-Version-2",
    "Solomia200/stm32-ai-activity-tracker",
    "nMoussa/HAR-Nucleo",
    "Hengbote/CubeIDE_use_Cubeai",
    "TristanLecourtois/IAEmbarque_failure_prediction",
}


def test_layers_are_read_as_they_are_written() -> None:
    report = next(r for r in REPORTS if r.repository.startswith("dorukduran"))
    network = report.network
    assert [(op.kind, op.out_channels, op.out_size) for op in network.operators] == [
        (OperatorKind.CONV, 64, (20, 4)),
        (OperatorKind.DEPTHWISE_CONV, 64, (18, 2)),
        (OperatorKind.CONV, 8, (18, 2)),
        (OperatorKind.POOL, 8, (9, 1)),
        (OperatorKind.DENSE, 30, ()),
    ]
    assert network.operators[-1].in_channels == 72


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.repository)
def test_the_plan_is_near_what_is_reported(report: Report) -> None:
    planned = planned_bytes(report.network, x_cube_ai_float_style(report.release))
    tolerance = 0.002 if report.repository in EXACT else 0.13
    assert planned == pytest.approx(report.activation_bytes, rel=tolerance)


def test_the_emulator_plans_by_the_release_of_the_target() -> None:
    report = next(r for r in REPORTS if r.repository.startswith("Floatkyun"))
    catalogue, emulator = YamlTargetCatalogue(), McuEmulator()
    ram = {}
    for version in ("8.1.0", "10.2.0"):
        runtime = {"name": "X-CUBE-AI", "version": version}
        target = catalogue.complete({"core": "cortex-m4", "runtime": runtime})
        ram[version] = emulator.estimate(report.network, target).peak_ram_bytes
    assert ram["8.1.0"].value == report.activation_bytes
    assert ram["8.1.0"].low < report.activation_bytes < ram["8.1.0"].high
    # Later releases pool inside the convolution, and keep two rows of its output instead of all.
    assert ram["10.2.0"].value < 0.6 * ram["8.1.0"].value
