"""Early stopping: which of the screened trials are worth a longer recovery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightfit_service.domain.quantities import Accuracy


@dataclass(frozen=True, kw_only=True)
class Screened:
    """A trial after one rung: its index and its accuracy on the selection set."""

    index: int
    accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving:
    """Keeps the best 1 / reduction_factor of each rung, and what cannot be told from them.

    Source: Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization", AISTATS 2016. The original drops by rank alone; here a trial whose interval
    overlaps that of the last survivor stays too, because dropping it would be a coin toss, unless
    there are no slots for it.

    Raises:
        ValueError: `reduction_factor` of 1 or less, or `least_survivors` below 1.
    """

    reduction_factor: float = 2.0
    least_survivors: int = 1

    def __post_init__(self) -> None:
        """Refuse rules that would keep everything or nothing."""
        if not self.reduction_factor > 1 or self.least_survivors < 1:
            raise ValueError("reduction_factor must be above 1 and least_survivors at least 1")

    def survivors(self, rung: Sequence[Screened], *, slots: int | None = None) -> tuple[int, ...]:
        """Return the indices that go on, best first; earlier trials win ties.

        Args:
            rung: The trials that finished this rung.
            slots: At most so many go on, tied or not; None for no such limit.
        """
        ranked = sorted(rung, key=lambda trial: (-trial.accuracy.value, trial.index))
        if not ranked:
            return ()
        share = math.ceil(len(ranked) / self.reduction_factor)
        wanted = min(len(ranked), max(self.least_survivors, share))
        last = ranked[wanted - 1].accuracy
        tied = [trial for trial in ranked[wanted:] if not is_worse(trial.accuracy, last)]
        chosen = [*ranked[:wanted], *tied]
        return tuple(trial.index for trial in chosen[: slots if slots is not None else None])


def is_worse(one: Accuracy, other: Accuracy) -> bool:
    """Whether one accuracy is below another beyond their sampling error.

    Both are taken as independent, with the half-widths of their intervals combined as for the
    difference of two proportions (Newcombe 1998, method 10), so that overlapping intervals can
    still differ.
    """
    gap = other.value - one.value
    return gap > math.hypot(one.high - one.value, other.value - other.low)
