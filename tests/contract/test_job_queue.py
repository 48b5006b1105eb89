"""What every `JobQueue` does: the order of the queue, leases, and that one writer at a time holds a job."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fakes.records import (
    START,
    digest_of,
    make_asset,
    make_event,
    make_job,
    make_spec,
    make_trial,
)
from fakes.stores import RecordStore
from tightfit_service.application.ports import Claim, JobQueue, Lease, QuotaStore, WorkResult
from tightfit_service.domain.errors import LeaseLostError, ResourceExhaustedError
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import Quota, QuotaOverrides, Usage
from tightfit_service.domain.trial import TrialState


def claim(
    queue: JobQueue, owner: str = "a", *, quota: Quota | None = None, lease_seconds: float = 60.0
) -> Claim | None:
    return queue.claim_job(owner, lease_seconds=lease_seconds, now=START, quota=quota or Quota())


def claimed(queue: JobQueue, owner: str = "a", *, quota: Quota | None = None) -> Claim:
    found = claim(queue, owner, quota=quota)
    assert found is not None
    return found


def test_a_claimed_job_runs_and_is_nobody_elses(store: RecordStore, queue: JobQueue) -> None:
    job = store.create_job(make_job())
    taken = claimed(queue)
    assert taken.before == job
    assert taken.job == replace(
        job, state=JobState.RUNNING, start_time=START, update_time=START, revision=1
    )
    assert store.get_job("default", "job") == taken.job
    assert taken.lease == Lease(job_id="job", owner="a", token=1)
    assert not taken.losses
    assert not taken.cancel_requested
    assert claim(queue, "b") is None


def test_an_empty_queue_gives_nothing(store: RecordStore, queue: JobQueue) -> None:
    store.create_job(make_job(state=JobState.SUCCEEDED))
    assert claim(queue) is None


def test_the_next_job_is_of_the_project_with_fewest_running_then_priority_then_age(
    store: RecordStore, queue: JobQueue
) -> None:
    for number, (project, priority, minutes) in enumerate(
        [
            ("busy", 5, 0.0),
            ("busy", 9, 1.0),
            ("busy", 9, 0.5),
            ("calm", 0, 2.0),
            ("calm", 1, 3.0),
            ("late", 0, 9.0),
        ]
    ):
        spec = make_spec(priority=priority)
        store.create_job(make_job(f"j{number}", project=project, minutes=minutes, spec=spec))
    order = [claimed(queue).job for _ in range(6)]
    assert [job.project for job in order] == ["busy", "calm", "late", "busy", "calm", "busy"]
    assert [job.job_id for job in order] == ["j2", "j4", "j5", "j1", "j3", "j0"]


def test_a_project_at_its_quota_is_passed_over(
    store: RecordStore, queue: JobQueue, quotas: QuotaStore
) -> None:
    for number in range(3):
        store.create_job(make_job(f"s{number}", project="small"))
        store.create_job(make_job(f"l{number}", project="large", minutes=5))
    quotas.set_quota("large", QuotaOverrides(running_jobs=2))
    quota = Quota(running_jobs=1)
    order = [claimed(queue, quota=quota).job.project for _ in range(3)]
    assert order == ["small", "large", "large"]
    assert claim(queue, quota=quota) is None
    quotas.set_quota("small", QuotaOverrides(running_jobs=0))
    assert claimed(queue, quota=quota).job.project == "small"


def test_racing_claims_take_every_job_once_and_keep_the_quota(
    store: RecordStore, queue: JobQueue
) -> None:
    for number in range(12):
        store.create_job(make_job(f"j{number}", project=f"p{number % 2}"))
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: claim(queue, f"o{n}", quota=Quota(running_jobs=4)), range(24))
        )
    taken = [one.job.job_id for one in found if one is not None]
    assert len(set(taken)) == len(taken)
    running = [store.get_job(f"p{n % 2}", f"j{n}").state for n in range(12)].count(JobState.RUNNING)
    assert running == len(taken) <= 8
    while claim(queue, quota=Quota(running_jobs=4)):
        running += 1
    assert running == 8


def test_whoever_lost_a_job_writes_nothing_any_more(store: RecordStore, queue: JobQueue) -> None:
    store.create_job(make_job())
    first = claimed(queue, "a")
    queue.end_leases()
    second = claimed(queue, "b")
    assert second.lease.token > first.lease.token
    state = store.get_job("default", "job")
    for lease in (first.lease, None):
        with pytest.raises(LeaseLostError):
            store.append_event(make_event(), lease=lease)
        with pytest.raises(LeaseLostError):
            store.save_trial("job", make_trial(), lease=lease)
        with pytest.raises(LeaseLostError):
            store.save_trial("job", make_trial(), event=make_event(), lease=lease)
        with pytest.raises(LeaseLostError):
            store.update_job(replace(state, spent_seconds=9.0), lease=lease)
    assert store.get_job("default", "job") == state
    assert not store.list_events("job", after=0, limit=9)
    assert not store.list_trials("job")
    assert store.job_marks(["job"])["job"].last_sequence == 0
    assert not queue.renew_leases([first.lease], lease_seconds=60.0)
    store.append_event(make_event(), lease=second.lease)
    store.save_trial("job", make_trial(), lease=second.lease)
    store.update_job(replace(state, spent_seconds=9.0), lease=second.lease)


def test_a_lease_that_ran_out_and_was_taken_by_nobody_still_holds(
    store: RecordStore, queue: JobQueue
) -> None:
    store.create_job(make_job())
    taken = claimed(queue, "a")
    queue.end_leases()
    assert claim(queue, "a") is None, "what an owner holds itself is never taken over"
    store.append_event(make_event(), lease=taken.lease)
    assert list(queue.renew_leases([taken.lease], lease_seconds=60.0)) == ["job"]
    assert claim(queue, "b") is None


def test_leases_run_out_by_themselves_and_heartbeats_prolong_them(
    store: RecordStore, queue: JobQueue
) -> None:
    for name in "xy":
        store.create_job(make_job(name))
    leases = []
    for _ in range(2):
        taken = claim(queue, "a", lease_seconds=0.2)
        assert taken is not None
        leases.append(taken.lease)
    assert list(queue.renew_leases(leases[:1], lease_seconds=60.0)) == [leases[0].job_id]
    time.sleep(0.3)
    found = claimed(queue, "b")
    assert found.job.job_id == leases[1].job_id
    assert [loss.owner for loss in found.losses] == ["a"]
    assert claim(queue, "b") is None


def test_leases_that_ran_out_can_be_left_alone(store: RecordStore, queue: JobQueue) -> None:
    store.create_job(make_job())
    claimed(queue, "a")
    queue.end_leases()
    assert (
        queue.claim_job("b", lease_seconds=9.0, now=START, quota=Quota(), take_over=False) is None
    )


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED])
def test_a_job_that_runs_no_more_is_given_back(
    store: RecordStore, queue: JobQueue, state: JobState
) -> None:
    store.create_job(make_job())
    taken = claimed(queue, "a")
    store.update_job(replace(taken.job, state=state), lease=taken.lease)
    assert not queue.renew_leases([taken.lease], lease_seconds=60.0)
    with pytest.raises(LeaseLostError):
        store.append_event(make_event(), lease=taken.lease)
    store.append_event(make_event())
    again = claim(queue, "b")
    assert (again is not None) == (state is JobState.QUEUED)
    if again is not None:
        assert not again.losses
        assert again.job.start_time == START


def test_lives_that_end_at_the_same_unit_are_counted_and_progress_forgives(
    store: RecordStore, queue: JobQueue
) -> None:
    store.create_job(make_job())
    units = []
    for index, owner in [(0, "a"), (0, "b"), (0, "c"), (1, "d"), (1, "e")]:
        taken = claimed(queue, owner)
        units.append([(loss.owner, loss.unit) for loss in taken.losses])
        trial = make_trial(index, state=TrialState.RUNNING)
        store.save_trial("job", trial, lease=taken.lease)
        queue.end_leases()
    last = claimed(queue, "f")
    assert units[3] == [("a", "trial 0"), ("b", "trial 0"), ("c", "trial 0")]
    assert [(loss.owner, loss.unit) for loss in last.losses] == [("d", "trial 1"), ("e", "trial 1")]
    assert all(loss.since <= loss.last_heard or loss.last_heard for loss in last.losses)


def test_lives_in_which_a_job_only_waited_are_told_and_do_not_count(
    store: RecordStore, queue: JobQueue
) -> None:
    store.create_job(make_job())
    counted = []
    for owner, is_waiting in [("a", False), ("b", True), ("c", True), ("d", False), ("e", True)]:
        taken = claimed(queue, owner)
        counted.append([(loss.owner, loss.only_waited) for loss in taken.losses])
        waiting = {"job", "another"} if is_waiting else set()
        queue.renew_leases([taken.lease], lease_seconds=60.0, waiting=waiting)
        queue.end_leases()
    assert counted == [
        [],
        [("a", False)],
        [("a", False), ("b", True)],
        [("a", False), ("c", True)],
        [("a", False), ("d", False)],
    ]
    last = claimed(queue, "f")
    assert [loss.owner for loss in last.losses if not loss.only_waited] == ["a", "d"]
    assert last.losses[-1].owner == "e"
    assert last.losses[-1].unit == "stage start"


def test_the_heartbeat_says_last_whether_a_job_waits(store: RecordStore, queue: JobQueue) -> None:
    for name in "xy":
        store.create_job(make_job(name))
    leases = [claimed(queue).lease for _ in range(2)]
    queue.renew_leases(leases, lease_seconds=60.0, waiting={"x", "y"})
    queue.renew_leases(leases, lease_seconds=60.0, waiting={"y"})
    queue.end_leases()
    waited = {}
    for _ in range(2):
        taken = claimed(queue, "b")
        waited[taken.job.job_id] = taken.losses[-1].only_waited
    assert waited == {"x": False, "y": True}


def test_the_stage_is_named_where_no_trial_was_running(store: RecordStore, queue: JobQueue) -> None:
    store.create_job(make_job())
    taken = claimed(queue, "a")
    store.append_event(make_event(stage="baseline"), lease=taken.lease)
    queue.end_leases()
    assert claimed(queue, "b").losses[0].unit == "stage baseline"
    store.save_trial("job", make_trial(4), lease=Lease(job_id="job", owner="b", token=2))
    queue.end_leases()
    assert claimed(queue, "c").losses[-1].unit == "stage baseline after trial 4"


def test_a_wish_to_cancel_reaches_whoever_holds_the_job_or_takes_it(
    store: RecordStore, queue: JobQueue
) -> None:
    for name in ("queued", "running"):
        store.create_job(make_job(name, project=name))
    running = claimed(queue, "a")
    project = running.job.project
    assert queue.request_cancel(project, project) == running.job
    assert list(queue.cancel_requests(running.lease.owner)) == [running.lease.job_id]
    assert not queue.cancel_requests("somebody else")
    other = "queued" if project == "running" else "running"
    queue.request_cancel(other, other)
    assert claimed(queue, "b").cancel_requested
    store.create_job(make_job("done", state=JobState.FAILED))
    assert queue.request_cancel("default", "done").state is JobState.FAILED


def test_one_job_is_taken_over_by_name_only_when_its_lease_ran_out(
    store: RecordStore, queue: JobQueue
) -> None:
    store.create_job(make_job())
    assert queue.take_over_job("job", "b", lease_seconds=9.0, now=START) is None
    claimed(queue, "a")
    assert queue.take_over_job("job", "b", lease_seconds=9.0, now=START) is None
    queue.end_leases()
    taken = queue.take_over_job("job", "b", lease_seconds=9.0, now=START)
    assert taken is not None
    assert taken.lease.owner == "b"


def test_no_more_jobs_are_queued_than_the_quota_allows(
    store: RecordStore, queue: JobQueue, quotas: QuotaStore
) -> None:
    quota = Quota(queued_jobs=2)
    with ThreadPoolExecutor(6) as pool:

        def create(number: int) -> bool:
            try:
                store.create_job(make_job(f"j{number}", request_id=f"r{number}"), quota=quota)
            except ResourceExhaustedError as error:
                return not (error.field and error.remedy)
            return True

        outcomes = list(pool.map(create, range(6)))
    assert outcomes.count(True) == 2
    store.create_job(make_job("other", project="other"), quota=quota)
    made = outcomes.index(True)
    again = store.create_job(make_job("again", request_id=f"r{made}"), quota=quota)
    assert again.job_id == f"j{made}", "a repeated request is no further job"
    claimed(queue)
    assert quotas.get_usage("default").queued_jobs in (1, 2)


def test_quotas_are_kept_and_removed(quotas: QuotaStore) -> None:
    assert quotas.get_quota("p") == QuotaOverrides()
    quotas.set_quota("p", QuotaOverrides(trials=3, stored_bytes=1 << 40))
    assert quotas.get_quota("p") == QuotaOverrides(trials=3, stored_bytes=1 << 40)
    quotas.set_quota("p", QuotaOverrides(queued_jobs=0))
    assert quotas.get_quota("p") == QuotaOverrides(queued_jobs=0)
    quotas.set_quota("p", QuotaOverrides())
    assert quotas.get_quota("p") == QuotaOverrides()


def test_usage_is_counted_by_project(
    store: RecordStore, queue: JobQueue, quotas: QuotaStore
) -> None:
    for number in range(3):
        store.create_job(make_job(f"j{number}"))
    claimed(queue)
    store.create_job(make_job("done", state=JobState.CANCELLED))
    store.add_asset(make_asset("m", size_bytes=5))
    store.add_asset(make_asset("d", kind="dataset", digest=digest_of("d"), size_bytes=1 << 40))
    store.add_asset(make_asset("m", project="other", size_bytes=7))
    assert quotas.get_usage("default") == Usage(
        running_jobs=1, queued_jobs=2, stored_bytes=(1 << 40) + 5
    )
    assert quotas.get_usage("other").stored_bytes == 7


def test_files_of_results_count_once_for_each_project(
    store: RecordStore, quotas: QuotaStore
) -> None:
    first, second, unknown = (digest_of(name) for name in ("first", "second", "unknown"))
    store.add_asset(make_asset("m", size_bytes=5))
    sizes = {first: 100, second: 1_000}
    both = WorkResult(payload={}, outputs={"model": first, "graph": second}, sizes=sizes)
    store.store_result("default", "one", both)
    again = WorkResult(payload={}, outputs={"graph": second}, sizes={second: 1_000})
    store.store_result("default", "two", again)
    # by a server that did not note sizes
    store.store_result("default", "old", WorkResult(payload={}, outputs={"a": first, "b": unknown}))
    same = WorkResult(
        payload={}, outputs={"m": make_asset().digest}, sizes={make_asset().digest: 5}
    )
    store.store_result("default", "same bytes as the asset", same)
    store.store_result("other", "one", both)
    assert quotas.get_usage("default").stored_bytes == 1_105
    assert quotas.get_usage("other").stored_bytes == 1_100
    assert store.cached_result("default", "one") == both
    assert quotas.get_usage("nobody").stored_bytes == 0


def test_a_deleted_job_frees_the_files_of_its_trials(
    store: RecordStore, quotas: QuotaStore
) -> None:
    digest = digest_of("model of a trial")
    result = WorkResult(payload={}, outputs={"model": digest}, sizes={digest: 100})
    store.create_job(make_job(state=JobState.SUCCEEDED))
    store.save_trial("job", make_trial(input_digest="unit"))
    store.store_result("default", "unit", result)
    assert quotas.get_usage("default").stored_bytes == 100
    store.delete_job("default", "job")
    assert quotas.get_usage("default").stored_bytes == 0
