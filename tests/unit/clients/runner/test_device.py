"""What a device says that it is, and what its sensors tell, from files that tests put in place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tightfit_runner import device as device_module
from tightfit_runner.device import core_class, this_device
from tightfit_runner.failures import SettingsError
from tightfit_runner.sensors import Sensors, State, was_throttled

PI5 = "\n".join(
    f"processor\t: {i}\nFeatures\t: fp asimd evtstrm asimdhp asimddp\nCPU part\t: 0xd0b\n"
    for i in range(4)
)
BIG_LITTLE = "CPU part\t: 0xd05\n" * 6 + "CPU part\t: 0xd0a\n" * 2


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def sys_root(tmp_path: Path) -> Path:
    for core, khz in enumerate((1_500_000, 2_400_000)):
        put(tmp_path, f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", str(khz))
        put(tmp_path, f"devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", "2400000")
    put(tmp_path, "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3")
    put(tmp_path, "class/thermal/thermal_zone0/temp", "61500")
    put(tmp_path, "class/thermal/thermal_zone1/temp", "-274000")
    put(tmp_path, "class/hwmon/hwmon0/temp1_input", "48000")
    return tmp_path


def test_a_device_is_described_in_the_words_of_targets(tmp_path: Path, sys_root: Path) -> None:
    put(tmp_path, "cpuinfo", PI5)
    put(tmp_path, "meminfo", "MemTotal:        8000000 kB")
    found = this_device(proc_root=tmp_path, sensors=Sensors(sys_root, tmp_path), machine="aarch64")

    assert found.core == "cortex-a76"
    assert found.isa_features == ("dotprod", "fp16", "fpu", "neon")
    assert found.ram_bytes == 8_192_000_000
    assert found.clock_mhz == 2_400
    assert found.core_count == len(os.sched_getaffinity(0))
    assert found.sensors == ("frequency", "temperature")
    assert {"litert", "onnxruntime"} <= {runtime.name for runtime in found.runtimes}


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "core"),
    [
        (PI5, "aarch64", "cortex-a76"),
        (BIG_LITTLE, "aarch64", "cortex-a75"),
        ("model name : x", "x86_64", "x86-64"),
        ("CPU part : 0xfff", "riscv64", "riscv64"),
    ],
)
def test_cores_are_classed(cpuinfo: str, machine: str, core: str) -> None:
    assert core_class(cpuinfo, machine) == core


def test_without_a_runtime_there_is_nothing_to_measure_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_module, "installed", tuple)
    with pytest.raises(SettingsError, match="pip install"):
        this_device()


def test_sensors_tell_clock_temperature_and_throttling(tmp_path: Path, sys_root: Path) -> None:
    state = Sensors(sys_root, tmp_path).state()
    assert state == State(clock_mhz=1_950.0, temperature_c=61.5, throttle_count=3, is_capped=False)
    put(sys_root, "devices/platform/soc/soc:firmware/get_throttled", "50005")
    assert Sensors(sys_root, tmp_path).state().is_capped
    put(sys_root, "devices/platform/soc/soc:firmware/get_throttled", "50000")
    assert not Sensors(sys_root, tmp_path).state().is_capped


def test_a_device_without_sensors_says_nothing(tmp_path: Path) -> None:
    bare = Sensors(tmp_path / "none", tmp_path / "none")
    assert bare.state() == State(
        clock_mhz=None, temperature_c=None, throttle_count=0, is_capped=False
    )
    assert bare.names() == ()


@pytest.mark.parametrize(
    ("after", "throttled"),
    [
        (State(2_300, 70, 0, is_capped=False), False),
        (State(1_800, 85, 0, is_capped=False), True),
        (State(2_400, 85, 1, is_capped=False), True),
        (State(2_400, 85, 0, is_capped=True), True),
        (State(None, None, 0, is_capped=False), False),
    ],
)
def test_throttling_is_a_lower_clock_or_what_the_system_says(after: State, throttled: bool) -> None:
    assert was_throttled(State(2_400, 50, 0, is_capped=False), after) is throttled
