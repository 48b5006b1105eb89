"""What a network costs on a target at the precision it would be exported in, and what that allows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tightfit_service.application.ports import DeviceCompiler, Emulator, Telemetry
from tightfit_service.application.recipes.techniques import PRECISION
from tightfit_service.domain.budget import Budget, Constraint, LimitSource, Objective, Quantity
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import (
    Alternative,
    NetworkProfile,
    Operator,
    PruningSpace,
    Width,
)
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.trial import COST_QUANTITIES, Metrics, cost_of
from tightfit_service.search.problem import (
    CompressionProblem,
    GroupChoice,
    MemoryRow,
    NodeChoice,
)

_OPTION_SUFFIX = ":way"

MAX_LEVELS = 16
"""Widths offered to the solver per group; finer steps change latency by less than estimates err."""

SOLVER_SHARE = 0.995
"""Share of a limit that the solver may use: networks as made come out up to half a percent dearer than
the sum of their layers, where several techniques change neighbouring ones."""

BITS = {
    NumberFormat.INT4: (4, 8),
    NumberFormat.INT8: (8, 8),
    NumberFormat.INT16X8: (8, 16),
    NumberFormat.FLOAT16: (16, 16),
    NumberFormat.BFLOAT16: (16, 16),
    NumberFormat.FLOAT32: (32, 32),
}
"""Bits of weights and of activations, per number format."""


@dataclass(frozen=True, kw_only=True)
class FormatEstimates:
    """What one network is estimated to cost on one target, by the number format that it computes in.

    Attributes:
        as_float: In float32.
        as_int8: In int8; None where the target does not compute in it.
        has_float: Whether the target computes in float32 as such.
    """

    as_float: CostEstimate
    as_int8: CostEstimate | None
    has_float: bool

    @property
    def is_int8_as_fast(self) -> bool:
        """Whether int8 is offered, and estimated to be at least as fast as float32."""
        return (
            self.as_int8 is not None
            and self.as_int8.latency_ms.value <= self.as_float.latency_ms.value
        )

    @property
    def preferred(self) -> NumberFormat:
        """The format to ship the network in: int8 where it is as fast, or all that there is."""
        if self.is_int8_as_fast or (self.as_int8 is not None and not self.has_float):
            return NumberFormat.INT8
        return NumberFormat.FLOAT32

    @property
    def shipped(self) -> CostEstimate:
        """The cost in the preferred format."""
        if self.as_int8 is not None and self.preferred is NumberFormat.INT8:
            return self.as_int8
        return self.as_float


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """An emulator bound to a target; every estimate is reported to the telemetry.

    `compiler` is what files for the target go through, installed or not; it gives better figures of a file.
    """

    emulator: Emulator
    target: HardwareSpec
    telemetry: Telemetry
    compiler: DeviceCompiler | None = None

    def at(
        self,
        profile: NetworkProfile,
        number_format: NumberFormat,
        node_formats: Mapping[str, NumberFormat] | None = None,
    ) -> NetworkProfile:
        """Return the profile as computed in the number format, but for nodes that have their own."""
        weight_bits, activation_bits = BITS[number_format]
        return profile.at_precision(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            by_node={node: BITS[own] for node, own in (node_formats or {}).items()},
        )

    def estimate(
        self,
        profile: NetworkProfile,
        number_format: NumberFormat,
        *,
        file_bytes: int | None = None,
        node_formats: Mapping[str, NumberFormat] | None = None,
    ) -> CostEstimate:
        """Return the estimated cost of the network computed in the number format."""
        start = time.perf_counter()
        estimate = self.emulator.estimate(
            self.at(profile, number_format, node_formats), self.target, file_bytes=file_bytes
        )
        self.telemetry.emulator_called(self.emulator.name, time.perf_counter() - start)
        return estimate

    def in_formats(self, profile: NetworkProfile) -> FormatEstimates:
        """Return the estimated cost of the network in float32, and in int8 where the target has it."""
        offered = self.target.number_formats
        has_int8 = NumberFormat.INT8 in offered
        return FormatEstimates(
            as_float=self.estimate(profile, NumberFormat.FLOAT32),
            as_int8=self.estimate(profile, NumberFormat.INT8) if has_int8 else None,
            has_float=NumberFormat.FLOAT32 in offered,
        )


def select_emulator(emulators: Sequence[Emulator], target: HardwareSpec) -> Emulator:
    """Return the first emulator that has a model of the target.

    Raises:
        UnsupportedError: None has.
    """
    for emulator in emulators:
        if emulator.supports(target):
            return emulator
    accelerator = target.accelerator
    what = f"core {target.core!r}"
    if accelerator is not None:
        what = f"accelerator {accelerator.name or accelerator.kind.value!r}"
    raise UnsupportedError(
        f"no emulator covers the {what} of target {target.name!r} yet",
        field="hardware_target",
        remedy="choose a target of `tightfit targets list` that has an emulator",
    )


def with_target_limits(budget: Budget, target: HardwareSpec) -> Budget:
    """Return the budget with the target's RAM and flash as limits: a larger model cannot run there."""
    implied = (
        (Quantity.RAM, target.memory.ram_bytes),
        (Quantity.SIZE, target.memory.flash_bytes),
    )
    return budget.with_constraints(
        Constraint(quantity=quantity, limit=float(limit), source=LimitSource.TARGET)
        for quantity, limit in implied
    )


