"""What authentication and the audit log need of the outside world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from tightfit_service.application.ports.records import Page
from tightfit_service.domain.access import ApiKey, Grant, Principal


class ApiKeyStore(Protocol):
    """API keys, shared by all replicas."""

    def add_key(self, key: ApiKey) -> None:
        """Store a new key.

        Raises:
            AlreadyExistsError: The id is taken.
        """
        ...

    def get_key(self, key_id: str) -> ApiKey | None:
        """Return a key, or None; one look-up by primary key."""
        ...

    def list_keys(self, page: Page) -> Sequence[ApiKey]:
        """Return keys ordered by id, those after `page.after`, revoked and expired ones too."""
        ...

    def revoke_key(self, key_id: str, now: datetime) -> ApiKey | None:
        """Mark a key as revoked, if it is not yet, and return it; None where there is none."""
        ...

    def key_used(self, key_id: str, now: datetime) -> None:
        """Remember the time of a use, if it is later than what is stored."""
        ...


@dataclass(frozen=True, kw_only=True)
class AuditEvent:
    """Somebody called a method, and what came of it. Holds no payload and no credentials."""

    event_time: datetime
    principal: str
    method: str
    project: str
    """Of the resource; "" for what is of no project."""
    resource: str
    code: str
    request_id: str
    address: str
    event_id: int = 0
    """Given by the store, rising."""


class AuditStore(Protocol):
    """The audit log: what is in it stays as it is."""

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        """Store events in one transaction."""
        ...

    def list_events(self, project: str | None, principal: str, page: Page) -> Sequence[AuditEvent]:
        """Return events, newest first, those older than the one whose id is `page.after`.

        Args:
            project: Only events of this project; None for all.
            principal: Only events of this principal; "" for all.
            page: Which part of the list.
        """
        ...


class AuditRetention(Protocol):
    """What an operator may do with old events of the audit log; nothing that serves calls has it."""

    def end_of(self, before: datetime) -> int:
        """Return the id that all events below are older than `before`; 0 where there are none."""
        ...

    def read_events(self, *, after: int, below: int, limit: int) -> Sequence[AuditEvent]:
        """Return the oldest events with ids above `after` and below `below`, oldest first."""
        ...

    def drop_events(self, *, through: int, note: AuditEvent) -> None:
        """Remove all events up to this id and store the one that tells of it, both or neither.

        Raises:
            PermissionDeniedError: The account at the database does not own the table.
        """
        ...


class TokenVerifier(Protocol):
    """Tokens that an identity provider signed."""

    def verify(self, token: str) -> Principal:
        """Return who the token is of; may wait for the provider's keys.

        Raises:
            InvalidCredentialsError: Malformed, of another issuer or audience, or not signed by it.
            ExpiredCredentialsError: Its time is over.
            UnavailableError: The provider's keys cannot be had at present.
        """
        ...


class RolePolicy(Protocol):
    """Which roles those have whose credentials do not say it themselves."""

    def roles_of_groups(self, groups: Sequence[str]) -> tuple[Grant, ...]:
        """Return what members of these groups may do, each grant once."""
        ...

    def roles_of_certificate(self, names: Sequence[str]) -> tuple[str, tuple[Grant, ...]]:
        """Return the first name of a client certificate that has roles, and these; "" where none has."""
        ...


@dataclass(frozen=True)
class TlsMaterial:
    """PEM texts of the port: its key, its chain, and whom clients' certificates must come from."""

    key: bytes = field(repr=False)
    certificate_chain: bytes
    client_ca: bytes | None = None


class TlsSource(Protocol):
    """Where certificates come from. May be called by any thread."""

    def material(self) -> TlsMaterial:
        """Return what is in force."""
        ...

    def changed(self) -> bool:
        """Whether something else is in force than when this was called last."""
        ...
