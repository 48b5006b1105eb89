"""What API key stores and audit stores promise, on every database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from tightfit_service.adapters.storage.sql_access import SqlApiKeyStore, SqlAuditStore
from tightfit_service.adapters.storage.sql_audit_retention import SqlAuditRetention
from tightfit_service.application.ports import Page
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.access import ApiKey, Grant, Role, hash_secret
from tightfit_service.domain.errors import AlreadyExistsError, InvalidRequestError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def _key(key_id: str = "00aa", **changes: object) -> ApiKey:
    key = ApiKey(
        key_id=key_id,
        secret_hash=hash_secret("s"),
        display_name="nightly",
        grants=(Grant("vision", Role.SUBMITTER), Grant("*", Role.VIEWER)),
        creator="key:root",
        create_time=NOW,
    )
    return replace(key, **changes)  # type: ignore[arg-type]  # of the right types above


def _event(**changes: Any) -> AuditEvent:
    event = AuditEvent(
        event_time=NOW,
        principal="key:1",
        method="tightfit.v1.CompressionService/CreateJob",
        project="vision",
        resource="projects/vision/jobs/1",
        code="OK",
        request_id="r1",
        address="127.0.0.1:1",
    )
    return replace(event, **changes)


@pytest.fixture
def keys(access_engine: Engine) -> SqlApiKeyStore:
    return SqlApiKeyStore(engine=access_engine)


@pytest.fixture
def audit(access_engine: Engine) -> SqlAuditStore:
    return SqlAuditStore(engine=access_engine)


@pytest.fixture
def retention(access_engine: Engine) -> SqlAuditRetention:
    return SqlAuditRetention(engine=access_engine)


def test_a_key_comes_back_as_it_was_stored(keys: SqlApiKeyStore) -> None:
    key = _key(expire_time=NOW + timedelta(days=1))
    keys.add_key(key)
    assert keys.get_key("00aa") == key
    assert keys.get_key("00ab") is None
    with pytest.raises(AlreadyExistsError):
        keys.add_key(_key())


def test_keys_are_listed_by_id_in_pages(keys: SqlApiKeyStore) -> None:
    for key_id in ("0c", "0a", "0b"):
        keys.add_key(_key(key_id))
    first = keys.list_keys(Page(size=2))
    assert [key.key_id for key in first] == ["0a", "0b"]
    assert [key.key_id for key in keys.list_keys(Page(size=2, after="0b"))] == ["0c"]


def test_a_key_is_revoked_once(keys: SqlApiKeyStore) -> None:
    keys.add_key(_key())
    revoked = keys.revoke_key("00aa", NOW)
    assert revoked is not None
    assert revoked.revoke_time == NOW
    again = keys.revoke_key("00aa", NOW + timedelta(hours=1))
    assert again == revoked
    assert keys.revoke_key("none", NOW) is None


def test_the_time_of_a_use_never_goes_back(keys: SqlApiKeyStore) -> None:
    keys.add_key(_key())
    for minutes in (5, 3):
        keys.key_used("00aa", NOW + timedelta(minutes=minutes))
    key = keys.get_key("00aa")
    assert key is not None
    assert key.last_use_time == NOW + timedelta(minutes=5)


def test_events_are_listed_newest_first_in_pages(audit: SqlAuditStore) -> None:
    audit.append_events([_event(request_id=f"r{n}") for n in range(3)])
    audit.append_events([_event(project="audio", principal="key:2", request_id="r3")])
    newest = audit.list_events(None, "", Page(size=2))
    assert [event.request_id for event in newest] == ["r3", "r2"]
    rest = audit.list_events(None, "", Page(size=9, after=str(newest[-1].event_id)))
    assert [event.request_id for event in rest] == ["r1", "r0"]
    assert [e.request_id for e in audit.list_events("audio", "", Page(size=9))] == ["r3"]
    assert [e.project for e in audit.list_events(None, "key:2", Page(size=9))] == ["audio"]
    assert replace(newest[1], event_id=0) == _event(request_id="r2")
    with pytest.raises(InvalidRequestError):
        audit.list_events(None, "", Page(size=1, after="1 or 1"))


def test_hostile_names_are_cut_to_the_columns(audit: SqlAuditStore) -> None:
    audit.append_events([_event(resource="x" * 9_000, project="p\0" * 400)])
    (event,) = audit.list_events(None, "", Page(size=1))
    assert len(event.resource) == 1024
    assert len(event.project) == 255


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_events SET principal = 'nobody'", "DELETE FROM audit_events"]
)
def test_the_database_refuses_to_change_events(
    audit: SqlAuditStore, access_engine: Engine, statement: str
) -> None:
    audit.append_events([_event()])
    with pytest.raises(DBAPIError, match="append-only"), access_engine.begin() as connection:
        connection.execute(text(statement))
    assert len(audit.list_events(None, "", Page(size=9))) == 1


def test_the_database_refuses_to_empty_the_log(audit: SqlAuditStore, access_engine: Engine) -> None:
    audit.append_events([_event()])
    # SQLite has no TRUNCATE; a DELETE of everything is what it has instead
    statement = "DELETE FROM" if access_engine.dialect.name == "sqlite" else "TRUNCATE"
    with pytest.raises(DBAPIError, match="append-only"), access_engine.begin() as connection:
        connection.execute(text(f"{statement} audit_events"))


def test_old_events_are_read_oldest_first_and_new_ones_are_not_old(
    audit: SqlAuditStore, retention: SqlAuditRetention
) -> None:
    assert retention.end_of(NOW) == 0
    for days in (3, 2, 1):
        audit.append_events([_event(request_id=f"{days} days", event_time=NOW - timedelta(days))])
    end = retention.end_of(NOW - timedelta(days=1.5))
    first, second = retention.read_events(after=0, below=end, limit=9)
    assert [first.request_id, second.request_id] == ["3 days", "2 days"]
    assert retention.read_events(after=first.event_id, below=end, limit=9) == [second]
    assert retention.read_events(after=0, below=end, limit=1) == [first]
    assert len(retention.read_events(after=0, below=retention.end_of(NOW), limit=9)) == 3
    assert retention.end_of(NOW - timedelta(days=9)) == first.event_id


def test_dropped_events_leave_one_that_tells_of_it_and_the_refusal_stays(
    audit: SqlAuditStore, retention: SqlAuditRetention, access_engine: Engine
) -> None:
    audit.append_events([_event(request_id=f"r{n}") for n in range(3)])
    *_, last = old = retention.read_events(after=0, below=retention.end_of(NOW + DAY), limit=9)
    retention.drop_events(through=old[1].event_id, note=_event(request_id="first note"))
    kept = audit.list_events(None, "", Page(size=9))
    assert [event.request_id for event in kept] == ["first note", "r2"]
    retention.drop_events(through=kept[0].event_id, note=_event(request_id="second note"))
    (note,) = audit.list_events(None, "", Page(size=9))
    assert note.request_id == "second note"
    assert note.event_id > kept[0].event_id > last.event_id, "no id is used twice"
    with pytest.raises(DBAPIError, match="append-only"), access_engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_events"))


def test_a_removal_that_fails_leaves_everything_as_it_was(
    audit: SqlAuditStore, retention: SqlAuditRetention, access_engine: Engine
) -> None:
    audit.append_events([_event()])
    unfit: Any = None  # for a column that must not be empty
    with pytest.raises(DBAPIError):
        retention.drop_events(through=9, note=_event(method=unfit))
    assert len(audit.list_events(None, "", Page(size=9))) == 1
    with pytest.raises(DBAPIError, match="append-only"), access_engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_events"))


def test_keys_and_events_are_found_by_index(access_engine: Engine) -> None:
    explain, hint = "EXPLAIN ", "SET LOCAL enable_seqscan = off"
    if access_engine.dialect.name == "sqlite":
        explain, hint = "EXPLAIN QUERY PLAN ", "SELECT 1"
    for query in (
        "SELECT * FROM api_keys WHERE key_id = 'a'",
        "SELECT * FROM audit_events WHERE project = 'p' AND event_id < 9 ORDER BY event_id DESC",
        "SELECT * FROM audit_events WHERE principal = 'p' ORDER BY event_id DESC",
    ):
        with access_engine.begin() as connection:
            connection.execute(text(hint))
            plan = str(connection.execute(text(explain + query)).all())
        assert "index" in plan.lower(), plan
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan
