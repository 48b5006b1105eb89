"""Running units of work with their results remembered, per project, by the digest of their inputs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from tightfit_service.application import tracing
from tightfit_service.application.ports import (
    Executor,
    JobStore,
    ProgressCallback,
    Telemetry,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.work import unit_digest
from tightfit_service.domain.errors import TightfitError, UnavailableError, WorkFailedError

log = structlog.get_logger(__name__)


def _quiet(_share: float, _text: str) -> None:
    return


async def run_cached(
    unit: WorkUnit,
    *,
    executor: Executor,
    store: JobStore,
    telemetry: Telemetry,
    on_progress: ProgressCallback = _quiet,
) -> WorkResult:
    """Return the remembered result of the unit, or run it and remember what it gave.

    Failures are not remembered: they may come from a full disk or a killed worker.
    """
    digest = unit_digest(unit)
    remembered = await asyncio.to_thread(store.cached_result, unit.project, digest)
    telemetry.cache_lookup(hit=remembered is not None)
    if remembered is not None:
        return remembered
    result = await _timed(unit, executor, telemetry, on_progress)
    await asyncio.to_thread(store.store_result, unit.project, digest, result)
    return result


async def _timed(
    unit: WorkUnit, executor: Executor, telemetry: Telemetry, on_progress: ProgressCallback
) -> WorkResult:
    start, outcome = time.perf_counter(), "cancelled"
    try:
        with tracing.span("unit", kind=unit.kind, label=unit.label):
            traced = replace(unit, trace_parent=tracing.current())
            result = await executor.run(traced, on_progress=on_progress)
        outcome = "ok"
    except (WorkFailedError, UnavailableError):
        outcome = "failed"
        raise
    except TightfitError:
        outcome = "refused"
        raise
    finally:
        seconds = time.perf_counter() - start
        telemetry.unit_finished(unit.kind, outcome, seconds)
        log.info(f"unit.{outcome}", kind=unit.kind, unit=unit.label, seconds=round(seconds, 3))
    return result
