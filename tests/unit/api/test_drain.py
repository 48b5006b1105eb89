"""Guarded streams pass everything on, end with their source, and end when the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tightfit_service.api.drain import Drain
from tightfit_service.domain.errors import NotFoundError, UnavailableError


async def _count(last: int) -> AsyncIterator[int]:
    for number in range(last):
        yield number


async def test_passes_everything_on() -> None:
    assert [number async for number in Drain().guard(_count(5))] == [0, 1, 2, 3, 4]


async def test_passes_errors_on() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        _ = [number async for number in Drain().guard(failing())]


async def test_ends_a_stream_that_waits() -> None:
    drain = Drain()
    closed = asyncio.Event()

    async def silent() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            closed.set()

    async def consume() -> None:
        _ = [number async for number in drain.guard(silent())]

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0)
    drain.begin()

    with pytest.raises(UnavailableError) as caught:
        await consumer
    assert caught.value.remedy
    assert closed.is_set()


async def test_refuses_new_streams_while_draining() -> None:
    drain = Drain()
    drain.begin()
    await asyncio.sleep(0)

    async def silent() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    with pytest.raises(UnavailableError):
        _ = [number async for number in drain.guard(silent())]


async def test_a_consumer_that_leaves_closes_the_source() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    source: Any = endless()
    guarded: Any = Drain().guard(source)
    async with aclosing(source), aclosing(guarded) as stream:
        async for _ in stream:
            break

    assert closed.is_set()
