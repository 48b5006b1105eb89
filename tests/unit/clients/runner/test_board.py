"""A board that speaks the MLPerf Tiny protocol on a pseudo-terminal: healthy, mute, broken and slow."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tightfit_runner.board import BoardSettings, SerialBoard
from tightfit_runner.device import Device
from tightfit_runner.failures import MeasurementError, SettingsError
from tightfit_runner.measurement import Order, Result
from tightfit_runner.meters import Reading
from tightfit_runner.runtimes import InstalledRuntime
from tightfit_runner.serial_protocol import open_port
from tightfit_runner.settings import board_settings, meter_of, read_settings

DEVICE = Device(
    core="cortex-m7",
    core_count=1,
    ram_bytes=512 << 10,
    clock_mhz=216.0,
    runtimes=(InstalledRuntime("TFLM+CMSIS-NN", "1.0", ("tflite",)),),
)


class SimulatedBoard:
    """Answers as mlcommons/tiny's firmware does; its microseconds are its own, not the machine's."""

    def __init__(self, *, inference_us: int = 20_000, clock_us: int = 2**32 - 50_000) -> None:
        self.inference_us = inference_us
        self.clock_us = clock_us
        self.mute_after = 10**9
        """Commands after which the board answers no more."""
        self.refusal = ""
        self.drift_us = 0
        self.energy_mode = False
        self.commands: list[str] = []
        self.inferences: list[tuple[int, int]] = []
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join()
        for descriptor in (self._master, self._slave, self._stop, self._wake):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _serve(self) -> None:
        buffer = b""
        while True:
            readable, _, _ = select.select([self._master, self._stop], [], [])
            if self._stop in readable:
                return
            buffer += os.read(self._master, 1024)
            while b"%" in buffer:
                command, _, buffer = buffer.partition(b"%")
                self._answer(command.decode())

    def _answer(self, command: str) -> None:
        self.commands.append(command)
        if len(self.commands) > self.mute_after:
            return
        lines: list[str] = []
        if command == "name":
            lines = ["m-name-test-board-[simulated]"]
        elif command == "profile":
            lines = ["m-profile-[tiny 1.0]", "m-model-[ic01]"]
        elif command.startswith("infer"):
            lines = self._infer(*map(int, command.split()[1:]))
        text = "\r\n".join([*lines, "m-ready", ""])
        os.write(self._master, text.encode())

    def _infer(self, count: int, warm_up: int) -> list[str]:
        if self.refusal:
            return [f"e-[{self.refusal}]"]
        self.inferences.append((count, warm_up))
        stamps = []
        for elapsed in (0, count * self.inference_us):
            self.clock_us = (self.clock_us + elapsed) % 2**32
            stamps += [] if self.energy_mode else [f"m-lap-us-{self.clock_us}"]
        self.inference_us += self.drift_us
        return [
            f"m-warmup-start-{warm_up}",
            "m-warmup-done",
            f"m-infer-start-{count}",
            *stamps,
            "m-infer-done",
            "m-results-[0.992,0.000]",
        ]


@pytest.fixture
def simulated() -> Iterator[SimulatedBoard]:
    board = SimulatedBoard()
    yield board
    board.close()


def order(path: Path, **changes: float) -> Order:
    return Order(
        path=path,
        format="tflite",
        runtime="TFLM+CMSIS-NN",
        threads=1,
        timeout_seconds=changes.get("timeout_seconds", 60.0),
        min_runs=int(changes.get("min_runs", 100)),
        min_seconds=changes.get("min_seconds", 10.0),
    )


def measure(simulated: SimulatedBoard, tmp_path: Path, **changes: object) -> Result:
    values = {"device": DEVICE, "port": simulated.port, "boot_seconds": 5.0, **changes}
    meter = values.pop("meter", None)
    board = SerialBoard(BoardSettings(**values), meter=meter)  # type: ignore[arg-type]  # one mapping for fields of all types
    return board.measure(order(tmp_path / "model.tflite"), threading.Event())


def test_a_board_is_timed_in_windows_over_an_overflow_of_its_clock(
    simulated: SimulatedBoard, tmp_path: Path
) -> None:
    result = measure(simulated, tmp_path)

    assert result.p10_ms == pytest.approx(20.0)
    assert result.p50_ms == pytest.approx(20.0)
    assert result.p90_ms == pytest.approx(20.0)
    # ten seconds of 20 ms in five windows, after one to see how fast it is
    assert simulated.inferences == [(1, 1), *[(100, 0)] * 5]
    assert (result.run_count, result.p99_ms) == (500, None)
    assert result.throughput_per_s == pytest.approx(50.0)
    assert (result.settled, result.noise_ratio) == (True, 0.0)
    assert result.energy_mj is None
    assert "board test-board-[simulated" in result.notes[-1]
    assert "model ic01" in result.notes[-1]


def test_a_board_that_gets_slower_says_so(simulated: SimulatedBoard, tmp_path: Path) -> None:
    simulated.drift_us = 1_000
    result = measure(simulated, tmp_path)
    assert not result.settled
    assert result.noise_ratio > 0.1


class Meter:
    """Counts half a watt."""

    name = "ppk2:source"

    def start(self) -> None:
        pass

    def stop(self) -> Reading:
        return Reading(joules=1.0, seconds=2.0)


def test_energy_is_mean_power_times_latency(simulated: SimulatedBoard, tmp_path: Path) -> None:
    result = measure(simulated, tmp_path, meter=Meter())
    assert result.energy_mj == pytest.approx(0.5 * 20.0)
    assert result.energy_source == "ppk2:source"


class FailingMeter(Meter):
    """Cannot be started the first time that a window is measured, or breaks in one."""

    def __init__(self, *, starts: int, stops: int) -> None:
        self.left = {"starts": starts, "stops": stops}

    def _go(self, what: str) -> None:
        self.left[what] -= 1
        if self.left[what] == 0:
            raise OSError("unplugged")

    def start(self) -> None:
        self._go("starts")

    def stop(self) -> Reading:
        self._go("stops")
        return super().stop()


@pytest.mark.parametrize(("starts", "stops"), [(1, 9), (3, 9), (9, 1), (9, 5)])
def test_a_meter_that_fails_costs_the_energy_of_one_measurement_only(
    simulated: SimulatedBoard, tmp_path: Path, starts: int, stops: int
) -> None:
    meter = FailingMeter(starts=starts, stops=stops)
    board = SerialBoard(
        BoardSettings(device=DEVICE, port=simulated.port, boot_seconds=5.0), meter=meter
    )
    result = board.measure(order(tmp_path), threading.Event())
    assert result.p50_ms == pytest.approx(20.0)
    assert result.energy_mj is None
    assert "no energy: unplugged" in result.notes
    meter.left = {"starts": 99, "stops": 99}
    assert board.measure(order(tmp_path), threading.Event()).energy_mj == pytest.approx(10.0)


def test_every_model_is_flashed(simulated: SimulatedBoard, tmp_path: Path) -> None:
    flashed = tmp_path / "flashed"
    script = f"import sys; open({str(flashed)!r}, 'w').write(sys.argv[1])"
    measure(simulated, tmp_path, flash_command=f'{sys.executable} -c "{script}" {{model}}')
    assert flashed.read_text() == str(tmp_path / "model.tflite")


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        (
            f"{sys.executable} -c \"import sys; sys.exit('region RAM overflowed')\"",
            "UNSUPPORTED_MODEL",
            "overflowed",
        ),
        ("/no/such/programmer {model}", "DEVICE_LOST", "No such file"),
    ],
)
def test_a_flash_command_that_fails_is_told_in_its_words(
    simulated: SimulatedBoard, tmp_path: Path, command: str, kind: str, words: str
) -> None:
    with pytest.raises(MeasurementError, match=words) as caught:
        measure(simulated, tmp_path, flash_command=command)
    assert caught.value.kind == kind
    assert simulated.commands == []


def test_a_flash_command_that_hangs_is_killed(simulated: SimulatedBoard, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="did not end in time"):
        measure(
            simulated,
            tmp_path,
            flash_command=f'{sys.executable} -c "import time; time.sleep(600)"',
            flash_timeout_seconds=0.2,
        )


def test_a_board_that_stops_answering_is_lost(simulated: SimulatedBoard, tmp_path: Path) -> None:
    simulated.mute_after = 4  # name, name, profile, one inference
    clock = _FastClock(simulated)
    board = SerialBoard(
        BoardSettings(device=DEVICE, port=simulated.port, boot_seconds=5.0), clock=clock
    )
    with pytest.raises(MeasurementError, match="no answer to 'infer 100 0'") as caught:
        board.measure(order(tmp_path), threading.Event())
    assert caught.value.kind == "DEVICE_LOST"


class _FastClock:
    """Stands still while the board answers, and jumps once it is mute."""

    def __init__(self, board: SimulatedBoard) -> None:
        self._board = board
        self._now = 0.0

    def __call__(self) -> float:
        if len(self._board.commands) > self._board.mute_after:
            self._now += 5.0
        return self._now


def test_a_board_that_never_boots_is_lost(simulated: SimulatedBoard, tmp_path: Path) -> None:
    simulated.mute_after = 0
    with pytest.raises(MeasurementError) as caught:
        measure(simulated, tmp_path, boot_seconds=0.2)
    assert caught.value.kind == "DEVICE_LOST"


def test_a_boards_error_is_the_models(simulated: SimulatedBoard, tmp_path: Path) -> None:
    simulated.refusal = "AllocateTensors failed"
    with pytest.raises(MeasurementError, match="AllocateTensors failed") as caught:
        measure(simulated, tmp_path)
    assert caught.value.kind == "UNSUPPORTED_MODEL"


def test_a_board_in_energy_mode_tells_no_time(simulated: SimulatedBoard, tmp_path: Path) -> None:
    simulated.energy_mode = True
    with pytest.raises(MeasurementError, match="energy mode"):
        measure(simulated, tmp_path)


def test_an_order_that_is_taken_back_ends_while_the_board_works(
    simulated: SimulatedBoard, tmp_path: Path
) -> None:
    cancelled = threading.Event()
    simulated.mute_after = 0
    board = SerialBoard(BoardSettings(device=DEVICE, port=simulated.port, boot_seconds=600))
    threading.Timer(0.1, cancelled.set).start()
    with pytest.raises(MeasurementError) as caught:
        board.measure(order(tmp_path, timeout_seconds=600), cancelled)
    assert caught.value.kind == "CANCELLED"


def test_a_port_that_is_not_there_is_a_lost_device() -> None:
    with pytest.raises(MeasurementError) as caught:
        open_port("/dev/no-such-port", 115_200)
    assert caught.value.kind == "DEVICE_LOST"


GOOD = """
[board]
name = Nucleo
core = cortex-m7
clock_mhz = 216
ram_bytes = 524288
runtime = TFLM+CMSIS-NN
port = /dev/ttyACM0
flash_command = make flash MODEL={model} OPTIONS="-j 50%"

