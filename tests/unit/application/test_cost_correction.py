"""An emulator brought to a compiler's figures: exact where they were given, scaled elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.device_compiler import CALL_MS, FLASH_RATIO, MARGIN, RAM_RATIO, FakeCompiler
from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import network
from fakes.search_bench import TARGET
from tightfit_service.application.cost_correction import CorrectedEmulator, corrected
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.network import NetworkProfile

EMULATOR = LinearEmulator()


def as_compiled(a: int = 16, b: int = 32) -> CostEstimate:
    estimate = EMULATOR.estimate(network(a, b), TARGET)
    return FakeCompiler().refine(b"file", TARGET, estimate)


@pytest.fixture
def emulator() -> CorrectedEmulator:
    return corrected(EMULATOR, network(), TARGET, as_compiled())


def test_the_network_that_was_compiled_costs_what_the_compiler_says(
    emulator: CorrectedEmulator,
) -> None:
    said, found = as_compiled(), emulator.estimate(network(), TARGET, file_bytes=12_345)
    for given, seen in [
        (said.latency_ms, found.latency_ms),
        (said.energy_mj, found.energy_mj),
        (said.peak_ram_bytes, found.peak_ram_bytes),
        (said.flash_bytes, found.flash_bytes),
    ]:
        assert (seen.low, seen.value, seen.high) == pytest.approx(
            (given.low, given.value, given.high)
        )
    assert [layer.latency_ms for layer in found.layers] == pytest.approx(
        [layer.latency_ms for layer in said.layers]
    )
    assert "fakec 1.2" in found.provenance
    assert not found.compiler, "no file was compiled"
    assert emulator.name == "linear+fakec"


@pytest.mark.parametrize(("a", "b"), [(8, 32), (16, 16), (4, 8)])
def test_narrower_networks_are_scaled_layer_by_layer(
    emulator: CorrectedEmulator, a: int, b: int
) -> None:
    found, said = emulator.estimate(network(a, b), TARGET), as_compiled(a, b)
    assert found.latency_ms.value == pytest.approx(said.latency_ms.value)
    assert found.latency_ms.high == pytest.approx(MARGIN * found.latency_ms.value)
    total = sum(emulator.operator_cost(op, TARGET).latency_ms for op in network(a, b).operators)
    assert found.latency_ms.value == pytest.approx(total + CALL_MS)


def test_operators_that_were_not_compiled_are_scaled_as_their_kind(
    emulator: CorrectedEmulator,
) -> None:
    conv_a, conv_b, dense = network().operators
    part = replace(conv_a, node="a.1")
    plain = EMULATOR.operator_cost(part, TARGET)
    convs = [conv_a.macs, conv_b.macs]
    ratio = (2 * convs[0] + 4 * convs[1]) / sum(convs)
    assert emulator.operator_cost(part, TARGET).latency_ms == pytest.approx(
        ratio * plain.latency_ms
    )
    own = emulator.operator_cost(dense, TARGET)
    assert own.latency_ms == EMULATOR.operator_cost(dense, TARGET).latency_ms
    assert own.weight_bytes == round(FLASH_RATIO * dense.weight_count)


def test_memory_is_scaled_at_every_point(emulator: CorrectedEmulator) -> None:
    for own, found in zip(
        EMULATOR.memory_points(network(), TARGET),
        emulator.memory_points(network(), TARGET),
        strict=True,
    ):
        assert found.node == own.node
        assert found.tensor_bytes == {n: RAM_RATIO * v for n, v in own.tensor_bytes.items()}


def test_floats_are_not_compiled(emulator: CorrectedEmulator) -> None:
    as_float: NetworkProfile = network().at_precision(weight_bits=32, activation_bits=32)
    assert emulator.estimate(as_float, TARGET) == EMULATOR.estimate(as_float, TARGET)
    assert emulator.memory_points(as_float, TARGET) == EMULATOR.memory_points(as_float, TARGET)
    for operator in as_float.operators:
        assert emulator.operator_cost(operator, TARGET) == EMULATOR.operator_cost(operator, TARGET)
