"""Deadlines of the server's own, for calls that come without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from tightfit_service.domain.errors import DeadlineExceededError

T = TypeVar("T")

FIRST_MESSAGE_SECONDS = 60.0
"""Within which the first message of a stream must arrive; until then nobody knows whose stream it is."""


class Deadline:
    """A moment after which a call is ended; it begins to run when it is made.

    Attributes:
        seconds: How long the call may take; 0 for as long as it likes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds if seconds else None

    async def of(self, work: Awaitable[T]) -> T:
        """Return what the work returns.

        Raises:
            DeadlineExceededError: It took too long, and was cancelled.
        """
        timeout = asyncio.timeout_at(self._end)
        try:
            async with timeout:
                return await work
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceededError(
                f"the call was ended after {self.seconds:g} s, the deadline of calls without one",
                field="default_deadline_seconds",
                remedy="set a deadline of your own, or ask for less at a time",
            ) from error

    async def over(self, stream: Any) -> AsyncIterator[Any]:
        """Yield what the stream yields; only the time that the server takes counts, up to the deadline.

        Raises:
            DeadlineExceededError: The stream was not at its end in time.
        """
        async with aclosing(stream) as items:
            while True:
                try:
                    item = await self.of(anext(items))
                except StopAsyncIteration:
                    return
                yield item
