"""Compression jobs as the API sees them: created, checked, listed, watched, cancelled, deleted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.assets import DATASET
from tightfit_service.application.baseline_work import BASELINE, BaselineTask
from tightfit_service.application.caller import caller
from tightfit_service.application.check_work import (
    CHECK_DATASET,
    CHECK_RECIPE,
    CHECK_TIMEOUT_SECONDS,
    CheckDatasetTask,
    CheckRecipeTask,
)
from tightfit_service.application.download_limit import check_packable, download_notes
from tightfit_service.application.hardware import HardwareLibrary
from tightfit_service.application.journal import EventHub, follow
from tightfit_service.application.model_facts import ModelFacts
from tightfit_service.application.ports import (
    AssetStore,
    Clock,
    Executor,
    JobStore,
    Page,
    Telemetry,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.preflight import check_report
from tightfit_service.application.quotas import Quotas
from tightfit_service.application.scheduler import JobScheduler
from tightfit_service.application.teaching import find_teachers
from tightfit_service.application.techniques import check_techniques, check_writable
from tightfit_service.application.units import run_cached
from tightfit_service.application.use_cases import CheckReport, JobRequest
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import (
    InvalidBudgetError,
    InvalidModelError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.job import (
    Job,
    JobEvent,
    JobSpec,
    JobState,
    PreflightNote,
    TeacherModel,
)
from tightfit_service.domain.measurement import Verification
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.quota import Quota, check_trials
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Trial

EXPORTABLE = (
    ModelFormat.TFLITE,
    ModelFormat.ONNX,
    ModelFormat.C_ARRAY,
    ModelFormat.OPENVINO,
    ModelFormat.EXECUTORCH,
    ModelFormat.VELA,
)


log = structlog.get_logger(__name__)


class JobDesk:
    """Implements `use_cases.Jobs`."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        records: AssetStore,
        hardware: HardwareLibrary,
        executor: Executor,
        scheduler: JobScheduler,
        hub: EventHub,
        clock: Clock,
        telemetry: Telemetry,
        quotas: Quotas,
        missing_extras: Mapping[ModelFormat, str] | None = None,
        target_checks: Mapping[ModelFormat, Callable[[HardwareSpec], object]] | None = None,
    ) -> None:
        """Keep the ports.

        `missing_extras` says what to install for formats whose libraries this server does not have.
        `target_checks` raise TightfitError for targets that nothing can be written for in a format.
        """
        self._jobs = jobs
        self._records = records
        self._hardware = hardware
        self._executor = executor
        self._scheduler = scheduler
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry
        self._quotas = quotas
        self._missing_extras = missing_extras or {}
        self._target_checks = target_checks or {}

    async def create(self, project: str, request: JobRequest) -> Job:
        """Queue a job; the same `request_id` gives the same job."""
        quota = await self._quotas.of(project)
        job = await self._examined(project, request, quota)
        stored = await asyncio.to_thread(self._jobs.create_job, job, quota=quota)
        if stored.job_id == job.job_id:
            self._telemetry.job_state(stored, None)
            log.info("job.created", job_id=stored.job_id, project=project)
        self._scheduler.wake()
        return stored

    async def validate(self, project: str, request: JobRequest) -> Job:
        """Check everything that can be known without running anything long."""
        return await self._examined(project, request, await self._quotas.of(project))

    async def _examined(self, project: str, request: JobRequest, quota: Quota) -> Job:
        check_trials(quota, request.search_limits.max_trials)
        await self._quotas.check_room(project, quota)
        target = await self._hardware.resolve(project, request.target)
        await self._hardware.cost_model(project, target)
        output_format = self._checked_format(request, target)
        digest, facts, graph_digest = await self._hardware.model_facts(project, request.model)
        check_trainable(facts)
        dataset_digest = await self._checked_dataset(project, request, facts, graph_digest)
        teachers = await self._teachers(project, request, digest, facts)
        check_consistent(request, target)
        check_packable(request, output_format)
        techniques = check_techniques(request.techniques)
        if request.recipe is not None:
            request.recipe.check_fits(facts.architecture)
            check_writable(request.recipe, output_format)
            await self._check_recipe(project, request.recipe, graph_digest)
        spec = JobSpec(
            model_digest=digest,
            model_name=request.model,
            target=target,
            budget=request.budget,
            dataset_digest=dataset_digest,
            dataset_name=request.dataset,
            objective=request.objective,
            search_limits=request.search_limits,
            output_format=output_format,
            seed=request.seed,
            techniques=techniques,
            verification=request.verification,
            recipe=request.recipe,
            priority=request.priority,
            teachers=teachers,
            importance=request.importance,
            packed=request.packed,
            runner_labels=request.runner_labels,
        )
        return self._queued(project, spec, request_id=request.request_id)

    def _queued(self, project: str, spec: JobSpec, *, request_id: str) -> Job:
        """Return a new job of whoever calls now."""
        now = self._clock.now()
        return Job(
            job_id=uuid.uuid4().hex[:16],
            project=project,
            spec=spec,
            state=JobState.QUEUED,
            create_time=now,
            update_time=now,
            request_id=request_id,
            trace_parent=tracing.current(),
            creator=caller().name,
        )

    def _checked_format(self, request: JobRequest, target: HardwareSpec) -> ModelFormat:
        output_format = request.output_format or target.output_format
        if output_format not in EXPORTABLE:
            raise InvalidRequestError(
                f"{output_format} is not a format that is exported",
                field="output_format",
                remedy=f"choose one of {', '.join(EXPORTABLE)}",
            )
        if output_format in self._missing_extras:
            raise UnsupportedError(
                f"what writes {output_format} is not installed where this server runs",
                field="output_format",
                remedy=f"install {self._missing_extras[output_format]} there, or choose tflite or onnx",
            )
        if output_format in self._target_checks:
            self._target_checks[output_format](target)
        return output_format

    async def check(self, project: str, request: JobRequest) -> CheckReport:
        """Run the preflight: costs by estimate, and the accuracy as it came where there is a dataset."""
        target = await self._hardware.resolve(project, request.target)
        costs = await self._hardware.cost_model(project, target)
        digest, facts, graph_digest = await self._hardware.model_facts(project, request.model)
        dataset_digest = await self._checked_dataset(project, request, facts, graph_digest)
        await self._teachers(project, request, digest, facts)
        accuracy = None
        if dataset_digest is not None:
            inputs = {"model": digest, "graph": graph_digest, "dataset": dataset_digest}
            accuracy = await self._accuracy(project, facts, inputs)
        report = check_report(request, costs=costs, facts=facts, accuracy=accuracy)
        if request.budget.limit_of(Quantity.DOWNLOAD) is None:
            return report
        notes = await download_notes(
            self._run, project=project, graph_digest=graph_digest, target=target
        )
        unknown = PreflightNote(
            code="DOWNLOAD_UNKNOWN",
            message="no estimate tells what a file packs to: a search finds out whether the limit on "
            "the download is met",
        )
        return replace(report, notes=(*report.notes, unknown, *notes))

    async def get(self, project: str, job_id: str) -> Job:
        """Return a job."""
        return await asyncio.to_thread(self._jobs.get_job, project, job_id)

    async def list(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job]:
        """Return jobs, newest first."""
        return await asyncio.to_thread(self._jobs.list_jobs, project, page, states=states)

    async def trials(self, project: str, job_id: str, page: Page) -> Sequence[Trial]:
        """Return trials by index."""
        await self.get(project, job_id)
        return await asyncio.to_thread(self._jobs.list_trials, job_id, page)

    async def cancel(self, project: str, job_id: str) -> Job:
        """Cancel a job and free its worker."""
        job = await self.get(project, job_id)
        if job.state.is_final:
            return job
        return await self._scheduler.cancel(job)

    async def delete(self, project: str, job_id: str) -> None:
        """Delete a final job."""
        await asyncio.to_thread(self._jobs.delete_job, project, job_id)

    async def watch(self, project: str, job_id: str, *, after: int) -> AsyncIterator[JobEvent]:
        """Yield the job's events."""
        async for event in follow(self._jobs, self._hub, project, job_id, after=after):
            yield event

    async def _check_recipe(self, project: str, recipe: Recipe, graph_digest: str) -> None:
        await self._run(
            CHECK_RECIPE.unit(
                CheckRecipeTask(recipe=recipe),
                project=project,
                inputs={"graph": graph_digest},
                timeout_seconds=CHECK_TIMEOUT_SECONDS,
                label="recipe against model",
            )
        )

    async def _checked_dataset(
        self, project: str, request: JobRequest, model: ModelFacts, graph_digest: str
    ) -> str | None:
        """Return the digest of the dataset, whose samples the model takes; None without one."""
        if not request.dataset:
            return None
        dataset = await asyncio.to_thread(
            self._records.get_asset, project, DATASET, request.dataset
        )
        await self._run(
            CHECK_DATASET.unit(
                CheckDatasetTask(model=model),
                project=project,
                inputs={"dataset": dataset.digest, "graph": graph_digest},
                timeout_seconds=CHECK_TIMEOUT_SECONDS,
                label="dataset against model",
            )
        )
        return dataset.digest

    async def _accuracy(
        self, project: str, model: ModelFacts, inputs: Mapping[str, str]
    ) -> Accuracy | None:
        """Return the accuracy of the model as it came, as a job would measure it; a job finds it known."""
        unit = BASELINE.unit(
            BaselineTask(model=model),
            project=project,
            inputs=inputs,
            timeout_seconds=CHECK_TIMEOUT_SECONDS,
            label="accuracy of the model as it came",
        )
        return BASELINE.outcome(await self._run(unit)).accuracy

    async def _teachers(
        self, project: str, request: JobRequest, model_digest: str, model: ModelFacts
    ) -> tuple[TeacherModel, ...]:
        return await find_teachers(
            request.teachers,
            project=project,
            model_digest=model_digest,
            model=model,
            hardware=self._hardware,
        )

    async def _run(self, unit: WorkUnit) -> WorkResult:
        return await run_cached(
            unit, executor=self._executor, store=self._jobs, telemetry=self._telemetry
        )


