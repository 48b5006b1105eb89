"""Which widths to keep, as a mixed-integer program over the whole budget at once.

The program, after the multiple-choice knapsack of hardware-aware latency pruning (Shen et al., NeurIPS
2022), but with both sides of a convolution as variables:

1. z[g, l]: group g keeps its l-th level; binary, one level per group.
2. d[a, v]: axis a (a distinct sum of groups, see `widths`) has value v. For one group this is z
   itself. A sum of several is built up one group at a time: of the pairs (value of the sum so far,
   level of the next group), which step 3 makes variables, those that add up to v weigh d[a, v]. So
   d is integral wherever z is, and the relaxation is that of a path, which is tight. Axes with too
   many reachable sums have grid points instead; a sum in between is shared by its two neighbours,
   and costs there are interpolated.
3. x[p, u, v]: the two axes of a plane p (see `cost_tables`) have values u and v; continuous, with
   marginals d. Because the marginals are integral, x is too. Its cost is the emulator's own figure for
   that pair of widths, so no cost needs to be linear.
4. y[n, l, u, v]: node n is computed in the way of level l while its axes have values u and v; bounded
   by x[u, v] and adding up to z[n, l], which makes it integral with them. It costs what that way
   costs more, or less, than the ordinary one.
5. Limits and the objective are sums over these columns. Peak RAM: one row per point of the schedule,
   linear in the units kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.budget import Quantity
from tightfit_service.search.cost_tables import CostTables, NodeAlternatives, Plane
from tightfit_service.search.milp import Columns, LinearProgram, Vector
from tightfit_service.search.problem import (
    EXCESS_TOLERANCE,
    SUMMED_QUANTITIES,
    CompressionProblem,
    GroupChoice,
)
from tightfit_service.search.widths import Axis, AxisValues

_OBJECTIVE_SCALE = 1e3
"""Greatest coefficient of an objective."""

_NO_COLUMNS: Columns = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A linear expression of the program: constant + sum(coefficients * columns)."""

    columns: Columns
    coefficients: Vector
    constant: float


class Formulation:
    """Makes the programs of one problem for any limits and objective; its costs are tabulated once."""

    def __init__(self, problem: CompressionProblem) -> None:
        """Tabulate the costs of the problem's nodes."""
        self._tables = CostTables(problem)

    @property
    def is_exact(self) -> bool:
        """Whether no cost is interpolated."""
        return all(values.exact for values in self._tables.axes.values())

    def program(
        self,
        problem: CompressionProblem,
        limits: Mapping[Quantity, float],
        forbidden: Sequence[Mapping[str, int]] = (),
    ) -> tuple[LinearProgram, Mapping[str, Columns]]:
        """Return the program and, per group, the columns of its levels.

        Args:
            problem: Gives the losses, the objective and `max_loss`; its nodes must be those tabulated.
            limits: Maxima of cost quantities, which may be tighter than the problem's own.
            forbidden: Assignments that must not come out again.
        """
        variables = _Variables(self._tables)
        sums = {quantity: variables.summed(quantity) for quantity in SUMMED_QUANTITIES}
        peaks = variables.peaks()
        loss = variables.loss(problem.groups)
        for quantity, limit in limits.items():
            for row in [sums[quantity]] if quantity in sums else peaks:
                _limit(variables.program, row, limit)
        if problem.max_loss is not None:
            _limit_loss(variables.program, loss, problem.max_loss)
        if problem.objective is Quantity.RAM:
            _minimise_greatest(variables.program, peaks)
        else:
            costs = {**sums, Quantity.ACCURACY: loss}
            _minimise(variables.program, costs[problem.objective])
        for kept in forbidden:
            variables.forbid(kept)
        return variables.program, variables.levels


