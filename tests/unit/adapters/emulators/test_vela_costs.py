"""What Vela writes, read without Vela: costs, the core beside it, and a compiler that crashes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.tflite_operators import left_on_core
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.emulators.vela_costs import cost_of
from tightfit_service.adapters.emulators.vela_report import VelaReport, read_report
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.network import OperatorKind

TARGET = YamlTargetCatalogue().get("cortex-m55-ethos-u55-128")
HEAD = "Original Operator,NNG Operator,Target,Staging Usage,Op Cycles,MAC Count,Name\n"
SUMMARY = "inference_time,sram_memory_used,off_chip_flash_memory_used,nn_macs\n0.001,2,3,4096\n"


def on_npu(builder: TfliteBuilder, source: int, output: int) -> int:
    builder.operator("CUSTOM", [source], output)
    builder.model.operatorCodes[-1].customCode = b"ethos-u"
    return output


def compiled(*, left: bool) -> bytes:
    """Ethos-U, and where something is left a dense layer in float between two parts of it."""
    builder = TfliteBuilder()
    given = builder.tensor([1, 4, 4, 8], dtype="int8", scale=0.5)
    last = on_npu(builder, given, builder.tensor([1, 32], dtype="int8", scale=0.5))
    if left:
        floats = builder.operator("DEQUANTIZE", [last], builder.tensor([1, 32]))
        weights = builder.constant(np.ones((10, 32), dtype=np.float32))
        dense = builder.operator("FULLY_CONNECTED", [floats, weights], builder.tensor([1, 10]))
        back = builder.tensor([1, 10], dtype="int8", scale=0.5)
        builder.operator("QUANTIZE", [dense], back)
        last = on_npu(builder, back, builder.tensor([1, 10], dtype="int8", scale=0.5))
    return builder.build([given], [last])


def written(folder: Path, *lines: str, summary: str = SUMMARY) -> Path:
    (folder / "model_summary_Target.csv").write_text(summary)
    (folder / "model_per-layer.csv").write_text(HEAD + "".join(f"{line}\n" for line in lines))
    return folder


def report(folder: Path, *, left: bool = False) -> VelaReport:
    conv = "Conv2D,Conv2D,NPU,1500,250000,4096,a;b,c"
    return read_report(
        written(
            folder, conv, "Softmax,Exp,NPU,300,250000,0,t1", "Softmax,Passthrough,CPU,0,0,0,t2"
        ),
        compiled(left=left),
        TARGET,
    )


def test_tables_are_read_by_the_clock_of_the_target(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert (found.latency_ms, found.ram_bytes, found.flash_bytes, found.macs) == (
        1,
        2048,
        3072,
        4096,
    )
    conv, softmax = found.rows
    assert conv.latency_ms == softmax.latency_ms == 0.5  # 250000 cycles at 500 MHz
    assert (conv.kind, conv.macs, conv.staging_bytes) == (OperatorKind.CONV, 4096, 1500)


@pytest.mark.parametrize(
    ("lines", "summary"),
    [
        (("Conv2D,Conv2D,NPU,1,many,1,t0",), SUMMARY),
        (("Conv2D,Conv2D,NPU,1,1,1,t0",), "other,columns\n1,2\n"),
        (("Conv2D,Conv2D,NPU,1,1,1,t0",), SUMMARY.splitlines()[0] + "\n"),
    ],
)
def test_tables_of_another_form_are_told(
    tmp_path: Path, lines: tuple[str, ...], summary: str
) -> None:
    with pytest.raises(InvalidModelError, match="tables that Vela wrote"):
        read_report(written(tmp_path, *lines, summary=summary), b"", TARGET)


def test_missing_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="tables that Vela wrote"):
        read_report(tmp_path, b"", TARGET)


def test_a_network_of_which_nothing_runs_on_ethos_u_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "Conv2D,Passthrough,CPU,0,0,0,t0")
    with pytest.raises(UnsupportedError, match="no operator"):
        read_report(tmp_path, b"", TARGET)


def test_what_stays_on_the_core_is_read_from_the_compiled_file() -> None:
    assert left_on_core(compiled(left=False)).operators == ()
    left = left_on_core(compiled(left=True))
    assert [operator.op_type for operator in left.operators] == [
        "DEQUANTIZE",
        "FULLY_CONNECTED",
        "QUANTIZE",
    ]
    dense = left.operators[1]
    assert (dense.kind, dense.macs, dense.weight_count) == (OperatorKind.DENSE, 320, 320)
    assert (dense.in_channels, dense.out_channels, dense.activation_bits) == (32, 10, 32)
    assert left.operators[0].activation_bits == 8
    # 32 bytes come over from Ethos-U, 10 go back.
    assert left.crossing_bytes == (32, 10)


def test_a_window_left_on_the_core_has_its_size() -> None:
    builder = TfliteBuilder()
    given = builder.tensor([1, 8, 8, 4])
    weights = np.ones((6, 3, 3, 4), dtype=np.float32)
    (conv,) = left_on_core(
        builder.build([given], [builder.conv(given, weights, stride=2)])
    ).operators
    assert (conv.kind, conv.kernel, conv.stride) == (OperatorKind.CONV, (3, 3), (2, 2))
    assert (conv.in_size, conv.out_size, conv.out_channels) == ((8, 8), (3, 3), 6)
    assert conv.macs == 3 * 3 * 6 * 3 * 3 * 4


def test_the_cost_is_velas_and_its_interval_a_factor_of_one_and_a_half(tmp_path: Path) -> None:
    cost = cost_of(report(tmp_path), TARGET, core=McuEmulator(), layers=(), compiler="vela 9.9")
    assert cost.latency_ms.value == pytest.approx(1.0)
    assert cost.latency_ms.high == pytest.approx(1.5)
    assert cost.latency_ms.low == pytest.approx(1 / 1.5)
    assert (cost.peak_ram_bytes.value, cost.peak_ram_bytes.high) == (2048, 2048)
    assert cost.flash_bytes.value == len(compiled(left=False))
    assert cost.compiler == "vela 9.9"
    assert cost.provenance.startswith("vela 9.9: ")
    assert cost.warnings == ()
    assert cost.peak_node == "vela:Conv2D"


def test_the_core_is_costed_by_its_own_emulator(tmp_path: Path) -> None:
    core = McuEmulator()
    alone = cost_of(report(tmp_path), TARGET, core=core, layers=(), compiler="vela 9.9")
    both = cost_of(report(tmp_path, left=True), TARGET, core=core, layers=(), compiler="vela 9.9")
    left = left_on_core(compiled(left=True)).operators
    by_core = sum(core.operator_cost(operator, TARGET).latency_ms for operator in left)
    assert by_core > 0
    gained = both.latency_ms.value - alone.latency_ms.value
    # Crossing takes the rest: 42 bytes at 5000 MB/s.
    assert gained == pytest.approx(by_core + 42 / 5e6)
    assert both.latency_ms.high == pytest.approx(1.5 + 2 * gained)
    assert both.energy_mj.value > alone.energy_mj.value
    assert both.macs == alone.macs + 320
    (warning,) = both.warnings
    assert "3 operators run on the cortex-m55" in warning
    assert "FULLY_CONNECTED" in warning
    names = {layer.node for layer in both.layers}
    assert {"vela:DEQUANTIZE", "vela:FULLY_CONNECTED"} <= names


def test_a_core_without_a_model_is_told(tmp_path: Path) -> None:
    cost = cost_of(report(tmp_path, left=True), TARGET, core=None, layers=(), compiler="vela 9.9")
    assert cost.latency_ms.value == pytest.approx(1.0, abs=1e-4)
    assert "not in the latency" in cost.warnings[0]


def program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kill -SEGV $$", "it ended with signal 11"),
        ("exit 3", "it ended with code 3"),
        ("echo 'Error: no such thing' >&2; exit 1", "no such thing"),
        ("exit 0", "it ended with code 0"),
        ("exec sleep 60", "within 0.3 s"),
    ],
)
def test_a_compiler_that_crashes_or_hangs_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setattr(VelaCompiler, "is_installed", staticmethod(lambda: True))
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    with pytest.raises(InvalidModelError, match=told):
        VelaCompiler(timeout_s=0.3 if "sleep" in text else 30.0).compile(b"file", TARGET)


def test_it_says_what_it_compiles_for_whether_installed_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VelaCompiler, "is_installed", staticmethod(lambda: False))
    compiler = VelaCompiler()
    assert compiler.covers(TARGET)
    assert not compiler.supports(TARGET)
    assert compiler.version == ""
    assert compiler.remedy == "pip install 'tightfit-service[ethos-u]'"
    assert not compiler.covers(YamlTargetCatalogue().get("raspberry-pi-4"))
    assert TARGET.accelerator is not None
    odd = replace(TARGET.accelerator, macs_per_cycle={NumberFormat.INT8: 100})
    assert not compiler.covers(replace(TARGET, accelerator=odd))


WRITES_TABLES = f"""
echo "$*" >> {{log}}
case "$*" in *"--optimise Size"*) ram={{small}};; *) ram={{fast}};; esac
echo compiled > model_vela.tflite
printf 'inference_time,sram_memory_used,off_chip_flash_memory_used,nn_macs\\n0.001,%s,3,4096\\n' $ram > model_summary_Target.csv
printf '{HEAD.strip()}\\nConv2D,Conv2D,NPU,1500,250000,4096,a\\n' > model_per-layer.csv
cp target.ini {{log}}.ini
"""


@pytest.mark.parametrize(
    ("fast", "small", "expected", "runs"),
    [
        (2048, 1, 2048, 1),  # fits: 2 MiB are there
        (2049, 700, 700, 2),
        (4000, 5000, 4000, 2),  # compiled for its size, it needs still more
    ],
)
def test_what_needs_more_ram_than_there_is_is_compiled_for_its_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fast: int,
    small: int,
    expected: int,
    runs: int,
) -> None:
    log = tmp_path / "log"
    script = WRITES_TABLES.format(log=log, fast=fast, small=small)
    monkeypatch.setattr(VelaCompiler, "is_installed", staticmethod(lambda: True))
    monkeypatch.setattr(sys, "executable", program(tmp_path, script))
    found = VelaCompiler().compile(b"file", TARGET)
    assert found.ram_bytes == expected * 1024
    asked = log.read_text().splitlines()
    assert len(asked) == runs
    assert "--optimise Performance" in asked[0]
    assert f"arena_cache_size={TARGET.memory.ram_bytes}" in Path(f"{log}.ini").read_text()
