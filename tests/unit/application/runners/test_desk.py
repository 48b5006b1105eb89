"""The desk of the runners: matching, fairness, time-outs, retries, and runners that lie or die."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.runners import (
    PI,
    RecordingRunnerTelemetry,
    make_desk,
    make_device,
    make_hello,
    make_measurement,
    make_order,
)
from tightfit_service.application.ports import Page
from tightfit_service.application.runners import desk as desk_module
from tightfit_service.application.runners.attempts import MAX_ATTEMPTS
from tightfit_service.application.runners.desk import RunnerDesk
from tightfit_service.application.runners.registry import QUARANTINE_SECONDS
from tightfit_service.application.runners.sessions import (
    Cancellation,
    Command,
    Offer,
    RunnerFloodError,
    RunnerQuarantinedError,
    RunnerSession,
    RunnerState,
    RunnerVersionError,
    Welcome,
)
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    MeasurementFailedError,
    NoRunnerError,
    NotFoundError,
    UnavailableError,
)
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    ModelFormat,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.measurement import (
    DeviceRuntime,
    DeviceState,
    EnergyReading,
    FailureKind,
    ImplausibleReportError,
    Measurement,
    OperatorTime,
)

NPU = Accelerator(kind=AcceleratorKind.NPU, tops={NumberFormat.INT8: 4.0})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def telemetry() -> RecordingRunnerTelemetry:
    return RecordingRunnerTelemetry()


@pytest.fixture
def desk(clock: FakeClock, telemetry: RecordingRunnerTelemetry) -> RunnerDesk:
    return make_desk(clock, telemetry)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def begin(work: Coroutine[Any, Any, Measurement]) -> asyncio.Task[Measurement]:
    task = asyncio.create_task(work)
    await settle()
    return task


async def told(session: RunnerSession) -> Command:
    """Return the next command that is not the welcome."""
    async for command in session.commands():
        if not isinstance(command, Welcome):
            return command
    raise AssertionError("the session ended")


async def offered(session: RunnerSession) -> Offer:
    command = await asyncio.wait_for(told(session), 5)
    assert isinstance(command, Offer)
    return command


def is_idle(session: RunnerSession) -> bool:
    return not session.order_ids


async def test_an_order_goes_to_a_runner_of_the_target_and_comes_back_measured(
    desk: RunnerDesk, clock: FakeClock, telemetry: RecordingRunnerTelemetry
) -> None:
    session = await desk.connect("default", "bench", make_hello())
    notes: list[str] = []
    task = await begin(desk.measure(make_order(), on_note=notes.append))

    offer = await offered(session)
    assert (offer.runtime, offer.thread_count, offer.target) == ("litert", 4, "pi-5")
    desk.accepted(session, offer.order_id)
    assert (await desk.get("default", "bench")).state is RunnerState.BUSY
    clock.advance(5)
    desk.measured(session, offer.order_id, make_measurement())

    assert await task == make_measurement(runner="bench")
    shown = await desk.get("default", "bench")
    assert (shown.state, shown.measurement_count) == (RunnerState.IDLE, 1)
    assert notes == ["measured on bench"]
    assert telemetry.outcomes == [("pi-5", "measured")]
    assert telemetry.waits == [0]
    assert telemetry.states == {("idle", ""): 1}


async def test_without_a_runner_the_answer_is_immediate_and_says_what_is_there(
    desk: RunnerDesk,
) -> None:
    await desk.connect("default", "server", make_hello(device=make_device(core="x86-64")))

    with pytest.raises(NoRunnerError) as caught:
        await desk.measure(make_order())

    assert "server: its cores are x86-64, those of pi-5 are cortex-a76" in caught.value.message
    assert "tightfit-runner --target pi-5" in caught.value.remedy


async def test_an_order_may_wait_for_a_runner_that_is_not_there_yet(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    notes: list[str] = []
    task = await begin(desk.measure(make_order(wait_seconds=30), on_note=notes.append))
    late = await begin(desk.measure(make_order(wait_seconds=30, target=replace(PI, name="other"))))
    clock.advance(29)
    desk.sweep()
    session = await desk.connect("default", "bench", make_hello(targets=("pi-5",)))
    clock.advance(2)
    desk.sweep()

    assert notes[0] == "waiting for a runner of pi-5, 0 measurements ahead"
    offer = await offered(session)
    desk.measured(session, offer.order_id, make_measurement(run_count=1))
    assert (await task).runner == "bench"
    with pytest.raises(NoRunnerError):
        await late


@pytest.mark.parametrize(
    ("hello", "order", "reason"),
    [
        ({"labels": {"lab": "a"}}, {"labels": {"lab": "b"}}, "the label lab=b"),
        ({"targets": ("another",)}, {}, "stands for another"),
        ({"device": make_device(core_count=2)}, {}, "2 cores"),
        ({"device": make_device(clock_mhz=1_800.0)}, {}, "1800 MHz"),
        ({"device": make_device(isa_features=("neon",))}, {}, "lacks dotprod"),
        ({}, {"format": ModelFormat.ONNX}, "onnx for TensorFlow Lite XNNPACK is wanted"),
        ({}, {"target": replace(PI, runtime=Runtime(name="ONNX Runtime"))}, "it has litert"),
        (
            {},
            {"target": replace(PI, accelerator=NPU)},
            "only its operator can tell",
        ),
    ],
)
async def test_a_runner_that_does_not_fit_gets_no_order(
    desk: RunnerDesk, hello: dict[str, Any], order: dict[str, Any], reason: str
) -> None:
    await desk.connect("default", "bench", make_hello(**hello))

    with pytest.raises(NoRunnerError, match="bench") as caught:
        await desk.measure(make_order(**order))

    assert reason in caught.value.message


async def test_what_the_operator_names_is_matched_by_its_cores_only(desk: RunnerDesk) -> None:
    slow = make_device(clock_mhz=1_500.0, core_count=2)
    session = await desk.connect("default", "bench", make_hello(device=slow, targets=("pi-5",)))
    task = await begin(desk.measure(make_order()))

    assert (await offered(session)).thread_count == 2
    task.cancel()


async def test_another_project_does_not_see_or_use_a_runner(desk: RunnerDesk) -> None:
    await desk.connect("mine", "bench", make_hello())

    with pytest.raises(NoRunnerError) as caught:
        await desk.measure(make_order(project="theirs"))
    assert "bench" not in caught.value.message
    with pytest.raises(NotFoundError):
        await desk.get("theirs", "bench")
    assert await desk.list("theirs", Page(size=5)) == []
    assert [runner.runner_id for runner in await desk.list("mine", Page(size=5))] == ["bench"]


async def test_a_runner_that_dies_loses_its_work_to_another(desk: RunnerDesk) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    task = await begin(desk.measure(make_order()))
    lost = await offered(first)
    second = await desk.connect("default", "b", make_hello("2"))
    assert is_idle(second)

    desk.disconnect(first)

    offer = await offered(second)
    assert offer.order_id != lost.order_id
    desk.measured(first, lost.order_id, make_measurement(measured_latency_ms_p50=1.0))
    desk.measured(second, lost.order_id, make_measurement(measured_latency_ms_p50=1.0))
    desk.measured(second, offer.order_id, make_measurement(run_count=1))
    assert (await task).measured_latency_ms_p50 == 2.0
    assert (await desk.get("default", "a")).state is RunnerState.OFFLINE


async def test_work_that_was_begun_waits_for_its_only_runner_to_come_back(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    session = await desk.connect("default", "a", make_hello())
    task = await begin(desk.measure(make_order()))
    desk.disconnect(session)
    clock.advance(desk_module.RETURN_SECONDS - 1)
    desk.sweep()

    again = await desk.connect("default", "a", make_hello())
    desk.measured(again, (await offered(again)).order_id, make_measurement(run_count=1))

    assert (await task).runner == "a"


async def test_work_that_was_begun_fails_with_the_reason_when_nobody_comes_back(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    session = await desk.connect("default", "a", make_hello())
    task = await begin(desk.measure(make_order()))
    desk.disconnect(session)
    desk.sweep()
    clock.advance(desk_module.RETURN_SECONDS)
    desk.sweep()

    with pytest.raises(MeasurementFailedError, match="a: device lost: the agent left"):
        await task


async def test_silence_ends_a_session_and_moves_its_work(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    task = await begin(desk.measure(make_order()))
    offer = await offered(first)
    desk.accepted(first, offer.order_id)
    clock.advance(desk_module.SILENCE_SECONDS - 1)
    second = await desk.connect("default", "b", make_hello("2"))
    desk.sweep()
    assert is_idle(second)
    clock.advance(2)
    desk.sweep()

    with pytest.raises(UnavailableError, match="nothing was heard"):
        await told(first)
    desk.measured(second, (await offered(second)).order_id, make_measurement(run_count=1))
    assert (await task).runner == "b"


async def test_an_offer_that_is_not_taken_goes_to_another(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    task = await begin(desk.measure(make_order()))
    lost = await offered(first)
    second = await desk.connect("default", "b", make_hello("2"))
    clock.advance(desk_module.ACCEPT_SECONDS - 15)
    for session in (first, second):
        desk.heartbeat(session, [])
    clock.advance(16)
    desk.sweep()

    assert await told(first) == Cancellation(order_id=lost.order_id)
    desk.measured(second, (await offered(second)).order_id, make_measurement(run_count=1))
    assert (await task).runner == "b"


async def test_work_that_hangs_is_cancelled_and_done_elsewhere(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    second = await desk.connect("default", "b", make_hello("2"))
    task = await begin(desk.measure(make_order(timeout_seconds=60)))
    offer = await offered(first)
    desk.accepted(first, offer.order_id)
    for _ in range(10):
        desk.heartbeat(first, [offer.order_id])
        desk.heartbeat(second, [])
        clock.advance(10)
        desk.sweep()

    assert await told(first) == Cancellation(order_id=offer.order_id)
    desk.measured(second, (await offered(second)).order_id, make_measurement(run_count=1))
    assert (await task).runner == "b"


async def test_work_that_an_agent_does_not_know_any_more_is_done_again(desk: RunnerDesk) -> None:
    session = await desk.connect("default", "a", make_hello())
    other = await desk.connect("default", "b", make_hello("2"))
    task = await begin(desk.measure(make_order()))
    offer = await offered(session)
    desk.heartbeat(session, [])
    assert not is_idle(session), "an offer that is under way is not lost"
    desk.accepted(session, offer.order_id)
    desk.heartbeat(session, [])

    desk.measured(other, (await offered(other)).order_id, make_measurement(run_count=1))
    assert (await task).runner == "b"


async def test_a_model_that_crashes_a_runtime_is_tried_on_each_runner_once(
    desk: RunnerDesk, telemetry: RecordingRunnerTelemetry
) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    second = await desk.connect("default", "b", make_hello("2"))
    task = await begin(desk.measure(make_order()))
    desk.failed(first, (await offered(first)).order_id, FailureKind.CRASHED, "signal 11")
    desk.failed(second, (await offered(second)).order_id, FailureKind.UNSUPPORTED_MODEL, "op 130")

    with pytest.raises(MeasurementFailedError) as caught:
        await task
    assert "a: crashed: signal 11; b: unsupported model: op 130" in caught.value.message
    assert telemetry.outcomes == [("pi-5", "crashed"), ("pi-5", "unsupported_model")]
    assert (await desk.get("default", "a")).failure_count == 1


async def test_a_passing_trouble_is_tried_again_on_the_same_runner_after_a_rest(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    session = await desk.connect("default", "a", make_hello())
    task = await begin(desk.measure(make_order()))
    for _ in range(MAX_ATTEMPTS):
        offer = await offered(session)
        desk.failed(session, offer.order_id, FailureKind.FETCH_FAILED, "no route")
        assert is_idle(session)
        clock.advance(desk_module.REST_SECONDS)
        desk.sweep()

    with pytest.raises(MeasurementFailedError, match="no route"):
        await task


async def test_giving_up_frees_the_device(desk: RunnerDesk) -> None:
    session = await desk.connect("default", "a", make_hello())
    task = await begin(desk.measure(make_order()))
    offer = await offered(session)
    waiting = await begin(desk.measure(make_order(job_id="other")))
    task.cancel()
    await settle()

    assert await told(session) == Cancellation(order_id=offer.order_id)
    assert (await offered(session)).order_id != offer.order_id
    waiting.cancel()
    await settle()
    assert is_idle(session)


async def test_devices_are_shared_between_projects_and_jobs_by_time(
    desk: RunnerDesk, clock: FakeClock
) -> None:
    session = await desk.connect("p", "bench", make_hello())
    order = make_order(project="p", job_id="greedy")
    tasks = [
        await begin(desk.measure(replace(order, artifact_digest=f"{i}" * 64))) for i in range(4)
    ]
    tasks += [
        await begin(desk.measure(replace(order, job_id="modest", artifact_digest=f"{i}" * 64)))
        for i in (8, 9)
    ]
    digests = ""
    for _ in range(6):
        offer = await offered(session)
        digests += offer.artifact_digest[0]
        clock.advance(10)
        desk.measured(session, offer.order_id, make_measurement())
    await asyncio.gather(*tasks)

    # The newcomer starts level with the other, whose second order came before.
    assert digests == "018293"


LIES: list[dict[str, Any]] = [
    {"measured_latency_ms_p50": math.nan},
    {"measured_latency_ms_p90": math.inf},
    {"measured_latency_ms_p50": -1.0},
    {"measured_latency_ms_p50": 0.0},
    {"measured_latency_ms_p50": 1e-6},
    {"measured_latency_ms_p50": 1e-3},  # 12 million MACs in a microsecond
    {"measured_latency_ms_p90": 1.0},  # below the median
    {"measured_latency_ms_p10": 2.1},  # above the median
    {"measured_latency_ms_p10": 1e-3},
    {"measured_latency_ms_p10": math.nan},
    {"measured_throughput_per_s": math.nan},
    {"run_count": 0},
    {"run_count": 100_000},  # 200 s of inferences in a moment
    {"measured_peak_ram_bytes": -1},
    {"operators": (OperatorTime(kind="Conv", latency_ms=math.nan),)},
    {"operators": (OperatorTime(kind="Conv", latency_ms=-1.0),)},
    {"operators": (OperatorTime(kind="Conv", latency_ms=23.0),)},  # all of it takes 2.2
    {"operators": (OperatorTime(kind="Conv", latency_ms=1.0, output_elements=-1),)},
    {"before": DeviceState(temperature_c=math.nan)},
    {"after": DeviceState(temperature_c=math.inf)},
    {"energy": EnergyReading(energy_mj=math.nan, mean_power_mw=1.0, source="a meter")},
    {"energy": EnergyReading(energy_mj=1.0, mean_power_mw=1.0, source="m", idle_power_mw=math.nan)},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
async def test_a_runner_that_reports_what_cannot_be_is_refused_with_the_reason(
    desk: RunnerDesk, clock: FakeClock, telemetry: RecordingRunnerTelemetry, lie: dict[str, Any]
) -> None:
    liar = await desk.connect("default", "liar", make_hello("1"))
    task = await begin(desk.measure(make_order()))
    offer = await offered(liar)
    honest = await desk.connect("default", "honest", make_hello("2"))
    clock.advance(5)
    desk.measured(liar, offer.order_id, make_measurement(**lie))

    with pytest.raises(ImplausibleReportError) as caught:
        await told(liar)
    assert caught.value.field.startswith(f"measurement.{next(iter(lie))}")
    shown = await desk.get("default", "liar")
    assert shown.state is RunnerState.QUARANTINED
    assert shown.state_reason == caught.value.message
    assert telemetry.states[("quarantined", "")] == 1
    with pytest.raises(RunnerQuarantinedError, match="60 more minutes"):
        await desk.connect("default", "liar", make_hello("3"))
    clock.advance(5)
    desk.measured(honest, (await offered(honest)).order_id, make_measurement())
    assert (await task).runner == "honest"
    clock.advance(QUARANTINE_SECONDS)
    await desk.connect("default", "liar", make_hello("3"))


async def test_a_flood_ends_the_session(desk: RunnerDesk, clock: FakeClock) -> None:
    session = await desk.connect("default", "a", make_hello())
    for _ in range(1_000):
        clock.advance(0.5)
        desk.heartbeat(session, [])
    assert session.is_open
    for _ in range(1_000):
        desk.heartbeat(session, [])

    with pytest.raises(RunnerFloodError):
        await told(session)
    with pytest.raises(RunnerQuarantinedError):
        await desk.connect("default", "a", make_hello())


async def test_a_name_belongs_to_one_agent_at_a_time(desk: RunnerDesk) -> None:
    first = await desk.connect("default", "a", make_hello("1"))
    with pytest.raises(AlreadyExistsError, match="another agent"):
        await desk.connect("default", "a", make_hello("2"))

    again = await desk.connect("default", "a", make_hello("1"))
    assert (first.is_open, again.is_open) == (False, True)
    desk.disconnect(first)
    assert (await desk.get("default", "a")).state is RunnerState.IDLE
    desk.disconnect(again)
    await desk.connect("default", "a", make_hello("2"))


async def test_a_device_that_is_not_the_target_it_names_is_refused(desk: RunnerDesk) -> None:
    hello = make_hello(device=make_device(core="x86-64"), targets=("pi-5",))
    with pytest.raises(ImplausibleReportError) as caught:
        await desk.connect("default", "a", hello)
    assert caught.value.field == "hello.targets"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(0, "pip install --upgrade tightfit-runner==0.1.0"), (2, "update the server")],
)
async def test_another_version_of_the_protocol_is_refused_with_what_to_install(
    desk: RunnerDesk, version: int, remedy: str
) -> None:
    with pytest.raises(RunnerVersionError) as caught:
        await desk.connect("default", "a", make_hello(protocol_version=version))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"instance_id": ""},
        {"capacity": 1_000},
        {"labels": {str(i): "" for i in range(100)}},
        {"agent_version": "x" * 10_000},
    ],
    ids=["instance", "capacity", "labels", "text"],
)
async def test_a_hello_that_would_fill_the_memory_is_refused(
    desk: RunnerDesk, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError):
        await desk.connect("default", "a", make_hello(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"core_count": 0}, {"ram_bytes": -1}, {"clock_mhz": math.nan}, {"core": ""}, {"runtimes": ()}],
    ids=str,
)
def test_a_device_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ImplausibleReportError) as caught:
        make_device(**changes)
    assert next(iter(changes)) in caught.value.field


async def test_two_boards_behind_one_agent_get_two_offers(desk: RunnerDesk) -> None:
    session = await desk.connect("default", "a", make_hello(capacity=2))
    tasks = [await begin(desk.measure(make_order())) for _ in range(3)]

    assert len({(await offered(session)).order_id for _ in range(2)}) == 2
    assert len(session.order_ids) == 2
    for task in tasks:
        task.cancel()


async def test_runtimes_are_matched_by_family_and_format(desk: RunnerDesk) -> None:
    both = make_device(
        runtimes=(
            DeviceRuntime(name="litert", version="2.3.0", formats=(ModelFormat.TFLITE,)),
            DeviceRuntime(name="onnxruntime", version="1.31.1", formats=(ModelFormat.ONNX,)),
        )
    )
    session = await desk.connect("default", "a", make_hello(device=both))
    target = replace(PI, runtime=Runtime(name="ONNX Runtime", version="1.20"))
    task = await begin(desk.measure(make_order(format=ModelFormat.ONNX, target=target)))

    assert (await offered(session)).runtime == "onnxruntime"
    task.cancel()


@pytest.mark.parametrize("seed", range(10))
async def test_no_order_is_lost_or_answered_twice_whatever_runners_do(
    desk: RunnerDesk, clock: FakeClock, seed: int
) -> None:
    chance = random.Random(seed)
    tasks = [
        await begin(desk.measure(make_order(job_id=f"job-{i % 3}", macs=i, wait_seconds=1e9)))
        for i in range(12)
    ]
    sessions: dict[str, RunnerSession] = {}
    for _ in range(200):
        clock.advance(chance.choice([0.1, 5.0, 40.0]))
        name = chance.choice("abc")
        session = sessions.get(name)
        if session is None or not session.is_open:
            sessions[name] = await desk.connect("default", name, make_hello(name))
            continue
        orders = sorted(session.order_ids)
        match chance.randrange(6):
            case 0:
                desk.disconnect(session)
            case 1 if orders:
                desk.measured(session, orders[0], make_measurement(run_count=1))
            case 2 if orders:
                desk.failed(session, orders[0], FailureKind.DEVICE_LOST, "pulled the plug")
            case 3 if orders:
                desk.accepted(session, orders[0])
            case 4:
                desk.sweep()
            case _:
                desk.heartbeat(session, chance.sample(orders, chance.randint(0, len(orders))))
        await settle()
    steady = await desk.connect("default", "steady", make_hello("steady"))
    for _ in range(200):
        for order_id in sorted(steady.order_ids):
            desk.measured(steady, order_id, make_measurement(run_count=1))
        clock.advance(1.0)
        desk.heartbeat(steady, sorted(steady.order_ids))
        desk.sweep()
        await settle()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(o, (Measurement, MeasurementFailedError)) for o in outcomes)
    assert any(isinstance(o, Measurement) for o in outcomes)
    for session in (*sessions.values(), steady):
        assert is_idle(session)


async def test_time_passes_by_itself_once_the_desk_is_started(
    desk: RunnerDesk, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(desk_module, "SWEEP_SECONDS", 0.0)
    session = await desk.connect("default", "a", make_hello())
    await desk.start()
    clock.advance(desk_module.SILENCE_SECONDS + 1)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(told(session), 5)

    other = await desk.connect("default", "b", make_hello())
    await desk.stop()
    with pytest.raises(UnavailableError, match="shutting down"):
        await told(other)
