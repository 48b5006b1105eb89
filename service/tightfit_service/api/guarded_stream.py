"""Streams that something else may end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


async def until(stream: AsyncIterator[T], ending: asyncio.Future[Exception]) -> AsyncIterator[T]:
    """Yield what the stream yields until it ends, or raise what `ending` holds as soon as it does.

    The stream is at rest when this returns, so that its owner can close it.
    """
    step: asyncio.Future[tuple[T, ...]] | None = None
    try:
        while True:
            step = asyncio.ensure_future(_next(stream))
            either: set[asyncio.Future[Any]] = {step, ending}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise ending.result()
            item = step.result()
            if not item:
                return
            yield item[0]
    finally:
        if step is not None and not step.done():
            step.cancel()
            await asyncio.wait({step})


async def _next(stream: AsyncIterator[T]) -> tuple[T, ...]:
    """Return the next item, or nothing at the end: futures cannot hold StopAsyncIteration safely."""
    async for item in stream:
        return (item,)
    return ()
