"""Measurements on real devices: what runners say that they are and saw, and what cannot be true of it."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat

MAX_MACS_PER_CYCLE = 1_024.0
"""Multiply-accumulates that no core exceeds in a cycle: one Intel AMX tile product does 16 x 16 x 64 of
8 bits in 16 cycles (Intel Architecture Optimization Reference Manual, chapter on AMX)."""
MIN_LATENCY_MS = 1e-4
"""100 ns: calling any runtime takes longer."""
CLOCK_TOLERANCE_RATIO = 0.15
"""Within which a device's clock may differ from that of the target it stands for."""
MOST_PROFILED_RATIO = 10.0
"""Of what an operator takes to what the whole network takes in other runs: profiling slows down, and runs may
be disturbed."""
TIME_SLACK_SECONDS = 1.0
"""By which a runner's clock and the server's may disagree over one measurement."""


class ImplausibleReportError(InvalidRequestError):
    """A runner reported what no device can do, or what contradicts what it said before."""

    reason = "RUNNER_IMPLAUSIBLE"


class Verification(enum.StrEnum):
    """Whether candidates are measured on a device before the winner is declared."""

    NONE = "none"
    """Estimates decide."""
    IF_AVAILABLE = "if-available"
    """Measured where a runner of the target is connected; else estimates decide, and the job says so."""
    REQUIRED = "required"
    """Nothing counts as fitting that was not measured."""


class FailureKind(enum.StrEnum):
    """Why there is no measurement."""

    REFUSED = "refused"
    FETCH_FAILED = "fetch_failed"
    UNSUPPORTED_MODEL = "unsupported_model"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_LOST = "device_lost"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


