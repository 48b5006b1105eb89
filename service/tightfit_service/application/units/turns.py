"""Whose turn it is at a unit of work that several want at the same time: one has it run, the others wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Hashable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

from tightfit_service.application.ports import ProgressCallback

WhileWaiting = Callable[[], AbstractContextManager[None]]
"""Opens what is held while somebody waits for their turn."""


@dataclass(eq=False)
class _WantedUnit:
    """A unit that somebody wants now."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    listeners: list[ProgressCallback] = field(default_factory=list)
    turns_ended: int = 0


class Want:
    """Somebody's want of a unit."""

    def __init__(self, unit: _WantedUnit) -> None:
        self._unit = unit
        self._turns_ended_before = unit.turns_ended

    def tell(self, share: float, text: str) -> None:
        """Tell the unit's progress to all who want it."""
        for listener in tuple(self._unit.listeners):
            listener(share, text)

    @asynccontextmanager
    async def turn(
        self, *, while_waiting: WhileWaiting = nullcontext
    ) -> AsyncGenerator[bool, None]:
        """Wait for the turn at the unit, and have it until the block ends.

        Args:
            while_waiting: Opened while somebody else has theirs.

        Yields:
            Whether others had theirs since this want began, and may have left a result.
        """
        unit = self._unit
        with while_waiting() if unit.lock.locked() else nullcontext():
            await unit.lock.acquire()
        try:
            yield unit.turns_ended > self._turns_ended_before
        finally:
            unit.turns_ended += 1
            unit.lock.release()


class UnitTurns:
    """Gives turns in the order in which they are asked for. Lives on one event loop.

    Who waits holds nothing that others need, and who ends, be it by an error or cancelled, leaves the
    turn to the next: so nobody's end is another's.
    """

    def __init__(self) -> None:
        self._units: dict[Hashable, _WantedUnit] = {}

    @contextmanager
    def want(self, key: Hashable, on_progress: ProgressCallback) -> Generator[Want, None, None]:
        """Want the unit that `key` names until the block ends, and be told of its progress."""
        unit = self._units.setdefault(key, _WantedUnit())
        unit.listeners.append(on_progress)
        try:
            yield Want(unit)
        finally:
            unit.listeners.remove(on_progress)
            if not unit.listeners:
                del self._units[key]
