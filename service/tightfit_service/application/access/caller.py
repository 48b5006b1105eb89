"""Who the present request is from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tightfit_service.domain.access import ANONYMOUS, Principal

_CALLER: ContextVar[Principal] = ContextVar("tightfit_caller", default=ANONYMOUS)


def caller() -> Principal:
    """Return who the present request is from; ANONYMOUS outside of requests."""
    return _CALLER.get()


@contextmanager
def calling(principal: Principal) -> Iterator[None]:
    """Make a principal the caller within the block, in threads and tasks started from it too."""
    token = _CALLER.set(principal)
    try:
        yield
    finally:
        _CALLER.reset(token)