@dataclass(frozen=True, kw_only=True)
class DeviceRuntime:
    """An inference runtime on a device."""

    name: str
    version: str
    formats: tuple[ModelFormat, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceDescription:
    """What an agent found out about its device; fields as in the contract."""

    core: str
    core_count: int
    ram_bytes: int
    runtimes: tuple[DeviceRuntime, ...]
    display_name: str = ""
    clock_mhz: float | None = None
    isa_features: tuple[str, ...] = ()
    operating_system: str = ""
    sensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse figures that no device has.

        Raises:
            ImplausibleReportError: A figure is zero, negative, no number, or beyond any known device.
        """
        figures: tuple[tuple[str, float, float], ...] = (
            ("core_count", self.core_count, 1_024),
            ("ram_bytes", self.ram_bytes, 2**44),
            ("clock_mhz", 1.0 if self.clock_mhz is None else self.clock_mhz, 10_000.0),
        )
        for name, value, most in figures:
            if not 0 < value <= most:
                raise ImplausibleReportError(
                    f"the device's {name} is {value}, outside (0, {most:g}]",
                    field=f"hello.device.{name}",
                    remedy="mend what the agent reads, or leave the figure out where it may be absent",
                )
        if not self.core or not self.runtimes:
            missing = "core" if not self.core else "runtimes"
            raise ImplausibleReportError(
                f"the description of the device has no {missing}",
                field=f"hello.device.{missing}",
                remedy="install a runtime beside the agent, such as ai-edge-litert or onnxruntime",
            )


@dataclass(frozen=True, kw_only=True)
class EnergyReading:
    """What a power sensor saw while a model ran."""

    energy_mj: float
    mean_power_mw: float
    source: str
    idle_power_mw: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """How a device was at a moment; None where it does not tell."""

    clock_mhz: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """What one operator of a model took on a device.

    Attributes:
        kind: In the runtime's own words.
        latency_ms: Mean over undisturbed runs.
        output_elements: Of its output; 0 where the runtime does not tell.
    """

    kind: str
    latency_ms: float
    output_elements: int = 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a runner measured of one model file; `measured_*` figures never share a field with estimates.

    Attributes:
        measured_latency_ms_p10: What a run takes when nobody else disturbs the device; None where the
            runner does not say.
        measured_latency_ms_p99: None with fewer than 100 runs.
        settled: Whether the latency was steady before and during the measurement.
        noise_ratio: Spread of the medians of successive parts, relative to the median.
        measured_peak_ram_bytes: What the model added to its process; None where unknown.
        runner: Id of the runner.
        operators: What each took, in the order in which the runtime ran them; none where it was not
            asked for, or the runtime does not tell.
    """

    measured_latency_ms_p50: float
    measured_latency_ms_p90: float
    measured_throughput_per_s: float
    run_count: int
    measured_latency_ms_p10: float | None = None
    measured_latency_ms_p99: float | None = None
    warm_up_count: int = 0
    settled: bool = False
    noise_ratio: float = 0.0
    measured_peak_ram_bytes: int | None = None
    process_peak_ram_bytes: int | None = None
    energy: EnergyReading | None = None
    before: DeviceState = field(default_factory=DeviceState)
    after: DeviceState = field(default_factory=DeviceState)
    throttled: bool = False
    runtime_name: str = ""
    runtime_version: str = ""
    notes: tuple[str, ...] = ()
    runner: str = ""
    operators: tuple[OperatorTime, ...] = ()

    @property
    def summary(self) -> str:
        """Where and how fast, in one line for people."""
        runtime = f"{self.runtime_name} {self.runtime_version}".strip()
        unrest = "" if self.settled else f", unsettled by {self.noise_ratio:.0%}"
        throttled = ", throttled" if self.throttled else ""
        return (
            f"measured on {self.runner} with {runtime}: {self.measured_latency_ms_p50:.4g} ms, "
            f"p90 {self.measured_latency_ms_p90:.4g} ms over {self.run_count} runs{unrest}{throttled}"
        )

    def check(self, *, device: DeviceDescription, macs: int, elapsed_seconds: float) -> None:
        """Refuse what cannot be true.

        Args:
            device: What measured it.
            macs: Multiply-accumulates of one inference; 0 where unknown.
            elapsed_seconds: From the server's offer to the answer.

        Raises:
            ImplausibleReportError: Not a number, negative, out of order, faster than the device's cores
                can multiply, or longer than the server waited.
        """
        self._check_figures()
        self._check_order()
        self._check_speed(device, macs)
        least_seconds = self.run_count * self.measured_latency_ms_p50 / 1e3 / 2
        # At least half of the runs took the median or longer.
        if least_seconds > elapsed_seconds + TIME_SLACK_SECONDS:
            raise _implausible(
                "run_count",
                f"{self.run_count} runs of {self.measured_latency_ms_p50:g} ms do not fit into the "
                f"{elapsed_seconds:.1f} s between offer and answer",
            )

    def _check_figures(self) -> None:
        energy = self.energy
        positive: Mapping[str, float | None] = {
            "measured_latency_ms_p10": self.measured_latency_ms_p10,
            "measured_latency_ms_p50": self.measured_latency_ms_p50,
            "measured_latency_ms_p90": self.measured_latency_ms_p90,
            "measured_latency_ms_p99": self.measured_latency_ms_p99,
            "measured_throughput_per_s": self.measured_throughput_per_s,
            "run_count": self.run_count,
            "energy.measured_energy_mj": None if energy is None else energy.energy_mj,
        }
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise _implausible(name, f"{name} is {value}, not a number above zero")
        not_negative: Mapping[str, float | None] = {
            "noise_ratio": self.noise_ratio,
            "warm_up_count": self.warm_up_count,
            "measured_peak_ram_bytes": self.measured_peak_ram_bytes,
            "process_peak_ram_bytes": self.process_peak_ram_bytes,
            "energy.mean_power_mw": None if energy is None else energy.mean_power_mw,
            "energy.idle_power_mw": None if energy is None else energy.idle_power_mw,
            "before.clock_mhz": self.before.clock_mhz,
            "after.clock_mhz": self.after.clock_mhz,
        }
        for name, value in not_negative.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise _implausible(name, f"{name} is {value}, not a number from zero up")
        for item in self.operators:
            if not (math.isfinite(item.latency_ms) and item.latency_ms > 0):
                raise _implausible("operators", f"{item.kind} takes {item.latency_ms} ms")
            if item.latency_ms > MOST_PROFILED_RATIO * self.measured_latency_ms_p90:
                raise _implausible(
                    "operators", f"{item.kind} takes {item.latency_ms} ms, longer than all of it"
                )
            if item.output_elements < 0:
                raise _implausible("operators", f"{item.kind} has {item.output_elements} elements")
        for name, state in (("before", self.before), ("after", self.after)):
            value = state.temperature_c
            if value is not None and not math.isfinite(value):
                raise _implausible(f"{name}.temperature_c", f"the temperature is {value}")

    def _check_order(self) -> None:
        p10, p99 = self.measured_latency_ms_p10, self.measured_latency_ms_p99
        if p10 is not None and p10 > self.measured_latency_ms_p50:
            raise _implausible("measured_latency_ms_p10", "the percentiles fall instead of rising")
        if self.measured_latency_ms_p90 < self.measured_latency_ms_p50 or (
            p99 is not None and p99 < self.measured_latency_ms_p90
        ):
            raise _implausible("measured_latency_ms_p90", "the percentiles fall instead of rising")

    def _check_speed(self, device: DeviceDescription, macs: int) -> None:
        fastest = MIN_LATENCY_MS
        if device.clock_mhz is not None:
            per_ms = device.clock_mhz * 1e3 * device.core_count * MAX_MACS_PER_CYCLE
            fastest = max(fastest, macs / per_ms)
        for name, latency_ms in (
            ("measured_latency_ms_p10", self.measured_latency_ms_p10),
            ("measured_latency_ms_p50", self.measured_latency_ms_p50),
        ):
            if latency_ms is not None and latency_ms < fastest:
                raise _implausible(
                    name,
                    f"{latency_ms:g} ms for {macs} MACs is faster than the device can be "
                    f"({fastest:g} ms)",
                )


def _implausible(name: str, message: str) -> ImplausibleReportError:
    return ImplausibleReportError(
        message,
        field=f"measurement.{name}",
        remedy="mend the agent or its clock, then start it again",
    )


_RUNTIME_FAMILIES = (
    ("litert", ("litert", "tensorflow lite", "tflite", "tensorflowlite")),
    ("onnxruntime", ("onnxruntime", "onnx runtime")),
)


_MICRO = re.compile(r"(lite|litert)\W*(for\W*)?micro")
"""TensorFlow Lite Micro is another runtime than TensorFlow Lite."""


def runtime_family(name: str) -> str:
    """Return one name for the spellings of a runtime: `TensorFlow Lite XNNPACK` is `litert`."""
    plain = name.casefold()
    if _MICRO.search(plain):
        return plain
    for family, spellings in _RUNTIME_FAMILIES:
        if any(spelling in plain for spelling in spellings):
            return family
    return plain


def runs_xnnpack(target: HardwareSpec) -> bool:
    """Whether a target runs what it can with XNNPACK, as LiteRT does on cores.

    It makes one table of 256 entries of several operators of one number, and converts numbers in vectors; what
    microcontrollers and accelerators run instead is better off with single operators of integers.
    """
    return target.accelerator is None and runtime_family(target.runtime.name) == "litert"


def mismatch(device: DeviceDescription, target: HardwareSpec, *, is_named: bool) -> str:
    """Return why a device cannot stand for a target, or "" when it can.

    Args:
        device: What the agent says that the device is.
        target: The target that is to be measured for.
        is_named: Whether the operator says that the device is this target: then its cores must agree,
            and how many there are and how fast they run is the operator's word.
    """
    if device.core != target.core:
        return f"its cores are {device.core}, those of {target.name} are {target.core}"
    if is_named:
        return ""
    clock_mhz = device.clock_mhz or target.clock_mhz
    missing = ", ".join(sorted(set(target.isa_features) - set(device.isa_features)))
    reasons = (
        (target.accelerator, "only its operator can tell which accelerator it has"),
        (
            device.core_count < target.core_count,
            f"it has {device.core_count} cores, {target.name} uses {target.core_count}",
        ),
        (missing, f"it lacks {missing}"),
        (
            abs(clock_mhz - target.clock_mhz) > CLOCK_TOLERANCE_RATIO * target.clock_mhz,
            f"it runs at {clock_mhz:g} MHz, {target.name} at {target.clock_mhz:g} MHz",
        ),
    )
    return next((text for applies, text in reasons if applies), "")


def runtime_for(
    device: DeviceDescription, target: HardwareSpec, format_: ModelFormat
) -> DeviceRuntime | None:
    """Return the device's runtime that is the target's and loads files of the format, or None."""
    wanted = runtime_family(target.runtime.name)
    for runtime in device.runtimes:
        if format_ in runtime.formats and runtime_family(runtime.name) == wanted:
            return runtime
    return None
