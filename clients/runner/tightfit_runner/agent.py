"""The agent: one line to the server, one order at a time, connected again whenever the line breaks."""

from __future__ import annotations

import logging
import queue
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Protocol

import grpc

from tightfit_runner import __version__, artifacts, contract
from tightfit_runner.device import Device
from tightfit_runner.failures import MeasurementError, SettingsError
from tightfit_runner.measurement import Order, Result
from tightfit_runner.sensors import State

log = logging.getLogger("tightfit_runner")

HEARTBEAT_SECONDS = 10.0
FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 60.0
STEADY_SECONDS = 30.0
"""A line that stood so long was a good one: the next wait is short again."""
FETCH_SECONDS = 120.0
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
_FINAL_REASONS = {"RUNNER_VERSION_SKEW"}
"""Answers that waiting does not mend."""


class Backend(Protocol):
    """What measures: this machine, or a board."""

    def measure(self, order: Order, cancelled: threading.Event) -> Result:
        """Return what was measured. Raises MeasurementError."""


class RefusedError(Exception):
    """The server does not take this agent, and waiting does not mend it."""


@dataclass(frozen=True)
class Identity:
    """Who the agent is; sent in the hello."""

    project: str
    name: str
    device: Device
    labels: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    instance_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Agent:
    """Connects, works, and connects again."""

    def __init__(
        self,
        identity: Identity,
        backend: Backend,
        open_channel: Callable[[], grpc.Channel],
        *,
        token: Callable[[], str] | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._identity = identity
        self._backend = backend
        self._open_channel = open_channel
        self._token = token
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._line: _Line | None = None

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            RefusedError: The server does not take this agent.
        """
        wait = FIRST_WAIT_SECONDS
        while not self._stopped.is_set():
            begin = time.monotonic()
            try:
                self._connect_once()
            except SettingsError as error:
                # They were good at the start: files are being replaced, and will be good again.
                log.warning("%s", error)
            except grpc.RpcError as error:
                if self._stopped.is_set():
                    return
                reason, remedy = contract.reason_and_remedy(error)
                text = f"{error.details()}{f' ({remedy})' if remedy else ''}"
                if error.code() in _FINAL or reason in _FINAL_REASONS:
                    raise RefusedError(text) from error
                log.warning("%s: %s", error.code().name, text)
            if time.monotonic() - begin > STEADY_SECONDS:
                wait = FIRST_WAIT_SECONDS
            self._sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311  # spread, not a secret
            wait = min(2 * wait, MOST_WAIT_SECONDS)

    def stop(self) -> None:
        """End the line and what runs on it; may be called from a signal handler or another thread."""
        self._stopped.set()
        line = self._line
        if line is not None:
            line.close()

    def _metadata(self) -> Any:
        """Return what every call carries; the token may have been renewed since the last one."""
        token = self._token() if self._token is not None else ""
        return (("authorization", f"Bearer {token}"),) if token else None

    def _connect_once(self) -> None:
        with self._open_channel() as channel:
            line = _Line(self._identity, self._backend, channel, self._metadata)
            self._line = line
            if self._stopped.is_set():
                return
            try:
                line.run()
            finally:
                self._line = None
                line.close()


class _Line:
    """One stream to the server."""

    def __init__(
        self,
        identity: Identity,
        backend: Backend,
        channel: grpc.Channel,
        metadata: Callable[[], Any],
    ) -> None:
        self._identity = identity
        self._backend = backend
        self._channel = channel
        self._metadata = metadata
        self._outbox: queue.Queue[Any] = queue.Queue()
        self._heartbeat_seconds = HEARTBEAT_SECONDS
        self._work: dict[str, threading.Event] = {}
        self._busy = threading.Lock()
        """Held while the device measures: two at a time disturb each other."""
        self._is_closed = threading.Event()
        self._call: Any = None
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Take orders until the stream ends. Raises grpc.RpcError."""
        self._outbox.put(_hello(self._identity))
        connect = contract.connect_runner(self._channel)
        self._call = connect(self._messages(), metadata=self._metadata())
        for command in self._call:
            kind = command.WhichOneof("message")
            if kind == "welcome":
                welcome = command.welcome
                interval = welcome.heartbeat_interval
                self._heartbeat_seconds = max(0.1, interval.seconds + interval.nanos / 1e9)
                log.info("connected to server %s", welcome.server_version)
            elif kind == "offer":
                self._take(command.offer)
            elif kind == "cancellation":
                cancelled = self._work.get(command.cancellation.order_id)
                if cancelled is not None:
                    cancelled.set()

    def close(self) -> None:
        """End the stream, cancel what runs, and wait until it is gone."""
        self._is_closed.set()
        for cancelled in tuple(self._work.values()):
            cancelled.set()
        if self._call is not None:
            self._call.cancel()
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _messages(self) -> Iterator[Any]:
        while not self._is_closed.is_set():
            try:
                message = self._outbox.get(timeout=self._heartbeat_seconds)
            except queue.Empty:
                message = contract.ConnectRunnerRequest()
                message.heartbeat.order_ids.extend(tuple(self._work))
            if message is None:
                return
            yield message

    def _take(self, offer: Any) -> None:
        cancelled = threading.Event()
        self._work[offer.order_id] = cancelled
        answer = contract.ConnectRunnerRequest()
        answer.accepted.order_id = offer.order_id
        self._outbox.put(answer)
        thread = threading.Thread(target=self._do, args=(offer, cancelled), daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _do(self, offer: Any, cancelled: threading.Event) -> None:
        """Do an order and send what came of it, whatever that is."""
        answer = contract.ConnectRunnerRequest()
        try:
            with self._busy:
                result = self._measure(offer, cancelled)
            _fill(answer.measurement, result)
            answer.measurement.order_id = offer.order_id
            log.info("measured %.3f ms on %s", result.p50_ms, result.runtime)
        except Exception as error:  # noqa: BLE001  # the line must not break for one order
            kind = error.kind if isinstance(error, MeasurementError) else "INTERNAL"
            words = error.message if isinstance(error, MeasurementError) else repr(error)
            log.warning("order failed: %s: %s", kind, words)
            answer.failure.order_id = offer.order_id
            answer.failure.kind = contract.enum_number("WorkFailure.Kind", f"KIND_{kind}")
            answer.failure.message = words
        del self._work[offer.order_id]
        self._outbox.put(answer)

    def _measure(self, offer: Any, cancelled: threading.Event) -> Result:
        if cancelled.is_set():
            raise MeasurementError("CANCELLED", "the server took the order back")
        formats = {number: name for name, number in contract.FORMATS.items()}
        if offer.format not in formats:
            raise MeasurementError("UNSUPPORTED_MODEL", f"no runtime loads format {offer.format}")
        format_ = formats[offer.format]
        with tempfile.TemporaryDirectory(prefix="tightfit-runner-") as folder:
            path = Path(folder) / f"model.{format_}"
            artifacts.fetch(
                contract.read_artifact(self._channel),
                offer.model_artifact,
                path,
                metadata=self._metadata(),
                timeout_seconds=FETCH_SECONDS,
            )
            order = Order(
                path=path,
                format=format_,
                runtime=offer.runtime,
                threads=max(1, offer.thread_count),
                timeout_seconds=_seconds(offer.timeout),
                min_runs=max(1, offer.min_run_count),
                min_seconds=_seconds(offer.min_duration),
                wants_operators=offer.wants_operators,
            )
            return self._backend.measure(order, cancelled)


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _hello(identity: Identity) -> Any:
    message = contract.ConnectRunnerRequest()
    hello, device = message.hello, identity.device
    hello.name = f"projects/{identity.project}/runners/{identity.name}"
    hello.protocol_version = contract.PROTOCOL_VERSION
    hello.agent_version = __version__
    hello.instance_id = identity.instance_id
    for key, value in identity.labels.items():
        hello.labels[key] = value
    hello.targets.extend(identity.targets)
    hello.capacity = 1
    described = hello.device
    described.core = device.core
    described.display_name = device.display_name
    described.core_count = device.core_count
    if device.clock_mhz is not None:
        described.clock_mhz = device.clock_mhz
    described.isa_features.extend(device.isa_features)
    described.ram_bytes = device.ram_bytes
    described.operating_system = device.operating_system
    described.sensors.extend(device.sensors)
    for runtime in device.runtimes:
        added = described.runtimes.add(name=runtime.name, version=runtime.version)
        added.formats.extend(contract.FORMATS[format_] for format_ in runtime.formats)
    return message


def _fill(message: Any, result: Result) -> None:
    message.measured_latency_ms_p10 = result.p10_ms
    message.measured_latency_ms_p50 = result.p50_ms
    message.measured_latency_ms_p90 = result.p90_ms
    if result.p99_ms is not None:
        message.measured_latency_ms_p99 = result.p99_ms
    message.measured_throughput_per_s = result.throughput_per_s
    message.run_count = result.run_count
    message.warm_up_count = result.warm_up_count
    message.settled = result.settled
    message.noise_ratio = result.noise_ratio
    if result.model_peak_bytes is not None:
        message.measured_peak_ram_bytes = result.model_peak_bytes
    if result.process_peak_bytes is not None:
        message.process_peak_ram_bytes = result.process_peak_bytes
    if result.energy_mj is not None:
        message.energy.measured_energy_mj = result.energy_mj
        message.energy.mean_power_mw = result.mean_power_mw
        message.energy.source = result.energy_source
        if result.idle_power_mw is not None:
            message.energy.idle_power_mw = result.idle_power_mw
    for state, field_ in ((result.before, message.before), (result.after, message.after)):
        _fill_state(field_, state)
    message.throttled = result.throttled
    message.runtime.name = result.runtime
    message.runtime.version = result.runtime_version
    message.notes.extend(result.notes)
    for item in result.operators:
        message.operators.add(
            kind=item.kind,
            measured_latency_ms=item.latency_ms,
            output_element_count=item.output_elements,
        )


def _fill_state(message: Any, state: State | None) -> None:
    if state is None:
        return
    if state.clock_mhz is not None:
        message.clock_mhz = state.clock_mhz
    if state.temperature_c is not None:
        message.temperature_c = state.temperature_c
