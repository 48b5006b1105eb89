"""Conflicts name the limits that bind, and what each would have to be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.compression_problems import mobilenet
from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem, SolutionStatus
from tightfit_service.search.relaxation import conflict
from tightfit_service.search.solver import smallest_costs, solve

ROOMY = 1e12


def problem(*, latency: float, size: float, max_loss: float | None) -> CompressionProblem:
    free = replace(mobilenet(level_count=4), limits={})
    least = smallest_costs(free)
    limits = {
        Quantity.LATENCY: latency * least[Quantity.LATENCY],
        Quantity.SIZE: size * least[Quantity.SIZE],
    }
    return replace(free, limits=limits, max_loss=max_loss)


def test_loosening_the_one_limit_that_binds_makes_the_problem_solvable() -> None:
    tight = problem(latency=0.9, size=ROOMY, max_loss=None)
    found = conflict(tight)
    assert found.binding == (Quantity.LATENCY,)
    needed = found.needed[Quantity.LATENCY]
    assert needed is not None
    assert needed == pytest.approx(tight.limits[Quantity.LATENCY] / 0.9)
    assert found.needed[Quantity.SIZE] is None
    eased = replace(tight, limits={**tight.limits, Quantity.LATENCY: needed})
    assert solve(eased).is_feasible


def test_cost_and_accuracy_bind_together() -> None:
    tight = problem(latency=1.2, size=ROOMY, max_loss=0.0)
    found = conflict(tight, relative_gap=0.0)
    assert set(found.binding) == {Quantity.LATENCY, Quantity.ACCURACY}
    loss = found.needed[Quantity.ACCURACY]
    assert loss is not None
    assert solve(replace(tight, max_loss=loss)).is_feasible
    assert solve(replace(tight, max_loss=0.9 * loss)).status is SolutionStatus.INFEASIBLE


def test_where_no_single_limit_is_enough_those_out_of_reach_bind() -> None:
    found = conflict(problem(latency=0.9, size=0.9, max_loss=ROOMY))
    assert found.needed[Quantity.LATENCY] is None
    assert found.needed[Quantity.SIZE] is None
    assert found.binding == (Quantity.LATENCY, Quantity.SIZE)
