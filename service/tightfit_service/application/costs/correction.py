"""An emulator brought to what a compiler said of a network, so that plans aim at the right point."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from tightfit_service.application.ports import Emulator
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval

COMPILED_WEIGHT_BITS = 8
"""Networks with weights of more bits are not compiled: their operators stay on the cores."""

LEAST_CHANGE = 0.02
"""Share by which an emulator's figure has to fall for a second point: less tells no slope."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A network, at the precision of its file, and the compiler's cost of that file, told by its layers."""

    network: NetworkProfile
    cost: CostEstimate


def corrected(
    emulator: Emulator, target: HardwareSpec, whole: Compiled, narrow: Compiled | None = None
) -> CorrectedEmulator:
    """Return an emulator that gives the compiler's figures for the network, and scaled ones for others.

    Each operator is brought to the compiler's figures for the operator of its name, or else to those of
    its kind, or of all: in proportion where one network was compiled. A narrower one beside it tells how
    the compiler's figure grows with the emulator's: rounding up to blocks of channels, and what an
    operator takes at any width, are no share of it (see `_Line`). Time that no layer of the network
    takes (copies, changes of sides) stays as it is.

    Args:
        emulator: Whose figures are scaled.
        target: What for.
        whole: The network that others are made from.
        narrow: The same network with fewer channels; its operators have the same names.
    """
    own = emulator.estimate(whole.network, target)
    own_narrow = None if narrow is None else emulator.estimate(narrow.network, target)
    kinds = {operator.node: operator.kind for operator in whole.network.operators}

    def lines(figure: Callable[[OperatorCost], float]) -> _Lines:
        points = _layer_points(own, whole.cost, figure)
        if own_narrow is None or narrow is None:
            return _Lines.through(points, {}, kinds)
        return _Lines.through(points, _layer_points(own_narrow, narrow.cost, figure), kinds)

    def total(figure: Callable[[CostEstimate], Interval]) -> _Line:
        point = _Point(figure(own).value, figure(whole.cost).value)
        if own_narrow is None or narrow is None:
            return _Line.through(point, None)
        return _Line.through(point, _Point(figure(own_narrow).value, figure(narrow.cost).value))

    return CorrectedEmulator(
        emulator=emulator,
        said=whole.cost,
        latency=lines(lambda layer: layer.latency_ms),
        energy=lines(lambda layer: layer.energy_mj),
        ram=total(lambda cost: cost.peak_ram_bytes),
        flash=total(lambda cost: cost.flash_bytes),
        own_rest_ms=own.latency_ms.value - sum(layer.latency_ms for layer in own.layers),
        own_rest_mj=own.energy_mj.value - sum(layer.energy_mj for layer in own.layers),
        networks=1 if narrow is None else 2,
    )


class _Point(NamedTuple):
    """An emulator's figure, and the compiler's for the same thing."""

    own: float
    said: float


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The compiler's figure by the emulator's: a fixed part, and a part that grows with it.

    Below the narrow point it is the line on, as long as that is no less than in proportion to the narrow
    point: a figure that falls faster than the emulator's between both need not go on to do so, and a
    plan must not count on figures of zero. It never falls while the emulator's figure rises.
    """

    whole: _Point
    narrow: _Point | None

    @classmethod
    def through(cls, whole: _Point, narrow: _Point | None) -> _Line:
        """Return the line; in proportion to the whole where the narrow point tells no slope."""
        if narrow is None or narrow.own <= 0 or narrow.own > (1 - LEAST_CHANGE) * whole.own:
            return cls(whole=whole, narrow=None)
        return cls(whole=whole, narrow=narrow)

    @property
    def ratio(self) -> float:
        """Of both figures for the whole."""
        return self.whole.said / self.whole.own if self.whole.own > 0 else 1.0

    def at(self, own: float) -> float:
        """Return the compiler's figure, as far as it is known, where the emulator's is `own`."""
        whole, narrow = self.whole, self.narrow
        if narrow is None:
            return own * self.ratio
        slope = max(0.0, (whole.said - narrow.said) / (whole.own - narrow.own))
        if own >= narrow.own:
            return max(0.0, whole.said + slope * (own - whole.own))
        at_narrow = max(0.0, whole.said + slope * (narrow.own - whole.own))
        return max(at_narrow + slope * (own - narrow.own), at_narrow * own / narrow.own)

    @property
    def linear(self) -> tuple[float, float]:
        """A fixed part and a factor, neither negative, which give the compiler's figure for the whole."""
        if self.narrow is None:
            return 0.0, self.ratio
        slope = (self.whole.said - self.narrow.said) / (self.whole.own - self.narrow.own)
        if slope >= self.ratio:
            return 0.0, self.ratio
        slope = max(0.0, slope)
        return self.whole.said - slope * self.whole.own, slope


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """Lines of a compiler's figures over an emulator's."""

    by_node: Mapping[str, _Line]
    by_kind: Mapping[OperatorKind, _Line]
    typical: _Line

    @classmethod
    def through(
        cls,
        whole: Mapping[str, _Point],
        narrow: Mapping[str, _Point],
        kinds: Mapping[str, OperatorKind],
    ) -> _Lines:
        """Return the lines through the points of nodes, and through the means of each kind's."""
        members: dict[OperatorKind, list[str]] = defaultdict(list)
        for node in whole:
            members[kinds[node]].append(node)

        def mean_line(nodes: Iterable[str]) -> _Line:
            nodes = list(nodes)
            both = [node for node in nodes if node in narrow]
            if both:
                return _Line.through(
                    _mean([whole[node] for node in both]), _mean([narrow[node] for node in both])
                )
            return _Line.through(_mean([whole[node] for node in nodes]), None)

        return cls(
            by_node={node: _Line.through(point, narrow.get(node)) for node, point in whole.items()},
            by_kind={kind: mean_line(nodes) for kind, nodes in members.items()},
            typical=mean_line(whole),
        )

    def at(self, operator: Operator, own: float) -> float:
        """Return the compiler's figure for an operator that the emulator gives `own`."""
        line = self.by_node.get(operator.node)
        if line is None:
            line = self.by_kind.get(operator.kind, self.typical)
        return line.at(own)


