"""Cached results are forgotten when nobody asks for them, and kept while anything may rely on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, update

from fakes.records import digest_of, make_job, make_trial
from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import work_results
from tightfit_service.adapters.storage.sql_results import SqlResultExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import WorkResult
from tightfit_service.domain.job import JobState

MONTH = timedelta(days=30)
RESULT = WorkResult(payload={"x": 1}, outputs={"graph": digest_of("graph")})

Age = Callable[[str, timedelta | None], None]


@pytest.fixture
def store(access_engine: Engine) -> SqlStore:
    return SqlStore(engine=access_engine)


@pytest.fixture
def expiry(access_engine: Engine) -> SqlResultExpiry:
    return SqlResultExpiry(engine=access_engine)


@pytest.fixture
def make_old(access_engine: Engine, store: SqlStore) -> Age:
    """Store a result that was last used so long ago; None is what an older server writes."""

    def make(name: str, age: timedelta | None) -> None:
        store.store_result("default", name, RESULT)
        when = None if age is None else datetime.now(UTC) - age
        with transaction(access_engine, writes=True) as connection:
            connection.execute(
                update(work_results).filter_by(input_digest=name).values(use_time=when)
            )

    return make


def test_what_was_not_used_for_long_is_forgotten_with_its_outputs(
    store: SqlStore, expiry: SqlResultExpiry, make_old: Age
) -> None:
    make_old("old", MONTH + timedelta(hours=1))
    make_old("young", MONTH - timedelta(hours=1))
    make_old("unknown", None)
    assert expiry.expire_results(unused_for=MONTH, dry_run=True) == 1
    assert expiry.expire_results(unused_for=MONTH) == 1
    assert store.cached_result("default", "old") is None
    assert store.cached_result("default", "young") == RESULT
    assert store.is_digest_used("default", digest_of("graph"))
    assert expiry.expire_results(unused_for=MONTH) == 0


def cached(store: SqlStore, name: str) -> WorkResult | None:
    return store.cached_result("default", name)


def recalled(store: SqlStore, name: str) -> WorkResult | None:
    return store.unit_record("default", name, within_seconds=60.0).result


@pytest.mark.parametrize("ask", [cached, recalled])
def test_a_result_that_is_asked_for_is_young_again(
    store: SqlStore,
    expiry: SqlResultExpiry,
    make_old: Age,
    ask: Callable[[SqlStore, str], WorkResult | None],
) -> None:
    make_old("asked", 2 * MONTH)
    assert ask(store, "asked") == RESULT
    assert expiry.expire_results(unused_for=MONTH) == 0
    assert ask(store, "asked") == RESULT


def test_what_an_older_server_wrote_grows_old_from_the_first_look(
    store: SqlStore, expiry: SqlResultExpiry, make_old: Age
) -> None:
    make_old("unknown", None)
    assert expiry.expire_results(unused_for=timedelta(0)) == 0
    assert expiry.expire_results(unused_for=timedelta(seconds=-60)) == 1
    assert store.cached_result("default", "unknown") is None


def test_what_a_trial_stands_for_is_kept(
    store: SqlStore, expiry: SqlResultExpiry, make_old: Age
) -> None:
    make_old("trial", 2 * MONTH)
    store.create_job(make_job(state=JobState.SUCCEEDED))
    store.save_trial("job", make_trial(input_digest="trial"))
    assert expiry.expire_results(unused_for=MONTH) == 0
    store.delete_job("default", "job")
    assert store.cached_result("default", "trial") is None, "deletion takes it along"


def test_a_trial_of_another_project_keeps_nothing(
    store: SqlStore, expiry: SqlResultExpiry, make_old: Age
) -> None:
    make_old("trial", 2 * MONTH)
    store.create_job(make_job(project="other", state=JobState.SUCCEEDED))
    store.save_trial("job", make_trial(input_digest="trial"))
    assert expiry.expire_results(unused_for=MONTH) == 1


def test_all_that_a_job_may_have_been_given_is_kept_until_it_ends(
    store: SqlStore, expiry: SqlResultExpiry, make_old: Age
) -> None:
    make_old("given", MONTH + timedelta(days=5))
    make_old("before", MONTH + timedelta(days=9))
    began = datetime.now(UTC) - MONTH - timedelta(days=5, minutes=30)
    job = store.create_job(make_job(create_time=began))
    assert expiry.expire_results(unused_for=MONTH) == 1
    assert store.cached_result("default", "before") is None
    store.update_job(replace(job, state=JobState.CANCELLED))
    assert expiry.expire_results(unused_for=MONTH) == 1
