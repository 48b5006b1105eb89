"""Roles of groups and of client certificates, from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tightfit_service.adapters.access.watched_files import LOOK_SECONDS, WatchedFiles, read_bytes
from tightfit_service.domain.access import Grant, Role
from tightfit_service.domain.errors import InvalidRequestError

FIELD = "access_policy_file"
SECTIONS = ("groups", "certificates")

Roles = Mapping[str, tuple[Grant, ...]]


@dataclass(frozen=True)
class Policy:
    """Who has which roles."""

    groups: Roles = field(default_factory=dict)
    certificates: Roles = field(default_factory=dict)


class EmptyPolicy:
    """Implements `RolePolicy` where there is no file: nobody has roles by it."""

    def roles_of_groups(self, groups: Sequence[str]) -> tuple[Grant, ...]:
        """See `RolePolicy`."""
        del groups
        return ()

    def roles_of_certificate(self, names: Sequence[str]) -> tuple[str, tuple[Grant, ...]]:
        """See `RolePolicy`."""
        del names
        return "", ()


class PolicyFile:
    """Implements `RolePolicy`; read again when the file changes.

    Args:
        path: YAML of two sections, both optional, each of names with a role per project, `*` for all:
            `groups: {ml-platform: {"*": admin}}`, `certificates: {ci.example.com: {vision: submitter}}`.
        look_seconds: How often the file is looked at.

    Raises:
        InvalidRequestError: It cannot be read, or says what means nothing.
    """

    def __init__(self, path: Path, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._file = WatchedFiles([path], lambda: read_policy(path), look_seconds=look_seconds)

    def roles_of_groups(self, groups: Sequence[str]) -> tuple[Grant, ...]:
        """See `RolePolicy`."""
        known = self._file.value().groups
        return tuple(sorted({grant for group in groups for grant in known.get(group, ())}))

    def roles_of_certificate(self, names: Sequence[str]) -> tuple[str, tuple[Grant, ...]]:
        """See `RolePolicy`."""
        known = self._file.value().certificates
        return next(((name, known[name]) for name in names if name in known), ("", ()))


def read_policy(path: Path) -> Policy:
    """Return what a policy file says.

    Raises:
        InvalidRequestError: It cannot be read, or says what means nothing.
    """
    try:
        content = yaml.safe_load(read_bytes(path, field=FIELD)) or {}
    except yaml.YAMLError as error:
        raise _bad(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or not set(content) <= set(SECTIONS):
        raise _bad(f"{path} has other sections than {' and '.join(SECTIONS)}")
    return Policy(**{name: _roles(path, name, content.get(name) or {}) for name in SECTIONS})


def _roles(path: Path, section: str, content: Any) -> Roles:
    if not isinstance(content, dict):
        raise _bad(f"{path}: {section} is no mapping of names")
    return {str(name): _grants(path, f"{section}.{name}", given) for name, given in content.items()}


def _grants(path: Path, place: str, given: Any) -> tuple[Grant, ...]:
    if not isinstance(given, dict) or not given:
        raise _bad(f"{path}: {place} has no mapping of projects to roles")
    grants = []
    for project, role in given.items():
        if role not in set(Role):
            raise _bad(f"{path}: {place}.{project} is {role!r}, not one of {', '.join(Role)}")
        grants.append(Grant(str(project), Role(role)))
    return tuple(grants)


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(
        message, field=FIELD, remedy="write `groups: {NAME: {PROJECT: ROLE}}`; docs/security.md"
    )
