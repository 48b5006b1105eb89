"""Queued jobs run oldest first, failures end one job only, cancelling wins every race, replicas share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from fakes.clock import FakeClock
from fakes.records import make_event, make_job
from fakes.scripted_work import ScriptedExecutor
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from fakes.waiting import until
from tightfit_service.application.ports import (
    BeginCallback,
    Claim,
    JobMark,
    Lease,
    Page,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.scheduling.journal import EventHub, JobJournal, follow
from tightfit_service.application.scheduling.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.domain.errors import InvalidModelError, UnavailableError
from tightfit_service.domain.job import Job, JobEventKind, JobState
from tightfit_service.domain.quota import Quota

_ALL = Page(size=100)

UNIT = WorkUnit(project="default", kind="trial", payload={}, inputs={})


class Bench:
    def __init__(
        self,
        run: Callable[[JobJournal], Awaitable[None]],
        *,
        at_a_time: int = 1,
        store: InMemoryStore | None = None,
        replica: ReplicaOptions | None = None,
    ) -> None:
        self.store = store or InMemoryStore()
        self.hub = EventHub()
        self.telemetry = RecordingTelemetry()
        self.scheduler = JobScheduler(
            store=self.store,
            queue=self.store,
            run_job=run,
            hub=self.hub,
            clock=FakeClock(),
            telemetry=self.telemetry,
            concurrent_jobs=at_a_time,
            replica=replica,
        )

    def queue(self, *names: str, state: JobState = JobState.QUEUED) -> None:
        for minutes, name in enumerate(names):
            self.store.create_job(make_job(job_id=name, minutes=minutes, state=state))

    def claim_elsewhere(self, owner: str = "elsewhere", *, lease_seconds: float = 60.0) -> Claim:
        """Let a replica that is no object here take the next job."""
        claim = self.store.claim_job(
            owner, lease_seconds=lease_seconds, now=FakeClock().now(), quota=Quota()
        )
        assert claim is not None
        return claim

    def job(self, name: str) -> Job:
        return next(job for job in self.store.list_jobs("default", _ALL) if job.job_id == name)

    async def until(self, name: str, state: JobState) -> Job:
        async with asyncio.timeout(10):
            while self.job(name).state is not state:  # noqa: ASYNC110  # the fake store tells nobody
                await asyncio.sleep(0.005)
        return self.job(name)


async def succeed(journal: JobJournal) -> None:
    await journal.enter(JobState.SUCCEEDED, "done")


async def hang(_: JobJournal) -> None:
    await asyncio.Event().wait()


async def test_jobs_run_oldest_first() -> None:
    order: list[str] = []

    async def run(journal: JobJournal) -> None:
        order.append(journal.job.job_id)
        await succeed(journal)

    bench = Bench(run)
    bench.queue("one", "two", "three")
    await bench.scheduler.start()
    for name in ("one", "two", "three"):
        await bench.until(name, JobState.SUCCEEDED)
    assert order == ["one", "two", "three"]
    await bench.scheduler.stop()


async def test_an_error_ends_its_job_only() -> None:
    async def run(journal: JobJournal) -> None:
        if journal.job.job_id == "bad":
            raise InvalidModelError("the model is broken", field="model")
        if journal.job.job_id == "worse":
            raise ZeroDivisionError
        await succeed(journal)

    bench = Bench(run)
    bench.queue("bad", "worse", "good")
    await bench.scheduler.start()
    bad = await bench.until("bad", JobState.FAILED)
    assert bad.error_reason == "INVALID_MODEL"
    worse = await bench.until("worse", JobState.FAILED)
    assert worse.error_reason == "INTERNAL"
    assert "ZeroDivisionError" in worse.error
    await bench.until("good", JobState.SUCCEEDED)
    await bench.scheduler.stop()


async def test_a_server_that_is_alone_goes_on_at_once_with_what_was_running() -> None:
    bench = Bench(succeed, replica=ReplicaOptions(is_alone=True))
    bench.queue("left")
    bench.claim_elsewhere()
    await bench.scheduler.start()
    await bench.until("left", JobState.SUCCEEDED)
    message = bench.store.list_events("left", after=0, limit=10)[0].message
    assert message.startswith("taken over at stage start: elsewhere")
    assert bench.telemetry.lease_events == ["taken_over"]
    await bench.scheduler.stop()


async def test_stopping_hands_running_jobs_back() -> None:
    bench = Bench(hang)
    bench.queue("long")
    await bench.scheduler.start()
    await bench.until("long", JobState.RUNNING)
    # the claim is stored before it is told
    async with asyncio.timeout(10):
        while not bench.store.list_events("long", after=0, limit=10):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await bench.scheduler.stop()
    assert bench.job("long").state is JobState.QUEUED
    again = Bench(succeed, store=bench.store)
    await again.scheduler.start()
    await again.until("long", JobState.SUCCEEDED)
    messages = [event.message for event in bench.store.list_events("long", after=0, limit=10)]
    assert messages == ["started", "queued again: server stops", "going on", "done"]
    assert not again.telemetry.lease_events, "an orderly stop is no lost life"
    await again.scheduler.stop()


async def test_cancelling_ends_queued_and_running_jobs() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: JobJournal) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    bench = Bench(hang)
    bench.queue("running", "waiting")
    await bench.scheduler.start()
    await began.wait()
    await bench.scheduler.cancel(bench.job("waiting"))
    await bench.scheduler.cancel(bench.job("running"))
    assert ended.is_set()
    assert bench.job("waiting").state is JobState.CANCELLED
    assert bench.job("running").state is JobState.CANCELLED
    await bench.scheduler.stop()


async def test_a_cancel_that_races_with_a_write_of_the_job_wins() -> None:
    writing = asyncio.Event()

    async def write_on(journal: JobJournal) -> None:
        for _ in range(1000):
            writing.set()
            await journal.update(spent_seconds=journal.job.spent_seconds + 1)

    bench = Bench(write_on)
    bench.queue("busy")
    await bench.scheduler.start()
    await writing.wait()
    await bench.scheduler.cancel(bench.job("busy"))
    assert bench.job("busy").state is JobState.CANCELLED
    await bench.scheduler.stop()


async def test_a_job_that_ends_from_outside_keeps_what_it_had_found() -> None:
    found = asyncio.Event()

    async def search(journal: JobJournal) -> None:
        journal.so_far = lambda: {"spent_seconds": 7.0}
        if journal.job.job_id == "failing":
            raise InvalidModelError("the model is broken", field="model")
        found.set()
        await hang(journal)

    bench = Bench(search)
    bench.queue("failing", "cancelled")
    await bench.scheduler.start()
    await found.wait()
    await bench.scheduler.cancel(bench.job("cancelled"))
    for name, state in (("failing", JobState.FAILED), ("cancelled", JobState.CANCELLED)):
        assert (bench.job(name).state, bench.job(name).spent_seconds) == (state, 7.0)
    await bench.scheduler.stop()


async def test_a_job_is_cancelled_whatever_is_wrong_with_what_it_found() -> None:
    found = asyncio.Event()

    async def search(journal: JobJournal) -> None:
        journal.so_far = lambda: {"spent_seconds": 1 / 0}
        found.set()
        await hang(journal)

    bench = Bench(search)
    bench.queue("job")
    await bench.scheduler.start()
    await found.wait()
    assert (await bench.scheduler.cancel(bench.job("job"))).state is JobState.CANCELLED
    await bench.scheduler.stop()


async def test_a_follower_sees_every_event_once_from_wherever_it_begins() -> None:
    async def tell(journal: JobJournal) -> None:
        for number in range(300):
            await journal.update(spent_seconds=float(number))
            await journal.event(JobEventKind.NOTE, "so far")
            await journal.event(JobEventKind.NOTE, "and further")
        await succeed(journal)

    bench = Bench(tell)
    bench.queue("told")
    await bench.scheduler.start()
    live = [e.sequence async for e in follow(bench.store, bench.hub, "default", "told", after=0)]
    assert live == list(range(1, len(live) + 1))
    assert len(live) > 600
    later = [e.sequence async for e in follow(bench.store, bench.hub, "default", "told", after=37)]
    assert later == live[37:]
    await bench.scheduler.stop()


FAST = ReplicaOptions(name="fast", lease_seconds=1.0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "STORE_RETRY_SECONDS", "CANCEL_NEWS_SECONDS"):
        monkeypatch.setattr(f"tightfit_service.application.scheduling.scheduler.{name}", 0.02)
    monkeypatch.setattr("tightfit_service.application.scheduling.journal.POLL_SECONDS", 0.02)


async def test_replicas_share_the_queue_and_run_no_job_twice() -> None:
    store, runs = InMemoryStore(), []

    async def run(journal: JobJournal) -> None:
        runs.append(journal.job.job_id)
        await asyncio.sleep(0.01)
        await succeed(journal)

    benches = [Bench(run, store=store) for _ in range(3)]
    benches[0].queue(*(f"j{n}" for n in range(30)))
    for bench in benches:
        await bench.scheduler.start()
    for n in range(30):
        await benches[0].until(f"j{n}", JobState.SUCCEEDED)
    assert sorted(runs) == sorted(f"j{n}" for n in range(30))
    for bench in benches:
        await bench.scheduler.stop()


async def test_heartbeats_keep_a_job_for_longer_than_its_lease() -> None:
    store = InMemoryStore()
    owner, other = Bench(hang, store=store, replica=FAST), Bench(succeed, store=store, replica=FAST)
    owner.queue("long")
    await owner.scheduler.start()
    await owner.until("long", JobState.RUNNING)
    await other.scheduler.start()
    await asyncio.sleep(2 * FAST.lease_seconds)
    assert owner.job("long").state is JobState.RUNNING
    await owner.scheduler.stop()
    await other.until("long", JobState.SUCCEEDED)
    await other.scheduler.stop()


async def test_a_replica_that_lost_a_job_stops_and_writes_nothing() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def run(journal: JobJournal) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    bench = Bench(run)
    bench.queue("lost")
    await bench.scheduler.start()
    await began.wait()
    bench.store.end_leases()
    taken = bench.claim_elsewhere()
    await asyncio.wait_for(ended.wait(), 10)
    await bench.scheduler.stop()
    assert bench.job("lost") == taken.job
    assert bench.telemetry.lease_events == ["lost"]


async def test_a_write_under_a_lost_lease_ends_this_life_and_not_the_job() -> None:
    async def run(journal: JobJournal) -> None:
        bench.store.end_leases()
        bench.claim_elsewhere()
        await journal.update(spent_seconds=1.0)

    bench = Bench(run)
    bench.queue("lost")
    await bench.scheduler.start()
    async with asyncio.timeout(10):
        while not bench.telemetry.lease_events:  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.005)
    await bench.scheduler.stop()
    assert bench.job("lost").state is JobState.RUNNING
    assert bench.job("lost").spent_seconds == 0.0


async def test_a_job_that_ends_its_replicas_is_given_up_with_the_evidence() -> None:
    bench = Bench(succeed)
    bench.queue("poison", "good")
    for owner in ("r1", "r2", "r3"):
        bench.store.claim_job(owner, lease_seconds=60, now=FakeClock().now(), quota=Quota())
        bench.store.end_leases()
    await bench.scheduler.start()
    job = await bench.until("poison", JobState.FAILED)
    await bench.until("good", JobState.SUCCEEDED)
    assert job.error_reason == "GIVEN_UP"
    assert "3 times" in job.error
    assert "stage start" in job.error
    for owner in ("r1", "r2", "r3"):
        assert f"{owner} had it from 20" in job.error
    assert bench.telemetry.lease_events == ["taken_over", "given_up"]
    await bench.scheduler.stop()


async def test_a_job_that_only_waited_while_its_replicas_ended_goes_on() -> None:
    bench = Bench(succeed)
    bench.queue("patient")
    for owner in ("r1", "r2", "r3", "r4"):
        taken = bench.claim_elsewhere(owner)
        bench.store.renew_leases([taken.lease], lease_seconds=60, waiting={"patient"})
        bench.store.end_leases()
    await bench.scheduler.start()
    await bench.until("patient", JobState.SUCCEEDED)
    message = bench.store.list_events("patient", after=0, limit=10)[0].message
    assert message.startswith("taken over at stage start, waiting for a worker: r4 had it from")
    assert bench.telemetry.lease_events == ["taken_over"]
    await bench.scheduler.stop()


class OneWorker(ScriptedExecutor):
    """A worker that is busy until it is told to be free, and then hangs at what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.is_free = asyncio.Event()
        self.has_begun = asyncio.Event()

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        await self.is_free.wait()
        await on_begin()
        self.has_begun.set()
        return await asyncio.Future()


