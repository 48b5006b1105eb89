"""The emulator of processors that run Linux: each operator takes its compute or its memory traffic, whichever is longer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tightfit_service.adapters.emulators import flash, memory_plan
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
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
        overhead_cycles: Cycles per operator for dispatch and for waking threads.
        active_mw: Typical board power per active core where the target states none.
    """

    float_macs: float
    int8_macs: float
    dot_macs: float
    overhead_cycles: float
    active_mw: float


CORES: Mapping[str, CoreClass] = {
    # Arm software optimization guides: A7, A35, A53 and A55 have one 128-bit multiply-accumulate per cycle
    # at most (half of it on A7 and A35); A72 one; A76 and A78 two, X1 four. UDOT does 16 products per
    # 128-bit instruction, a widening multiply-accumulate 8.
    "cortex-a7": CoreClass(
        float_macs=1, int8_macs=4, dot_macs=4, overhead_cycles=15e3, active_mw=300
    ),
    "cortex-a35": CoreClass(
        float_macs=2, int8_macs=4, dot_macs=4, overhead_cycles=15e3, active_mw=300
    ),
    "cortex-a53": CoreClass(
        float_macs=4, int8_macs=8, dot_macs=8, overhead_cycles=15e3, active_mw=900
    ),
    "cortex-a55": CoreClass(
        float_macs=4, int8_macs=8, dot_macs=16, overhead_cycles=12e3, active_mw=900
    ),
    "cortex-a72": CoreClass(
        float_macs=4, int8_macs=8, dot_macs=8, overhead_cycles=10e3, active_mw=3600
    ),
    "cortex-a76": CoreClass(
        float_macs=8, int8_macs=16, dot_macs=32, overhead_cycles=8e3, active_mw=4500
    ),
    "cortex-a57": CoreClass(
        float_macs=4, int8_macs=8, dot_macs=8, overhead_cycles=10e3, active_mw=2500
    ),
    "cortex-a75": CoreClass(
        float_macs=8, int8_macs=16, dot_macs=32, overhead_cycles=10e3, active_mw=2000
    ),
    "cortex-a78": CoreClass(
        float_macs=8, int8_macs=16, dot_macs=32, overhead_cycles=8e3, active_mw=2500
    ),
    # Nvidia's Carmel: as A75; Qualcomm's Oryon: four 128-bit units. U74 has no vector unit.
    "carmel": CoreClass(
        float_macs=8, int8_macs=16, dot_macs=16, overhead_cycles=10e3, active_mw=3000
    ),
    "oryon": CoreClass(
        float_macs=16, int8_macs=32, dot_macs=64, overhead_cycles=6e3, active_mw=5000
    ),
    "riscv64": CoreClass(
        float_macs=1, int8_macs=1, dot_macs=1, overhead_cycles=15e3, active_mw=1500
    ),
    # Intel optimization manual: two 256-bit FMA per cycle; VPMADDUBSW/VPMADDWD pairs with AVX2, VPDPBUSD
    # with VNNI.
    "x86-64": CoreClass(
        float_macs=16, int8_macs=32, dot_macs=128, overhead_cycles=6e3, active_mw=15000
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
LOG_HALF_WIDTH = math.log(2.4)
"""Covers 90 % of the CPU rows of public tables whose products are known; see docs/emulators.md."""
ASSUMED_LOG_WIDTH = 0.3
POWER_LOG_WIDTH = 0.45
_STYLE = memory_plan.ArenaStyle(in_place=frozenset({"elementwise"}))
VECTOR_FEATURES = frozenset({"dotprod", "i8mm", "avx512_vnni", "avx_vnni"})


@dataclass(frozen=True, kw_only=True)
class RooflineEmulator:
    """Emulator of application processors (port `Emulator`). Stateless.

    S. Williams et al., "Roofline: an insightful visual performance model for multicore architectures",
    CACM 52 (2009), per operator, plus an overhead per operator.
    """

    name: str = "roofline"

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the core class has an entry; accelerators have emulators of their own."""
        return self.runs_core(target) and target.accelerator is None

    def runs_core(self, target: HardwareSpec) -> bool:
        """Whether the cores of the target have an entry, whatever is beside them."""
        return target.core in CORES

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; latency in ms, energy in mJ."""
        core = CORES[target.core]
        is_float = operator.activation_bits > 8
        halves = operator.activation_bits == 16 and NumberFormat.FLOAT16 in target.number_formats
        threads = math.pow(target.core_count, THREAD_EXPONENT)
        peak = self._peak(core, target, is_float=is_float) * (2 if halves else 1)
        macs_per_ms = peak * threads * target.clock_mhz * 1e3
        share = EFFICIENCY.get(operator.kind, (0.5, 0.5))[0 if is_float else 1]
        compute_ms = self.rounded_macs(operator, target) / (macs_per_ms * share)
        bandwidth = target.memory.ram_bandwidth_mb_s or DEFAULT_BANDWIDTH_MB_S
        memory_ms = self.traffic_bytes(operator) / (bandwidth * 1e3)
        overhead_ms = 0.0
        if operator.kind is not OperatorKind.RESHAPE:
            overhead_ms = core.overhead_cycles / (target.clock_mhz * 1e3)
        latency_ms = max(compute_ms, memory_ms) + overhead_ms
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
        del target
        weights = sum(flash.constant_bytes(op) for op in network.operators)
        weights += flash.other_constant_bytes(network)
        return tuple(
            replace(point, fixed_bytes=point.fixed_bytes + weights)
            for point in memory_plan.memory_points(network, _STYLE)
        )

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network; flash is the model file."""
        layers = tuple(self.operator_cost(op, target) for op in network.operators)
        latency = sum(layer.latency_ms for layer in layers)
        width = LOG_HALF_WIDTH + ASSUMED_LOG_WIDTH * bool(
            {"clock_mhz", "runtime", "memory.ram_bandwidth_mb_s"} & set(target.assumed_fields)
        )
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

    @staticmethod
    def _peak(core: CoreClass, target: HardwareSpec, *, is_float: bool) -> float:
        if core is CORES["x86-64"] and not any("avx" in f for f in target.isa_features):
            # SSE: vectors of half the width, a product and a sum being two instructions.
            return (core.float_macs if is_float else core.int8_macs) / 4
        if is_float:
            wide = target.core == "x86-64" and any("avx512" in f for f in target.isa_features)
            return core.float_macs * (2 if wide else 1)
        return core.dot_macs if VECTOR_FEATURES & set(target.isa_features) else core.int8_macs

    @staticmethod
    def rounded_macs(operator: Operator, target: HardwareSpec) -> float:
        """Return the products of an operator with its channels rounded up as the kernels do."""
        if not operator.out_channels or not operator.macs:
            return float(operator.macs)
        multiple = target.channel_multiple
        rounded = -(-operator.out_channels // multiple) * multiple
        return operator.macs * rounded / operator.out_channels

    @staticmethod
    def traffic_bytes(operator: Operator) -> float:
        """Return the bytes read and written once: inputs, outputs and weights."""
        if operator.kind is OperatorKind.RESHAPE:
            return 0.0
        width = max(operator.activation_bits, 8) / 8
        inputs = operator.in_channels * math.prod(operator.in_size) * max(len(operator.inputs), 1)
        outputs = operator.out_channels * math.prod(operator.out_size)
        weights = operator.weight_count * operator.weight_bits / 8
        return (inputs + outputs) * width + weights

    @staticmethod
    def _power_mw(target: HardwareSpec) -> float:
        if target.power.active_mw is not None:
            return target.power.active_mw
        return CORES[target.core].active_mw * math.pow(target.core_count, THREAD_EXPONENT)


def _log_interval(value: float, log_half_width: float) -> Interval:
    ratio = math.exp(log_half_width)
    return Interval.relative(value, low_ratio=1 / ratio, high_ratio=ratio)
