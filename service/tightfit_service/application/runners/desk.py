"""The desk of the runners: who is connected, which order goes to whom, and what happens when one fails."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog

from tightfit_service.application.ports import (
    Clock,
    MeasurementOrder,
    NoteCallback,
    Page,
    RunnerTelemetry,
    no_notes,
)
from tightfit_service.application.runners.attempts import (
    MAX_ATTEMPTS,
    MODEL_CAUSED,
    Attempt,
    PendingOrder,
)
from tightfit_service.application.runners.fair_queue import Charge, FairQueue
from tightfit_service.application.runners.registry import RunnerRegistry
from tightfit_service.application.runners.sessions import (
    HEARTBEAT_SECONDS,
    Cancellation,
    Offer,
    Runner,
    RunnerFloodError,
    RunnerHello,
    RunnerSession,
    Welcome,
)
from tightfit_service.domain.errors import TightfitError, UnavailableError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.measurement import (
    FailureKind,
    ImplausibleReportError,
    Measurement,
    runtime_for,
)

log = structlog.get_logger(__name__)

SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
"""After which an agent that says nothing is taken to be gone."""
ACCEPT_SECONDS = 30.0
"""Within which an agent takes an offer."""
GRACE_SECONDS = 30.0
"""Beyond the order's time-out: to fetch the file, and for the agent to kill the work and say so."""
REST_SECONDS = 5.0
"""For which an agent that refused an offer, or could not fetch its file, gets no other."""
RETURN_SECONDS = 60.0
"""For which work that was begun waits for a runner to come back."""
SWEEP_SECONDS = 1.0
MAX_MESSAGE = 2_000


