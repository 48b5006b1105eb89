"""The answer when nothing fits: what binds, what came closest, and the smallest relaxation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tightfit_service.domain.budget import Budget, LimitSource, Quantity, quantity_text
from tightfit_service.domain.job import Infeasibility, Relaxation
from tightfit_service.domain.trial import (
    COST_QUANTITIES,
    MAXIMA,
    Metrics,
    Trial,
    TrialState,
    Violation,
    cost_of,
    violations,
)

CLOSEST_COUNT = 3


def explain_infeasibility(
    trials: Sequence[Trial],
    *,
    budget: Budget,
    baseline: Metrics | None,
    reachable: Mapping[Quantity, float],
    needed: Mapping[Quantity, float | None],
) -> Infeasibility:
    """Explain from the finished trials why nothing met the budget.

    Args:
        trials: All trials of the job, the quantized-only one among them.
        budget: The budget, limits implied by the target included.
        baseline: Metrics of the model as it came; a known point like any trial.
        reachable: Least upper end per cost quantity that pruning can reach
            by estimate, whatever the accuracy; for DOWNLOAD the smallest packed file that sparsity
            and clustering are predicted to make.
        needed: Least limit per quantity that would do by the solver's estimate (for ACCURACY the
            loss to allow), used where no known model shows it.
    """
    accuracy = baseline.accuracy.value if baseline and baseline.accuracy else None
    known: list[tuple[int | None, Metrics]] = [
        (t.index, t.metrics)
        for t in trials
        if t.state is TrialState.COMPLETED and t.metrics is not None
    ]
    missed = {
        index: violations(metrics, budget, baseline_accuracy=accuracy) for index, metrics in known
    }
    by_distance = sorted(
        (index for index, _ in known if index is not None),
        key=lambda index: (max((v.excess_ratio for v in missed[index]), default=0.0), index),
    )
    if baseline is not None:
        known.append((None, baseline))
    limited = [q for q in MAXIMA if budget.limit_of(q) is not None]
    floor = budget.accuracy_floor(accuracy)
    if floor is not None:
        limited.append(Quantity.ACCURACY)
    binding = _binding(missed, by_distance)
    # of the download the solver knows nothing: what it takes for enough need not be
    estimates = {} if Quantity.DOWNLOAD in binding else needed
    relaxations = tuple(
        _relaxation(
            quantity,
            known,
            budget=budget,
            baseline_accuracy=accuracy,
            estimate=estimates.get(quantity),
        )
        for quantity in limited
        if _is_users(quantity, budget)
    )
    return Infeasibility(
        binding=binding,
        closest_trials=tuple(by_distance[:CLOSEST_COUNT]),
        relaxations=relaxations,
        explanation=_explanation(binding, budget=budget, floor=floor, reachable=reachable),
    )


def _is_users(quantity: Quantity, budget: Budget) -> bool:
    """Whether the limit can be relaxed by the user at all; the target's memories cannot."""
    return any(c.quantity is quantity and c.source is LimitSource.USER for c in budget.constraints)


def _relaxation(
    quantity: Quantity,
    known: Sequence[tuple[int | None, Metrics]],
    *,
    budget: Budget,
    baseline_accuracy: float | None,
    estimate: float | None,
) -> Relaxation:
    """Return the smallest change of one limit, the others unchanged, that lets a known model through."""
    floor = budget.accuracy_floor(baseline_accuracy)
    limit = floor if quantity is Quantity.ACCURACY else budget.limit_of(quantity)
    assert limit is not None
    best: tuple[float, int | None] | None = None
    for index, metrics in known:
        others = [
            v
            for v in violations(metrics, budget, baseline_accuracy=baseline_accuracy)
            if v.quantity is not quantity
        ]
        if others:
            continue
        if quantity is Quantity.ACCURACY:
            found = metrics.accuracy or metrics.selection_accuracy
            if found is None:
                continue
            value = found.value
            is_better = best is None or value > best[0]
        else:
            value = cost_of(metrics, quantity)
            is_better = best is None or value < best[0]
        if is_better:
            best = (value, index)
    if best is None and estimate is not None:
        if quantity is Quantity.ACCURACY:
            estimate = None if baseline_accuracy is None else max(0.0, baseline_accuracy - estimate)
        return Relaxation(quantity=quantity, limit=limit, needed=estimate, trial_index=None)
    return Relaxation(
        quantity=quantity,
        limit=limit,
        needed=None if best is None else best[0],
        trial_index=None if best is None else best[1],
    )


def _binding(
    missed: Mapping[int | None, Sequence[Violation]], by_distance: Sequence[int]
) -> tuple[Quantity, ...]:
    """Return the quantities missed by the closest trials, the most often and most missed first."""
    weight: dict[Quantity, float] = defaultdict(float)
    for index in by_distance[:CLOSEST_COUNT]:
        for violation in missed[index]:
            weight[violation.quantity] += violation.excess_ratio
    return tuple(sorted(weight, key=lambda quantity: -weight[quantity]))


def _explanation(
    binding: Sequence[Quantity],
    *,
    budget: Budget,
    floor: float | None,
    reachable: Mapping[Quantity, float],
) -> str:
    parts: list[str] = []
    for quantity in COST_QUANTITIES:
        limit = budget.limit_of(quantity)
        least = reachable.get(quantity)
        if limit is not None and least is not None and least > limit:
            parts.append(
                f"no widths reach the {quantity} limit: it is {quantity_text(quantity, limit)}, and the "
                "smallest network that pruning can make is estimated at "
                f"{quantity_text(quantity, least)} at most"
            )
    parts += _download_out_of_reach(budget, reachable)
    if not parts and binding:
        names = " and ".join(str(quantity) for quantity in binding)
        parts.append(f"the limits on {names} were not met together by any trial")
        if Quantity.ACCURACY in binding and floor is not None:
            parts.append(f"the accuracy floor was {floor:.4f}")
    if not parts:
        parts.append("no trial could be completed")
    return "; ".join(parts)


def _download_out_of_reach(budget: Budget, reachable: Mapping[Quantity, float]) -> list[str]:
    limit, least = budget.limit_of(Quantity.DOWNLOAD), reachable.get(Quantity.DOWNLOAD)
    if limit is None or least is None or least <= limit:
        return []
    said = (
        f"no sparsity or clustering reaches the download limit: it is {limit:.0f} bytes, and the "
        f"smallest packed file that they can make is predicted to have {least:.0f}"
    )
    return [said]
