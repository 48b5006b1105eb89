"""Failures of a database as errors of the domain, and what is worth repeating at once."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from tightfit_service.domain.errors import (
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.01

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class ConflictError(UnavailableError):
    """Transactions got into each other's way, and PostgreSQL ended this one."""


_AGAIN = "try again in a moment"

_MEANINGS: tuple[tuple[type[TightfitError], tuple[str, ...], str, str], ...] = (
    (
        ResourceExhaustedError,
        ("SQLITE_FULL", "53100", "53200"),
        "the database has no room left",
        "free disk space or delete jobs, models and datasets",
    ),
    # serialization failure and deadlock: the transaction was ended, and the next may succeed
    (ConflictError, ("40001", "40P01"), "another transaction was in the way", _AGAIN),
    (
        UnavailableError,
        ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03"),
        "the database is locked",
        _AGAIN,
    ),
    (
        UnavailableError,
        ("SQLITE_CORRUPT", "SQLITE_NOTADB"),
        "the database file is damaged",
        "restore the data folder from a backup",
    ),
    (
        UnavailableError,
        ("25006",),
        "the database takes no writes at present: it is a standby",
        "try again after the failover, or give the URL of the primary",
    ),
)
"""Names of SQLite's result codes, and states of PostgreSQL's appendix A, "PostgreSQL Error Codes"."""


def translated(error: DBAPIError) -> TightfitError | None:
    """Return the error of the domain for a failure of the database, None for a fault of ours."""
    cause: Any = error.orig
    code = str(getattr(cause, "sqlite_errorname", "") or getattr(cause, "sqlstate", "") or "")
    for kind, codes, message, remedy in _MEANINGS:
        if code and code.startswith(codes):
            return kind(message, remedy=remedy)
    if error.connection_invalidated or isinstance(error, OperationalError):
        return UnavailableError(
            "the database cannot be used at present",
            remedy="try again; check the server's log and its data folder",
        )
    return None


def repeated(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a transaction again that lost against another one: a deadlock, or a row inserted first.

    SQLite's writers queue and never get there; those of PostgreSQL do.
    """

    @functools.wraps(method)
    def repeat(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        pause = FIRST_PAUSE_SECONDS
        for _ in range(ATTEMPTS - 1):
            try:
                return method(*args, **kwargs)
            except (ConflictError, IntegrityError):
                # chance keeps two that collided from colliding again
                time.sleep(random.uniform(0.0, pause))  # noqa: S311  # no secret depends on it
                pause *= 2
        return method(*args, **kwargs)

    return repeat
