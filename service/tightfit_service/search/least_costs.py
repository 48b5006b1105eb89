"""How little each cost can come to alone: what the narrowest network costs, and what none falls below.

The two are the same where no cost falls as widths grow. Some do: a device works on whole tiles of channels,
and one channel more may fill a tile that was padded before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.network import Width
from tightfit_service.search.problem import (
    SUMMED_QUANTITIES,
    CompressionProblem,
    Cost,
    NodeChoice,
)
from tightfit_service.search.widths import on_axis, reachable_values

MAX_POINTS = 4096
"""Pairs of widths of one node that are tried for its least cost; one with more counts as free."""

_Costs = Mapping[Quantity, float]


def narrowest_costs(problem: CompressionProblem) -> Mapping[Quantity, float]:
    """Return what the network costs with every group of channels at its lowest level.

    Each quantity for itself: nodes are computed in the way that is cheapest by that quantity.
    """
    lowest = {group.group_id: group.levels[0] for group in problem.groups}

    def at_lowest(node: NodeChoice, cost: Cost) -> _Costs:
        return cost(node.input_width.channels(lowest), node.output_width.channels(lowest))

    return _cheapest(problem, at_lowest)


def least_bounds(problem: CompressionProblem) -> Mapping[Quantity, float]:
    """Return what no assignment of levels costs less than: every node for itself at its cheapest widths."""
    levels = {group.group_id: group.levels for group in problem.groups}

    def at_best(node: NodeChoice, cost: Cost) -> _Costs:
        points = _points(node, levels)
        if points is None:
            return {}
        found = [cost(*point) for point in points]
        return {q: min(costs.get(q, 0.0) for costs in found) for q in SUMMED_QUANTITIES}

    return _cheapest(problem, at_best)


def _cheapest(
    problem: CompressionProblem, cost_of: Callable[[NodeChoice, Cost], _Costs]
) -> dict[Quantity, float]:
    """Return the sum over nodes of what each costs, in the ways that are cheapest by each quantity.

    Nodes may share the group that their way is chosen by. RAM, which never falls with width, is that of the
    narrowest network.
    """
    lowest = {group.group_id: group.levels[0] for group in problem.groups}
    least = {Quantity.RAM: problem.peak_bytes(lowest)}
    levels = {group.group_id: group.levels for group in problem.groups}
    always = [cost_of(node, node.cost) for node in problem.nodes if not node.option_id]
    by_option: dict[str, dict[int, list[_Costs]]] = {}
    for node in problem.nodes:
        if node.option_id:
            ways = by_option.setdefault(node.option_id, {})
            for level in levels[node.option_id]:
                ways.setdefault(level, []).append(cost_of(node, node.cost_of_way(level)))
    for quantity in SUMMED_QUANTITIES:
        chosen = [
            min(_total(costs, quantity) for costs in ways.values()) for ways in by_option.values()
        ]
        fixed = problem.fixed_costs.get(quantity, 0.0)
        least[quantity] = fixed + _total(always, quantity) + sum(chosen)
    return least


def _total(costs: Iterable[_Costs], quantity: Quantity) -> float:
    return sum(cost.get(quantity, 0.0) for cost in costs)


def _points(node: NodeChoice, levels: Mapping[str, Sequence[int]]) -> list[tuple[int, int]] | None:
    """Return the pairs of widths that a node can have, if not with others', or None if they are too many."""
    inner, outer = on_axis(node.input_width), on_axis(node.output_width)
    if inner.axis is not None and inner.axis == outer.axis:
        values = reachable_values(inner.axis, levels, at_most=MAX_POINTS)
        if values is None:
            return None
        return [(inner.channels(value), outer.channels(value)) for value in values]
    ins, outs = _channels(node.input_width, levels), _channels(node.output_width, levels)
    if ins is None or outs is None or len(ins) * len(outs) > MAX_POINTS:
        return None
    return list(itertools.product(ins, outs))


def _channels(width: Width, levels: Mapping[str, Sequence[int]]) -> list[int] | None:
    """Return the channels that a width can have, or None if they are too many."""
    scaled = on_axis(width)
    if scaled.axis is None:
        return [scaled.fixed]
    values = reachable_values(scaled.axis, levels, at_most=MAX_POINTS)
    return None if values is None else [scaled.channels(value) for value in values]