async def test_before_its_unit_begins_it_is_stored_that_a_job_waits_no_more() -> None:
    worker = OneWorker()

    async def run(journal: JobJournal) -> None:
        await journal.units.counted(worker).run(UNIT, on_progress=lambda *_: None)

    # alone, so that heartbeats are rare; what begins between two of them must not wait for the next
    bench = Bench(run, replica=ReplicaOptions(lease_seconds=2.0, is_alone=True))
    bench.queue("job")
    await bench.scheduler.start()
    await bench.until("job", JobState.RUNNING)
    await until(lambda: bench.store.held["job"].only_waits)
    worker.is_free.set()
    await worker.has_begun.wait()
    assert not bench.store.held["job"].only_waits
    await bench.scheduler.stop()


async def test_a_job_of_another_replica_is_cancelled_by_it() -> None:
    store = InMemoryStore()
    owner, other = Bench(hang, store=store), Bench(hang, store=store)
    owner.queue("far")
    await owner.scheduler.start()
    await owner.until("far", JobState.RUNNING)
    cancelled = await other.scheduler.cancel(owner.job("far"))
    assert cancelled.state is JobState.CANCELLED
    messages = [event.message for event in store.list_events("far", after=0, limit=10)]
    assert messages == ["started", "cancelled by the user"]
    await owner.scheduler.stop()


