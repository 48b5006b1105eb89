"""Who is known as a runner: sessions that stand, those that left, and those that are refused for a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.ports import Clock, Page
from tightfit_service.application.runners.sessions import (
    Runner,
    RunnerHello,
    RunnerQuarantinedError,
    RunnerSession,
    RunnerState,
)
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    NotFoundError,
    ResourceExhaustedError,
)
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.measurement import ImplausibleReportError, mismatch

QUARANTINE_SECONDS = 3_600.0
MAX_RUNNERS = 1_000
"""Per project; those that left longest ago are forgotten first."""

_Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _Quarantine:
    until: float
    reason: str


class RunnerRegistry:
    """All runners of all projects, in memory. Belongs to one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        resolve_target: Callable[[str], HardwareSpec],
        server_version: str,
    ) -> None:
        self._clock = clock
        self._resolve_target = resolve_target
        self._server_version = server_version
        self._known: dict[_Key, Runner] = {}
        self._sessions: dict[_Key, RunnerSession] = {}
        self._quarantines: dict[_Key, _Quarantine] = {}

    @property
    def sessions(self) -> Sequence[RunnerSession]:
        """The sessions that stand, those longest there first."""
        return tuple(self._sessions.values())

    def get(self, project: str, runner_id: str) -> Runner:
        """Return a runner.

        Raises:
            NotFoundError: No such runner.
        """
        runner = self._known.get((project, runner_id))
        if runner is None:
            raise NotFoundError(
                f"no runner {runner_id!r}",
                field="runner",
                remedy="start tightfit-runner on the device, or list the runners",
            )
        return self._shown(runner)

    def list(self, project: str, page: Page) -> Sequence[Runner]:
        """Return runners by id."""
        ids = sorted(i for owner, i in self._known if owner == project and i > page.after)
        return [self._shown(self._known[project, i]) for i in ids[: page.size]]

    def standing(self, project: str, runner_id: str, hello: RunnerHello) -> RunnerSession | None:
        """Return the session that a new one would replace, after all that speaks against the new one.

        Raises:
            RunnerVersionError: Another version of the protocol.
            RunnerQuarantinedError: The runner reported what cannot be, a while ago.
            AlreadyExistsError: Another agent uses the name now.
            ImplausibleReportError: The device is not what its operator says.
            ResourceExhaustedError: Too many runners.
        """
        key = (project, runner_id)
        hello.check(server_version=self._server_version)
        self._refuse_quarantined(key)
        standing = self._sessions.get(key)
        if standing is not None and standing.hello.instance_id != hello.instance_id:
            raise AlreadyExistsError(
                f"another agent is connected as {runner_id!r}",
                field="hello.name",
                remedy="give each device a name of its own with --name",
            )
        self._check_identity(hello)
        self._make_room(key)
        return standing

    def add(self, session: RunnerSession) -> None:
        """Take a session; what the runner delivered before stays on its account."""
        key = _key(session)
        before = self._known.get(key)
        self._known[key] = Runner(
            runner_id=session.runner_id,
            project=session.project,
            device=session.hello.device,
            agent_version=session.hello.agent_version,
            state=RunnerState.IDLE,
            last_seen=self._clock.now(),
            labels=session.hello.labels,
            targets=session.hello.targets,
            measurement_count=0 if before is None else before.measurement_count,
            failure_count=0 if before is None else before.failure_count,
        )
        self._sessions[key] = session

    def remove(self, session: RunnerSession) -> bool:
        """Note that a session has ended; return whether it stood until now."""
        stood = self._sessions.get(_key(session)) is session
        if stood:
            del self._sessions[_key(session)]
        return stood

    def seen(self, session: RunnerSession) -> None:
        """Note that the agent said something."""
        self._known[_key(session)] = replace(
            self._known[_key(session)], last_seen=self._clock.now()
        )

    def count(self, session: RunnerSession, *, measured: int = 0, failed: int = 0) -> None:
        """Add to what a runner did."""
        runner = self._known[_key(session)]
        self._known[_key(session)] = replace(
            runner,
            measurement_count=runner.measurement_count + measured,
            failure_count=runner.failure_count + failed,
        )

    def quarantine(self, session: RunnerSession, reason: str) -> None:
        """Refuse a runner for a while."""
        self._quarantines[_key(session)] = _Quarantine(
            until=self._clock.monotonic() + QUARANTINE_SECONDS, reason=reason
        )

    def states(self) -> Mapping[tuple[str, str], int]:
        """Return how many runners there are by state and target; "" for those that name no target."""
        counts: Counter[tuple[str, str]] = Counter()
        for runner in self._known.values():
            state = str(self._shown(runner).state)
            for target in runner.targets or ("",):
                counts[state, target] += 1
        return counts

    def _refuse_quarantined(self, key: _Key) -> None:
        quarantine = self._quarantines.get(key)
        if quarantine is None:
            return
        left = quarantine.until - self._clock.monotonic()
        if left <= 0:
            del self._quarantines[key]
            return
        raise RunnerQuarantinedError(
            f"runner {key[1]!r} is refused for {left / 60:.0f} more minutes: {quarantine.reason}",
            field="hello.name",
            remedy="mend the device or its agent meanwhile",
        )

    def _check_identity(self, hello: RunnerHello) -> None:
        for name in hello.targets:
            try:
                target = self._resolve_target(name)
            except NotFoundError:
                continue  # a target that a user describes
            reason = mismatch(hello.device, target, is_named=True)
            if reason:
                raise ImplausibleReportError(
                    f"the device does not stand for {name}: {reason}",
                    field="hello.targets",
                    remedy="name the target that the device is",
                )

    def _make_room(self, key: _Key) -> None:
        others = [other for other in self._known if other[0] == key[0] and other != key]
        if len(others) < MAX_RUNNERS:
            return
        gone = [o for o in others if o not in self._sessions and o not in self._quarantines]
        if not gone:
            raise ResourceExhaustedError(
                f"{MAX_RUNNERS} runners are known already",
                field="hello.name",
                remedy="use another project, or wait until some have left",
            )
        del self._known[min(gone, key=lambda other: self._known[other].last_seen)]

    def _shown(self, runner: Runner) -> Runner:
        key = (runner.project, runner.runner_id)
        quarantine = self._quarantines.get(key)
        if quarantine is not None and quarantine.until > self._clock.monotonic():
            return replace(runner, state=RunnerState.QUARANTINED, state_reason=quarantine.reason)
        session = self._sessions.get(key)
        if session is None:
            return replace(runner, state=RunnerState.OFFLINE)
        return replace(runner, state=RunnerState.BUSY if session.order_ids else RunnerState.IDLE)


def _key(session: RunnerSession) -> _Key:
    return session.project, session.runner_id