[energy]
meter = command
command = read-joules
"""


def test_a_board_is_described_by_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board.ini"
    path.write_text(GOOD)
    parser = read_settings(path)
    settings = board_settings(parser)
    meter = meter_of(parser, is_board=True)

    assert settings is not None
    assert settings.device.core == "cortex-m7"
    assert settings.device.runtimes[0].formats == ("tflite",)
    assert settings.flash_command.endswith('"-j 50%"')
    assert meter is not None
    assert meter.name == "command:read-joules"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("core = cortex-m7", "", "no core"),
        ("ram_bytes = 524288", "ram_bytes = much", "much"),
        ("[energy]", "[power]", r"\[power\] means nothing"),
        ("clock_mhz", "clock", "clock means nothing"),
        ("meter = command", "meter = ppk2", "supply_v"),
        ("meter = command", "meter = magic", "choose"),
        ("command = read-joules", "", "needs a command"),
        ("name = Nucleo", "formats = savedmodel", "savedmodel is none of"),
        ("[board]", "board", "no section"),
    ],
)
def test_a_file_that_means_nothing_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    path = tmp_path / "board.ini"
    path.write_text(GOOD.replace(old, new, 1))

    def read() -> None:
        parser = read_settings(path)
        board_settings(parser)
        meter_of(parser, is_board=True)

    with pytest.raises(SettingsError, match=words):
        read()
