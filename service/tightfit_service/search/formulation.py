"""Which widths to keep, as a mixed-integer program over the whole budget at once, and its solution.

The program, after the multiple-choice knapsack of hardware-aware latency pruning (Shen et al., NeurIPS
2022), but with both sides of a convolution as variables:

1. z[g, l]: group g keeps its l-th level; binary, one level per group.
2. d[a, v]: axis a (a distinct sum of groups, see `widths`) has value v. For one group this is z
   itself. A sum of several is built up one group at a time: of the pairs (value of the sum so far,
   level of the next group), which step 3 makes variables, those that add up to v weigh d[a, v]. So
   d is integral wherever z is, and the relaxation is that of a path, which is tight. Axes with too
   many reachable sums have grid points instead; a sum in between is shared by its two neighbours,
   and costs there are interpolated.
3. x[p, u, v]: the two axes of a node have values u and v; continuous, with marginals d. Because the
   marginals are integral, x is too. Its cost is the emulator's own figure for that pair of widths,
   so no cost needs to be linear. Nodes on the same two axes share one x and one cost table.
4. y[n, l, u, v]: node n is computed in the way of level l while its axes have values u and v; bounded
   by x[u, v] and adding up to z[n, l], which makes it integral with them. It costs what that way
   costs more, or less, than the ordinary one.
5. Peak RAM: one row per schedule point, linear in the units kept; dominated rows are left out.

Solutions are evaluated again with the exact costs; one that misses a limit (by interpolation or by
the solver's tolerance) is cut off and the program solved again, so what is returned always fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.trial import COST_QUANTITIES
from tightfit_service.search.milp import Columns, LinearProgram, Vector
from tightfit_service.search.problem import (
    EXCESS_TOLERANCE,
    SUMMED_QUANTITIES,
    CompressionProblem,
    GroupChoice,
    MemoryRow,
    NodeChoice,
)
from tightfit_service.search.widths import Axis, AxisValues, axis_values, on_axis


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A linear expression of the program: constant + sum(coefficients * columns)."""

    columns: Columns
    coefficients: Vector
    constant: float


@dataclass(frozen=True, kw_only=True)
class _PartialSum:
    """An axis as `rest_scale * rest + last_scale * last`, where `last` is a single group."""

    rest: Axis
    rest_scale: int
    last: Axis
    last_scale: int


_Plane = tuple[Axis, Axis]


@dataclass(frozen=True, kw_only=True)
class _Detour:
    """The other ways to compute a node, against the ordinary one.

    `at` is the plane or line that the node's cost was tabulated on, None where it has fixed widths.
    `extra[quantity]` has one row per level of `levels`, over the points of that plane or line.
    """

    option_id: str
    levels: tuple[int, ...]
    at: _Plane | Axis | None
    extra: Mapping[Quantity, Vector]


