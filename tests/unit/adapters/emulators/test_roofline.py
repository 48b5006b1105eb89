"""The roofline emulator: the longer of compute and traffic, and the processor's features."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.profiles import ProfileBuilder
from tightfit_service.adapters.emulators.roofline import CORES, RooflineEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.network import OperatorKind

EMULATOR = RooflineEmulator()
CATALOGUE = YamlTargetCatalogue()


def test_a_dense_layer_is_bound_by_bandwidth_and_a_convolution_by_products() -> None:
    target = CATALOGUE.get("raspberry-pi-4")
    half = replace(
        target, memory=replace(target.memory, ram_bandwidth_mb_s=target.memory.ram_bandwidth_mb_s)
    )
    assert target.memory.ram_bandwidth_mb_s is not None
    slow = replace(
        half,
        memory=replace(target.memory, ram_bandwidth_mb_s=target.memory.ram_bandwidth_mb_s / 10),
    )
    net = ProfileBuilder(channels=64, size=(32, 32))
    net.dense(net.conv("input", 64), 1000)
    conv, dense = net.build().operators
    assert EMULATOR.operator_cost(conv, slow).latency_ms == pytest.approx(
        EMULATOR.operator_cost(conv, target).latency_ms
    )
    assert EMULATOR.operator_cost(dense, slow).latency_ms > 5 * (
        EMULATOR.operator_cost(dense, target).latency_ms
    )


def test_dot_products_and_threads_speed_integers_up() -> None:
    target = CATALOGUE.get("raspberry-pi-5")
    net = ProfileBuilder(channels=64, size=(32, 32))
    net.conv("input", 64)
    (conv,) = net.build().operators
    plain = replace(target, isa_features=("neon",))
    threaded = CATALOGUE.get("raspberry-pi-5-4threads")
    fast = EMULATOR.operator_cost(conv, target).latency_ms
    assert EMULATOR.operator_cost(conv, plain).latency_ms > 1.5 * fast
    assert EMULATOR.operator_cost(conv, threaded).latency_ms < 0.6 * fast


def test_every_operator_costs_its_overhead_but_reshapes() -> None:
    target = CATALOGUE.get("x86-64")
    net = ProfileBuilder(channels=1, size=(1, 1))
    net.other("input", kind=OperatorKind.ACTIVATION, op_type="Relu")
    net.other("input", kind=OperatorKind.RESHAPE, op_type="Reshape")
    relu, reshape = net.build().operators
    overhead = CORES["x86-64"].overhead_cycles / (target.clock_mhz * 1e3)
    assert EMULATOR.operator_cost(relu, target).latency_ms == pytest.approx(overhead, rel=0.01)
    assert EMULATOR.operator_cost(reshape, target).latency_ms == 0


def test_ram_holds_the_weights_and_flash_is_the_file() -> None:
    net = ProfileBuilder(channels=8, size=(4, 4))
    net.conv("input", 8)
    network = net.build()
    estimate = EMULATOR.estimate(network, CATALOGUE.get("raspberry-pi-4"), file_bytes=9_999)
    assert estimate.flash_bytes.value == 9_999
    assert estimate.peak_ram_bytes.value == 8 * 8 * 9 + 4 * 8 + 2 * 8 * 16
