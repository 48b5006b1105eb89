"""Running units of work with their results remembered, per project, by the digest of their inputs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.patience import patiently
from tightfit_service.application.ports import (
    Executor,
    JobStore,
    ProgressCallback,
    Telemetry,
    UnitDeaths,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.unit_kinds import unit_digest
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


def _quiet(_share: float, _text: str) -> None:
    return


class CachedUnits:
    """Runs units of work, or finds their results remembered. May be shared by several tasks."""

    def __init__(self, *, executor: Executor, store: JobStore, telemetry: Telemetry) -> None:
        """Keep where units are run and where their results are remembered."""
        self._executor = executor
        self._store = store
        self._telemetry = telemetry

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
        after worker by asking for it. Other failures are not remembered: they may come from a full
        disk. A result is kept for `patience_seconds` when the store is away or full and cannot take it.

        Raises:
            WorkerDiedError: The worker died each time; says how the last one did.
            TightfitError: What the unit raised, or the store.
        """
        digest = unit_digest(unit)
        known = await asyncio.to_thread(
            self._store.unit_record, unit.project, digest, within_seconds=DEATHS_SECONDS
        )
        self._telemetry.cache_lookup(hit=known.result is not None)
        if known.result is not None:
            return known.result
        result = await self._survived(unit, digest, known.deaths, on_progress)
        # for a store that is away the caller would run the unit again, which may have taken hours
        await patiently(
            lambda: asyncio.to_thread(self._store.store_result, unit.project, digest, result),
            seconds=patience_seconds,
        )
        return result

    async def _survived(
        self, unit: WorkUnit, digest: str, deaths: UnitDeaths, on_progress: ProgressCallback
    ) -> WorkResult:
        while deaths.count < MAX_DEATHS:
            try:
                return await self._timed(unit, on_progress)
            except WorkerDiedError as error:
                deaths = await asyncio.to_thread(
                    self._store.add_unit_death,
                    unit.project,
                    digest,
                    str(error),
                    within_seconds=DEATHS_SECONDS,
                )
                log.warning(
                    "unit.worker_died", unit=unit.label, tries=deaths.count, error=str(error)
                )
        raise WorkerDiedError(
            f"given up after {deaths.count} tries: {deaths.evidence}",
            remedy="look at the evidence; the same work is refused for "
            f"{DEATHS_SECONDS / 60:.0f} minutes",
        )

    async def _timed(self, unit: WorkUnit, on_progress: ProgressCallback) -> WorkResult:
        start, outcome, told = time.perf_counter(), "cancelled", {}
        try:
            with tracing.span("unit", kind=unit.kind, label=unit.label):
                traced = replace(unit, trace_parent=tracing.current())
                result = await self._executor.run(traced, on_progress=on_progress)
            outcome = "ok"
        except (WorkFailedError, UnavailableError) as error:
            outcome, told = "failed", {"error": str(error)}
            raise
        except TightfitError:
            outcome = "refused"
            raise
        finally:
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
