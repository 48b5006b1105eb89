"""What the emulators of accelerators share: a roofline per operator, and the cores for what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tightfit_service.adapters.emulators import flash, memory_plan
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.multiples import next_multiple
from tightfit_service.adapters.emulators.partitions import (
    Partition,
    computed_format,
    partitions,
    transfer_ms,
)
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import Accelerator, AcceleratorKind, HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

CONFIDENCE = 0.9
ASSUMED_LOG_WIDTH = 0.4
"""Added to the half width of log latency where rates were taken from the class of the accelerator."""
POWER_LOG_WIDTH = 0.6
DEFAULT_BANDWIDTH_MB_S = 10_000.0
DEFAULT_FLASH_MB_S = 400.0
"""Octal flash at 200 MHz, both edges."""
PICOJOULES_PER_MAC = 1.5
"""Of dense int8 networks with their memory traffic: 1.3 TOPS per watt, the middle of data sheets of
edge accelerators (Edge TPU 2, Jetson Orin 2.7, mobile GPUs below 1)."""
STYLE = memory_plan.ArenaStyle(in_place=frozenset({"elementwise"}))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How near a family of accelerators comes to its peak.

    Attributes:
        efficiency: Share of the peak that large operators of a kind reach; others take `default`.
        default: Share for kinds not named.
        overhead_us: Microseconds per operator: launch, synchronisation, reconfiguration.
        run_us: Microseconds per inference: driver, command buffer, copies of input and output.
        log_half_width: Half width of the 90 % interval of log latency.
        scored_on: Measured tables that the width comes from.
        bandwidth_mb_s: Of the memory where neither the accelerator nor the target states one.
        flash_mb_s: Of flash that weights are read from, where the target states none.
        input_multiple: Channels that sums over input channels are rounded up to.
        runtime_factors: Latency of runtimes whose names begin so, over that of the vendor's own.
    """

    efficiency: Mapping[OperatorKind, float]
    default: float
    overhead_us: float
    run_us: float
    log_half_width: float
    scored_on: str
    bandwidth_mb_s: float = DEFAULT_BANDWIDTH_MB_S
    flash_mb_s: float = DEFAULT_FLASH_MB_S
    input_multiple: int = 1
    runtime_factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PeakRam:
    """The most memory in use at a time, in bytes, and at which node."""

    node: str
    in_use: Interval


