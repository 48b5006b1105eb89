"""Runs queued jobs, oldest first, and brings interrupted ones back after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from tightfit_service.application.journal import EventHub, JobJournal
from tightfit_service.application.ports import Clock, JobStore, Telemetry
from tightfit_service.domain.errors import PreconditionError, TightfitError
from tightfit_service.domain.job import Job, JobState

log = structlog.get_logger(__name__)

RunJob = Callable[[JobJournal], Awaitable[None]]
"""Runs one job to a final state through its journal."""

POLL_SECONDS = 2.0
STORE_RETRY_SECONDS = 5.0
CANCEL_ATTEMPTS = 5


class JobScheduler:
    """Owns the jobs that run in this process. Lives on one event loop."""

    def __init__(
        self,
        *,
        store: JobStore,
        run_job: RunJob,
        hub: EventHub,
        clock: Clock,
        telemetry: Telemetry,
        concurrent_jobs: int,
    ) -> None:
        self._store = store
        self._run_job = run_job
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry
        self._concurrent_jobs = concurrent_jobs
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Queue again what an earlier life of the server left running, and begin."""
        for job in await asyncio.to_thread(self._store.unfinished_jobs):
            self._telemetry.job_state(job, None)
            if job.state is JobState.RUNNING:
                journal = self._journal(job)
                await journal.enter(JobState.QUEUED, "queued again: the server was restarted")
        self._loop_task = asyncio.create_task(self._loop(), name="job-scheduler")

    async def stop(self) -> None:
        """Stop running jobs; they stay RUNNING in the store and go on after the next start."""
        tasks = [*self._running.values()]
        if self._loop_task is not None:
            tasks.append(self._loop_task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look for queued jobs now."""
        self._wake.set()

    async def cancel(self, job: Job) -> None:
        """End a job as CANCELLED; returns when its worker is free again."""
        for attempt in range(CANCEL_ATTEMPTS):
            task = self._running.get(job.job_id)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            current = await asyncio.to_thread(self._store.get_job, job.project, job.job_id)
            if current.state.is_final:
                break
            try:
                await self._journal(current).enter(
                    JobState.CANCELLED, "cancelled by the user", end_time=self._clock.now()
                )
                break
            except PreconditionError:
                # The job was written in between: by its task, whose last write cannot be cancelled.
                if attempt + 1 == CANCEL_ATTEMPTS:
                    raise
        self._telemetry.best_so_far(job.job_id, None)

    async def _loop(self) -> None:
        while True:
            try:
                await self._start_queued()
            except TightfitError as error:
                # A store that is down is not a reason to forget the queue.
                log.warning("scheduler.store_unavailable", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def _start_queued(self) -> None:
        free = self._concurrent_jobs - len(self._running)
        if free <= 0:
            return
        unfinished = await asyncio.to_thread(self._store.unfinished_jobs)
        queued = [job for job in unfinished if job.state is JobState.QUEUED]
        for job in queued[:free]:
            task = asyncio.create_task(self._run(job), name=f"job-{job.job_id}")
            self._running[job.job_id] = task
            task.add_done_callback(partial(self._ended, job.job_id))

    def _ended(self, job_id: str, _: asyncio.Task[None]) -> None:
        self._running.pop(job_id, None)
        self._wake.set()

    async def _run(self, job: Job) -> None:
        journal = self._journal(job)
        try:
            await journal.enter(
                JobState.RUNNING,
                "started" if job.start_time is None else "going on after a restart",
                start_time=job.start_time or self._clock.now(),
            )
            log.info("job.started", job_id=job.job_id, project=job.project)
            await self._run_job(journal)
        except TightfitError as error:
            await self._fail(journal, error.reason, str(error))
        except Exception as error:  # boundary: whatever a job raises must end that job only
            log.exception("job.crashed", job_id=job.job_id)
            await self._fail(journal, "INTERNAL", f"internal error ({type(error).__name__})")
        finally:
            self._telemetry.best_so_far(job.job_id, None)

    async def _fail(self, journal: JobJournal, reason: str, message: str) -> None:
        log.error("job.failed", job_id=journal.job.job_id, reason=reason, error=message)
        # Another task may have written the job since (a cancel that raced): take it as it stands.
        job = await asyncio.to_thread(self._store.get_job, journal.job.project, journal.job.job_id)
        if job.state.is_final:
            return
        journal.job = job
        await journal.enter(
            JobState.FAILED,
            message,
            error=message,
            error_reason=reason,
            end_time=self._clock.now(),
        )

    def _journal(self, job: Job) -> JobJournal:
        return JobJournal(
            job, store=self._store, hub=self._hub, clock=self._clock, telemetry=self._telemetry
        )
