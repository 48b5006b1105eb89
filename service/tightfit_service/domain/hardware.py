"""Hardware targets: what a device is, in the terms that decide what a model costs on it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tightfit_service.domain.errors import InvalidTargetError
from tightfit_service.domain.network import OperatorKind

OPS_PER_MAC = 2
"""Data sheets count a multiplication and an addition as two operations."""


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
    VELA = "vela"
    """A TFLite file compiled for Ethos-U by Vela, and the one it was made of, in one zip archive; output
    only."""


WRITABLE: Mapping[ModelFormat, frozenset[NumberFormat]] = {
    ModelFormat.ONNX: frozenset(NumberFormat),
    ModelFormat.TFLITE: frozenset(NumberFormat) - {NumberFormat.BFLOAT16},
    ModelFormat.C_ARRAY: frozenset(NumberFormat) - {NumberFormat.BFLOAT16},
    ModelFormat.OPENVINO: frozenset(NumberFormat) - {NumberFormat.INT16X8, NumberFormat.INT4},
    ModelFormat.EXECUTORCH: frozenset({NumberFormat.INT8, NumberFormat.FLOAT32}),
    ModelFormat.VELA: frozenset({NumberFormat.INT8, NumberFormat.INT16X8, NumberFormat.FLOAT32}),
}
"""Number formats that files of each format can hold, of all nodes or of some (`docs/formats.md`). What is
not in integers in a file for Vela stays on the core."""


class AcceleratorKind(enum.StrEnum):
    """A family of accelerators, which emulators key on."""

    ETHOS_U55 = "ethos-u55"
    ETHOS_U65 = "ethos-u65"
    ETHOS_U85 = "ethos-u85"
    EDGE_TPU = "edge-tpu"
    NPU = "npu"
    """Any other processor for neural networks."""
    GPU = "gpu"
    HEXAGON = "hexagon"
    """Qualcomm's tensor processor."""


class Fallback(enum.StrEnum):
    """What becomes of operators that an accelerator does not run."""

    CPU = "cpu"
    """Each runs on the cores, and the rest stays on the accelerator."""
    CPU_FROM_FIRST = "cpu-from-first"
    """The first of them and all that follow run on the cores (Edge TPU compiler: one partition)."""
    REFUSED = "refused"
    """The network does not compile."""


