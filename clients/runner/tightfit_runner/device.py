"""What this device is: core class, features, memory, runtimes, in the words that targets use."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tightfit_runner.failures import SettingsError
from tightfit_runner.runtimes import InstalledRuntime, installed
from tightfit_runner.sensors import Sensors

ARM_PARTS = {
    # Linux, arch/arm64/include/asm/cputype.h
    0xD03: "cortex-a53",
    0xD04: "cortex-a35",
    0xD05: "cortex-a55",
    0xD07: "cortex-a57",
    0xD08: "cortex-a72",
    0xD09: "cortex-a73",
    0xD0A: "cortex-a75",
    0xD0B: "cortex-a76",
    0xD0C: "neoverse-n1",
    0xD0D: "cortex-a77",
    0xD40: "neoverse-v1",
    0xD41: "cortex-a78",
    0xD42: "cortex-a78ae",
    0xD44: "cortex-x1",
    0xD46: "cortex-a510",
    0xD47: "cortex-a710",
    0xD49: "neoverse-n2",
    0xD4F: "neoverse-v2",
    0xC07: "cortex-a7",
    0xC0F: "cortex-a15",
}
FEATURES = {
    # flag of /proc/cpuinfo: feature of targets
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "fp": "fpu",
    "vfpv4": "fpu",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}


@dataclass(frozen=True)
class Device:
    """What the agent says of its device; fields as in the contract's DeviceDescription."""

    core: str
    core_count: int
    ram_bytes: int
    runtimes: tuple[InstalledRuntime, ...]
    display_name: str = ""
    clock_mhz: float | None = None
    isa_features: tuple[str, ...] = ()
    operating_system: str = ""
    sensors: tuple[str, ...] = ()


def this_device(
    *, proc_root: Path = Path("/proc"), sensors: Sensors | None = None, machine: str = ""
) -> Device:
    """Return what this machine is.

    Raises:
        SettingsError: No runtime is installed.
    """
    sensors = sensors or Sensors()
    runtimes = installed()
    if not runtimes:
        raise SettingsError(
            "no inference runtime is installed: "
            "pip install 'tightfit-runner[litert]' or 'tightfit-runner[onnxruntime]'"
        )
    cpuinfo = (proc_root / "cpuinfo").read_text(errors="replace")
    flags = set(
        " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)).split()
    )
    total = re.search(r"^MemTotal:\s*(\d+) kB", (proc_root / "meminfo").read_text(), re.MULTILINE)
    return Device(
        core=core_class(cpuinfo, machine or platform.machine()),
        core_count=len(os.sched_getaffinity(0)),
        ram_bytes=int(total[1]) * 1024 if total else 1 << 30,
        runtimes=runtimes,
        display_name=_model_name(cpuinfo),
        clock_mhz=sensors.highest_clock_mhz(),
        isa_features=tuple(sorted({FEATURES[flag] for flag in flags & FEATURES.keys()})),
        operating_system=f"{platform.system()} {platform.release()}",
        sensors=sensors.names(),
    )


def core_class(cpuinfo: str, machine: str) -> str:
    """Return the class of the cores; where there are several, that of the biggest.

    Args:
        cpuinfo: Text of /proc/cpuinfo.
        machine: As `uname -m` says.
    """
    if machine.lower() in ("x86_64", "amd64"):
        return "x86-64"
    parts = Counter(
        int(part, 16) for part in re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, re.MULTILINE)
    )
    # Arm numbers its parts in the order of their design, and pairs big cores with older small ones.
    known = [part for part in sorted(parts) if part in ARM_PARTS]
    return ARM_PARTS[known[-1]] if known else machine.lower()


def _model_name(cpuinfo: str) -> str:
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text(errors="replace").strip("\0 \n")
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
