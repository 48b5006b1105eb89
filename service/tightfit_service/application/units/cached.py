"""Running units of work with their results remembered, per project, by the digest of their inputs."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from dataclasses import replace

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
from tightfit_service.application.units.claims import UnitClaimer
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.units.turns import UnitTurns, WhileWaiting
from tightfit_service.application.units.under_way import UnitsUnderWay
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

CLAIM_POLL_SECONDS = 1.0
"""How soon what another server computes is seen here."""


def _quiet(_share: float, _text: str) -> None:
    return


class CachedUnits:
    """Runs units of work, or finds their results remembered. May be shared by several tasks.

    Of those who want the same unit at a time, of this object or of a job's share of it, one has it run,
    and the others wait for the result; where it fails, the next one runs it again. Servers that claim
    their units do the same among each other.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        store: JobStore,
        telemetry: Telemetry,
        claimer: UnitClaimer | None = None,
        turns: UnitTurns | None = None,
        while_waiting: WhileWaiting = nullcontext,
    ) -> None:
        """Keep where units are run and where their results are remembered.

        Args:
            executor: Runs units.
            store: Remembers their results.
            telemetry: Told of units that were run or found.
            claimer: Claims units where other servers have the same store; None where there are none.
            turns: Of whoever else wants units at the same time; nobody does where left out.
            while_waiting: Open while another has a unit run that is wanted here.
        """
        self._executor = executor
        self._store = store
        self._telemetry = telemetry
        self._claimer = claimer
        self._turns = UnitTurns() if turns is None else turns
        self._while_waiting = while_waiting

    def counted_by(self, under_way: UnitsUnderWay) -> CachedUnits:
        """Return a job's share: it takes turns with all others, and its units are counted there."""
        return CachedUnits(
            executor=under_way.counted(self._executor),
            store=self._store,
            telemetry=self._telemetry,
            claimer=self._claimer,
            turns=self._turns,
            while_waiting=under_way.waiting,
        )

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback = _quiet,
        patience_seconds: float = 0.0,
    ) -> WorkResult:
        """Return the remembered result of the unit, or run it and remember what it gave.

        A unit whose worker dies is run again, `MAX_DEATHS` times in all over every job and server that
        wants it; then it is given up, and for a while refused at once, so that nobody can kill worker
        after worker by asking for it. Other failures are not remembered: they may come from a full disk.

        Args:
            unit: What is wanted.
            on_progress: Told of the unit's progress, whoever has it run.
            patience_seconds: How long a result is kept when the store is away or full and cannot take it.

        Raises:
            WorkerDiedError: The worker died each time; says how the last one did.
            TightfitError: What the unit raised, or the store.
        """
        request = _Request(
            unit,
            self._executor,
            self._store,
            self._telemetry,
            claimer=self._claimer,
            while_waiting=self._while_waiting,
        )
        with self._turns.want((unit.project, request.digest), on_progress) as want:
            if (known := await request.look()) is not None:
                return known
            async with want.turn(while_waiting=self._while_waiting) as others_had_theirs:
                if others_had_theirs and (known := await request.look()) is not None:
                    return known
                return await request.computed(want.tell, patience_seconds=patience_seconds)


class _NotHereError(Exception):
    """Ends a unit that was about to begin: it need not, or must not, be run, or another server runs it."""


class _Request:
    """Somebody's wish for what a unit gives."""

    def __init__(
        self,
        unit: WorkUnit,
        executor: Executor,
        store: JobStore,
        telemetry: Telemetry,
        *,
        claimer: UnitClaimer | None,
        while_waiting: WhileWaiting,
    ) -> None:
        self.digest = unit_digest(unit)
        self._unit = unit
        self._executor = executor
        self._store = store
        self._telemetry = telemetry
        self._owner = "" if claimer is None else claimer.owner
        self._claim = None if claimer is None else claimer.claim(unit.project, self.digest)
        self._while_waiting = while_waiting
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
        async with self._claim or nullcontext():
            return await self._computed(on_progress, patience_seconds)

    async def _computed(self, on_progress: ProgressCallback, patience_seconds: float) -> WorkResult:
        while not self._is_settled:
            if self._is_elsewhere:
                await self._wait_for_others(on_progress)
                continue
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

    @property
    def _is_elsewhere(self) -> bool:
        """Whether another server computes the unit."""
        return self._claim is not None and self._known.claimant not in ("", self._owner)

    async def _wait_for_others(self, on_progress: ProgressCallback) -> None:
        """Return when the unit is settled, or the server that had it is done or not heard of any more."""
        on_progress(0.0, f"waiting for {self._known.claimant}, which computes the same")
        with self._while_waiting():
            while self._is_elsewhere and not self._is_settled:
                await asyncio.sleep(CLAIM_POLL_SECONDS)
                await self.look()

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
        """Claim the unit, and look again where what is known may be old; the worker is held meanwhile.

        Raises:
            _NotHereError: There is nothing to run any more, or another server runs it.
        """
        if self._claim is not None:
            await self._take()
        elif asyncio.get_running_loop().time() - self._look_time >= FRESH_SECONDS:
            await self._look_again()
        if self._is_settled or self._is_elsewhere:
            raise _NotHereError
        self._count(hit=False)

    async def _take(self) -> None:
        """Claim the unit, unless it is settled or another server has it."""
        assert self._claim is not None
        is_taken = False
        while not (is_taken or self._is_settled or self._is_elsewhere):
            is_taken = await self._claim.take()
            # what whoever had it before stored last is seen only now
            await self._look_again()

    async def _look_again(self) -> None:
        try:
            await self.look()
        except TightfitError as error:
            # at worst the unit is computed twice, and by its end the store may be back
            log.warning("unit.not_looked_up_again", unit=self._unit.label, error=str(error))

    async def _timed(self, on_progress: ProgressCallback) -> WorkResult | None:
        """Run the unit once; None when it was not to be run here by then."""
        unit = self._unit
        result: WorkResult | None = None
        start, outcome, told = time.perf_counter(), "cancelled", {}
        try:
            with tracing.span("unit", kind=unit.kind, label=unit.label), suppress(_NotHereError):
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
            if not (self._is_settled or self._is_elsewhere):
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
