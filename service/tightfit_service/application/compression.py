"""The search for the best model that fits: preflight, baseline, sensitivity, solve, trials, finish.

1. Baseline: accuracy of the model as it came, and of the quantized-only one (trial 0).
2. Sensitivity: importance of every channel, corrected by a few measured points, and what other ways
   to compute single layers cost.
3. Solve: widths and ways that meet the whole budget by estimate and are predicted to lose least.
   Where the network as it is cannot reach the budget, its variants (fewer blocks, smaller inputs)
   are tried, mildest first.
4. Screening: short recovery of several solutions; what is seen corrects the prediction, and the
   problem is solved again.
5. Finish: long recovery of the best, evaluated on the evaluation set in the exported file's runtime.
6. Download: where its packed file is larger than the limit on it, sparsity and clustering of the best.

Every trial is stored before it runs and its result is remembered by the digest of its inputs, so a
run that is interrupted anywhere goes on where it was: it proposes the same trials again and finds
the finished ones done. A job that brings a recipe applies it, and searches nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from tightfit_service.application.attribution import PredictedLosses, attribute_layers
from tightfit_service.application.baseline_work import BASELINE, BaselineOutcome, BaselineTask
from tightfit_service.application.choice import closest_trial, summary
from tightfit_service.application.costing import preflight_notes, with_target_limits
from tightfit_service.application.download_limit import DownloadStage
from tightfit_service.application.infeasibility import explain_infeasibility
from tightfit_service.application.job_notes import JobNotes
from tightfit_service.application.journal import JobJournal
from tightfit_service.application.network_forms import ROUNDING_FELT, FormFinder, NetworkForm
from tightfit_service.application.portfolio import Candidate, Portfolio
from tightfit_service.application.ports import RecoverySettings
from tightfit_service.application.proposals import Proposal
from tightfit_service.application.provenance import ARTIFACT_NAME, MODEL, Outcome
from tightfit_service.application.recipe_making import RecipeMaker, teachers_of
from tightfit_service.application.recipe_steps import RECOVERY_STEP
from tightfit_service.application.stages import Stages
from tightfit_service.application.teaching import JobTeachers
from tightfit_service.application.techniques import PRECISION, network_passes
from tightfit_service.application.time_budget import TimeBudget
from tightfit_service.application.together import together
from tightfit_service.application.trial_book import RunContext, TrialBook
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import (
    JobResult,
    JobState,
    LayerAttribution,
)
from tightfit_service.domain.pareto import pareto_front
from tightfit_service.domain.trial import Metrics, Trial, TrialRole

MAX_FINALISTS = 4

COMPETING_PASSES = ("resolution",)
"""Network passes that are tried beside the network as it came, and not only where that cannot fit."""


class CompressionRun:
    """One life of one job's search."""

    def __init__(self, journal: JobJournal, context: RunContext) -> None:
        self._journal = journal
        self._context = context
        self._spec = journal.job.spec
        self._budget = with_target_limits(self._spec.budget, self._spec.target)
        self._costs = context.cost_model
        self._facts = context.facts
        self._format = context.cost_model.preferred_format(context.facts.profile)
        self._time = TimeBudget(self._spec, context.clock, spent_seconds=journal.job.spent_seconds)
        self._stages = Stages(
            journal, store=context.store, executor=context.executor, telemetry=context.telemetry
        )
        self._book = TrialBook(journal, context, self._stages, self._budget)
        self._recipes = RecipeMaker(
            spec=self._spec,
            number_format=self._format,
            tool_versions=context.tool_versions,
            architecture=context.facts.architecture,
        )
        self._notes = JobNotes(journal)
        self._forms = FormFinder(
            context,
            spec=self._spec,
            budget=self._budget,
            number_format=self._format,
            stages=self._stages,
            book=self._book,
            notes=self._notes,
        )
        self._teachers = JobTeachers(
            context,
            spec=self._spec,
            stages=self._stages,
            notes=self._notes,
        )
        self._portfolio: Portfolio | None = None
        self._download = DownloadStage(
            context,
            spec=self._spec,
            budget=self._budget,
            recipes=self._recipes,
            stages=self._stages,
            book=self._book,
            notes=self._notes,
            time=self._time,
            after_trial=self._store_result,
        )

    async def run(self) -> None:
        """Run the search to its end and bring the job to SUCCEEDED or INFEASIBLE.

        Raises:
            TightfitError: Nothing could be run at all; the job is to be failed by the caller.
        """
        await self._book.open()
        await self._preflight()
        baseline = await self._measure_baseline()
        quantized = await self._book.run(
            0, TrialRole.BASELINE_INT8, self._recipes.make, evaluate=True
        )
        await self._store_result()
        if self._spec.recipe is not None:
            await self._reapply()
        else:
            if self._needs_search(quantized):
                await self._search(baseline)
            await self._shrink_download(baseline)
        await self._finish()

    async def _reapply(self) -> None:
        """Apply the recipe that the job brings."""
        recipe = self._spec.recipe
        assert recipe is not None
        training = recipe.step(RECOVERY_STEP)
        if training is not None:
            await self._teachers.compare(teachers_of(training))
            await self._teachers.meet(self._book.dataset_inputs())
        await self._stages.enter("trial", "applying the recipe", begin=0.1, end=0.95)
        await self._book.run(
            1, TrialRole.FINALIST, lambda: self._recipes.reapplied(recipe), evaluate=True
        )
        await self._store_result()

    async def _preflight(self) -> None:
        await self._stages.enter("preflight", "what can help on this target", begin=0.0, end=0.02)
        found = preflight_notes(
            costs=self._costs,
            profile=self._facts.profile,
            space=self._facts.space,
            warnings=self._facts.warnings,
        )
        await self._notes.extend(found, stage="preflight")
        await self._download.announce()
        if self._spec.dataset_digest is None:
            await self._notes.add(
                "NO_DATASET",
                "there is no dataset: calibration and training use inputs made from the model, and "
                "accuracy means agreement with the model as it came on such inputs",
            )

    async def _measure_baseline(self) -> BaselineOutcome:
        await self._stages.enter("baseline", "measuring the model as it came", begin=0.02, end=0.05)
        outcome = await self._stages.ask(
            BASELINE,
            BaselineTask(model=self._facts),
            {
                "model": self._spec.model_digest,
                "graph": self._context.graph_digest,
                **self._book.dataset_inputs(),
            },
        )
        self._book.baseline = Metrics(
            cost=self._costs.estimate(self._facts.profile, NumberFormat.FLOAT32),
            file_bytes=outcome.file_bytes,
            accuracy=outcome.accuracy,
            selection_accuracy=outcome.selection_accuracy,
        )
        return outcome

    def _needs_search(self, quantized: Trial) -> bool:
        """Whether anything better than quantizing alone is asked for."""
        return self._spec.objective.quantity is not Quantity.ACCURACY or not quantized.fits_unpacked

    async def _shrink_download(self, baseline: BaselineOutcome) -> None:
        """Make the packed file smaller, where only that misses its limit."""
        if self._download.base is None:
            return
        can_train = baseline.train_count > 0
        if can_train and self._portfolio is None:
            await self._teachers.meet(self._book.dataset_inputs())
        await self._download.run(can_train=can_train)

    async def _search(self, baseline: BaselineOutcome) -> None:
        can_train = baseline.train_count > 0
        if can_train:
            await self._teachers.meet(self._book.dataset_inputs())
        first = await self._forms.as_it_came()
        portfolio = Portfolio(prepared=[first], objective=self._spec.objective)
        self._portfolio = portfolio
        techniques = network_passes(self._spec)
        is_searched = can_train and self._spec.objective.quantity is Quantity.ACCURACY
        early = COMPETING_PASSES if is_searched else ()
        portfolio.prepared += await self._forms.variants(
            first, [name for name in techniques if name in early]
        )
        if await asyncio.to_thread(portfolio.out_of_reach) or not portfolio.has_choice:
            portfolio.prepared += await self._forms.variants(
                first, [name for name in techniques if name not in early]
            )
        if not portfolio.has_choice and len(portfolio.prepared) == 1:
            await self._notes.add(
                "NOT_PRUNABLE", "none of the techniques that may be used can change this model"
            )
            return
        missed = await asyncio.to_thread(portfolio.out_of_reach)
        missed_at_first = await asyncio.to_thread(first.proposer.out_of_reach)
        if missed_at_first and not missed:
            await self._notes.add(
                "VARIANT",
                "the budget is out of reach of the network as it is: its other forms are searched",
            )
        for note in missed:
            await self._notes.add("BUDGET_BELOW_REACH", note)
        if missed:
            await self._closest(can_train=can_train)
            return
        await self._screen(portfolio, can_train=can_train)
        await self._finalists(portfolio, can_train=can_train)

    async def _closest(self, *, can_train: bool) -> None:
        """Run the smallest network, as evidence of how far the budget is from reach."""
        assert self._portfolio is not None
        await self._stages.enter("trial", "the smallest network there is", begin=0.15, end=0.95)
        await self._tried(
            TrialRole.FINALIST,
            self._portfolio.smallest(),
            self._time.short_training() if can_train else None,
            index=self._book.next_index,
            evaluate=True,
        )
        await self._store_result()

    async def _screen(self, portfolio: Portfolio, *, can_train: bool) -> None:
        """Compare several solutions after a short recovery, and learn from what is seen."""
        candidates = await asyncio.to_thread(portfolio.first_round)
        began, rounds, seen = self._time.elapsed, 0, 0
        forms: list[NetworkForm] = []
        while candidates:
            last = (self._time.elapsed - began) / rounds if rounds else 0.0
            most = self._time.screening_seconds(form_is_new=candidates[0].form not in forms)
            is_late = rounds > 0 and self._time.elapsed - began + last > most
            trials = self._book.trials
            if is_late or not self._time.may_start_trial(trials, keep_for_final=1):
                break
            size = min(
                self._context.parallel_trials, self._time.trials_left(trials, keep_for_final=1)
            )
            batch, candidates = candidates[:size], candidates[size:]
            forms += [candidate.form for candidate in batch]
            await self._stages.enter(
                "trial",
                f"screening: {'; '.join(candidate.origin for candidate in batch)}",
                begin=min(0.4, 0.15 + 0.05 * seen),
                end=min(0.4, 0.15 + 0.05 * (seen + len(batch))),
            )
            recovery = self._time.short_training() if can_train else None
            first = self._book.next_index
            tried = await together(
                [
                    self._tried(
                        TrialRole.SCREENING, candidate, recovery, index=index, evaluate=False
                    )
                    for index, candidate in enumerate(batch, first)
                ]
            )
            await self._store_result()
            rounds, seen = rounds + 1, seen + len(batch)
            for trial, candidate in zip(tried, batch, strict=True):
                self._learn(portfolio, trial, candidate)
            if not candidates and seen >= 2:  # two observations before asking again
                await self._stages.enter(
                    "solve", "solving again with what was seen", begin=0.4, end=0.4
                )
                candidates = await asyncio.to_thread(portfolio.next_round, tuple(self._book.trials))

    def _learn(self, portfolio: Portfolio, trial: Trial, candidate: Candidate) -> None:
        if trial.metrics is None or trial.metrics.selection_accuracy is None:
            return
        reference = self._book.baseline.selection_accuracy if self._book.baseline else None
        if reference is None:
            return
        loss = reference.value - trial.metrics.selection_accuracy.value
        portfolio.observe(candidate, loss=loss, metrics=trial.metrics)

    async def _finalists(self, portfolio: Portfolio, *, can_train: bool) -> None:
        """Train the best candidates long; go on while the budget is missed and time is left."""
        tried: list[Trial] = []
        # Where accuracy is the objective, the first finalist takes all the time there is.
        shares = 1 if self._spec.objective.quantity is Quantity.ACCURACY else MAX_FINALISTS
        while len(tried) < MAX_FINALISTS and (
            not tried or self._time.may_start_trial(self._book.trials, keep_for_final=0)
        ):
            candidate = await asyncio.to_thread(
                portfolio.finalist, tuple(tried), tuple(self._book.trials)
            )
            if candidate is None:
                break
            await self._stages.enter(
                "finish",
                f"long recovery: {candidate.origin}",
                begin=0.45 + 0.5 * min(1.0, len(tried) / shares),
                end=0.45 + 0.5 * min(1.0, (len(tried) + 1) / shares),
            )
            recovery = self._time.long_training(
                self._book.trials,
                shared_by=max(1, shares - len(tried)),
                quantization_aware=self._is_rounding_felt(candidate.proposal),
            )
            trial = await self._tried(
                TrialRole.FINALIST,
                candidate,
                recovery if can_train else None,
                index=self._book.next_index,
                evaluate=True,
            )
            await self._store_result()
            tried.append(trial)
            self._learn(portfolio, trial, candidate)
            if trial.fits_unpacked and self._spec.objective.quantity is Quantity.ACCURACY:
                break

    def _is_rounding_felt(self, proposal: Proposal) -> bool:
        """Whether training has to know about rounding: it cost the original too much, or is coarse."""
        is_coarse = any(choice.pass_name == PRECISION for choice in proposal.alternatives)
        return is_coarse or self._book.loss_by_rounding() > ROUNDING_FELT

    async def _tried(
        self,
        role: TrialRole,
        candidate: Candidate,
        recovery: RecoverySettings | None,
        *,
        index: int,
        evaluate: bool,
    ) -> Trial:
        baseline = self._book.baseline
        reference = baseline.selection_accuracy if baseline else None
        return await self._book.run(
            index,
            role,
            lambda: self._recipes.make(
                first=candidate.form.steps,
                keep=candidate.proposal.keep,
                alternatives=candidate.proposal.alternatives,
                recovery=recovery,
            ),
            evaluate=evaluate,
            predicted_accuracy=None
            if reference is None
            else reference.value - candidate.predicted_loss,
        )

    async def _finish(self) -> None:
        await self._stages.enter("package", "choosing the winner", begin=0.97, end=1.0)
        result, end_time = self._result(), self._context.clock.now()
        if result.best_trial is not None:
            best = self._book.get(result.best_trial)
            assert best is not None
            await self._sign(best.index, JobState.SUCCEEDED, end_time)
            await self._journal.enter(
                JobState.SUCCEEDED,
                f"trial {best.index} fits: {summary(best)}",
                result=replace(result, notes=self._notes.all),
                end_time=end_time,
            )
            return
        reachable, needed = await asyncio.to_thread(self._estimated_needs)
        infeasibility = explain_infeasibility(
            self._book.trials,
            budget=self._budget,
            baseline=self._book.baseline,
            reachable={**reachable, **self._download.reachable},
            needed=needed,
        )
        for index in infeasibility.closest_trials[:1]:
            await self._sign(index, JobState.INFEASIBLE, end_time)
        await self._journal.enter(
            JobState.INFEASIBLE,
            infeasibility.explanation,
            result=replace(result, infeasibility=infeasibility, notes=self._notes.all),
            end_time=end_time,
        )

    async def _sign(self, index: int, state: JobState, end_time: datetime) -> None:
        """Have the origin of the shown trial's model signed; without a store, hours of search still count."""
        trial, provenance = self._book.get(index), self._context.provenance
        if provenance is None or trial is None or trial.metrics is None:
            return
        if MODEL not in trial.artifacts:
            return
        outcome = Outcome(
            job=self._journal.job,
            state=state,
            end_time=end_time,
            trial=trial,
            tool_versions=self._context.tool_versions,
            baseline=self._book.baseline,
        )
        try:
            await self._book.attach(index, ARTIFACT_NAME, await provenance.attest(outcome))
        except TightfitError as error:
            await self._notes.add("NOT_SIGNED", f"the origin of the result is not signed: {error}")

    def _estimated_needs(
        self,
    ) -> tuple[Mapping[Quantity, float], Mapping[Quantity, float | None]]:
        """Return what pruning can reach at all, and the solver's least limits; empty before it ran."""
        if self._portfolio is None:
            return {}, {}
        accuracy = self._book.baseline.accuracy if self._book.baseline else None
        floor = self._budget.accuracy_floor(accuracy.value if accuracy else None)
        max_loss = None if accuracy is None or floor is None else max(0.0, accuracy.value - floor)
        return self._portfolio.reachable(), self._portfolio.needed(max_loss)

    def _result(self) -> JobResult:
        best = self._book.best
        quantized = self._book.get(0)
        shown = best or closest_trial(
            t for t in self._book.trials if self._book.outcome(t.index) is not None
        )
        return JobResult(
            baseline=self._book.baseline,
            baseline_int8=quantized.metrics if quantized else None,
            best_trial=None if best is None else best.index,
            pareto_trials=pareto_front(self._book.trials),
            layers=() if shown is None else self._layers(shown),
            notes=self._notes.all,
        )

    def _layers(self, trial: Trial) -> tuple[LayerAttribution, ...]:
        outcome = self._book.outcome(trial.index)
        assert trial.metrics is not None
        assert outcome is not None
        losses, space = PredictedLosses(), self._facts.space
        if self._portfolio is not None:
            losses = self._portfolio.losses_of(trial)
            space = self._portfolio.prepared_of(trial).form.space
        return attribute_layers(
            before=self._facts.profile,
            before_cost=self._costs.estimate(self._facts.profile, self._format),
            after=outcome.profile,
            after_cost=trial.metrics.cost,
            space=space,
            recipe=trial.recipe,
            losses=losses,
        )

    async def _store_result(self) -> None:
        """Keep the best so far where a reader, or the next life, finds it."""
        await self._journal.update(result=self._result(), spent_seconds=self._time.elapsed)
        self._context.telemetry.best_so_far(self._journal.job.job_id, self._book.best)
