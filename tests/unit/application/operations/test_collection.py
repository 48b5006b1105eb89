"""Collections remove what nothing refers to, in time, and never what something refers to, whatever happened."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.artifacts import InMemoryArtifactStores
from fakes.clock import FakeClock
from fakes.databases import open_migrated
from fakes.records import make_asset, make_job, make_spec, make_trial
from fakes.stores import InMemoryStore, RecordStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.adapters.storage.sql_results import SqlResultExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.application.operations.collection import (
    CollectionPolicy,
    CollectionReport,
    Collector,
)
from tightfit_service.application.ports import Page, ResultExpiry, UploadTicket, WorkResult
from tightfit_service.domain.errors import InvalidRequestError, NotFoundError, UnavailableError
from tightfit_service.domain.job import JobState, TeacherModel

DAY = 24 * 3600
A_DAY = timedelta(days=1)
CONTENTS = [f"content {number}".encode() for number in range(4)]
DIGESTS = [hashlib.sha256(data).hexdigest() for data in CONTENTS]
BYTES = len(CONTENTS[0])


class World:
    """A service's stores on one clock."""

    def __init__(
        self,
        folder: Path,
        records: RecordStore | None = None,
        results: ResultExpiry | None = None,
        policy: CollectionPolicy | None = None,
    ) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.memory = InMemoryStore()
        self.memory.clock = self.clock.now
        self.records = records or self.memory
        self.artifacts = InMemoryArtifactStores()
        self.store = self.artifacts.default
        self.store.clock = self.clock.now
        self.telemetry = RecordingTelemetry()
        self.staging = FolderUploadStaging(root=folder / "uploads", artifacts=self.artifacts)
        self.collector = Collector(
            artifacts=self.artifacts,
            staging=self.staging,
            records=self.records,
            jobs=self.memory,
            results=results or self.memory,
            clock=self.clock,
            telemetry=self.telemetry,
            policy=policy,
        )

    def put(self, number: int) -> str:
        source = self.folder / "source"
        source.write_bytes(CONTENTS[number])
        self.store.put(source, DIGESTS[number])
        return DIGESTS[number]

    def can_fetch(self, digest: str) -> bool:
        try:
            self.store.fetch(digest, self.folder / "copy")
        except NotFoundError:
            return False
        return True


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_orphans_are_set_aside_after_a_day_and_purged_after_another(world: World) -> None:
    digest = world.put(0)
    world.clock.advance(DAY - 60)
    assert world.collector.collect().is_empty
    world.clock.advance(120)
    assert world.collector.collect().set_aside_bytes == BYTES
    assert world.store.size(digest) is None
    world.clock.advance(DAY - 60)
    assert world.collector.collect().is_empty
    world.clock.advance(120)
    report = world.collector.collect()
    assert (report.purged_count, report.purged_bytes) == (1, BYTES)
    assert not world.store.contents
    assert not world.store.aside
    assert world.telemetry.bytes_by_direction["purged"] == BYTES


def test_everything_of_a_project_goes_when_its_last_job_and_model_went(world: World) -> None:
    world.put(0)
    world.put(1)
    world.put(2)
    world.records.add_asset(make_asset(digest=DIGESTS[0]))
    world.records.create_job(make_job(state=JobState.SUCCEEDED))
    trial = make_trial(artifacts={"model": DIGESTS[1]}, input_digest="unit")
    world.records.save_trial("job", trial)
    world.records.store_result(
        "default", "unit", WorkResult(payload={}, outputs={"graph": DIGESTS[2]})
    )
    for _ in range(40):
        world.clock.advance(DAY)
        world.collector.collect()
    assert len(list(world.store.list_stored())) == 3
    world.records.delete_job("default", "job")
    world.records.delete_asset("default", "model", "asset")
    for _ in range(2):
        world.collector.collect()
        world.clock.advance(DAY + 60)
    world.collector.collect()
    assert not list(world.store.list_stored())
    assert not world.store.aside


def test_jobs_that_ended_long_ago_go_with_their_files_where_that_is_wished(tmp_path: Path) -> None:
    keeping, world = (
        World(tmp_path, policy=policy) for policy in (None, CollectionPolicy(job_age=90 * A_DAY))
    )
    for one in (keeping, world):
        began = one.clock.now()
        ended = make_job("ended", state=JobState.FAILED, create_time=began, end_time=began)
        one.records.create_job(ended)
        one.records.save_trial("ended", make_trial(artifacts={"model": one.put(0)}))
        one.records.create_job(make_job("waits", create_time=began))
        one.clock.advance(89 * DAY)
        assert one.collector.collect().expired_jobs == 0
        one.clock.advance(2 * DAY)
        one.collector.collect(dry_run=True)
    assert keeping.collector.collect().is_empty
    report = world.collector.collect()
    assert (report.expired_jobs, report.set_aside_count) == (1, 1)
    assert [job.job_id for job in world.records.list_jobs("default", Page(size=9))] == ["waits"]


