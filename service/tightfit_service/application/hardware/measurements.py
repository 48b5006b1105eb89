"""Verification on devices: measured once per file, held against the estimate, and never in a job's way."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace

import structlog

from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    DeviceMeasurer,
    JobStore,
    MeasurementOrder,
    NoteCallback,
    RunnerTelemetry,
    WorkResult,
    no_notes,
)
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import MeasurementFailedError, NoRunnerError
from tightfit_service.domain.measurement import Measurement, Verification

log = structlog.get_logger(__name__)

MEASUREMENT_VERSION = 1
"""Raised when what is asked of runners changes so that older measurements do not compare."""
REQUIRED_WAIT_SECONDS = 600.0
"""For which a job that requires verification waits for a runner of its target to connect."""


@dataclass(frozen=True, kw_only=True)
class VerificationOutcome:
    """What verification brought: a measurement, or why there is none."""

    measurement: Measurement | None
    note: str
    """For the user: what was measured where, or why it was not."""
    error: NoRunnerError | MeasurementFailedError | None = None


class DeviceMeasurements:
    """Measures exported files for jobs.

    What was measured is remembered by the digest of file, target and order, as units of work are: a job
    that starts again after a restart does not measure again. Measurements that did not settle are not
    remembered, so that the next job gets a better one.
    """

    def __init__(
        self, *, measurer: DeviceMeasurer, results: JobStore, telemetry: RunnerTelemetry
    ) -> None:
        self._measurer = measurer
        self._results = results
        self._telemetry = telemetry

    async def measure(
        self,
        order: MeasurementOrder,
        *,
        estimate: CostEstimate | None = None,
        on_note: NoteCallback = no_notes,
    ) -> Measurement:
        """Return what a device measured of a file, now or before.

        Args:
            order: What to measure, for which target and job.
            estimate: What the emulator says of the same file; the residual is counted.
            on_note: Learns what a user who waits wants to know.

        Raises:
            NoRunnerError: No runner of the target is connected, and none came in time.
            MeasurementFailedError: Runners tried and could not.
        """
        digest = order_digest(order)
        known = await asyncio.to_thread(self._results.cached_result, order.project, digest)
        if known is not None:
            return from_plain(Measurement, known.payload)
        measurement = await self._measurer.measure(order, on_note=on_note)
        if estimate is not None:
            self._count_residuals(order, measurement, estimate)
        if measurement.settled:
            result = WorkResult(payload=to_plain(measurement))
            await asyncio.to_thread(self._results.store_result, order.project, digest, result)
        return measurement

    async def verify(
        self,
        order: MeasurementOrder,
        policy: Verification,
        *,
        estimate: CostEstimate | None = None,
        on_note: NoteCallback = no_notes,
    ) -> VerificationOutcome:
        """Measure as far as the policy asks; what fails is told in the outcome and not raised.

        With REQUIRED the caller must not take an outcome without a measurement for a fit.
        """
        if policy is Verification.NONE:
            return VerificationOutcome(measurement=None, note="")
        if policy is Verification.REQUIRED:
            order = replace(order, wait_seconds=max(order.wait_seconds, REQUIRED_WAIT_SECONDS))
        try:
            measurement = await self.measure(order, estimate=estimate, on_note=on_note)
        except (NoRunnerError, MeasurementFailedError) as error:
            log.info("not verified on a device", target=order.target.name, reason=error.message)
            return VerificationOutcome(
                measurement=None,
                note=f"not measured, the figures are estimates: {error.message}",
                error=error,
            )
        return VerificationOutcome(measurement=measurement, note=measurement.summary)

    def _count_residuals(
        self, order: MeasurementOrder, measurement: Measurement, estimate: CostEstimate
    ) -> None:
        energy = measurement.energy
        pairs = (
            ("latency", measurement.measured_latency_ms_p50, estimate.latency_ms.value),
            ("energy", None if energy is None else energy.energy_mj, estimate.energy_mj.value),
        )
        for quantity, measured, estimated in pairs:
            if measured is not None and estimated > 0:
                self._telemetry.measurement_residual(
                    order.target.name, quantity, measured / estimated
                )


def order_digest(order: MeasurementOrder) -> str:
    """Return the identity of a measurement: file, format, target and runtime, labels, effort, occasion."""
    identity = {
        "version": MEASUREMENT_VERSION,
        "kind": "measure",
        "project": order.project,
        "artifact": order.artifact_digest,
        "format": str(order.format),
        "target": to_plain(order.target),
        "labels": dict(order.labels),
        "runner": order.runner_id,
        "min_run_count": order.min_run_count,
        "min_seconds": order.min_seconds,
    }
    # only where there are any, so that what was measured without keeps its digest
    if order.occasion:
        identity["occasion"] = order.occasion
    if order.wants_operators:
        identity["operators"] = True
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