class Formulation:
    """Cost tables of a problem, made once, and the programs for any limits and objective on them."""

    def __init__(self, problem: CompressionProblem) -> None:
        self._levels = {group.group_id: group.levels for group in problem.groups}
        self._fixed = {q: problem.fixed_costs.get(q, 0.0) for q in COST_QUANTITIES}
        self._axes: dict[Axis, AxisValues] = {}
        self._lines: dict[Axis, dict[Quantity, Vector]] = {}
        self._planes: dict[_Plane, dict[Quantity, Vector]] = {}
        self._sums: dict[Axis, _PartialSum] = {}
        self._detours: list[_Detour] = []
        for node in problem.nodes:
            self._tabulate(node)
            if node.alternatives:
                self._detours.append(self._detour(node))
        self._memory = _memory_rows(problem.memory)

    @property
    def is_exact(self) -> bool:
        """Whether no cost is interpolated."""
        return all(table.exact for table in self._axes.values())

    def _tabulate(self, node: NodeChoice) -> None:
        """Add a node's costs to the table of its pair of axes."""
        inner, outer = on_axis(node.input_width), on_axis(node.output_width)
        if inner.axis is None and outer.axis is None:
            for quantity, amount in node.cost(inner.fixed, outer.fixed).items():
                if quantity in SUMMED_QUANTITIES:
                    self._fixed[quantity] += amount
            return
        for axis in (inner.axis, outer.axis):
            if axis is not None:
                self._register(axis)
        if inner.axis is None or outer.axis is None or inner.axis == outer.axis:
            axis = inner.axis or outer.axis
            assert axis is not None
            line = [
                node.cost(inner.channels(value), outer.channels(value))
                for value in self._axes[axis].values
            ]
            _accumulate(self._lines.setdefault(axis, {}), line, (len(line),))
            return
        rows, columns = self._axes[inner.axis].values, self._axes[outer.axis].values
        plane = [node.cost(inner.channels(u), outer.channels(v)) for u in rows for v in columns]
        key, shape = (inner.axis, outer.axis), (len(rows), len(columns))
        # Both directions between two axes (the halves of a residual block) share their variables.
        if (outer.axis, inner.axis) in self._planes:
            flipped: dict[Quantity, Vector] = {}
            _accumulate(flipped, plane, shape)
            table = self._planes[outer.axis, inner.axis]
            for quantity, amounts in flipped.items():
                table[quantity] = table[quantity] + amounts.T
            return
        _accumulate(self._planes.setdefault(key, {}), plane, shape)

    def _detour(self, node: NodeChoice) -> _Detour:
        """Return what the other ways of a node that has been tabulated cost beyond the ordinary one."""
        inner, outer = on_axis(node.input_width), on_axis(node.output_width)
        at: _Plane | Axis | None
        if inner.axis is None and outer.axis is None:
            at, points = None, [(inner.fixed, outer.fixed)]
        elif inner.axis is None or outer.axis is None or inner.axis == outer.axis:
            at = inner.axis or outer.axis
            assert at is not None
            points = [(inner.channels(v), outer.channels(v)) for v in self._axes[at].values]
        else:
            rows, columns = self._axes[inner.axis].values, self._axes[outer.axis].values
            at = (inner.axis, outer.axis)
            if at in self._planes:
                points = [(inner.channels(u), outer.channels(v)) for u in rows for v in columns]
            else:
                at = (outer.axis, inner.axis)
                points = [(inner.channels(u), outer.channels(v)) for v in columns for u in rows]
        ordinary = [node.cost(*point) for point in points]
        levels = tuple(sorted(node.alternatives))
        extra = {
            quantity: np.array(
                [
                    [
                        node.alternatives[level](*point).get(quantity, 0.0)
                        - base.get(quantity, 0.0)
                        for point, base in zip(points, ordinary, strict=True)
                    ]
                    for level in levels
                ]
            )
            for quantity in SUMMED_QUANTITIES
        }
        return _Detour(option_id=node.option_id, levels=levels, at=at, extra=extra)

    def _detour_columns(
        self,
        program: LinearProgram,
        detour: _Detour,
        levels: Mapping[str, Columns],
        weights: Mapping[Axis, Columns],
        planes: Mapping[_Plane, Columns],
    ) -> Columns:
        """Return the columns of all ways and points of a node, way by way."""
        chosen = levels[detour.option_id]
        steps = self._levels[detour.option_id]
        ways = np.array([chosen[steps.index(level)] for level in detour.levels], dtype=np.int64)
        if detour.at is None:
            return ways
        points = weights[detour.at] if isinstance(detour.at, Axis) else planes[detour.at]
        columns = program.add_columns(len(ways) * len(points), integral=False)
        square = columns.reshape(len(ways), len(points))
        for way, members in zip(ways, square, strict=True):
            row = np.append(np.ones(len(members)), -1.0)
            program.add_row(np.append(members, way), row, low=0.0, high=0.0)
        for point, members in zip(points, square.T, strict=True):
            row = np.append(np.ones(len(members)), -1.0)
            program.add_row(np.append(members, point), row, high=0.0)
        return columns

    def _register(self, axis: Axis) -> None:
        """Make the table of an axis, and those of the sums that lead up to it, which come first."""
        if axis in self._axes:
            return
        values = axis_values(axis, self._levels)
        if axis.single_group is None:
            partial = self._partial_sum(axis)
            self._sums[axis] = partial
            key = (partial.rest, partial.last)
            if key not in self._planes and key[::-1] not in self._planes:
                shape = tuple(len(self._axes[part].values) for part in key)
                self._planes[key] = {quantity: np.zeros(shape) for quantity in SUMMED_QUANTITIES}
        self._axes[axis] = values

    def _partial_sum(self, axis: Axis) -> _PartialSum:
        """Return a sum split into one group and the rest, a rest that is there already if possible."""
        splits = []
        for index, (group, multiplier) in enumerate(axis.terms):
            rest = axis.terms[:index] + axis.terms[index + 1 :]
            scale = math.gcd(*(other for _, other in rest))
            splits.append(
                _PartialSum(
                    rest=Axis(terms=tuple((name, other // scale) for name, other in rest)),
                    rest_scale=scale,
                    last=Axis(terms=((group, 1),)),
                    last_scale=multiplier,
                )
            )
        known = [split for split in splits if split.rest in self._axes]
        chosen = known[0] if known else splits[-1]
        self._register(chosen.rest)
        self._register(chosen.last)
        return chosen

    def program(
        self,
        problem: CompressionProblem,
        limits: Mapping[Quantity, float],
        forbidden: Sequence[Mapping[str, int]] = (),
    ) -> tuple[LinearProgram, dict[str, Columns]]:
        """Return the program and, per group, the columns of its levels.

        Args:
            problem: Gives the losses, the objective and `max_loss`; its nodes must be those tabulated.
            limits: Maxima of cost quantities, which may be tighter than the problem's own.
            forbidden: Assignments that must not come out again.
        """
        program = LinearProgram()
        levels = {
            group: program.add_columns(len(choices), integral=True)
            for group, choices in self._levels.items()
        }
        for columns in levels.values():
            program.add_row(columns, np.ones(len(columns)), low=1.0, high=1.0)
        weights, planes = self._width_columns(program, levels)
        detours = [
            self._detour_columns(program, detour, levels, weights, planes)
            for detour in self._detours
        ]
        sums = {q: self._summed(q, weights, planes, detours) for q in SUMMED_QUANTITIES}
        loss = _loss_of(problem.groups, levels)
        for quantity, limit in limits.items():
            rows = [sums[quantity]] if quantity in sums else self._peak_rows(levels)
            for row in rows:
                _limit(program, row, limit)
        if problem.max_loss is not None:
            unit = max(1e-9, float(np.abs(loss.coefficients).max(initial=0.0)))
            program.add_row(
                loss.columns, loss.coefficients / unit, high=problem.max_loss / unit + 1e-9
            )
        self._set_objective(program, problem.objective, {**sums, Quantity.ACCURACY: loss}, levels)
        for kept in forbidden:
            chosen = [
                int(columns[self._levels[group].index(kept[group])])
                for group, columns in levels.items()
            ]
            program.add_row(chosen, np.ones(len(chosen)), high=len(chosen) - 1)
        return program, levels

    def _width_columns(
        self, program: LinearProgram, levels: Mapping[str, Columns]
    ) -> tuple[dict[Axis, Columns], dict[_Plane, Columns]]:
        """Return the columns that weigh the values of each axis, and of each pair of axes."""
        weights: dict[Axis, Columns] = {}
        planes: dict[_Plane, Columns] = {}
        for axis, table in self._axes.items():
            if axis.single_group is not None:
                weights[axis] = levels[axis.single_group]
                continue
            partial = self._sums[axis]
            key = (partial.rest, partial.last)
            if key not in self._planes:
                key = key[::-1]
            if key not in planes:
                planes[key] = self._plane_columns(program, key, weights)
            pairs = planes[key].reshape(len(weights[key[0]]), len(weights[key[1]]))
            if key[0] != partial.rest:
                pairs = pairs.T
            rest, last = self._axes[partial.rest].values, self._axes[partial.last].values
            sums = np.add.outer(
                partial.rest_scale * np.array(rest), partial.last_scale * np.array(last)
            )
            weights[axis] = _weigh(program, table, pairs.ravel(), sums.ravel())
        for key in self._planes:
            if key not in planes:
                planes[key] = self._plane_columns(program, key, weights)
        return weights, planes

    def _plane_columns(
        self, program: LinearProgram, key: _Plane, weights: Mapping[Axis, Columns]
    ) -> Columns:
        """Return the columns of all pairs of values, row by row, with the axes' weights as marginals."""
        rows, columns = weights[key[0]], weights[key[1]]
        pairs = program.add_columns(len(rows) * len(columns), integral=False)
        square = pairs.reshape(len(rows), len(columns))
        for weight, members in [
            *zip(rows, square, strict=True),
            *zip(columns, square.T, strict=True),
        ]:
            ones = np.ones(len(members) + 1)
            ones[-1] = -1.0
            program.add_row(np.append(members, weight), ones, low=0.0, high=0.0)
        return pairs

    def _summed(
        self,
        quantity: Quantity,
        weights: Mapping[Axis, Columns],
        planes: Mapping[_Plane, Columns],
        detours: Sequence[Columns],
    ) -> _Sum:
        """Return a cost that adds up over nodes."""
        columns = [weights[axis] for axis in self._lines] + [planes[key] for key in self._planes]
        columns += detours
        tables: list[Mapping[Quantity, Vector]] = [*self._lines.values(), *self._planes.values()]
        tables += [detour.extra for detour in self._detours]
        return _Sum(
            columns=np.concatenate(columns) if columns else np.empty(0, dtype=np.int64),
            coefficients=np.concatenate([table[quantity].ravel() for table in tables])
            if tables
            else np.empty(0),
            constant=self._fixed[quantity],
        )

    def _peak_rows(self, levels: Mapping[str, Columns]) -> list[_Sum]:
        """Return the bytes in use per schedule point that can be the peak."""
        rows = []
        for constant, slopes in self._memory:
            involved = [group for group, slope in slopes.items() if slope]
            rows.append(
                _Sum(
                    columns=np.concatenate(
                        [levels[group] for group in involved] or [np.empty(0, dtype=np.int64)]
                    ),
                    coefficients=np.concatenate(
                        [slopes[g] * np.array(self._levels[g], dtype=np.float64) for g in involved]
                        or [np.empty(0)]
                    ),
                    constant=constant + self._fixed[Quantity.RAM],
                )
            )
        return rows

    def _set_objective(
        self,
        program: LinearProgram,
        objective: Quantity,
        sums: Mapping[Quantity, _Sum],
        levels: Mapping[str, Columns],
    ) -> None:
        """Minimise the objective, scaled so that HiGHS's absolute tolerances are far below it."""
        if objective is not Quantity.RAM:
            wanted = sums[objective]
            unit = float(np.abs(wanted.coefficients).max(initial=0.0)) or 1.0
            program.add_cost(wanted.columns, wanted.coefficients * (1e3 / unit))
            return
        rows = self._peak_rows(levels)
        unit = max(
            (abs(row.constant) + float(np.abs(row.coefficients).sum()) for row in rows), default=1.0
        )
        (peak,) = program.add_columns(1, integral=False, upper=np.inf)
        program.add_cost([peak], [1e3])
        for row in rows:
            program.add_row(
                np.append(row.columns, peak),
                np.append(row.coefficients / unit, -1.0),
                high=-row.constant / unit,
            )


def _weigh(
    program: LinearProgram, table: AxisValues, pairs: Columns, sums: npt.NDArray[np.int64]
) -> Columns:
    """Add the columns of an axis: each pair adds its weight to the value its sum is, or lies between."""
    values = np.array(table.values, dtype=np.float64)
    weights = program.add_columns(len(values), integral=False)
    above = np.searchsorted(values, sums)
    below = np.maximum(above - 1, 0)
    span = values[above] - values[below]
    share_above = np.where(span > 0, (sums - values[below]) / np.where(span > 0, span, 1.0), 1.0)
    for index, weight in enumerate(weights):
        share = np.where(above == index, share_above, 0.0)
        share += np.where((below == index) & (above != index), 1.0 - share_above, 0.0)
        members = np.flatnonzero(share)
        program.add_row(
            np.append(pairs[members], weight), np.append(share[members], -1.0), low=0.0, high=0.0
        )
    return weights


def _accumulate(
    table: dict[Quantity, Vector],
    costs: Sequence[Mapping[Quantity, float]],
    shape: tuple[int, ...],
) -> None:
    for quantity in SUMMED_QUANTITIES:
        amounts = np.array([cost.get(quantity, 0.0) for cost in costs]).reshape(shape)
        table[quantity] = table[quantity] + amounts if quantity in table else amounts


def _loss_of(groups: Sequence[GroupChoice], levels: Mapping[str, Columns]) -> _Sum:
    if not groups:
        return _Sum(columns=np.empty(0, dtype=np.int64), coefficients=np.empty(0), constant=0.0)
    return _Sum(
        columns=np.concatenate([levels[group.group_id] for group in groups]),
        coefficients=np.concatenate([np.array(group.accuracy_loss) for group in groups]),
        constant=0.0,
    )


def _limit(program: LinearProgram, row: _Sum, limit: float) -> None:
    """Demand that a sum stays within a limit; the row is scaled to the limit."""
    program.add_row(
        row.columns,
        row.coefficients / limit,
        high=(limit - row.constant) / limit + EXCESS_TOLERANCE,
    )


def _memory_rows(memory: Sequence[MemoryRow]) -> list[tuple[float, dict[str, float]]]:
    """Return memory rows as constant and slope per group, those that never are the peak left out."""
    linear: list[tuple[float, dict[str, float]]] = []
    for row in memory:
        constant, slopes = row.fixed_bytes, dict[str, float]()
        for width, bytes_per_channel in row.tensors:
            constant += width.fixed * bytes_per_channel
            for term in width.terms:
                slope = term.multiplier * bytes_per_channel
                slopes[term.group_id] = slopes.get(term.group_id, 0.0) + slope
        linear.append((constant, slopes))
    kept: list[tuple[float, dict[str, float]]] = []
    for row_ in sorted(linear, key=lambda item: (item[0], sum(item[1].values())), reverse=True):
        if not any(_dominates(other, row_) for other in kept):
            kept.append(row_)
    return kept


def _dominates(one: tuple[float, dict[str, float]], other: tuple[float, dict[str, float]]) -> bool:
    return one[0] >= other[0] and all(
        one[1].get(group, 0.0) >= slope for group, slope in other[1].items()
    )
