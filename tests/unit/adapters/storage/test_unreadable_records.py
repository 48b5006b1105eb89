"""A record that is damaged, or of another version, is told as such and keeps nothing else from working."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from fakes.clock import FakeClock
from fakes.databases import open_migrated
from fakes.records import (
    START,
    digest_of,
    make_asset,
    make_event,
    make_job,
    make_target,
    make_trial,
)
from fakes.telemetry import RecordingTelemetry
from fakes.waiting import until
from tightfit_service.adapters.storage.sql_access import SqlApiKeyStore
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore
from tightfit_service.adapters.storage.sql_job_expiry import SqlJobExpiry
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore
from tightfit_service.api.codec.job import listed_job_to_proto
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    Claim,
    Page,
    TargetRecord,
    UnreadableJob,
    WorkResult,
)
from tightfit_service.application.scheduling.journal import EventHub, JobJournal
from tightfit_service.application.scheduling.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.domain.access import ApiKey, Grant, Role
from tightfit_service.domain.calibration import Calibration
from tightfit_service.domain.errors import PreconditionError, UnreadableRecordError
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import Quota

ALL = Page(size=100)
OF_ANOTHER_VERSION = json.dumps({**to_plain(make_job("bad")), "state": "hibernating"})
DAMAGES = [
    pytest.param('{"job_id": "ba', id="cut off"),
    pytest.param("null", id="nothing"),
    pytest.param("{}", id="empty"),
    pytest.param('"bad"', id="a text"),
    pytest.param(OF_ANOTHER_VERSION, id="another version"),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_migrated(tmp_path / "state.db")
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> SqlStore:
    return SqlStore(engine=engine)


@pytest.fixture
def queue(engine: Engine) -> SqlJobQueue:
    return SqlJobQueue(engine=engine)


def damage(
    engine: Engine, table: str, condition: str, document: str, *, column: str = "document"
) -> None:
    with engine.begin() as connection:
        changed = connection.execute(
            text(f"UPDATE {table} SET {column} = :document WHERE {condition}"),
            {"document": document},
        )
        assert changed.rowcount == 1


def claim(queue: SqlJobQueue, owner: str = "a") -> Claim | None:
    return queue.claim_job(owner, lease_seconds=60.0, now=START, quota=Quota())


@pytest.mark.parametrize("document", DAMAGES)
def test_a_list_shows_an_unreadable_job_in_its_place(
    engine: Engine, store: SqlStore, document: str
) -> None:
    for minutes, name in enumerate(("old", "bad", "young")):
        store.create_job(make_job(name, minutes=minutes, state=JobState.SUCCEEDED))
    damage(engine, "jobs", "job_id = 'bad'", document)
    listed = store.list_jobs("default", ALL)
    assert [job.job_id for job in listed] == ["young", "bad", "old"]
    bad = listed[1]
    assert isinstance(bad, UnreadableJob)
    assert (bad.state, bad.create_time) == (JobState.SUCCEEDED, START + timedelta(minutes=1))
    message = listed_job_to_proto(bad)
    assert message.name == "projects/default/jobs/bad"
    assert message.error.reason == "UNREADABLE_RECORD"
    assert "tightfit jobs delete bad" in message.error.message
    # also as the end of a page and as where the next one begins
    assert [job.job_id for job in store.list_jobs("default", Page(size=2))] == ["young", "bad"]
    assert [job.job_id for job in store.list_jobs("default", Page(size=2, after="bad"))] == ["old"]
    assert [job.job_id for job in store.list_jobs("default", ALL, states=[JobState.QUEUED])] == []


@pytest.mark.parametrize("document", DAMAGES)
def test_an_unreadable_job_says_why_and_can_be_deleted(
    engine: Engine, store: SqlStore, document: str
) -> None:
    store.create_job(make_job("bad", state=JobState.FAILED))
    damage(engine, "jobs", "job_id = 'bad'", document)
    with pytest.raises(UnreadableRecordError, match="job bad") as caught:
        store.get_job("default", "bad")
    assert (caught.value.field, caught.value.reason) == ("name", "UNREADABLE_RECORD")
    assert "tightfit jobs delete bad" in caught.value.remedy
    store.delete_job("default", "bad")
    assert store.list_jobs("default", ALL) == []


@pytest.mark.parametrize("document", DAMAGES)
def test_the_queue_passes_an_unreadable_job_over(
    engine: Engine, store: SqlStore, queue: SqlJobQueue, document: str
) -> None:
    store.create_job(make_job("bad"))
    store.create_job(make_job("good", minutes=1))
    store.create_job(make_job("other", minutes=2, project="other"))
    damage(engine, "jobs", "job_id = 'bad'", document)
    taken = [claim(queue), claim(queue)]
    assert [one.job.job_id for one in taken if one] == ["good", "other"]
    assert claim(queue) is None
    (_, bad) = store.list_jobs("default", ALL)
    assert bad.state is JobState.QUEUED
    with pytest.raises(UnreadableRecordError):
        queue.request_cancel("default", "bad")
    store.delete_job("default", "bad")


def test_a_job_that_another_version_repairs_is_run_after_the_next_start(
    engine: Engine, store: SqlStore, queue: SqlJobQueue
) -> None:
    job = store.create_job(make_job("bad"))
    damage(engine, "jobs", "job_id = 'bad'", OF_ANOTHER_VERSION)
    assert claim(queue) is None
    damage(engine, "jobs", "job_id = 'bad'", json.dumps(to_plain(job)))
    assert claim(SqlJobQueue(engine=engine)) is not None


def test_an_unreadable_job_that_runs_elsewhere_cannot_be_deleted(
    engine: Engine, store: SqlStore, queue: SqlJobQueue
) -> None:
    store.create_job(make_job("bad"))
    assert claim(queue) is not None
    damage(engine, "jobs", "job_id = 'bad'", OF_ANOTHER_VERSION)
    with pytest.raises(PreconditionError, match="running"):
        store.delete_job("default", "bad")
    queue.end_leases()
    assert claim(queue, "b") is None
    store.delete_job("default", "bad")
    assert store.list_jobs("default", ALL) == []


def test_a_readable_job_is_deleted_only_when_it_is_final(store: SqlStore) -> None:
    store.create_job(make_job("waits"))
    with pytest.raises(PreconditionError, match="queued"):
        store.delete_job("default", "waits")


def test_what_a_lost_life_left_does_not_stop_the_others(
    engine: Engine, store: SqlStore, queue: SqlJobQueue
) -> None:
    for name in ("bad", "worse"):
        store.create_job(make_job(name))
        assert claim(queue) is not None
    queue.end_leases()
    damage(engine, "job_leases", "job_id = 'bad'", "[{}]", column="losses")
    taken = claim(queue, "b")
    assert taken is not None
    assert taken.job.job_id == "worse"


def test_a_job_with_an_unreadable_trial_is_taken_over_and_told_of(
    engine: Engine, store: SqlStore, queue: SqlJobQueue
) -> None:
    store.create_job(make_job("job"))
    held = claim(queue)
    assert held is not None
    store.save_trial("job", make_trial(), event=make_event("job"), lease=held.lease)
    damage(engine, "trials", "job_id = 'job'", '{"ind')
    damage(engine, "job_events", "job_id = 'job'", "[")
    queue.end_leases()
    taken = claim(queue, "b")
    assert taken is not None
    assert taken.losses[-1].unit == "stage start after trial 0"
    for read in (
        lambda: store.list_trials("job"),
        lambda: store.list_events("job", after=0, limit=9),
    ):
        with pytest.raises(UnreadableRecordError, match="of job job"):
            read()


async def test_a_server_that_starts_over_unreadable_jobs_runs_the_others(
    engine: Engine, store: SqlStore, queue: SqlJobQueue
) -> None:
    for minutes, name in enumerate(("ran", "bad", "good")):
        store.create_job(make_job(name, minutes=minutes))
    assert claim(queue) is not None
    for name in ("ran", "bad"):
        damage(engine, "jobs", f"job_id = '{name}'", '{"job_id": "ba')
    ended: list[str] = []

    async def run(journal: JobJournal) -> None:
        await journal.enter(JobState.SUCCEEDED, "done")
        ended.append(journal.job.job_id)

    scheduler = JobScheduler(
        store=store,
        queue=SqlJobQueue(engine=engine),
        run_job=run,
        hub=EventHub(),
        clock=FakeClock(),
        telemetry=RecordingTelemetry(),
        concurrent_jobs=1,
        replica=ReplicaOptions(is_alone=True),
    )
    await scheduler.start()
    await until(lambda: ended)
    store.create_job(make_job("later", minutes=9))
    scheduler.wake()
    await until(lambda: len(ended) == 2)
    await scheduler.stop()
    assert ended == ["good", "later"]


@pytest.mark.parametrize("document", DAMAGES)
def test_the_expiry_of_jobs_goes_on_past_an_unreadable_one(
    engine: Engine, store: SqlStore, document: str
) -> None:
    for name in ("bad", "old"):
        store.create_job(make_job(name, state=JobState.SUCCEEDED, end_time=START))
    damage(engine, "jobs", "job_id = 'bad'", document)
    expiry = SqlJobExpiry(engine=engine)
    assert expiry.expire_jobs(ended_before=START + timedelta(days=1), dry_run=True) == 1
    assert expiry.expire_jobs(ended_before=START + timedelta(days=1)) == 1
    assert [job.job_id for job in store.list_jobs("default", ALL)] == ["bad"]


def test_a_request_is_not_mistaken_for_an_unreadable_one_of_the_same_id(
    engine: Engine, store: SqlStore
) -> None:
    store.create_job(make_job("bad", request_id="r"))
    damage(engine, "jobs", "job_id = 'bad'", "{")
    with pytest.raises(UnreadableRecordError, match="job bad"):
        store.create_job(make_job("new", request_id="r"))


@pytest.mark.parametrize("document", ["{", "[]"])
def test_an_unreadable_result_is_taken_for_none(
    engine: Engine, store: SqlStore, document: str
) -> None:
    store.store_result("default", "unit", WorkResult(payload={"x": 1}))
    damage(engine, "work_results", "input_digest = 'unit'", document)
    assert store.cached_result("default", "unit") is None
    assert store.unit_record("default", "unit", within_seconds=1.0).result is None
    store.store_result("default", "unit", WorkResult(payload={"x": 2}))
    assert store.cached_result("default", "unit") == WorkResult(payload={"x": 2})


def test_targets_are_listed_without_those_that_cannot_be_read(engine: Engine) -> None:
    targets = SqlTargetStore(engine=engine)
    for name in ("a", "b", "c", "d"):
        spec = replace(make_target(), name=name)
        targets.add_target(TargetRecord(project="p", spec=spec, create_time=START))
    for name in ("a", "c"):
        damage(engine, "hardware_targets", f"target_name = '{name}'", '{"name": "c"}')
    assert [one.spec.name for one in targets.list_targets("p", ALL)] == ["b", "d"]
    assert [one.spec.name for one in targets.list_targets("p", Page(size=2))] == ["b", "d"]
    assert [one.spec.name for one in targets.list_targets("p", Page(size=1, after="b"))] == ["d"]
    with pytest.raises(UnreadableRecordError, match="hardware target 'c'") as caught:
        targets.get_target("p", "c")
    assert "delete it" in caught.value.remedy
    targets.delete_target("p", "c")
    assert [one.spec.name for one in targets.list_targets("p", ALL)] == ["b", "d"]


def test_an_unreadable_calibration_says_what_to_do_and_gives_way_to_the_next(
    engine: Engine,
) -> None:
    calibrations = SqlCalibrationStore(engine=engine)
    calibration = Calibration(
        project="p",
        target_name="board",
        runner="bench-1",
        runtime_name="LiteRT",
        runtime_version="litert 2.3",
        create_time=START,
        observations=(),
        quality=(),
    )
    calibrations.save_calibration(calibration)
    damage(engine, "calibrations", "target_name = 'board'", '{"project": "p"}')
    with pytest.raises(UnreadableRecordError, match="the calibration of target board") as caught:
        calibrations.find_calibration("p", "board", "LiteRT")
    assert "calibrate the target again" in caught.value.remedy
    calibrations.save_calibration(calibration)
    assert calibrations.find_calibration("p", "board", "LiteRT") == calibration


def test_models_are_listed_with_what_is_wrong_with_one(engine: Engine, store: SqlStore) -> None:
    for name in ("bad", "good"):
        store.add_asset(make_asset(name, digest=digest_of(name)))
    damage(engine, "assets", "asset_id = 'bad'", "{", column="description")
    bad, good = store.list_assets("default", "model", ALL)
    assert (bad.digest, list(bad.description)) == (digest_of("bad"), ["unreadable"])
    assert good.description == make_asset().description
    store.delete_asset("default", "model", "bad")


@pytest.mark.parametrize("grants", ["{", "null", '[["p", "emperor"]]'])
def test_a_key_of_which_the_grants_are_unreadable_grants_nothing(
    engine: Engine, grants: str
) -> None:
    keys = SqlApiKeyStore(engine=engine)
    for key_id in ("bad", "good"):
        keys.add_key(_key(key_id, START))
    damage(engine, "api_keys", "key_id = 'bad'", grants, column="grants")
    assert [(key.key_id, len(key.grants)) for key in keys.list_keys(ALL)] == [
        ("bad", 0),
        ("good", 1),
    ]
    assert keys.revoke_key("bad", START) is not None


def _key(key_id: str, now: datetime) -> ApiKey:
    return ApiKey(
        key_id=key_id,
        secret_hash=digest_of(key_id),
        display_name=key_id,
        grants=(Grant("p", Role.VIEWER),),
        creator="somebody",
        create_time=now,
    )