class RunnerDesk:
    """Implements `use_cases.Runners` and `ports.DeviceMeasurer`. Belongs to one event loop.

    Everything is in memory: after a restart agents connect again and jobs ask again. Work is lost in no
    other way: an order leaves the desk measured, failed with reasons, or cancelled.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        telemetry: RunnerTelemetry,
        resolve_target: Callable[[str], HardwareSpec],
        server_version: str,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._server_version = server_version
        self._registry = RunnerRegistry(
            clock=clock, resolve_target=resolve_target, server_version=server_version
        )
        self._queue: FairQueue[PendingOrder] = FairQueue()
        self._attempts: dict[str, Attempt] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch the clock."""
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        """Stop watching the clock; agents and orders are told that the server goes."""
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
        for session in self._registry.sessions:
            self._drop(
                session, UnavailableError("the server is shutting down", remedy="connect again")
            )

    # What the API asks.

    async def get(self, project: str, runner_id: str) -> Runner:
        """Return a runner.

        Raises:
            NotFoundError: No such runner.
        """
        return self._registry.get(project, runner_id)

    async def list(self, project: str, page: Page) -> Sequence[Runner]:
        """Return runners by id."""
        return self._registry.list(project, page)

    async def connect(self, project: str, runner_id: str, hello: RunnerHello) -> RunnerSession:
        """Take an agent and return its session, whose first command is the welcome.

        Raises:
            RunnerVersionError: Another version of the protocol.
            RunnerQuarantinedError: The runner reported what cannot be, a while ago.
            AlreadyExistsError: Another agent uses the name now.
            ImplausibleReportError: The device is not what its operator says.
            ResourceExhaustedError: Too many runners.
        """
        standing = self._registry.standing(project, runner_id, hello)
        if standing is not None:
            self._drop(standing, UnavailableError("the same agent connected again"))
        now = self._clock.monotonic()
        session = RunnerSession(project=project, runner_id=runner_id, hello=hello, now=now)
        self._registry.add(session)
        session.tell(
            Welcome(server_version=self._server_version, heartbeat_seconds=HEARTBEAT_SECONDS)
        )
        log.info("runner connected", runner=runner_id, core=hello.device.core)
        self._dispatch()
        return session

    def disconnect(self, session: RunnerSession) -> None:
        """Note that the agent's stream ended; its work goes to other runners."""
        self._drop(session, None)

    def heartbeat(self, session: RunnerSession, order_ids: Sequence[str]) -> None:
        """Note that the agent lives; accepted work that it does not name any more was lost."""
        if not self._heard(session):
            return
        for order_id in session.order_ids - set(order_ids):
            attempt = self._attempts[order_id]
            if attempt.is_accepted:
                self._fail(attempt, FailureKind.DEVICE_LOST, "the agent forgot about it")

    def accepted(self, session: RunnerSession, order_id: str) -> None:
        """Note that the agent works on an offer; one that was taken back meanwhile is ignored."""
        if self._heard(session) and order_id in session.order_ids:
            self._attempts[order_id].is_accepted = True

    def failed(
        self, session: RunnerSession, order_id: str, kind: FailureKind, message: str
    ) -> None:
        """Take the answer that there is no measurement."""
        if self._heard(session) and order_id in session.order_ids:
            self._fail(self._attempts[order_id], kind, message[:MAX_MESSAGE])

    def measured(self, session: RunnerSession, order_id: str, measurement: Measurement) -> None:
        """Take a measurement; what cannot be true ends the session and bans the runner for a while."""
        if not self._heard(session) or order_id not in session.order_ids:
            return
        attempt = self._attempts[order_id]
        elapsed = self._clock.monotonic() - attempt.offered_at
        try:
            measurement.check(
                device=session.hello.device,
                macs=attempt.pending.order.macs,
                elapsed_seconds=elapsed,
            )
        except ImplausibleReportError as error:
            self.distrust(session, error)
            return
        self._release(attempt)
        self._registry.count(session, measured=1)
        self._telemetry.measurement_finished(attempt.pending.order.target.name, "measured")
        if not attempt.pending.done.done():
            attempt.pending.done.set_result(replace(measurement, runner=session.runner_id))
        self._dispatch()

    def distrust(self, session: RunnerSession, error: TightfitError) -> None:
        """End a session for what it sent, and refuse the runner for a while."""
        self._registry.quarantine(session, error.message)
        log.warning("runner quarantined", runner=session.runner_id, reason=str(error))
        self._drop(session, error)

    # What the search asks.

    async def measure(
        self, order: MeasurementOrder, *, on_note: NoteCallback = no_notes
    ) -> Measurement:
        """Return what a device measured; see `ports.DeviceMeasurer`."""
        work = PendingOrder(
            order=order,
            on_note=on_note,
            done=asyncio.get_running_loop().create_future(),
            since=self._clock.monotonic(),
        )
        self._queue.push(work)
        self._dispatch()
        self._look_after_waiting()
        if not work.done.done() and work in tuple(self._queue):
            ahead = self._queue.ahead_of(work)
            on_note(f"waiting for a runner of {order.target.name}, {ahead} measurements ahead")
        try:
            return await work.done
        finally:
            self._withdraw(work)

    def sweep(self) -> None:
        """Do what time demands: end silent sessions, late attempts, and waits that are too long."""
        now = self._clock.monotonic()
        for session in self._registry.sessions:
            if now - session.last_seen > SILENCE_SECONDS:
                silence = UnavailableError(
                    f"nothing was heard of the agent for {SILENCE_SECONDS:g} s",
                    remedy="connect again",
                )
                self._drop(session, silence)
        for attempt in tuple(self._attempts.values()):
            waited = now - attempt.offered_at
            if not attempt.is_accepted and waited > ACCEPT_SECONDS:
                attempt.session.tell(Cancellation(order_id=attempt.order_id))
                self._fail(attempt, FailureKind.REFUSED, "the agent did not answer the offer")
            elif waited > attempt.pending.order.timeout_seconds + GRACE_SECONDS:
                attempt.session.tell(Cancellation(order_id=attempt.order_id))
                self._fail(attempt, FailureKind.TIMED_OUT, f"no answer after {waited:.0f} s")
        self._dispatch()
        self._look_after_waiting()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()

    # Who may have what.

    def _dispatch(self) -> None:
        """Give work to every runner that has room for some."""
        now = self._clock.monotonic()
        for session in self._registry.sessions:
            while session.has_room and session.rest_until <= now:
                taken = self._queue.take(partial(PendingOrder.fits, session=session))
                if taken is None:
                    break
                self._offer(*taken, session)
        self._telemetry.runner_states(self._registry.states())

    def _offer(self, work: PendingOrder, charge: Charge, session: RunnerSession) -> None:
        order, now = work.order, self._clock.monotonic()
        runtime = runtime_for(session.hello.device, order.target, order.format)
        assert runtime is not None
        attempt = Attempt(
            order_id=secrets.token_hex(16),
            pending=work,
            session=session,
            charge=charge,
            offered_at=now,
        )
        self._attempts[attempt.order_id] = attempt
        session.order_ids.add(attempt.order_id)
        self._telemetry.measurement_waited(now - work.since)
        session.tell(
            Offer(
                order_id=attempt.order_id,
                project=order.project,
                artifact_digest=order.artifact_digest,
                format=order.format,
                runtime=runtime.name,
                thread_count=min(order.target.core_count, session.hello.device.core_count),
                timeout_seconds=order.timeout_seconds,
                min_run_count=order.min_run_count,
                min_seconds=order.min_seconds,
                target=order.target.name,
                wants_operators=order.wants_operators,
            )
        )
        work.on_note(f"measured on {session.runner_id}")

    # How attempts end.

    def _fail(self, attempt: Attempt, kind: FailureKind, message: str) -> None:
        """End an attempt; the order goes back to the queue where another attempt may bring more."""
        self._release(attempt)
        work, runner_id = attempt.pending, attempt.session.runner_id
        self._registry.count(attempt.session, failed=1)
        self._telemetry.measurement_finished(work.order.target.name, str(kind))
        work.note_failure(runner_id, kind, message)
        if kind not in MODEL_CAUSED:
            attempt.session.rest_until = self._clock.monotonic() + REST_SECONDS
        if work.done.done():
            return
        is_pointless = kind in MODEL_CAUSED and not self._candidates(work)
        if len(work.failures) >= MAX_ATTEMPTS or is_pointless:
            work.done.set_exception(work.failed())
        else:
            work.on_note(f"measured again: {work.failures[-1]}")
            work.since = self._clock.monotonic()
            self._queue.push(work, is_return=True)
        self._dispatch()

    def _candidates(self, work: PendingOrder) -> bool:
        return any(work.fits(session) for session in self._registry.sessions)

    def _release(self, attempt: Attempt) -> None:
        del self._attempts[attempt.order_id]
        attempt.session.order_ids.discard(attempt.order_id)
        self._queue.settle(attempt.charge, self._clock.monotonic() - attempt.offered_at)

    def _withdraw(self, work: PendingOrder) -> None:
        """Forget an order that is done or given up, and free the device that works on it."""
        self._queue.remove(work)
        for attempt in tuple(self._attempts.values()):
            if attempt.pending is work:
                attempt.session.tell(Cancellation(order_id=attempt.order_id))
                self._release(attempt)
        self._dispatch()

    def _look_after_waiting(self) -> None:
        """Give up orders for which no runner came in time."""
        now = self._clock.monotonic()
        for work in self._queue:
            if self._candidates(work):
                work.lonely_since = None
                continue
            if work.lonely_since is None:
                work.lonely_since = now
            # A runner that was there a moment ago gets the time to come back.
            patience = max(work.order.wait_seconds, RETURN_SECONDS if work.failures else 0.0)
            if now - work.lonely_since >= patience and not work.done.done():
                work.done.set_exception(work.nobody(self._registry.sessions))

    # Who is here.

    def _heard(self, session: RunnerSession) -> bool:
        """Note a message; return whether the session still stands."""
        if not session.is_open:
            return False
        now = self._clock.monotonic()
        session.last_seen = now
        try:
            session.allowance.spend(now)
        except RunnerFloodError as error:
            self.distrust(session, error)
            return False
        self._registry.seen(session)
        return True

    def _drop(self, session: RunnerSession, error: TightfitError | None) -> None:
        """End a session; what it worked on is done by others."""
        session.end(error)
        if not self._registry.remove(session):
            return
        reason = "the agent left" if error is None else error.message
        log.info("runner gone", runner=session.runner_id, reason=reason)
        for order_id in tuple(session.order_ids):
            self._fail(self._attempts[order_id], FailureKind.DEVICE_LOST, reason)
        self._telemetry.runner_states(self._registry.states())
