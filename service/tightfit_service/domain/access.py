"""Who calls, in which roles, and what an API key is."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tightfit_service.domain.errors import InvalidCredentialsError, PermissionDeniedError

ALL_PROJECTS = "*"
"""In a grant: every project, those to come included. No project has this name."""


class Role(StrEnum):
    """What may be done in a project."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"
    RUNNER = "runner"

    @property
    def included(self) -> frozenset[Role]:
        """The role itself and those that it includes."""
        return _INCLUDED[self]


_INCLUDED: Mapping[Role, frozenset[Role]] = {
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.SUBMITTER: frozenset({Role.SUBMITTER, Role.VIEWER}),
    Role.ADMIN: frozenset(Role),
    # A device stands where others can open it: its credentials open nothing but what it measures.
    Role.RUNNER: frozenset({Role.RUNNER}),
}


@dataclass(frozen=True, order=True)
class Grant:
    """A role in a project, or in ALL_PROJECTS."""

    project: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Somebody who calls.

    Attributes:
        name: `key:ID`, `oidc:SUBJECT`, `certificate:NAME` or `anonymous`; safe to log.
        grants: What may be done where.
        expire_time: When the credentials end; None where they do not.
    """

    name: str
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None

    def has(self, roles: Collection[Role], project: str) -> bool:
        """Whether one of the roles, or one that includes it, is granted in the project."""
        return any(
            grant.project in (project, ALL_PROJECTS) and not grant.role.included.isdisjoint(roles)
            for grant in self.grants
        )

    def has_anywhere(self, roles: Collection[Role]) -> bool:
        """Whether one of the roles, or one that includes it, is granted in any project."""
        return any(not grant.role.included.isdisjoint(roles) for grant in self.grants)

    def require(self, roles: Collection[Role], projects: Collection[str]) -> None:
        """Check that the roles suffice in all of the projects, or, where there are none, in any.

        Raises:
            PermissionDeniedError: They do not. The message is the same whether a project exists or not.
        """
        lacking = [project for project in projects if not self.has(roles, project)]
        if not lacking and (projects or self.has_anywhere(roles)):
            return
        names = " or ".join(sorted(roles))
        where = "any project" if not projects else _spelled(lacking[0])
        raise PermissionDeniedError(
            f"{self.name} is not {names} of {where}",
            remedy=f"ask an admin of {where} for the role {min(roles, key=_rank)}",
        )


ANONYMOUS = Principal(name="anonymous", grants=(Grant(ALL_PROJECTS, Role.ADMIN),))
"""Everybody, on a server that asks nobody who he is."""


def _spelled(project: str) -> str:
    return "all projects" if project == ALL_PROJECTS else f"project {project[:200]!r}"


def _rank(role: Role) -> int:
    return len(role.included)


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A credential as it is stored: with a hash in place of the secret."""

    key_id: str
    secret_hash: str
    display_name: str
    grants: tuple[Grant, ...]
    creator: str
    create_time: datetime
    expire_time: datetime | None = None
    revoke_time: datetime | None = None
    last_use_time: datetime | None = None

    @property
    def principal(self) -> Principal:
        """Who calls with this key."""
        return Principal(
            name=f"key:{self.key_id}", grants=self.grants, expire_time=self.expire_time
        )

    def accepts(self, secret: str) -> bool:
        """Whether it is the secret of this key; takes the same time for every wrong one."""
        return hmac.compare_digest(hash_secret(secret), self.secret_hash)


TOKEN_PREFIX = "tf_"  # noqa: S105  # a mark by which scanners of repositories find leaked tokens
_TOKEN = re.compile(r"tf_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


def new_token() -> tuple[str, str, str]:
    """Return a fresh token `tf_<id>_<secret>`, and its id and secret; the secret has 256 random bits."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"{TOKEN_PREFIX}{key_id}_{secret}", key_id, secret


def split_token(token: str) -> tuple[str, str]:
    """Return id and secret of a token.

    Raises:
        InvalidCredentialsError: It is no API key. The message does not repeat it.
    """
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise InvalidCredentialsError(
            "the token is not an API key",
            remedy="send it whole, as `tightfit auth create` showed it",
        )
    return match[1], match[2]


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a secret in hexadecimal.

    A slow, salted hash protects what people choose, which is guessed from lists. Among 2^256 random
    secrets there is nothing to guess, so that one fast hash is as good and cannot be used to wear the
    server out.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
