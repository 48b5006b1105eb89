"""The search for the best model that fits: preflight, baseline, sensitivity, solve, trials, finish.

1. Baseline: accuracy of the model as it came, and of the quantized-only one (trial 0).
2. Sensitivity: importance of every channel, corrected by a few measured points.
3. Solve: widths that meet the whole budget by estimate and are predicted to lose least.
4. Screening: short recovery of several solutions; what is seen corrects the prediction, and the
   problem is solved again.
5. Finish: long recovery of the best, evaluated on the evaluation set in the exported file's runtime.

Every trial is stored before it runs and its result is remembered by the digest of its inputs, so a
run that is interrupted anywhere goes on where it was: it proposes the same trials again and finds
the finished ones done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.attribution import attribute_layers
from tightfit_service.application.choice import best_trial, closest_trial, summary
from tightfit_service.application.costing import (
    CostModel,
    margins_of,
    preflight_notes,
    with_target_limits,
)
from tightfit_service.application.infeasibility import explain_infeasibility
from tightfit_service.application.journal import JobJournal
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    Clock,
    Executor,
    JobStore,
    QuantizationSettings,
    RecoverySettings,
    Telemetry,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.proposals import Proposal, Proposer
from tightfit_service.application.stages import Stages
from tightfit_service.application.work import (
    BASELINE,
    SENSITIVITY,
    TRIAL,
    BaselineOutcome,
    ModelFacts,
    SensitivityOutcome,
    TrialOutcome,
    most_important,
    unit_digest,
)
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.job import (
    JobEventKind,
    JobResult,
    JobState,
    LayerAttribution,
    PreflightNote,
)
from tightfit_service.domain.pareto import pareto_front
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import (
    Metrics,
    Trial,
    TrialRole,
    TrialState,
    violations,
)

SENSITIVITY_SHARES = (0.25, 0.5)
"""Shares of a group that are cut, alone and untrained, to correct the importance scores."""

SCREENING_EPOCHS = 1.0
FINAL_EPOCHS = 30.0
"""Beyond about 30 epochs of distillation the gain per epoch is below the evaluation's error."""

SCREENING_TIME_SHARE = 0.2
"""Share of the search time that screening may take in all."""

MAX_FINALISTS = 4
MAX_FAILURES = 3
"""Failed trials after which the job gives up: the cause is then not one candidate."""

