"""The costs of a compression problem as tables over the widths that the solver chooses among.

A node's cost depends on two widths. Where both are fixed it is one figure; where one varies, or both
along the same axis (see `widths`), it is a *line* of figures over the values of that axis; where they
vary along two axes it is a *plane* over the pairs of their values. Nodes in the same place share one
table, which holds the sum of their costs: a network of a hundred nodes has a dozen tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.trial import COST_QUANTITIES
from tightfit_service.search.milp import Vector
from tightfit_service.search.problem import (
    SUMMED_QUANTITIES,
    CompressionProblem,
    MemoryRow,
    NodeChoice,
)
from tightfit_service.search.widths import Axis, AxisValues, axis_values, on_axis

Plane = tuple[Axis, Axis]
Place = Plane | Axis | None
"""Where a cost is tabulated: a plane, a line, or nowhere because the widths are fixed."""

_Points = list[tuple[int, int]]
"""Numbers of input and output channels of a node, over all of its place."""


@dataclass(frozen=True, kw_only=True)
class PartialSum:
    """An axis of several groups as `rest_scale * rest + last_scale * last`, where `last` is one group."""

    rest: Axis
    rest_scale: int
    last: Axis
    last_scale: int

    @property
    def plane(self) -> Plane:
        """The pairs of values that the axis' own values are the sums of."""
        return self.rest, self.last


@dataclass(frozen=True, kw_only=True)
class NodeAlternatives:
    """The other ways to compute a node, against the ordinary one.

    `extra[quantity]` has one row per level of `levels`, over the points of the node's place `at`.
    """

    option_id: str
    levels: tuple[int, ...]
    at: Place
    extra: Mapping[Quantity, Vector]


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """Bytes in use at a point of the schedule: a constant and bytes per kept unit of each group."""

    constant: float
    slopes: Mapping[str, float]

    def dominates(self, other: MemoryLine) -> bool:
        """Whether it is at least the other, whatever is kept."""
        return self.constant >= other.constant and all(
            self.slopes.get(group, 0.0) >= slope for group, slope in other.slopes.items()
        )


