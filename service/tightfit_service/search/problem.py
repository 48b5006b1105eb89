"""The choices of a compression problem with its limits, and what a solution to it is.

There are two kinds of choice, and the solver treats them alike: how many units of a channel group stay,
and how a node is computed (its precision, its rank). Both are ordered levels whose last changes nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.network import Width
from tightfit_service.domain.trial import COST_QUANTITIES

SUMMED_QUANTITIES = (Quantity.LATENCY, Quantity.ENERGY, Quantity.SIZE)
"""Cost quantities that add up over nodes; RAM is a peak instead."""
Cost = Callable[[int, int], Mapping[Quantity, float]]
"""Cost of a node by its numbers of input and output channels."""

EXCESS_TOLERANCE = 1e-9
"""Relative excess over a limit that counts as rounding of floating-point sums."""


@dataclass(frozen=True, kw_only=True)
class GroupChoice:
    """How many units of a group may stay, and what each choice is predicted to cost.

    `levels` are allowed numbers of kept units, ascending, the last being all of them.
    `accuracy_loss` is the predicted loss of accuracy (fraction) at each level, 0 at the last.
    The ways to compute a node are a group too (see `NodeChoice.option_id`): its levels count from 1,
    the strongest, to the mildest, which loses nothing.
    """

    group_id: str
    levels: tuple[int, ...]
    accuracy_loss: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse choices that the solver would misread.

        Raises:
            ValueError: No level, levels not ascending, or another number of losses than levels.
        """
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"group {self.group_id!r}: levels must be ascending and distinct")
        if len(self.levels) != len(self.accuracy_loss):
            raise ValueError(f"group {self.group_id!r}: one accuracy loss per level is needed")


@dataclass(frozen=True, kw_only=True)
class NodeChoice:
    """A node whose cost depends on widths, and on the way in which it is computed.

    `cost(in_channels, out_channels)` returns LATENCY in ms, ENERGY in mJ and SIZE in bytes of this
    node alone; it must be pure. What it leaves out counts as 0. Where there are several ways,
    `option_id` names the group whose levels they are, `alternatives[level]` is the cost at that
    level, and `cost` that of the levels not named there.
    """

    node: str
    input_width: Width
    output_width: Width
    cost: Cost
    option_id: str = ""
    alternatives: Mapping[int, Cost] = field(default_factory=dict)

    def cost_at(self, kept: Mapping[str, int]) -> Mapping[Quantity, float]:
        """Return the cost at the levels of all groups."""
        cost = self.cost_of_way(kept[self.option_id]) if self.option_id else self.cost
        return cost(self.input_width.channels(kept), self.output_width.channels(kept))

    def cost_of_way(self, level: int) -> Cost:
        """Return the cost of the way of a level of `option_id`."""
        return self.alternatives.get(level, self.cost)


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Bytes in use at one point of the schedule: `fixed_bytes` plus bytes per channel of live tensors."""

    node: str
    fixed_bytes: float
    tensors: tuple[tuple[Width, float], ...]

    def in_use(self, kept: Mapping[str, int]) -> float:
        """Return the bytes in use when `kept[group_id]` units of each group remain."""
        return self.fixed_bytes + sum(
            width.channels(kept) * bytes_per_channel for width, bytes_per_channel in self.tensors
        )


@dataclass(frozen=True, kw_only=True)
class CompressionProblem:
    """All choices with all limits.

    Attributes:
        fixed_costs: What no choice changes, per cost quantity; for RAM it is added to the peak.
        limits: Maxima of cost quantities (ms, mJ, bytes).
        objective: ACCURACY minimises the predicted loss; a cost quantity minimises that cost.
        max_loss: Greatest predicted loss of accuracy (fraction), or None.
    """

    groups: tuple[GroupChoice, ...]
    nodes: tuple[NodeChoice, ...] = ()
    memory: tuple[MemoryRow, ...] = ()
    fixed_costs: Mapping[Quantity, float] = field(default_factory=dict)
    limits: Mapping[Quantity, float] = field(default_factory=dict)
    objective: Quantity = Quantity.ACCURACY
    max_loss: float | None = None

    def __post_init__(self) -> None:
        """Refuse problems that contradict themselves.

        Raises:
            ValueError: A group given twice, a width of an unknown group, a limit on ACCURACY,
                or one that is not positive.
        """
        known = {group.group_id for group in self.groups}
        if len(known) != len(self.groups):
            raise ValueError("a group is given twice")
        widths = [w for node in self.nodes for w in (node.input_width, node.output_width)]
        widths += [width for row in self.memory for width, _ in row.tensors]
        unknown = {term.group_id for width in widths for term in width.terms} - known
        unknown |= {node.option_id for node in self.nodes if node.option_id} - known
        if unknown:
            raise ValueError(f"widths refer to groups without choices: {sorted(unknown)}")
        if Quantity.ACCURACY in self.limits:
            raise ValueError("limit the accuracy by max_loss")
        if not all(limit > 0 for limit in self.limits.values()):
            raise ValueError("limits must be positive")

    def loss(self, kept: Mapping[str, int]) -> float:
        """Return the predicted loss of accuracy of an assignment of levels."""
        return math.fsum(
            group.accuracy_loss[group.levels.index(kept[group.group_id])] for group in self.groups
        )

    def costs(self, kept: Mapping[str, int]) -> dict[Quantity, float]:
        """Return the exact costs of an assignment, whether its numbers are levels or not."""
        totals = {quantity: self.fixed_costs.get(quantity, 0.0) for quantity in COST_QUANTITIES}
        for node in self.nodes:
            shares = node.cost_at(kept)
            for quantity in SUMMED_QUANTITIES:
                totals[quantity] += shares.get(quantity, 0.0)
        totals[Quantity.RAM] = self.peak_bytes(kept)
        return totals

    def peak_bytes(self, kept: Mapping[str, int]) -> float:
        """Return the RAM of an assignment of levels (bytes)."""
        in_use = max((row.in_use(kept) for row in self.memory), default=0.0)
        return self.fixed_costs.get(Quantity.RAM, 0.0) + in_use

    def excess(self, loss: float, costs: Mapping[Quantity, float]) -> dict[Quantity, float]:
        """Return how far beyond its limit each missed quantity is, relative to the limit.

        ACCURACY stands for `max_loss`; its excess is absolute, since that limit may be 0.
        """
        missed = {
            quantity: costs[quantity] / limit - 1.0
            for quantity, limit in self.limits.items()
            if costs[quantity] > limit * (1.0 + EXCESS_TOLERANCE)
        }
        if self.max_loss is not None and loss > self.max_loss + EXCESS_TOLERANCE:
            missed[Quantity.ACCURACY] = loss - self.max_loss
        return missed


class SolutionStatus(enum.StrEnum):
    """How good a solution is."""

    OPTIMAL = "optimal"
    """Within the asked gap of the best (of the interpolated model, where sums were too many)."""
    FEASIBLE = "feasible"
    """Meets all limits; the time limit ended the search for better ones."""
    INFEASIBLE = "infeasible"
    """Proven: no assignment meets all limits."""
    UNKNOWN = "unknown"
    """The time limit ended the search with neither a solution nor a proof."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Units kept per group, with predicted loss and exact costs; empty when there is none."""

    status: SolutionStatus
    kept: Mapping[str, int] = field(default_factory=dict)
    predicted_loss: float = math.inf
    costs: Mapping[Quantity, float] = field(default_factory=dict)

    @property
    def is_feasible(self) -> bool:
        """Whether there is an assignment that meets all limits."""
        return self.status in (SolutionStatus.OPTIMAL, SolutionStatus.FEASIBLE)
