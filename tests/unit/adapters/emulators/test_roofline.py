"""The roofline emulator: products, the way through cache and memory, and the processor's features."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fakes.profiles import ProfileBuilder
from tightfit_service.adapters.emulators.correctable import correctable
from tightfit_service.adapters.emulators.gpu import GPU_EMULATOR
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.roofline import CORES, RooflineEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import Operator, OperatorKind

EMULATOR = RooflineEmulator()
CATALOGUE = YamlTargetCatalogue()


def test_a_dense_layer_waits_for_memory_and_a_convolution_in_the_cache_does_not() -> None:
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


def elementwise(channels: int) -> Operator:
    net = ProfileBuilder(channels=channels, size=(32, 32))
    net.other("input", kind=OperatorKind.ACTIVATION, op_type="Sigmoid")
    return net.build().operators[0]


def busy_ms(
    operator: Operator, target: HardwareSpec, emulator: RooflineEmulator = EMULATOR
) -> float:
    """Return what the operator takes beyond being started."""
    overhead = CORES[target.core].overhead_cycles / (target.clock_mhz * 1e3)
    return emulator.operator_cost(operator, target).latency_ms - overhead


def bandwidth(target: HardwareSpec) -> float:
    assert target.memory.ram_bandwidth_mb_s is not None
    return target.memory.ram_bandwidth_mb_s * 1e3


def test_litert_computes_a_softmax_of_integers_in_memory_for_floats_besides() -> None:
    target = CATALOGUE.get("raspberry-pi-4")
    net = ProfileBuilder(channels=64, size=(32, 32))
    net.other("input", kind=OperatorKind.SOFTMAX, op_type="Softmax")
    network = net.build()
    found = {
        name: EMULATOR.memory_points(
            network, replace(target, runtime=replace(target.runtime, name=name))
        )[0].bytes_in_use
        for name in ("LiteRT", "ONNX Runtime")
    }
    assert found["LiteRT"] - found["ONNX Runtime"] == 2 * 4 * 64 * 32 * 32


def test_what_fits_half_the_cache_comes_at_its_rate_and_the_rest_from_memory_besides() -> None:
    target = CATALOGUE.get("raspberry-pi-4")
    assert target.memory.cache_bytes == 1 << 20
    # read and written: 512 KiB, which half of the cache holds, and 2 MiB, which it does not
    small, large = elementwise(256), elementwise(1024)
    assert busy_ms(small, target) == pytest.approx(2**19 / (8 * target.clock_mhz * 1e3))
    through_the_cache = 4 * busy_ms(small, target)
    assert busy_ms(large, target) == pytest.approx(through_the_cache + 2**21 / bandwidth(target))


def test_weights_that_do_not_fit_come_from_memory_and_activations_from_the_cache() -> None:
    target = CATALOGUE.get("raspberry-pi-4")
    net = ProfileBuilder(channels=1024, size=(1, 1))
    net.dense("input", 2048)
    (dense,) = net.build().at_precision(weight_bits=32, activation_bits=32).operators
    memory = replace(target.memory, ram_bandwidth_mb_s=bandwidth(target) / 2e3)
    slower = replace(target, memory=memory)
    weights = 4 * 1024 * 2048
    assert busy_ms(dense, slower) - busy_ms(dense, target) == pytest.approx(
        weights / bandwidth(target)
    )


@pytest.mark.parametrize(("core", "hides"), [("cortex-a72", True), ("cortex-a53", False)])
def test_a_core_in_order_waits_for_data_and_another_computes_meanwhile(
    core: str, hides: bool
) -> None:
    target = CATALOGUE.complete({"core": core})
    net = ProfileBuilder(channels=64, size=(16, 16))
    net.conv("input", 64)
    (conv,) = net.build().operators
    memory = replace(target.memory, cache_bytes=0)
    # nothing stays in a cache of no size, and little is what memory takes of a convolution
    waits = busy_ms(conv, replace(target, memory=memory)) - busy_ms(conv, target)
    assert waits == pytest.approx(0 if hides else EMULATOR.traffic_bytes(conv) / bandwidth(target))


def test_the_form_that_is_corrected_grows_without_steps() -> None:
    target = CATALOGUE.get("raspberry-pi-4")
    sizes = range(16, 1024, 16)

    def jumps(emulator: RooflineEmulator) -> float:
        """The largest growth from one width to the next, over the least."""
        times = [busy_ms(elementwise(channels), target, emulator) for channels in sizes]
        steps = [after - before for before, after in itertools.pairwise(times)]
        return max(steps) / min(steps)

    assert jumps(EMULATOR) > 10
    assert jumps(EMULATOR.smooth) == pytest.approx(1)
    assert correctable(EMULATOR) == EMULATOR.smooth
    assert EMULATOR.smooth.smooth == EMULATOR.smooth


def test_accelerators_are_corrected_with_cores_without_caches_and_others_as_they_are() -> None:
    target = CATALOGUE.get("raspberry-pi-4-coral-usb")
    accelerated = GPU_EMULATOR.smooth
    assert correctable(GPU_EMULATOR) == accelerated
    (core,) = (core for core in accelerated.cores if core.runs_core(target))
    assert core == EMULATOR.smooth
    assert correctable(McuEmulator()) == McuEmulator()


@pytest.mark.parametrize(("name", "figure"), [("cache_bytes", 2**20), ("ram_bandwidth_mb_s", 4000)])
def test_a_memory_that_is_not_told_widens_the_interval_where_it_matters(
    name: str, figure: int
) -> None:
    partial = {"core": "cortex-a72", "clock_mhz": 1500, "runtime": {"name": "LiteRT"}}
    whole = {"ram_bytes": 2**31, "cache_bytes": 2**20, "ram_bandwidth_mb_s": 4000}
    told = CATALOGUE.complete({**partial, "memory": whole})
    without = {key: value for key, value in whole.items() if key != name}
    untold = CATALOGUE.complete({**partial, "memory": without})
    assert getattr(untold.memory, name) == figure
    moved = ProfileBuilder(channels=1024, size=(32, 32))
    moved.other("input", kind=OperatorKind.ACTIVATION, op_type="Sigmoid")
    computed = ProfileBuilder(channels=64, size=(32, 32))
    computed.conv("input", 64)
    for net, grows in ((moved, True), (computed, False)):
        known, guess = (EMULATOR.estimate(net.build(), t).latency_ms for t in (told, untold))
        assert known.value == guess.value
        assert (guess.high > 1.05 * known.high) is grows
        assert (guess.low < known.low / 1.05) is grows


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