async def test_a_replica_that_is_alone_hears_of_a_wish_that_was_only_stored() -> None:
    # heartbeats are rarer than this test is long: they are not what brings the news
    bench = Bench(hang, replica=ReplicaOptions(lease_seconds=600.0, is_alone=True))
    bench.queue("running")
    await bench.scheduler.start()
    await bench.until("running", JobState.RUNNING)
    bench.store.request_cancel("default", "running")
    await bench.until("running", JobState.CANCELLED)
    await bench.scheduler.stop()


async def test_a_job_whose_replica_died_is_cancelled_by_whoever_was_asked() -> None:
    bench = Bench(hang)
    bench.queue("orphan")
    bench.claim_elsewhere()
    bench.store.end_leases()
    cancelled = await bench.scheduler.cancel(bench.job("orphan"))
    assert cancelled.state is JobState.CANCELLED


async def test_a_wish_to_cancel_outlives_the_replica_that_ran_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "tightfit_service.application.scheduling.scheduler.CANCEL_WAIT_SECONDS", 0.05
    )
    bench = Bench(succeed)
    bench.queue("silent")
    bench.claim_elsewhere()
    assert (await bench.scheduler.cancel(bench.job("silent"))).state is JobState.RUNNING
    bench.store.end_leases()
    await bench.scheduler.start()
    await bench.until("silent", JobState.CANCELLED)
    await bench.scheduler.stop()


