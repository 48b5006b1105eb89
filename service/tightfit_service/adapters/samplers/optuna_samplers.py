"""Optuna's TPE and NSGA-II behind the sampler Protocol, over the levels of a compression problem."""

from __future__ import annotations

import optuna

from tightfit_service.domain.budget import Quantity
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.samplers import Kept, TrialOutcome, assignment_key

_MAX_DRAWS = 50
"""Proposals in a row that are repeats or do not fit before `ask` gives up."""

_Key = tuple[tuple[str, int], ...]


class _StudySampler:
    """A study over the indices of levels.

    Proposals that miss a limit by the problem's own costs are not run: the study is told their
    excess as a constraint, and asked again.
    """

    def __init__(self, problem: CompressionProblem, study: optuna.Study) -> None:
        self._problem = problem
        self._levels = {group.group_id: group.levels for group in problem.groups}
        self._study = study
        self._open: dict[_Key, optuna.Trial] = {}
        self._seen: set[_Key] = set()

    def ask(self) -> Kept | None:
        """Return an assignment that fits the limits, or None when nothing new is found."""
        for _ in range(_MAX_DRAWS):
            trial = self._study.ask()
            kept = {
                group: levels[trial.suggest_int(group, 0, len(levels) - 1)]
                for group, levels in self._levels.items()
            }
            excess = self._excess(kept)
            key = assignment_key(kept)
            if max(excess, default=0.0) > 0:
                # Worth nothing, but the constraint tells the sampler where not to look again.
                self._finish(trial, [1.0] * len(self._study.directions), excess)
            elif key in self._seen:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._seen.add(key)
                self._open[key] = trial
                return kept
        return None

    def tell(self, kept: Kept, outcome: TrialOutcome) -> None:
        """Tell the study what a trial showed; trials it did not propose are added to it."""
        key = assignment_key(kept)
        trial = self._open.pop(key, None)
        if trial is None:
            if key in self._seen:
                return
            self._seen.add(key)
            self._study.enqueue_trial(
                {group: levels.index(kept[group]) for group, levels in self._levels.items()}
            )
            trial = self._study.ask()
            for group, levels in self._levels.items():
                trial.suggest_int(group, 0, len(levels) - 1)
        if outcome.accuracy_loss is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        self._finish(trial, self._values(kept, outcome), self._excess(kept))

    def _values(self, kept: Kept, outcome: TrialOutcome) -> list[float]:
        assert outcome.accuracy_loss is not None
        values = [outcome.accuracy_loss]
        if len(self._study.directions) > 1:
            quantity = _cost_objective(self._problem)
            known = outcome.costs.get(quantity)
            values.append(self._problem.costs(kept)[quantity] if known is None else known)
        return values

    def _excess(self, kept: Kept) -> list[float]:
        """Return one number per limit, positive where it is missed."""
        costs = self._problem.costs(kept)
        return [costs[quantity] / limit - 1.0 for quantity, limit in self._problem.limits.items()]

    def _finish(self, trial: optuna.Trial, values: list[float], excess: list[float]) -> None:
        for quantity, amount in zip(self._problem.limits, excess, strict=True):
            trial.set_constraint(str(quantity), amount)
        self._study.tell(trial, values)


class TpeSampler(_StudySampler):
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), minimising the loss of accuracy."""

    def __init__(self, problem: CompressionProblem, *, seed: int) -> None:
        super().__init__(problem, _study(optuna.samplers.TPESampler(seed=seed), objectives=1))


class Nsga2Sampler(_StudySampler):
    """NSGA-II (Deb et al., IEEE TEC 2002), minimising the loss of accuracy and a cost together.

    The cost is the problem's objective, or latency where that is the accuracy.
    """

    def __init__(
        self, problem: CompressionProblem, *, seed: int, population_size: int = 16
    ) -> None:
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population_size)
        super().__init__(problem, _study(sampler, objectives=2))


def _cost_objective(problem: CompressionProblem) -> Quantity:
    is_accuracy = problem.objective is Quantity.ACCURACY
    return Quantity.LATENCY if is_accuracy else problem.objective


def _study(sampler: optuna.samplers.BaseSampler, *, objectives: int) -> optuna.Study:
    """Return a study in memory that does not write to the log for every trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
    return optuna.create_study(sampler=sampler, directions=directions)
