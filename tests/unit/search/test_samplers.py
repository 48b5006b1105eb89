"""The MILP sampler climbs down its ladder, learns from trials, and varies the best when it runs dry."""

from __future__ import annotations

from dataclasses import replace

from fakes.compression_problems import mobilenet, resnet20
from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.samplers import MilpSampler, TrialOutcome
from tightfit_service.search.sensitivity import SensitivityModel


def make_sampler(problem: CompressionProblem) -> MilpSampler:
    model = SensitivityModel.from_importance(
        {group.group_id: [1.0] * group.levels[-1] for group in problem.groups}
    )
    return MilpSampler(problem, model, seed=0, time_limit_seconds=60, relative_gap=0.05)


def test_the_first_proposals_use_the_budget_up_rung_by_rung() -> None:
    problem = mobilenet(level_count=4)
    sampler = make_sampler(problem)
    shares = []
    for _ in range(3):
        kept = sampler.ask()
        assert kept is not None
        costs = problem.costs(kept)
        shares.append(max(costs[quantity] / limit for quantity, limit in problem.limits.items()))
    assert 1.0 >= shares[0] > shares[1] > shares[2]


def test_a_group_that_trials_show_to_matter_is_kept_wider() -> None:
    problem = mobilenet(level_count=4)
    sampler = make_sampler(problem)
    first = sampler.ask()
    assert first is not None
    cut = min(first, key=lambda group: first[group] / problem.groups[0].levels[-1])
    whole = {group.group_id: group.levels[-1] for group in problem.groups}
    for group in problem.groups[:6]:
        only = {**whole, group.group_id: group.levels[1]}
        is_dear = group.group_id == cut
        sampler.tell(only, TrialOutcome(accuracy_loss=0.3 if is_dear else 0.001))
    assert sampler.model.loss(cut, 1) > make_sampler(problem).model.loss(cut, 1)
    after = sampler.ask()
    assert after is not None
    assert after[cut] >= first[cut]


def test_costs_seen_above_the_prediction_tighten_the_limits() -> None:
    problem = mobilenet(level_count=4)
    sampler = make_sampler(problem)
    first = sampler.ask()
    assert first is not None
    seen = 1.2 * problem.costs(first)[Quantity.LATENCY]
    sampler.tell(first, TrialOutcome(accuracy_loss=0.01, costs={Quantity.LATENCY: seen}))
    second = sampler.ask()
    assert second is not None
    allowed = problem.limits[Quantity.LATENCY] / 1.2
    assert problem.costs(second)[Quantity.LATENCY] <= allowed * (1 + 1e-6)


def test_a_dry_ladder_is_followed_by_neighbours_of_the_best() -> None:
    problem = resnet20(level_count=4, latency_share=0.6)
    sampler = make_sampler(problem)
    for _ in range(3):
        sampler.ask()
    varied = sampler.ask()
    assert varied is not None
    assert not problem.excess(0.0, problem.costs(varied))


def test_a_cost_objective_is_searched_by_the_allowed_loss() -> None:
    problem = replace(
        mobilenet(level_count=4), limits={}, objective=Quantity.LATENCY, max_loss=0.04
    )
    sampler = make_sampler(problem)
    kept = sampler.ask()
    assert kept is not None
    assert sampler.model.predict(kept) <= 0.04 + 1e-6
    assert (
        problem.costs(kept)[Quantity.LATENCY]
        < problem.costs({group.group_id: group.levels[-1] for group in problem.groups})[
            Quantity.LATENCY
        ]
    )
