"""Samplers: what to try next, by ask and tell, over the levels of a compression problem's groups.

The MILP sampler is what tightfit searches with; the random one, and those of Optuna behind the same
Protocol, are alternatives and the yardstick it is held against.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.sensitivity import SensitivityModel
from tightfit_service.search.solver import DEFAULT_RELATIVE_GAP, ladder

Kept = Mapping[str, int]

_MAX_DRAWS = 200
"""Draws in a row that bring nothing new before a sampler calls the space exhausted."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What a trial showed.

    `accuracy_loss` is a fraction, or None for a trial that failed. `costs` are those re-estimated
    on the trial's result, in the unit of the quantity and comparable with the problem's; empty
    where they are not known better than the problem predicts.
    """

    accuracy_loss: float | None
    costs: Mapping[Quantity, float] = field(default_factory=dict)


class Sampler(Protocol):
    """Proposes assignments of levels and learns from their trials.

    Seeded: the same problem, seed and sequence of calls give the same proposals. Not for several
    threads at once. Several proposals may be asked for before the first is told about.
    """

    def ask(self) -> Kept | None:
        """Return units to keep per group, never the same twice; None when nothing new is found."""
        ...

    def tell(self, kept: Kept, outcome: TrialOutcome) -> None:
        """Learn what a trial of `kept` showed, whether or not this sampler proposed it."""
        ...


def assignment_key(kept: Kept) -> tuple[tuple[str, int], ...]:
    """Return a value that equal assignments share."""
    return tuple(sorted(kept.items()))


class RandomSampler:
    """Draws levels evenly, and narrows random groups until the costs fit the limits.

    Limits are the problem's own, by its own costs; predicted losses are ignored.
    """

    def __init__(self, problem: CompressionProblem, *, seed: int) -> None:
        self._problem = replace(problem, max_loss=None)
        self._rng = np.random.default_rng(seed)
        self._seen: set[tuple[tuple[str, int], ...]] = set()

    def ask(self) -> Kept | None:
        """Return an assignment that fits, or None when none or nothing new is found."""
        for _ in range(_MAX_DRAWS):
            kept = self._narrowed(
                {g.group_id: int(self._rng.choice(g.levels)) for g in self._problem.groups}
            )
            if kept is not None and assignment_key(kept) not in self._seen:
                self._seen.add(assignment_key(kept))
                return kept
        return None

    def tell(self, kept: Kept, outcome: TrialOutcome) -> None:  # noqa: ARG002  # learns nothing
        """Remember that `kept` was tried."""
        self._seen.add(assignment_key(kept))

    def _narrowed(self, kept: dict[str, int]) -> dict[str, int] | None:
        levels = {group.group_id: group.levels for group in self._problem.groups}
        while self._problem.excess(0.0, self._problem.costs(kept)):
            wide = [group for group, units in kept.items() if units > levels[group][0]]
            if not wide:
                return None
            group = wide[int(self._rng.integers(len(wide)))]
            kept[group] = levels[group][levels[group].index(kept[group]) - 1]
        return kept


class MilpSampler:
    """Solves the problem for a ladder of tightened budgets, and again whenever a trial has taught it.

    When the ladder brings nothing new, the best assignment known so far is varied by moving two
    groups, one wider and one narrower, within the limits.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        model: SensitivityModel,
        *,
        seed: int,
        tightening: Sequence[float] = (1.0, 0.9, 0.8),
        time_limit_seconds: float = 10.0,
        relative_gap: float = DEFAULT_RELATIVE_GAP,
    ) -> None:
        self._problem = problem
        self._model = model
        self._tightening = tuple(tightening)
        self._time_limit_seconds = time_limit_seconds
        self._relative_gap = relative_gap
        self._rng = np.random.default_rng(seed)
        self._seen: set[tuple[tuple[str, int], ...]] = set()
        self._queue: deque[Kept] | None = None
        self._cost_ratios: dict[Quantity, float] = {}
        self._best: tuple[float, Kept] | None = None

    @property
    def model(self) -> SensitivityModel:
        """The sensitivity model as corrected by the trials told about."""
        return self._model

    def ask(self) -> Kept | None:
        """Return the next rung of the ladder, or a variation of the best, or None."""
        if self._queue is None:
            self._queue = deque(self._solved())
        while self._queue:
            kept = self._queue.popleft()
            if assignment_key(kept) not in self._seen:
                self._seen.add(assignment_key(kept))
                return kept
        return self._varied()

    def tell(self, kept: Kept, outcome: TrialOutcome) -> None:
        """Correct the sensitivity model and the costs, so that the next `ask` solves again."""
        self._seen.add(assignment_key(kept))
        if outcome.accuracy_loss is not None:
            self._model = self._model.observe(kept, outcome.accuracy_loss)
            if self._best is None or outcome.accuracy_loss < self._best[0]:
                self._best = (outcome.accuracy_loss, dict(kept))
        predicted = self._problem.costs(kept)
        for quantity, seen in outcome.costs.items():
            if predicted.get(quantity, 0.0) > 0:
                # The dearest seen counts: a budget missed by a file is worse than one left unused.
                ratio = seen / predicted[quantity]
                self._cost_ratios[quantity] = max(self._cost_ratios.get(quantity, ratio), ratio)
        self._queue = None

    def _corrected(self) -> CompressionProblem:
        limits = {
            quantity: limit / self._cost_ratios.get(quantity, 1.0)
            for quantity, limit in self._problem.limits.items()
        }
        groups = tuple(
            self._model.choice(group.group_id, group.levels) for group in self._problem.groups
        )
        return replace(self._problem, groups=groups, limits=limits)

    def _solved(self) -> list[Kept]:
        solutions = ladder(
            self._corrected(),
            self._tightening,
            time_limit_seconds=self._time_limit_seconds,
            relative_gap=self._relative_gap,
        )
        return [solution.kept for solution in solutions]

    def _varied(self) -> Kept | None:
        problem = self._corrected()
        start = self._best[1] if self._best is not None else next(iter(self._solved()), None)
        if start is None or len(problem.groups) < 2:
            return None
        levels = {group.group_id: group.levels for group in problem.groups}
        for _ in range(_MAX_DRAWS):
            kept = dict(start)
            wider, narrower = self._rng.choice(sorted(levels), size=2, replace=False)
            for group, step in ((str(wider), 1), (str(narrower), -1)):
                index = levels[group].index(kept[group]) + step
                kept[group] = levels[group][min(len(levels[group]) - 1, max(0, index))]
            if assignment_key(kept) in self._seen:
                continue
            if not problem.excess(problem.loss(kept), problem.costs(kept)):
                self._seen.add(assignment_key(kept))
                return kept
        return None
