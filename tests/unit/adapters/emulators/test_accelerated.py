"""Accelerators: who runs what, what leaving costs, and what the family makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tightfit_service.adapters.emulators.edge_tpu import EDGE_TPU_EMULATOR
from tightfit_service.adapters.emulators.esp import EspEmulator
from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR
from tightfit_service.adapters.emulators.gpu import GPU_EMULATOR
from tightfit_service.adapters.emulators.npu import NPU_EMULATOR
from tightfit_service.adapters.emulators.partitions import computed_format, partitions
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.bootstrap import emulators
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Fallback,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

CATALOGUE = YamlTargetCatalogue()


def chain(*kinds: OperatorKind, bits: int = 8, channels: int = 64) -> NetworkProfile:
    """Operators one after the other on 16 x 16 pixels."""
    operators = tuple(
        Operator(
            node=f"n{i}",
            kind=kind,
            op_type=kind.value,
            inputs=(f"t{i}",),
            outputs=(f"t{i + 1}",),
            macs=256 * channels * channels if kind is OperatorKind.CONV else 0,
            in_channels=channels,
            out_channels=channels,
            in_size=(16, 16),
            out_size=(16, 16),
            kernel=(1, 1),
            stride=(1, 1),
            weight_count=channels * channels if kind is OperatorKind.CONV else 0,
            weight_bits=bits,
            activation_bits=bits,
        )
        for i, kind in enumerate(kinds)
    )
    return NetworkProfile(
        operators=operators,
        tensors={f"t{i}": (1, channels, 16, 16) for i in range(len(kinds) + 1)},
        inputs=("t0",),
        outputs=(f"t{len(kinds)}",),
    )


def accelerator(fallback: Fallback) -> Accelerator:
    return Accelerator(
        kind=AcceleratorKind.NPU,
        tops={NumberFormat.INT8: 1.0},
        operators=(OperatorKind.CONV,),
        fallback=fallback,
    )


CONV, RESIZE = OperatorKind.CONV, OperatorKind.RESIZE


def test_operators_that_are_not_supported_split_the_network() -> None:
    parts = partitions(chain(CONV, RESIZE, CONV), accelerator(Fallback.CPU))
    assert [p.on_accelerator for p in parts] == [True, False, True]
    # Every tensor that crosses is 64 x 16 x 16 bytes.
    assert [p.entering_bytes for p in parts] == [16_384.0] * 3


def test_an_edge_tpu_never_comes_back() -> None:
    parts = partitions(chain(CONV, RESIZE, CONV), accelerator(Fallback.CPU_FROM_FIRST))
    assert [(p.on_accelerator, len(p.operators)) for p in parts] == [(True, 1), (False, 2)]


def test_a_compiler_that_refuses_names_the_operator() -> None:
    with pytest.raises(UnsupportedError, match="resize") as caught:
        partitions(chain(CONV, RESIZE), accelerator(Fallback.REFUSED))
    assert caught.value.field == "hardware_target"
    assert "n1" in str(caught.value)


def test_number_formats_that_are_not_computed_run_on_the_cores() -> None:
    parts = partitions(chain(CONV, CONV, bits=32), accelerator(Fallback.CPU))
    assert [p.on_accelerator for p in parts] == [False]
    halves = replace(accelerator(Fallback.CPU), tops={NumberFormat.FLOAT16: 1.0})
    assert computed_format(halves, chain(CONV, bits=32).operators[0]) is NumberFormat.FLOAT16


def test_leaving_the_accelerator_costs_time_and_is_said() -> None:
    target = CATALOGUE.get("rock-3a-npu")
    npu = target.accelerator
    assert npu is not None
    only_conv = replace(target, accelerator=replace(npu, operators=(CONV,)))
    network = chain(CONV, RESIZE, CONV)
    whole, split = NPU_EMULATOR.estimate(network, target), NPU_EMULATOR.estimate(network, only_conv)
    assert split.latency_ms.value > whole.latency_ms.value
    assert "resize" in split.warnings[0]
    assert whole.warnings == ()


def test_weights_beyond_the_own_memory_are_streamed() -> None:
    target = CATALOGUE.get("coral-dev-board")
    tpu = target.accelerator
    assert tpu is not None
    assert tpu.transfer_mb_s is not None
    network = chain(*[CONV] * 4, channels=256)
    little = replace(target, accelerator=replace(tpu, memory_bytes=1))
    extra = (
        EDGE_TPU_EMULATOR.estimate(network, little).latency_ms.value
        - EDGE_TPU_EMULATOR.estimate(network, target).latency_ms.value
    )
    assert extra == pytest.approx((4 * 256 * 256 - 1) / (tpu.transfer_mb_s * 1e3))


def test_other_runtimes_of_a_gpu_are_slower_than_the_vendors() -> None:
    target = CATALOGUE.get("jetson-nano")
    slower = replace(target, runtime=Runtime(name="ncnn Vulkan"))
    network = chain(*[CONV] * 9, bits=32, channels=256)
    assert (
        GPU_EMULATOR.estimate(network, slower).latency_ms.value
        > 1.5 * GPU_EMULATOR.estimate(network, target).latency_ms.value
    )


def test_kernel_libraries_of_esp32_differ() -> None:
    target, network = CATALOGUE.get("esp32-s3-devkitc-1"), chain(CONV, CONV)
    latency = {
        name: EspEmulator()
        .estimate(network, replace(target, runtime=Runtime(name=name)))
        .latency_ms.value
        for name in ("TFLM (reference kernels)", "TFLM+ESP-NN", "ESP-DL")
    }
    assert latency["TFLM (reference kernels)"] > 10 * latency["TFLM+ESP-NN"]
    assert latency["ESP-DL"] < latency["TFLM+ESP-NN"]


def test_every_target_of_the_catalogue_has_one_emulator_that_answers() -> None:
    network = chain(CONV)
    for target in CATALOGUE.list():
        emulator = next((e for e in emulators() if e.supports(target)), None)
        assert emulator is not None, target.name
        bits = 8 if NumberFormat.INT8 in target.number_formats else 32
        cost = emulator.estimate(
            network.at_precision(weight_bits=bits, activation_bits=bits), target
        )
        assert 0 < cost.latency_ms.low < cost.latency_ms.value < cost.latency_ms.high, target.name
        assert 0 < cost.energy_mj.low < cost.energy_mj.high, target.name
        assert cost.provenance


def test_an_ethos_u85_sums_over_eight_input_channels_at_a_time() -> None:
    (conv,) = chain(CONV).operators

    def rounding(channels: int) -> float:
        return ETHOS_U_EMULATOR.input_rounding(conv.resized(channels, conv.out_channels))

    assert rounding(57) == 64 / 57
    assert rounding(56) == rounding(64) == 1
