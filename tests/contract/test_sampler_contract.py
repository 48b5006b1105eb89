"""Every sampler proposes fresh assignments that fit, the same ones for the same seed, and stops when done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fakes.compression_problems import choice, conv_cost, limited, mobilenet, width
from tightfit_service.adapters.samplers.optuna_samplers import Nsga2Sampler, TpeSampler
from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem, NodeChoice
from tightfit_service.search.samplers import (
    MilpSampler,
    RandomSampler,
    Sampler,
    TrialOutcome,
    assignment_key,
)
from tightfit_service.search.sensitivity import SensitivityModel

MakeSampler = Callable[[CompressionProblem, int], Sampler]


def make_milp(problem: CompressionProblem, seed: int) -> Sampler:
    model = SensitivityModel.from_importance(
        {group.group_id: [1.0] * group.levels[-1] for group in problem.groups}
    )
    return MilpSampler(problem, model, seed=seed, time_limit_seconds=60, relative_gap=0.3)


SAMPLERS: dict[str, MakeSampler] = {
    "milp": make_milp,
    "random": lambda problem, seed: RandomSampler(problem, seed=seed),
    "tpe": lambda problem, seed: TpeSampler(problem, seed=seed),
    "nsga2": lambda problem, seed: Nsga2Sampler(problem, seed=seed, population_size=4),
}


@pytest.fixture(params=SAMPLERS)
def make_sampler(request: pytest.FixtureRequest) -> MakeSampler:
    return SAMPLERS[request.param]


def run(sampler: Sampler, problem: CompressionProblem, count: int) -> list[dict[str, int]]:
    asked = []
    for _ in range(count):
        kept = sampler.ask()
        if kept is None:
            break
        asked.append(dict(kept))
        sampler.tell(kept, TrialOutcome(accuracy_loss=problem.loss(kept)))
    return asked


def test_proposals_fit_are_fresh_and_repeat_with_the_seed(make_sampler: MakeSampler) -> None:
    problem = mobilenet(level_count=4)
    asked = run(make_sampler(problem, 3), problem, 8)
    assert len(asked) == 8
    assert len({assignment_key(kept) for kept in asked}) == 8
    for kept in asked:
        assert not problem.excess(0.0, problem.costs(kept))
        assert all(kept[group.group_id] in group.levels for group in problem.groups)
    assert run(make_sampler(problem, 3), problem, 8) == asked


def tiny(share: float) -> CompressionProblem:
    node = NodeChoice(
        node="n",
        input_width=width(("a", 1)),
        output_width=width(("b", 1)),
        cost=conv_cost(16, 9),
    )
    groups = [choice("a", 4, level_count=2), choice("b", 4, level_count=2)]
    return limited(groups, [node], [], latency_share=share)


def test_an_exhausted_space_ends_with_none(make_sampler: MakeSampler) -> None:
    problem = replace(tiny(1.0), limits={})
    asked = run(make_sampler(problem, 0), problem, 100)
    assert 1 <= len(asked) <= 4
    assert len({assignment_key(kept) for kept in asked}) == len(asked)


def test_a_space_where_nothing_fits_gives_none(make_sampler: MakeSampler) -> None:
    problem = tiny(1e-6)
    assert make_sampler(problem, 0).ask() is None


def test_trials_proposed_by_others_and_failed_ones_are_not_proposed(
    make_sampler: MakeSampler,
) -> None:
    problem = replace(tiny(1.0), limits={})
    sampler = make_sampler(problem, 0)
    full, half = {"a": 4, "b": 4}, {"a": 2, "b": 2}
    sampler.tell(full, TrialOutcome(accuracy_loss=0.0))
    sampler.tell(full, TrialOutcome(accuracy_loss=0.0))
    sampler.tell(half, TrialOutcome(accuracy_loss=None))
    asked = run(sampler, problem, 100)
    assert full not in asked
    assert half not in asked


def test_several_may_be_asked_for_before_the_first_is_told(make_sampler: MakeSampler) -> None:
    problem = mobilenet(level_count=4)
    sampler = make_sampler(problem, 1)
    asked = [sampler.ask() for _ in range(3)]
    assert all(kept is not None for kept in asked)
    for kept in reversed(asked):
        assert kept is not None
        costs = {Quantity.LATENCY: problem.costs(kept)[Quantity.LATENCY]}
        sampler.tell(kept, TrialOutcome(accuracy_loss=0.01, costs=costs))
    assert sampler.ask() not in asked
