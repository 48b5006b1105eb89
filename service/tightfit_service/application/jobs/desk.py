"""Compression jobs as the API sees them: created, checked, listed, watched, cancelled, deleted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.access.caller import caller
from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.jobs.requests import JobRequests
from tightfit_service.application.ports import Clock, JobStore, Page, Telemetry, UnreadableJob
from tightfit_service.application.scheduling.journal import EventHub, follow
from tightfit_service.application.scheduling.scheduler import JobScheduler
from tightfit_service.application.use_cases import CheckReport, JobRequest
from tightfit_service.domain.job import Job, JobEvent, JobSpec, JobState
from tightfit_service.domain.quota import Quota, check_trials
from tightfit_service.domain.trial import Trial

log = structlog.get_logger(__name__)


class JobDesk:
    """Implements `use_cases.Jobs`."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        requests: JobRequests,
        quotas: Quotas,
        scheduler: JobScheduler,
        hub: EventHub,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._jobs = jobs
        self._requests = requests
        self._quotas = quotas
        self._scheduler = scheduler
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry

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
        spec = await self._requests.spec(project, request)
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

    async def check(self, project: str, request: JobRequest) -> CheckReport:
        """Run the preflight: costs by estimate, and the accuracy as it came where there is a dataset."""
        return await self._requests.preflight(project, request)

    async def get(self, project: str, job_id: str) -> Job:
        """Return a job."""
        return await asyncio.to_thread(self._jobs.get_job, project, job_id)

    async def list(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job | UnreadableJob]:
        """Return jobs, newest first; of those that cannot be read, what is known of them."""
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
