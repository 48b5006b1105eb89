"""What a trial costs in statements: each is a message to the database and back, and they add up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from fakes.clock import FakeClock
from fakes.postgres_server import reason_missing, running_postgres
from fakes.records import START, digest_of, make_job, make_trial
from fakes.scripted_work import ScriptedExecutor
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.quota import Quota
from tightfit_service.domain.trial import TrialState

OUTPUTS = {"model": digest_of("model"), "graph": digest_of("graph")}
UNIT = WorkUnit(project="default", kind="trial", payload={}, inputs={})

ON_SQLITE = 20
"""Each transaction begins with a statement; what belongs together is one, of a statement for each table."""

ON_POSTGRESQL = 5
"""That a trial began, what is known of its unit, its result, that it ended, and the job's best so far."""


class Worker(ScriptedExecutor):
    """Gives a result at once."""

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        del unit, on_progress
        await on_begin()
        return WorkResult(payload={"x": 1}, outputs=OUTPUTS)


async def run_trial(engine: Engine, journal: JobJournal) -> None:
    trial = make_trial(0, state=TrialState.RUNNING, input_digest="unit")
    await journal.trial(trial, "trial 0 started")
    units = CachedUnits(
        executor=Worker(), store=SqlStore(engine=engine), telemetry=RecordingTelemetry()
    )
    result = await units.run(UNIT)
    done = replace(trial, state=TrialState.COMPLETED, artifacts=dict(result.outputs))
    await journal.trial(done, "trial 0 done")
    await journal.update(spent_seconds=60.0)


@contextmanager
def recorded(engine: Engine) -> Iterator[list[tuple[str, Connection]]]:
    """Record statements and the connections that they ran on."""
    statements: list[tuple[str, Connection]] = []

    def record(*arguments: Any) -> None:
        statements.append((arguments[2], arguments[0]))

    event.listen(engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", record)


def open_job(engine: Engine) -> JobJournal:
    upgrade(engine)
    store = SqlStore(engine=engine)
    store.create_job(make_job())
    claim = SqlJobQueue(engine=engine).claim_job("a", lease_seconds=60, now=START, quota=Quota())
    assert claim is not None
    return JobJournal(
        claim.job,
        store=store,
        hub=EventHub(),
        clock=FakeClock(),
        telemetry=RecordingTelemetry(),
        lease=claim.lease,
    )


def check_trial(engine: Engine) -> None:
    store = SqlStore(engine=engine)
    (trial,) = store.list_trials("job")
    assert trial.artifacts == OUTPUTS
    assert trial.state is TrialState.COMPLETED
    assert [one.sequence for one in store.list_events("job", after=0, limit=9)] == [1, 2]
    assert store.get_job("default", "job").spent_seconds == 60.0
    assert all(store.is_digest_used("default", digest) for digest in OUTPUTS.values())


async def test_a_trial_takes_few_statements(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    journal = open_job(engine)
    with recorded(engine) as statements:
        await run_trial(engine, journal)
    assert len(statements) <= ON_SQLITE, "\n".join(text for text, _ in statements)
    check_trial(engine)
    engine.dispose()


@pytest.mark.debian
async def test_on_postgresql_each_step_of_a_trial_is_one_message() -> None:
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres() as server:
        engine = open_database(server.database())
        journal = open_job(engine)
        with recorded(engine) as statements:
            await run_trial(engine, journal)
        assert len(statements) <= ON_POSTGRESQL, "\n".join(text for text, _ in statements)
        for text, connection in statements:
            # else the beginning and the end of a transaction were two more messages
            options = connection.get_execution_options()
            assert options.get("isolation_level") == "AUTOCOMMIT", text
        check_trial(engine)
        engine.dispose()


def test_a_heartbeat_is_one_statement_however_many_leases_it_renews(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    store, queue = SqlStore(engine=engine), SqlJobQueue(engine=engine)
    for number in range(50):
        store.create_job(make_job(f"j{number}"))
    leases = []
    for _ in range(50):
        claim = queue.claim_job("a", lease_seconds=60, now=START, quota=Quota())
        assert claim is not None
        leases.append(claim.lease)
    with recorded(engine) as for_one:
        queue.renew_leases(leases[:1], lease_seconds=60)
    with recorded(engine) as for_all:
        assert len(queue.renew_leases(leases, lease_seconds=60, waiting={"j3"})) == 50
    # a text that grew with the leases would have to be made and read anew for each heartbeat
    assert [text for text, _ in for_one] == [text for text, _ in for_all]
    assert len(for_one) == 2
    engine.dispose()
