"""The emulator of processors that run Linux: an operator takes its products, and its way through cache and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tightfit_service.adapters.emulators import flash, memory_plan
from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat
from tightfit_service.domain.measurement import runs_xnnpack
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True)
class CoreClass:
    """Peak rates of one core.

    Attributes:
        float_macs: float32 multiply-accumulates per cycle at the width of its vector units.
        int8_macs: int8 multiply-accumulates per cycle with widening multiplies.
        dot_macs: int8 multiply-accumulates per cycle with dot-product instructions.
        cache_bytes: Bytes per cycle from the last cache before memory, sustained.
        hides_transfers: Whether it runs ahead of what it waits for: an out-of-order core computes while
            data come, one in order does either.
        overhead_cycles: Cycles per operator for dispatch and for waking threads.
        active_mw: Typical board power per active core where the target states none.
    """

    float_macs: float
    int8_macs: float
    dot_macs: float
    cache_bytes: float
    hides_transfers: bool
    overhead_cycles: float
    active_mw: float


CORES: Mapping[str, CoreClass] = {
    # Arm software optimization guides: A7, A35, A53 and A55 have one 128-bit multiply-accumulate per cycle
    # at most (half of it on A7 and A35); A72 one; A76 and A78 two, X1 four. UDOT does 16 products per
    # 128-bit instruction, a widening multiply-accumulate 8. Caches: A72 at 2 GHz reads its L2 at 16.5 GB/s
    # (TI Processor SDK Linux for AM69, performance guide, lmbench), half of what it loads per cycle, one
    # register of 128 bits. The others are taken to do half of what they load, too: 64 bits on those in order
    # (A55 technical reference manual, L1 memory system), 128 on A57, two times 128 from A75 on.
    "cortex-a7": CoreClass(
        float_macs=1,
        int8_macs=4,
        dot_macs=4,
        cache_bytes=4,
        hides_transfers=False,
        overhead_cycles=15e3,
        active_mw=300,
    ),
    "cortex-a35": CoreClass(
        float_macs=2,
        int8_macs=4,
        dot_macs=4,
        cache_bytes=4,
        hides_transfers=False,
        overhead_cycles=15e3,
        active_mw=300,
    ),
    "cortex-a53": CoreClass(
        float_macs=4,
        int8_macs=8,
        dot_macs=8,
        cache_bytes=4,
        hides_transfers=False,
        overhead_cycles=15e3,
        active_mw=900,
    ),
    "cortex-a55": CoreClass(
        float_macs=4,
        int8_macs=8,
        dot_macs=16,
        cache_bytes=4,
        hides_transfers=False,
        overhead_cycles=12e3,
        active_mw=900,
    ),
    "cortex-a72": CoreClass(
        float_macs=4,
        int8_macs=8,
        dot_macs=8,
        cache_bytes=8,
        hides_transfers=True,
        overhead_cycles=10e3,
        active_mw=3600,
    ),
    "cortex-a76": CoreClass(
        float_macs=8,
        int8_macs=16,
        dot_macs=32,
        cache_bytes=16,
        hides_transfers=True,
        overhead_cycles=8e3,
        active_mw=4500,
    ),
    "cortex-a57": CoreClass(
        float_macs=4,
        int8_macs=8,
        dot_macs=8,
        cache_bytes=8,
        hides_transfers=True,
        overhead_cycles=10e3,
        active_mw=2500,
    ),
    "cortex-a75": CoreClass(
        float_macs=8,
        int8_macs=16,
        dot_macs=32,
        cache_bytes=16,
        hides_transfers=True,
        overhead_cycles=10e3,
        active_mw=2000,
    ),
    "cortex-a78": CoreClass(
        float_macs=8,
        int8_macs=16,
        dot_macs=32,
        cache_bytes=16,
        hides_transfers=True,
        overhead_cycles=8e3,
        active_mw=2500,
    ),
    # Nvidia's Carmel: as A75; Qualcomm's Oryon: four 128-bit units, four loads. U74: no vector unit, in order.
    "carmel": CoreClass(
        float_macs=8,
        int8_macs=16,
        dot_macs=16,
        cache_bytes=16,
        hides_transfers=True,
        overhead_cycles=10e3,
        active_mw=3000,
    ),
    "oryon": CoreClass(
        float_macs=16,
        int8_macs=32,
        dot_macs=64,
        cache_bytes=32,
        hides_transfers=True,
        overhead_cycles=6e3,
        active_mw=5000,
    ),
    "riscv64": CoreClass(
        float_macs=1,
        int8_macs=1,
        dot_macs=1,
        cache_bytes=4,
        hides_transfers=False,
        overhead_cycles=15e3,
        active_mw=1500,
    ),
    # Intel optimization manual: two 256-bit FMA per cycle; VPMADDUBSW/VPMADDWD pairs with AVX2, VPDPBUSD
    # with VNNI. L3 of Skylake: 18 bytes per cycle sustained.
    "x86-64": CoreClass(
        float_macs=16,
        int8_macs=32,
        dot_macs=128,
        cache_bytes=18,
        hides_transfers=True,
        overhead_cycles=6e3,
        active_mw=15000,
    ),
}
EFFICIENCY: Mapping[OperatorKind, tuple[float, float]] = {
    # Share of the peak that good kernels reach, (float32, int8). Convolutions: ResNet-50 and MobileNet on
    # A53 and A72 in the published tables of ncnn and XNNPACK. Depthwise layers reuse each value few times.
    OperatorKind.CONV: (0.65, 0.45),
    OperatorKind.TRANSPOSED_CONV: (0.4, 0.25),
    OperatorKind.DEPTHWISE_CONV: (0.15, 0.1),
    OperatorKind.DENSE: (0.3, 0.25),
    OperatorKind.MATMUL: (0.5, 0.35),
    OperatorKind.RECURRENT: (0.25, 0.2),
}
THREAD_EXPONENT = 0.65
"""Speed-up of n threads is n to this power: 2.1 to 2.7 for four threads on A53, A55 and A72 (ncnn tables)."""
DEFAULT_BANDWIDTH_MB_S = 3_000.0
USABLE_CACHE = 0.5
"""Share of a cache that data stay in until they are read again: H. Stengel et al., "Quantifying performance
bottlenecks of stencil computations using the execution-cache-memory model", ICS 2015 (arXiv:1410.5010)."""
LOG_HALF_WIDTH = math.log(2.7)
"""Beside what assumed figures add, covers 90 % of the rows of a device that public tables do not have
(`benchmarks/roofline_interval.py`; docs/emulators.md)."""
ASSUMED_LOG_WIDTH = 0.3
"""For a clock or a runtime that a target does not state."""
ASSUMED_FACTORS: Mapping[str, float] = {"cache_bytes": 4.0, "ram_bandwidth_mb_s": 2.0}
"""How far off a class may be: L2 of A53 is configured from 128 KiB to 2 MiB, memories are 16 to 64 bits wide."""
POWER_LOG_WIDTH = 0.45
_STYLE = memory_plan.ArenaStyle(in_place=frozenset({"elementwise"}))
_LITERT_STYLE = replace(_STYLE, widened=frozenset({"Abs", "AveragePool", "Softmax", "Sqrt"}))
"""What its files have between conversions to float32 (`formats.tflite_float_islands`)."""
VECTOR_FEATURES = frozenset({"dotprod", "i8mm", "avx512_vnni", "avx_vnni"})


