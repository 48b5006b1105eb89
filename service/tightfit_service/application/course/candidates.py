"""The candidates of a search run as trials: screened after short training, the best trained long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tightfit_service.application.course.forms import ROUNDING_FELT, NetworkForm
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.course.portfolio import Candidate, Portfolio
from tightfit_service.application.course.proposals import Proposal
from tightfit_service.application.course.time_budget import TimeBudget
from tightfit_service.application.ports import RecoverySettings
from tightfit_service.application.recipes.techniques import PRECISION
from tightfit_service.application.together import together
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.trial import Trial, TrialRole

MAX_FINALISTS = 4

LEAST_SEEN = 2
"""Screened trials from which it is worth asking the solver again."""


class CandidateTrials:
    """Tries what a portfolio proposes, and lets it learn from what is seen."""

    def __init__(
        self,
        life: JobLife,
        portfolio: Portfolio,
        *,
        can_train: bool,
        after_trial: Callable[[], Awaitable[None]],
    ) -> None:
        self._life = life
        self._portfolio = portfolio
        self._can_train = can_train
        self._after_trial = after_trial

    async def nearest(self) -> None:
        """Run the network that comes nearest, as evidence of how far the budget is from reach."""
        life = self._life
        await life.stages.enter("trial", "the network that comes nearest", begin=0.15, end=0.95)
        await self._tried(
            TrialRole.FINALIST,
            await asyncio.to_thread(self._portfolio.nearest),
            life.time.short_training(),
            index=life.book.next_index,
        )
        await self._after_trial()

    async def screen(self) -> None:
        """Compare several solutions after a short recovery, and learn from what is seen."""
        life, portfolio = self._life, self._portfolio
        candidates = await asyncio.to_thread(portfolio.first_round)
        screening = _Screening(time=life.time, began=life.time.elapsed)
        while candidates and not screening.is_late_for(candidates[0]):
            trials = life.book.trials
            if not life.time.may_start_trial(trials, keep_for_final=1):
                break
            size = min(
                life.context.parallel_trials, life.time.trials_left(trials, keep_for_final=1)
            )
            batch, candidates = candidates[:size], candidates[size:]
            await self._screen_together(batch, screening)
            if not candidates and screening.seen >= LEAST_SEEN:
                await life.stages.enter(
                    "solve", "solving again with what was seen", begin=0.4, end=0.4
                )
                candidates = await asyncio.to_thread(portfolio.next_round, tuple(life.book.trials))

    async def _screen_together(self, batch: Sequence[Candidate], screening: _Screening) -> None:
        life, seen = self._life, screening.seen
        await life.stages.enter(
            "trial",
            f"screening: {'; '.join(candidate.origin for candidate in batch)}",
            begin=min(0.4, 0.15 + 0.05 * seen),
            end=min(0.4, 0.15 + 0.05 * (seen + len(batch))),
        )
        recovery, first = life.time.short_training(), life.book.next_index
        tried = await together(
            [
                self._tried(TrialRole.SCREENING, candidate, recovery, index=index)
                for index, candidate in enumerate(batch, first)
            ]
        )
        await self._after_trial()
        screening.add(batch)
        for trial, candidate in zip(tried, batch, strict=True):
            self._learn(trial, candidate)

    async def finalists(self) -> None:
        """Train the best candidates long; go on while the budget is missed and time is left.

        Where accuracy is the objective and the budget is met, rivals follow that screening could not
        tell from the winner, while there is time to train them as long.
        """
        life, portfolio = self._life, self._portfolio
        tried: list[Trial] = []
        wants_accuracy = life.spec.objective.quantity is Quantity.ACCURACY
        is_met = False
        # Where accuracy is the objective, the first finalist takes all the time there is.
        shares = 1 if wants_accuracy else MAX_FINALISTS
        while len(tried) < MAX_FINALISTS and (
            not tried or life.time.may_start_trial(life.book.trials, keep_for_final=0)
        ):
            find = portfolio.rival if is_met else portfolio.finalist
            candidate = await asyncio.to_thread(find, tuple(tried), tuple(life.book.trials))
            if candidate is None:
                break
            await life.stages.enter(
                "finish",
                f"long recovery: {candidate.origin}",
                begin=0.45 + 0.5 * min(1.0, len(tried) / shares),
                end=0.45 + 0.5 * min(1.0, (len(tried) + 1) / shares),
            )
            recovery = life.time.long_training(
                life.book.trials,
                shared_by=max(1, shares - len(tried)),
                quantization_aware=self._is_rounding_felt(candidate.proposal),
            )
            trial = await self._tried(
                TrialRole.FINALIST, candidate, recovery, index=life.book.next_index
            )
            await self._after_trial()
            tried.append(trial)
            self._learn(trial, candidate)
            is_met = is_met or (trial.fits_unpacked and wants_accuracy)
            if is_met and not life.time.has_as_much_as(trial, life.book.trials):
                break

    async def _tried(
        self, role: TrialRole, candidate: Candidate, recovery: RecoverySettings, *, index: int
    ) -> Trial:
        """Run a candidate, without the training where there is nothing to train on.

        What is only screened is kept from the evaluation set.
        """
        life, reference = self._life, self._reference
        return await life.book.run(
            index,
            role,
            lambda: life.recipes.make(
                first=candidate.form.steps,
                keep=candidate.proposal.keep,
                alternatives=candidate.proposal.alternatives,
                recovery=recovery if self._can_train else None,
            ),
            evaluate=role is not TrialRole.SCREENING,
            predicted_accuracy=None if reference is None else reference - candidate.predicted_loss,
        )

    def _learn(self, trial: Trial, candidate: Candidate) -> None:
        reference = self._reference
        if trial.metrics is None or trial.metrics.selection_accuracy is None or reference is None:
            return
        loss = reference - trial.metrics.selection_accuracy.value
        self._portfolio.observe(candidate, loss=loss, metrics=trial.metrics)

    @property
    def _reference(self) -> float | None:
        """Accuracy (fraction) of the model as it came on the selection set."""
        baseline = self._life.book.baseline
        known = None if baseline is None else baseline.selection_accuracy
        return None if known is None else known.value

    def _is_rounding_felt(self, proposal: Proposal) -> bool:
        """Whether training has to know about rounding: it cost the original too much, or is coarse."""
        is_coarse = any(choice.pass_name == PRECISION for choice in proposal.alternatives)
        return is_coarse or self._life.book.loss_by_rounding() > ROUNDING_FELT


@dataclass(kw_only=True)
class _Screening:
    """How far screening has come; a round is what runs at a time."""

    time: TimeBudget
    began: float
    rounds: int = 0
    seen: int = 0
    forms: list[NetworkForm] = field(default_factory=list)

    def add(self, batch: Sequence[Candidate]) -> None:
        self.rounds += 1
        self.seen += len(batch)
        self.forms += [candidate.form for candidate in batch]

    def is_late_for(self, candidate: Candidate) -> bool:
        """Whether one more round, as long as those before, would take more than screening may."""
        if self.rounds == 0:
            return False
        spent = self.time.elapsed - self.began
        most = self.time.screening_seconds(form_is_new=candidate.form not in self.forms)
        return spent + spent / self.rounds > most
