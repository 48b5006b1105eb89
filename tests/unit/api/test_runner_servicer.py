"""RunnerService: the course of a stream, what ends it, and how runners are listed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from fakes.grpc_service import Service
from fakes.rpc_errors import info_of
from fakes.runners import make_order
from fakes.waiting import until
from tightfit.v1 import hardware_pb2, runner_pb2
from tightfit.v1.runner_pb2_grpc import RunnerServiceStub
from tightfit_service.api import runner_servicer
from tightfit_service.domain.errors import MeasurementFailedError
from tightfit_service.domain.measurement import Measurement, OperatorTime

NAME = "projects/default/runners/bench"


def make_hello(**changes: Any) -> runner_pb2.ConnectRunnerRequest:
    hello = runner_pb2.RunnerHello(
        name=NAME,
        protocol_version=1,
        agent_version="0.1.0",
        instance_id="an-instance",
        device=runner_pb2.DeviceDescription(
            core="cortex-a76",
            display_name="Raspberry Pi 5",
            core_count=4,
            clock_mhz=2400,
            isa_features=["neon", "dotprod"],
            ram_bytes=8 << 30,
            operating_system="Linux 6.12",
            runtimes=[
                runner_pb2.RunnerRuntime(
                    name="litert",
                    version="2.3.0",
                    formats=[hardware_pb2.MODEL_FORMAT_TFLITE],
                )
            ],
            sensors=["temperature"],
        ),
        labels={"lab": "a"},
    )
    hello.MergeFrom(runner_pb2.RunnerHello(**changes))
    return runner_pb2.ConnectRunnerRequest(hello=hello)


def make_measurement(order_id: str, **changes: Any) -> runner_pb2.ConnectRunnerRequest:
    values: dict[str, Any] = {
        "measured_latency_ms_p10": 1.9,
        "measured_latency_ms_p50": 2.0,
        "measured_latency_ms_p90": 2.5,
        "measured_latency_ms_p99": 3.0,
        "measured_throughput_per_s": 450.0,
        "run_count": 300,
        "warm_up_count": 20,
        "settled": True,
        "noise_ratio": 0.01,
        "measured_peak_ram_bytes": 1 << 20,
        "process_peak_ram_bytes": 60 << 20,
        "energy": runner_pb2.EnergyReading(
            measured_energy_mj=8.0, mean_power_mw=4000.0, idle_power_mw=2500.0, source="hwmon:VDD"
        ),
        "before": runner_pb2.DeviceState(clock_mhz=2400, temperature_c=50),
        "after": runner_pb2.DeviceState(clock_mhz=2200, temperature_c=80),
        "throttled": True,
        "runtime": hardware_pb2.Runtime(name="litert", version="2.3.0"),
        "notes": ["warm"],
        "operators": [
            runner_pb2.OperatorTime(
                kind="Conv" * 40, measured_latency_ms=1.5, output_element_count=64
            ),
            runner_pb2.OperatorTime(kind="Add (ND)", measured_latency_ms=0.5),
        ],
    }
    return runner_pb2.ConnectRunnerRequest(
        measurement=runner_pb2.Measurement(order_id=order_id, **(values | changes))
    )


class Agent:
    """An agent as the wire sees it."""

    def __init__(self, service: Service) -> None:
        self._call = RunnerServiceStub(service.channel).ConnectRunner()

    async def say(self, message: runner_pb2.ConnectRunnerRequest) -> None:
        await self._call.write(message)

    async def hear(self) -> runner_pb2.ConnectRunnerResponse:
        answer = await asyncio.wait_for(self._call.read(), 10)
        assert isinstance(answer, runner_pb2.ConnectRunnerResponse), "the stream has ended"
        return answer

    async def connected(self) -> runner_pb2.RunnerWelcome:
        await self.say(make_hello())
        return (await self.hear()).welcome

    async def leave(self) -> None:
        await self._call.done_writing()

    async def _hear_out(self) -> None:
        while True:
            await self.hear()

    async def refusal(self) -> tuple[grpc.StatusCode, str, dict[str, str]]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self._hear_out()
        reason, facts = info_of(caught.value)
        return caught.value.code(), reason, dict(facts)


@pytest.fixture
async def agent(service: Service) -> Agent:
    return Agent(service)


async def test_a_measurement_comes_back_with_all_that_was_sent(
    service: Service, agent: Agent
) -> None:
    welcome = await agent.connected()
    assert welcome.server_version == "0.1.0"
    assert welcome.heartbeat_interval.seconds == 10
    task = asyncio.create_task(service.runners.measure(make_order(wants_operators=True)))
    offer = (await agent.hear()).offer

    assert offer.wants_operators
    assert offer.model_artifact == f"projects/default/artifacts/{'0' * 64}"
    assert (offer.format, offer.runtime) == (hardware_pb2.MODEL_FORMAT_TFLITE, "litert")
    assert (offer.timeout.seconds, offer.min_run_count, offer.min_duration.seconds) == (60, 100, 3)
    assert (offer.thread_count, offer.target) == (4, "pi-5")
    accepted = runner_pb2.WorkAccepted(order_id=offer.order_id)
    await agent.say(runner_pb2.ConnectRunnerRequest(accepted=accepted))
    alive = runner_pb2.RunnerHeartbeat(order_ids=[offer.order_id])
    await agent.say(runner_pb2.ConnectRunnerRequest(heartbeat=alive))
    await agent.say(make_measurement(offer.order_id))
    measured: Measurement = await asyncio.wait_for(task, 10)

    assert (measured.measured_latency_ms_p99, measured.run_count, measured.settled) == (
        3,
        300,
        True,
    )
    assert (measured.measured_peak_ram_bytes, measured.process_peak_ram_bytes) == (
        1 << 20,
        60 << 20,
    )
    assert measured.energy is not None
    assert (measured.energy.energy_mj, measured.energy.source) == (8.0, "hwmon:VDD")
    assert (measured.before.clock_mhz, measured.after.temperature_c) == (2400, 80)
    assert measured.throttled
    assert (measured.runtime_name, measured.runtime_version) == ("litert", "2.3.0")
    assert (measured.notes, measured.runner) == (("warm",), "bench")
    assert measured.measured_latency_ms_p10 == 1.9
    assert measured.operators == (
        OperatorTime(kind="Conv" * 16, latency_ms=1.5, output_elements=64),
        OperatorTime(kind="Add (ND)", latency_ms=0.5),
    )


async def test_what_a_device_cannot_tell_is_absent(service: Service, agent: Agent) -> None:
    await agent.connected()
    task = asyncio.create_task(service.runners.measure(make_order()))
    offer = (await agent.hear()).offer
    bare = runner_pb2.Measurement(
        order_id=offer.order_id,
        measured_latency_ms_p50=2.0,
        measured_latency_ms_p90=2.0,
        measured_throughput_per_s=500,
        run_count=10,
    )
    await agent.say(runner_pb2.ConnectRunnerRequest(measurement=bare))
    measured = await asyncio.wait_for(task, 10)

    assert not offer.wants_operators
    assert measured.operators == ()
    assert measured.measured_latency_ms_p10 is None
    assert measured.measured_latency_ms_p99 is None
    assert measured.measured_peak_ram_bytes is None
    assert measured.energy is None
    assert measured.before.clock_mhz is None


async def test_a_failure_carries_its_kind_and_words(service: Service, agent: Agent) -> None:
    await agent.connected()
    task = asyncio.create_task(service.runners.measure(make_order()))
    offer = (await agent.hear()).offer
    failure = runner_pb2.WorkFailure(
        order_id=offer.order_id, kind=runner_pb2.WorkFailure.KIND_OUT_OF_MEMORY, message="oom"
    )
    await agent.say(runner_pb2.ConnectRunnerRequest(failure=failure))

    with pytest.raises(MeasurementFailedError, match="bench: out of memory: oom"):
        await asyncio.wait_for(task, 10)


async def test_runners_are_listed_page_by_page_and_shown(service: Service) -> None:
    agents = [Agent(service) for _ in range(3)]
    for index, agent in enumerate(agents):
        await agent.say(make_hello(name=f"projects/default/runners/r{index}"))
        await agent.hear()
    stub = RunnerServiceStub(service.channel)
    request = runner_pb2.ListRunnersRequest(parent="projects/default", page_size=2)

    first = await stub.ListRunners(request)
    request.page_token = first.next_page_token
    second = await stub.ListRunners(request)

    names = [runner.name.rpartition("/")[2] for page in (first, second) for runner in page.runners]
    assert names == ["r0", "r1", "r2"]
    assert second.next_page_token == ""
    shown = await stub.GetRunner(runner_pb2.GetRunnerRequest(name="projects/default/runners/r1"))
    assert shown.device == make_hello().hello.device
    assert shown.state == runner_pb2.Runner.STATE_IDLE
    assert dict(shown.labels) == {"lab": "a"}
    await agents[1].leave()
    wanted = runner_pb2.GetRunnerRequest(name=shown.name)
    for _ in range(1_000):
        left = await stub.GetRunner(wanted)
        if left.state == runner_pb2.Runner.STATE_OFFLINE:
            break
    assert left.state == runner_pb2.Runner.STATE_OFFLINE
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetRunner(runner_pb2.GetRunnerRequest(name="projects/default/runners/none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_agent_of_another_version_learns_what_to_install(agent: Agent) -> None:
    await agent.say(make_hello(protocol_version=7))

    code, reason, facts = await agent.refusal()
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUNNER_VERSION_SKEW")
    assert "tightfit-runner==0.1.0" in facts["remedy"]


async def test_a_lie_ends_the_stream_and_the_next_one_is_refused(
    service: Service, agent: Agent
) -> None:
    await agent.connected()
    task = asyncio.create_task(service.runners.measure(make_order()))
    offer = (await agent.hear()).offer
    await agent.say(make_measurement(offer.order_id, measured_latency_ms_p50=float("nan")))

    code, reason, facts = await agent.refusal()
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "RUNNER_IMPLAUSIBLE")
    assert facts["field"] == "measurement.measured_latency_ms_p50"
    again = Agent(service)
    await again.say(make_hello())
    assert (await again.refusal())[:2] == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "RUNNER_QUARANTINED",
    )
    task.cancel()


@pytest.mark.parametrize(
    "message",
    [
        runner_pb2.ConnectRunnerRequest(),
        runner_pb2.ConnectRunnerRequest(heartbeat=runner_pb2.RunnerHeartbeat()),
    ],
    ids=["empty", "heartbeat"],
)
async def test_a_stream_begins_with_a_hello(
    agent: Agent, message: runner_pb2.ConnectRunnerRequest
) -> None:
    await agent.say(message)
    code, _, facts = await agent.refusal()
    assert (code, facts["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "hello")


async def test_an_agent_that_says_nothing_is_sent_away(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_servicer, "HELLO_SECONDS", 0.01)
    code, _, facts = await agent.refusal()
    assert (code, facts["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "hello")


async def test_a_second_hello_ends_the_stream(agent: Agent) -> None:
    await agent.connected()
    await agent.say(make_hello())
    code, _, facts = await agent.refusal()
    assert (code, facts["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "message")


async def test_a_stream_that_breaks_frees_the_name_and_moves_the_work(
    service: Service, agent: Agent
) -> None:
    await agent.connected()
    task = asyncio.create_task(service.runners.measure(make_order()))
    await agent.hear()
    other = Agent(service)
    await other.say(make_hello(name="projects/default/runners/other"))
    await other.hear()
    agent._call.cancel()

    offer = (await other.hear()).offer
    await other.say(make_measurement(offer.order_id))
    assert (await asyncio.wait_for(task, 10)).runner == "other"


async def test_agents_are_told_to_come_back_when_the_server_drains(
    service: Service, agent: Agent
) -> None:
    await agent.connected()
    stopping = asyncio.create_task(service.server.stop(grace_seconds=5))
    code, reason, _ = await agent.refusal()
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    await stopping
    await until(
        lambda: (
            ("tightfit.v1.RunnerService/ConnectRunner", "UNAVAILABLE") in service.metrics.finished
        )
    )
