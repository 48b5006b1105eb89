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

from tightfit_service.application.course.candidates import CandidateTrials
from tightfit_service.application.course.download_limit import DownloadStage
from tightfit_service.application.course.forms import FormFinder, Prepared
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.course.narrow_file import learn_narrow_file
from tightfit_service.application.course.portfolio import Portfolio
from tightfit_service.application.course.preflight import preflight_notes
from tightfit_service.application.course.teaching import JobTeachers
from tightfit_service.application.course.verdict import Verdict
from tightfit_service.application.recipes.making import teachers_of
from tightfit_service.application.recipes.steps import RECOVERY_STEP
from tightfit_service.application.recipes.techniques import network_passes
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.trials.book import RunContext
from tightfit_service.application.work.baseline import BASELINE, BaselineOutcome, BaselineTask
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Metrics, Trial, TrialRole

COMPETING_PASSES = ("resolution",)
"""Network passes that are tried beside the network as it came, and not only where that cannot fit."""


class CompressionRun:
    """One life of one job's search."""

    def __init__(self, journal: JobJournal, context: RunContext) -> None:
        life = JobLife.begin(journal, context)
        self._life = life
        self._forms = FormFinder(life)
        self._teachers = JobTeachers(life)
        self._verdict = Verdict(life)
        self._download = DownloadStage(life, after_trial=self._verdict.keep)

    async def run(self) -> None:
        """Run the search to its end and bring the job to SUCCEEDED or INFEASIBLE.

        Raises:
            TightfitError: Nothing could be run at all; the job is to be failed by the caller.
        """
        recipe = self._life.spec.recipe
        await self._life.book.open()
        await self._preflight()
        baseline = await self._measure_baseline()
        quantized = await self._quantize()
        if recipe is not None:
            await self._reapply(recipe)
        else:
            can_train = baseline.train_count > 0
            if self._needs_search(quantized):
                await self._search(can_train=can_train)
            await self._shrink_download(can_train=can_train)
        await self._verdict.tell(reachable=self._download.reachable)

    async def _preflight(self) -> None:
        """Say what cannot help, before anything is run."""
        life = self._life
        await life.stages.enter("preflight", "what can help on this target", begin=0.0, end=0.02)
        found = preflight_notes(life.facts, costs=life.context.cost_model, estimates=life.estimates)
        await life.notes.extend(found, stage="preflight")
        await self._download.announce()
        if life.spec.dataset_digest is None:
            await life.notes.add(
                "NO_DATASET",
                "there is no dataset: calibration and training use inputs made from the model, and "
                "accuracy means agreement with the model as it came on such inputs",
            )

    async def _measure_baseline(self) -> BaselineOutcome:
        """Measure the model as it came, which limits on the loss of accuracy are held against."""
        life = self._life
        await life.stages.enter("baseline", "measuring the model as it came", begin=0.02, end=0.05)
        outcome = await life.stages.ask(
            BASELINE,
            BaselineTask(model=life.facts),
            {"model": life.spec.model_digest, **life.inputs},
        )
        life.book.baseline = Metrics(
            cost=life.estimates.as_float,
            file_bytes=outcome.file_bytes,
            accuracy=outcome.accuracy,
            selection_accuracy=outcome.selection_accuracy,
        )
        await self._compare_floor()
        return outcome

    async def _compare_floor(self) -> None:
        """Say early where more accuracy is asked for than the model as it came has."""
        life, baseline = self._life, self._life.book.baseline
        accuracy = None if baseline is None else baseline.accuracy
        floor = life.budget.accuracy_floor(None if accuracy is None else accuracy.value)
        if accuracy is not None and floor is not None and floor > accuracy.value:
            await life.notes.add(
                "FLOOR_ABOVE_BASELINE",
                f"an accuracy of at least {floor:.4f} is asked for, and the model as it came has "
                f"{accuracy.value:.4f}: only training beyond it could reach that",
            )

    async def _quantize(self) -> Trial:
        """Run trial 0: what a user would ship without tightfit."""
        life = self._life
        quantized = await life.book.run(
            0, TrialRole.BASELINE_INT8, life.recipes.make, evaluate=True
        )
        await self._verdict.keep()
        return quantized

    async def _reapply(self, recipe: Recipe) -> None:
        """Apply the recipe that the job brings."""
        life = self._life
        training = recipe.step(RECOVERY_STEP)
        if training is not None:
            await self._teachers.compare(teachers_of(training))
            await self._teachers.meet()
        await life.stages.enter("trial", "applying the recipe", begin=0.1, end=0.95)
        await life.book.run(
            1, TrialRole.FINALIST, lambda: life.recipes.reapplied(recipe), evaluate=True
        )
        await self._verdict.keep()

    def _needs_search(self, quantized: Trial) -> bool:
        """Whether anything better than quantizing alone is asked for."""
        wanted = self._life.spec.objective.quantity
        return wanted is not Quantity.ACCURACY or not quantized.fits_unpacked

    async def _search(self, *, can_train: bool) -> None:
        """Look for the network that meets the budget and loses least; say where there can be none."""
        if can_train:
            await self._teachers.meet()
        await learn_narrow_file(self._life)
        first = await self._forms.as_it_came()
        portfolio = Portfolio(prepared=[first], objective=self._life.spec.objective)
        self._verdict.portfolio = portfolio
        await self._add_variants(portfolio, first, can_train=can_train)
        if not portfolio.has_choice and len(portfolio.prepared) == 1:
            await self._life.notes.add(
                "NOT_PRUNABLE", "none of the techniques that may be used can change this model"
            )
            return
        candidates = CandidateTrials(
            self._life, portfolio, can_train=can_train, after_trial=self._verdict.keep
        )
        if await self._is_out_of_reach(portfolio, first):
            await candidates.nearest()
            return
        await candidates.screen()
        await candidates.finalists()

    async def _add_variants(
        self, portfolio: Portfolio, first: Prepared, *, can_train: bool
    ) -> None:
        """Add the forms that compete with the network as it came, and the others where it cannot fit."""
        spec = self._life.spec
        techniques = network_passes(spec)
        is_searched = can_train and spec.objective.quantity is Quantity.ACCURACY
        early = COMPETING_PASSES if is_searched else ()
        portfolio.prepared += await self._forms.variants(
            first, [name for name in techniques if name in early]
        )
        if await asyncio.to_thread(portfolio.out_of_reach) or not portfolio.has_choice:
            portfolio.prepared += await self._forms.variants(
                first, [name for name in techniques if name not in early]
            )

    async def _is_out_of_reach(self, portfolio: Portfolio, first: Prepared) -> bool:
        """Whether no form can meet the budget by estimate; says so, or which had to be looked at."""
        notes = self._life.notes
        missed = await asyncio.to_thread(portfolio.out_of_reach)
        missed_at_first = await asyncio.to_thread(first.proposer.out_of_reach)
        if missed_at_first and not missed:
            await notes.add(
                "VARIANT",
                "the budget is out of reach of the network as it is: its other forms are searched",
            )
        for note in missed:
            await notes.add("BUDGET_BELOW_REACH", note)
        return bool(missed)

    async def _shrink_download(self, *, can_train: bool) -> None:
        """Make the packed file smaller, where only that misses its limit."""
        if self._download.base is None:
            return
        if can_train and self._verdict.portfolio is None:
            await self._teachers.meet()
        await self._download.run(can_train=can_train)
