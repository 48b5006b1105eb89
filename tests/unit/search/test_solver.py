"""The solver finds what trying every combination finds, and says so when nothing fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.compression_problems import conv_cost, densenet, mobilenet, resnet20, width
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.network import Width, WidthTerm
from tightfit_service.search import least_costs, widths
from tightfit_service.search.least_costs import least_bounds
from tightfit_service.search.problem import (
    CompressionProblem,
    Cost,
    GroupChoice,
    MemoryRow,
    NodeChoice,
    Solution,
    SolutionStatus,
)
from tightfit_service.search.solver import (
    ladder,
    nearest,
    smallest_costs,
    smallest_relaxation,
    solve,
)

COSTS = (Quantity.LATENCY, Quantity.ENERGY, Quantity.SIZE, Quantity.RAM)


def assignments(problem: CompressionProblem) -> Iterator[dict[str, int]]:
    names = [group.group_id for group in problem.groups]
    for levels in itertools.product(*(group.levels for group in problem.groups)):
        yield dict(zip(names, levels, strict=True))


def by_trying_everything(problem: CompressionProblem) -> float | None:
    """Return the best objective of all combinations that fit, or None."""
    best = math.inf
    for kept in assignments(problem):
        loss, costs = problem.loss(kept), problem.costs(kept)
        if not problem.excess(loss, costs):
            best = min(
                best, loss if problem.objective is Quantity.ACCURACY else costs[problem.objective]
            )
    return None if best == math.inf else best


def objective_of(problem: CompressionProblem, solution: Solution) -> float:
    if problem.objective is Quantity.ACCURACY:
        return solution.predicted_loss
    return solution.costs[problem.objective]


def bumpy_cost(
    weights: tuple[int, int, int], step: int
) -> Callable[[int, int], dict[Quantity, float]]:
    """Return a cost that is neither linear nor separable: a product, rounded up to a step."""
    latency, energy, size = weights

    def cost(in_channels: int, out_channels: int) -> dict[Quantity, float]:
        rounded = -(-out_channels // step) * step
        return {
            Quantity.LATENCY: float(latency * in_channels * rounded + (in_channels % 3) * 5),
            Quantity.ENERGY: float(energy * in_channels + out_channels**2),
            Quantity.SIZE: float(size * in_channels * out_channels),
        }

    return cost


@st.composite
def problems(draw: st.DrawFn) -> CompressionProblem:
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    groups = []
    for name in names:
        levels = sorted(draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)))
        steps = draw(
            st.lists(st.integers(0, 9), min_size=len(levels) - 1, max_size=len(levels) - 1)
        )
        losses = [sum(steps[index:]) / 100 for index in range(len(levels))]
        groups.append(GroupChoice(group_id=name, levels=tuple(levels), accuracy_loss=tuple(losses)))

    def some_width() -> Width:
        terms = tuple(
            WidthTerm(group_id=name, multiplier=draw(st.integers(1, 3)))
            for name in draw(st.lists(st.sampled_from(names), max_size=3))
        )
        return Width(fixed=draw(st.integers(0, 4)), terms=terms)

    def some_cost() -> Cost:
        rates = draw(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)))
        return bumpy_cost(rates, draw(st.integers(1, 4)))

    nodes = []
    for index in range(draw(st.integers(1, 4))):
        ways = draw(st.integers(0, 2)) if len(groups) < 6 else 0
        option = f"way{index}" if ways else ""
        if ways:
            falls = draw(st.lists(st.integers(0, 9), min_size=ways, max_size=ways))
            groups.append(
                GroupChoice(
                    group_id=option,
                    levels=tuple(range(1, ways + 2)),
                    accuracy_loss=tuple(sum(falls[way:]) / 100 for way in range(ways + 1)),
                )
            )
        nodes.append(
            NodeChoice(
                node=f"n{index}",
                input_width=some_width(),
                output_width=some_width(),
                cost=some_cost(),
                option_id=option,
                alternatives={way + 1: some_cost() for way in range(ways)},
            )
        )
    memory = tuple(
        MemoryRow(
            node=f"n{index}",
            fixed_bytes=float(draw(st.integers(0, 50))),
            tensors=tuple(
                (some_width(), float(draw(st.integers(1, 20))))
                for _ in range(draw(st.integers(0, 2)))
            ),
        )
        for index in range(draw(st.integers(0, 3)))
    )
    free = CompressionProblem(
        groups=tuple(groups),
        nodes=tuple(nodes),
        memory=memory,
        fixed_costs={Quantity.LATENCY: 3.0, Quantity.RAM: 10.0},
    )
    reach, full = smallest_costs(free), free.costs({g.group_id: g.levels[-1] for g in groups})
    limits = {}
    for quantity in draw(st.sets(st.sampled_from(COSTS))):
        share = draw(st.sampled_from([-0.2, 0.0, 0.3, 0.6, 1.0]))
        limit = math.floor(reach[quantity] + share * (full[quantity] - reach[quantity]))
        limits[quantity] = float(max(1, limit))
    objective = draw(st.sampled_from([Quantity.ACCURACY, *COSTS]))
    max_loss = draw(st.none() | st.integers(0, 40).map(lambda percent: percent / 100))
    return replace(free, limits=limits, objective=objective, max_loss=max_loss)


@given(problem=problems())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_finds_the_same_optimum_as_trying_every_combination(problem: CompressionProblem) -> None:
    expected = by_trying_everything(problem)
    solution = solve(problem, time_limit_seconds=60, relative_gap=0.0)
    if expected is None:
        assert solution.status is SolutionStatus.INFEASIBLE
        return
    assert solution.status is SolutionStatus.OPTIMAL
    assert not problem.excess(solution.predicted_loss, solution.costs)
    assert objective_of(problem, solution) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(problem=problems())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_interpolation_never_returns_what_does_not_fit_nor_claims_a_proof(
    problem: CompressionProblem,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "MAX_EXACT_VALUES", 4)
        patch.setattr(widths, "GRID_POINTS", 3)
        solution = solve(problem, time_limit_seconds=60, relative_gap=0.0)
    if solution.is_feasible:
        assert not problem.excess(solution.predicted_loss, problem.costs(solution.kept))
    elif solution.status is SolutionStatus.INFEASIBLE:
        assert by_trying_everything(problem) is None


def falling_problem(limit: float, *, levels: tuple[int, ...] = (1, 2, 3)) -> CompressionProblem:
    """Return a problem whose latency is least at a width that is not the least: whole tiles of three."""
    groups = tuple(
        GroupChoice(group_id=name, levels=levels, accuracy_loss=(0.0,) * len(levels))
        for name in ("a", "b")
    )
    node = NodeChoice(
        node="n",
        input_width=Width(
            fixed=1,
            terms=(
                WidthTerm(group_id="a", multiplier=2),
                WidthTerm(group_id="b", multiplier=1),
            ),
        ),
        output_width=Width(fixed=1),
        cost=lambda channels, _out: {Quantity.LATENCY: 2.0 + (channels % 3) * 5},
    )
    return CompressionProblem(
        groups=groups,
        nodes=(node,),
        fixed_costs={Quantity.LATENCY: 3.0},
        limits={Quantity.LATENCY: limit},
    )


def test_what_a_wider_network_meets_is_not_called_out_of_reach() -> None:
    problem = falling_problem(6.0)
    assert problem.costs({"a": 1, "b": 1})[Quantity.LATENCY] > 6.0
    assert smallest_costs(problem)[Quantity.LATENCY] == 5.0
    assert solve(problem).status is SolutionStatus.OPTIMAL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "MAX_EXACT_VALUES", 4)
        patch.setattr(widths, "GRID_POINTS", 3)
        assert solve(problem).status is not SolutionStatus.INFEASIBLE
        assert solve(falling_problem(4.0)).status is SolutionStatus.INFEASIBLE


def test_nearest_to_the_limits_is_not_always_the_narrowest_network() -> None:
    problem = falling_problem(4.0)
    assert problem.costs(nearest(problem))[Quantity.LATENCY] == 5.0
    assert nearest(falling_problem(10.0)) == {"a": 1, "b": 1}
    held = Width(terms=tuple(WidthTerm(group_id=name, multiplier=1) for name in ("a", "b")))
    memory = (MemoryRow(node="n", fixed_bytes=0.0, tensors=((held, 1.0),)),)
    # what misses another limit by more is not nearer
    limits = {Quantity.LATENCY: 9.0, Quantity.RAM: 2.0}
    assert nearest(replace(problem, memory=memory, limits=limits)) == {"a": 1, "b": 1}


def test_nothing_is_proven_of_nodes_with_too_many_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "MAX_EXACT_VALUES", 4)
    monkeypatch.setattr(widths, "GRID_POINTS", 3)
    monkeypatch.setattr(least_costs, "MAX_POINTS", 4)
    problem = falling_problem(4.0)
    assert least_bounds(problem)[Quantity.LATENCY] == 3.0
    assert solve(problem).status is SolutionStatus.UNKNOWN


@given(problem=problems())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_cost_is_brought_as_low_as_trying_every_combination_brings_it(
    problem: CompressionProblem,
) -> None:
    least, bounds = smallest_costs(problem), least_bounds(problem)
    for quantity in COSTS:
        tried = min(problem.costs(kept)[quantity] for kept in assignments(problem))
        assert bounds[quantity] <= tried * (1.0 + 1e-9)
        assert least[quantity] >= tried * (1.0 - 1e-9)
        if quantity in problem.excess(0.0, least):
            assert least[quantity] == pytest.approx(tried, rel=2e-4)


@given(problem=problems(), quantity=st.sampled_from([Quantity.ACCURACY, *COSTS]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_smallest_relaxation_is_the_least_limit_that_would_do(
    problem: CompressionProblem, quantity: Quantity
) -> None:
    others = {q: limit for q, limit in problem.limits.items() if q is not quantity}
    relaxed = replace(
        problem,
        limits=others,
        objective=quantity,
        max_loss=None if quantity is Quantity.ACCURACY else problem.max_loss,
    )
    needed = smallest_relaxation(problem, quantity, time_limit_seconds=60, relative_gap=0.0)
    expected = by_trying_everything(relaxed)
    if expected is None:
        assert needed is None
    else:
        assert needed == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("make", [resnet20, mobilenet])
def test_solves_networks_of_real_size_to_the_gap_within_all_limits(
    make: Callable[[], CompressionProblem],
) -> None:
    problem = make()
    solution = solve(problem, time_limit_seconds=120, relative_gap=0.05)
    assert solution.status is SolutionStatus.OPTIMAL
    assert problem.costs(solution.kept) == solution.costs
    assert all(solution.costs[quantity] <= limit for quantity, limit in problem.limits.items())
    # Half the latency with most channels kept: far better than a uniform cut that fits.
    uniform = min(
        problem.loss(kept)
        for step in range(8)
        if not problem.excess(
            0.0,
            problem.costs(
                kept := {
                    group.group_id: group.levels[min(step, len(group.levels) - 1)]
                    for group in problem.groups
                }
            ),
        )
    )
    assert solution.predicted_loss < uniform


def test_interpolated_sums_still_give_solutions_that_fit_exactly() -> None:
    problem = densenet(layers=10)
    solution = solve(problem, time_limit_seconds=120, relative_gap=0.2)
    assert solution.is_feasible
    assert all(solution.costs[quantity] <= limit for quantity, limit in problem.limits.items())
    assert solution.predicted_loss < problem.loss({g.group_id: g.levels[2] for g in problem.groups})


def test_the_same_problem_gives_the_same_solution() -> None:
    one, other = (solve(mobilenet(), time_limit_seconds=120, relative_gap=0.05) for _ in range(2))
    assert one == other


def chain(*, limit: float) -> CompressionProblem:
    groups = tuple(
        GroupChoice(group_id=name, levels=(2, 4, 8), accuracy_loss=(loss, loss / 4, 0.0))
        for name, loss in (("a", 0.08), ("b", 0.02))
    )
    nodes = (
        NodeChoice(
            node="first",
            input_width=width(fixed=3),
            output_width=width(("a", 1)),
            cost=conv_cost(64, 9),
        ),
        NodeChoice(
            node="second",
            input_width=width(("a", 1)),
            output_width=width(("b", 1)),
            cost=conv_cost(64, 9),
        ),
    )
    return CompressionProblem(groups=groups, nodes=nodes, limits={Quantity.SIZE: limit})


def test_the_group_that_matters_less_is_cut_first() -> None:
    solution = solve(chain(limit=700.0), relative_gap=0.0)
    assert solution.kept == {"a": 8, "b": 4}


def test_ladder_tightens_and_leaves_out_repeats_and_the_impossible() -> None:
    rungs = ladder(chain(limit=920.0), [1.0, 0.999, 0.7, 0.001])
    assert [rung.kept for rung in rungs] == [{"a": 8, "b": 8}, {"a": 8, "b": 4}]


def test_ladder_tightens_the_allowed_loss_when_a_cost_is_minimised() -> None:
    problem = replace(chain(limit=920.0), objective=Quantity.SIZE, max_loss=0.1)
    sizes = [rung.costs[Quantity.SIZE] for rung in ladder(problem, [1.0, 0.2], relative_gap=0.0)]
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]


def test_a_node_is_computed_another_way_where_that_loses_less_than_narrowing() -> None:
    groups = (
        GroupChoice(group_id="g", levels=(4, 8), accuracy_loss=(0.10, 0.0)),
        GroupChoice(group_id="n/way", levels=(1, 2), accuracy_loss=(0.02, 0.0)),
    )

    def full(_in_channels: int, out_channels: int) -> Mapping[Quantity, float]:
        return {Quantity.LATENCY: 10.0 * out_channels}

    def reduced(_in_channels: int, out_channels: int) -> Mapping[Quantity, float]:
        return {Quantity.LATENCY: 6.0 * out_channels}

    node = NodeChoice(
        node="n",
        input_width=Width(fixed=3),
        output_width=Width(terms=(WidthTerm(group_id="g", multiplier=1),)),
        cost=full,
        option_id="n/way",
        alternatives={1: reduced},
    )
    problem = CompressionProblem(groups=groups, nodes=(node,), limits={Quantity.LATENCY: 50.0})
    solution = solve(problem)
    assert solution.kept == {"g": 8, "n/way": 1}
    assert solution.costs[Quantity.LATENCY] == 48.0


def test_smallest_costs_are_those_of_the_narrowest_network() -> None:
    problem = chain(limit=920.0)
    least = smallest_costs(problem)
    for quantity in COSTS:
        assert least[quantity] == min(
            problem.costs(kept)[quantity] for kept in assignments(problem)
        )


def test_a_network_without_choices_fits_or_does_not() -> None:
    node = NodeChoice(
        node="n",
        input_width=width(fixed=3),
        output_width=width(fixed=4),
        cost=lambda _in, _out: {Quantity.SIZE: 100.0},
    )
    fits = CompressionProblem(groups=(), nodes=(node,), limits={Quantity.SIZE: 100.0})
    assert solve(fits).status is SolutionStatus.OPTIMAL
    assert solve(fits).predicted_loss == 0.0
    too_big = replace(fits, limits={Quantity.SIZE: 99.0})
    assert solve(too_big).status is SolutionStatus.INFEASIBLE
    assert smallest_relaxation(too_big, Quantity.SIZE) == 100.0


def test_when_time_runs_out_at_once_a_greedy_solution_that_fits_is_returned() -> None:
    problem = resnet20()
    solution = solve(problem, time_limit_seconds=0.0)
    assert solution.status is SolutionStatus.FEASIBLE
    assert not problem.excess(solution.predicted_loss, solution.costs)
    wider = replace(problem, limits=dict.fromkeys(problem.limits, 1.0))
    assert solve(wider, time_limit_seconds=0.0).status is SolutionStatus.UNKNOWN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ()}, "without choices"),
        ({"limits": {Quantity.ACCURACY: 0.9}}, "max_loss"),
        ({"limits": {Quantity.SIZE: 0.0}}, "positive"),
    ],
)
def test_contradictory_problems_are_refused(change: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(chain(limit=1.0), **change)  # type: ignore[arg-type]  # the change is made wrong on purpose


def test_a_group_needs_ascending_levels_and_a_loss_for_each() -> None:
    with pytest.raises(ValueError, match="ascending"):
        GroupChoice(group_id="a", levels=(4, 2), accuracy_loss=(0.1, 0.0))
    with pytest.raises(ValueError, match="one accuracy loss"):
        GroupChoice(group_id="a", levels=(2, 4), accuracy_loss=(0.0,))
    twice = chain(limit=1.0).groups[:1] * 2
    with pytest.raises(ValueError, match="twice"):
        CompressionProblem(groups=twice)
