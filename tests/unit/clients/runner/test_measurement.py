"""Measuring on this machine: real runtimes, and processes that crash, hang, lie or run out of memory."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fakes.networks import plain_cnn
from tightfit_runner.failures import MeasurementError
from tightfit_runner.measurement import LocalMachine, Order
from tightfit_runner.meters import Reading
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.hardware import NumberFormat

STEADY = 'print(\'{"event": "steady"}\', flush=True); sys.stdin.readline()\n'
STOPPED = 'print(\'{"event": "stopped", "seconds": 2.0, "run_count": 100}\', flush=True)\n'
DONE = (
    'print(\'{"event": "done", "p10_ms": 19.0, "p50_ms": 20.0, "p90_ms": 21.0, "p99_ms": null,'
    ' "throughput_per_s": 50.0, "run_count": 100, "noise_ratio": 0.5, "warm_up_count": 7,'
    ' "settled": false, "process_peak_bytes": 9, "model_peak_bytes": 5}\', flush=True)\n'
)


def order(path: Path, **changes: object) -> Order:
    values: dict[str, object] = {
        "path": path,
        "format": "onnx",
        "runtime": "of a test",
        "threads": 1,
        "timeout_seconds": 60.0,
        "min_runs": 10,
        "min_seconds": 0.0,
    }
    return Order(**(values | changes))  # type: ignore[arg-type]  # one mapping for fields of all types


def machine(folder: Path, script: str, **changes: object) -> LocalMachine:
    program = folder / "program.py"
    program.write_text(f"import os, signal, subprocess, sys, time\n{script}")
    return LocalMachine(versions={}, program=program, **changes)  # type: ignore[arg-type]  # likewise


def as_tflite(graph: bytes) -> bytes:
    samples = Samples(
        stored=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32),
        labels=None,
        input_name="input",
    )
    settings = QuantizationSettings(number_format=NumberFormat.FLOAT32)
    exporter = TfliteExporter()
    return exporter.export(graph, calibration=samples, settings=settings, metadata={}).data


class Meter:
    """Counts ten watts."""

    name = "a meter"

    def __init__(self, *, breaks: bool = False) -> None:
        self.starts = 0
        self._breaks = breaks

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> Reading:
        if self._breaks and self.starts > 1:
            raise OSError("unplugged")
        return Reading(joules=25.0, seconds=2.5)


def test_a_model_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(plain_cnn().SerializeToString())
    machine = LocalMachine(versions={"onnxruntime": "1.2.3"})
    result = machine.measure(order(path, runtime="onnxruntime"), threading.Event())

    assert result.run_count >= 10
    assert 0 < result.p10_ms <= result.p50_ms <= result.p90_ms
    assert result.throughput_per_s > 0
    assert result.warm_up_count > 0
    assert result.process_peak_bytes is not None
    assert result.model_peak_bytes is not None
    assert 0 < result.model_peak_bytes < result.process_peak_bytes
    assert (result.runtime, result.runtime_version) == ("onnxruntime", "1.2.3")


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_runtime_tells_what_its_operators_take(tmp_path: Path, runtime: str) -> None:
    graph = plain_cnn().SerializeToString()
    path = tmp_path / "model"
    path.write_bytes(as_tflite(graph) if runtime == "litert" else graph)
    result = LocalMachine(versions={}).measure(
        order(path, runtime=runtime, wants_operators=True), threading.Event()
    )
    kinds = [item.kind for item in result.operators]
    assert sum(kind.startswith("Conv") for kind in kinds) == 2
    assert all(item.latency_ms > 0 for item in result.operators)
    # those of other runs, on a machine that others may use
    assert sum(item.latency_ms for item in result.operators) < 20 * result.p90_ms
    assert not [note for note in result.notes if "operators" in note]
    if runtime == "onnxruntime":
        # LiteRT does not tell
        assert all(item.output_elements > 0 for item in result.operators)


def test_operators_are_told_where_they_are_wanted_only(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(plain_cnn().SerializeToString())
    measured = LocalMachine(versions={}).measure(
        order(path, runtime="onnxruntime"), threading.Event()
    )
    assert measured.operators == ()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ('print(\'{"event": "no operators", "message": "too old"}\', flush=True)', "too old"),
    ],
    ids=["crash", "unknown"],
)
def test_a_profiler_that_breaks_costs_the_operators_only(
    tmp_path: Path, script: str, words: str
) -> None:
    result = machine(tmp_path, STEADY + STOPPED + DONE + script).measure(
        order(tmp_path, wants_operators=True), threading.Event()
    )
    assert (result.p50_ms, result.operators) == (20.0, ())
    assert any("operators" in note and words in note for note in result.notes)


def test_an_order_taken_back_while_operators_are_timed_ends(tmp_path: Path) -> None:
    cancelled = threading.Event()
    ready = tmp_path / "ready"
    script = f"open({str(ready)!r}, 'w').close()\ntime.sleep(600)"

    def clock() -> float:
        if ready.exists():
            cancelled.set()
        return 0.0

    with pytest.raises(MeasurementError) as caught:
        machine(tmp_path, STEADY + STOPPED + DONE + script, clock=clock).measure(
            order(tmp_path, wants_operators=True), cancelled
        )
    assert caught.value.kind == "CANCELLED"


def test_every_process_begins_as_if_it_were_the_first(tmp_path: Path) -> None:
    script = (
        "import tightfit_runner\n"
        "assert not hasattr(tightfit_runner, 'left_behind')\n"
        "tightfit_runner.left_behind = os.getpid()\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getppid()}} {{os.getpid()}}\\n')\n"
    )
    tried = machine(tmp_path, script + STEADY + STOPPED + DONE)
    for _ in range(3):
        tried.measure(order(tmp_path), threading.Event())
    pids = [line.split() for line in (tmp_path / "pids").read_text().splitlines()]
    assert len({server for server, _ in pids}) == 1
    assert len({own for _, own in pids}) == 3


def test_what_starts_processes_is_started_again_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tightfit_runner.measurement.MOST_FORKS", 2)
    script = f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getppid()}}\\n')\n"
    tried = machine(tmp_path, script + STEADY + STOPPED + DONE)
    for _ in range(5):
        tried.measure(order(tmp_path), threading.Event())
    servers = (tmp_path / "pids").read_text().splitlines()
    assert servers[0] == servers[1] != servers[2] == servers[3] != servers[4]


def test_what_starts_processes_is_started_again_where_it_died(tmp_path: Path) -> None:
    # a kernel that is short of memory may choose it
    kill = f"if not os.path.exists({str(tmp_path / 'killed')!r}):\n"
    kill += f"    open({str(tmp_path / 'killed')!r}, 'w').close()\n"
    kill += "    os.kill(os.getppid(), signal.SIGKILL)\n    sys.exit()\n"
    # behind the first answer, by when it has surely told which process it started
    tried = machine(tmp_path, STEADY + kill + STOPPED + DONE)
    with pytest.raises(MeasurementError) as caught:
        tried.measure(order(tmp_path), threading.Event())
    assert caught.value.kind == "CRASHED"
    assert tried.measure(order(tmp_path), threading.Event()).p50_ms == 20.0


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "another"])
def test_a_file_that_no_runtime_takes_is_refused_in_its_words(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"nothing that any runtime knows" * 10)
    with pytest.raises(MeasurementError) as caught:
        LocalMachine(versions={}).measure(order(path, runtime=runtime), threading.Event())
    assert caught.value.kind == "UNSUPPORTED_MODEL"
    assert len(caught.value.message) > 10


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "CRASHED", "SIGSEGV"),
        ("os.abort()", "CRASHED", "SIGABRT"),
        ("print('kernel bug', file=sys.stderr); sys.exit(3)", "CRASHED", "status 3; kernel bug"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "OUT_OF_MEMORY", "memory"),
        (STEADY + "sys.exit(0)", "CRASHED", "exit status 0"),
        ("print('noise'); print('{\"event\": \"done\"}')", "INTERNAL", "done came before steady"),
    ],
    ids=["segfault", "abort", "exit", "oom", "silent", "order"],
)
def test_a_model_that_kills_its_process_is_reported(
    tmp_path: Path, script: str, kind: str, words: str
) -> None:
    with pytest.raises(MeasurementError) as caught:
        machine(tmp_path, script).measure(order(tmp_path), threading.Event())
    assert caught.value.kind == kind
    assert words in caught.value.message


def test_a_model_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        + STEADY
        + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
    )

    # The clock stands still until the process hangs, then jumps beyond the time-out.
    def clock() -> float:
        return 1e6 if pids.exists() and pids.read_text().count(" ") else 0.0

    with pytest.raises(MeasurementError) as caught:
        machine(tmp_path, script, clock=clock).measure(order(tmp_path), threading.Event())

    assert caught.value.kind == "TIMED_OUT"
    for pid in map(int, pids.read_text().split()):
        assert _is_gone(pid)


def test_an_order_that_is_taken_back_ends_at_once(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(MeasurementError) as caught:
        machine(tmp_path, "time.sleep(600)").measure(order(tmp_path), cancelled)
    assert caught.value.kind == "CANCELLED"


def test_energy_is_that_of_the_runs_and_unrest_is_said(tmp_path: Path) -> None:
    result = machine(tmp_path, STEADY + STOPPED + DONE, meter=Meter()).measure(
        order(tmp_path, min_runs=200), threading.Event()
    )
    # 10 W over 2 s of runs, 100 of them
    assert result.energy_mj == pytest.approx(200.0)
    assert (result.mean_power_mw, result.idle_power_mw) == (10_000.0, 10_000.0)
    assert result.energy_source == "a meter"
    assert not result.settled
    assert result.notes == (
        "the latency did not settle: it moved by 50%",
        "100 runs instead of 200 within the time",
    )


@pytest.mark.parametrize("joules", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_energy_is_not_told_as_one(tmp_path: Path, joules: float) -> None:
    class Still(Meter):
        def stop(self) -> Reading:
            return Reading(joules=joules, seconds=2.5)

    result = machine(tmp_path, STEADY + STOPPED + DONE, meter=Still()).measure(
        order(tmp_path), threading.Event()
    )
    # the server would refuse a runner that reports it
    assert (result.energy_mj, result.idle_power_mw) == (None, None)
    assert f"no energy: a meter counted {joules:g} J" in result.notes


def test_a_meter_that_breaks_costs_the_energy_only(tmp_path: Path) -> None:
    result = machine(tmp_path, STEADY + STOPPED + DONE, meter=Meter(breaks=True)).measure(
        order(tmp_path), threading.Event()
    )
    assert result.energy_mj is None
    assert "no energy: unplugged" in result.notes
    assert result.p50_ms == 20.0


def _is_gone(pid: int) -> bool:
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        os.sched_yield()
        time.sleep(0.01)
    return False
