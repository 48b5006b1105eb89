"""The trials of one job: run or found again, judged against the budget, stored before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.costs.files import LEAST_RAM_BYTES, FileCosting, within_ram
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.patience import patiently
from tightfit_service.application.ports import (
    Clock,
    JobStore,
    MeasurementOrder,
    Telemetry,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.recipes.steps import (
    RECOVERY_STEP,
    as_carried_out,
    quantization_of,
)
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.scheduling.stages import Stages
from tightfit_service.application.trials.choice import best_trial, summary
from tightfit_service.application.trials.provenance import Provenance
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.units.kinds import UNIT_TIMEOUT_SECONDS, unit_digest
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.recipe import TrialOutcome
from tightfit_service.application.work.teacher_inputs import teacher_inputs
from tightfit_service.application.work.trial import TRIAL, TrialTask
from tightfit_service.domain.budget import Budget, Quantity
from tightfit_service.domain.errors import MeasurementFailedError, TightfitError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.job import JobSpec
from tightfit_service.domain.measurement import Verification
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import (
    Metrics,
    Trial,
    TrialRole,
    TrialState,
    Violation,
    violations,
)

MAX_FAILURES = 3
"""Failed trials after which the job gives up: the cause is then not one candidate."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run works with besides its journal."""

    project: str
    store: JobStore
    units: CachedUnits
    """The job's share: what of it waits for a worker is known to whoever runs the job."""
    telemetry: Telemetry
    clock: Clock
    cost_model: CostModel
    facts: ModelFacts
    graph_digest: str
    teacher_graphs: tuple[str, ...] = ()
    """Digests of the working graphs of the teachers beside the original, in the order of the spec."""
    tool_versions: Mapping[str, str]
    parallel_trials: int = 1
    """Trials of one job that may run at a time; those of a screening round do."""
    measurements: DeviceMeasurements | None = None
    """Where jobs that ask for it have their candidates measured."""
    provenance: Provenance | None = None
    """Who signs what a finished job found; None leaves results unsigned."""


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A completed trial whose network another one starts from: it has made the first `steps` of its recipe."""

    trial: Trial
    steps: int


class TrialBook:
    """Runs the trials of one life of a job, by index. Used by the task that owns the job."""

    def __init__(
        self, journal: JobJournal, context: RunContext, stages: Stages, budget: Budget
    ) -> None:
        self._journal = journal
        self._context = context
        self._stages = stages
        self._budget = budget
        self._spec = journal.job.spec
        self._stored: dict[int, Trial] = {}
        self._trials: dict[int, Trial] = {}
        self._outcomes: dict[int, TrialOutcome] = {}
        self._ram_bytes = _ram_for_compilers(budget, self._spec)
        self.files = FileCosting(
            context.cost_model,
            run=stages.run,
            project=context.project,
            label=journal.job.job_id,
            model_format=self._spec.format,
            ram_bytes=self._ram_bytes,
        )
        """Costs the files of the trials."""
        self.baseline: Metrics | None = None
        """The model as it came; what limits on the loss of accuracy are held against."""

    async def open(self) -> None:
        """Read the trials of earlier lives."""
        job_id = self._journal.job.job_id
        stored = await patiently(lambda: asyncio.to_thread(self._context.store.list_trials, job_id))
        self._stored = {trial.index: trial for trial in stored}

    @property
    def trials(self) -> Sequence[Trial]:
        """The trials of this life by index; those found finished among them."""
        return [self._trials[index] for index in sorted(self._trials)]

    @property
    def is_catching_up(self) -> bool:
        """Whether an earlier life completed trials that this one has not come to yet."""
        return any(
            trial.state is TrialState.COMPLETED and index not in self._trials
            for index, trial in self._stored.items()
        )

    @property
    def costs(self) -> CostModel:
        """What networks are costed by of which no file was made yet."""
        return self.files.costs

    @property
    def next_index(self) -> int:
        """The index after the last one used."""
        return max(self._trials, default=-1) + 1

    @property
    def candidates(self) -> Sequence[Trial]:
        """The trials that may be the result: all, or that of the recipe which the job brings."""
        is_given = self._spec.recipe is not None
        return [t for t in self.trials if not is_given or t.role is not TrialRole.BASELINE_INT8]

    @property
    def best(self) -> Trial | None:
        """The best candidate so far that meets the budget."""
        return best_trial(self.candidates, self._spec.objective.quantity)

    def get(self, index: int) -> Trial | None:
        """Return a trial of this life."""
        return self._trials.get(index)

    def loss_by_rounding(self) -> float:
        """Return what quantizing alone cost on the selection set; 0 where that is not known."""
        quantized = self.get(0)
        if self.baseline is None or quantized is None or quantized.metrics is None:
            return 0.0
        as_float = self.baseline.selection_accuracy
        as_quantized = quantized.metrics.selection_accuracy
        if as_float is None or as_quantized is None:
            return 0.0
        return as_float.value - as_quantized.value

    def outcome(self, index: int) -> TrialOutcome | None:
        """Return what a completed trial produced."""
        return self._outcomes.get(index)

    async def attach(self, index: int, name: str, digest: str) -> None:
        """Store one more artifact with a trial of this life."""
        trial = self._trials[index]
        trial = replace(trial, artifacts={**trial.artifacts, name: digest})
        await self._journal.keep(trial)
        self._trials[index] = trial

    def dataset_inputs(self) -> Mapping[str, str]:
        """Return the job's dataset as the input of a unit; nothing where there is none."""
        digest = self._spec.dataset_digest
        return {} if digest is None else {"dataset": digest}

    async def run(
        self,
        index: int,
        role: TrialRole,
        make_recipe: Callable[[], Recipe],
        *,
        evaluate: bool,
        predicted_accuracy: float | None = None,
        after: EarlierTrial | None = None,
    ) -> Trial:
        """Run a trial, or take it as it was finished in an earlier life.

        The network is made from the model as it came, or from that of the trial `after` which it comes.

        Raises:
            TightfitError: The quantized-only model failed, a recipe that was given did, or too many
                trials.
        """
        with (
            structlog.contextvars.bound_contextvars(trial=index),
            tracing.span("trial", index=index, role=str(role)),
        ):
            return await self._run(
                index,
                role,
                make_recipe,
                evaluate=evaluate,
                predicted_accuracy=predicted_accuracy,
                after=after,
            )

    async def _run(
        self,
        index: int,
        role: TrialRole,
        make_recipe: Callable[[], Recipe],
        *,
        evaluate: bool,
        predicted_accuracy: float | None,
        after: EarlierTrial | None,
    ) -> Trial:
        trial = self._stored.get(index) or Trial(
            index=index,
            role=role,
            state=TrialState.PROPOSED,
            recipe=make_recipe(),
            predicted_accuracy=predicted_accuracy,
        )
        if trial.state is TrialState.FAILED:
            self._trials[index] = trial
            return trial
        unit = self._unit(trial, evaluate=evaluate, after=after)
        if trial.state is not TrialState.COMPLETED:
            trial = replace(trial, state=TrialState.RUNNING, input_digest=unit_digest(unit))
            await self._journal.trial(trial, f"trial {index} started")
        try:
            result = await self._result(trial, unit)
        except TightfitError as error:
            return await self._failed(trial, error)
        if trial.state is not TrialState.COMPLETED:
            trial = await self._completed(trial, result)
            if evaluate:
                try:
                    trial = await self._verified(trial)
                except MeasurementFailedError as error:
                    return await self._failed(trial, error)
            await self._journal.trial(trial, f"trial {index}: {summary(trial)}")
            self._context.telemetry.trial_finished(self._journal.job.job_id, trial)
        self._trials[index] = trial
        outcome = TRIAL.outcome(result)
        self._outcomes[index] = outcome
        if trial.role is TrialRole.BASELINE_INT8 and trial.metrics is not None:
            quantization = quantization_of(trial.recipe)
            self.files.learn(outcome.profile, quantization, trial.metrics.cost)
        return trial

    async def _result(self, trial: Trial, unit: WorkUnit) -> WorkResult:
        """Run the unit, or return what a completed trial's unit gave: its recipe has changed since."""
        if trial.state is TrialState.COMPLETED:
            known = await patiently(
                lambda: asyncio.to_thread(
                    self._context.store.cached_result, self._context.project, trial.input_digest
                )
            )
            if known is not None:
                return known
        return await self._stages.run(unit)

    async def _failed(self, trial: Trial, error: TightfitError) -> Trial:
        failed = replace(trial, state=TrialState.FAILED, error=str(error))
        self._trials[trial.index] = failed
        await self._journal.trial(failed, f"trial {trial.index} failed: {error.message}")
        self._context.telemetry.trial_finished(self._journal.job.job_id, failed)
        failures = sum(t.state is TrialState.FAILED for t in self._trials.values())
        is_only = trial.role is TrialRole.BASELINE_INT8 or self._spec.recipe is not None
        if failures >= MAX_FAILURES or is_only:
            raise error
        return failed

    async def _verified(self, trial: Trial) -> Trial:
        """Measure a candidate on a device as far as the job asks, and judge it by what was seen.

        Raises:
            MeasurementFailedError: The job requires a measurement, and runners could not make it.
            NoRunnerError: The job requires one, and there is nobody to make it; no other candidate
                would fare better.
        """
        policy, service = self._spec.verification, self._context.measurements
        metrics = trial.metrics
        if policy is Verification.NONE or service is None or metrics is None:
            return trial
        if not self._may_fit(trial, metrics):
            return trial
        order = MeasurementOrder(
            project=self._journal.job.project,
            job_id=self._journal.job.job_id,
            artifact_digest=trial.artifacts["model"],
            format=self._spec.format,
            target=self._spec.target,
            macs=metrics.cost.macs,
            labels=self._spec.runner_labels,
        )
        estimate = metrics.cost
        outcome = await self._stages.told(
            lambda on_note: service.verify(order, policy, estimate=estimate, on_note=on_note)
        )
        if outcome.error is not None and policy is Verification.REQUIRED:
            raise type(outcome.error)(
                f"the job requires a measurement: {outcome.error.message}",
                field="verification",
                remedy="start tightfit-runner on the device, or ask for --verify if-available",
            )
        metrics = replace(metrics, measured=outcome.measurement)
        return replace(
            trial,
            metrics=metrics,
            violations=self._violations(metrics),
            notes=(*trial.notes, outcome.note),
        )

    def _may_fit(self, trial: Trial, metrics: Metrics) -> bool:
        """Whether a measurement could find the budget met: no limit lies below an estimate's interval."""
        lowest = {
            Quantity.LATENCY: metrics.cost.latency_ms.low,
            Quantity.ENERGY: metrics.cost.energy_mj.low,
        }
        # what a download lacks, sparsity and clustering may bring: the device computes the same then
        return all(
            missed.quantity is Quantity.DOWNLOAD
            or (missed.quantity in lowest and lowest[missed.quantity] <= missed.limit)
            for missed in trial.violations
        )

    def _violations(self, metrics: Metrics) -> tuple[Violation, ...]:
        baseline = self.baseline.accuracy if self.baseline else None
        return violations(
            metrics, self._budget, baseline_accuracy=baseline.value if baseline else None
        )

    def _unit(self, trial: Trial, *, evaluate: bool, after: EarlierTrial | None) -> WorkUnit:
        data = self._spec.dataset_digest or "synthetic"
        started = {} if after is None else {"start": after.trial.artifacts["graph"]}
        is_trained = trial.recipe.step(RECOVERY_STEP) is not None
        return TRIAL.unit(
            TrialTask(
                model=self._context.facts,
                recipe=trial.recipe,
                target=self._file_target,
                evaluate=evaluate,
                teacher_key=f"{self._context.graph_digest[:16]}-{data[:16]}",
                packed=self._spec.is_packed,
                finished_steps=None if after is None else after.steps,
            ),
            project=self._context.project,
            inputs={
                "graph": self._context.graph_digest,
                **self.dataset_inputs(),
                **(teacher_inputs(self._context.teacher_graphs) if is_trained else {}),
                **started,
            },
            timeout_seconds=max(UNIT_TIMEOUT_SECONDS, 2 * self._spec.search_limits.max_seconds),
            label=f"{self._journal.job.job_id} trial {trial.index}",
        )

    @property
    def _file_target(self) -> HardwareSpec:
        """What files are written for; those that hold what a compiler made keep within the budget's RAM."""
        target = self._spec.target
        is_compiled = self._spec.format is ModelFormat.VELA
        return within_ram(target, self._ram_bytes) if is_compiled else target

    async def _completed(self, trial: Trial, result: WorkResult) -> Trial:
        outcome = TRIAL.outcome(result)
        quantization = quantization_of(trial.recipe)
        cost, said = await self.files.of_file(
            outcome.profile,
            quantization,
            file_bytes=outcome.file_bytes,
            digest=result.outputs["model"],
        )
        metrics = Metrics(
            cost=cost,
            file_bytes=outcome.file_bytes,
            accuracy=outcome.accuracy,
            selection_accuracy=outcome.selection_accuracy,
            download_bytes=outcome.download_bytes,
        )
        return replace(
            trial,
            state=TrialState.COMPLETED,
            recipe=as_carried_out(trial.recipe, outcome.recoveries),
            metrics=metrics,
            violations=self._violations(metrics),
            artifacts=dict(result.outputs),
            stage_seconds=dict(outcome.stage_seconds),
            notes=(*outcome.notes, *said),
            format_notes=outcome.format_notes,
        )


def _ram_for_compilers(budget: Budget, spec: JobSpec) -> int | None:
    """Return the bytes of RAM that compilers may spend for time; as few as they can where RAM is the objective."""
    if spec.objective.quantity is Quantity.RAM:
        return LEAST_RAM_BYTES
    limit = budget.limit_of(Quantity.RAM)
    return None if limit is None else int(limit)
