"""What a user of a job's result should know: gathered while it runs, told as events at once."""

from __future__ import annotations

from collections.abc import Iterable

from tightfit_service.application.scheduling.journal import JobJournal
from tightfit_service.domain.job import JobEventKind, PreflightNote


class JobNotes:
    """The notes of one life of a job."""

    def __init__(self, journal: JobJournal) -> None:
        self._journal = journal
        self._notes: list[PreflightNote] = []

    @property
    def all(self) -> tuple[PreflightNote, ...]:
        """The notes in the order they were made."""
        return tuple(self._notes)

    async def add(self, code: str, message: str, *, node: str = "") -> None:
        """Keep a note and tell it."""
        await self.extend([PreflightNote(code=code, message=message, node=node)])

    async def extend(self, notes: Iterable[PreflightNote], *, stage: str = "") -> None:
        """Keep several notes and tell them."""
        for note in notes:
            self._notes.append(note)
            await self._journal.event(JobEventKind.NOTE, note.message, stage=stage)
