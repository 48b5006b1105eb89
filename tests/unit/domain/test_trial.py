"""Verdicts on trials, and the Pareto front."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.domain.budget import Budget, Constraint, Quantity
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.pareto import pareto_front
from tightfit_service.domain.quantities import Accuracy, Interval
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import (
    Metrics,
    Trial,
    TrialRole,
    TrialState,
    Violation,
    violations,
)

RECIPE = Recipe(
    source_digest="0" * 64,
    seed=0,
    target="board",
    output_format="tflite",
    steps=(PassStep(pass_name="quantization"),),
)


def metrics(latency: float, accuracy: float | None = 0.9, *, size: float = 100.0) -> Metrics:
    cost = CostEstimate(
        latency_ms=Interval(value=latency, low=latency * 0.9, high=latency * 1.1),
        energy_mj=Interval.exact(latency),
        peak_ram_bytes=Interval.exact(10.0),
        flash_bytes=Interval.exact(size),
        macs=1,
        layers=(),
        peak_node="",
        provenance="",
        confidence=0.9,
    )
    known = (
        None
        if accuracy is None
        else Accuracy(value=accuracy, low=accuracy, high=accuracy, sample_count=100)
    )
    return Metrics(cost=cost, file_bytes=int(size), accuracy=known)


def trial(index: int, values: Metrics | None, **changes: object) -> Trial:
    return Trial(
        index=index,
        role=TrialRole.FINALIST,
        state=TrialState.COMPLETED,
        recipe=RECIPE,
        metrics=values,
        **changes,  # type: ignore[arg-type]  # test data
    )


def budget(*constraints: Constraint) -> Budget:
    return Budget(constraints=constraints)


def test_the_upper_end_of_the_interval_must_meet_a_limit() -> None:
    limit = budget(Constraint(quantity=Quantity.LATENCY, limit=10.5))
    assert violations(metrics(9.5), limit, baseline_accuracy=None) == ()
    missed = violations(metrics(10.0), limit, baseline_accuracy=None)
    assert [v.quantity for v in missed] == [Quantity.LATENCY]
    assert missed[0].excess_ratio == (missed[0].actual - 10.5) / 10.5


def test_an_accuracy_that_is_not_known_misses_every_floor() -> None:
    limit = budget(Constraint(quantity=Quantity.ACCURACY, limit=0.5))
    missed = violations(metrics(1.0, None), limit, baseline_accuracy=None)
    assert [(v.quantity, v.actual) for v in missed] == [(Quantity.ACCURACY, 0.0)]


def test_an_accuracy_equal_to_the_floor_meets_it() -> None:
    limit = budget(Constraint(quantity=Quantity.ACCURACY, max_drop=0.1))
    assert violations(metrics(1.0, 0.9 - 0.1), limit, baseline_accuracy=0.9) == ()
    assert Violation(quantity=Quantity.ACCURACY, limit=0.8, actual=0.4).excess_ratio == 0.5


def test_only_completed_trials_without_violations_are_feasible() -> None:
    assert trial(0, metrics(1.0)).is_feasible
    assert not trial(0, None).is_feasible
    missed = Violation(quantity=Quantity.RAM, limit=1.0, actual=2.0)
    assert not trial(0, metrics(1.0), violations=(missed,)).is_feasible


def test_recipes_find_their_steps() -> None:
    assert RECIPE.step("quantization") is RECIPE.steps[0]
    assert RECIPE.step("recovery") is None


points = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12
)


@given(points)
def test_the_front_holds_exactly_what_nothing_beats(raw: list[tuple[int, int, int]]) -> None:
    trials = [trial(i, metrics(float(a), b / 10, size=float(c))) for i, (a, b, c) in enumerate(raw)]
    front = set(pareto_front(trials))

    def beats(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        no_worse = one[0] <= other[0] and one[1] >= other[1] and one[2] <= other[2]
        return no_worse and one != other

    expected = {i for i, point in enumerate(raw) if not any(beats(other, point) for other in raw)}
    assert front == expected
    accuracies = [raw[i][1] for i in pareto_front(trials)]
    assert accuracies == sorted(accuracies, reverse=True)


def test_trials_that_miss_a_limit_are_not_on_the_front() -> None:
    missed = Violation(quantity=Quantity.RAM, limit=1.0, actual=2.0)
    assert pareto_front([trial(0, metrics(1.0), violations=(missed,))]) == ()


def test_a_size_limit_binds_the_file_as_well_as_the_flash() -> None:
    limit = budget(Constraint(quantity=Quantity.SIZE, limit=150.0))
    small_file = metrics(1.0, size=100.0)
    assert violations(small_file, limit, baseline_accuracy=None) == ()
    large_file = replace(small_file, file_bytes=200)
    missed = violations(large_file, limit, baseline_accuracy=None)
    assert [(v.quantity, v.actual) for v in missed] == [(Quantity.SIZE, 200.0)]


def test_a_screened_trial_does_not_push_a_judged_one_off_the_front() -> None:
    judged = replace(metrics(2.0, 0.9), selection_accuracy=metrics(2.0, 0.92).accuracy)
    screened = replace(metrics(2.0, None), selection_accuracy=metrics(2.0, 0.95).accuracy)
    worse = replace(metrics(2.0, 0.91), selection_accuracy=metrics(2.0, 0.90).accuracy)
    trials = [trial(0, judged), trial(1, screened), trial(2, worse)]
    assert pareto_front(trials) == (1, 0), "selection accuracy decides among all"


def test_a_limit_on_the_download_is_held_against_the_packed_file() -> None:
    limit = budget(Constraint(quantity=Quantity.DOWNLOAD, limit=150.0))
    unpacked = replace(metrics(1.0), file_bytes=200)
    assert [v.actual for v in violations(unpacked, limit, baseline_accuracy=None)] == [200.0]
    packed = replace(unpacked, download_bytes=150)
    assert violations(packed, limit, baseline_accuracy=None) == ()


def test_a_trial_may_fit_but_for_its_download() -> None:
    too_large = Violation(quantity=Quantity.DOWNLOAD, limit=1.0, actual=2.0)
    slow = Violation(quantity=Quantity.LATENCY, limit=1.0, actual=2.0)
    assert trial(0, metrics(1.0), violations=(too_large,)).fits_unpacked
    assert not trial(0, metrics(1.0), violations=(too_large, slow)).fits_unpacked
    assert not trial(0, None).fits_unpacked


def test_of_two_packed_trials_the_smaller_download_stays_on_the_front() -> None:
    large, small = (replace(metrics(1.0, 0.9), download_bytes=size) for size in (200, 100))
    assert pareto_front([trial(0, large), trial(1, small)]) == (1,)
