"""What every `JobStore` does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fakes.records import digest_of, make_event, make_job, make_spec, make_trial
from fakes.stores import RecordStore
from tightfit_service.application.ports import Page, WorkResult
from tightfit_service.domain.errors import AlreadyExistsError, NotFoundError, PreconditionError
from tightfit_service.domain.job import JobState
from tightfit_service.domain.trial import TrialState


def test_a_job_comes_back_as_it_was_stored(store: RecordStore) -> None:
    job = make_job()
    assert store.create_job(job) == job
    assert repr(store.get_job("default", "job")) == repr(job)


def test_an_unknown_job_is_not_found(store: RecordStore) -> None:
    store.create_job(make_job(project="other"))
    for project, job_id in (("default", "job"), ("other", "nothing")):
        with pytest.raises(NotFoundError):
            store.get_job(project, job_id)


def test_a_request_id_makes_one_job_only(store: RecordStore) -> None:
    first = store.create_job(make_job("a", request_id="r"))
    assert store.create_job(make_job("b", minutes=1, request_id="r")) == first
    assert [job.job_id for job in store.list_jobs("default", Page(size=9))] == ["a"]


def test_request_ids_of_projects_are_apart(store: RecordStore) -> None:
    store.create_job(make_job("a", request_id="r"))
    assert store.create_job(make_job("b", project="other", request_id="r")).job_id == "b"


def test_jobs_without_request_id_are_apart(store: RecordStore) -> None:
    assert [store.create_job(make_job(name)).job_id for name in "ab"] == ["a", "b"]


def test_a_request_id_cannot_be_used_for_another_spec(store: RecordStore) -> None:
    store.create_job(make_job("a", request_id="r"))
    with pytest.raises(AlreadyExistsError) as caught:
        store.create_job(make_job("b", request_id="r", spec=make_spec(seed=5)))
    assert caught.value.field == "request_id"


def test_a_job_id_cannot_be_taken_twice(store: RecordStore) -> None:
    store.create_job(make_job())
    with pytest.raises(AlreadyExistsError):
        store.create_job(make_job(project="other"))


def test_racing_creations_with_one_request_id_get_the_same_job(store: RecordStore) -> None:
    jobs = [make_job(f"job{i}", request_id="r") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(store.create_job, jobs))
    assert len({job.job_id for job in created}) == 1


def test_jobs_are_listed_newest_first_page_by_page(store: RecordStore) -> None:
    for name, minutes in (("c", 1.0), ("a", 2.0), ("d", 2.0), ("b", 0.0)):
        store.create_job(make_job(name, minutes=minutes))
    store.create_job(make_job("x", project="other"))
    seen: list[str] = []
    while page := store.list_jobs("default", Page(size=3, after=seen[-1] if seen else "")):
        seen += [job.job_id for job in page]
    assert seen == ["d", "a", "c", "b"]


def test_listing_after_a_job_that_is_gone_is_not_found(store: RecordStore) -> None:
    with pytest.raises(NotFoundError):
        store.list_jobs("default", Page(size=3, after="gone"))


def test_jobs_are_listed_by_state(store: RecordStore) -> None:
    for number, state in enumerate(JobState):
        store.create_job(make_job(f"job{number}", minutes=number, state=state))
    wanted = [JobState.QUEUED, JobState.FAILED]
    found = store.list_jobs("default", Page(size=9), states=wanted)
    assert [job.state for job in found] == [JobState.FAILED, JobState.QUEUED]


def test_an_update_raises_the_revision(store: RecordStore) -> None:
    job = store.create_job(make_job())
    changed = store.update_job(replace(job, state=JobState.RUNNING, spent_seconds=2.5))
    assert changed.revision == job.revision + 1
    assert store.get_job("default", "job") == changed
    assert store.update_job(replace(changed, spent_seconds=3.0)).revision == job.revision + 2


def test_an_update_of_an_old_revision_is_refused(store: RecordStore) -> None:
    job = store.create_job(make_job())
    changed = store.update_job(replace(job, spent_seconds=1.0))
    with pytest.raises(PreconditionError):
        store.update_job(replace(job, spent_seconds=2.0))
    assert store.get_job("default", "job") == changed


def test_of_racing_updates_one_wins(store: RecordStore) -> None:
    job = store.create_job(make_job())

    def try_update(number: int) -> bool:
        try:
            store.update_job(replace(job, spent_seconds=float(number)))
        except PreconditionError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(try_update, range(6)))
    assert outcomes.count(True) == 1


def test_an_impossible_change_of_state_is_refused(store: RecordStore) -> None:
    job = store.create_job(make_job(state=JobState.SUCCEEDED))
    with pytest.raises(PreconditionError) as caught:
        store.update_job(replace(job, state=JobState.RUNNING))
    assert caught.value.field == "state"
    assert store.get_job("default", "job") == job


def test_an_update_of_an_unknown_job_is_not_found(store: RecordStore) -> None:
    with pytest.raises(NotFoundError):
        store.update_job(make_job())


def test_deletion_takes_trials_and_events_along(store: RecordStore) -> None:
    job = make_job(state=JobState.FAILED, request_id="r")
    store.create_job(job)
    store.save_trial("job", make_trial(artifacts={"model": digest_of("result")}))
    store.append_event(make_event())
    store.delete_job("default", "job")
    with pytest.raises(NotFoundError):
        store.get_job("default", "job")
    assert not store.list_trials("job")
    assert not store.list_events("job", after=0, limit=9)
    assert not store.is_digest_used("default", digest_of("result"))
    store.create_job(job)
    assert store.append_event(make_event()).sequence == 1


def test_deletion_is_refused_before_the_end(store: RecordStore) -> None:
    store.create_job(make_job())
    with pytest.raises(PreconditionError):
        store.delete_job("default", "job")
    with pytest.raises(NotFoundError):
        store.delete_job("other", "job")
    assert store.get_job("default", "job")


def test_deletion_drops_cached_results_that_no_other_job_stands_for(store: RecordStore) -> None:
    for name in "ab":
        store.create_job(make_job(name, state=JobState.FAILED))
        store.save_trial(name, make_trial(input_digest="shared"))
    store.save_trial("a", make_trial(1, input_digest="own"))
    for key in ("shared", "own", "free"):
        store.store_result(
            "default", key, WorkResult(payload={}, outputs={"model": digest_of(key)})
        )
    store.delete_job("default", "a")
    kept = {key for key in ("shared", "own", "free") if store.cached_result("default", key)}
    assert kept == {"shared", "free"}
    assert store.is_digest_used("default", digest_of("shared"))
    assert not store.is_digest_used("default", digest_of("own"))


def test_trials_are_replaced_by_index(store: RecordStore) -> None:
    store.create_job(make_job())
    running = make_trial(1, state=TrialState.RUNNING, artifacts={"old": digest_of("old")})
    done = make_trial(1, artifacts={"model": digest_of("new"), "history": digest_of("new")})
    first = make_trial(0)
    for trial in (running, first, done):
        store.save_trial("job", trial)
    assert store.list_trials("job") == [first, done]
    assert store.is_digest_used("default", digest_of("new"))
    assert not store.is_digest_used("default", digest_of("old"))


def test_a_trial_and_the_event_that_tells_of_it_are_stored_together(store: RecordStore) -> None:
    store.create_job(make_job())
    store.append_event(make_event(message="began"))
    store.save_trial("job", make_trial(3), event=make_event(message="done", sequence=77))
    assert store.list_trials("job") == [make_trial(3)]
    told = store.list_events("job", after=0, limit=9)
    assert [(event.sequence, event.message) for event in told] == [(1, "began"), (2, "done")]
    with pytest.raises(NotFoundError):
        store.save_trial("other", make_trial(), event=make_event("other"))


def test_trials_are_listed_page_by_page_in_order_of_number(store: RecordStore) -> None:
    store.create_job(make_job())
    for index in (10, 2, 0, 1):
        store.save_trial("job", make_trial(index))
    first = store.list_trials("job", Page(size=2))
    rest = store.list_trials("job", Page(size=9, after=str(first[-1].index)))
    assert [trial.index for trial in (*first, *rest)] == [0, 1, 2, 10]


def test_trials_and_events_need_their_job(store: RecordStore) -> None:
    with pytest.raises(NotFoundError):
        store.save_trial("job", make_trial())
    with pytest.raises(NotFoundError):
        store.append_event(make_event())


def test_events_are_numbered_from_one_and_listed_in_order(store: RecordStore) -> None:
    for name in "ab":
        store.create_job(make_job(name))
    for message in ("one", "two", "three"):
        store.append_event(make_event("a", message, sequence=77))
    assert store.append_event(make_event("b")).sequence == 1
    events = store.list_events("a", after=1, limit=9)
    assert [(event.sequence, event.message) for event in events] == [(2, "two"), (3, "three")]
    assert [event.sequence for event in store.list_events("a", after=0, limit=2)] == [1, 2]


def test_racing_events_leave_no_gap(store: RecordStore) -> None:
    store.create_job(make_job())
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda n: store.append_event(make_event(message=str(n))), range(32)))
    assert sorted(event.sequence for event in given) == list(range(1, 33))
    stored = store.list_events("job", after=0, limit=99)
    assert list(stored) == sorted(given, key=lambda event: event.sequence)


def test_results_are_cached_by_their_inputs(store: RecordStore) -> None:
    assert store.cached_result("default", "key") is None
    store.store_result("other", "key", WorkResult(payload={"of": "another project"}))
    assert store.cached_result("default", "key") is None
    old = WorkResult(payload={"a": 1}, outputs={"x": digest_of("x")})
    new = WorkResult(payload={"a": [1.5, None, "b"]}, outputs={"y": digest_of("y")})
    for result in (old, new):
        store.store_result("default", "key", result)
        assert store.cached_result("default", "key") == result
    assert store.is_digest_used("default", digest_of("y"))
    assert not store.is_digest_used("default", digest_of("x"))


def test_marks_tell_what_a_watcher_has_not_seen(store: RecordStore) -> None:
    for name in "ab":
        store.create_job(make_job(name))
    before = store.job_marks(["a", "b", "unknown"])
    assert set(before) == {"a", "b"}
    store.append_event(make_event("a"))
    store.update_job(replace(store.get_job("default", "b"), spent_seconds=1.0))
    after = store.job_marks(["a", "b"])
    assert after["a"].last_sequence == before["a"].last_sequence + 1
    assert after["a"].revision == before["a"].revision
    assert after["b"].revision == before["b"].revision + 1
