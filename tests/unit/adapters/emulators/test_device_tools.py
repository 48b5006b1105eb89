"""Vela and the interpreter for microcontrollers, each in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.emulators.tflm_interpreter import TflmArena, TflmInterpreter
from tightfit_service.adapters.emulators.vela import VelaCompiler, system_configuration
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.quantities import Interval

CATALOGUE = YamlTargetCatalogue()
TARGET = CATALOGUE.get("cortex-m55-ethos-u55-128")

needs_vela = pytest.mark.skipif(
    not VelaCompiler.is_installed(),
    reason="ethos-u-vela is not installed (pip install ethos-u-vela)",
)
needs_tflm = pytest.mark.skipif(
    not TflmInterpreter.is_installed(), reason="tflite-micro is not installed"
)


def convolution(*, is_float: bool = False) -> bytes:
    """A 1x1 convolution of 8 x 8 x 4 values: output channel i is input channel i, scaled alike."""
    builder = TfliteBuilder()
    if is_float:
        source = builder.tensor([1, 8, 8, 4])
        return builder.build([source], [builder.conv(source, np.eye(4).reshape(4, 1, 1, 4))])
    source = builder.tensor([1, 8, 8, 4], dtype="int8", scale=0.5)
    weights = builder.constant(
        64 * np.eye(4, dtype=np.int8).reshape(4, 1, 1, 4), dtype="int8", scale=1 / 64
    )
    bias = builder.constant(np.zeros(4, dtype=np.int32), dtype="int32", scale=0.5 / 64)
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = 1
    options.dilationHFactor = options.dilationWFactor = 1
    output = builder.tensor([1, 8, 8, 4], dtype="int8", scale=0.5)
    builder.operator("CONV_2D", [source, weights, bias], output, options)
    return builder.build([source], [output])


def guess() -> CostEstimate:
    """What an emulator may say of the convolution, ten times too much."""
    layer = OperatorCost(
        node="conv", op_type="Conv", macs=1024, latency_ms=1.0, energy_mj=1.0, weight_bytes=16
    )
    return CostEstimate(
        latency_ms=Interval.exact(1),
        energy_mj=Interval.exact(1),
        peak_ram_bytes=Interval.exact(1),
        flash_bytes=Interval.exact(1),
        macs=1024,
        layers=(layer,),
        peak_node="conv",
        provenance="guessed",
        confidence=0.9,
        warnings=("a guess",),
    )


@needs_vela
def test_vela_estimates_what_it_compiles() -> None:
    cost = VelaCompiler().refine(convolution(), TARGET, guess())
    assert cost.macs == 8 * 8 * 4 * 4
    assert 0 < cost.latency_ms.low < cost.latency_ms.value < cost.latency_ms.high < 1
    assert 2 * 8 * 8 * 4 <= cost.peak_ram_bytes.value < 4096
    assert cost.flash_bytes.value > 0
    (layer,) = cost.layers
    assert layer.node == "conv"
    assert layer.latency_ms == pytest.approx(cost.latency_ms.value)
    assert cost.warnings == ()
    assert cost.compiler == f"vela {VelaCompiler().version}"
    assert cost.provenance.startswith(cost.compiler)
    report = VelaCompiler().compile(convolution(), TARGET)
    assert b"ethos-u" in report.compiled


@needs_vela
def test_vela_says_what_it_does_not_compile() -> None:
    with pytest.raises(UnsupportedError, match="no operator"):
        VelaCompiler().compile(convolution(is_float=True), TARGET)
    with pytest.raises(InvalidModelError, match="Vela does not compile"):
        VelaCompiler().compile(b"no model", TARGET)
    with pytest.raises(InvalidModelError, match="within"):
        VelaCompiler(timeout_s=0.001).compile(convolution(), TARGET)
    with pytest.raises(UnsupportedError, match="raspberry-pi-4"):
        VelaCompiler().compile(convolution(), CATALOGUE.get("raspberry-pi-4"))


def test_the_bandwidths_of_a_target_are_shares_of_a_port() -> None:
    assert TARGET.accelerator is not None
    lines = system_configuration(TARGET, TARGET.accelerator).splitlines()
    assert "core_clock=500000000" in lines
    # 4000 and 500 MB/s of the 8 bytes at 500 MHz.
    assert "Sram_clock_scale=1.000000" in lines
    assert "OffChipFlash_clock_scale=0.125000" in lines


def test_an_ethos_u85_has_several_transfers_under_way() -> None:
    assert TARGET.accelerator is not None
    assert "max_reads" not in system_configuration(TARGET, TARGET.accelerator)
    larger = CATALOGUE.get("cortex-m85-ethos-u85-256")
    assert larger.accelerator is not None
    assert "Sram_max_reads=8" in system_configuration(larger, larger.accelerator).splitlines()


def test_vela_is_told_of_the_ram_but_of_no_more_than_it_plans_with() -> None:
    assert TARGET.accelerator is not None
    assert "arena_cache_size=2097152" in system_configuration(TARGET, TARGET.accelerator)
    board = CATALOGUE.get("imx93-evk")
    assert board.accelerator is not None
    assert board.memory.ram_bytes > 1 << 30
    assert f"arena_cache_size={1 << 30}\n" in system_configuration(board, board.accelerator)


@needs_tflm
def test_the_interpreter_gives_the_bits_of_a_device_and_its_arena() -> None:
    samples = np.arange(2 * 256).reshape(2, 1, 8, 8, 4).astype(np.int8)
    run = TflmInterpreter().run(convolution(), samples)
    # Weights of one, equal scales: every value comes out as it went in.
    assert np.array_equal(run.outputs, samples.reshape(2, 8, 8, 4))
    assert run.arena.activations >= 2 * 256
    assert run.arena.total == run.arena.activations + run.arena.bookkeeping


@needs_tflm
def test_the_arena_bounds_the_planned_peak() -> None:
    board = CATALOGUE.get("arduino-nano-33-ble")
    planned = CostEstimate(
        latency_ms=Interval.exact(1),
        energy_mj=Interval.exact(1),
        peak_ram_bytes=Interval(value=2500, low=1, high=1e6),
        flash_bytes=Interval.exact(1),
        macs=1,
        layers=(),
        peak_node="",
        provenance="planned",
        confidence=0.9,
    )
    assert TflmArena().supports(board)
    assert not TflmArena().supports(TARGET)
    ram = TflmArena().refine(convolution(), board, planned).peak_ram_bytes
    assert 512 < ram.low < ram.value <= ram.high
    assert ram.high < 10_000


@needs_tflm
def test_the_interpreter_never_takes_the_service_along() -> None:
    with pytest.raises(InvalidModelError, match="does not run"):
        TflmInterpreter().run(b"no model at all", np.zeros((1, 4), dtype=np.int8))
    with pytest.raises(InvalidModelError, match="within"):
        TflmInterpreter(timeout_s=0.001).run(convolution(), np.zeros((1, 256), dtype=np.int8))