@dataclass(frozen=True, kw_only=True)
class CorrectedEmulator:
    """Scales another emulator (port `Emulator`); for plans: its intervals are the compiler's. Stateless.

    What is not compiled, floats, costs what the other emulator says.
    """

    emulator: Emulator
    said: CostEstimate
    latency: _Lines
    energy: _Lines
    ram: _Line
    flash: _Line
    own_rest_ms: float
    own_rest_mj: float
    networks: int = 1
    """Networks that the compiler said something of."""

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
        _, flash_ratio = self.flash.linear
        return replace(
            cost,
            latency_ms=self.latency.at(operator, cost.latency_ms),
            energy_mj=self.energy.at(operator, cost.energy_mj),
            weight_bytes=round(cost.weight_bytes * flash_ratio),
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the scaled memory in use, bytes."""
        points = self.emulator.memory_points(network, target)
        if not _is_compiled(network):
            return points
        fixed, ratio = self.ram.linear
        return tuple(
            replace(
                point,
                fixed_bytes=fixed + point.fixed_bytes * ratio,
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
        ram_fixed, ram_ratio = self.ram.linear
        flash_fixed, flash_ratio = self.flash.linear
        return replace(
            cost,
            latency_ms=_like(self.said.latency_ms, latency),
            energy_mj=_like(self.said.energy_mj, energy),
            peak_ram_bytes=_like(
                self.said.peak_ram_bytes, ram_fixed + cost.peak_ram_bytes.value * ram_ratio
            ),
            flash_bytes=_like(
                self.said.flash_bytes, flash_fixed + cost.flash_bytes.value * flash_ratio
            ),
            layers=layers,
            provenance=f"{cost.provenance}; scaled to what {self.said.compiler} says of the quantized "
            f"model{' and of a narrower one' if self.networks > 1 else ''}",
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


def _layer_points(
    own: CostEstimate, said: CostEstimate, figure: Callable[[OperatorCost], float]
) -> dict[str, _Point]:
    """Return both figures by the layers that both know, but for those that the emulator gives nothing."""
    given = {layer.node: figure(layer) for layer in own.layers}
    return {
        layer.node: _Point(given[layer.node], figure(layer))
        for layer in said.layers
        if given.get(layer.node, 0.0) > 0
    }


def _mean(points: list[_Point]) -> _Point:
    """Return the mean of points; of none one that leaves figures as they are."""
    if not points:
        return _Point(1.0, 1.0)
    count = len(points)
    return _Point(sum(p.own for p in points) / count, sum(p.said for p in points) / count)


def _is_compiled(network: NetworkProfile) -> bool:
    return any(operator.weight_bits <= COMPILED_WEIGHT_BITS for operator in network.operators)


def _like(interval: Interval, value: float) -> Interval:
    """Return an interval around another value, as wide in proportion."""
    if interval.value <= 0:
        return Interval.exact(value)
    return interval.scaled(value / interval.value)
