"""An emulator whose costs are simple enough to work out by hand."""

from __future__ import annotations

from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator
from tightfit_service.domain.quantities import Interval

MARGIN = 1.1


class LinearEmulator:
    """1 ns and 1 nJ per MAC, a byte per weight or four, RAM of inputs plus outputs, +-10 %."""

    name = "linear"

    def supports(self, target: HardwareSpec) -> bool:
        return target.core == "cortex-m7"

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        layers = tuple(self.operator_cost(op, target) for op in network.operators)
        points = self.memory_points(network, target)
        peak = max(points, key=lambda point: sum(point.tensor_bytes.values()))
        flash = file_bytes if file_bytes is not None else sum(c.weight_bytes for c in layers)
        return CostEstimate(
            latency_ms=_about(sum(c.latency_ms for c in layers)),
            energy_mj=_about(sum(c.energy_mj for c in layers)),
            peak_ram_bytes=Interval.exact(sum(peak.tensor_bytes.values())),
            flash_bytes=Interval.exact(flash),
            macs=network.macs,
            layers=layers,
            peak_node=peak.node,
            provenance="by hand",
            confidence=0.9,
        )

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        del target
        slower = 4 if operator.activation_bits == 32 else 1
        return OperatorCost(
            node=operator.node,
            op_type=operator.op_type,
            macs=operator.macs,
            latency_ms=operator.macs * 1e-6 * slower,
            energy_mj=operator.macs * 1e-6 * slower,
            weight_bytes=operator.weight_count * operator.weight_bits // 8,
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        del target
        return tuple(
            MemoryPoint(
                node=op.node,
                fixed_bytes=0.0,
                tensor_bytes={
                    name: float(_count(network.tensors[name]) * op.activation_bits // 8)
                    for name in (*op.inputs, *op.outputs)
                },
            )
            for op in network.operators
        )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _about(value: float) -> Interval:
    return Interval.relative(value, low_ratio=2 - MARGIN, high_ratio=MARGIN)
