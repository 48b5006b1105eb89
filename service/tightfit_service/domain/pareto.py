"""The Pareto front of trials: feasible, and not beaten in every quantity by another."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.domain.trial import COST_QUANTITIES, Metrics, Trial, cost_of


def pareto_front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the indices of the feasible, non-dominated trials, most accurate first.

    One trial dominates another when it is no worse in accuracy and all costs, and better in one.
    Equal trials stay, the earliest of them first.
    """
    feasible = [(t, t.metrics) for t in trials if t.is_feasible and t.metrics is not None]
    points = {trial.index: _point(metrics) for trial, metrics in feasible}
    front = [
        index
        for index, point in points.items()
        if not any(_dominates(other, point) for other in points.values())
    ]
    return tuple(sorted(front, key=lambda index: (points[index], index)))


def _point(metrics: Metrics) -> tuple[float, ...]:
    known = metrics.accuracy or metrics.selection_accuracy
    return (
        -(known.value if known else 0.0),
        *(cost_of(metrics, quantity) for quantity in COST_QUANTITIES),
    )


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