def interval_of(cost: CostEstimate, quantity: Quantity) -> Interval:
    """Return the estimate of a cost quantity."""
    return {
        Quantity.LATENCY: cost.latency_ms,
        Quantity.ENERGY: cost.energy_mj,
        Quantity.RAM: cost.peak_ram_bytes,
        Quantity.SIZE: cost.flash_bytes,
    }[quantity]


def levels(unit_count: int, multiple: int) -> tuple[int, ...]:
    """Return the numbers of kept units offered for a group, ascending, the last being all of them.

    Steps are multiples of what the target's kernels round up to anyway, and coarse enough that at
    most MAX_LEVELS are offered.
    """
    step = max(1, min(multiple, unit_count))
    step *= max(1, math.ceil(unit_count / (MAX_LEVELS * step)))
    return tuple(sorted({*range(step, unit_count, step), unit_count}))


@dataclass(frozen=True, kw_only=True)
class ProblemBuilder:
    """Makes the solver's problem from a graph's pruning space and a target's emulator.

    Attributes:
        alternatives: The ways to compute a node, by node, from the one that loses most to the one
            that loses least; None is the ordinary way. They are the levels of a group of the
            problem, `option_id(node)`.
    """

    costs: CostModel
    profile: NetworkProfile
    space: PruningSpace
    number_format: NumberFormat
    alternatives: Mapping[str, Sequence[Alternative | None]] = field(default_factory=dict)

    def group_levels(self) -> Mapping[str, tuple[int, ...]]:
        """Return the levels offered per group."""
        multiple = self.costs.target.channel_multiple
        channels = {g.group_id: levels(g.unit_count, multiple) for g in self.space.groups}
        ways = {
            option_id(node): tuple(range(1, len(choices) + 1))
            for node, choices in self.alternatives.items()
        }
        return {**channels, **ways}

    def build(
        self,
        *,
        losses: Mapping[str, Sequence[float]],
        budget: Budget,
        objective: Objective,
        max_loss: float | None,
        margins: Mapping[Quantity, float],
    ) -> CompressionProblem:
        """Return the problem for a budget.

        Args:
            losses: Predicted loss of accuracy per group and level.
            budget: Its cost limits become the solver's limits on the centre of the estimate.
            objective: What is optimised.
            max_loss: Largest predicted loss allowed; needed when a cost is minimised.
            margins: Per quantity, the ratio of the upper end of the interval to its centre.
        """
        profile = self.costs.at(self.profile, self.number_format)
        return CompressionProblem(
            groups=tuple(
                GroupChoice(group_id=group_id, levels=steps, accuracy_loss=tuple(losses[group_id]))
                for group_id, steps in self.group_levels().items()
            ),
            nodes=tuple(self._node_choice(operator) for operator in profile.operators),
            memory=self._memory_rows(profile),
            fixed_costs=self._fixed_costs(profile),
            limits={
                quantity: SOLVER_SHARE * limit / margins.get(quantity, 1.0)
                for quantity in COST_QUANTITIES
                if (limit := budget.limit_of(quantity)) is not None
            },
            objective=objective.quantity,
            max_loss=max_loss,
        )

    def build_without_losses(
        self, budget: Budget, *, margins: Mapping[Quantity, float]
    ) -> CompressionProblem:
        """Return the problem for the cost limits of a budget alone, as if no change lost any accuracy."""
        return self.build(
            losses={group: [0.0] * len(steps) for group, steps in self.group_levels().items()},
            budget=budget,
            objective=Objective(),
            max_loss=None,
            margins=margins,
        )

    def _node_choice(self, operator: Operator) -> NodeChoice:
        """Return the widths of an operator, and the ways to compute it, with what each costs."""
        node = operator.node
        choices = self.alternatives.get(node, ())
        return NodeChoice(
            node=node,
            input_width=self.space.input_widths.get(node, Width(fixed=operator.in_channels)),
            output_width=self.space.output_widths.get(node, Width(fixed=operator.out_channels)),
            cost=self._node_cost((operator,)),
            option_id=option_id(node) if node in self.alternatives else "",
            alternatives={
                level: self._node_cost(self._as_computed(choice))
                for level, choice in enumerate(choices, start=1)
                if choice is not None
            },
        )

    def _fixed_costs(self, profile: NetworkProfile) -> Mapping[Quantity, float]:
        """Return what the network costs beside its operators, such as an invocation's overhead."""
        emulator, target = self.costs.emulator, self.costs.target
        whole = emulator.estimate(profile, target)
        parts = [emulator.operator_cost(operator, target) for operator in profile.operators]
        return {
            quantity: interval_of(whole, quantity).value - total
            for quantity, total in _total(parts).items()
        }

    def _as_computed(self, choice: Alternative) -> Sequence[Operator]:
        """Return what an alternative executes: in the network's format, unless it is about formats."""
        if choice.pass_name == PRECISION:
            return choice.operators
        weight_bits, activation_bits = BITS[self.number_format]
        return [
            replace(operator, weight_bits=weight_bits, activation_bits=activation_bits)
            for operator in choice.operators
        ]

    def _node_cost(self, operators: Sequence[Operator]) -> _NodeCost:
        return _NodeCost(
            operators=tuple(operators), emulator=self.costs.emulator, target=self.costs.target
        )

    def _memory_rows(self, profile: NetworkProfile) -> tuple[MemoryRow, ...]:
        rows = []
        for point in self.costs.emulator.memory_points(profile, self.costs.target):
            fixed = point.fixed_bytes
            tensors: list[tuple[Width, float]] = []
            for name, byte_count in point.tensor_bytes.items():
                width = self.space.tensor_widths.get(name)
                channels = _full_channels(width, self.space) if width is not None else 0
                if width is None or not channels or not width.terms:
                    fixed += byte_count
                else:
                    tensors.append((width, byte_count / channels))
            rows.append(MemoryRow(node=point.node, fixed_bytes=fixed, tensors=tuple(tensors)))
        return tuple(rows)


