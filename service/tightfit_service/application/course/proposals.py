"""Which candidate to try next: solutions of the whole budget under several views of sensitivity.

Importance scores rank channels well within a layer and less well between layers, and what recovery
training regains differs by layer. So the first round asks the solver under three views, and what
the trials show corrects the first of them:

measured   the sensitivity model: importance scores scaled by measured points
even       every group loses alike for the same share cut, which is what uniform pruning assumes
blended    the mean of both
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.costs.costing import ProblemBuilder, interval_of, option_id
from tightfit_service.application.course.first_model import FirstModel
from tightfit_service.application.course.worthwhile_ways import worthwhile_ways
from tightfit_service.application.recipes.attribution import ChangeLosses
from tightfit_service.application.recipes.making import is_in
from tightfit_service.application.recipes.steps import PRUNING_STEP
from tightfit_service.application.work.sensitivity import SensitivityOutcome, most_important
from tightfit_service.domain.budget import (
    Budget,
    Constraint,
    Objective,
    Quantity,
    quantity_text,
)
from tightfit_service.domain.network import Alternative
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import (
    COST_QUANTITIES,
    Metrics,
    Trial,
    TrialRole,
    TrialState,
    cost_of,
)
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.relaxation import conflict
from tightfit_service.search.samplers import MilpSampler, TrialOutcome
from tightfit_service.search.sensitivity import SensitivityModel
from tightfit_service.search.solver import nearest, smallest_costs, solve

EVEN_EXPONENT = 2.0
"""Loss grows with the square of the share cut in the even view: small cuts are nearly free."""

TIGHTENING = (1.0, 0.8)
"""Limits of the solver's ladder: the budget, and a second point of the front below it."""

FIRST_PACE = 0.5
"""Share of the quantized model's cost that is tried first when a cost is minimised."""

_Key = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to keep of each group, how to compute each node, and why this candidate was made."""

    kept: Mapping[str, int]
    """Units per channel group, and levels of the ways to compute nodes."""
    keep: Mapping[str, Sequence[int]]
    """The units that stay, of the groups that are cut."""
    alternatives: tuple[Alternative, ...]
    """The ways that are not the ordinary one."""
    predicted_loss: float
    origin: str
    pace: float | None = None


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What candidates are to meet, and what is made best within it.

    Attributes:
        margins: Per cost quantity, the ratio of what the limits are held against to the centre of
            the estimate.
    """

    budget: Budget
    objective: Objective
    margins: Mapping[Quantity, float]


