"""Hardware targets: what a device is, in the terms that decide what a model costs on it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tightfit_service.domain.errors import InvalidTargetError


class NumberFormat(enum.StrEnum):
    """A number format that a target can compute in."""

    INT8 = "int8"
    INT16X8 = "int16x8"
    INT4 = "int4"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class ModelFormat(enum.StrEnum):
    """A file format of models."""

    ONNX = "onnx"
    TFLITE = "tflite"
    PT2 = "pt2"
    """PyTorch's torch.export; input only."""
    C_ARRAY = "c_array"
    """A TFLite file as C source with its size constants; output only."""
    OPENVINO = "openvino"
    """OpenVINO IR, both of its files in one zip archive; output only."""
    EXECUTORCH = "executorch"
    """ExecuTorch program (`.pte`); output only."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The inference runtime on the target; the same chip spans 3x to 7x over runtimes."""

    name: str
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Power:
    """Electrical figures of the target; what is None is assumed from the core's class."""

    active_mw: float | None = None
    """Mean power while a network runs, all rails that the source counts, in milliwatts."""
    idle_mw: float | None = None
    supply_v: float | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memories that a model lives in, in bytes."""

    ram_bytes: int
    flash_bytes: int
    ram_bandwidth_mb_s: float | None = None
    cache_bytes: int = 0
    word_bytes: int = 4
    """Width of a memory access that block sparsity and alignment care about."""


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """One named target: processor, clock, memories, number formats, runtime and power.

    Attributes:
        name: Short unique name, lower case letters, digits and dashes (`nucleo-h7a3zi-q`).
        core: Core class that emulators key on: `cortex-m0+`, `cortex-m4`, `cortex-m7`, `cortex-m33`,
            `cortex-m55`, `cortex-m85`, `cortex-a53`, `cortex-a72`, `cortex-a76`, `x86-64`, ...
        core_count: Cores used by the runtime.
        clock_mhz: Clock of these cores in MHz.
        isa_features: Such as `dsp`, `mve`, `fpu`, `neon`, `dotprod`, `avx2`, `avx512_vnni`.
        number_formats: Formats that the runtime has fast kernels for.
        channel_multiple: Output channels are rounded up to this many by the kernels; widths that
            are not multiples of it cost as much as the next one.
        output_format: File format that the target's runtime loads.
        sources: Where the figures come from (data sheet, benchmark).
        assumed_fields: Fields that were not given but taken from the core's class; they widen intervals.
    """

    name: str
    display_name: str
    core: str
    clock_mhz: float
    memory: Memory
    runtime: Runtime
    core_count: int = 1
    accelerator: str = ""
    isa_features: tuple[str, ...] = ()
    number_formats: tuple[NumberFormat, ...] = (NumberFormat.INT8, NumberFormat.FLOAT32)
    channel_multiple: int = 1
    output_format: ModelFormat = ModelFormat.TFLITE
    power: Power = field(default_factory=Power)
    isp_features: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    assumed_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse figures that no device has.

        Raises:
            InvalidTargetError: A figure is zero, negative, or beyond any known device.
        """
        checks = (
            ("clock_mhz", self.clock_mhz, 0.0, 10_000.0, "MHz"),
            ("core_count", self.core_count, 0, 1_024, "cores"),
            ("memory.ram_bytes", self.memory.ram_bytes, 0, 2**44, "bytes"),
            ("memory.flash_bytes", self.memory.flash_bytes, 0, 2**48, "bytes"),
            ("channel_multiple", self.channel_multiple, 0, 1_024, "channels"),
        )
        for name, value, above, most, unit in checks:
            if not above < value <= most:
                raise InvalidTargetError(
                    f"target {self.name!r}: {name} is {value}, outside ({above}, {most}] {unit}",
                    field=f"target.{name}",
                    remedy="give the figure from the data sheet, in the stated unit",
                )