class _Variables:
    """The variables of a program, with the rows that tie them to each other (steps 1 to 4 above).

    Attributes:
        program: Holds them.
        levels: The columns z, per group.
    """

    def __init__(self, tables: CostTables) -> None:
        self._tables = tables
        self.program = LinearProgram()
        self.levels: dict[str, Columns] = {
            group: self.program.add_columns(len(choices), integral=True)
            for group, choices in tables.levels.items()
        }
        for columns in self.levels.values():
            self.program.add_row(columns, np.ones(len(columns)), low=1.0, high=1.0)
        self._weights: dict[Axis, Columns] = {}
        self._planes: dict[Plane, Columns] = {}
        for axis, values in tables.axes.items():
            self._weights[axis] = self._weights_of(axis, values)
        for plane in tables.planes:
            self._pairs(plane)
        self._alternatives = [self._ways(other) for other in tables.alternatives]

    def _weights_of(self, axis: Axis, values: AxisValues) -> Columns:
        """Return the columns d of an axis, one per value."""
        if axis.single_group is not None:
            return self.levels[axis.single_group]
        partial = self._tables.sums[axis]
        plane = self._tables.oriented(partial.plane)
        pairs = self._pairs(plane)
        if plane != partial.plane:
            pairs = pairs.T
        rest, last = (np.array(self._tables.axes[part].values) for part in partial.plane)
        sums = np.add.outer(partial.rest_scale * rest, partial.last_scale * last)
        return _weigh(self.program, values, pairs.ravel(), sums.ravel())

    def _pairs(self, plane: Plane) -> Columns:
        """Return the columns x of a plane, one row per value of its first axis, made when first asked for."""
        if plane in self._planes:
            return self._planes[plane]
        rows, columns = (self._weights[axis] for axis in plane)
        pairs = self.program.add_columns(len(rows) * len(columns), integral=False)
        pairs = pairs.reshape(len(rows), len(columns))
        for weight, members in [
            *zip(rows, pairs, strict=True),
            *zip(columns, pairs.T, strict=True),
        ]:
            self._add_up(members, weight)
        self._planes[plane] = pairs
        return pairs

    def _ways(self, other: NodeAlternatives) -> Columns:
        """Return the columns y of all ways and points of a node, way by way."""
        chosen, steps = self.levels[other.option_id], self._tables.levels[other.option_id]
        ways = np.array([chosen[steps.index(level)] for level in other.levels], dtype=np.int64)
        if other.at is None:
            return ways
        at = other.at
        points = self._weights[at] if isinstance(at, Axis) else self._planes[at].ravel()
        columns = self.program.add_columns(len(ways) * len(points), integral=False)
        square = columns.reshape(len(ways), len(points))
        for way, members in zip(ways, square, strict=True):
            self._add_up(members, way)
        for point, members in zip(points, square.T, strict=True):
            self._add_up(members, point, at_most=True)
        return columns

    def _add_up(self, members: Columns, total: int, *, at_most: bool = False) -> None:
        """Demand that columns add up to another one, or to no more than it."""
        row = np.append(np.ones(len(members)), -1.0)
        low = -np.inf if at_most else 0.0
        self.program.add_row(np.append(members, total), row, low=low, high=0.0)

    def forbid(self, kept: Mapping[str, int]) -> None:
        """Demand that at least one group keeps another level than in `kept`."""
        chosen = [
            int(columns[self._tables.levels[group].index(kept[group])])
            for group, columns in self.levels.items()
        ]
        self.program.add_row(chosen, np.ones(len(chosen)), high=len(chosen) - 1)

    def summed(self, quantity: Quantity) -> _Sum:
        """Return a cost that adds up over nodes."""
        tables = self._tables
        columns = [self._weights[axis] for axis in tables.lines]
        columns += [self._planes[plane].ravel() for plane in tables.planes]
        columns += self._alternatives
        costs = [table[quantity] for table in (*tables.lines.values(), *tables.planes.values())]
        costs += [other.extra[quantity] for other in tables.alternatives]
        return _joined(columns, [cost.ravel() for cost in costs], tables.fixed[quantity])

    def peaks(self) -> list[_Sum]:
        """Return the bytes in use per point of the schedule that can be the peak."""
        rows = []
        for line in self._tables.memory:
            slopes = {group: slope for group, slope in line.slopes.items() if slope}
            units = {group: np.array(self._tables.levels[group], dtype=float) for group in slopes}
            rows.append(
                _joined(
                    [self.levels[group] for group in slopes],
                    [slope * units[group] for group, slope in slopes.items()],
                    line.constant + self._tables.fixed[Quantity.RAM],
                )
            )
        return rows

    def loss(self, groups: Sequence[GroupChoice]) -> _Sum:
        """Return the predicted loss of accuracy."""
        return _joined(
            [self.levels[group.group_id] for group in groups],
            [np.array(group.accuracy_loss) for group in groups],
            0.0,
        )


def _joined(columns: Sequence[Columns], coefficients: Sequence[Vector], constant: float) -> _Sum:
    return _Sum(
        columns=np.concatenate([_NO_COLUMNS, *columns]),
        coefficients=np.concatenate([np.empty(0), *coefficients]),
        constant=constant,
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


def _limit(program: LinearProgram, row: _Sum, limit: float) -> None:
    """Demand that a sum stays within a limit; the row is scaled to the limit."""
    program.add_row(
        row.columns,
        row.coefficients / limit,
        high=(limit - row.constant) / limit + EXCESS_TOLERANCE,
    )


def _limit_loss(program: LinearProgram, loss: _Sum, limit: float) -> None:
    """Demand that the loss stays within a limit, which may be 0; the row is scaled to its greatest term."""
    # where nothing loses anything the row is empty
    unit = max(1e-9, float(np.abs(loss.coefficients).max(initial=0.0)))
    program.add_row(loss.columns, loss.coefficients / unit, high=limit / unit + EXCESS_TOLERANCE)


def _minimise(program: LinearProgram, wanted: _Sum) -> None:
    """Minimise a sum, scaled so that HiGHS's absolute tolerances are far below it."""
    unit = float(np.abs(wanted.coefficients).max(initial=0.0)) or 1.0
    program.add_cost(wanted.columns, wanted.coefficients * (_OBJECTIVE_SCALE / unit))


def _minimise_greatest(program: LinearProgram, rows: Sequence[_Sum]) -> None:
    """Minimise the greatest of several sums, scaled likewise: a column that none may exceed."""
    unit = max(
        (abs(row.constant) + float(np.abs(row.coefficients).sum()) for row in rows), default=1.0
    )
    (greatest,) = program.add_columns(1, integral=False, upper=np.inf)
    program.add_cost([greatest], [_OBJECTIVE_SCALE])
    for row in rows:
        program.add_row(
            np.append(row.columns, greatest),
            np.append(row.coefficients / unit, -1.0),
            high=-row.constant / unit,
        )
