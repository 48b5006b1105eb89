"""Waiting for a store that is away: an outage of minutes must not cost a job of hours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from tightfit_service.domain.errors import (
    NoRunnerError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 900.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0

Result = TypeVar("Result")


async def patiently(
    attempt: Callable[[], Awaitable[Result]], *, seconds: float = PATIENCE_SECONDS
) -> Result:
    """Return what the attempt gives, repeated while the store is away or full; must be idempotent.

    Args:
        attempt: One try.
        seconds: How long to go on trying.

    Raises:
        TightfitError: Any other error at once; that of the last attempt when the time is over.
    """
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return await attempt()
        except (UnavailableError, ResourceExhaustedError) as error:
            if not _may_pass(error) or loop.time() + pause > end:
                raise
            log.warning("store.waited_for", error=str(error), pause_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _may_pass(error: TightfitError) -> bool:
    return not isinstance(error, NoRunnerError)
