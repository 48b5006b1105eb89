"""The journal of a running job: every change is stored first, then told to those who watch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from tightfit_service.application.ports import Clock, JobStore, Telemetry
from tightfit_service.domain.job import Job, JobEvent, JobEventKind, JobState, check_transition
from tightfit_service.domain.trial import Trial

POLL_SECONDS = 1.0
"""How long a watcher sleeps without being told; another process may have written."""

EVENT_BATCH = 200


class EventHub:
    """Wakes the watchers of a job. Lives on one event loop; not thread-safe."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)

    def announce(self, job_id: str) -> None:
        """Wake everyone who waits for news of the job."""
        for waiter in self._waiters.get(job_id, ()):
            waiter.set()

    async def wait(self, waiter: asyncio.Event) -> None:
        """Return when there is news for the watcher, or after a while."""
        try:
            await asyncio.wait_for(waiter.wait(), POLL_SECONDS)
        except TimeoutError:
            return
        finally:
            waiter.clear()

    def enter(self, job_id: str) -> asyncio.Event:
        """Register a watcher; it is set from now on whenever there is news."""
        waiter = asyncio.Event()
        self._waiters[job_id].add(waiter)
        return waiter

    def leave(self, job_id: str, waiter: asyncio.Event) -> None:
        """Remove a watcher."""
        self._waiters[job_id].discard(waiter)
        if not self._waiters[job_id]:
            del self._waiters[job_id]


async def follow(
    store: JobStore, hub: EventHub, project: str, job_id: str, *, after: int
) -> AsyncIterator[JobEvent]:
    """Yield stored and coming events of a job until it is final and all are told.

    The watcher registers before it reads, so nothing falls between stored and live events.
    """
    waiter = hub.enter(job_id)
    try:
        last = after
        while True:
            # The state is read before the events: when it is final, no event follows those read next.
            job = await asyncio.to_thread(store.get_job, project, job_id)
            events = await asyncio.to_thread(
                store.list_events, job_id, after=last, limit=EVENT_BATCH
            )
            for event in events:
                last = event.sequence
                yield event
            if len(events) == EVENT_BATCH:
                continue
            if job.state.is_final:
                return
            await hub.wait(waiter)
    finally:
        hub.leave(job_id, waiter)


class JobJournal:
    """Writes one job's course. Used by one task at a time, which owns the job while it runs."""

    def __init__(
        self, job: Job, *, store: JobStore, hub: EventHub, clock: Clock, telemetry: Telemetry
    ) -> None:
        self.job = job
        self._store = store
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry

    async def event(
        self,
        kind: JobEventKind,
        message: str,
        *,
        stage: str = "",
        trial_index: int | None = None,
        fraction: float | None = None,
        state: JobState | None = None,
    ) -> None:
        """Store an event and wake the watchers."""
        await asyncio.to_thread(
            self._store.append_event,
            JobEvent(
                job_id=self.job.job_id,
                sequence=0,
                time=self._clock.now(),
                kind=kind,
                message=message,
                stage=stage,
                state=state,
                trial_index=trial_index,
                fraction=fraction,
            ),
        )
        if kind in (JobEventKind.STAGE, JobEventKind.PROGRESS, JobEventKind.TRIAL):
            self._telemetry.job_progressed(self.job.job_id)
        self._hub.announce(self.job.job_id)

    async def update(self, **changes: Any) -> Job:
        """Store changed fields of the job."""
        changed = replace(self.job, update_time=self._clock.now(), **changes)
        self.job = await asyncio.to_thread(self._store.update_job, changed)
        return self.job

    async def enter(self, state: JobState, message: str, **changes: Any) -> Job:
        """Move the job to a state and tell it.

        The event is stored before the state where the state is final, so that a watcher who sees
        the final state has every event.

        Raises:
            PreconditionError: The job cannot go there.
        """
        before, since = self.job.state, self.job.update_time
        check_transition(before, state)
        await self.event(JobEventKind.STATE, message, state=state)
        await self.update(state=state, **changes)
        self._telemetry.job_state(self.job, before)
        if before is JobState.QUEUED and state is JobState.RUNNING:
            self._telemetry.job_waited((self.job.update_time - since).total_seconds())
        self._hub.announce(self.job.job_id)
        return self.job

    async def trial(self, trial: Trial, message: str) -> None:
        """Store a trial and tell it."""
        await asyncio.to_thread(self._store.save_trial, self.job.job_id, trial)
        await self.event(JobEventKind.TRIAL, message, stage="trial", trial_index=trial.index)