class Proposer:
    """Makes candidates for one job and learns from their trials. Not for several threads at once."""

    def __init__(
        self, *, problems: ProblemBuilder, sensitivity: SensitivityOutcome, aim: Aim, seed: int
    ) -> None:
        """Ask the solver for the first candidate.

        Args:
            problems: Of the network that is searched in, with each node computed in the ordinary
                way; the ways that are worth it are added.
            sensitivity: What was measured of the network.
            aim: The budget and the objective.
            seed: Of the sampler's random choices.
        """
        ways = worthwhile_ways(sensitivity)
        self._ways = {
            option_id(node): tuple(way.alternative for way in choices)
            for node, choices in ways.items()
        }
        self._ordinary = problems
        self._builder = replace(
            problems,
            alternatives={
                node: [way.alternative for way in choices] for node, choices in ways.items()
            },
        )
        self._levels = self._builder.group_levels()
        self._importance = sensitivity.importance
        self._budget = aim.budget
        self._objective = aim.objective
        self._margins = dict(aim.margins)
        self._whole = problems.costs.estimate(problems.profile, problems.number_format)
        self._first = FirstModel.of(sensitivity, ways)
        model = self._first.model
        self._sampler = MilpSampler(
            self._problem(self._losses(model)), model, seed=seed, tightening=TIGHTENING
        )
        self._by_kept: dict[_Key, Proposal] = {}
        self._pace_too_tight, self._pace_met = 0.0, 1.0

    @property
    def has_ways(self) -> bool:
        """Whether any node can be computed in another way than the ordinary one."""
        return bool(self._ways)

    def out_of_reach(self) -> list[str]:
        """Return a sentence for each limit that is missed at any widths by estimate."""
        reachable = self.reachable
        return [
            f"the {quantity} limit of {quantity_text(quantity, limit)} is out of reach: the smallest "
            "network that pruning can make may need "
            f"{quantity_text(quantity, reachable[quantity])} by estimate"
            for quantity in COST_QUANTITIES
            if (limit := self._budget.limit_of(quantity)) is not None
            and reachable[quantity] > limit
        ]

    @functools.cached_property
    def reachable(self) -> Mapping[Quantity, float]:
        """The least upper end of each cost that pruning can reach by estimate; no trial changes it."""
        least = smallest_costs(self._problem(self._measured_losses()))
        return {q: value * self._margins.get(q, 1.0) for q, value in least.items()}

    @property
    def excess_ratio(self) -> float:
        """How many times its limit the cost is, at its least, that misses it most."""
        limits = {q: self._budget.limit_of(q) for q in COST_QUANTITIES}
        return max(
            (self.reachable[q] / limit for q, limit in limits.items() if limit is not None),
            default=0.0,
        )

    def nearest(self) -> Proposal:
        """Return the network that comes nearest to the cost limits, every node computed in the ordinary way."""
        problem = self._ordinary.build_without_losses(self._budget, margins=self._margins)
        ways = {group_id: choices.index(None) + 1 for group_id, choices in self._ways.items()}
        return self._remember(self._proposal({**nearest(problem), **ways}, "nearest to the budget"))

    def first_round(self) -> list[Proposal]:
        """Return the candidates to screen; none when a cost is minimised (see `finalist`)."""
        if self._objective.quantity is not Quantity.ACCURACY:
            return []
        measured, even = self._measured_losses(), self._even_losses()
        blended = {
            group_id: [(a + b) / 2 for a, b in zip(losses, even[group_id], strict=True)]
            for group_id, losses in measured.items()
        }
        wanted = [
            self._asked("measured sensitivity"),
            self._solved(self._problem(blended), "blended sensitivity"),
            self._solved(self._problem(even), "even sensitivity"),
            self._asked("tighter limits"),
        ]
        return self._new(wanted)

    def next_round(self) -> list[Proposal]:
        """Return a candidate that follows from what was seen, or nothing when there is none new."""
        return self._new([self._asked("corrected by trials")])

    def observe(self, proposal: Proposal, *, loss: float, metrics: Metrics) -> None:
        """Learn from a trial: its true loss of accuracy and its re-estimated cost."""
        centres = {
            quantity: cost_of(metrics, quantity) / self._margins.get(quantity, 1.0)
            for quantity in COST_QUANTITIES
        }
        self._sampler.tell(proposal.kept, TrialOutcome(accuracy_loss=loss, costs=centres))

    def needed(self, max_loss: float | None) -> Mapping[Quantity, float | None]:
        """Return, per limited quantity, the least limit that would do by estimate, the others in force.

        For ACCURACY that is the greatest loss that must be allowed; None where nothing would do.

        Args:
            max_loss: Loss of accuracy that the budget allows now, or None when accuracy is free.
        """
        problem = replace(self._problem(self._measured_losses()), max_loss=max_loss)
        found = conflict(problem).needed
        return {
            quantity: None if least is None else least * self._margins.get(quantity, 1.0)
            for quantity, least in found.items()
        }

    def screened(
        self, tried: Sequence[Trial], trials: Sequence[Trial]
    ) -> Mapping[int, tuple[Accuracy, Proposal]]:
        """Return accuracy and proposal of the screened trials that cost little enough, by index.

        Those that were tried long already are left out.
        """
        used = {self._kept_of(trial) for trial in tried}
        return {
            trial.index: (trial.metrics.selection_accuracy, self._by_kept[key])
            for trial in trials
            if trial.role is TrialRole.SCREENING
            and trial.state is TrialState.COMPLETED
            and trial.metrics is not None
            and trial.metrics.selection_accuracy is not None
            and not any(v.quantity in COST_QUANTITIES for v in trial.violations)
            and (key := self._kept_of(trial)) not in used
            and key in self._by_kept
        }

    def finalist(self, tried: Sequence[Trial]) -> Proposal | None:
        """Return a candidate to train long that was not screened, or None when there is none new."""
        if self._objective.quantity is not Quantity.ACCURACY:
            return self._paced(tried)
        solved = self._asked("solved")
        return None if solved is None else self._remember(solved)

    def losses_of(self, recipe: Recipe, formats: Mapping[str, float]) -> ChangeLosses:
        """Return what each of a recipe's changes is predicted to cost; whole groups lose nothing."""
        return replace(self._losses_by(self._sampler.model, recipe), formats=formats)

    def untrained_losses_of(self, recipe: Recipe) -> ChangeLosses:
        """Return what each change was predicted to cost alone and untrained, before any trial ran."""
        return self._first.untrained(self._losses_by(self._first.model, recipe))

    def _losses_by(self, model: SensitivityModel, recipe: Recipe) -> ChangeLosses:
        kept = self._kept_in(recipe)
        losses = {group_id: model.loss(group_id, kept[group_id]) for group_id in self._levels}
        chosen = {
            choice.node: losses[group_id]
            for group_id, choices in self._ways.items()
            if (choice := choices[kept[group_id] - 1]) is not None
        }
        groups = {key: loss for key, loss in losses.items() if key not in self._ways}
        return ChangeLosses(groups=groups, nodes=chosen)

    def _paced(self, tried: Sequence[Trial]) -> Proposal | None:
        """Bisect the objective's cost: tighter while the budget is met, looser when it is not."""
        for trial in tried:
            proposal = self._by_kept.get(self._kept_of(trial))
            if proposal is None or proposal.pace is None:
                continue
            if trial.fits_unpacked:
                self._pace_met = min(self._pace_met, proposal.pace)
            else:
                self._pace_too_tight = max(self._pace_too_tight, proposal.pace)
        pace = (self._pace_too_tight + self._pace_met) / 2 if tried else FIRST_PACE
        quantity = self._objective.quantity
        limit = pace * interval_of(self._whole, quantity).high
        asked = self._budget.limit_of(quantity)
        budget = Budget(
            constraints=tuple(c for c in self._budget.constraints if c.quantity is not quantity)
        ).with_constraints(
            [Constraint(quantity=quantity, limit=limit if asked is None else min(limit, asked))]
        )
        problem = self._problem(self._measured_losses(), budget=budget)
        solved = self._solved(problem, f"{quantity} at {pace:.0%} of the quantized model")
        if solved is None:
            self._pace_too_tight = max(self._pace_too_tight, pace)
            return None if len(tried) > 1 else self.nearest()
        proposal = replace(solved, pace=pace)
        if _key(proposal.kept) in {self._kept_of(trial) for trial in tried}:
            return None
        return self._remember(proposal)

    def _problem(
        self, losses: Mapping[str, Sequence[float]], *, budget: Budget | None = None
    ) -> CompressionProblem:
        return self._builder.build(
            losses=losses,
            budget=budget or self._budget,
            objective=Objective(),
            max_loss=None,
            margins=self._margins,
        )

    def _losses(self, model: SensitivityModel) -> dict[str, list[float]]:
        return {
            group_id: [model.loss(group_id, kept) for kept in steps]
            for group_id, steps in self._levels.items()
        }

    def _measured_losses(self) -> dict[str, list[float]]:
        return self._losses(self._sampler.model)

    def _even_losses(self) -> dict[str, list[float]]:
        """Return losses by the share cut alone, on the scale of the measured ones."""
        shape = {
            group_id: [(1 - kept / steps[-1]) ** EVEN_EXPONENT for kept in steps]
            for group_id, steps in self._levels.items()
            if group_id not in self._ways
        }
        measured = self._measured_losses()
        total = sum(sum(measured[group_id]) for group_id in shape)
        flat = sum(sum(losses) for losses in shape.values())
        scale = total / flat if total > 0 and flat > 0 else 1.0
        even = {group_id: [scale * v for v in losses] for group_id, losses in shape.items()}
        return {**measured, **even}

    def _asked(self, origin: str) -> Proposal | None:
        """Return what the sampler proposes next."""
        kept = self._sampler.ask()
        return None if kept is None else self._proposal(kept, origin)

    def _solved(self, problem: CompressionProblem, origin: str) -> Proposal | None:
        solution = solve(problem)
        return self._proposal(solution.kept, origin) if solution.is_feasible else None

    def _proposal(self, kept: Mapping[str, int], origin: str) -> Proposal:
        return Proposal(
            kept=dict(kept),
            keep={
                group_id: most_important(scores, kept[group_id])
                for group_id, scores in self._importance.items()
                if group_id in kept and kept[group_id] < len(scores)
            },
            alternatives=tuple(
                choice
                for group_id, choices in self._ways.items()
                if (choice := choices[kept[group_id] - 1]) is not None
            ),
            predicted_loss=min(1.0, self._sampler.model.predict(kept)),
            origin=origin,
        )

    def _new(self, proposals: Sequence[Proposal | None]) -> list[Proposal]:
        fresh: dict[_Key, Proposal] = {}
        for proposal in proposals:
            if proposal is not None and _key(proposal.kept) not in self._by_kept:
                fresh.setdefault(_key(proposal.kept), proposal)
        return [self._remember(proposal) for proposal in fresh.values()]

    def _remember(self, proposal: Proposal) -> Proposal:
        return self._by_kept.setdefault(_key(proposal.kept), proposal)

    def _kept_of(self, trial: Trial) -> _Key:
        return _key(self._kept_in(trial.recipe))

    def _kept_in(self, recipe: Recipe) -> Mapping[str, int]:
        """Return units per channel group, and levels of the ways, that a recipe has."""
        step = recipe.step(PRUNING_STEP)
        keep = step.parameters["keep"] if step is not None else {}
        kept = {
            group_id: len(keep[group_id]) if group_id in keep else steps[-1]
            for group_id, steps in self._levels.items()
        }
        for group_id, choices in self._ways.items():
            for level, choice in enumerate(choices, start=1):
                if choice is None:
                    kept[group_id] = level
                elif is_in(choice, recipe):
                    kept[group_id] = level
                    break
        return kept


def _key(kept: Mapping[str, int]) -> _Key:
    return tuple(sorted(kept.items()))
