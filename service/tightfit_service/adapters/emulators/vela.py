"""Arm's Vela compiler in a process of its own: what Ethos-U makes of an int8 TFLite file.

Vela (`pip install ethos-u-vela`, Apache-2.0) compiles for Ethos-U55, U65 and U85 and estimates cycles and
memory per operator. It is started as a program: it works on files, and a file that makes it fail
or hang must not take the service along.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tightfit_service.adapters.emulators.accelerated import PICOJOULES_PER_MAC
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    HardwareSpec,
    NumberFormat,
)
from tightfit_service.domain.quantities import Interval

CONFIGURATIONS: Mapping[AcceleratorKind, tuple[int, ...]] = {
    AcceleratorKind.ETHOS_U55: (32, 64, 128, 256),
    AcceleratorKind.ETHOS_U65: (256, 512),
    AcceleratorKind.ETHOS_U85: (128, 256, 512, 1024, 2048),
}
"""Multiply-accumulates per cycle of the configurations that Vela compiles for."""
PORT_BYTES: Mapping[AcceleratorKind, int] = {
    AcceleratorKind.ETHOS_U55: 8,
    AcceleratorKind.ETHOS_U65: 16,
    AcceleratorKind.ETHOS_U85: 16,
}
"""Width of a memory port (Arm's technical overviews)."""
DEFAULT_RAM_MB_S = 4_000.0
DEFAULT_FLASH_MB_S = 500.0
"""Those of Vela's own configuration Ethos_U55_High_End_Embedded."""
LATENCY_LOG_WIDTH = math.log(1.5)
"""Vela's documentation calls its cycles an estimate and gives no error; no boards were at hand to measure it."""
ENERGY_LOG_WIDTH = math.log(2.5)
WAITING_MW = 20.0
TIMEOUT_S = 120.0
EXTRA = "tightfit-service[ethos-u]"
CONFIDENCE = 0.9
KIB = 1024


@dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela made of a file.

    Attributes:
        compiled: The file with Ethos-U's command stream in place of the operators that it runs.
        latency_ms: Time on the NPU; operators left to the core are not in it.
        ram_bytes: Arena in the memory that is shared with the core.
        flash_bytes: Weights and command stream as compiled.
        macs: Multiply-accumulates of one inference.
        layers: Cost per operator; those of the core have no latency.
        on_core: Operators that the core runs.
    """

    compiled: bytes
    latency_ms: float
    ram_bytes: float
    flash_bytes: float
    macs: int
    layers: tuple[OperatorCost, ...]
    on_core: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VelaCompiler:
    """Compiles int8 TFLite files for Ethos-U and estimates them. Stateless."""

    timeout_s: float = TIMEOUT_S
    name: str = "vela"

    @staticmethod
    def is_installed() -> bool:
        """Whether Vela is there."""
        # a submodule cannot be looked for where its package is missing
        has_package = importlib.util.find_spec("ethosu") is not None
        return has_package and importlib.util.find_spec("ethosu.vela") is not None

    def supports(self, target: HardwareSpec) -> bool:
        """Whether Vela is there and compiles for the target's accelerator."""
        return self.is_installed() and _is_offered(target.accelerator)

    def check(self, target: HardwareSpec) -> Accelerator:
        """Return what Vela compiles for.

        Raises:
            UnsupportedError: Vela does not compile for the target, or is not installed.
        """
        accelerator = target.accelerator
        if accelerator is None or accelerator.kind not in CONFIGURATIONS:
            raise UnsupportedError(
                f"{target.name} has no Ethos-U, and Vela compiles for nothing else",
                field="output_format",
                remedy="choose a target with an Ethos-U, such as cortex-m55-ethos-u55-128, or tflite",
            )
        if not _is_offered(accelerator):
            offered = ", ".join(map(str, CONFIGURATIONS[accelerator.kind]))
            raise UnsupportedError(
                f"Vela does not compile for {accelerator.kind} with {_macs_per_cycle(accelerator)} "
                f"multiply-accumulates per cycle, which {target.name} has",
                field="output_format",
                remedy=f"give accelerator.macs_per_cycle.int8 as one of {offered}, or choose tflite",
            )
        if not self.is_installed():
            raise UnsupportedError(
                "Vela is not installed where this service runs",
                field="output_format",
                remedy=f"install {EXTRA} there, or choose tflite",
            )
        return accelerator

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        """Return Vela's estimate, with the warnings of the one that it takes the place of.

        Raises:
            InvalidModelError: Vela cannot compile the file.
            UnsupportedError: Nothing of the network runs on Ethos-U.
        """
        own = self.estimate_file(data, target)
        return replace(own, warnings=(*own.warnings, *cost.warnings))

    def estimate_file(self, data: bytes, target: HardwareSpec) -> CostEstimate:
        """Return the cost of an int8 TFLite file; RAM and flash are those of the compiled file.

        Raises:
            InvalidModelError: Vela cannot compile the file.
            UnsupportedError: Nothing of the network runs on Ethos-U, or Vela is not there.
        """
        report = self.compile(data, target)
        ratio, energy_ratio = math.exp(LATENCY_LOG_WIDTH), math.exp(ENERGY_LOG_WIDTH)
        energy = sum(layer.energy_mj for layer in report.layers)
        largest = max(report.layers, key=lambda layer: layer.latency_ms)
        warnings: tuple[str, ...] = ()
        if report.on_core:
            warnings = (
                (
                    f"{len(report.on_core)} operators run on the {target.core}, whose time is not in the "
                    f"latency: {', '.join(dict.fromkeys(report.on_core))}"
                ),
            )
        return CostEstimate(
            latency_ms=Interval.relative(report.latency_ms, low_ratio=1 / ratio, high_ratio=ratio),
            energy_mj=Interval.relative(
                energy, low_ratio=1 / energy_ratio, high_ratio=energy_ratio
            ),
            peak_ram_bytes=Interval.exact(report.ram_bytes),
            flash_bytes=Interval.exact(float(len(report.compiled))),
            macs=report.macs,
            layers=report.layers,
            peak_node=largest.node,
            provenance=(
                "cycles and memory of Arm's Vela compiler, from the clock and bandwidths of the target; "
                f"90 % latency intervals are assumed to be a factor of {ratio:.1f} either way"
            ),
            confidence=CONFIDENCE,
            warnings=warnings,
        )

    def compile(self, data: bytes, target: HardwareSpec) -> VelaReport:
        """Compile an int8 TFLite file.

        Raises:
            InvalidModelError: Vela cannot compile the file, or takes longer than `timeout_s`.
            UnsupportedError: Nothing of the network runs on Ethos-U, or Vela does not know the target.
        """
        accelerator = self.check(target)
        with tempfile.TemporaryDirectory(prefix="tightfit-vela-") as folder:
            return self._compile_in(Path(folder), data, target, accelerator)

    def _compile_in(
        self, folder: Path, data: bytes, target: HardwareSpec, accelerator: Accelerator
    ) -> VelaReport:
        source = folder / "model.tflite"
        source.write_bytes(data)
        config = folder / "target.ini"
        config.write_text(system_configuration(target, accelerator), encoding="utf-8")
        command = (
            *(sys.executable, "-m", "ethosu.vela", str(source)),
            *("--accelerator-config", f"{accelerator.kind}-{_macs_per_cycle(accelerator)}"),
            *("--config", str(config), "--system-config", "Target", "--memory-mode", "Target"),
            *("--output-dir", str(folder), "--verbose-performance"),
        )
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InvalidModelError(
                f"Vela did not compile the model within {self.timeout_s:g} s",
                field="model",
                remedy="try a smaller model",
            ) from error
        compiled = folder / "model_vela.tflite"
        if done.returncode or not compiled.is_file():
            raise InvalidModelError(
                f"Vela does not compile the model: {_last_line(done.stderr or done.stdout)}",
                field="model",
                remedy="export an int8 TFLite file; Vela reads no other",
            )
        (summary_path,) = folder.glob("model_summary_*.csv")
        return _report(
            compiled.read_bytes(),
            _rows(summary_path)[0],
            _rows(folder / "model_per-layer.csv"),
            target,
        )


def system_configuration(target: HardwareSpec, accelerator: Accelerator) -> str:
    """Return Vela's configuration of the target: clock, and bandwidths as shares of a port's.

    Burst lengths and latencies are those of Arm's example configurations for embedded systems.
    """
    clock_mhz = accelerator.clock_mhz or target.clock_mhz
    port_mb_s = PORT_BYTES[accelerator.kind] * clock_mhz
    ram = target.memory.ram_bandwidth_mb_s or DEFAULT_RAM_MB_S
    constants = target.memory.flash_bandwidth_mb_s or DEFAULT_FLASH_MB_S
    return "\n".join(
        (
            "[System_Config.Target]",
            f"core_clock={clock_mhz * 1e6:.0f}",
            "axi0_port=Sram",
            "axi1_port=OffChipFlash",
            f"Sram_clock_scale={min(ram / port_mb_s, 1.0):.6f}",
            *("Sram_burst_length=32", "Sram_read_latency=32", "Sram_write_latency=32"),
            f"OffChipFlash_clock_scale={min(constants / port_mb_s, 1.0):.6f}",
            "OffChipFlash_burst_length=128",
            *("OffChipFlash_read_latency=64", "OffChipFlash_write_latency=0"),
            "[Memory_Mode.Target]",
            *("const_mem_area=Axi1", "arena_mem_area=Axi0", "cache_mem_area=Axi0", ""),
        )
    )


def _report(
    compiled: bytes,
    summary: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    target: HardwareSpec,
) -> VelaReport:
    accelerator = target.accelerator
    clock_mhz = (accelerator.clock_mhz if accelerator else None) or target.clock_mhz
    layers = []
    on_core = []
    for i, row in enumerate(rows):
        runs_here = row["Target"].strip().upper() == "NPU"
        if not runs_here:
            on_core.append(row["Original Operator"])
        cycles = float(row["Op Cycles"] or 0) if runs_here else 0.0
        macs = round(float(row["MAC Count"] or 0))
        latency = cycles / (clock_mhz * 1e3)
        layers.append(
            OperatorCost(
                node=f"{i}:{row['NNG Operator'].strip()}",
                op_type=row["Original Operator"].strip(),
                macs=macs,
                latency_ms=latency,
                energy_mj=_energy_mj(macs, latency, target),
                weight_bytes=0,
            )
        )
    if len(on_core) == len(rows):
        raise UnsupportedError(
            "no operator of the model runs on Ethos-U",
            field="model",
            remedy="quantize it to int8; Ethos-U computes in 8- and 16-bit integers",
        )
    return VelaReport(
        compiled=compiled,
        latency_ms=float(summary["inference_time"]) * 1e3,
        ram_bytes=float(summary["sram_memory_used"]) * KIB,
        flash_bytes=float(summary["off_chip_flash_memory_used"]) * KIB,
        macs=round(float(summary["nn_macs"])),
        layers=tuple(layers),
        on_core=tuple(on_core),
    )


def _energy_mj(macs: int, latency_ms: float, target: HardwareSpec) -> float:
    if target.power.accelerator_mw is not None:
        return latency_ms * target.power.accelerator_mw / 1e3
    waiting = target.power.idle_mw or WAITING_MW
    return macs * PICOJOULES_PER_MAC * 1e-9 + latency_ms * waiting / 1e3


def _is_offered(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and _macs_per_cycle(accelerator) in CONFIGURATIONS.get(
        accelerator.kind, ()
    )


def _macs_per_cycle(accelerator: Accelerator) -> int:
    return round(accelerator.macs_per_cycle.get(NumberFormat.INT8, 0))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
