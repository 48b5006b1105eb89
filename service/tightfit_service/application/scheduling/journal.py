"""The journal of a running job: every change is stored first, then told to those who watch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog

from tightfit_service.application.patience import PATIENCE_SECONDS, patiently
from tightfit_service.application.ports import Clock, JobMark, JobStore, Lease, Telemetry
from tightfit_service.application.units.under_way import UnitsUnderWay
from tightfit_service.domain.errors import PreconditionError, TightfitError
from tightfit_service.domain.job import Job, JobEvent, JobEventKind, JobState, check_transition
from tightfit_service.domain.trial import Trial

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

POLL_SECONDS = 1.0
"""How often other replicas' news is asked for, once for all who watch here."""

EVENT_BATCH = 200


class Watcher:
    """Somebody who waits for news of a job, and what they have seen of it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.seen = JobMark(-1, -1)
        self.news = asyncio.Event()


class EventHub:
    """Wakes the watchers of jobs. Lives on one event loop; not thread-safe."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = defaultdict(set)

    def announce(self, job_id: str) -> None:
        """Wake everyone who waits for news of the job."""
        for watcher in self._watchers.get(job_id, ()):
            watcher.news.set()

    async def wait(self, watcher: Watcher) -> None:
        """Return when there is news for the watcher."""
        await watcher.news.wait()
        watcher.news.clear()

    def enter(self, job_id: str) -> Watcher:
        """Register a watcher; it is told from now on whenever there is news."""
        watcher = Watcher(job_id)
        self._watchers[job_id].add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        self._watchers[watcher.job_id].discard(watcher)
        if not self._watchers[watcher.job_id]:
            del self._watchers[watcher.job_id]

    async def follow_store(self, store: JobStore) -> None:
        """Wake watchers of what other replicas wrote, until cancelled: one query for all of them."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.look(store)
            except TightfitError as error:
                log.warning("watch.store_unavailable", error=str(error))
            except Exception:  # watchers must not be left alone for an error of one look
                log.exception("watch.failed")

    async def look(self, store: JobStore) -> None:
        """Wake whoever has seen less than the store holds."""
        watched = [*self._watchers]
        if not watched:
            return
        marks = await asyncio.to_thread(store.job_marks, watched)
        for job_id in watched:
            mark = marks.get(job_id)
            for watcher in self._watchers.get(job_id, ()):
                if (
                    mark is None
                    or mark.revision != watcher.seen.revision
                    or mark.last_sequence > watcher.seen.last_sequence
                ):
                    watcher.news.set()


async def follow(
    store: JobStore, hub: EventHub, project: str, job_id: str, *, after: int
) -> AsyncIterator[JobEvent]:
    """Yield stored and coming events of a job until it is final and all are told.

    The watcher registers before it reads, so nothing falls between stored and live events.
    """
    watcher = hub.enter(job_id)
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
            watcher.seen = JobMark(job.revision, last)
            await hub.wait(watcher)
    finally:
        hub.leave(watcher)


class JobJournal:
    """Writes one job's course. Used by one task at a time, which owns the job while it runs.

    A store that is away is waited for. Every method may raise LeaseLostError: the job is run by
    somebody else by now, and this life of it is over.
    """

    def __init__(
        self,
        job: Job,
        *,
        store: JobStore,
        hub: EventHub,
        clock: Clock,
        telemetry: Telemetry,
        lease: Lease | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        units: UnitsUnderWay | None = None,
    ) -> None:
        self.job = job
        self.units = units or UnitsUnderWay()
        """Units of work of the job; whoever runs it has them counted here."""
        self.so_far: Callable[[], Mapping[str, Any]] = dict
        """Returns the fields of the job that tell what it has found; set by whoever runs it."""
        self._lease = lease
        self._patience_seconds = patience_seconds
        self._store = store
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry

    def found(self) -> Mapping[str, Any]:
        """Return what the job has found, to be stored with an end that comes from outside.

        It may be more than the job has stored: that is done once for all trials of a round.
        """
        try:
            return self.so_far()
        except Exception:  # boundary: the end must be stored, whatever is wrong with what was found
            log.exception("job.found_unknown", job_id=self.job.job_id)
            return {}

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
        event = self._dated(
            kind,
            message,
            stage=stage,
            state=state,
            trial_index=trial_index,
            fraction=fraction,
        )
        await self._patiently(partial(self._store.append_event, event, lease=self._lease))
        self._announce(kind)

    def _dated(self, kind: JobEventKind, message: str, **details: Any) -> JobEvent:
        return JobEvent(
            job_id=self.job.job_id,
            sequence=0,
            time=self._clock.now(),
            kind=kind,
            message=message,
            **details,
        )

    def _announce(self, kind: JobEventKind) -> None:
        if kind in (JobEventKind.STAGE, JobEventKind.PROGRESS, JobEventKind.TRIAL):
            self._telemetry.job_progressed(self.job.job_id)
        self._hub.announce(self.job.job_id)

    async def update(self, **changes: Any) -> Job:
        """Store changed fields of the job."""
        changed = replace(self.job, update_time=self._clock.now(), **changes)
        self.job = await self._patiently(partial(self._stored, changed))
        return self.job

    def _stored(self, changed: Job) -> Job:
        try:
            return self._store.update_job(changed, lease=self._lease)
        except PreconditionError:
            # the store may have gone away after the write and before its answer
            stored = self._store.get_job(changed.project, changed.job_id)
            if stored != replace(changed, revision=changed.revision + 1):
                raise
            return stored

    async def _patiently(self, call: Callable[[], Result]) -> Result:
        return await patiently(lambda: asyncio.to_thread(call), seconds=self._patience_seconds)

    async def enter(self, state: JobState, message: str, **changes: Any) -> Job:
        """Move the job to a state and tell it.

        The event is stored before the state where the state is final, so that a watcher who sees
        the final state has every event.

        Raises:
            PreconditionError: The job cannot go there.
        """
        before = self.job.state
        check_transition(before, state)
        await self.event(JobEventKind.STATE, message, state=state)
        await self.update(state=state, **changes)
        self._telemetry.job_state(self.job, before)
        if state.is_final:
            self._log_end()
        self._hub.announce(self.job.job_id)
        return self.job

    def _log_end(self) -> None:
        """Write the one line that says how a job ended and what it took."""
        job = self.job
        begun = job.start_time or job.update_time
        log.info(
            "job.ended",
            job_id=job.job_id,
            project=job.project,
            state=str(job.state),
            reason=job.error_reason,
            waited_seconds=round((begun - job.create_time).total_seconds(), 3),
            ran_seconds=round((job.update_time - begun).total_seconds(), 3),
            best_trial=job.result.best_trial,
            target=job.spec.target.name,
        )

    async def trial(self, trial: Trial, message: str) -> None:
        """Store a trial and tell it; nobody sees one without the other."""
        event = self._dated(JobEventKind.TRIAL, message, stage="trial", trial_index=trial.index)
        await self._save(trial, event)
        self._announce(JobEventKind.TRIAL)

    async def keep(self, trial: Trial) -> None:
        """Store a trial without telling it."""
        await self._save(trial, None)

    async def _save(self, trial: Trial, event: JobEvent | None) -> None:
        await self._patiently(
            partial(self._store.save_trial, self.job.job_id, trial, event=event, lease=self._lease)
        )