@dataclass(frozen=True, kw_only=True)
class RooflineEmulator:
    """Emulator of application processors (port `Emulator`). Stateless.

    S. Williams et al., "Roofline: an insightful visual performance model for multicore architectures",
    CACM 52 (2009), per operator, plus an overhead per operator. Transfers between cache and core and those
    between memory and cache add up, as in J. Treibig and G. Hager, "Introducing a performance model for
    bandwidth-limited loop kernels", PPAM 2009 (arXiv:0905.0792); products hide them where the core allows.
    """

    name: str = "roofline"
    has_caches: bool = True
    """Whether data may come from a cache; without, all come from memory, and products hide them everywhere."""

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the core class has an entry; accelerators have emulators of their own."""
        return self.runs_core(target) and target.accelerator is None

    def runs_core(self, target: HardwareSpec) -> bool:
        """Whether the cores of the target have an entry, whatever is beside them."""
        return target.core in CORES

    @property
    def smooth(self) -> RooflineEmulator:
        """The same without caches: where one ends, the cost of a growing operator has a step."""
        return replace(self, has_caches=False)

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; latency in ms, energy in mJ."""
        latency_ms = self._latency_ms(operator, target, target.memory)
        return OperatorCost(
            node=operator.node,
            op_type=operator.op_type,
            macs=operator.macs,
            latency_ms=latency_ms,
            energy_mj=latency_ms * self._power_mw(target) / 1e3,
            weight_bytes=flash.flatbuffer_bytes(operator),
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the live activations per operator, all weights being in memory besides."""
        style = _LITERT_STYLE if runs_xnnpack(target) else _STYLE
        weights = sum(flash.constant_bytes(op) for op in network.operators)
        weights += flash.other_constant_bytes(network)
        return tuple(
            replace(point, fixed_bytes=point.fixed_bytes + weights)
            for point in memory_plan.memory_points(network, style)
        )

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network; flash is the model file."""
        layers = tuple(self.operator_cost(op, target) for op in network.operators)
        latency = sum(layer.latency_ms for layer in layers)
        width = LOG_HALF_WIDTH + self._assumed_log_width(network, target, latency)
        points = self.memory_points(network, target)
        peak = max(points, key=lambda point: point.bytes_in_use)
        counted = sum(layer.weight_bytes for layer in layers) + flash.other_constant_bytes(network)
        return CostEstimate(
            latency_ms=_log_interval(latency, width),
            energy_mj=_log_interval(
                sum(layer.energy_mj for layer in layers), math.hypot(width, POWER_LOG_WIDTH)
            ),
            peak_ram_bytes=Interval.relative(peak.bytes_in_use, low_ratio=0.8, high_ratio=1.5),
            flash_bytes=Interval.exact(float(file_bytes))
            if file_bytes is not None
            else Interval.relative(float(counted), low_ratio=0.85, high_ratio=1.15),
            macs=network.macs,
            layers=layers,
            peak_node=peak.node,
            provenance=(
                "roofline from data-sheet rates, not calibrated to this board; the width of the 90 % "
                "intervals is that of the residuals on public CPU tables (ncnn, XNNPACK, TensorFlow Lite)"
            ),
            confidence=CONFIDENCE,
            warnings=(
                "peak_ram_bytes counts weights and activations, not the runtime and the process",
            ),
        )

    def _latency_ms(self, operator: Operator, target: HardwareSpec, memory: Memory) -> float:
        """Return the milliseconds of an operator on the target's cores with such a memory."""
        core = CORES[target.core]
        compute_ms = self._compute_ms(operator, target)
        if self.has_caches:
            transfer_ms = self._transfer_ms(operator, target, memory)
            hides = core.hides_transfers
        else:
            transfer_ms = self.traffic_bytes(operator) / (_bandwidth_mb_s(memory) * 1e3)
            hides = True
        busy_ms = max(compute_ms, transfer_ms) if hides else compute_ms + transfer_ms
        if operator.kind is OperatorKind.RESHAPE:
            return busy_ms
        return busy_ms + core.overhead_cycles / (target.clock_mhz * 1e3)

    def _compute_ms(self, operator: Operator, target: HardwareSpec) -> float:
        is_float = operator.activation_bits > 8
        halves = operator.activation_bits == 16 and NumberFormat.FLOAT16 in target.number_formats
        peak = self._peak(CORES[target.core], target, is_float=is_float) * (2 if halves else 1)
        macs_per_ms = peak * _thread_speedup(target) * target.clock_mhz * 1e3
        share = EFFICIENCY.get(operator.kind, (0.5, 0.5))[0 if is_float else 1]
        return self.rounded_macs(operator, target) / (macs_per_ms * share)

    def _transfer_ms(self, operator: Operator, target: HardwareSpec, memory: Memory) -> float:
        """Return the milliseconds for reading and writing once what the operator works on.

        All of it comes through the last cache; what does not stay there comes from memory besides. Activations
        that fit without the weights are there, for they were written just before.
        """
        bandwidth = _bandwidth_mb_s(memory)
        per_core = target.clock_mhz * CORES[target.core].cache_bytes
        cache_rate = max(per_core * _thread_speedup(target), bandwidth)
        room = USABLE_CACHE * memory.cache_bytes
        working_set = self.traffic_bytes(operator)
        fetched = 0.0
        if working_set - operator.weight_bytes > room:
            fetched = working_set
        elif working_set > room:
            fetched = operator.weight_bytes
        return working_set / (cache_rate * 1e3) + fetched / (bandwidth * 1e3)

    def _assumed_log_width(
        self, network: NetworkProfile, target: HardwareSpec, latency_ms: float
    ) -> float:
        """Return by how much the log of the latency may be off for figures that the target does not state."""
        assumed = set(target.assumed_fields)
        width = ASSUMED_LOG_WIDTH if assumed & {"clock_mhz", "runtime"} else 0.0
        spreads = (
            self._log_spread(network, target, latency_ms, name)
            for name in ASSUMED_FACTORS
            if f"memory.{name}" in assumed
        )
        return width + math.hypot(*spreads)

    def _log_spread(
        self, network: NetworkProfile, target: HardwareSpec, latency_ms: float, name: str
    ) -> float:
        """Return how far the log of the latency moves where a figure of the memory is off either way."""
        figure = getattr(target.memory, name)
        if not (figure and latency_ms):
            return 0.0
        logs = []
        for scale in (1 / ASSUMED_FACTORS[name], ASSUMED_FACTORS[name]):
            memory = replace(target.memory, **{name: type(figure)(figure * scale)})
            total = sum(self._latency_ms(op, target, memory) for op in network.operators)
            logs.append(abs(math.log(total / latency_ms)))
        return max(logs)

    @staticmethod
    def _peak(core: CoreClass, target: HardwareSpec, *, is_float: bool) -> float:
        if core is CORES["x86-64"] and not any("avx" in f for f in target.isa_features):
            # SSE: vectors of half the width, a product and a sum being two instructions.
            return (core.float_macs if is_float else core.int8_macs) / 4
        if is_float:
            wide = target.core == "x86-64" and target.has_avx512
            return core.float_macs * (2 if wide else 1)
        return core.dot_macs if VECTOR_FEATURES & set(target.isa_features) else core.int8_macs

    @staticmethod
    def rounded_macs(operator: Operator, target: HardwareSpec) -> float:
        """Return the products of an operator with its channels rounded up as the kernels do."""
        if not operator.out_channels or not operator.macs:
            return float(operator.macs)
        rounded = next_multiple(operator.out_channels, target.channel_multiple)
        return operator.macs * rounded / operator.out_channels

    @staticmethod
    def traffic_bytes(operator: Operator) -> float:
        """Return the bytes read and written once: inputs, outputs and weights."""
        if operator.kind is OperatorKind.RESHAPE:
            return 0.0
        width = max(operator.activation_bits, 8) / 8
        inputs = operator.in_channels * math.prod(operator.in_size) * max(len(operator.inputs), 1)
        outputs = operator.out_channels * math.prod(operator.out_size)
        return (inputs + outputs) * width + operator.weight_bytes

    @staticmethod
    def _power_mw(target: HardwareSpec) -> float:
        if target.power.active_mw is not None:
            return target.power.active_mw
        return CORES[target.core].active_mw * _thread_speedup(target)


def _bandwidth_mb_s(memory: Memory) -> float:
    return memory.ram_bandwidth_mb_s or DEFAULT_BANDWIDTH_MB_S


def _thread_speedup(target: HardwareSpec) -> float:
    return math.pow(target.core_count, THREAD_EXPONENT)


def _log_interval(value: float, log_half_width: float) -> Interval:
    ratio = math.exp(log_half_width)
    return Interval.relative(value, low_ratio=1 / ratio, high_ratio=ratio)
