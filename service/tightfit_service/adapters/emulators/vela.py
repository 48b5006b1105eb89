"""Arm's Vela compiler in a process of its own: what Ethos-U makes of an int8 TFLite file, and what it costs.

Vela (`pip install ethos-u-vela`, Apache-2.0) compiles for Ethos-U55, U65 and U85 and estimates cycles and
memory per operator. It is started as a program: it works on files, and a file that makes it fail
or hang must not take the service along.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.vela_report import VelaReport, read_report
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    HardwareSpec,
    NumberFormat,
)

PACKAGE = "ethos-u-vela"
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
OUTSTANDING: Mapping[AcceleratorKind, tuple[str, ...]] = {
    AcceleratorKind.ETHOS_U85: (
        *("Sram_max_reads=8", "Sram_max_writes=8"),
        *("OffChipFlash_max_reads=2", "OffChipFlash_max_writes=0"),
    )
}
"""Transfers under way at a time, as in Arm's own configuration Ethos_U85_SYS_Flash_High. Without them Vela has
one at a time wait for the last, which leaves a fraction of the bandwidth; it counts them for Ethos-U85 alone."""
DEFAULT_RAM_MB_S = 4_000.0
DEFAULT_FLASH_MB_S = 500.0
"""Those of Vela's own configuration Ethos_U55_High_End_Embedded."""
MAX_ARENA_BYTES = 1 << 30
"""What Vela can be told of at most (its buffers are planned within 32 bits)."""
FOR_SPEED = "Performance"
FOR_SIZE = "Size"
"""Strategies of Vela: for speed, weights are fetched into RAM ahead of time as far as the arena goes, and
feature maps are computed whole where they fit."""
TIMEOUT_S = 120.0
EXTRA = "tightfit-service[ethos-u]"


@dataclass(frozen=True, kw_only=True)
class VelaCompiler:
    """Compiles int8 TFLite files for Ethos-U and costs them (`ports.DeviceCompiler`). Stateless.

    Attributes:
        timeout_s: Seconds that it may take for a file.
        cores: Emulators of the cores beside, for operators that Ethos-U does not run.
    """

    timeout_s: float = TIMEOUT_S
    name: str = "vela"
    cores: Sequence[McuEmulator | RooflineEmulator] = field(
        default=(McuEmulator(), RooflineEmulator()), repr=False
    )

    @staticmethod
    def is_installed() -> bool:
        """Whether Vela is there."""
        # a submodule cannot be looked for where its package is missing
        has_package = importlib.util.find_spec("ethosu") is not None
        return has_package and importlib.util.find_spec("ethosu.vela") is not None

    @property
    def version(self) -> str:
        """Version that is installed; empty where none is."""
        return metadata.version(PACKAGE) if self.is_installed() else ""

    @property
    def remedy(self) -> str:
        """How to install it."""
        return f"pip install '{EXTRA}'"

    def covers(self, target: HardwareSpec) -> bool:
        """Whether Vela compiles for the target's accelerator, installed or not."""
        return _is_offered(target.accelerator)

    def supports(self, target: HardwareSpec) -> bool:
        """Whether Vela is there and compiles for the target's accelerator."""
        return self.is_installed() and self.covers(target)

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
        """Return Vela's cost of an int8 TFLite file, told by the layers of an emulator's estimate.

        RAM and flash are those of the compiled file. Operators that stay on the core are costed by the
        emulator of the core. The emulator's own words on what stays there are left out: Vela knows.

        Raises:
            InvalidModelError: Vela cannot compile the file, or takes longer than `timeout_s`.
            UnsupportedError: Nothing of the network runs on Ethos-U, or Vela does not know the target.
        """
        # reading TFLite files takes a library that is loaded in workers only
        from tightfit_service.adapters.emulators.vela_costs import cost_of

        report = self.compile(data, target)
        core = next((emulator for emulator in self.cores if emulator.runs_core(target)), None)
        return cost_of(
            report, target, core=core, layers=cost.layers, compiler=f"{self.name} {self.version}"
        )

    def compile(self, data: bytes, target: HardwareSpec) -> VelaReport:
        """Compile an int8 TFLite file: for speed as far as the target's RAM goes, or else for its size.

        Vela takes RAM as an aim that it may miss; what is compiled for size takes the least that it knows of.

        Raises:
            InvalidModelError: Vela cannot compile the file, or takes longer than `timeout_s`.
            UnsupportedError: Nothing of the network runs on Ethos-U, or Vela does not know the target.
        """
        accelerator = self.check(target)
        report = self._compiled(data, target, accelerator, FOR_SPEED)
        if report.ram_bytes <= target.memory.ram_bytes:
            return report
        small = self._compiled(data, target, accelerator, FOR_SIZE)
        return small if small.ram_bytes < report.ram_bytes else report

    def _compiled(
        self, data: bytes, target: HardwareSpec, accelerator: Accelerator, strategy: str
    ) -> VelaReport:
        with tempfile.TemporaryDirectory(prefix="tightfit-vela-") as folder:
            return self._compile_in(Path(folder), data, target, accelerator, strategy)

    def _compile_in(
        self,
        folder: Path,
        data: bytes,
        target: HardwareSpec,
        accelerator: Accelerator,
        strategy: str,
    ) -> VelaReport:
        source = folder / "model.tflite"
        source.write_bytes(data)
        config = folder / "target.ini"
        config.write_text(system_configuration(target, accelerator), encoding="utf-8")
        command = (
            *(sys.executable, "-m", "ethosu.vela", str(source)),
            *("--accelerator-config", f"{accelerator.kind}-{_macs_per_cycle(accelerator)}"),
            *("--config", str(config), "--system-config", "Target", "--memory-mode", "Target"),
            *("--output-dir", str(folder), "--verbose-performance", "--optimise", strategy),
        )
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
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
                f"Vela does not compile the model: {_said(done)}",
                field="model",
                remedy="export an int8 TFLite file; Vela reads no other",
            )
        return read_report(folder, compiled.read_bytes(), target)


def system_configuration(target: HardwareSpec, accelerator: Accelerator) -> str:
    """Return Vela's configuration of the target: clock, RAM, and bandwidths as shares of a port's.

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
            *OUTSTANDING.get(accelerator.kind, ()),
            "[Memory_Mode.Target]",
            *("const_mem_area=Axi1", "arena_mem_area=Axi0", "cache_mem_area=Axi0"),
            # without it Vela takes memory for endless
            f"arena_cache_size={min(target.memory.ram_bytes, MAX_ARENA_BYTES)}",
            "",
        )
    )


def _is_offered(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and _macs_per_cycle(accelerator) in CONFIGURATIONS.get(
        accelerator.kind, ()
    )


def _macs_per_cycle(accelerator: Accelerator) -> int:
    return round(accelerator.macs_per_cycle.get(NumberFormat.INT8, 0))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last thing that Vela said, or else how it ended."""
    text = done.stderr if done.stderr.strip() else done.stdout
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines:
        return lines[-1][:200]
    if done.returncode < 0:
        return f"it ended with signal {-done.returncode}"
    return f"it ended with code {done.returncode}"
