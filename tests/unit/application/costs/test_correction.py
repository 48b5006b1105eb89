"""An emulator brought to a compiler's figures: exact where they were given, scaled elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.device_compiler import CALL_MS, FLASH_RATIO, MARGIN, RAM_RATIO, FakeCompiler
from fakes.linear_emulator import LinearEmulator
from fakes.scripted_work import network
from fakes.search_bench import TARGET
from tightfit_service.application.costs.correction import Compiled, CorrectedEmulator, corrected
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.domain.quantities import Interval

EMULATOR = LinearEmulator()


def as_compiled(a: int = 16, b: int = 32) -> CostEstimate:
    estimate = EMULATOR.estimate(network(a, b), TARGET)
    return FakeCompiler().refine(b"file", TARGET, estimate)


@pytest.fixture
def emulator() -> CorrectedEmulator:
    return corrected(EMULATOR, TARGET, Compiled(network=network(), cost=as_compiled()))


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


LAYER_MS, ARENA_BYTES, FILE_BYTES = 0.05, 3_000.0, 9_000.0
"""What a layer, the arena and the file take at any width, in the compiler below."""


def with_fixed_parts(a: int = 16, b: int = 32) -> Compiled:
    """A network, and what a compiler says of it by which layers do not shrink to nothing."""
    own = EMULATOR.estimate(network(a, b), TARGET)
    layers = tuple(
        replace(layer, latency_ms=LAYER_MS + 2 * layer.latency_ms, energy_mj=layer.energy_mj)
        for layer in own.layers
    )
    cost = replace(
        own,
        latency_ms=Interval.exact(sum(layer.latency_ms for layer in layers)),
        peak_ram_bytes=Interval.exact(ARENA_BYTES + own.peak_ram_bytes.value),
        flash_bytes=Interval.exact(FILE_BYTES + 0.5 * own.flash_bytes.value),
        layers=layers,
        compiler="fakec 1.2",
    )
    return Compiled(network=network(a, b), cost=cost)


@pytest.mark.parametrize(("a", "b"), [(16, 32), (12, 24), (8, 16), (4, 8)])
def test_a_narrower_network_tells_what_does_not_grow_with_width(a: int, b: int) -> None:
    expected = with_fixed_parts(a, b).cost
    by_one = corrected(EMULATOR, TARGET, with_fixed_parts()).estimate(network(a, b), TARGET)
    both = corrected(EMULATOR, TARGET, with_fixed_parts(), with_fixed_parts(8, 16))
    by_two = both.estimate(network(a, b), TARGET)
    for given, seen in [
        (expected.latency_ms, by_two.latency_ms),
        (expected.peak_ram_bytes, by_two.peak_ram_bytes),
        (expected.flash_bytes, by_two.flash_bytes),
    ]:
        assert seen.value == pytest.approx(given.value)
    assert [layer.latency_ms for layer in by_two.layers] == pytest.approx(
        [layer.latency_ms for layer in expected.layers]
    )
    assert "and of a narrower one" in by_two.provenance
    assert "narrower" not in by_one.provenance
    if a < 16:
        assert by_one.latency_ms.value < 0.97 * expected.latency_ms.value
        assert by_one.peak_ram_bytes.value < 0.97 * expected.peak_ram_bytes.value
    points = both.memory_points(network(a, b), TARGET)
    peak = max(point.fixed_bytes + sum(point.tensor_bytes.values()) for point in points)
    assert peak == pytest.approx(expected.peak_ram_bytes.value)


def test_unknown_operators_take_the_fixed_part_of_their_kind_as_well() -> None:
    both = corrected(EMULATOR, TARGET, with_fixed_parts(), with_fixed_parts(8, 16))
    part = replace(network().operators[1], node="b.1")
    plain = EMULATOR.operator_cost(part, TARGET).latency_ms
    assert both.operator_cost(part, TARGET).latency_ms == pytest.approx(LAYER_MS + 2 * plain)


def falling_faster(a: int = 16, b: int = 32) -> Compiled:
    """A network that takes a time with the square of the emulator's."""
    own = EMULATOR.estimate(network(a, b), TARGET)
    layers = tuple(
        replace(layer, latency_ms=1e3 * layer.latency_ms**2, energy_mj=0.0) for layer in own.layers
    )
    latency = Interval.exact(sum(layer.latency_ms for layer in layers))
    ram = Interval.exact(0.01 * own.peak_ram_bytes.value**2)
    cost = replace(own, latency_ms=latency, layers=layers, peak_ram_bytes=ram, compiler="fakec 1")
    return Compiled(network=network(a, b), cost=cost)


def test_plans_never_count_on_less_than_nothing_nor_on_time_that_falls_with_width() -> None:
    emulator = corrected(EMULATOR, TARGET, falling_faster(), falling_faster(8, 16))
    whole = network().operators[1]
    seen = [
        emulator.operator_cost(whole.resized(16, out), TARGET).latency_ms for out in range(1, 33)
    ]
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == pytest.approx(1e3 * EMULATOR.operator_cost(whole, TARGET).latency_ms ** 2)
    # Memory has no fixed part below zero: it is planned in proportion to the whole.
    points = emulator.memory_points(network(1, 1), TARGET)
    assert all(point.fixed_bytes == 0 for point in points)


def test_a_network_that_is_hardly_narrower_tells_no_slope() -> None:
    odd = with_fixed_parts()
    odd = replace(odd, cost=replace(odd.cost, peak_ram_bytes=Interval.exact(1.0)))
    alone = corrected(EMULATOR, TARGET, with_fixed_parts())
    found = corrected(EMULATOR, TARGET, with_fixed_parts(), odd)
    narrow = network(8, 16)
    assert found.estimate(narrow, TARGET).latency_ms == alone.estimate(narrow, TARGET).latency_ms
    assert found.memory_points(narrow, TARGET) == alone.memory_points(narrow, TARGET)
