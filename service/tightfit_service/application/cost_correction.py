"""An emulator brought to what a compiler said of one network, so that plans aim at the right point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tightfit_service.application.ports import Emulator
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

COMPILED_WEIGHT_BITS = 8
"""Networks with weights of more bits are not compiled: their operators stay on the cores."""


def corrected(
    emulator: Emulator, network: NetworkProfile, target: HardwareSpec, said: CostEstimate
) -> CorrectedEmulator:
    """Return an emulator that gives the compiler's figures for the network, and scaled ones for others.

    Each operator is scaled by the ratio of both figures for the operator of its name, or else for those of
    its kind, or for all. Time that no layer of the network takes (copies, changes of sides) stays as it is.

    Args:
        emulator: Whose figures are scaled.
        network: What the compiler was given, at the precision of its file.
        target: What for.
        said: By the compiler, told by the network's layers.
    """
    own = emulator.estimate(network, target)
    kinds = {operator.node: operator.kind for operator in network.operators}
    given = {layer.node: layer for layer in own.layers}
    seen = {layer.node: layer for layer in said.layers if layer.node in given}
    return CorrectedEmulator(
        emulator=emulator,
        said=said,
        latency=_Ratios.between(
            [(n, given[n].latency_ms, layer.latency_ms) for n, layer in seen.items()], kinds
        ),
        energy=_Ratios.between(
            [(n, given[n].energy_mj, layer.energy_mj) for n, layer in seen.items()], kinds
        ),
        ram_ratio=_ratio(own.peak_ram_bytes, said.peak_ram_bytes),
        flash_ratio=_ratio(own.flash_bytes, said.flash_bytes),
        own_rest_ms=own.latency_ms.value - sum(layer.latency_ms for layer in own.layers),
        own_rest_mj=own.energy_mj.value - sum(layer.energy_mj for layer in own.layers),
    )


@dataclass(frozen=True, kw_only=True)
class _Ratios:
    """Of a compiler's figures to an emulator's."""

    by_node: Mapping[str, float]
    by_kind: Mapping[OperatorKind, float]
    typical: float

    @classmethod
    def between(
        cls, figures: Iterable[tuple[str, float, float]], kinds: Mapping[str, OperatorKind]
    ) -> _Ratios:
        """Return the ratios of triples: node, the emulator's figure, the compiler's."""
        by_node: dict[str, float] = {}
        own: dict[OperatorKind, float] = defaultdict(float)
        seen: dict[OperatorKind, float] = defaultdict(float)
        for node, before, after in figures:
            if before <= 0:
                continue
            by_node[node] = after / before
            own[kinds[node]] += before
            seen[kinds[node]] += after
        total = sum(own.values())
        return cls(
            by_node=by_node,
            by_kind={kind: seen[kind] / own[kind] for kind in own},
            typical=sum(seen.values()) / total if total > 0 else 1.0,
        )

    def of(self, operator: Operator) -> float:
        known = self.by_node.get(operator.node)
        return self.by_kind.get(operator.kind, self.typical) if known is None else known


@dataclass(frozen=True, kw_only=True)
class CorrectedEmulator:
    """Scales another emulator (port `Emulator`); for plans: its intervals are the compiler's. Stateless.

    What is not compiled, floats, costs what the other emulator says.
    """

    emulator: Emulator
    said: CostEstimate
    latency: _Ratios
    energy: _Ratios
    ram_ratio: float
    flash_ratio: float
    own_rest_ms: float
    own_rest_mj: float

    @property
    def name(self) -> str:
        """Name of the other emulator, marked."""
        return f"{self.emulator.name}+{self.said.compiler.split()[0]}"

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the other emulator has a model of the target."""
        return self.emulator.supports(target)

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the scaled cost of one operator; latency in ms, energy in mJ."""
        cost = self.emulator.operator_cost(operator, target)
        if operator.weight_bits > COMPILED_WEIGHT_BITS:
            return cost
        return replace(
            cost,
            latency_ms=cost.latency_ms * self.latency.of(operator),
            energy_mj=cost.energy_mj * self.energy.of(operator),
            weight_bytes=round(cost.weight_bytes * self.flash_ratio),
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the scaled memory in use, bytes."""
        points = self.emulator.memory_points(network, target)
        if not _is_compiled(network):
            return points
        ratio = self.ram_ratio
        return tuple(
            replace(
                point,
                fixed_bytes=point.fixed_bytes * ratio,
                tensor_bytes={name: size * ratio for name, size in point.tensor_bytes.items()},
            )
            for point in points
        )

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the scaled cost of a network; flash is that of the compiled file, never `file_bytes`."""
        if not _is_compiled(network):
            return self.emulator.estimate(network, target, file_bytes=file_bytes)
        cost = self.emulator.estimate(network, target)
        layers = tuple(self.operator_cost(operator, target) for operator in network.operators)
        rest_ms = cost.latency_ms.value - sum(layer.latency_ms for layer in cost.layers)
        rest_mj = cost.energy_mj.value - sum(layer.energy_mj for layer in cost.layers)
        latency = sum(layer.latency_ms for layer in layers)
        latency += max(0.0, self._said_rest_ms + rest_ms - self.own_rest_ms)
        energy = sum(layer.energy_mj for layer in layers)
        energy += max(0.0, self._said_rest_mj + rest_mj - self.own_rest_mj)
        return replace(
            cost,
            latency_ms=_like(self.said.latency_ms, latency),
            energy_mj=_like(self.said.energy_mj, energy),
            peak_ram_bytes=_like(
                self.said.peak_ram_bytes, cost.peak_ram_bytes.value * self.ram_ratio
            ),
            flash_bytes=_like(self.said.flash_bytes, cost.flash_bytes.value * self.flash_ratio),
            layers=layers,
            provenance=f"{cost.provenance}; scaled to what {self.said.compiler} says of the quantized "
            "model",
        )

    @property
    def _said_rest_ms(self) -> float:
        known = self.latency.by_node
        return self.said.latency_ms.value - sum(
            layer.latency_ms for layer in self.said.layers if layer.node in known
        )

    @property
    def _said_rest_mj(self) -> float:
        known = self.energy.by_node
        return self.said.energy_mj.value - sum(
            layer.energy_mj for layer in self.said.layers if layer.node in known
        )


def _is_compiled(network: NetworkProfile) -> bool:
    return any(operator.weight_bits <= COMPILED_WEIGHT_BITS for operator in network.operators)


def _ratio(own: Interval, said: Interval) -> float:
    return said.value / own.value if own.value > 0 else 1.0


def _like(interval: Interval, value: float) -> Interval:
    """Return an interval around another value, as wide in proportion."""
    if interval.value <= 0:
        return Interval.exact(value)
    return interval.scaled(value / interval.value)
