"""The stages of a running job: units of work run with their progress told and outages waited out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tightfit_service.application.patience import PATIENCE_SECONDS, patiently
from tightfit_service.application.ports import (
    NoteCallback,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.units.kinds import OutcomeT, TaskT, UnitKind
from tightfit_service.domain.job import JobEventKind

PROGRESS_SECONDS = 2.0
"""A long unit writes its progress this often; each event is a row in the database."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Shares of the whole job, from 0 to 1, at which the present stage begins and ends."""

    begin: float = 0.0
    end: float = 0.0

    def at(self, share: float) -> float:
        return self.begin + share * (self.end - self.begin)


class Stages:
    """Tells where a job stands, and runs its units. Used by the task that owns the job."""

    def __init__(self, journal: JobJournal, units: CachedUnits) -> None:
        self._journal = journal
        self._units = units
        self._span = _Span()

    async def enter(self, stage: str, message: str, *, begin: float, end: float) -> None:
        """Begin a stage that takes the job from one share done to another."""
        self._span = _Span(begin=begin, end=end)
        await self._journal.event(JobEventKind.STAGE, message, stage=stage, fraction=begin)

    async def ask(
        self, kind: UnitKind[TaskT, OutcomeT], task: TaskT, inputs: Mapping[str, str]
    ) -> OutcomeT:
        """Run a unit of the job, as `run` does, and return its outcome; `inputs` are digests by name."""
        job = self._journal.job
        unit = kind.unit(
            task, project=job.project, inputs=inputs, label=f"{job.job_id} {kind.name}"
        )
        return kind.outcome(await self.run(unit))

    async def run(self, unit: WorkUnit) -> WorkResult:
        """Run a unit, or find its result remembered; a store that is away is waited for.

        Raises:
            TightfitError: What the unit raised, or UnavailableError when the store does not come back.
        """
        return await patiently(lambda: self._run(unit))

    async def _run(self, unit: WorkUnit) -> WorkResult:
        latest: list[tuple[float, str]] = []

        def report(share: float, text: str) -> None:
            latest[:] = [(share, text)]

        teller = asyncio.create_task(self._tell(latest))
        try:
            return await self._units.run(
                unit, on_progress=report, patience_seconds=PATIENCE_SECONDS
            )
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)

    async def told(self, work: Callable[[NoteCallback], Awaitable[T]]) -> T:
        """Await something that says what it waits for, and tell it to those who watch the job."""
        notes: asyncio.Queue[str] = asyncio.Queue()

        async def tell() -> None:
            while True:
                await self._journal.event(
                    JobEventKind.PROGRESS, await notes.get(), fraction=self._span.at(1.0)
                )

        teller = asyncio.create_task(tell())
        try:
            return await work(notes.put_nowait)
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)

    async def _tell(self, latest: list[tuple[float, str]]) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if latest:
                share, text = latest.pop()
                await self._journal.event(
                    JobEventKind.PROGRESS, f"{text} ({share:.0%})", fraction=self._span.at(share)
                )
