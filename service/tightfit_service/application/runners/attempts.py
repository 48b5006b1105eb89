"""An order on its way to a measurement: who tried it, who may try it next, and why nobody could."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tightfit_service.application.ports import MeasurementOrder, NoteCallback
from tightfit_service.application.runners.fair_queue import Charge
from tightfit_service.application.runners.sessions import RunnerSession
from tightfit_service.domain.errors import MeasurementFailedError, NoRunnerError
from tightfit_service.domain.measurement import FailureKind, Measurement

MAX_ATTEMPTS = 3
NAMED_RUNNERS = 5
"""Of those that are there and cannot measure, in the message that there is nobody."""

MODEL_CAUSED = frozenset(
    {
        FailureKind.UNSUPPORTED_MODEL,
        FailureKind.CRASHED,
        FailureKind.TIMED_OUT,
        FailureKind.OUT_OF_MEMORY,
    }
)
"""Failures that the same runner would repeat."""


@dataclass(eq=False, kw_only=True)
class PendingOrder:
    """An order until it is done."""

    order: MeasurementOrder
    on_note: NoteCallback
    done: asyncio.Future[Measurement]
    since: float
    """When it began to wait for its present attempt."""
    failures: list[str] = field(default_factory=list)
    avoided: set[str] = field(default_factory=set)
    """Runners that would fail again."""
    lonely_since: float | None = None
    """Since when no runner could take it."""

    @property
    def project(self) -> str:
        """Whose order it is."""
        return self.order.project

    @property
    def job_id(self) -> str:
        """Whom the time of the device is charged to."""
        return self.order.job_id

    def fits(self, session: RunnerSession) -> bool:
        """Whether a runner could measure it."""
        return session.runner_id not in self.avoided and not session.why_not(self.order)

    def note_failure(self, runner_id: str, kind: FailureKind, message: str) -> None:
        """Keep how an attempt ended; a runner that would fail again is avoided."""
        self.failures.append(f"{runner_id}: {kind.replace('_', ' ')}: {message}".rstrip(": "))
        if kind in MODEL_CAUSED:
            self.avoided.add(runner_id)

    def failed(self) -> MeasurementFailedError:
        """Return the error that runners tried and could not."""
        return MeasurementFailedError(
            f"no runner could measure: {'; '.join(self.failures)}",
            field="target",
            remedy="look at the runner's log; tightfit runners list shows who is there",
        )

    def nobody(self, sessions: Sequence[RunnerSession]) -> MeasurementFailedError | NoRunnerError:
        """Return the error that no runner came, with what those lack that are there."""
        if self.failures:
            return self.failed()
        target = self.order.target
        reasons = [
            f"{session.runner_id}: {session.why_not(self.order)}"
            for session in sessions
            if session.project == self.project
        ]
        seen = f" ({'; '.join(reasons[:NAMED_RUNNERS])})" if reasons else ""
        return NoRunnerError(
            f"no runner of {target.name} with {target.runtime.name} is connected{seen}",
            field="target",
            remedy=f"start tightfit-runner --target {target.name} on the device",
        )


@dataclass(eq=False, kw_only=True)
class Attempt:
    """An order at a runner."""

    order_id: str
    pending: PendingOrder
    session: RunnerSession
    charge: Charge
    offered_at: float
    is_accepted: bool = False
