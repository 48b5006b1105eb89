"""The Pareto front of trials: feasible, and not beaten in every quantity by another."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.domain.trial import COST_QUANTITIES, Metrics, Trial, cost_of


def pareto_front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the indices of the feasible, non-dominated trials, most accurate first.

    One trial dominates another when it is no worse in accuracy and all costs, and better in one.
    Accuracies are those on the selection set where all trials have one, so that like is compared with
    like; a trial that the evaluation set has judged is dominated only by another such trial. Equal
    trials stay, the earliest of them first.
    """
    feasible = [(t, t.metrics) for t in trials if t.is_feasible and t.metrics is not None]
    by_selection = all(metrics.selection_accuracy is not None for _, metrics in feasible)
    points = {
        trial.index: _point(metrics, by_selection=by_selection) for trial, metrics in feasible
    }
    judged = {trial.index for trial, metrics in feasible if metrics.accuracy is not None}
    front = [
        index
        for index, point in points.items()
        if not any(
            _dominates(other, point)
            for rival, other in points.items()
            if rival in judged or index not in judged
        )
    ]
    return tuple(sorted(front, key=lambda index: (points[index], index)))


def _point(metrics: Metrics, *, by_selection: bool) -> tuple[float, ...]:
    known = metrics.selection_accuracy if by_selection else metrics.accuracy
    return (
        -(known.value if known else 0.0),
        *(cost_of(metrics, quantity) for quantity in COST_QUANTITIES),
        # all trials of a job are packed, or none is
        *([] if metrics.download_bytes is None else [float(metrics.download_bytes)]),
    )


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other
