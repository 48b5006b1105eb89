"""One agent's connection: what it said it is, what it is told, and how much it may say."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tightfit_service.application.ports import MeasurementOrder
from tightfit_service.domain.errors import (
    InvalidRequestError,
    PreconditionError,
    ResourceExhaustedError,
    TightfitError,
)
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.measurement import DeviceDescription, mismatch, runtime_for

PROTOCOL_VERSION = 1
"""Of the stream between agent and server; raised when an old agent would misunderstand a new server."""
HEARTBEAT_SECONDS = 10.0
MAX_CAPACITY = 16
MAX_LABELS = 32
MAX_TEXT = 256
MESSAGES_AT_ONCE = 50
MESSAGES_PER_SECOND = 5.0
"""An agent sends a heartbeat every ten seconds and two messages per offer."""


class RunnerVersionError(PreconditionError):
    """The agent and the server speak different versions of the protocol."""

    reason = "RUNNER_VERSION_SKEW"


class RunnerQuarantinedError(PreconditionError):
    """The runner reported what cannot be, and is refused for a while."""

    reason = "RUNNER_QUARANTINED"


class RunnerFloodError(ResourceExhaustedError):
    """The agent sends more than any agent needs to."""

    reason = "RUNNER_FLOODS"


class RunnerState(enum.StrEnum):
    """What a runner does now."""

    IDLE = "idle"
    BUSY = "busy"
    OFFLINE = "offline"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True)
class RunnerHello:
    """Who an agent is and what its device is; fields as in the contract."""

    protocol_version: int
    agent_version: str
    instance_id: str
    device: DeviceDescription
    labels: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    capacity: int = 1

    def check(self, *, server_version: str) -> None:
        """Refuse another version of the protocol, and what would fill the server's memory.

        Raises:
            RunnerVersionError: The version is not the server's.
            InvalidRequestError: Too many labels or too long texts.
        """
        if self.protocol_version != PROTOCOL_VERSION:
            is_old = self.protocol_version < PROTOCOL_VERSION
            raise RunnerVersionError(
                f"the agent {self.agent_version} speaks version {self.protocol_version} of the runner "
                f"protocol, the server {server_version} speaks version {PROTOCOL_VERSION}",
                field="hello.protocol_version",
                remedy=(
                    f"pip install --upgrade tightfit-runner=={server_version} on the device"
                    if is_old
                    else f"update the server, or pip install tightfit-runner=={server_version}"
                ),
            )
        if not self.instance_id:
            raise InvalidRequestError(
                "the hello has no instance_id",
                field="hello.instance_id",
                remedy="send a random one",
            )
        if not 1 <= self.capacity <= MAX_CAPACITY:
            raise InvalidRequestError(
                f"capacity is {self.capacity}",
                field="hello.capacity",
                remedy=f"1 to {MAX_CAPACITY}; 1 unless the agent has several boards",
            )
        device = self.device
        texts = [
            *self.labels.keys(),
            *self.labels.values(),
            *self.targets,
            *device.sensors,
            *device.isa_features,
            *(r.name + r.version for r in device.runtimes),
            *(self.instance_id, self.agent_version, device.core, device.display_name),
            device.operating_system,
        ]
        most = 8 * MAX_LABELS
        if len(self.labels) > MAX_LABELS or len(texts) > most or max(map(len, texts)) > MAX_TEXT:
            raise InvalidRequestError(
                f"the hello has more than {MAX_LABELS} labels or a text beyond {MAX_TEXT} characters",
                field="hello",
                remedy="describe the device in fewer words",
            )


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A runner as the API shows it."""

    runner_id: str
    project: str
    device: DeviceDescription
    agent_version: str
    state: RunnerState
    last_seen: datetime
    state_reason: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    measurement_count: int = 0
    failure_count: int = 0


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """Takes the agent."""

    server_version: str
    heartbeat_seconds: float


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Asks the agent to run a model."""

    order_id: str
    project: str
    artifact_digest: str
    format: ModelFormat
    runtime: str
    thread_count: int
    timeout_seconds: float
    min_run_count: int
    min_seconds: float
    target: str
    wants_operators: bool = False


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """Takes an offer back."""

    order_id: str


Command = Welcome | Offer | Cancellation


class MessageAllowance:
    """A token bucket over an agent's messages."""

    def __init__(self, *, now: float) -> None:
        self._left = float(MESSAGES_AT_ONCE)
        self._at = now

    def spend(self, now: float) -> None:
        """Count a message.

        Raises:
            RunnerFloodError: More than any agent needs to send.
        """
        earned = (now - self._at) * MESSAGES_PER_SECOND
        self._left = min(MESSAGES_AT_ONCE, self._left + earned) - 1.0
        self._at = now
        if self._left < 0:
            raise RunnerFloodError(
                f"the agent sends more than {MESSAGES_PER_SECOND:g} messages a second",
                field="message",
                remedy="send a heartbeat at the interval of the welcome and two messages per offer",
            )


class RunnerSession:
    """An agent's stream, as long as it stands. Belongs to the desk that made it."""

    def __init__(self, *, project: str, runner_id: str, hello: RunnerHello, now: float) -> None:
        self.project = project
        self.runner_id = runner_id
        self.hello = hello
        self.last_seen = now
        self.rest_until = 0.0
        """No offers before this: the agent refused one."""
        self.order_ids: set[str] = set()
        """Offers that were not answered yet."""
        self.allowance = MessageAllowance(now=now)
        self._commands: asyncio.Queue[Command | TightfitError | None] = asyncio.Queue()
        self.is_open = True

    @property
    def has_room(self) -> bool:
        """Whether the agent takes one more offer."""
        return self.is_open and len(self.order_ids) < self.hello.capacity

    def tell(self, command: Command) -> None:
        """Send a command to the agent; on a session that has ended it is lost."""
        self._commands.put_nowait(command)

    def end(self, error: TightfitError | None = None) -> None:
        """End the stream, with an error where there is one."""
        if self.is_open:
            self.is_open = False
            self._commands.put_nowait(error)

    async def commands(self) -> AsyncIterator[Command]:
        """Yield what the agent is told until the session ends.

        Raises:
            TightfitError: Why the server ended it.
        """
        while True:
            command = await self._commands.get()
            if command is None:
                return
            if isinstance(command, TightfitError):
                raise command
            yield command

    def why_not(self, order: MeasurementOrder) -> str:
        """Return why this runner cannot measure for an order, or "" when it can."""
        device = self.hello.device
        if self.project != order.project:
            return "it is of another project"
        if order.runner_id not in ("", self.runner_id):
            return f"the order is for {order.runner_id}"
        for key, value in order.labels.items():
            if self.hello.labels.get(key) != value:
                return f"it lacks the label {key}={value}"
        is_named = order.target.name in self.hello.targets
        if self.hello.targets and not is_named:
            return f"it stands for {', '.join(self.hello.targets)}"
        reason = mismatch(device, order.target, is_named=is_named)
        if not reason and runtime_for(device, order.target, order.format) is None:
            has = ", ".join(runtime.name for runtime in device.runtimes)
            reason = f"{order.format} for {order.target.runtime.name} is wanted, it has {has}"
        return reason
