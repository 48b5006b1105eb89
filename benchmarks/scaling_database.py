"""A replica on a database with many jobs: what calls, claims and heartbeats take, and what a trial costs.

Fills a real PostgreSQL (synchronous commits) with jobs of 50 projects, most of them final, 10,000 queued
and some running, and measures single calls of the stores with few jobs and with all. Then one replica's
scheduler runs a thousand jobs at a time for a while, with workers that only wait: what a trial takes beyond
that wait is the overhead of scheduler, journal, cache and database. Everything runs on one machine.

A deployment's jobs come over months, these within a minute. So after each filling comes what PostgreSQL
would have done between them: VACUUM (ANALYZE), and a CHECKPOINT. Else they fall into what is timed.

Usage: python benchmarks/scaling_database.py [--jobs 100000] [--workers 1000] [--seconds 90] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.postgres_server import reason_missing, running_postgres
from fakes.records import make_job, make_trial
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.storage.database import open_database, transaction, upgrade
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    BeginCallback,
    Claim,
    Lease,
    Page,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.scheduling.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import Quota
from tightfit_service.domain.trial import TrialState

PROJECTS = 50
QUEUED = 10_000
ROUNDS = 300
TRIALS_PER_JOB = 3

SETTLING = ("VACUUM (ANALYZE)", "CHECKPOINT")
"""What is done after each filling, in this order: vacuuming marks pages, which the checkpoint writes."""

_FILL = """
INSERT INTO jobs (job_id, project, state, create_time, request_id, revision, last_sequence,
                  model_digest, dataset_digest, queue_rank, document)
SELECT id, project, state, created, NULL, 0, 1, :model, :dataset, 0,
       replace(replace(replace(:document, 'JOBID', id), 'PROJECT', project), 'STATE', state)::json
FROM (SELECT 'j' || n AS id, 'p' || (n % :projects) AS project,
             CASE WHEN n < :queued THEN 'queued' ELSE 'succeeded' END AS state,
             now() - n * interval '1 second' AS created
      FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n) AS source
"""
_EVENTS = """
INSERT INTO job_events (job_id, sequence, document)
SELECT 'j' || n, 1, replace(:document, 'JOBID', 'j' || n)::json
FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n
"""


class SystemClock:
    """Implements `Clock`."""

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()


class WaitingExecutor:
    """Implements `Executor` by a worker that only waits; knows how long it did."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.waited: dict[str, float] = {}

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        """Wait."""
        del on_progress
        await on_begin()
        began = time.perf_counter()
        await asyncio.sleep(self._seconds)
        self.waited[unit.label] = time.perf_counter() - began
        return WorkResult(payload={"answer": unit.label})

    async def start(self) -> None:
        """Do nothing."""

    async def check(self) -> None:
        """See `Executor`: there is nothing that could be away."""

    async def stop(self) -> None:
        """Do nothing."""


class TimedQueue(SqlJobQueue):
    """Remembers what claims and heartbeats took."""

    def __init__(self, *, engine: Engine) -> None:
        super().__init__(engine=engine)
        self.claim_seconds: list[float] = []
        self.heartbeat_seconds: list[float] = []

    def claim_job(self, *args: Any, **options: Any) -> Claim | None:
        """Time a claim."""
        began = time.perf_counter()
        found = super().claim_job(*args, **options)
        if found is not None:
            self.claim_seconds.append(time.perf_counter() - began)
        return found

    def renew_leases(self, *args: Any, **options: Any) -> Any:
        """Time a heartbeat."""
        began = time.perf_counter()
        known = super().renew_leases(*args, **options)
        self.heartbeat_seconds.append(time.perf_counter() - began)
        return known


def fill(engine: Engine, first: int, last: int, *, queued: int = QUEUED) -> None:
    """Store jobs with numbers from `first` to `last`; those with numbers below `queued` wait."""
    job = make_job("JOBID", project="PROJECT")
    document = {**to_plain(job), "state": "STATE"}
    with transaction(engine, writes=True) as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(
            text(_FILL),
            {
                "model": job.spec.model_digest,
                "dataset": job.spec.dataset_digest,
                "document": json.dumps(document),
                "projects": PROJECTS,
                "queued": queued,
                "first": first,
                "last": last,
            },
        )
        note = {"job_id": "JOBID", "sequence": 1, "kind": "note", "message": "filled"}
        note["time"] = datetime.now(UTC).isoformat()
        connection.execute(
            text(_EVENTS), {"document": json.dumps(note), "first": first, "last": last}
        )


