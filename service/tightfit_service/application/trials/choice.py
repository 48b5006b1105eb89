"""Which trial wins, and how a trial reads in one line."""

from __future__ import annotations

from collections.abc import Iterable

from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.trial import Trial, cost_of


def best_trial(trials: Iterable[Trial], objective: Quantity) -> Trial | None:
    """Return the trial that meets the whole budget and is best by the objective, or None.

    Only trials that the evaluation set has judged may win: accuracy limits are held against it. Among
    them the selection set decides, so that what is reported was not selected on.
    """
    judged = [
        t
        for t in trials
        if t.is_feasible and t.metrics is not None and t.metrics.accuracy is not None
    ]
    return min(judged, key=lambda trial: _rank(trial, objective), default=None)


def closest_trial(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial whose worst violation is smallest, or None when none was completed."""
    completed = [t for t in trials if t.metrics is not None]
    return min(
        completed,
        key=lambda t: (max((v.excess_ratio for v in t.violations), default=0.0), t.index),
        default=None,
    )


def _rank(trial: Trial, objective: Quantity) -> tuple[float, ...]:
    assert trial.metrics is not None
    known = trial.metrics.selection_accuracy or trial.metrics.accuracy
    accuracy = known.value if known else 0.0
    if objective is Quantity.ACCURACY:
        return (-accuracy, cost_of(trial.metrics, Quantity.LATENCY), trial.index)
    return (cost_of(trial.metrics, objective), -accuracy, trial.index)


def summary(trial: Trial) -> str:
    """Return accuracy, latency and verdict of a completed trial in one line."""
    assert trial.metrics is not None
    known = trial.metrics.accuracy or trial.metrics.selection_accuracy
    # a finalist is judged on other samples than the screened trial that it is made of
    where = "" if trial.metrics.accuracy else " on the selection set"
    accuracy = "no accuracy" if known is None else f"accuracy {known.value:.4f}{where}"
    latency = trial.metrics.cost.latency_ms
    missed = ", ".join(str(v.quantity) for v in trial.violations)
    verdict = f"misses {missed}" if missed else "fits"
    return f"{accuracy}, {latency.value:.3g} ms (at most {latency.high:.3g}), {verdict}"