RESERVE_SECONDS = 5.0
UNIT_TIMEOUT_SECONDS = 3_600.0


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run works with besides its journal."""

    store: JobStore
    executor: Executor
    telemetry: Telemetry
    clock: Clock
    cost_model: CostModel
    facts: ModelFacts
    graph_digest: str
    tool_versions: Mapping[str, str]


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
        self._began = context.clock.monotonic() - journal.job.spent_seconds
        self._stored: dict[int, Trial] = {}
        self._stages = Stages(
            journal, store=context.store, executor=context.executor, telemetry=context.telemetry
        )
        self._trials: dict[int, Trial] = {}
        self._outcomes: dict[int, TrialOutcome] = {}
        self._baseline: Metrics | None = None
        self._notes: tuple[PreflightNote, ...] = ()
        self._proposer: Proposer | None = None

    async def run(self) -> None:
        """Run the search to its end and bring the job to SUCCEEDED or INFEASIBLE.

        Raises:
            TightfitError: Nothing could be run at all; the job is to be failed by the caller.
        """
        stored = await asyncio.to_thread(self._context.store.list_trials, self._journal.job.job_id)
        self._stored = {trial.index: trial for trial in stored}
        await self._preflight()
        baseline = await self._measure_baseline()
        quantized = await self._trial(
            0, TrialRole.BASELINE_INT8, lambda: self._recipe(keep={}, recovery=None), evaluate=True
        )
        await self._store_result()
        needs_search = self._needs_search(quantized)
        if needs_search and not self._facts.space.groups:
            await self._note("NOT_PRUNABLE", "no channels of this model can be removed")
            needs_search = False
        if needs_search:
            await self._search(baseline, quantized)
        await self._finish()

    async def _preflight(self) -> None:
        await self._stages.enter("preflight", "what can help on this target", begin=0.0, end=0.02)
        self._notes = preflight_notes(
            costs=self._costs,
            profile=self._facts.profile,
            space=self._facts.space,
            warnings=self._facts.warnings,
        )
        for note in self._notes:
            await self._journal.event(JobEventKind.NOTE, note.message, stage="preflight")

    async def _measure_baseline(self) -> BaselineOutcome:
        await self._stages.enter("baseline", "measuring the model as it came", begin=0.02, end=0.05)
        result = await self._stages.run(
            WorkUnit(
                kind=BASELINE,
                payload={"model": to_plain(self._facts)},
                inputs={
                    "model": self._spec.model_digest,
                    "graph": self._context.graph_digest,
                    "dataset": self._dataset_digest,
                },
                timeout_seconds=UNIT_TIMEOUT_SECONDS,
                label=f"{self._journal.job.job_id} baseline",
            )
        )
        outcome = from_plain(BaselineOutcome, result.payload)
        self._baseline = Metrics(
            cost=self._costs.estimate(self._facts.profile, NumberFormat.FLOAT32),
            file_bytes=outcome.file_bytes,
            accuracy=outcome.accuracy,
            selection_accuracy=outcome.selection_accuracy,
        )
        return outcome

    def _needs_search(self, quantized: Trial) -> bool:
        """Whether anything better than quantizing alone is asked for."""
        return self._spec.objective.quantity is not Quantity.ACCURACY or not quantized.is_feasible

    async def _search(self, baseline: BaselineOutcome, quantized: Trial) -> None:
        await self._stages.enter("sensitivity", "what each channel is worth", begin=0.1, end=0.15)
        result = await self._stages.run(
            WorkUnit(
                kind=SENSITIVITY,
                payload={
                    "model": to_plain(self._facts),
                    "seed": self._spec.seed,
                    "shares": list(SENSITIVITY_SHARES),
                },
                inputs={"graph": self._context.graph_digest, "dataset": self._dataset_digest},
                timeout_seconds=UNIT_TIMEOUT_SECONDS,
                label=f"{self._journal.job.job_id} sensitivity",
            )
        )
        sensitivity = from_plain(SensitivityOutcome, result.payload)
        for text in sensitivity.notes:
            await self._note("SENSITIVITY", text)
        whole = self._costs.estimate(self._facts.profile, self._format)
        margins = margins_of(quantized.metrics or Metrics(cost=whole, file_bytes=0))
        self._proposer = Proposer(
            costs=self._costs,
            profile=self._facts.profile,
            space=self._facts.space,
            number_format=self._format,
            sensitivity=sensitivity,
            budget=self._budget,
            objective=self._spec.objective,
            margins=margins,
            seed=self._spec.seed,
        )
        await self._stages.enter("solve", "widths that meet the whole budget", begin=0.15, end=0.15)
        can_train = baseline.train_count > 0
        missed = await asyncio.to_thread(self._proposer.out_of_reach)
        if missed:
            for note in missed:
                await self._note("BUDGET_BELOW_REACH", note)
            await self._closest(can_train=can_train)
            return
        await self._screen(can_train=can_train)
        await self._finalists(can_train=can_train)

    async def _closest(self, *, can_train: bool) -> None:
        """Run the smallest network, as evidence of how far the budget is from reach."""
        assert self._proposer is not None
        proposal = self._proposer.smallest()
        await self._stages.enter("trial", "the smallest network there is", begin=0.15, end=0.95)
        await self._proposed(
            self._next_index(),
            TrialRole.FINALIST,
            proposal,
            self._screening(can_train),
            evaluate=True,
        )

    async def _screen(self, *, can_train: bool) -> None:
        """Compare several solutions after a short recovery, and learn from what is seen."""
        assert self._proposer is not None
        proposals = await asyncio.to_thread(self._proposer.first_round)
        allowed = self._spec.search_limits.max_seconds * SCREENING_TIME_SHARE
        began, rounds = self._elapsed, 0
        while proposals:
            proposal = proposals.pop(0)
            last = (self._elapsed - began) / rounds if rounds else 0.0
            is_late = rounds > 0 and self._elapsed - began + last > allowed
            if is_late or not self._may_start_trial(keep_for_final=1):
                break
            await self._stages.enter(
                "trial",
                f"screening: {proposal.origin}",
                begin=min(0.4, 0.15 + 0.05 * rounds),
                end=min(0.4, 0.2 + 0.05 * rounds),
            )
            trial = await self._proposed(
                self._next_index(),
                TrialRole.SCREENING,
                proposal,
                self._screening(can_train),
                evaluate=False,
            )
            rounds += 1
            self._learn(trial, proposal)
            if not proposals and rounds >= 2:  # two observations before asking again
                await self._stages.enter(
                    "solve", "solving again with what was seen", begin=0.4, end=0.4
                )
                proposals = await asyncio.to_thread(self._proposer.next_round)

    def _learn(self, trial: Trial, proposal: Proposal) -> None:
        assert self._proposer is not None
        if trial.metrics is None or trial.metrics.selection_accuracy is None:
            return
        reference = self._baseline.selection_accuracy if self._baseline else None
        if reference is None:
            return
        loss = reference.value - trial.metrics.selection_accuracy.value
        self._proposer.observe(proposal, loss=loss, metrics=trial.metrics)

    async def _finalists(self, *, can_train: bool) -> None:
        """Train the best candidates long; go on while the budget is missed and time is left."""
        assert self._proposer is not None
        tried: list[Trial] = []
        # Where accuracy is the objective, the first finalist takes all the time there is.
        shares = 1 if self._spec.objective.quantity is Quantity.ACCURACY else MAX_FINALISTS
        while len(tried) < MAX_FINALISTS and (not tried or self._may_start_trial(keep_for_final=0)):
            proposal = await asyncio.to_thread(
                self._proposer.finalist, tuple(tried), tuple(self._trials.values())
            )
            if proposal is None:
                break
            rest = self._rest_seconds(shared_by=max(1, shares - len(tried)))
            await self._stages.enter(
                "finish",
                f"long recovery: {proposal.origin}",
                begin=0.45 + 0.5 * min(1.0, len(tried) / shares),
                end=0.45 + 0.5 * min(1.0, (len(tried) + 1) / shares),
            )
            recovery = (
                RecoverySettings(epochs=FINAL_EPOCHS, max_seconds=rest, seed=self._spec.seed)
                if can_train
                else None
            )
            trial = await self._proposed(
                self._next_index(), TrialRole.FINALIST, proposal, recovery, evaluate=True
            )
            tried.append(trial)
            self._learn(trial, proposal)
            if trial.is_feasible and self._spec.objective.quantity is Quantity.ACCURACY:
                break

    def _screening(self, can_train: bool) -> RecoverySettings | None:  # noqa: FBT001  # one flag, private
        if not can_train:
            return None
        share = SCREENING_TIME_SHARE / 4
        return RecoverySettings(
            epochs=SCREENING_EPOCHS,
            max_seconds=round(self._spec.search_limits.max_seconds * share, 1),
            seed=self._spec.seed,
        )

    async def _proposed(
        self,
        index: int,
        role: TrialRole,
        proposal: Proposal,
        recovery: RecoverySettings | None,
        *,
        evaluate: bool,
    ) -> Trial:
        keep = {
            group_id: most_important(proposal.importance[group_id], count)
            for group_id, count in proposal.kept.items()
            if count < len(proposal.importance[group_id])
        }
        reference = self._baseline.selection_accuracy if self._baseline else None
        predicted = None if reference is None else reference.value - proposal.predicted_loss
        return await self._trial(
            index,
            role,
            lambda: self._recipe(keep=keep, recovery=recovery),
            evaluate=evaluate,
            predicted_accuracy=predicted,
        )

    async def _trial(
        self,
        index: int,
        role: TrialRole,
        make_recipe: Callable[[], Recipe],
        *,
        evaluate: bool,
        predicted_accuracy: float | None = None,
    ) -> Trial:
        """Run one trial, or take it as it was finished in an earlier life."""
        trial = self._stored.get(index) or Trial(
            index=index,
            role=role,
            state=TrialState.PROPOSED,
            recipe=make_recipe(),
            predicted_accuracy=predicted_accuracy,
        )
        unit = self._trial_unit(trial, evaluate=evaluate)
        if trial.state is TrialState.FAILED:
            self._trials[index] = trial
            return trial
        if trial.state is not TrialState.COMPLETED:
            trial = replace(trial, state=TrialState.RUNNING, input_digest=unit_digest(unit))
            await self._journal.trial(trial, f"trial {index} started")
        try:
            result = await self._stages.run(unit)
        except TightfitError as error:
            trial = replace(trial, state=TrialState.FAILED, error=str(error))
            self._trials[index] = trial
            await self._journal.trial(trial, f"trial {index} failed: {error.message}")
            self._context.telemetry.trial_finished(self._journal.job.job_id, trial)
            failures = sum(t.state is TrialState.FAILED for t in self._trials.values())
            if failures >= MAX_FAILURES or role is TrialRole.BASELINE_INT8:
                raise
            return trial
        if trial.state is not TrialState.COMPLETED:
            trial = self._completed(trial, result)
            await self._journal.trial(trial, f"trial {index}: {summary(trial)}")
            self._context.telemetry.trial_finished(self._journal.job.job_id, trial)
        self._trials[index] = trial
        self._outcomes[index] = from_plain(TrialOutcome, result.payload)
        await self._store_result()
        return trial

    def _trial_unit(self, trial: Trial, *, evaluate: bool) -> WorkUnit:
        return WorkUnit(
            kind=TRIAL,
            payload={
                "model": to_plain(self._facts),
                "recipe": to_plain(trial.recipe),
                "evaluate": evaluate,
                "teacher_key": f"{self._context.graph_digest[:16]}-{self._dataset_digest[:16]}",
            },
            inputs={"graph": self._context.graph_digest, "dataset": self._dataset_digest},
            timeout_seconds=max(UNIT_TIMEOUT_SECONDS, 2 * self._spec.search_limits.max_seconds),
            label=f"{self._journal.job.job_id} trial {trial.index}",
        )

    def _completed(self, trial: Trial, result: WorkResult) -> Trial:
        outcome = from_plain(TrialOutcome, result.payload)
        metrics = Metrics(
            cost=self._costs.estimate(outcome.profile, self._format, file_bytes=outcome.file_bytes),
            file_bytes=outcome.file_bytes,
            accuracy=outcome.accuracy,
            selection_accuracy=outcome.selection_accuracy,
        )
        baseline = self._baseline.accuracy if self._baseline else None
        return replace(
            trial,
            state=TrialState.COMPLETED,
            metrics=metrics,
            violations=violations(
                metrics, self._budget, baseline_accuracy=baseline.value if baseline else None
            ),
            artifacts=dict(result.outputs),
            stage_seconds=dict(outcome.stage_seconds),
            notes=outcome.notes,
        )

    def _recipe(
        self, *, keep: Mapping[str, Sequence[int]], recovery: RecoverySettings | None
    ) -> Recipe:
        steps: list[PassStep] = []
        if keep:
            steps.append(
                PassStep(
                    pass_name="structured_pruning",  # noqa: S106  # a technique, not a password
                    parameters={"keep": {key: list(units) for key, units in keep.items()}},
                )
            )
        if recovery is not None:
            steps.append(PassStep(pass_name="recovery", parameters=to_plain(recovery)))  # noqa: S106
        steps.append(
            PassStep(
                pass_name="quantization",  # noqa: S106
                parameters=to_plain(QuantizationSettings(number_format=self._format)),
            )
        )
        return Recipe(
            source_digest=self._spec.model_digest,
            seed=self._spec.seed,
            target=self._spec.target.name,
            output_format=str(self._spec.format),
            steps=tuple(steps),
            tool_versions=self._context.tool_versions,
        )

    async def _finish(self) -> None:
        await self._stages.enter("package", "choosing the winner", begin=0.97, end=1.0)
        result = self._result()
        if result.best_trial is not None:
            best = self._trials[result.best_trial]
            await self._journal.enter(
                JobState.SUCCEEDED,
                f"trial {best.index} fits: {summary(best)}",
                result=result,
                end_time=self._context.clock.now(),
            )
            return
        reachable, needed = await asyncio.to_thread(self._estimated_needs)
        infeasibility = explain_infeasibility(
            self._ordered(),
            budget=self._budget,
            baseline=self._baseline,
            reachable=reachable,
            needed=needed,
        )
        await self._journal.enter(
            JobState.INFEASIBLE,
            infeasibility.explanation,
            result=replace(result, infeasibility=infeasibility),
            end_time=self._context.clock.now(),
        )

    def _estimated_needs(
        self,
    ) -> tuple[Mapping[Quantity, float], Mapping[Quantity, float | None]]:
        """Return what pruning can reach at all, and the solver's least limits; empty before it ran."""
        if self._proposer is None:
            return {}, {}
        accuracy = self._baseline.accuracy if self._baseline else None
        floor = self._budget.accuracy_floor(accuracy.value if accuracy else None)
        max_loss = None if accuracy is None or floor is None else max(0.0, accuracy.value - floor)
        return self._proposer.reachable(), self._proposer.needed(max_loss)

    def _result(self) -> JobResult:
        best = self._best()
        quantized = self._trials.get(0)
        shown = best or closest_trial(t for t in self._ordered() if t.index in self._outcomes)
        return JobResult(
            baseline=self._baseline,
            baseline_int8=quantized.metrics if quantized else None,
            best_trial=None if best is None else best.index,
            pareto_trials=pareto_front(self._ordered()),
            layers=() if shown is None else self._layers(shown),
            notes=self._notes,
        )

    def _best(self) -> Trial | None:
        return best_trial(self._ordered(), self._spec.objective.quantity)

    def _layers(self, trial: Trial) -> tuple[LayerAttribution, ...]:
        assert trial.metrics is not None
        step = trial.recipe.step("structured_pruning")
        kept = {
            group_id: len(units)
            for group_id, units in (step.parameters["keep"] if step else {}).items()
        }
        losses = self._proposer.group_losses(kept) if self._proposer is not None else {}
        return attribute_layers(
            before=self._facts.profile,
            before_cost=self._costs.estimate(self._facts.profile, self._format),
            after=self._outcomes[trial.index].profile,
            after_cost=trial.metrics.cost,
            space=self._facts.space,
            kept=kept,
            losses=losses,
        )

    async def _store_result(self) -> None:
        """Keep the best so far where a reader, or the next life, finds it."""
        await self._journal.update(result=self._result(), spent_seconds=self._elapsed)
        self._context.telemetry.best_so_far(self._journal.job.job_id, self._best())

    async def _note(self, code: str, message: str) -> None:
        self._notes = (*self._notes, PreflightNote(code=code, message=message))
        await self._journal.event(JobEventKind.NOTE, message)

    @property
    def _elapsed(self) -> float:
        return self._context.clock.monotonic() - self._began

    @property
    def _dataset_digest(self) -> str:
        assert (
            self._spec.dataset_digest is not None
        )  # jobs without a dataset are refused on creation
        return self._spec.dataset_digest

    def _ordered(self) -> list[Trial]:
        return [self._trials[index] for index in sorted(self._trials)]

    def _next_index(self) -> int:
        return max(self._trials) + 1

    def _may_start_trial(self, *, keep_for_final: int) -> bool:
        used = len(self._trials) - 1  # the quantized-only model is no search trial
        has_trials = used + keep_for_final < self._spec.search_limits.max_trials
        return has_trials and self._rest_seconds(shared_by=1) > RESERVE_SECONDS

    def _rest_seconds(self, *, shared_by: int) -> float:
        """Return the seconds that one more recovery may take, export and evaluation set aside."""
        ran = [t.stage_seconds for t in self._ordered() if t.stage_seconds]
        last = ran[-1] if ran else {}
        # The first export loads the libraries, so the latest trial tells best what the next costs.
        # Evaluating the evaluation set comes on top of what screening trials did.
        overhead = RESERVE_SECONDS + 1.5 * sum(
            seconds for stage, seconds in last.items() if stage != "recover"
        )
        left = self._spec.search_limits.max_seconds - self._elapsed
        return max(1.0, round(left / shared_by - overhead, 1))
