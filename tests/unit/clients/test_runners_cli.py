"""`tightfit runners`: what is listed and shown of the devices that measure."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from fakes.tightfit_server import FakeTightfit
from tightfit import AsyncClient, Client
from tightfit.cli import main
from tightfit.v1 import hardware_pb2, runner_pb2


def make_runner(name: str, **changes: object) -> runner_pb2.Runner:
    seen = Timestamp()
    seen.FromDatetime(datetime.now(UTC) - timedelta(minutes=5))
    values: dict[str, object] = {
        "name": f"projects/default/runners/{name}",
        "state": runner_pb2.Runner.STATE_IDLE,
        "agent_version": "0.1.0",
        "last_seen_time": seen,
        "targets": ["raspberry-pi-5"],
        "labels": {"lab": "a"},
        "measurement_count": 12,
        "device": runner_pb2.DeviceDescription(
            core="cortex-a76",
            core_count=4,
            ram_bytes=8 << 30,
            runtimes=[
                runner_pb2.RunnerRuntime(
                    name="litert", version="2.3.0", formats=[hardware_pb2.MODEL_FORMAT_TFLITE]
                )
            ],
            sensors=["temperature"],
        ),
    }
    return runner_pb2.Runner(**(values | changes))  # type: ignore[arg-type]  # fields of all types


@pytest.fixture
def runners(fake: FakeTightfit, monkeypatch: pytest.MonkeyPatch) -> FakeTightfit:
    monkeypatch.setenv("TIGHTFIT_SERVER", fake.address)
    fake.state.runners = [
        make_runner("pi"),
        make_runner(
            "liar",
            state=runner_pb2.Runner.STATE_QUARANTINED,
            state_reason="measured_latency_ms_p50 is nan",
        ),
    ]
    return fake


def test_runners_are_listed(runners: FakeTightfit, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runners", "list"]) == 0
    _, pi, liar = capsys.readouterr().out.splitlines()
    assert pi.split()[:5] == ["pi", "idle", "4", "x", "cortex-a76"]
    assert "litert 2.3.0" in pi
    assert "raspberry-pi-5" in pi
    assert "5m" in pi
    assert "quarantined" in liar

    assert main(["runners", "list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["pi", "liar"]


def test_a_runner_is_shown_with_the_reason_of_its_state(
    runners: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runners", "show", "liar"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["state"], shown["state_reason"]) == (
        "quarantined",
        "measured_latency_ms_p50 is nan",
    )
    assert shown["device"]["runtimes"] == [
        {"name": "litert", "version": "2.3.0", "formats": ["tflite"]}
    ]
    assert shown["device"]["clock_mhz"] is None
    assert main(["runners", "show", "pi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"lab": "a"}


def test_a_runner_that_is_not_there_is_an_error(
    runners: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runners", "show", "none"]) == 2
    assert main(["runners", "show", "a/b"]) == 2
    assert "no runner" in capsys.readouterr().err


async def test_both_clients_know_runners(runners: FakeTightfit) -> None:
    with Client(runners.address) as client:
        assert [runner.name for runner in client.list_runners()] == [
            runner.name for runner in runners.state.runners
        ]
    async with AsyncClient(runners.address) as other:
        assert [r.state_reason async for r in other.list_runners()][1] != ""
        assert (await other.get_runner("projects/default/runners/pi")).measurement_count == 12


def test_a_device_is_calibrated_by_a_runner(
    runners: FakeTightfit, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["targets", "calibrate", "raspberry-pi-5", "--runner", "pi", "--networks", "64"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "raspberry-pi-5 is calibrated by pi with litert 2.3." in text
    row = next(line.split() for line in text.splitlines() if line.startswith("int8"))
    assert row == ["int8", "64", "93.0%", "2.0%", "8.0%", "60.0%", "91.0%"]
    assert "no kernel" in text

    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runner"] == "projects/default/runners/pi"
    assert report["quality"][0]["network_count"] == 64

    assert main([*arguments, "--keep-measurements"]) == 0
    asked = [request.keep_measurements for request in runners.state.calibrated]
    assert asked == [False, False, True]


def test_a_calibration_without_a_runner_is_a_usage_error(runners: FakeTightfit) -> None:
    assert main(["targets", "calibrate", "raspberry-pi-5"]) == 2
    many = ["targets", "calibrate", "raspberry-pi-5", "--runner", "pi", "--networks", "9999"]
    assert main(many) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody", "nobody"), ("liar", "the runner liar is quarantined"), ("away", "away is offline")],
)
def test_a_calibration_by_a_runner_that_cannot_measure_is_refused_at_once(
    runners: FakeTightfit, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    runners.state.runners.append(make_runner("away", state=runner_pb2.Runner.STATE_OFFLINE))
    assert main(["targets", "calibrate", "raspberry-pi-5", "--runner", name]) == 2
    assert message in capsys.readouterr().err


async def test_the_asyncio_client_calibrates_as_well(runners: FakeTightfit) -> None:
    async with AsyncClient(runners.address) as client:
        steps = [step async for step in client.calibrate_target("raspberry-pi-5", "pi")]
        async for _ in client.calibrate_target("raspberry-pi-5", "pi", keep_measurements=True):
            pass
    assert [step.HasField("report") for step in steps] == [False, True]
    asked = [request.keep_measurements for request in runners.state.calibrated]
    assert asked == [False, True]
