"""Solving compression problems: the best widths, ladders of tightened budgets, smallest relaxations.

Solutions are evaluated again with the exact costs; one that misses a limit (by interpolation or by
the solver's tolerance) is cut off and the program solved again, so what is returned always fits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tightfit_service.domain.budget import Quantity
from tightfit_service.search.formulation import Formulation
from tightfit_service.search.least_costs import least_bounds, narrowest_costs
from tightfit_service.search.milp import ProgramStatus
from tightfit_service.search.problem import (
    EXCESS_TOLERANCE,
    CompressionProblem,
    Solution,
    SolutionStatus,
)

DEFAULT_TIME_LIMIT_SECONDS = 20.0
DEFAULT_RELATIVE_GAP = 0.01

_LEAST_GAP = 1e-4
"""Relative gap of the least that a cost can be brought to."""
_MAX_CUT_ROUNDS = 40
_SOLVER_TOLERANCE = 2e-6
"""Relative excess that HiGHS may let through on a scaled row (its default is 1e-6)."""


def solve(
    problem: CompressionProblem,
    *,
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    relative_gap: float = DEFAULT_RELATIVE_GAP,
) -> Solution:
    """Return the best assignment of levels within all limits.

    Deterministic unless the time limit cuts the search short. The result always fits by exact cost.
    """
    return _solve(
        Formulation(problem),
        problem,
        time_limit_seconds=time_limit_seconds,
        relative_gap=relative_gap,
    )


def smallest_costs(
    problem: CompressionProblem, *, time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS
) -> Mapping[Quantity, float]:
    """Return how little each cost quantity can be brought to alone.

    What the narrowest network costs stands for that as long as it is within the limit. Where it is not, and
    some node is cheaper at other widths, the least is searched for; the time limit holds for each quantity.
    """
    least = dict(narrowest_costs(problem))
    missed = problem.excess(0.0, least)
    bounds = least_bounds(problem) if missed else least
    for quantity in missed:
        if bounds[quantity] < least[quantity] * (1.0 - EXCESS_TOLERANCE):
            alone = replace(problem, limits={}, objective=quantity, max_loss=None)
            found = solve(alone, time_limit_seconds=time_limit_seconds, relative_gap=_LEAST_GAP)
            least[quantity] = min(least[quantity], found.costs.get(quantity, math.inf))
    return least


def nearest(
    problem: CompressionProblem, *, time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS
) -> Mapping[str, int]:
    """Return the levels that come nearest to the limits of costs, by that which is missed most.

    They are the lowest of all, or those of the least cost of what these miss most.
    """
    lowest = {group.group_id: group.levels[0] for group in problem.groups}
    missed = problem.excess(0.0, problem.costs(lowest))
    if not missed:
        return lowest
    worst = max(missed, key=missed.__getitem__)
    alone = replace(problem, limits={}, objective=worst, max_loss=None)
    found = solve(alone, time_limit_seconds=time_limit_seconds, relative_gap=_LEAST_GAP)
    others = problem.excess(0.0, found.costs) if found.is_feasible else missed
    is_nearer = max(others.values(), default=0.0) < missed[worst]
    return found.kept if is_nearer else lowest


def smallest_relaxation(
    problem: CompressionProblem,
    quantity: Quantity,
    *,
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    relative_gap: float = DEFAULT_RELATIVE_GAP,
) -> float | None:
    """Return the least limit of `quantity` that would do, all other limits staying in force.

    For ACCURACY that is the least `max_loss`. None when the others cannot be met even then (or the
    time limit passes before a way is found).
    """
    others = {q: limit for q, limit in problem.limits.items() if q is not quantity}
    relaxed = replace(
        problem,
        limits=others,
        objective=quantity,
        max_loss=None if quantity is Quantity.ACCURACY else problem.max_loss,
    )
    solution = solve(relaxed, time_limit_seconds=time_limit_seconds, relative_gap=relative_gap)
    if not solution.is_feasible:
        return None
    if quantity is Quantity.ACCURACY:
        return solution.predicted_loss
    return solution.costs[quantity]


def ladder(
    problem: CompressionProblem,
    tightening: Sequence[float],
    *,
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    relative_gap: float = DEFAULT_RELATIVE_GAP,
) -> list[Solution]:
    """Return the feasible solutions for limits scaled by each factor, in that order, each only once.

    With a cost objective and a `max_loss`, that is scaled in their stead: it is then what shapes the
    solution. The time limit holds for each rung.
    """
    formulation = Formulation(problem)
    found: list[Solution] = []
    for factor in tightening:
        if problem.objective is not Quantity.ACCURACY and problem.max_loss is not None:
            rung = replace(problem, max_loss=problem.max_loss * factor)
        else:
            limits = {quantity: limit * factor for quantity, limit in problem.limits.items()}
            rung = replace(problem, limits=limits)
        solution = _solve(
            formulation, rung, time_limit_seconds=time_limit_seconds, relative_gap=relative_gap
        )
        if solution.is_feasible and all(solution.kept != other.kept for other in found):
            found.append(solution)
    return found


def _solve(
    formulation: Formulation,
    problem: CompressionProblem,
    *,
    time_limit_seconds: float,
    relative_gap: float,
) -> Solution:
    """Solve, and solve again without what turned out to miss a limit by exact cost."""
    if not problem.groups:
        return _without_choice(problem)
    deadline = time.monotonic() + time_limit_seconds
    limits = dict(problem.limits)
    forbidden: list[Mapping[str, int]] = []
    may_tighten = True
    while (left := deadline - time.monotonic()) > 0 and len(forbidden) < _MAX_CUT_ROUNDS:
        program, columns = formulation.program(problem, limits, forbidden)
        result = program.minimise(time_limit_seconds=left, relative_gap=relative_gap)
        if result.values is None:
            if result.status is ProgramStatus.INFEASIBLE and limits != problem.limits:
                # tighter limits prove nothing: go on with the true ones, and without what missed them
                limits, may_tighten = dict(problem.limits), False
                continue
            is_proven = formulation.is_exact or _is_out_of_reach(problem)
            if result.status is ProgramStatus.INFEASIBLE and is_proven:
                return Solution(status=SolutionStatus.INFEASIBLE)
            break
        kept = {
            group.group_id: group.levels[int(np.argmax(result.values[columns[group.group_id]]))]
            for group in problem.groups
        }
        loss, costs = problem.loss(kept), problem.costs(kept)
        missed = problem.excess(loss, costs)
        if not missed:
            status = SolutionStatus(result.status.value)
            return Solution(status=status, kept=kept, predicted_loss=loss, costs=costs)
        forbidden.append(kept)
        for quantity, excess in missed.items():
            # Beyond the solver's tolerance the model itself was wrong there: it interpolates.
            is_cost = quantity is not Quantity.ACCURACY
            if may_tighten and is_cost and excess > _SOLVER_TOLERANCE:
                limits[quantity] /= 1.0 + excess
    return _raise_greedily(problem)


def _is_out_of_reach(problem: CompressionProblem) -> bool:
    """Whether a limit is proven to lie below what its cost can reach, whatever becomes of the others."""
    bounds = least_bounds(problem)
    return any(
        bounds[quantity] > limit * (1.0 + _SOLVER_TOLERANCE)
        for quantity, limit in problem.limits.items()
    )


def _without_choice(problem: CompressionProblem) -> Solution:
    """Return the verdict on a network that nothing can be removed from."""
    costs = problem.costs({})
    if problem.excess(0.0, costs):
        return Solution(status=SolutionStatus.INFEASIBLE)
    return Solution(status=SolutionStatus.OPTIMAL, predicted_loss=0.0, costs=costs)


def _raise_greedily(problem: CompressionProblem) -> Solution:
    """Return what widening the narrowest network step by step leads to; for when time has run out."""
    levels = {group.group_id: group.levels for group in problem.groups}
    kept = {group: choices[0] for group, choices in levels.items()}
    loss, costs = problem.loss(kept), problem.costs(kept)
    if problem.objective is not Quantity.ACCURACY or problem.excess(loss, costs):
        return Solution(status=SolutionStatus.UNKNOWN)
    open_groups = set(levels)
    while open_groups:
        steps = []
        for group in sorted(open_groups):
            index = levels[group].index(kept[group]) + 1
            if index < len(levels[group]):
                wider = {**kept, group: levels[group][index]}
                wider_loss, wider_costs = problem.loss(wider), problem.costs(wider)
                if not problem.excess(wider_loss, wider_costs):
                    steps.append((wider_loss, group, wider, wider_costs))
                    continue
            open_groups.discard(group)
        if steps:
            loss, _, kept, costs = min(steps, key=lambda step: step[:2])
    return Solution(status=SolutionStatus.FEASIBLE, kept=kept, predicted_loss=loss, costs=costs)