@dataclass(frozen=True, kw_only=True)
class AcceleratedEmulator:
    """Emulator of a family of accelerators beside cores (port `Emulator`). Stateless.

    Operators that the accelerator does not run, by the target's rules of support, run on the cores;
    each change of sides pays for what is transferred. The first call to the accelerator and the way
    back at the end count as such changes.
    """

    name: str
    kinds: frozenset[AcceleratorKind]
    rates: Rates
    flash_range: tuple[float, float] = (0.8, 1.25)
    """Bounds of the flash that a network takes, over its weights and graph as counted."""
    cores: Sequence[McuEmulator | RooflineEmulator] = field(
        default=(McuEmulator(), RooflineEmulator()), repr=False
    )

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the accelerator is of this family and there is a model of the cores."""
        accelerator = target.accelerator
        return (
            accelerator is not None
            and accelerator.kind in self.kinds
            and any(emulator.runs_core(target) for emulator in self.cores)
        )

    @property
    def smooth(self) -> AcceleratedEmulator:
        """The same with cores that have no caches (see `RooflineEmulator.smooth`)."""
        cores = tuple(
            core.smooth if isinstance(core, RooflineEmulator) else core for core in self.cores
        )
        return replace(self, cores=cores)

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator on the side where it runs when looked at alone."""
        accelerator = _accelerator(target)
        sides = partitions(_alone(operator), accelerator)
        if not sides[0].on_accelerator:
            return self._on_cores(operator, target)
        return self._on_accelerator(operator, target)

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the live activations per operator; microcontrollers leave weights in flash."""
        if target.core.startswith("cortex-m"):
            return memory_plan.memory_points(network, STYLE)
        return RooflineEmulator().memory_points(network, target)

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network, its partitions and transfers included.

        Raises:
            UnsupportedError: The accelerator's compiler refuses an operator.
        """
        accelerator = _accelerator(target)
        parts = partitions(network, accelerator)
        layers = tuple(
            self._on_accelerator(op, target) if part.on_accelerator else self._on_cores(op, target)
            for part in parts
            for op in part.operators
        )
        moving_ms = self._moving_ms(parts, network, accelerator)
        latency = sum(layer.latency_ms for layer in layers) + moving_ms
        energy = sum(layer.energy_mj for layer in layers)
        energy += moving_ms * self._waiting_mw(target) / 1e3
        width = self.rates.log_half_width
        if any(name.startswith("accelerator") for name in target.assumed_fields):
            width += ASSUMED_LOG_WIDTH
        peak = self.peak_ram(network, target)
        counted = sum(layer.weight_bytes for layer in layers) + flash.other_constant_bytes(network)
        return CostEstimate(
            latency_ms=_log_interval(latency, width),
            energy_mj=_log_interval(energy, math.hypot(width, POWER_LOG_WIDTH)),
            peak_ram_bytes=peak.in_use,
            flash_bytes=Interval.exact(float(file_bytes))
            if file_bytes is not None
            else Interval.relative(
                float(counted), low_ratio=self.flash_range[0], high_ratio=self.flash_range[1]
            ),
            macs=network.macs,
            layers=layers,
            peak_node=peak.node,
            provenance=(
                f"roofline of {accelerator.name or accelerator.kind} from its peak rate, not "
                f"calibrated to this board; the width of the 90 % intervals is that of {self.rates.scored_on}"
            ),
            confidence=CONFIDENCE,
            warnings=_warnings(parts, accelerator),
        )

    def peak_ram(self, network: NetworkProfile, target: HardwareSpec) -> PeakRam:
        """Return the most memory that is in use at a time; the planner of the runtime is not known."""
        peak = max(self.memory_points(network, target), key=lambda point: point.bytes_in_use)
        in_use = Interval.relative(peak.bytes_in_use, low_ratio=0.7, high_ratio=1.6)
        return PeakRam(node=peak.node, in_use=in_use)

    def _moving_ms(
        self, parts: Sequence[Partition], network: NetworkProfile, accelerator: Accelerator
    ) -> float:
        moving = sum(
            transfer_ms(accelerator, part.entering_bytes)
            for i, part in enumerate(parts)
            if part.on_accelerator or i
        )
        if parts and parts[-1].on_accelerator:
            last = parts[-1].operators[-1]
            leaving = sum(math.prod(network.tensors.get(n, (0,))) for n in network.outputs)
            moving += transfer_ms(accelerator, leaving * max(last.activation_bits, 8) / 8)
        runs = sum(part.on_accelerator for part in parts)
        return moving + self.streamed_ms(parts, accelerator) + runs * self.rates.run_us / 1e3

    def streamed_ms(self, parts: Sequence[Partition], accelerator: Accelerator) -> float:
        """Return the milliseconds for weights that do not stay in the accelerator's own memory."""
        if not accelerator.memory_bytes or accelerator.transfer_mb_s is None:
            return 0.0
        weights = sum(
            flash.constant_bytes(op)
            for part in parts
            if part.on_accelerator
            for op in part.operators
        )
        beyond = max(weights - accelerator.memory_bytes, 0)
        return beyond / (accelerator.transfer_mb_s * 1e3)

    def _on_accelerator(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        if operator.kind is OperatorKind.RESHAPE:
            latency = 0.0
        else:
            latency = self.busy_ms(operator, target) + self.rates.overhead_us / 1e3
            latency *= self._runtime_factor(target)
        power = target.power.accelerator_mw
        if power is None:
            bits = max(operator.activation_bits, 8) / 8
            energy = operator.macs * PICOJOULES_PER_MAC * bits * 1e-9
            energy += latency * self._waiting_mw(target) / 1e3
        else:
            energy = latency * power / 1e3
        return OperatorCost(
            node=operator.node,
            op_type=operator.op_type,
            macs=operator.macs,
            latency_ms=latency,
            energy_mj=energy,
            weight_bytes=flash.flatbuffer_bytes(operator),
        )

    def busy_ms(self, operator: Operator, target: HardwareSpec) -> float:
        """Return the milliseconds of an operator beyond its overhead: computing or moving data."""
        accelerator = _accelerator(target)
        peak = accelerator.macs_per_second(computed_format(accelerator, operator)) / 1e3
        share = self.rates.efficiency.get(operator.kind, self.rates.default)
        macs = RooflineEmulator.rounded_macs(operator, target) * self.input_rounding(operator)
        return max(
            macs / (peak * share),
            self.moved_ms(operator, target),
            self.weights_ms(operator, target),
        )

    def input_rounding(self, operator: Operator) -> float:
        """Return how much longer sums over input channels take than their products say."""
        multiple = self.rates.input_multiple
        channels = operator.in_channels // max(operator.groups, 1)
        if operator.kind is OperatorKind.DEPTHWISE_CONV or channels < 1:
            return 1.0
        return next_multiple(channels, multiple) / channels

    def moved_ms(self, operator: Operator, target: HardwareSpec) -> float:
        """Return the milliseconds for reading inputs and writing outputs once."""
        others = RooflineEmulator.traffic_bytes(operator) - operator.weight_bytes
        return others / (self._bandwidth_mb_s(target) * 1e3)

    def weights_ms(self, operator: Operator, target: HardwareSpec) -> float:
        """Return the milliseconds for reading weights once; microcontrollers read them from flash."""
        rate = self._bandwidth_mb_s(target)
        if target.core.startswith("cortex-m"):
            rate = target.memory.flash_bandwidth_mb_s or self.rates.flash_mb_s
        return operator.weight_bytes / (rate * 1e3)

    def _bandwidth_mb_s(self, target: HardwareSpec) -> float:
        own = _accelerator(target).bandwidth_mb_s
        return own or target.memory.ram_bandwidth_mb_s or self.rates.bandwidth_mb_s

    def _runtime_factor(self, target: HardwareSpec) -> float:
        name = target.runtime.name.lower()
        factors = self.rates.runtime_factors.items()
        return next((factor for start, factor in factors if name.startswith(start)), 1.0)

    def _on_cores(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        emulator = next(e for e in self.cores if e.runs_core(target))
        return emulator.operator_cost(operator, target)

    def _waiting_mw(self, target: HardwareSpec) -> float:
        """Power of the rest of the device while the accelerator works."""
        if target.power.accelerator_mw is not None:
            return target.power.accelerator_mw
        return target.power.idle_mw or (20.0 if target.core.startswith("cortex-m") else 1_500.0)


def _accelerator(target: HardwareSpec) -> Accelerator:
    if target.accelerator is None:
        raise ValueError(f"target {target.name!r} has no accelerator")
    return target.accelerator


def _alone(operator: Operator) -> NetworkProfile:
    return NetworkProfile(
        operators=(operator,), tensors={}, inputs=operator.inputs, outputs=operator.outputs
    )


def _warnings(parts: Sequence[Partition], accelerator: Accelerator) -> tuple[str, ...]:
    left = [op.op_type for part in parts if not part.on_accelerator for op in part.operators]
    if not left:
        return ()
    kinds = ", ".join(dict.fromkeys(left))
    count = sum(not part.on_accelerator for part in parts)
    return (
        (
            f"{len(left)} operators in {count} {'partition' if count == 1 else 'partitions'} run on the "
            f"cores, not on {accelerator.name or accelerator.kind}: {kinds}"
        ),
    )


def _log_interval(value: float, log_half_width: float) -> Interval:
    ratio = math.exp(log_half_width)
    return Interval.relative(value, low_ratio=1 / ratio, high_ratio=ratio)
