"""The microcontroller emulator: measured boards, flash, warnings, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.profiles import ProfileBuilder, chain_profile, residual_profile
from tightfit_service.adapters.emulators.mcu import McuEmulator, half_width_at
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Memory,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.network import NetworkProfile

EMULATOR = McuEmulator()
CATALOGUE = YamlTargetCatalogue()


def mlperf_tiny_resnet8() -> NetworkProfile:
    """The image classification network of MLPerf Tiny, 12.5 M products."""
    net = ProfileBuilder(channels=3, size=(32, 32))
    stem = net.conv("input", 16)
    first = net.add(net.conv(net.conv(stem, 16), 16), stem)
    second = net.add(
        net.conv(net.conv(first, 32, stride=2), 32), net.conv(first, 32, kernel=1, stride=2)
    )
    third = net.add(
        net.conv(net.conv(second, 64, stride=2), 64), net.conv(second, 64, kernel=1, stride=2)
    )
    return net.build(net.dense(net.global_pool(third), 10))


@pytest.mark.parametrize(
    ("target", "measured_ms"),
    [
        # MLPerf Tiny results v0.7 to v1.3, image classification.
        ("nucleo-h7a3zi-q", 40.844),
        ("nucleo-l4r5zi", 165.12),
        ("nucleo-u575zi-q", 109.496),
        ("ek-ra6m4", 246.2),
        ("cy8cproto-062-4343w", 188.973),
        ("nucleo-g0b1re-hale", 1521.6),
    ],
)
def test_boards_of_the_fit_are_within_a_tenth_of_the_measurement(
    target: str, measured_ms: float
) -> None:
    network = mlperf_tiny_resnet8()
    assert network.macs == 12_501_632
    latency = EMULATOR.estimate(network, CATALOGUE.get(target)).latency_ms
    assert latency.value == pytest.approx(measured_ms, rel=0.1)
    assert latency.low < measured_ms < latency.high


def test_energy_follows_the_measured_power_of_the_board() -> None:
    energy = EMULATOR.estimate(mlperf_tiny_resnet8(), CATALOGUE.get("nucleo-u575zi-q")).energy_mj
    assert energy.value == pytest.approx(2.565, rel=0.12)  # MLPerf Tiny v1.3


def test_a_known_board_has_a_narrower_interval_than_a_custom_one_of_its_class() -> None:
    network = residual_profile()
    known = EMULATOR.estimate(network, CATALOGUE.get("nucleo-u575zi-q")).latency_ms
    custom = EMULATOR.estimate(network, CATALOGUE.complete({"core": "cortex-m33"})).latency_ms
    assert known.high / known.value < custom.high / custom.value


def test_the_runtime_decides_more_than_the_clock() -> None:
    network = mlperf_tiny_resnet8()
    tuned = EMULATOR.estimate(network, CATALOGUE.get("nucleo-l4r5zi"))
    portable = EMULATOR.estimate(network, CATALOGUE.get("nucleo-l4r5zi-tflm"))
    assert portable.latency_ms.value > 1.3 * tuned.latency_ms.value


def test_tflm_keeps_the_file_in_flash_and_compiled_runtimes_the_constants() -> None:
    network = residual_profile()
    constants = sum(op.weight_count + 4 * op.bias_count for op in network.operators)
    file = EMULATOR.estimate(network, CATALOGUE.get("cortex-m7-tflm"), file_bytes=54_321)
    assert file.flash_bytes.low == file.flash_bytes.high == 54_321
    guess = EMULATOR.estimate(network, CATALOGUE.get("cortex-m7-tflm")).flash_bytes
    assert guess.value > constants
    compiled = EMULATOR.estimate(network, CATALOGUE.get("cortex-m7"), file_bytes=54_321)
    assert compiled.flash_bytes.value == constants


def test_an_unknown_runtime_is_named_in_a_warning_and_has_a_wide_interval() -> None:
    target = CATALOGUE.get("cortex-m4")
    strange = replace(target, runtime=Runtime(name="HomeGrown NN"))
    known = EMULATOR.estimate(residual_profile(), target)
    estimate = EMULATOR.estimate(residual_profile(), strange)
    assert any("HomeGrown NN" in text for text in estimate.warnings)
    assert estimate.latency_ms.high / estimate.latency_ms.value > (
        known.latency_ms.high / known.latency_ms.value
    )


def test_a_runtime_whose_planner_is_not_modelled_may_need_far_less_ram() -> None:
    target = CATALOGUE.get("cortex-m7-tflm")
    other = replace(target, runtime=Runtime(name="TinyEngine"))
    known, wide = (EMULATOR.estimate(residual_profile(), item) for item in (target, other))
    assert wide.peak_ram_bytes.value == known.peak_ram_bytes.value
    assert wide.peak_ram_bytes.low == 0.25 * wide.peak_ram_bytes.value
    assert wide.peak_ram_bytes.high == known.peak_ram_bytes.high
    assert any("TinyEngine" in text and "RAM" in text for text in wide.warnings)
    assert not any("RAM" in text for text in known.warnings)


def test_little_flash_beside_the_model_warns_of_the_runtimes_code() -> None:
    target = CATALOGUE.get("cortex-m4")
    tight = replace(target, memory=Memory(ram_bytes=target.memory.ram_bytes, flash_bytes=40_000))
    warnings = EMULATOR.estimate(residual_profile(), tight).warnings
    assert any("code" in text for text in warnings)
    assert not EMULATOR.estimate(residual_profile(), target).warnings


def test_float32_without_a_floating_point_unit_is_far_slower() -> None:
    target = CATALOGUE.get("cortex-m33")
    bare = replace(target, isa_features=("dsp",))
    network = chain_profile().at_precision(weight_bits=32, activation_bits=32)
    with_unit = EMULATOR.estimate(network, target)
    without = EMULATOR.estimate(network, bare)
    assert without.latency_ms.value > 3 * with_unit.latency_ms.value
    assert any("floating-point" in text for text in without.warnings)


def test_a_target_seen_with_and_without_a_unit_is_priced_by_its_own_features() -> None:
    emulator = McuEmulator()
    target = CATALOGUE.get("cortex-m33")
    bare = replace(target, isa_features=())
    network = chain_profile().at_precision(weight_bits=32, activation_bits=32)
    slow = emulator.estimate(network, bare).latency_ms.value
    fast = emulator.estimate(network, target).latency_ms.value
    assert emulator.estimate(network, bare).latency_ms.value == pytest.approx(slow)
    assert fast < slow


def test_wide_activations_cost_between_int8_and_float32() -> None:
    target = CATALOGUE.get("cortex-m7")
    network = chain_profile(width=32)
    cost = {
        bits: EMULATOR.estimate(
            network.at_precision(weight_bits=8, activation_bits=bits), target
        ).latency_ms.value
        for bits in (8, 16)
    }
    assert cost[8] < cost[16]


def test_accelerated_and_foreign_targets_are_not_supported() -> None:
    target = CATALOGUE.get("cortex-m55")
    assert EMULATOR.supports(target)
    assert not EMULATOR.supports(
        replace(
            target,
            accelerator=Accelerator(
                kind=AcceleratorKind.ETHOS_U55,
                clock_mhz=400.0,
                macs_per_cycle={NumberFormat.INT8: 128.0},
            ),
        )
    )
    assert not EMULATOR.supports(replace(target, core="risc-v"))


def test_half_widths_are_interpolated_and_never_narrower_than_normal_beyond_the_knots() -> None:
    knots = [[0.1, 0.2], [0.2, 0.4]]
    assert half_width_at(knots, 0.05) == pytest.approx(0.2)
    assert half_width_at(knots, 0.15) == pytest.approx(0.3)
    assert half_width_at(knots, 0.21) == pytest.approx(0.4)
    assert half_width_at(knots, 0.5) == pytest.approx(0.8225)
