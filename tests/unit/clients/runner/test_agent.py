"""The agent against a real server: orders, broken lines, refusals, and how the command ends."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fakes.diagnosis import no_checks
from fakes.runners import PI, RecordingRunnerTelemetry, find_target, make_order
from fakes.use_cases import InMemoryAssets, InMemoryHardware, InMemoryJobs, RecordingRpcMetrics
from fakes.waiting import until
from tightfit_runner import cli, contract
from tightfit_runner.agent import Agent, Identity, RefusedError
from tightfit_runner.device import Device
from tightfit_runner.failures import MeasurementError
from tightfit_runner.measurement import Order, Result
from tightfit_runner.runtimes import InstalledRuntime
from tightfit_runner.sensors import State
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.application.ports import Page
from tightfit_service.application.runners.desk import RunnerDesk
from tightfit_service.application.runners.sessions import Runner
from tightfit_service.domain.errors import MeasurementFailedError
from tightfit_service.domain.measurement import Measurement

MODEL = bytes(range(256)) * 20
DIGEST = hashlib.sha256(MODEL).hexdigest()
DEVICE = Device(
    core=PI.core,
    core_count=4,
    ram_bytes=8 << 30,
    clock_mhz=2_400.0,
    isa_features=PI.isa_features,
    runtimes=(InstalledRuntime("litert", "2.3.0", ("tflite",)),),
    sensors=("frequency",),
)
RESULT = Result(
    p10_ms=1.9,
    p50_ms=2.0,
    p90_ms=2.5,
    throughput_per_s=450.0,
    run_count=200,
    p99_ms=3.0,
    settled=True,
    noise_ratio=0.01,
    model_peak_bytes=1 << 20,
    process_peak_bytes=60 << 20,
    energy_mj=8.0,
    mean_power_mw=4_000.0,
    idle_power_mw=2_500.0,
    energy_source="hwmon:VDD_IN",
    before=State(2_400.0, 50.0, 0, is_capped=False),
    after=State(2_400.0, None, 0, is_capped=False),
    runtime="litert",
    runtime_version="2.3.0",
    notes=("a note",),
)


class Clock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class Backend:
    """Answers what it is told to, or waits until it is cancelled."""

    answer: Result | Exception | None = RESULT
    seen: list[tuple[Order, bytes]] = field(default_factory=list)
    cancellations: int = 0

    def measure(self, order: Order, cancelled: threading.Event) -> Result:
        self.seen.append((order, order.path.read_bytes()))
        if self.answer is None:
            assert cancelled.wait(30)
            self.cancellations += 1
            raise MeasurementError("CANCELLED", "as asked")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Site:
    """A server with a desk, and agents in threads."""

    def __init__(self) -> None:
        self.assets = InMemoryAssets()
        self.assets.artifacts["default", DIGEST] = MODEL
        self.address = "127.0.0.1:0"
        self._agents: list[tuple[Agent, threading.Thread]] = []

    async def start(self) -> None:
        self.desk = RunnerDesk(
            clock=Clock(),
            telemetry=RecordingRunnerTelemetry(),
            resolve_target=find_target,
            server_version="0.1.0",
        )
        self._server = GrpcServer(
            assets=self.assets,
            jobs=InMemoryJobs(),
            hardware=InMemoryHardware(),
            calibrations=InMemoryHardware(),
            runners=self.desk,
            diagnosis=no_checks(),
            metrics=RecordingRpcMetrics(),
            options=ServerOptions(listen=self.address),
        )
        self.address = await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace_seconds=0)

    def agent(self, backend: Backend, *, token: str = "", device: Device = DEVICE) -> Agent:
        return Agent(
            Identity(project="default", name="bench", device=device, labels={"lab": "a"}),
            backend,
            lambda: grpc.insecure_channel(self.address),
            token=lambda: token,
            sleep=lambda _: time.sleep(0.02),
        )

    def run(self, agent: Agent) -> Agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        self._agents.append((agent, thread))
        return agent

    async def end(self) -> None:
        for agent, thread in self._agents:
            agent.stop()
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
        await self.stop()

    async def runner(self, is_wanted: Callable[[Runner], bool] = lambda _: True) -> Runner:
        """Return the runner once it is there and as wanted."""
        for _ in range(1_000):
            found = await self.desk.list("default", Page(size=5))
            if found and is_wanted(found[0]):
                return found[0]
            await asyncio.sleep(0.01)
        raise AssertionError("the runner did not come")

    async def measure(self) -> Measurement:
        return await asyncio.wait_for(
            self.desk.measure(make_order(artifact_digest=DIGEST, wait_seconds=30)), 30
        )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.start()
    yield made
    await made.end()


async def test_an_order_is_fetched_measured_and_answered(site: Site) -> None:
    backend = Backend()
    site.run(site.agent(backend))
    shown = await site.runner()
    measured = await site.measure()

    assert shown.device.core == PI.core
    assert shown.device.sensors == ("frequency",)
    assert shown.labels == {"lab": "a"}
    ((order, content),) = backend.seen
    assert content == MODEL
    assert (order.format, order.runtime, order.threads) == ("tflite", "litert", 4)
    assert (order.timeout_seconds, order.min_runs, order.min_seconds) == (60, 100, 3)
    assert not order.path.exists()
    assert measured.measured_latency_ms_p99 == 3.0
    assert measured.measured_peak_ram_bytes == 1 << 20
    assert measured.energy is not None
    assert measured.energy.idle_power_mw == 2_500.0
    assert (measured.before.temperature_c, measured.after.temperature_c) == (50.0, None)
    assert (measured.notes, measured.runner) == (("a note",), "bench")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (MeasurementError("CRASHED", "SIGSEGV"), "bench: crashed: SIGSEGV"),
        (RuntimeError("a bug"), "bench: internal: RuntimeError"),
    ],
    ids=["crash", "bug"],
)
async def test_what_goes_wrong_is_answered_and_the_line_stands(
    site: Site, answer: Exception, words: str
) -> None:
    site.run(site.agent(Backend(answer)))
    await site.runner()
    task = asyncio.create_task(site.measure())
    failed = await site.runner(lambda runner: runner.failure_count > 0)

    assert failed.state in ("idle", "busy")
    if isinstance(answer, MeasurementError):
        with pytest.raises(MeasurementFailedError, match=words):
            await task
    task.cancel()


async def test_a_file_that_is_not_what_its_name_says_is_not_run(site: Site) -> None:
    site.assets.artifacts["default", DIGEST] = MODEL[:-1]
    backend = Backend()
    site.run(site.agent(backend))
    await site.runner()
    task = asyncio.create_task(site.measure())
    await site.runner(lambda runner: runner.failure_count > 0)
    assert backend.seen == []
    task.cancel()


async def test_an_agent_survives_a_restart_of_the_server(site: Site) -> None:
    site.run(site.agent(Backend()))
    await site.runner()
    await site.stop()
    await site.start()

    assert (await site.measure()).runner == "bench"


async def test_giving_up_stops_the_device(site: Site) -> None:
    backend = Backend(answer=None)
    site.run(site.agent(backend))
    await site.runner()
    task = asyncio.create_task(site.measure())
    await until(lambda: backend.seen)
    task.cancel()
    await until(lambda: backend.cancellations)
    backend.answer = RESULT

    assert (await site.measure()).measured_latency_ms_p50 == 2.0


async def test_a_broken_line_stops_what_runs_and_the_work_is_done_again(site: Site) -> None:
    backend = Backend(answer=None)
    agent = site.run(site.agent(backend))
    await site.runner()
    task = asyncio.create_task(site.measure())
    await until(lambda: backend.seen)
    backend.answer = RESULT
    assert agent._line is not None
    agent._line._call.cancel()

    assert (await task).runner == "bench"
    assert (backend.cancellations, len(backend.seen)) == (1, 2)


async def test_an_agent_of_another_version_ends_with_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "PROTOCOL_VERSION", 99)
    with pytest.raises(RefusedError, match=r"tightfit-runner==0\.1\.0"):
        await asyncio.to_thread(site.agent(Backend()).run)


async def test_a_description_that_cannot_be_ends_the_agent(site: Site) -> None:
    broken = Device(core="x86-64", core_count=0, ram_bytes=1, runtimes=DEVICE.runtimes)
    with pytest.raises(RefusedError, match="core_count is 0"):
        await asyncio.to_thread(site.agent(Backend(), device=broken).run)


def test_the_command_describes_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--describe"]) == cli.OK
    assert '"core": ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "lab"], "KEY=VALUE"),
        (["--config", "/no/such/file"], "No such file"),
        (["--token-file", "/no/such/file"], "--token-file"),
        (["--tls-ca", "/no/such/file"], "--tls-ca"),
        (["--tls-cert", "/no/such/file"], "--tls-key"),
        (["--server", "far.example:50051", "--token", "t"], "plain text"),
        (["--server", "[2001:db8::1]:50051", "--token", "t"], "plain text"),
    ],
)
def test_what_cannot_be_used_ends_the_command(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.USAGE
    assert words in capsys.readouterr().err


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("TIGHTFIT_TOKEN", "from the environment")
    parser = cli._parser()

    def token(*arguments: str) -> str:
        return cli._credentials(parser.parse_args(arguments)).token()

    assert token() == "from the environment"
    assert token("--token", "given") == "given"
    path = tmp_path / "token"
    credentials = cli._credentials(parser.parse_args(["--token-file", str(path)]))
    assert credentials.token() == "from a file"
    path.write_text("renewed\n")
    assert credentials.token() == "renewed"