def test_the_teacher_of_an_unfinished_job_is_kept(world: World) -> None:
    digest = world.put(0)
    teacher = TeacherModel(name="teacher", digest=digest)
    job = world.records.create_job(make_job(spec=make_spec(teachers=(teacher,))))
    for _ in range(3):
        world.clock.advance(2 * DAY)
        assert world.collector.collect().is_empty
    assert world.can_fetch(digest)
    world.records.update_job(replace(job, state=JobState.CANCELLED))
    assert world.collector.collect().set_aside_count == 1


def test_a_dry_run_changes_nothing_and_says_the_same(world: World) -> None:
    world.put(0)
    world.put(1)
    world.store.set_aside(world.put(2))
    world.records.store_result("default", "unit", WorkResult(payload={}))
    world.staging.open(
        UploadTicket(
            upload_id="up", project="default", kind="model", size_bytes=4, digest=DIGESTS[3],
            display_name="",
        )
    )  # fmt: skip
    world.clock.advance(40 * DAY)
    before = (dict(world.store.contents), dict(world.store.aside))
    dry = world.collector.collect(dry_run=True)
    assert (world.store.contents, world.store.aside) == before
    assert world.memory.results
    assert (dry.set_aside_count, dry.purged_count, dry.expired_results) == (2, 1, 1)
    assert world.collector.collect() == dry


def test_uploads_are_given_up_by_their_own_age(world: World, tmp_path: Path) -> None:
    ticket = UploadTicket(
        upload_id="up", project="default", kind="model", size_bytes=4, digest=DIGESTS[0],
        display_name="",
    )  # fmt: skip
    world.staging.open(ticket)
    assert world.collector.collect().expired_uploads == 0
    for path in (tmp_path / "uploads" / "default").iterdir():
        os.utime(path, (0, 0))
    assert world.collector.collect().expired_uploads == 1


def test_what_came_to_be_referred_to_is_restored(world: World) -> None:
    digest = world.put(0)
    world.clock.advance(2 * DAY)
    world.collector.collect()
    world.records.add_asset(make_asset(digest=digest))
    assert world.collector.collect() == CollectionReport(restored_count=1)
    assert world.store.size(digest) == BYTES


def test_who_found_bytes_in_place_just_before_they_were_set_aside_still_has_them(
    world: World,
) -> None:
    world.put(0)
    world.clock.advance(2 * DAY)
    digest = world.put(0)
    for _ in range(3):
        assert world.collector.collect().purged_count == 0
    world.clock.advance(3600)
    assert world.can_fetch(digest), "the unit that comes next needs them"
    world.collector.collect()
    world.records.add_asset(make_asset(digest=digest))
    for _ in range(3):
        world.clock.advance(DAY + 60)
        world.collector.collect()
    assert world.store.size(digest) == BYTES


def test_results_that_nobody_asks_for_are_forgotten(world: World) -> None:
    result = WorkResult(payload={}, outputs={"graph": world.put(0)})
    for name in ("asked", "unasked"):
        world.records.store_result("default", name, result)
    world.clock.advance(29 * DAY)
    assert world.records.cached_result("default", "asked") == result
    world.clock.advance(2 * DAY)
    assert world.collector.collect().expired_results == 1
    assert world.records.cached_result("default", "unasked") is None
    assert world.records.cached_result("default", "asked") == result


def test_a_job_keeps_what_it_was_given_however_long_it_takes(world: World) -> None:
    result = WorkResult(payload={}, outputs={"graph": world.put(0)})
    world.records.store_result("default", "unit", result)
    world.records.create_job(make_job(create_time=world.clock.now()))
    world.clock.advance(60)
    assert world.records.cached_result("default", "unit") == result
    for _ in range(50):
        world.clock.advance(DAY)
        world.collector.collect()
    assert world.can_fetch(DIGESTS[0])


