"""Joins the scheduler to the search: what a queued job needs before its run can begin."""

from __future__ import annotations

from collections.abc import Mapping

from tightfit_service.application.assets.imported_models import ImportedModels
from tightfit_service.application.costs.models import CostModels
from tightfit_service.application.course.compression import CompressionRun
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.ports import Clock, JobStore, Telemetry
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.trials.book import RunContext
from tightfit_service.application.trials.provenance import Provenance
from tightfit_service.application.units.cached import CachedUnits


class JobRunner:
    """Runs one job to SUCCEEDED or INFEASIBLE; the scheduler's `RunJob`."""

    def __init__(
        self,
        *,
        store: JobStore,
        costs: CostModels,
        models: ImportedModels,
        units: CachedUnits,
        clock: Clock,
        telemetry: Telemetry,
        tool_versions: Mapping[str, str],
        measurements: DeviceMeasurements,
        provenance: Provenance | None = None,
        parallel_trials: int = 1,
    ) -> None:
        self._parallel_trials = parallel_trials
        self._store = store
        self._costs = costs
        self._models = models
        self._units = units
        self._clock = clock
        self._telemetry = telemetry
        self._tool_versions = tool_versions
        self._measurements = measurements
        self._provenance = provenance

    async def __call__(self, journal: JobJournal) -> None:
        """Run the job of the journal.

        Raises:
            TightfitError: The job cannot be run; the scheduler fails it.
        """
        project, spec = journal.job.project, journal.job.spec
        model = await self._models.with_digest(project, spec.model_digest)
        teachers = [
            await self._models.with_digest(project, teacher.digest) for teacher in spec.teachers
        ]
        context = RunContext(
            project=project,
            store=self._store,
            units=self._units.counted_by(journal.units),
            telemetry=self._telemetry,
            clock=self._clock,
            cost_model=await self._costs.of_project(project, spec.target),
            facts=model.facts,
            graph_digest=model.graph_digest,
            teacher_graphs=tuple(teacher.graph_digest for teacher in teachers),
            tool_versions=self._tool_versions,
            parallel_trials=self._parallel_trials,
            measurements=self._measurements,
            provenance=self._provenance,
        )
        await CompressionRun(journal, context).run()
