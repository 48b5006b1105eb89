"""Why a problem has no solution: which limits bind, and what each would have to be instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.solver import (
    DEFAULT_RELATIVE_GAP,
    DEFAULT_TIME_LIMIT_SECONDS,
    smallest_costs,
    smallest_relaxation,
)


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """What stands in the way of a solution.

    Attributes:
        needed: Per limited quantity, the least limit that would do with the others in force; None
            where loosening this one alone never suffices. For ACCURACY it is the least `max_loss`.
        binding: The limits whose loosening alone would do; where there is none, those that even the
            smallest network misses; where these are none either, all of them.
    """

    needed: Mapping[Quantity, float | None]
    binding: tuple[Quantity, ...]


def conflict(
    problem: CompressionProblem,
    *,
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    relative_gap: float = DEFAULT_RELATIVE_GAP,
) -> Conflict:
    """Return what keeps an infeasible problem from being solved.

    The time limit holds for each limit of the problem.
    """
    limited = list(problem.limits)
    if problem.max_loss is not None:
        limited.append(Quantity.ACCURACY)
    needed = {
        quantity: smallest_relaxation(
            problem,
            quantity,
            time_limit_seconds=time_limit_seconds,
            relative_gap=relative_gap,
        )
        for quantity in limited
    }
    binding = [quantity for quantity in limited if needed[quantity] is not None]
    if not binding:
        unbounded = replace(problem, max_loss=None)
        out_of_reach = unbounded.excess(0.0, smallest_costs(problem))
        binding = [quantity for quantity in limited if quantity in out_of_reach] or limited
    return Conflict(needed=needed, binding=tuple(binding))
