"""Measuring on real devices: what is asked of runners, and where they are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.measurement import Measurement

NoteCallback = Callable[[str], None]


def no_notes(_note: str) -> None:
    """Take a note and forget it."""


@dataclass(frozen=True, kw_only=True)
class MeasurementOrder:
    """One model file to be measured for one target.

    Attributes:
        job_id: Whom the time of the device is charged to; the queue is fair between jobs.
        artifact_digest: Digest of the model file in the artifact store.
        macs: Multiply-accumulates of one inference; 0 where unknown.
        labels: That a runner must carry.
        runner_id: The only runner that may measure it; any of the target where empty.
        min_run_count: Least number of inferences to measure.
        min_seconds: Least time to measure for.
        timeout_seconds: After which a runner gives up on the file.
        wait_seconds: How long to wait for a runner of the target while none is connected.
        occasion: What it is measured for; measurements of another occasion are not taken for it.
        wants_operators: Whether to ask besides what each operator takes.
    """

    project: str
    job_id: str
    artifact_digest: str
    format: ModelFormat
    target: HardwareSpec
    macs: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    runner_id: str = ""
    min_run_count: int = 100
    min_seconds: float = 3.0
    timeout_seconds: float = 300.0
    wait_seconds: float = 0.0
    occasion: str = ""
    wants_operators: bool = False


class DeviceMeasurer(Protocol):
    """Measures model files on real devices. Belongs to one event loop."""

    async def measure(
        self, order: MeasurementOrder, *, on_note: NoteCallback = no_notes
    ) -> Measurement:
        """Return what a device measured; cancelling the awaiting task frees the device.

        `on_note` learns what a user who waits wants to know: the place in the queue, a retry.

        Raises:
            NoRunnerError: No runner of the target is connected, and none came in time.
            MeasurementFailedError: Runners tried and could not; says which and why.
        """
        ...


class RunnerTelemetry(Protocol):
    """Where measuring on devices is counted."""

    def runner_states(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Report how many runners there are now, by state and target; what is not named is zero."""
        ...

    def measurement_finished(self, target: str, outcome: str) -> None:
        """Report the end of an attempt: `measured`, or the kind of the failure."""
        ...

    def measurement_waited(self, seconds: float) -> None:
        """Report how long an order waited in the queue before a runner was offered it."""
        ...

    def measurement_residual(self, target: str, quantity: str, ratio: float) -> None:
        """Report what was measured divided by what was estimated."""
        ...
