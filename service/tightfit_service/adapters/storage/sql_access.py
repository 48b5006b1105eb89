"""API keys and the audit log in a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Engine, Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError as DuplicateError

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import api_keys, audit_events
from tightfit_service.application.ports import Page
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.access import ApiKey, Grant, Role
from tightfit_service.domain.errors import AlreadyExistsError, InvalidRequestError

log = structlog.get_logger(__name__)


class SqlApiKeyStore:
    """Implements `ApiKeyStore`. The schema must be up to date; every method is one transaction.

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def add_key(self, key: ApiKey) -> None:
        """See `ApiKeyStore`."""
        grants = [[grant.project, str(grant.role)] for grant in key.grants]
        row = {name: getattr(key, name) for name in api_keys.c.keys() if name != "grants"}  # noqa: SIM118  # columns, not a dict
        try:
            with transaction(self._engine, writes=True) as connection:
                connection.execute(insert(api_keys).values(grants=grants, **row))
        except DuplicateError as error:
            raise AlreadyExistsError(
                f"there is an API key {key.key_id} already", field="name", remedy="try again"
            ) from error

    def get_key(self, key_id: str) -> ApiKey | None:
        """See `ApiKeyStore`."""
        with transaction(self._engine, writes=False) as connection:
            row = connection.execute(select(api_keys).filter_by(key_id=key_id)).first()
        return None if row is None else _key(row)

    def list_keys(self, page: Page) -> Sequence[ApiKey]:
        """See `ApiKeyStore`."""
        query = (
            select(api_keys)
            .where(api_keys.c.key_id > page.after)
            .order_by(api_keys.c.key_id)
            .limit(page.size)
        )
        with transaction(self._engine, writes=False) as connection:
            return [_key(row) for row in connection.execute(query)]

    def revoke_key(self, key_id: str, now: datetime) -> ApiKey | None:
        """See `ApiKeyStore`."""
        change = (
            update(api_keys)
            .where(api_keys.c.key_id == key_id, api_keys.c.revoke_time.is_(None))
            .values(revoke_time=now)
        )
        with transaction(self._engine, writes=True) as connection:
            connection.execute(change)
            row = connection.execute(select(api_keys).filter_by(key_id=key_id)).first()
        return None if row is None else _key(row)

    def key_used(self, key_id: str, now: datetime) -> None:
        """See `ApiKeyStore`."""
        used = api_keys.c.last_use_time
        change = (
            update(api_keys)
            .where(api_keys.c.key_id == key_id, or_(used.is_(None), used < now))
            .values(last_use_time=now)
        )
        with transaction(self._engine, writes=True) as connection:
            connection.execute(change)


class SqlAuditStore:
    """Implements `AuditStore`. The schema must be up to date; every method is one transaction.

    A trigger of the database refuses to change or delete events, whoever asks through whatever program.

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        """See `AuditStore`."""
        rows = [{**asdict(event), **_bounded(event)} for event in events]
        for row in rows:
            del row["event_id"]
        with transaction(self._engine, writes=True) as connection:
            connection.execute(insert(audit_events), rows)

    def list_events(self, project: str | None, principal: str, page: Page) -> Sequence[AuditEvent]:
        """See `AuditStore`."""
        query = select(audit_events).order_by(audit_events.c.event_id.desc()).limit(page.size)
        if project is not None:
            query = query.where(audit_events.c.project == project)
        if principal:
            query = query.where(audit_events.c.principal == principal)
        if page.after:
            query = query.where(audit_events.c.event_id < _event_id(page.after))
        with transaction(self._engine, writes=False) as connection:
            return [AuditEvent(**row._asdict()) for row in connection.execute(query)]


def _bounded(event: AuditEvent) -> dict[str, str]:
    """Return the texts as long as their columns; names come from callers, who may send anything."""
    lengths: dict[str, int] = {
        column.name: length
        for column in audit_events.c
        if (length := getattr(column.type, "length", None))
    }
    return {
        name: str(getattr(event, name)).replace("\0", "?")[:length]
        for name, length in lengths.items()
    }


def _event_id(after: str) -> int:
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise InvalidRequestError(
            f"{after[:40]!r} is not the id of an event",
            field="page_token",
            remedy="pass the page token on as it was received",
        )
    return int(after)


def _key(row: Row[Any]) -> ApiKey:
    values = row._asdict()
    try:
        values["grants"] = tuple(Grant(project, Role(role)) for project, role in row.grants)
    except (TypeError, ValueError) as error:
        # a key of which is not known what it grants, grants nothing, and can be seen and revoked
        log.warning("keys.unreadable", key_id=row.key_id, error=str(error))
        values["grants"] = ()
    return ApiKey(**values)