class Placement(enum.StrEnum):
    """Where an operator runs."""

    CPU = "cpu"
    ACCELERATOR = "accelerator"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The inference runtime on the target; the same chip spans 3x to 7x over runtimes."""

    name: str
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Power:
    """Mean power in each state, in milliwatts, all rails that the source counts; None is not known."""

    active_mw: float | None = None
    """While a network runs on the cores."""
    accelerator_mw: float | None = None
    """While a network runs on the accelerator, the cores waiting for it."""
    idle_mw: float | None = None
    """While nothing runs, ready for the next inference."""
    sleep_mw: float | None = None
    """In the deepest state that keeps RAM; waking up takes milliseconds or less."""
    supply_v: float | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memories that a model lives in: sizes in bytes, bandwidths in 10^6 bytes per second."""

    ram_bytes: int
    """RAM that activations may live in. Of a microcontroller: on the chip, without tightly coupled
    memories that the runtime does not use."""
    flash_bytes: int
    ram_bandwidth_mb_s: float | None = None
    flash_bandwidth_mb_s: float | None = None
    """Of weights that are read in place."""
    external_ram_bytes: int = 0
    """RAM beside the chip of a microcontroller; slower, and not counted in `ram_bytes`."""
    external_ram_bandwidth_mb_s: float | None = None
    cache_bytes: int = 0
    word_bytes: int = 4
    """Width of a memory access that block sparsity and alignment care about."""
    alignment_bytes: int = 16
    """Tensors start at multiples of it (TFLM 16, TensorFlow Lite 64)."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A processor for networks beside the cores, and its rules of support.

    Rates are peaks at dense networks; an emulator knows what share of them is reached.

    Attributes:
        kind: Family, which emulators key on.
        name: Of the part, such as `Ethos-U55-128` or `Adreno 660`.
        clock_mhz: None where the rates are in TOPS.
        macs_per_cycle: Multiply-accumulates per cycle, by number format. Needs `clock_mhz`.
        tops: 10^12 operations per second by number format, two per multiply-accumulate.
        memory_bytes: Memory of its own that weights and activations live in; 0 where it works in
            the memories of the target.
        bandwidth_mb_s: Between it and the memory that holds what does not fit in its own.
        transfer_mb_s: Of activations that go from the cores to it or back; None where they share
            memory.
        transfer_us: What each change from cores to accelerator or back costs besides, in microseconds.
        operators: Kinds of operators that it runs; empty where any can.
        fallback: What becomes of the others, and of number formats that it does not compute in.
    """

    kind: AcceleratorKind
    name: str = ""
    clock_mhz: float | None = None
    macs_per_cycle: Mapping[NumberFormat, float] = field(default_factory=dict, hash=False)
    tops: Mapping[NumberFormat, float] = field(default_factory=dict, hash=False)
    memory_bytes: int = 0
    bandwidth_mb_s: float | None = None
    transfer_mb_s: float | None = None
    transfer_us: float = 0.0
    operators: tuple[OperatorKind, ...] = ()
    fallback: Fallback = Fallback.CPU

    def __post_init__(self) -> None:
        """Refuse rates that cannot be.

        Raises:
            InvalidTargetError: No rate at all, or one per cycle without a clock.
        """
        if not (self.macs_per_cycle or self.tops):
            raise InvalidTargetError(
                f"the accelerator {self.name or self.kind} computes nothing",
                field="target.accelerator.tops",
                remedy="give its peak by number format, such as `tops: {int8: 4}`",
            )
        if self.macs_per_cycle and self.clock_mhz is None:
            raise InvalidTargetError(
                f"the accelerator {self.name or self.kind} has a rate per cycle and no clock",
                field="target.accelerator.clock_mhz",
                remedy="give clock_mhz, or the rates as tops",
            )

    @property
    def number_formats(self) -> tuple[NumberFormat, ...]:
        """Formats that it computes in."""
        return tuple(f for f in NumberFormat if f in self.macs_per_cycle or f in self.tops)

    def macs_per_second(self, number_format: NumberFormat) -> float:
        """Return the peak rate in a format, 0 where it does not compute in it."""
        if self.clock_mhz is not None and number_format in self.macs_per_cycle:
            return self.macs_per_cycle[number_format] * self.clock_mhz * 1e6
        return self.tops.get(number_format, 0.0) * 1e12 / OPS_PER_MAC

    def computed_format(self, number_format: NumberFormat) -> NumberFormat:
        """Return the format that it computes an operator in which the file has in `number_format`.

        Float networks are computed in half precision where it has that, 4-bit weights are widened,
        and compilers that leave nothing to the cores round float networks themselves.
        """
        offered = self.number_formats
        if number_format is NumberFormat.FLOAT32:
            for half in (NumberFormat.FLOAT16, NumberFormat.BFLOAT16):
                if half in offered:
                    return half
        if number_format in offered:
            return number_format
        if number_format is NumberFormat.INT4 and NumberFormat.INT8 in offered:
            return NumberFormat.INT8
        return offered[0] if self.fallback is Fallback.REFUSED else number_format

    def placement(self, kind: OperatorKind, number_format: NumberFormat) -> Placement:
        """Return where an operator runs when looked at alone (see `placements`)."""
        # a reshape moves nothing: it is where its neighbours are
        known = not self.operators or kind in self.operators or kind is OperatorKind.RESHAPE
        if known and self.computed_format(number_format) in self.number_formats:
            return Placement.ACCELERATOR
        return Placement.REFUSED if self.fallback is Fallback.REFUSED else Placement.CPU

    def placements(
        self, operators: Iterable[tuple[OperatorKind, NumberFormat]]
    ) -> tuple[Placement, ...]:
        """Return where the operators of a network run, in the order in which they run."""
        result: list[Placement] = []
        has_left = False
        for kind, number_format in operators:
            place = self.placement(kind, number_format)
            has_left |= place is Placement.CPU and self.fallback is Fallback.CPU_FROM_FIRST
            result.append(Placement.CPU if has_left else place)
        return tuple(result)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of a figure that some device may have: above zero and at most `most`."""

    most: float
    unit: str
    whole: bool = False
    or_zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is in the range, and whole where it must be."""
        if self.whole and value != value // 1:
            return False
        return 0 < value <= self.most or (self.or_zero and value == 0)

    def __str__(self) -> str:
        """Return the range in words."""
        least = "0 or more" if self.or_zero else "above 0"
        whole = "a whole number, " if self.whole else ""
        return f"{whole}{least} and at most {self.most:,.0f} {self.unit}"