async def test_nobody_is_taken_for_dead_after_an_outage_of_the_store() -> None:
    class Asked(InMemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.take_over: list[bool] = []

        def claim_job(
            self,
            owner: str,
            *,
            lease_seconds: float,
            now: datetime,
            quota: Quota,
            take_over: bool = True,
        ) -> Claim | None:
            self.take_over.append(take_over)
            return super().claim_job(
                owner, lease_seconds=lease_seconds, now=now, quota=quota, take_over=take_over
            )

    store = Asked()
    bench = Bench(succeed, store=store)
    await bench.scheduler.start()
    await until(lambda: store.take_over)
    assert all(store.take_over)
    store.is_down = True
    asked = len(store.take_over)
    await until(lambda: len(store.take_over) > asked + 1)
    store.is_down = False
    store.take_over.clear()
    await until(lambda: len(store.take_over) > 1)
    assert not any(store.take_over[1:])
    # what is queued is nobody's: it runs all the same
    bench.queue("queued")
    await bench.until("queued", JobState.SUCCEEDED)
    await bench.scheduler.stop()


async def test_a_journal_waits_for_a_store_that_is_away() -> None:
    async def run(journal: JobJournal) -> None:
        bench.store.is_down = True
        asyncio.get_running_loop().call_later(0.3, setattr, bench.store, "is_down", False)
        await journal.update(spent_seconds=1.0)
        await succeed(journal)
        ended.set()

    ended = asyncio.Event()
    bench = Bench(run)
    bench.queue("patient")
    await bench.scheduler.start()
    await ended.wait()
    assert (await bench.until("patient", JobState.SUCCEEDED)).spent_seconds == 1.0
    await bench.scheduler.stop()


async def test_a_write_whose_answer_was_lost_is_not_taken_for_a_conflict() -> None:
    class Lossy(InMemoryStore):
        lost = 0

        def update_job(self, job: Job, *, lease: Lease | None = None) -> Job:
            stored = super().update_job(job, lease=lease)
            self.lost += 1
            if self.lost % 2:
                raise UnavailableError("the answer was lost on the way")
            return stored

    async def run(journal: JobJournal) -> None:
        await journal.update(spent_seconds=1.0)
        await succeed(journal)

    bench = Bench(run, store=Lossy())
    bench.queue("told")
    await bench.scheduler.start()
    job = await bench.until("told", JobState.SUCCEEDED)
    assert job.spent_seconds == 1.0
    await bench.scheduler.stop()


class CountingStore(InMemoryStore):
    """Counts the queries that watchers cause."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def get_job(self, project: str, job_id: str) -> Job:
        self.reads.append("job")
        return super().get_job(project, job_id)

    def job_marks(self, job_ids: Sequence[str]) -> Mapping[str, JobMark]:
        self.reads.append("marks")
        return super().job_marks(job_ids)


async def test_a_thousand_watchers_cost_one_query_when_nothing_happens() -> None:
    store, hub = CountingStore(), EventHub()
    for n in range(1000):
        store.create_job(make_job(f"j{n}"))
    told: list[str] = []

    async def watch(name: str) -> None:
        async for event in follow(store, hub, "default", name, after=0):
            told.extend([event.message])

    watchers = [asyncio.create_task(watch(f"j{n}")) for n in range(1000)]
    async with asyncio.timeout(30):
        while len(store.reads) < 1000:  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    store.reads.clear()
    for _ in range(3):
        await hub.look(store)
    await asyncio.sleep(0.05)
    assert store.reads == ["marks"] * 3
    # another replica writes: nothing is announced here
    store.append_event(make_event("j7", "news"))
    job = store.get_job("default", "j8")
    store.update_job(replace(job, state=JobState.CANCELLED))
    await hub.look(store)
    async with asyncio.timeout(10):
        await watchers[8]
        while told != ["news"]:  # noqa: ASYNC110  # the fake tells nobody
            await asyncio.sleep(0.01)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
