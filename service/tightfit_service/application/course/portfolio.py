"""The forms of the network that one job searches in at once, and which candidate to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from tightfit_service.application.course.forms import NetworkForm, Prepared
from tightfit_service.application.course.proposals import Proposal
from tightfit_service.application.recipes.attribution import ChangeLosses
from tightfit_service.domain.budget import Objective, Quantity
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.trial import Metrics, Trial, TrialRole
from tightfit_service.search.early_stopping import Screened, SuccessiveHalving, is_worse

FORM_LOSS_LEFT = 0.3
"""What training is assumed to leave of the accuracy that a form of the network loses by itself. It
only ranks forms against each other before any was tried."""

SCREENED_FORMS = 4
"""Forms that are compared by training: the network as it came, and the best others by prediction."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A proposal and the form that it is for."""

    form: NetworkForm
    proposal: Proposal

    @property
    def predicted_loss(self) -> float:
        """Predicted loss of accuracy (fraction) after training, the form's own part included."""
        return self.proposal.predicted_loss + FORM_LOSS_LEFT * self.form.lost

    @property
    def origin(self) -> str:
        """Why this candidate was made, for people."""
        return ", ".join(filter(None, [self.form.label, self.proposal.origin]))


@dataclass
class Portfolio:
    """Prepared forms, the network as it came first. Not for several threads at once."""

    prepared: list[Prepared]
    objective: Objective
    _halving: SuccessiveHalving = field(default_factory=SuccessiveHalving)

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to choose in any form."""
        return any(p.form.space.groups or p.proposer.has_ways for p in self.prepared)

    def first_round(self) -> list[Candidate]:
        """Return candidates to screen, the best of each form first; none when a cost is minimised."""
        if self.objective.quantity is not Quantity.ACCURACY:
            return []
        rounds = [
            [Candidate(form=p.form, proposal=proposal) for proposal in p.proposer.first_round()]
            for p in self.prepared
        ]
        first, others = rounds[:1], [found for found in rounds[1:] if found]
        others.sort(key=lambda found: found[0].predicted_loss)
        chosen = [*first, *others[: SCREENED_FORMS - 1]]
        return [c for c in chain.from_iterable(zip_longest(*chosen)) if c is not None]

    def next_round(self, trials: Sequence[Trial]) -> list[Candidate]:
        """Return a candidate that follows from what was seen, in the form that did best."""
        best = self._best(trials)
        found = best.proposer.next_round()
        return [Candidate(form=best.form, proposal=proposal) for proposal in found]

    def observe(self, candidate: Candidate, *, loss: float, metrics: Metrics) -> None:
        """Learn from a trial: its true loss of accuracy and its re-estimated cost."""
        for p in self.prepared:
            if p.form is candidate.form:
                p.proposer.observe(candidate.proposal, loss=loss, metrics=metrics)

    def finalist(self, tried: Sequence[Trial], trials: Sequence[Trial]) -> Candidate | None:
        """Return the candidate to train long, or None when there is nothing left to try."""
        if self.objective.quantity is Quantity.ACCURACY:
            found = self._screened(tried, trials)
            rung = [Screened(index=i, accuracy=accuracy) for i, (accuracy, _) in found.items()]
            for index in self._halving.survivors(rung, slots=1):
                return found[index][1]
        best = self._best(trials)
        own = [trial for trial in tried if best.form.made(trial)]
        proposal = best.proposer.finalist(own)
        return None if proposal is None else Candidate(form=best.form, proposal=proposal)

    def rival(self, tried: Sequence[Trial], trials: Sequence[Trial]) -> Candidate | None:
        """Return the best screened candidate that could not be told from the very best of them.

        A short training says which candidates recover quickly, not quite which recover furthest. None where
        those that were trained long already were better beyond the error of screening.
        """
        left = self._screened(tried, trials).values()
        if not left:
            return None
        best, _ = max(self._screened((), trials).values(), key=_accuracy)
        accuracy, candidate = max(left, key=_accuracy)
        return None if is_worse(accuracy, best) else candidate

    def nearest(self) -> Candidate:
        """Return the network that comes nearest to the budget, of the form that does."""
        nearest = self._nearest_form()
        return Candidate(form=nearest.form, proposal=nearest.proposer.nearest())

    def out_of_reach(self) -> list[str]:
        """Return a sentence for each limit that the nearest form misses, where all miss one by estimate."""
        if not all(p.proposer.out_of_reach() for p in self.prepared):
            return []
        return self._nearest_form().proposer.out_of_reach()

    def reachable(self) -> Mapping[Quantity, float]:
        """Return the least upper end of each cost that any form can reach by estimate."""
        found = [p.proposer.reachable for p in self.prepared]
        return {quantity: min(costs[quantity] for costs in found) for quantity in found[0]}

    def needed(self, max_loss: float | None) -> Mapping[Quantity, float | None]:
        """Return, per limited quantity, the least limit that would do; see `Proposer.needed`."""
        found = [
            p.proposer.needed(
                None if max_loss is None else max(0.0, max_loss - FORM_LOSS_LEFT * p.form.lost)
            )
            for p in self.prepared
        ]
        result: dict[Quantity, float | None] = {}
        for quantity in found[0]:
            known = [limit for needs in found if (limit := needs.get(quantity)) is not None]
            result[quantity] = min(known, default=None)
        return result

    def prepared_of(self, trial: Trial) -> Prepared:
        """Return the form of a trial's network, with what proposes candidates in it."""
        return next((p for p in self.prepared if p.form.made(trial)), self.prepared[0])

    def losses_of(self, trial: Trial) -> ChangeLosses:
        """Return what each change of a trial is predicted to cost."""
        found = self.prepared_of(trial)
        return found.proposer.losses_of(trial.recipe, found.form.sensitivity.precision_costs)

    def untrained_losses_of(self, trial: Trial) -> ChangeLosses:
        """Return what each change was predicted to cost alone and untrained, before any trial ran."""
        return self.prepared_of(trial).proposer.untrained_losses_of(trial.recipe)

    def knows_rounding(self, trial: Trial) -> bool:
        """Whether it was measured, before any cut, what the number format costs each layer."""
        return bool(self.prepared_of(trial).form.sensitivity.precision_costs)

    def _nearest_form(self) -> Prepared:
        return min(self.prepared, key=lambda p: p.proposer.excess_ratio)

    def _screened(
        self, tried: Sequence[Trial], trials: Sequence[Trial]
    ) -> dict[int, tuple[Accuracy, Candidate]]:
        """Return accuracy and candidate of screened trials that may still be trained long, by index."""
        found: dict[int, tuple[Accuracy, Candidate]] = {}
        for p in self.prepared:
            own = [trial for trial in trials if p.form.made(trial)]
            used = [trial for trial in tried if p.form.made(trial)]
            for index, (accuracy, proposal) in p.proposer.screened(used, own).items():
                found[index] = (accuracy, Candidate(form=p.form, proposal=proposal))
        return found

    def _best(self, trials: Sequence[Trial]) -> Prepared:
        """Return the form of the most accurate trial so far; by prediction where there is none."""
        seen = [t for t in trials if t.metrics is not None and t.metrics.selection_accuracy]
        searched = [t for t in seen if t.role is not TrialRole.BASELINE_INT8]
        if searched:
            return self.prepared_of(max(searched, key=_selected))
        within = [p for p in self.prepared if not p.proposer.out_of_reach()]
        return (within or self.prepared)[0]


def _accuracy(screened: tuple[Accuracy, Candidate]) -> float:
    return screened[0].value


def _selected(trial: Trial) -> float:
    assert trial.metrics is not None
    assert trial.metrics.selection_accuracy is not None
    return trial.metrics.selection_accuracy.value