class CostTables:
    """The costs of one problem. Not changed once made.

    Attributes:
        levels: Per group, the numbers of units that may be kept.
        fixed: Per cost quantity, what no choice changes.
        axes: The values of each axis; an axis stands behind those that its sum is built from.
        sums: How axes of several groups are built up.
        lines: Tables over one axis, by quantity: one figure per value.
        planes: Tables over two axes, by quantity: one row per value of the first. A plane of zeros is
            there for a sum only.
        alternatives: The other ways to compute nodes that have some.
        memory: Points of the schedule that can be the peak.
    """

    def __init__(self, problem: CompressionProblem) -> None:
        """Tabulate the costs; calls those of every node once per pair of widths."""
        self.levels = {group.group_id: group.levels for group in problem.groups}
        self.fixed = {q: problem.fixed_costs.get(q, 0.0) for q in COST_QUANTITIES}
        self.axes: dict[Axis, AxisValues] = {}
        self.sums: dict[Axis, PartialSum] = {}
        self.lines: dict[Axis, dict[Quantity, Vector]] = {}
        self.planes: dict[Plane, dict[Quantity, Vector]] = {}
        self.alternatives: list[NodeAlternatives] = []
        for node in problem.nodes:
            self._tabulate(node)
        self.memory = _peaks(problem.memory)

    def oriented(self, plane: Plane) -> Plane:
        """Return the plane as it is tabulated: it may be there the other way round."""
        return plane[::-1] if plane[::-1] in self.planes else plane

    def _tabulate(self, node: NodeChoice) -> None:
        """Add a node's costs to the table of its place."""
        at, points = self._place(node)
        costs = [node.cost(*point) for point in points]
        if at is None:
            for quantity in SUMMED_QUANTITIES:
                self.fixed[quantity] += costs[0].get(quantity, 0.0)
        elif isinstance(at, Axis):
            _add(self.lines.setdefault(at, {}), costs, (len(costs),))
        else:
            shape = (len(self.axes[at[0]].values), len(self.axes[at[1]].values))
            _add(self.planes.setdefault(at, {}), costs, shape)
        if node.alternatives:
            self.alternatives.append(_alternatives(node, at, points, costs))

    def _place(self, node: NodeChoice) -> tuple[Place, _Points]:
        """Return where a node's cost is tabulated, and its channels at the points there, row by row."""
        inner, outer = on_axis(node.input_width), on_axis(node.output_width)
        for axis in (inner.axis, outer.axis):
            if axis is not None:
                self._register(axis)
        if inner.axis is None or outer.axis is None or inner.axis == outer.axis:
            at = inner.axis or outer.axis
            if at is None:
                return None, [(inner.fixed, outer.fixed)]
            values = self.axes[at].values
            return at, [(inner.channels(value), outer.channels(value)) for value in values]
        rows, columns = self.axes[inner.axis].values, self.axes[outer.axis].values
        plane = (inner.axis, outer.axis)
        # both directions between two axes, as in the halves of a residual block, share their table
        if self.oriented(plane) == plane:
            return plane, [(inner.channels(u), outer.channels(v)) for u in rows for v in columns]
        return plane[::-1], [(inner.channels(u), outer.channels(v)) for v in columns for u in rows]

    def _register(self, axis: Axis) -> None:
        """Make the values of an axis, and those of the sums that lead up to it, which come first."""
        if axis in self.axes:
            return
        values = axis_values(axis, self.levels)
        if axis.single_group is None:
            partial = self._partial_sum(axis)
            self.sums[axis] = partial
            plane = self.oriented(partial.plane)
            if plane not in self.planes:
                shape = tuple(len(self.axes[part].values) for part in plane)
                self.planes[plane] = {quantity: np.zeros(shape) for quantity in SUMMED_QUANTITIES}
        self.axes[axis] = values

    def _partial_sum(self, axis: Axis) -> PartialSum:
        """Return a sum split into one group and the rest, a rest that is there already if possible."""
        splits = []
        for index, (group, multiplier) in enumerate(axis.terms):
            rest = axis.terms[:index] + axis.terms[index + 1 :]
            scale = math.gcd(*(other for _, other in rest))
            splits.append(
                PartialSum(
                    rest=Axis(terms=tuple((name, other // scale) for name, other in rest)),
                    rest_scale=scale,
                    last=Axis(terms=((group, 1),)),
                    last_scale=multiplier,
                )
            )
        known = [split for split in splits if split.rest in self.axes]
        chosen = known[0] if known else splits[-1]
        self._register(chosen.rest)
        self._register(chosen.last)
        return chosen


def _alternatives(
    node: NodeChoice, at: Place, points: _Points, ordinary: Sequence[Mapping[Quantity, float]]
) -> NodeAlternatives:
    """Return what the other ways of a node cost beyond the ordinary one, at each of its points."""
    levels = tuple(sorted(node.alternatives))
    extra = {
        quantity: np.array(
            [
                [
                    node.alternatives[level](*point).get(quantity, 0.0) - base.get(quantity, 0.0)
                    for point, base in zip(points, ordinary, strict=True)
                ]
                for level in levels
            ]
        )
        for quantity in SUMMED_QUANTITIES
    }
    return NodeAlternatives(option_id=node.option_id, levels=levels, at=at, extra=extra)


def _add(
    table: dict[Quantity, Vector],
    costs: Sequence[Mapping[Quantity, float]],
    shape: tuple[int, ...],
) -> None:
    """Add costs, point by point, to a table that may be empty yet."""
    for quantity in SUMMED_QUANTITIES:
        amounts = np.array([cost.get(quantity, 0.0) for cost in costs]).reshape(shape)
        table[quantity] = table[quantity] + amounts if quantity in table else amounts


def _peaks(memory: Sequence[MemoryRow]) -> list[MemoryLine]:
    """Return what is in use per point of the schedule, points that never are the peak left out."""
    lines = []
    for row in memory:
        constant, slopes = row.fixed_bytes, dict[str, float]()
        for width, bytes_per_channel in row.tensors:
            constant += width.fixed * bytes_per_channel
            for term in width.terms:
                slope = term.multiplier * bytes_per_channel
                slopes[term.group_id] = slopes.get(term.group_id, 0.0) + slope
        lines.append(MemoryLine(constant=constant, slopes=slopes))
    kept: list[MemoryLine] = []
    for line in sorted(
        lines, key=lambda item: (item.constant, sum(item.slopes.values())), reverse=True
    ):
        if not any(other.dominates(line) for other in kept):
            kept.append(line)
    return kept
