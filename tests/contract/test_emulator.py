"""What every emulator promises, on every target of the catalogue that it supports."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.profiles import ProfileBuilder, chain_profile, residual_profile
from tightfit_service import bootstrap
from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import Emulator
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import Fallback, HardwareSpec
from tightfit_service.domain.network import NetworkProfile, OperatorKind
from tightfit_service.domain.quantities import Interval

MCU, ROOFLINE = McuEmulator(), RooflineEmulator()
EMULATORS: Sequence[Emulator] = bootstrap.emulators()
CATALOGUE = YamlTargetCatalogue()
TARGETS = CATALOGUE.list()


def _refuses_operators(target: HardwareSpec) -> bool:
    accelerator = target.accelerator
    return accelerator is not None and accelerator.fallback is Fallback.REFUSED


CASES = [
    pytest.param(emulator, target, id=f"{emulator.name}-{target.name}")
    for emulator in EMULATORS
    for target in TARGETS
    # a target that refuses operators has no figures for a network that holds one
    if emulator.supports(target) and not _refuses_operators(target)
]
FEW = [
    pytest.param(emulator, CATALOGUE.get(name), id=name)
    for emulator, name in (
        (MCU, "nucleo-h7a3zi-q"),
        (MCU, "cortex-m4-tflm"),
        (MCU, "cortex-m0plus"),
        (ROOFLINE, "raspberry-pi-4"),
        (ROOFLINE, "x86-64"),
    )
]


def intervals(estimate: CostEstimate) -> tuple[Interval, ...]:
    return (
        estimate.latency_ms,
        estimate.energy_mj,
        estimate.peak_ram_bytes,
        estimate.flash_bytes,
    )


def test_every_target_of_the_catalogue_has_an_emulator() -> None:
    assert [t.name for t in TARGETS if not any(e.supports(t) for e in EMULATORS)] == []


@pytest.mark.parametrize(("emulator", "target"), CASES)
def test_an_estimate_is_complete_and_its_intervals_hold_their_values(
    emulator: Emulator, target: HardwareSpec
) -> None:
    network = residual_profile()
    estimate = emulator.estimate(network, target)
    for interval in intervals(estimate):
        assert 0 < interval.low <= interval.value <= interval.high < float("inf")
    assert estimate.macs == network.macs
    assert [layer.node for layer in estimate.layers] == [op.node for op in network.operators]
    assert estimate.confidence == pytest.approx(0.9)
    assert estimate.provenance


@pytest.mark.parametrize(("emulator", "target"), CASES)
def test_operator_costs_and_a_constant_add_up_to_the_estimate(
    emulator: Emulator, target: HardwareSpec
) -> None:
    latencies, energies = [], []
    for network in (residual_profile(), chain_profile(length=1), chain_profile(length=6)):
        estimate = emulator.estimate(network, target)
        costs = [emulator.operator_cost(op, target) for op in network.operators]
        assert tuple(costs) == estimate.layers
        latencies.append(estimate.latency_ms.value - sum(c.latency_ms for c in costs))
        energies.append(estimate.energy_mj.value - sum(c.energy_mj for c in costs))
    if target.accelerator is None:
        assert latencies == pytest.approx([latencies[0]] * 3, abs=1e-9)
        assert energies == pytest.approx([0.0] * 3, abs=1e-9)
    else:
        # calls of the accelerator and transfers to it come on top, and depend on the network
        assert min(latencies) > -1e-9
        assert min(energies) > -1e-9


@pytest.mark.parametrize(("emulator", "target"), CASES)
def test_the_largest_memory_point_is_the_peak(emulator: Emulator, target: HardwareSpec) -> None:
    network = residual_profile()
    points = emulator.memory_points(network, target)
    largest = max(points, key=lambda point: point.bytes_in_use)
    estimate = emulator.estimate(network, target)
    peak = estimate.peak_ram_bytes
    if emulator == ETHOS_U_EMULATOR and target.core.startswith("cortex-m"):
        # with weights fetched ahead where there is room
        assert peak.low < largest.bytes_in_use <= peak.value
        assert estimate.peak_node in {point.node for point in points}
    else:
        assert peak.value == pytest.approx(largest.bytes_in_use)
        assert estimate.peak_node == largest.node
    assert {name for p in points for name in p.tensor_bytes} <= set(network.tensors)
    assert {p.node for p in points} <= {op.node for op in network.operators}


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 3),
    in_channels=st.integers(1, 40),
    out_channels=st.integers(1, 40),
    more_in=st.integers(0, 9),
    more_out=st.integers(0, 9),
)
@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_wider_operators_never_cost_less(
    emulator: Emulator,
    target: HardwareSpec,
    which: int,
    in_channels: int,
    out_channels: int,
    more_in: int,
    more_out: int,
) -> None:
    net = ProfileBuilder(channels=8, size=(6, 6))
    tensor = net.conv("input", 8)
    tensor = net.depthwise(net.conv(tensor, 8, kernel=1))
    net.dense(tensor, 8)
    operator = net.build().operators[which]
    if operator.kind is OperatorKind.DEPTHWISE_CONV:
        in_channels, more_in = out_channels, more_out
    narrow = operator.resized(in_channels, out_channels)
    wide = narrow.resized(in_channels + more_in, out_channels + more_out)
    before, after = emulator.operator_cost(narrow, target), emulator.operator_cost(wide, target)
    assert after.latency_ms >= before.latency_ms * (1 - 1e-9)
    assert after.energy_mj >= before.energy_mj * (1 - 1e-9)
    assert after.weight_bytes >= before.weight_bytes


@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_wider_networks_need_more_of_everything(emulator: Emulator, target: HardwareSpec) -> None:
    small = emulator.estimate(residual_profile(width=8), target)
    large = emulator.estimate(residual_profile(width=32), target)
    for less, more in zip(intervals(small), intervals(large), strict=True):
        assert less.value < more.value


@pytest.mark.parametrize("kind", list(OperatorKind))
@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_operators_of_any_kind_are_priced(
    emulator: Emulator, target: HardwareSpec, kind: OperatorKind
) -> None:
    net = ProfileBuilder(channels=4, size=(5, 5))
    net.other("input", kind=kind, op_type="SomethingNew")
    network = net.build()
    cost = emulator.operator_cost(network.operators[0], target)
    assert cost.macs == 0
    assert cost.latency_ms >= 0
    assert emulator.estimate(network, target).peak_ram_bytes.value > 0


@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_float32_is_slower_and_larger_than_int8(emulator: Emulator, target: HardwareSpec) -> None:
    network = residual_profile(width=32)
    as_int8 = emulator.estimate(network, target)
    as_float = emulator.estimate(network.at_precision(weight_bits=32, activation_bits=32), target)
    for less, more in zip(intervals(as_int8), intervals(as_float), strict=True):
        assert less.value < more.value


@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_twice_the_clock_is_half_the_latency(emulator: Emulator, target: HardwareSpec) -> None:
    from dataclasses import replace

    network: NetworkProfile = chain_profile(width=32)
    fast = replace(target, clock_mhz=2 * target.clock_mhz)
    slow_ms = emulator.estimate(network, target).latency_ms.value
    assert emulator.estimate(network, fast).latency_ms.value == pytest.approx(slow_ms / 2, rel=0.3)


@pytest.mark.parametrize(("emulator", "target"), FEW)
def test_what_is_assumed_widens_the_latency_interval(
    emulator: Emulator, target: HardwareSpec
) -> None:
    from dataclasses import replace

    network = residual_profile()
    unsure = replace(target, assumed_fields=("clock_mhz", "runtime"))
    known = emulator.estimate(network, target).latency_ms
    assumed = emulator.estimate(network, unsure).latency_ms
    assert assumed.value == pytest.approx(known.value)
    assert assumed.high > known.high
    assert assumed.low < known.low