@dataclass(frozen=True, kw_only=True)
class _NodeCost:
    """Cost of a node as a function of its widths: of one operator, or of a chain that stands for it.

    The first of a chain reads the node's input channels and the last makes its output channels; the
    widths in between stay.
    """

    operators: tuple[Operator, ...]
    emulator: Emulator
    target: HardwareSpec

    def __call__(self, in_channels: int, out_channels: int) -> Mapping[Quantity, float]:
        last = len(self.operators) - 1
        parts = [
            self.emulator.operator_cost(
                operator.resized(
                    in_channels if index == 0 else operator.in_channels,
                    out_channels if index == last else operator.out_channels,
                ),
                self.target,
            )
            for index, operator in enumerate(self.operators)
        ]
        return _total(parts)


def _total(parts: Sequence[OperatorCost]) -> Mapping[Quantity, float]:
    return {
        Quantity.LATENCY: sum(part.latency_ms for part in parts),
        Quantity.ENERGY: sum(part.energy_mj for part in parts),
        Quantity.SIZE: sum(part.weight_bytes for part in parts),
    }


def option_id(node: str) -> str:
    """Return the id of the group whose levels are the ways to compute a node."""
    return f"{node}{_OPTION_SUFFIX}"


def _full_channels(width: Width, space: PruningSpace) -> int:
    return width.channels({group.group_id: group.unit_count for group in space.groups})


def margins_of(metrics: Metrics) -> Mapping[Quantity, float]:
    """Return, per cost quantity, how far what limits are held against lies above the centre (ratio)."""
    centres = {q: interval_of(metrics.cost, q).value for q in COST_QUANTITIES}
    return {q: cost_of(metrics, q) / centre if centre > 0 else 1.0 for q, centre in centres.items()}
