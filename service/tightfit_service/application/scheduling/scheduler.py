"""Runs jobs on this replica: claims them, keeps their leases alive, and hands them back when it stops."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.ports import (
    Claim,
    Clock,
    JobQueue,
    JobStore,
    Lease,
    Telemetry,
)
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.scheduling.lost_lives import check_losses, told_of
from tightfit_service.application.units.under_way import UnitsUnderWay
from tightfit_service.domain.errors import (
    GivenUpError,
    LeaseLostError,
    PreconditionError,
    TightfitError,
)
from tightfit_service.domain.job import Job, JobEventKind, JobState
from tightfit_service.domain.quota import Quota

log = structlog.get_logger(__name__)

RunJob = Callable[[JobJournal], Awaitable[None]]
"""Runs one job to a final state through its journal."""

POLL_SECONDS = 2.0
STORE_RETRY_SECONDS = 5.0
HEARTBEATS_PER_LEASE = 5
CANCEL_NEWS_SECONDS = 1.0
"""How soon a replica learns of a wish to cancel its job that was not told to it, or cut short."""
CANCEL_ATTEMPTS = 5
CANCEL_WAIT_SECONDS = 5.0
CANCEL_POLL_SECONDS = 0.1
WIND_UP_SECONDS = 5.0
"""How long an interrupted job tries to store its end; then its lease runs out."""


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """What makes this replica one of several."""

    name: str = "server"
    lease_seconds: float = 15.0
    """How long a replica may be silent before others take its jobs."""
    is_alone: bool = False
    """Whether nobody else can be on the database, so that leases are left over from earlier lives."""
    quota: Quota = field(default_factory=Quota)
    """Of projects that have none of their own."""


class _Wish(enum.Enum):
    CANCEL = enum.auto()
    HAND_BACK = enum.auto()
    FORGET = enum.auto()


@dataclass(eq=False)
class _Life:
    """One run of one job in this process. Its task alone writes the job."""

    claim: Claim
    task: asyncio.Task[None] | None = None
    work: asyncio.Task[None] | None = None
    wish: _Wish | None = None
    journal: JobJournal | None = None
    units: UnitsUnderWay = field(default_factory=UnitsUnderWay)
    is_stored_as_waiting: bool = False
    """Whether the store may hold that the job only waits for a worker."""

    def interrupt(self, wish: _Wish) -> None:
        """End the work; the first wish counts."""
        if self.wish is None:
            self.wish = wish
            if self.work is not None:
                self.work.cancel()


class JobScheduler:
    """Owns the jobs that run in this process. Lives on one event loop."""

    def __init__(
        self,
        *,
        store: JobStore,
        queue: JobQueue,
        run_job: RunJob,
        hub: EventHub,
        clock: Clock,
        telemetry: Telemetry,
        concurrent_jobs: int,
        replica: ReplicaOptions | None = None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._run_job = run_job
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry
        self._concurrent_jobs = concurrent_jobs
        self._replica = replica or ReplicaOptions()
        # a new life of the same replica is somebody else: it must not take old leases for its own
        self._owner = f"{self._replica.name}/{uuid.uuid4().hex[:8]}"
        self._running: dict[str, _Life] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # heartbeats must not queue behind searches and watchers in the common threads
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")
        self._trusts_silence_from = 0.0

    async def start(self) -> None:
        """Begin to run queued jobs, and those that nobody is heard of any more."""
        if self._replica.is_alone:
            await asyncio.to_thread(self._queue.end_leases)
        for name, work in (
            # the first one claims: it is the first to be stopped
            ("job-scheduler", self._loop()),
            ("job-heartbeat", self._heartbeat()),
            ("job-cancels", self._repeat(self._heed_cancels, CANCEL_NEWS_SECONDS)),
            ("job-watch", self._hub.follow_store(self._store)),
        ):
            self._tasks.append(asyncio.create_task(work, name=name))

    async def stop(self) -> None:
        """Stop running jobs and hand them back to the queue, for other replicas or the next start."""
        await _ended(self._tasks[:1])
        lives = [*self._running.values()]
        for life in lives:
            life.interrupt(_Wish.HAND_BACK)
        await asyncio.gather(*(life.task for life in lives if life.task), return_exceptions=True)
        await _ended(self._tasks[1:])
        self._threads.shutdown(wait=False)

    def wake(self) -> None:
        """Look for queued jobs now."""
        self._wake.set()

    async def cancel(self, job: Job) -> Job:
        """End a job as CANCELLED and return it; its worker is free then.

        A job that another replica runs is waited for a few seconds: it is returned as it stands then,
        and its replica ends it when it learns of the wish.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + CANCEL_WAIT_SECONDS
        # first of all the wish is stored: then it outlives whoever carries it out
        current = await asyncio.to_thread(self._queue.request_cancel, job.project, job.job_id)
        while not current.state.is_final and loop.time() < end:
            await self._carry_out_cancel(current)
            current = await asyncio.to_thread(self._store.get_job, job.project, job.job_id)
        return current

    async def _carry_out_cancel(self, job: Job) -> None:
        life = self._running.get(job.job_id)
        if life is not None:
            life.interrupt(_Wish.CANCEL)
            if life.task is not None:
                await asyncio.wait({life.task})
            return
        if job.state is JobState.QUEUED:
            try:
                await self._write_cancelled(self._journal(job, None))
            except PreconditionError:  # it was claimed in between
                return
            return
        claim = await asyncio.to_thread(
            self._queue.take_over_job,
            job.job_id,
            self._owner,
            lease_seconds=self._replica.lease_seconds,
            now=self._clock.now(),
        )
        if claim is not None:
            await self._write_cancelled(self._journal(claim.job, claim.lease))
            return
        await asyncio.sleep(CANCEL_POLL_SECONDS)

    async def _write_cancelled(self, journal: JobJournal, **found: Any) -> None:
        now = self._clock.now()
        await journal.enter(JobState.CANCELLED, "cancelled by the user", end_time=now, **found)

    async def _loop(self) -> None:
        while True:
            try:
                await self._start_jobs()
            except TightfitError as error:
                # A store that is down is not a reason to forget the queue.
                self._note_outage()
                log.warning("scheduler.store_unavailable", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
                continue
            except Exception:  # boundary: a job that cannot be read must not stop all others
                log.exception("scheduler.claim_failed")
                await asyncio.sleep(STORE_RETRY_SECONDS)
                continue
            try:
                # not `wait_for`, which in Python 3.11 may swallow a cancellation as it is woken
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def _start_jobs(self) -> None:
        while len(self._running) < self._concurrent_jobs:
            claim = await asyncio.to_thread(
                self._queue.claim_job,
                self._owner,
                lease_seconds=self._replica.lease_seconds,
                now=self._clock.now(),
                quota=self._replica.quota,
                take_over=asyncio.get_running_loop().time() >= self._trusts_silence_from,
            )
            if claim is None:
                return
            life = _Life(claim)
            self._running[claim.job.job_id] = life
            life.task = asyncio.create_task(self._live(life), name=f"job-{claim.job.job_id}")
            life.task.add_done_callback(partial(self._ended, life))

    def _ended(self, life: _Life, _: asyncio.Task[None]) -> None:
        job_id = life.claim.job.job_id
        if self._running.get(job_id) is life:
            del self._running[job_id]
        self._wake.set()

    def _note_outage(self) -> None:
        # Whoever cannot reach the store itself cannot tell a dead replica from a dead store: the
        # others get the time of a lease to be heard of again.
        now = asyncio.get_running_loop().time()
        self._trusts_silence_from = now + self._replica.lease_seconds

    async def _heartbeat(self) -> None:
        await self._repeat(self._beat, self._replica.lease_seconds / HEARTBEATS_PER_LEASE)

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                await work()
            except TightfitError as error:
                self._note_outage()
                log.warning("scheduler.heartbeat_failed", error=str(error))
            except Exception:  # boundary: jobs must not be lost for an error of one heartbeat
                log.exception("scheduler.heartbeat_failed")

    async def _heed_cancels(self) -> None:
        if not self._running:
            return
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._threads, self._queue.cancel_requests, self._owner)
        for job_id in asked:
            if life := self._running.get(job_id):
                life.interrupt(_Wish.CANCEL)

    async def _beat(self) -> None:
        lives = [*self._running.values()]
        if not lives:
            return
        waiting = {life.claim.job.job_id for life in lives if life.units.only_wait}
        for life in lives:
            life.is_stored_as_waiting |= life.claim.job.job_id in waiting
        renewed = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            partial(
                self._queue.renew_leases,
                [life.claim.lease for life in lives],
                lease_seconds=self._replica.lease_seconds,
                waiting=waiting,
            ),
        )
        held = frozenset(renewed)
        for life in lives:
            job_id = life.claim.job.job_id
            life.is_stored_as_waiting &= job_id in waiting
            if self._running.get(job_id) is life and job_id not in held:
                self._lost(life)

    async def _unit_begins(self, life: _Life) -> None:
        """Have it stored that the job waits no more, before its unit can end whoever runs it."""
        if not life.is_stored_as_waiting:
            return
        renew = partial(
            self._queue.renew_leases,
            [life.claim.lease],
            lease_seconds=self._replica.lease_seconds,
        )
        try:
            # in the thread of the heartbeats, so that none which was under way has the last word
            await asyncio.get_running_loop().run_in_executor(self._threads, renew)
            life.is_stored_as_waiting = False
        except TightfitError as error:
            # the next heartbeat tells it: better than a worker that is kept for nothing
            log.warning("scheduler.begin_not_stored", error=str(error))

    def _lost(self, life: _Life) -> None:
        job_id = life.claim.job.job_id
        if life.wish is None and not (life.work and life.work.done()):
            log.warning("job.lease_lost", job_id=job_id, owner=self._owner)
            self._telemetry.lease_event("lost")
        life.interrupt(_Wish.FORGET)

    async def _live(self, life: _Life) -> None:
        """Run a job, and bring it to where a wish wants it."""
        job_id = life.claim.job.job_id
        try:
            if life.claim.cancel_requested:
                life.wish = _Wish.CANCEL
            if life.wish is None:
                life.work = asyncio.create_task(self._work(life))
                await asyncio.wait({life.work})
            await self._wind_up(life)
        except TightfitError as error:
            # the lease runs out, and whoever takes the job over begins where it was
            log.warning("job.end_not_stored", job_id=job_id, error=str(error))
        finally:
            self._telemetry.best_so_far(job_id, None)

    async def _work(self, life: _Life) -> None:
        job = life.claim.job
        with (
            structlog.contextvars.bound_contextvars(job_id=job.job_id, project=job.project),
            tracing.span("job", parent=job.trace_parent, job_id=job.job_id, project=job.project),
        ):
            await self._run_claimed(life)

    async def _run_claimed(self, life: _Life) -> None:
        claim = life.claim
        job_id = claim.job.job_id
        life.units = UnitsUnderWay(before_begin=partial(self._unit_begins, life))
        journal = life.journal = self._journal(claim.job, claim.lease, units=life.units)
        try:
            await self._begin(journal, claim)
            await self._run_job(journal)
        except LeaseLostError:
            self._lost(life)
        except TightfitError as error:
            await self._fail(journal, claim.lease, error.reason, str(error))
        except Exception as error:  # boundary: whatever a job raises must end that job only
            log.exception("job.crashed", job_id=job_id)
            message = f"internal error ({type(error).__name__})"
            await self._fail(journal, claim.lease, "INTERNAL", message)

    async def _begin(self, journal: JobJournal, claim: Claim) -> None:
        """Tell that the job runs.

        Raises:
            GivenUpError: It ended whoever ran it, again and again.
        """
        job, before = claim.job, claim.before
        message = "started" if before.start_time is None else "going on"
        if claim.losses:
            self._telemetry.lease_event("taken_over")
            message = told_of(claim.losses[-1])
        await journal.event(JobEventKind.STATE, message, state=JobState.RUNNING)
        try:
            check_losses(claim.losses)
        except GivenUpError:
            self._telemetry.lease_event("given_up")
            raise
        self._telemetry.job_state(job, before.state)
        if before.state is JobState.QUEUED:
            self._telemetry.job_waited((job.update_time - before.update_time).total_seconds())
        log.info("job.started", job_id=job.job_id, project=job.project, message=message)

    async def _fail(self, journal: JobJournal, lease: Lease, reason: str, message: str) -> None:
        job = journal.job
        log.error("job.failed", job_id=job.job_id, reason=reason, error=message)
        try:
            # what the journal knows may be older than what it wrote last
            current = await asyncio.to_thread(self._store.get_job, job.project, job.job_id)
            if not current.state.is_final:
                await self._journal(current, lease).enter(
                    JobState.FAILED,
                    message,
                    error=message,
                    error_reason=reason,
                    end_time=self._clock.now(),
                    **journal.found(),
                )
        except LeaseLostError:
            log.warning("job.lease_lost", job_id=job.job_id, owner=self._owner)
        except TightfitError as error:
            log.warning("job.end_not_stored", job_id=job.job_id, error=str(error))

    async def _wind_up(self, life: _Life) -> None:
        """Store what a wish asks for; a last write of the work may come in between."""
        if life.wish in (None, _Wish.FORGET):
            return
        job = life.claim.job
        found = life.journal.found() if life.journal and life.wish is _Wish.CANCEL else {}
        for attempt in range(CANCEL_ATTEMPTS):
            current = await asyncio.to_thread(self._store.get_job, job.project, job.job_id)
            if current.state is not JobState.RUNNING:
                return
            journal = self._journal(current, life.claim.lease, patience_seconds=WIND_UP_SECONDS)
            try:
                if life.wish is _Wish.CANCEL:
                    await self._write_cancelled(journal, **found)
                else:
                    message = f"queued again: {self._replica.name} stops"
                    await journal.enter(JobState.QUEUED, message)
            except LeaseLostError:
                return
            except PreconditionError:
                if attempt + 1 == CANCEL_ATTEMPTS:
                    raise
            else:
                return

    def _journal(self, job: Job, lease: Lease | None, **options: Any) -> JobJournal:
        return JobJournal(
            job,
            store=self._store,
            hub=self._hub,
            clock=self._clock,
            telemetry=self._telemetry,
            lease=lease,
            **options,
        )


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
