"""The end of service: long streams are told to come back instead of holding up the shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from tightfit_service.api.guarded_stream import until
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
        ending = asyncio.ensure_future(self._ending())
        try:
            async with aclosing(until(stream, ending)) as items:  # type: ignore[type-var]  # a generator, typed as an iterator
                async for item in items:
                    yield item
        finally:
            ending.cancel()

    async def _ending(self) -> Exception:
        await self.begun()
        return UnavailableError(
            "the server is shutting down",
            remedy="ask again in a moment; watches resume after the last sequence number",
        )