def settle(engine: Engine) -> None:
    """Do what `SETTLING` says, as a database that grew over months has had done long ago.

    After a bulk fill PostgreSQL would do it by itself, and while something is timed: its autovacuum
    reads all that was filled, and its next checkpoint writes that out.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as plain:
        plain.execute(text("SET statement_timeout = 0"))
        for statement in SETTLING:
            plain.execute(text(statement))
        plain.execute(text("RESET statement_timeout"))


def spread(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    if len(seconds) < 2:
        return {"count": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "count": len(seconds),
        "p50_ms": round(cuts[49] * 1e3, 2),
        "p99_ms": round(cuts[98] * 1e3, 2),
        "max_ms": round(max(seconds) * 1e3, 2),
    }


def single_calls(engine: Engine, total: int) -> dict[str, dict[str, float]]:
    """Return what single calls take, one at a time."""
    store, queue = SqlStore(engine=engine), SqlJobQueue(engine=engine)
    chance = random.Random(0)
    leases: list[Lease] = []

    def project() -> str:
        return f"p{chance.randrange(PROJECTS)}"

    def far() -> object:
        number = chance.randrange(total)
        after = Page(size=50, after=f"j{number}")
        return store.list_jobs(f"p{number % PROJECTS}", after)

    def get() -> object:
        number = chance.randrange(total)
        return store.get_job(f"p{number % PROJECTS}", f"j{number}")

    def claim() -> object:
        found = queue.claim_job("one", lease_seconds=600, now=datetime.now(UTC), quota=Quota())
        assert found is not None
        leases.append(found.lease)
        return found

    calls: dict[str, Callable[[], object]] = {
        "list_jobs first page of 50": lambda: store.list_jobs(project(), Page(size=50)),
        "list_jobs further page of 50": far,
        "list_jobs queued": lambda: store.list_jobs(
            project(), Page(size=50), states=[JobState.QUEUED]
        ),
        "get_job": get,
        "claim_job": claim,
        f"renew_leases of {ROUNDS}": lambda: queue.renew_leases(leases, lease_seconds=600),
        "job_marks of 1000 watched jobs": lambda: store.job_marks([f"j{n}" for n in range(1000)]),
    }
    found = {}
    for name, call in calls.items():
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        found[name] = spread(times)
        print(f"  {name:<34} {found[name]}", flush=True)
    return found


@contextmanager
def counted_statements(engine: Engine) -> Iterator[list[int]]:
    """Yield a list of one number: that of the statements so far."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    event.listen(engine, "before_cursor_execute", add)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", add)


def resident_mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / (1 << 20), 1)


class WaitingJobs:
    """Runs jobs whose trials only wait, and notes what each trial takes beyond that."""

    def __init__(
        self, store: SqlStore, telemetry: RecordingTelemetry, trial_seconds: float
    ) -> None:
        self._trial_seconds = trial_seconds
        self._executor = WaitingExecutor(trial_seconds)
        self._units = CachedUnits(executor=self._executor, store=store, telemetry=telemetry)
        self.overheads: list[float] = []

    async def run(self, journal: JobJournal) -> None:
        """Run one job to its end."""
        # workers are not in step: the first trial of each begins somewhere in its course
        await asyncio.sleep(random.random() * self._trial_seconds)
        for index in range(TRIALS_PER_JOB):
            began = time.perf_counter()
            waited = await self._trial(journal, index)
            self.overheads.append(time.perf_counter() - began - waited)
        await journal.enter(JobState.SUCCEEDED, "done")

    async def _trial(self, journal: JobJournal, index: int) -> float:
        """Run one trial with all that is stored of it, and return the seconds that its work took."""
        label = f"{journal.job.job_id} trial {index}"
        trial = make_trial(index, state=TrialState.RUNNING, input_digest=label)
        await journal.trial(trial, f"trial {index} started")
        unit = WorkUnit(
            project=journal.job.project,
            kind="trial",
            payload={"label": label},
            inputs={},
            label=label,
        )
        await self._units.run(unit)
        await journal.trial(replace(trial, state=TrialState.COMPLETED), f"trial {index} done")
        await journal.update(spent_seconds=self._trial_seconds * (index + 1))
        return self._executor.waited.pop(label)


