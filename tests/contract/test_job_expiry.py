"""Jobs that ended long ago are deleted, and no others, on every database."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from fakes.records import START, digest_of, make_job, make_trial
from tightfit_service.adapters.storage import sql_job_expiry
from tightfit_service.adapters.storage.sql_job_expiry import SqlJobExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import Page, WorkResult
from tightfit_service.domain.job import Job, JobState

MINUTE = timedelta(minutes=1)


def ended(name: str, *, minutes: float, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "state": JobState.SUCCEEDED,
        "end_time": START + minutes * MINUTE,
    }
    return make_job(name, **(values | changes))


def left(store: SqlStore) -> list[str]:
    return sorted(
        job.job_id
        for project in ("default", "other")
        for job in store.list_jobs(project, Page(size=99))
    )


def test_those_that_ended_before_go_in_every_project(
    access_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_job_expiry, "_JOBS_PER_LOOK", 2)
    store, expiry = SqlStore(engine=access_engine), SqlJobExpiry(engine=access_engine)
    for number, state in enumerate(state for state in JobState if state.is_final):
        store.create_job(ended(f"old {number}", minutes=1.5, state=state))
    store.create_job(ended("old elsewhere", minutes=0, project="other"))
    store.create_job(ended("young", minutes=3))
    store.create_job(make_job("waits"))
    store.save_trial("old 0", make_trial(input_digest="unit", artifacts={"m": digest_of("result")}))
    store.store_result("default", "unit", WorkResult(payload={}))
    old = len(left(store)) - 2
    assert expiry.expire_jobs(ended_before=START + 2 * MINUTE, dry_run=True) == old
    assert len(left(store)) == old + 2
    assert expiry.expire_jobs(ended_before=START + 2 * MINUTE) == old
    assert left(store) == ["waits", "young"]
    assert not store.is_digest_used("default", digest_of("result"))
    assert store.cached_result("default", "unit") is None
    assert expiry.expire_jobs(ended_before=START + 2 * MINUTE) == 0
