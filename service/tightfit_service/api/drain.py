"""The end of service: long streams are told to come back instead of holding up the shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from tightfit_service.domain.errors import UnavailableError

T = TypeVar("T")


class Drain:
    """Tells streams when the server begins to shut down. Lives on one event loop."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def begin(self) -> None:
        """End all guarded streams from now on."""
        self._begun.set()

    async def begun(self) -> None:
        """Return when the server begins to shut down."""
        await self._begun.wait()

    async def guard(self, stream: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield what the stream yields until it ends.

        Raises:
            UnavailableError: The server began to shut down first.
        """
        begun = asyncio.ensure_future(self.begun())
        step: asyncio.Future[tuple[T, ...]] | None = None
        try:
            while True:
                step = asyncio.ensure_future(_next(stream))
                await asyncio.wait({step, begun}, return_when=asyncio.FIRST_COMPLETED)
                if begun.done():
                    raise UnavailableError(
                        "the server is shutting down",
                        remedy="ask again in a moment; watches resume after the last sequence number",
                    )
                item = step.result()
                if not item:
                    return
                yield item[0]
        finally:
            begun.cancel()
            if step is not None and not step.done():
                step.cancel()
                # The stream must be at rest before its owner closes it.
                await asyncio.wait({step})


async def _next(stream: AsyncIterator[T]) -> tuple[T, ...]:
    """Return the next item, or nothing at the end: futures cannot hold StopAsyncIteration safely."""
    async for item in stream:
        return (item,)
    return ()