async def run_replica(
    engine: Engine, *, workers: int, seconds: float, trial_seconds: float
) -> dict[str, Any]:
    """Let one scheduler run many jobs at a time, and return what their trials cost beyond waiting."""
    store, queue, telemetry = (
        SqlStore(engine=engine),
        TimedQueue(engine=engine),
        RecordingTelemetry(),
    )
    jobs = WaitingJobs(store, telemetry, trial_seconds)
    scheduler = JobScheduler(
        store=store,
        queue=queue,
        run_job=jobs.run,
        hub=EventHub(),
        clock=SystemClock(),
        telemetry=telemetry,
        concurrent_jobs=workers,
        replica=ReplicaOptions(name="benchmark", lease_seconds=60.0),
    )
    began = time.perf_counter()
    await scheduler.start()
    while len(queue.claim_seconds) < workers:  # noqa: ASYNC110  # the store tells nobody
        await asyncio.sleep(0.05)
    found: dict[str, Any] = {
        "workers": workers,
        "trial_seconds": trial_seconds,
        "seconds_until_all_workers_had_a_job": round(time.perf_counter() - began, 1),
        "claims_while_all_workers_were_free": spread(list(queue.claim_seconds)),
        **await observe(engine, queue, jobs, seconds=seconds),
    }
    await scheduler.stop()
    return found


async def observe(
    engine: Engine, queue: TimedQueue, jobs: WaitingJobs, *, seconds: float
) -> dict[str, Any]:
    """Return what happens from now on for so long."""
    memory: list[float] = []
    queue.claim_seconds.clear()
    jobs.overheads.clear()
    end = time.perf_counter() + seconds
    with counted_statements(engine) as statements:
        while time.perf_counter() < end:
            await asyncio.sleep(seconds / 10)
            memory.append(resident_mebibytes())
            print(f"  {len(jobs.overheads)} trials, {memory[-1]} MiB", flush=True)
    overheads = list(jobs.overheads)
    return {
        "observed_seconds": seconds,
        "claims_afterwards": spread(list(queue.claim_seconds)),
        "heartbeats_of_all_leases": spread(list(queue.heartbeat_seconds)),
        "overhead_per_trial": spread(overheads),
        # with their share of claims, ends of jobs and heartbeats
        "statements_per_trial": round(statements[0] / max(1, len(overheads)), 1),
        "trials_per_second": round(len(overheads) / seconds, 1),
        "resident_mebibytes": memory,
        "load_average": [round(one, 1) for one in os.getloadavg()],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--trial-seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if reason := reason_missing():
        print(reason, file=sys.stderr)
        return 1
    results: dict[str, Any] = {"jobs": arguments.jobs, "queued": QUEUED, "projects": PROJECTS}
    results["after_filling"] = list(SETTLING)
    results["load_average_before"] = [round(one, 1) for one in os.getloadavg()]
    with running_postgres(survives="power cut") as server:
        engine = open_database(server.database(), pool_size=10)
        upgrade(engine)
        small = QUEUED + 1_000
        fill(engine, 0, small - 1)
        settle(engine)
        # as the service does once it has started
        gc.collect()
        gc.freeze()
        print(f"{small} jobs in the database:", flush=True)
        results["single_calls_with_few_jobs"] = single_calls(engine, small)
        fill(engine, small, arguments.jobs - 1)
        settle(engine)
        print(f"{arguments.jobs} jobs in the database:", flush=True)
        results["single_calls"] = single_calls(engine, arguments.jobs)
        print(f"{arguments.workers} workers on one replica:", flush=True)
        results["replica"] = asyncio.run(
            run_replica(
                engine,
                workers=arguments.workers,
                seconds=arguments.seconds,
                trial_seconds=arguments.trial_seconds,
            )
        )
        engine.dispose()
    print(json.dumps(results["replica"], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