_BANDWIDTH = Range(most=1e7, unit="x 10^6 bytes per second")
_POWER = Range(most=1e6, unit="mW")
_RAM = Range(most=2**40, unit="bytes", whole=True)
_RAM_OR_NONE = replace(_RAM, or_zero=True)
_CLOCK = Range(most=10_000.0, unit="MHz")
FIGURES: Mapping[str, Range] = {
    "clock_mhz": _CLOCK,
    "core_count": Range(most=1_024, unit="cores", whole=True),
    "channel_multiple": Range(most=1_024, unit="channels", whole=True),
    "memory.ram_bytes": _RAM,
    "memory.flash_bytes": Range(most=2**48, unit="bytes", whole=True),
    "memory.ram_bandwidth_mb_s": _BANDWIDTH,
    "memory.flash_bandwidth_mb_s": _BANDWIDTH,
    "memory.external_ram_bytes": _RAM_OR_NONE,
    "memory.external_ram_bandwidth_mb_s": _BANDWIDTH,
    "memory.cache_bytes": Range(most=2**32, unit="bytes", whole=True, or_zero=True),
    "memory.word_bytes": Range(most=1_024, unit="bytes", whole=True),
    "memory.alignment_bytes": Range(most=4_096, unit="bytes", whole=True),
    "power.active_mw": _POWER,
    "power.accelerator_mw": _POWER,
    "power.idle_mw": _POWER,
    "power.sleep_mw": _POWER,
    "power.supply_v": Range(most=1_000.0, unit="V"),
    "accelerator.clock_mhz": _CLOCK,
    "accelerator.macs_per_cycle": Range(most=1e7, unit="multiply-accumulates per cycle"),
    "accelerator.tops": Range(most=10_000.0, unit="x 10^12 operations per second"),
    "accelerator.memory_bytes": _RAM_OR_NONE,
    "accelerator.bandwidth_mb_s": _BANDWIDTH,
    "accelerator.transfer_mb_s": _BANDWIDTH,
    "accelerator.transfer_us": Range(most=1e6, unit="microseconds", or_zero=True),
}
"""All figures of a target by their path in `HardwareSpec`, with what is possible."""


def impossible_figure(path: str, value: object, figures: Range) -> InvalidTargetError:
    """Return the error of a figure outside its range."""
    return InvalidTargetError(
        f"{path} is {value!r}, which no device has",
        field=f"target.{path}",
        remedy=f"give the figure from the data sheet: {figures}",
    )


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """One named target: processor, clock, memories, accelerator, number formats, runtime and power.

    Attributes:
        name: Short unique name, lower case letters, digits and dashes (`nucleo-h7a3zi-q`).
        display_name: Name for people; what follows a comma names a variant of the same board.
        core: Core class that emulators key on: `cortex-m0+`, `cortex-m4`, `cortex-m7`, `cortex-m33`,
            `cortex-m55`, `cortex-m85`, `cortex-a53`, `cortex-a72`, `cortex-a76`, `x86-64`, ...
        core_count: Cores used by the runtime.
        clock_mhz: Clock of these cores in MHz.
        accelerator: What runs the network instead of the cores where it can, or None.
        isa_features: Such as `dsp`, `mve`, `fpu`, `neon`, `dotprod`, `avx2`, `avx512_vnni`.
        number_formats: Formats that the runtime has fast kernels for.
        channel_multiple: Output channels are rounded up to this many by the kernels; widths that
            are not multiples of it cost as much as the next one.
        output_format: File format that the target's runtime loads.
        isp_features: What the image signal processor before it does: `resize`, `crop`, ...
        sources: Where the figures come from (data sheet, benchmark).
        assumed_fields: Fields that were not given but taken from the class of the core or of the
            accelerator; they widen intervals.
    """

    name: str
    display_name: str
    core: str
    clock_mhz: float
    memory: Memory
    runtime: Runtime
    core_count: int = 1
    accelerator: Accelerator | None = None
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
            InvalidTargetError: A figure is zero, negative, or beyond any known device, or there is
                no number format.
        """
        for path, figures in FIGURES.items():
            for where, value in _values_at(self, path):
                if not figures.holds(value):
                    raise impossible_figure(where, value, figures)
        if not self.number_formats:
            raise InvalidTargetError(
                f"target {self.name!r} computes in no number format",
                field="target.number_formats",
                remedy="give at least one, such as [int8]",
            )

    @property
    def has_avx512(self) -> bool:
        """Whether its vector registers have 512 bits."""
        return any("avx512" in feature for feature in self.isa_features)

    def placement(self, kind: OperatorKind, number_format: NumberFormat) -> Placement:
        """Return where an operator of that kind runs in that number format, looked at alone."""
        if self.accelerator is None:
            return Placement.CPU
        return self.accelerator.placement(kind, number_format)


def _values_at(spec: HardwareSpec, path: str) -> list[tuple[str, float]]:
    """Return the numbers at a path of the spec with their full paths; None and absent ones are no numbers."""
    value: Any = spec
    for part in path.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Mapping):
        return [(f"{path}.{number_format}", rate) for number_format, rate in value.items()]
    return [] if value is None else [(path, value)]
