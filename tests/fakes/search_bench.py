"""One job's search over scripted workers, which can be run again after it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fakes.clock import FakeClock
from fakes.linear_emulator import LinearEmulator
from fakes.runners import RecordingRunnerTelemetry
from fakes.scripted_work import ScriptedExecutor, facts
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.course.compression import CompressionRun
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.ports import DeviceMeasurer, Executor
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.trials.book import RunContext
from tightfit_service.application.trials.provenance import Provenance
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.budget import Budget, Constraint, Objective, Quantity, SearchLimits
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.domain.job import Job, JobSpec, JobState, TeacherModel
from tightfit_service.domain.measurement import Verification
from tightfit_service.domain.network import ImportanceCriterion
from tightfit_service.domain.recipe import Recipe
from tightfit_service.domain.trial import Trial

TARGET = HardwareSpec(
    name="board",
    display_name="A board",
    core="cortex-m7",
    clock_mhz=280.0,
    memory=Memory(ram_bytes=1 << 20, flash_bytes=2 << 20),
    runtime=Runtime(name="TFLM"),
)
WHOLE_LATENCY_MS = facts().macs * 1e-6


async def run_search(
    job: Job,
    *,
    store: InMemoryStore,
    hub: EventHub,
    executor: Executor,
    telemetry: RecordingTelemetry,
    clock: FakeClock,
    **context: Any,
) -> Job:
    """Run a job on TARGET to its end, or on from where it was interrupted.

    `context` are the fields of `RunContext` that say what the job is about: its facts and graph at least.
    """
    journal = JobJournal(job, store=store, hub=hub, clock=clock, telemetry=telemetry)
    if job.state is JobState.QUEUED:
        await journal.enter(JobState.RUNNING, "started")
    run = CompressionRun(
        journal,
        RunContext(
            project=job.project,
            store=store,
            units=CachedUnits(executor=executor, store=store, telemetry=telemetry),
            telemetry=telemetry,
            clock=clock,
            cost_model=CostModel(emulator=LinearEmulator(), target=TARGET, telemetry=telemetry),
            tool_versions={},
            **context,
        ),
    )
    await run.run()
    return store.get_job(job.project, job.job_id)


class Bench:
    """One job with everything it needs, which can be run again after it was interrupted."""

    def __init__(
        self,
        *constraints: Constraint,
        objective: Quantity = Quantity.ACCURACY,
        max_trials: int = 8,
        max_seconds: float = 600,
        recipe: Recipe | None = None,
        verification: Verification = Verification.NONE,
        runner_labels: Mapping[str, str] | None = None,
        measurer: DeviceMeasurer | None = None,
        provenance: Provenance | None = None,
        parallel_trials: int = 1,
        packed: bool = False,
        techniques: tuple[str, ...] = (),
        teachers: tuple[TeacherModel, ...] = (),
        importance: ImportanceCriterion | None = None,
    ) -> None:
        self.parallel_trials = parallel_trials
        self.clock = FakeClock()
        self.provenance = provenance
        self.store = InMemoryStore()
        self.executor = ScriptedExecutor()
        self.telemetry = RecordingTelemetry()
        self.hub = EventHub()
        spec = JobSpec(
            model_digest="1" * 64,
            model_name="m",
            target=TARGET,
            budget=Budget(constraints=constraints),
            dataset_digest="2" * 64,
            dataset_name="d",
            objective=Objective(quantity=objective),
            search_limits=SearchLimits(max_trials=max_trials, max_seconds=max_seconds),
            recipe=recipe,
            verification=verification,
            runner_labels=runner_labels or {},
            packed=packed,
            techniques=techniques,
            teachers=teachers,
            importance=importance,
        )
        self.measurements = (
            None
            if measurer is None
            else DeviceMeasurements(
                measurer=measurer, results=self.store, telemetry=RecordingRunnerTelemetry()
            )
        )
        now = self.clock.now()
        self.store.create_job(
            Job(
                job_id="j",
                project="p",
                spec=spec,
                state=JobState.QUEUED,
                create_time=now,
                update_time=now,
            )
        )

    async def run(self) -> Job:
        job = self.store.get_job("p", "j")
        return await run_search(
            job,
            store=self.store,
            hub=self.hub,
            executor=self.executor,
            telemetry=self.telemetry,
            clock=self.clock,
            facts=facts(),
            graph_digest="9" * 64,
            teacher_graphs=tuple(teacher.digest for teacher in job.spec.teachers),
            parallel_trials=self.parallel_trials,
            measurements=self.measurements,
            provenance=self.provenance,
        )

    def trials(self) -> list[Trial]:
        return list(self.store.list_trials("j"))


def latency(limit: float) -> Constraint:
    return Constraint(quantity=Quantity.LATENCY, limit=limit)
