"""What a job has found: kept after each trial, and told and signed at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from tightfit_service.application.course.infeasibility import explain_infeasibility
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.course.portfolio import Portfolio
from tightfit_service.application.recipes.attribution import (
    ChangeLosses,
    ExplainedLosses,
    attribute_layers,
)
from tightfit_service.application.recipes.steps import quantization_of
from tightfit_service.application.recipes.techniques import NETWORK_PASSES
from tightfit_service.application.trials.choice import closest_trial, summary
from tightfit_service.application.trials.provenance import ARTIFACT_NAME, MODEL, Outcome
from tightfit_service.application.work.attribution import (
    ATTRIBUTION,
    AttributionTask,
    measurable_steps,
)
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import TightfitError, UnavailableError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import JobResult, JobState, LayerAttribution
from tightfit_service.domain.pareto import pareto_front
from tightfit_service.domain.trial import Trial


class Verdict:
    """The result of one job, from what its book of trials holds."""

    def __init__(self, life: JobLife) -> None:
        self._life = life
        life.journal.so_far = self._so_far
        self.portfolio: Portfolio | None = None
        """What was searched in; None where nothing was searched."""
        self._measured: dict[int, ChangeLosses] = {}

    async def keep(self) -> None:
        """Keep the best so far where a reader, or the next life, finds it."""
        life = self._life
        if so_far := self._so_far():
            await life.journal.update(**so_far)
        life.context.telemetry.best_so_far(life.journal.job.job_id, life.book.best)

    def _so_far(self) -> Mapping[str, Any]:
        """Return the fields of the job that tell what it has found."""
        life = self._life
        if life.book.is_catching_up or not life.book.trials:
            # what an earlier life stored of the job says more until then
            return {}
        return {"result": self._result(), "spent_seconds": life.time.elapsed}

    async def tell(self, *, reachable: Mapping[Quantity, float]) -> None:
        """Bring the job to SUCCEEDED with its winner signed, or to INFEASIBLE with the reasons.

        Args:
            reachable: Least limits that were found besides those that the portfolio knows.
        """
        life = self._life
        await life.stages.enter("package", "choosing the winner", begin=0.97, end=1.0)
        await self._measure_changes()
        result, end_time = self._result(), life.context.clock.now()
        if result.best_trial is not None:
            await self._succeed(result, result.best_trial, end_time)
        else:
            await self._give_up(result, reachable, end_time)

    async def _measure_changes(self) -> None:
        """Measure alone what was done to the layers of the shown trial, beside what was predicted."""
        life, shown = self._life, self._shown()
        if shown is None or "graph" not in shown.artifacts:
            return
        steps = measurable_steps(shown.recipe)
        is_rounding_known = self.portfolio is not None and self.portfolio.knows_rounding(shown)
        is_changed = any(step.pass_name not in NETWORK_PASSES for step in steps)
        if not is_changed and not is_rounding_known:
            return
        task = AttributionTask(
            model=life.facts,
            seed=shown.recipe.seed,
            steps=steps,
            quantization=quantization_of(shown.recipe) if is_rounding_known else None,
        )
        try:
            measured = await life.stages.ask(
                ATTRIBUTION, task, {**life.inputs, "compressed": shown.artifacts["graph"]}
            )
        except UnavailableError:
            raise
        except TightfitError as error:
            # hours of search count without an explanation too
            await life.notes.add(
                "NOT_ATTRIBUTED", f"what each change costs was not measured: {error.message}"
            )
            return
        self._measured[shown.index] = measured

    async def _succeed(self, result: JobResult, index: int, end_time: datetime) -> None:
        life = self._life
        best = life.book.get(index)
        assert best is not None
        await self._sign(index, JobState.SUCCEEDED, end_time)
        await life.journal.enter(
            JobState.SUCCEEDED,
            f"trial {index} fits: {summary(best)}",
            result=replace(result, notes=life.notes.all),
            end_time=end_time,
        )

    async def _give_up(
        self, result: JobResult, reachable: Mapping[Quantity, float], end_time: datetime
    ) -> None:
        life = self._life
        by_pruning, needed = await asyncio.to_thread(self._estimated_needs)
        infeasibility = explain_infeasibility(
            life.book.candidates,
            budget=life.budget,
            baseline=life.book.baseline,
            reachable={**by_pruning, **reachable},
            needed=needed,
        )
        for index in infeasibility.closest_trials[:1]:
            await self._sign(index, JobState.INFEASIBLE, end_time)
        await life.journal.enter(
            JobState.INFEASIBLE,
            infeasibility.explanation,
            result=replace(result, infeasibility=infeasibility, notes=life.notes.all),
            end_time=end_time,
        )

    async def _sign(self, index: int, state: JobState, end_time: datetime) -> None:
        """Have the origin of the shown trial's model signed; without a store, hours of search still count."""
        life = self._life
        trial, provenance = life.book.get(index), life.context.provenance
        if provenance is None or trial is None or trial.metrics is None:
            return
        if MODEL not in trial.artifacts:
            return
        outcome = Outcome(
            job=life.journal.job,
            state=state,
            end_time=end_time,
            trial=trial,
            tool_versions=life.context.tool_versions,
            baseline=life.book.baseline,
        )
        try:
            await life.book.attach(index, ARTIFACT_NAME, await provenance.attest(outcome))
        except TightfitError as error:
            await life.notes.add("NOT_SIGNED", f"the origin of the result is not signed: {error}")

    def _estimated_needs(
        self,
    ) -> tuple[Mapping[Quantity, float], Mapping[Quantity, float | None]]:
        """Return what pruning can reach at all, and the solver's least limits; empty before it ran."""
        if self.portfolio is None:
            return {}, {}
        baseline = self._life.book.baseline
        accuracy = baseline.accuracy if baseline else None
        floor = self._life.budget.accuracy_floor(accuracy.value if accuracy else None)
        max_loss = None if accuracy is None or floor is None else max(0.0, accuracy.value - floor)
        return self.portfolio.reachable(), self.portfolio.needed(max_loss)

    def _result(self) -> JobResult:
        book = self._life.book
        best, shown, quantized = book.best, self._shown(), book.get(0)
        if self._life.number_format is not NumberFormat.INT8:
            # trial 0 is then the model as it came, in the format of the result
            quantized = None
        return JobResult(
            baseline=book.baseline,
            baseline_int8=quantized.metrics if quantized else None,
            best_trial=None if best is None else best.index,
            pareto_trials=pareto_front(book.trials),
            layers=() if shown is None else self._layers(shown),
            notes=self._life.notes.all,
        )

    def _shown(self) -> Trial | None:
        """Return the trial that the result explains: the best one, or that which comes closest."""
        book = self._life.book
        return book.best or closest_trial(
            trial for trial in book.candidates if book.outcome(trial.index) is not None
        )

    def _layers(self, trial: Trial) -> tuple[LayerAttribution, ...]:
        life, before = self._life, self._life.facts.profile
        outcome = life.book.outcome(trial.index)
        assert trial.metrics is not None
        assert outcome is not None
        measured = self._measured.get(trial.index, ChangeLosses())
        losses, space = ExplainedLosses(measured=measured), life.facts.space
        if self.portfolio is not None:
            losses = ExplainedLosses(
                trained=self.portfolio.losses_of(trial),
                untrained=self.portfolio.untrained_losses_of(trial),
                measured=measured,
            )
            space = self.portfolio.prepared_of(trial).form.space
        return attribute_layers(
            before=before,
            before_cost=life.book.costs.estimate(before, life.number_format),
            after=outcome.profile,
            after_cost=trial.metrics.cost,
            space=space,
            recipe=trial.recipe,
            losses=losses,
        )
