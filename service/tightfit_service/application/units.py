"""Running units of work with their results remembered, per project, by the digest of their inputs."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from weakref import WeakKeyDictionary

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.patience import patiently
from tightfit_service.application.ports import (
    Executor,
    JobStore,
    ProgressCallback,
    Telemetry,
    UnitRecord,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.unit_kinds import unit_digest
from tightfit_service.application.unit_turns import UnitTurns, WhileWaiting
from tightfit_service.domain.errors import (
    TightfitError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

log = structlog.get_logger(__name__)


MAX_DEATHS = 3
"""Tries of a unit whose worker dies."""

DEATHS_SECONDS = 1_800.0
"""How long a death counts: an operator may have changed what caused it."""

FRESH_SECONDS = 1.0
"""How long what was looked up is taken to hold: a unit that gets a worker within is not looked up again."""

_TURNS: WeakKeyDictionary[JobStore, UnitTurns] = WeakKeyDictionary()
"""By the store, of which a server has one: whoever is given its results shares the work for them."""


def _quiet(_share: float, _text: str) -> None:
    return


class CachedUnits:
    """Runs units of work, or finds their results remembered. May be shared by several tasks.

    Of those who want the same unit at a time, of this object or of others over the same store, one has
    it run, and the others wait for the result; where it fails, the next one runs it again.
    """

    def __init__(self, *, executor: Executor, store: JobStore, telemetry: Telemetry) -> None:
        """Keep where units are run and where their results are remembered."""
        self._executor = executor
        self._store = store
        self._telemetry = telemetry
        self._turns = _TURNS.setdefault(store, UnitTurns())

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback = _quiet,
        patience_seconds: float = 0.0,
        while_waiting: WhileWaiting = nullcontext,
    ) -> WorkResult:
        """Return the remembered result of the unit, or run it and remember what it gave.

        A unit whose worker dies is run again, `MAX_DEATHS` times in all over every job and server that
        wants it; then it is given up, and for a while refused at once, so that nobody can kill worker
        after worker by asking for it. Other failures are not remembered: they may come from a full disk.

        Args:
            unit: What is wanted.
            on_progress: Told of the unit's progress, whoever has it run.
            patience_seconds: How long a result is kept when the store is away or full and cannot take it.
            while_waiting: Open while another has the unit run.

        Raises:
            WorkerDiedError: The worker died each time; says how the last one did.
            TightfitError: What the unit raised, or the store.
        """
        request = _Request(unit, self._executor, self._store, self._telemetry)
        with self._turns.want((unit.project, request.digest), on_progress) as want:
            if (known := await request.look()) is not None:
                return known
            async with want.turn(while_waiting=while_waiting) as others_had_theirs:
                if others_had_theirs and (known := await request.look()) is not None:
                    return known
                return await request.computed(want.tell, patience_seconds=patience_seconds)


class _SettledError(Exception):
    """Ends a unit that was about to begin: it need not, or must not, be run any more."""


class _Request:
    """Somebody's wish for what a unit gives."""

    def __init__(
        self, unit: WorkUnit, executor: Executor, store: JobStore, telemetry: Telemetry
    ) -> None:
        self.digest = unit_digest(unit)
        self._unit = unit
        self._executor = executor
        self._store = store
        self._telemetry = telemetry
        self._known = UnitRecord()
        self._look_time = 0.0
        self._is_counted = False

    async def look(self) -> WorkResult | None:
        """Ask the store what is known of the unit; return the result where that is.

        Raises:
            TightfitError: The store cannot tell.
        """
        self._known = await asyncio.to_thread(
            self._store.unit_record,
            self._unit.project,
            self.digest,
            within_seconds=DEATHS_SECONDS,
        )
        self._look_time = asyncio.get_running_loop().time()
        if self._known.result is not None:
            self._count(hit=True)
        return self._known.result

    async def computed(
        self, on_progress: ProgressCallback, *, patience_seconds: float
    ) -> WorkResult:
        """Return what the unit gives, having it run as often as it takes, and store that.

        Raises:
            WorkerDiedError: The worker died each time.
            TightfitError: What the unit raised, or the store.
        """
        while not self._is_settled:
            try:
                result = await self._timed(on_progress)
            except WorkerDiedError as error:
                await self._note_death(error)
                continue
            if result is not None:
                await self._remember(result, patience_seconds)
                return result
        if self._known.result is not None:
            return self._known.result
        self._count(hit=False)
        raise WorkerDiedError(
            f"given up after {self._known.deaths.count} tries: {self._known.deaths.evidence}",
            remedy="look at the evidence; the same work is refused for "
            f"{DEATHS_SECONDS / 60:.0f} minutes",
        )

    @property
    def _is_settled(self) -> bool:
        """Whether there is nothing to run: the result is known, or the unit was given up."""
        return self._known.result is not None or self._known.deaths.count >= MAX_DEATHS

    async def _remember(self, result: WorkResult, patience_seconds: float) -> None:
        # for a store that is away the caller would run the unit again, which may have taken hours
        await patiently(
            lambda: asyncio.to_thread(
                self._store.store_result, self._unit.project, self.digest, result
            ),
            seconds=patience_seconds,
        )

    async def _note_death(self, error: WorkerDiedError) -> None:
        deaths = await asyncio.to_thread(
            self._store.add_unit_death,
            self._unit.project,
            self.digest,
            str(error),
            within_seconds=DEATHS_SECONDS,
        )
        self._known = UnitRecord(deaths=deaths)
        log.warning("unit.worker_died", unit=self._unit.label, tries=deaths.count, error=str(error))

    async def _begin(self) -> None:
        """Look again where the wait for a worker was long; the worker is held meanwhile.

        Raises:
            _SettledError: There is nothing to run any more.
        """
        if asyncio.get_running_loop().time() - self._look_time >= FRESH_SECONDS:
            try:
                await self.look()
            except TightfitError as error:
                # at worst the unit is computed twice, and by its end the store may be back
                log.warning("unit.not_looked_up_again", unit=self._unit.label, error=str(error))
        if self._is_settled:
            raise _SettledError
        self._count(hit=False)

    async def _timed(self, on_progress: ProgressCallback) -> WorkResult | None:
        """Run the unit once; None when it was settled before it began."""
        unit = self._unit
        result: WorkResult | None = None
        start, outcome, told = time.perf_counter(), "cancelled", {}
        try:
            with tracing.span("unit", kind=unit.kind, label=unit.label), suppress(_SettledError):
                traced = replace(unit, trace_parent=tracing.current())
                result = await self._executor.run(
                    traced, on_progress=on_progress, on_begin=self._begin
                )
            outcome = "ok"
        except (WorkFailedError, UnavailableError) as error:
            outcome, told = "failed", {"error": str(error)}
            raise
        except TightfitError:
            outcome = "refused"
            raise
        finally:
            if not self._is_settled:
                seconds = time.perf_counter() - start
                self._telemetry.unit_finished(unit.kind, outcome, seconds)
                log.info(
                    f"unit.{outcome}",
                    kind=unit.kind,
                    unit=unit.label,
                    seconds=round(seconds, 3),
                    **told,
                )
        return result

    def _count(self, *, hit: bool) -> None:
        if not self._is_counted:
            self._is_counted = True
            self._telemetry.cache_lookup(hit=hit)
