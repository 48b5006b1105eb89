"""Queued jobs run oldest first, failures end one job only, and cancelling wins every race."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fakes.clock import FakeClock
from fakes.records import make_job
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.journal import EventHub, JobJournal, follow
from tightfit_service.application.ports import Page
from tightfit_service.application.scheduler import JobScheduler
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.job import Job, JobState

_ALL = Page(size=100)


class Bench:
    def __init__(self, run: Callable[[JobJournal], Awaitable[None]], *, at_a_time: int = 1) -> None:
        self.store = InMemoryStore()
        self.hub = EventHub()
        self.telemetry = RecordingTelemetry()
        self.scheduler = JobScheduler(
            store=self.store,
            run_job=run,
            hub=self.hub,
            clock=FakeClock(),
            telemetry=self.telemetry,
            concurrent_jobs=at_a_time,
        )

    def queue(self, *names: str, state: JobState = JobState.QUEUED) -> None:
        for minutes, name in enumerate(names):
            self.store.create_job(make_job(job_id=name, minutes=minutes, state=state))

    def job(self, name: str) -> Job:
        return next(job for job in self.store.list_jobs("default", _ALL) if job.job_id == name)

    async def until(self, name: str, state: JobState) -> Job:
        async with asyncio.timeout(10):
            while self.job(name).state is not state:  # noqa: ASYNC110  # the fake store tells nobody
                await asyncio.sleep(0.005)
        return self.job(name)


async def succeed(journal: JobJournal) -> None:
    await journal.enter(JobState.SUCCEEDED, "done")


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


async def test_a_restart_queues_what_was_running() -> None:
    bench = Bench(succeed)
    bench.queue("left", state=JobState.RUNNING)
    await bench.scheduler.start()
    await bench.until("left", JobState.SUCCEEDED)
    messages = [event.message for event in bench.store.list_events("left", after=0, limit=10)]
    assert messages[0] == "queued again: the server was restarted"
    await bench.scheduler.stop()


async def test_stopping_leaves_running_jobs_for_the_next_life() -> None:
    async def hang(_: JobJournal) -> None:
        await asyncio.Event().wait()

    bench = Bench(hang)
    bench.queue("long")
    await bench.scheduler.start()
    await bench.until("long", JobState.RUNNING)
    await bench.scheduler.stop()
    assert bench.job("long").state is JobState.RUNNING


async def test_cancelling_ends_queued_and_running_jobs() -> None:
    ended = asyncio.Event()

    async def hang(_: JobJournal) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    bench = Bench(hang)
    bench.queue("running", "waiting")
    await bench.scheduler.start()
    await bench.until("running", JobState.RUNNING)
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


async def test_a_follower_sees_every_event_once_from_wherever_it_begins() -> None:
    async def tell(journal: JobJournal) -> None:
        for number in range(300):
            await journal.update(spent_seconds=float(number))
            await journal.enter(JobState.QUEUED, "again")
            await journal.enter(JobState.RUNNING, "again")
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