def test_a_store_that_is_away_cuts_a_collection_short(world: World) -> None:
    world.store.is_down = True
    with pytest.raises(UnavailableError):
        world.collector.collect()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"grace": timedelta(minutes=59)}, "gc_grace_seconds"),
        ({"upload_age": timedelta(0)}, "gc_upload_seconds"),
        ({"result_age": timedelta(hours=1)}, "gc_result_seconds"),
        ({"job_age": timedelta(hours=23)}, "gc_job_seconds"),
        ({"interval": timedelta(seconds=-1)}, "gc_interval_seconds"),
    ],
)
def test_times_that_are_not_safe_are_refused(changes: dict[str, timedelta], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        CollectionPolicy(**changes)
    assert caught.value.field == field


NUMBER = st.integers(0, 1)


class Histories(RuleBasedStateMachine):
    """Uploads, jobs, deletions and collections in any order, each step an hour apart at most.

    Whoever stores bytes refers to them within the hour: other steps, and collections, come between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.world = self.make_world(Path(self.temporary.name))
        self.referred: dict[str, int] = {}
        self.promised: list[tuple[str, int, float]] = []
        self.serial = 0

    def make_world(self, folder: Path) -> World:
        world = World(folder)
        # results do not grow old here: what they refer to would then rightly go
        began = world.clock.now()
        world.memory.clock = lambda: began
        return world

    def teardown(self) -> None:
        self.temporary.cleanup()

    @rule(number=NUMBER)
    def store_bytes(self, number: int) -> None:
        """Put now, refer later: this is where a collection could come between."""
        self.world.put(number)
        self.serial += 1
        kind = ("asset", "result", "trial")[self.serial % 3]
        deadline = self.world.clock.monotonic() + 3600
        self.promised.append((f"{kind}-{self.serial}", number, deadline))

    @rule(number=NUMBER)
    def store_bytes_and_die(self, number: int) -> None:
        self.world.put(number)

    @precondition(lambda self: self.promised)
    @rule()
    def refer(self) -> None:
        name, number, _ = self.promised.pop(0)
        records, digest = self.world.records, DIGESTS[number]
        if name.startswith("asset"):
            records.add_asset(make_asset(name, digest=digest))
        elif name.startswith("result"):
            records.store_result("default", name, WorkResult(payload={}, outputs={"graph": digest}))
        else:
            records.create_job(make_job(name, state=JobState.SUCCEEDED))
            records.save_trial(name, make_trial(artifacts={"model": digest}))
        self.referred[name] = number

    @precondition(lambda self: any(not name.startswith("result") for name in self.referred))
    @rule(choice=st.integers(0, 100))
    def delete(self, choice: int) -> None:
        names = [name for name in self.referred if not name.startswith("result")]
        name = names[choice % len(names)]
        digest = DIGESTS[self.referred.pop(name)]
        if name.startswith("trial"):
            self.world.records.delete_job("default", name)
            return
        # as `AssetLibrary.delete` does
        self.world.records.delete_asset("default", "model", name)
        if not self.world.records.is_digest_used("default", digest):
            self.world.store.set_aside(digest)

    @rule(hours=st.sampled_from([0.2, 1.0, 10.0, 25.0]))
    def wait(self, hours: float) -> None:
        end = self.world.clock.monotonic() + hours * 3600
        while self.promised and self.promised[0][2] <= end:
            self.refer()
        self.world.clock.advance(end - self.world.clock.monotonic())

    @rule()
    def collect(self) -> None:
        self.world.collector.collect()

    @rule()
    def collect_until_nothing_is_left_to_do(self) -> None:
        self.wait(2.0)
        for _ in range(3):
            self.world.collector.collect()
            self.wait(25.0)
        kept = {DIGESTS[number] for number in self.referred.values()}
        assert set(self.world.store.contents) == kept
        assert not self.world.store.aside

    @invariant()
    def what_is_referred_to_can_be_fetched(self) -> None:
        for number in set(self.referred.values()):
            store = self.world.store
            found = DIGESTS[number] in store.contents or any(
                handle.startswith(DIGESTS[number]) for handle in store.aside
            )
            assert found, f"content {number} is lost"


class SqliteHistories(Histories):
    """The same over SQLite, whose results have the real time, so that they do not grow old either."""

    def make_world(self, folder: Path) -> World:
        self.engine = open_migrated(folder / "state.db")
        return World(folder, SqlStore(engine=self.engine), SqlResultExpiry(engine=self.engine))

    def teardown(self) -> None:
        self.engine.dispose()
        super().teardown()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
TestSqliteHistories = SqliteHistories.TestCase
TestSqliteHistories.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