def check_trainable(model: ModelFacts) -> None:
    """Refuse a model whose weights cannot be changed.

    Raises:
        InvalidModelError: It is quantized.
    """
    if model.is_quantized:
        raise InvalidModelError(
            "the model is quantized already; its rounding cannot be trained or pruned away",
            field="model",
            remedy="send the float model that it was made from; this one can be estimated",
        )


def check_consistent(request: JobRequest, target: HardwareSpec) -> None:
    """Refuse budgets that contradict themselves or the objective.

    Raises:
        InvalidBudgetError: A cost is the objective without an accuracy limit, or a limit exceeds
            what the target has.
        InvalidRequestError: The size of the download is the objective, or labels of runners are given
            where nothing is to be measured.
    """
    if request.objective.quantity is Quantity.DOWNLOAD:
        raise InvalidRequestError(
            "the size of the download can be limited, and is no objective",
            field="objective.quantity",
            remedy="limit it by --max-download, and let the search keep the accuracy",
        )
    if request.runner_labels and request.verification is Verification.NONE:
        raise InvalidRequestError(
            "labels of runners are given, but nothing is to be measured",
            field="runner_labels",
            remedy="ask for --verify if-available or required, or leave the labels out",
        )
    has_accuracy = any(c.quantity is Quantity.ACCURACY for c in request.budget.constraints)
    if request.objective.quantity is not Quantity.ACCURACY and not has_accuracy:
        raise InvalidBudgetError(
            f"minimising {request.objective.quantity} without an accuracy limit ends in an empty model",
            field="budget.min_accuracy",
            remedy="add --min-accuracy or --max-accuracy-drop",
        )
    capacity = {
        Quantity.RAM: target.memory.ram_bytes,
        Quantity.SIZE: target.memory.flash_bytes,
    }
    for constraint in request.budget.constraints:
        room = capacity.get(constraint.quantity)
        if room is not None and constraint.limit is not None and constraint.limit > room:
            raise InvalidBudgetError(
                f"{constraint.field_name} is {constraint.limit:.0f} bytes, but {target.name} has {room}",
                field=constraint.field_name,
                remedy="lower the limit or choose a target with more memory",
            )
