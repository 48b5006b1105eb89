"""Estimates beside measurements of processors that run Linux, of ESP32 chips and of accelerators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.known_networks import known_network
from benchmarks.layer_tables import number, read_rows
from benchmarks.measured_rows import core_of

from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.bootstrap import emulators
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat, Runtime
from tightfit_service.domain.layer_cells import Row
from tightfit_service.domain.layer_table import LayerTable
from tightfit_service.domain.network import NetworkProfile

PLATFORMS = (
    # In order: an Edge TPU on a Raspberry Pi is Coral.
    ("Coral", r"coral|edge tpu"),
    ("ESP", r"^esp32"),
    ("Jetson", r"jetson"),
    ("Raspberry Pi", r"raspberry pi"),
    ("Rockchip", r"rockchip|\brk\d{4}|\brv\d{4}"),
    ("Snapdragon", r"snapdragon|dragonwing|qualcomm|qcs\d|sa8\d|sa7\d|galaxy|qrb\d"),
    ("STM32", r"stm32"),
)
"""Groups of the published scores, by what the device and its accelerator are called."""
ACCELERATED = (
    (r"jetson nano", "jetson-nano"),
    (r"jetson tx2 nx", "jetson-tx2-nx"),
    (r"jetson agx xavier", "jetson-agx-xavier"),
    (r"jetson agx orin", "jetson-agx-orin"),
    (r"jetson orin nano", "jetson-orin-nano"),
    (r"pixel 3 .*adreno", "pixel-3-gpu"),
    (r"x elite.*(vulkan|gpu)", "snapdragon-x-elite-gpu"),
    (r"x elite.*hexagon", "snapdragon-x-elite-hexagon"),
    (r"iq-9075.*hexagon", "iq-9075-evk-hexagon"),
    (r"rb3 gen 2.*hexagon", "rb3-gen-2-hexagon"),
    (r"coral usb|usb accelerator", "raspberry-pi-4-coral-usb"),
    (r"coral dev board.*edge tpu", "coral-dev-board"),
    (r"rk3566/rk3568 .*npu|rk356\d.*rockchip npu", "rock-3a-npu"),
    (r"rk3576.*npu", "rock-4d-npu"),
    (r"rk3588.*(npu)", "rock-5b-npu"),
    (r"rk3588.*(vulkan|mali)", "rock-5b-gpu"),
    (r"stm32n6570", "stm32n6570-dk"),
    (r"stm32mp257.*(npu|gpu)", "stm32mp257f-dk-npu"),
)
"""Targets of the catalogue by what a device with its accelerator is called."""
CORES = (
    (r"cortex-a(53|55|57|72|75|76|78|7|35)\b", r"cortex-a\1"),
    (r"cortex-a73", "cortex-a72"),
    (r"cortex-a7(8ae|20)", "cortex-a78"),
    (r"carmel", "carmel"),
    (r"oryon", "oryon"),
    (r"u74", "riscv64"),
    (r"xeon|x86|celeron|atom|core i\d", "x86-64"),
    (r"k[ry][ry]o ?260", "cortex-a72"),
    (r"k[ry][ry]o ?385", "cortex-a75"),
    (r"k[ry][ry]o ?4\d\d", "cortex-a76"),
    (r"xtensa lx6", "xtensa-lx6"),
    (r"xtensa lx7", "xtensa-lx7"),
    (r"risc-v rv32", "riscv32"),
)
"""Core classes by what a processor is called; derived cores count as what they are derived from (Arm:
A73 from A72's generation; Qualcomm: Kryo 260 from A73, 385 from A75, 4xx from A76)."""


def other_devices(
    path: Path, tables: Mapping[str, LayerTable], skipped: Counter[str]
) -> list[Comparison]:
    """Return the latency comparisons of all rows that are not of bare Cortex-M processors."""
    comparisons = []
    for row in read_rows(path):
        if core_of(row["processor"]) and not row["accelerator"]:
            continue
        latency = number(row["latency_ms"])
        if not latency or latency <= 0:
            skipped[f"{row['group']}: no latency"] += 1
            continue
        network = _network(row, tables)
        if network is None:
            skipped[f"{row['group']}: neither layers nor products of the network are known"] += 1
            continue
        try:
            comparison = _compared(row, network, latency)
        except (TightfitError, LookupError) as error:
            skipped[f"{row['group']}: {error.args[0] if error.args else error}"[:100]] += 1
            continue
        comparisons.append(comparison)
    return comparisons


def _compared(row: Row, network: NetworkProfile, latency: float) -> Comparison:
    target = _accelerated_target(row) if row["accelerator"] else _processor(row)
    is_float = not re.search(r"int8|w8a8|hybrid", row["precision"].lower())
    computes = target.accelerator.number_formats if target.accelerator else target.number_formats
    bits = 8
    if is_float:
        halves = NumberFormat.FLOAT16 in computes and row["precision"].lower() != "fp32"
        bits = 16 if halves else 32
        if not {NumberFormat.FLOAT16, NumberFormat.FLOAT32} & set(computes):
            raise LookupError("the data sheet of the accelerator states no rate in floating point")
    emulator = next((e for e in emulators() if e.supports(target)), None)
    if emulator is None:
        raise LookupError(f"no emulator of {target.core}")
    estimate = emulator.estimate(
        network.at_precision(weight_bits=bits, activation_bits=bits), target
    )
    return Comparison(
        quantity="latency_ms",
        core=target.accelerator.kind if target.accelerator else target.core,
        group=row["group"],
        platform=platform_of(f"{row['device']} {row['accelerator']}"),
        board=row["device"],
        model=row["model"],
        known="accelerator class" if target.accelerator else "core class, not calibrated",
        estimate=estimate.latency_ms,
        measured=latency,
        float32=is_float,
    )


def platform_of(device: str) -> str:
    """Return the group of devices under which scores are published."""
    text = device.lower()
    return next((name for name, pattern in PLATFORMS if re.search(pattern, text)), "other")


@cache
def _catalogue() -> YamlTargetCatalogue:
    return YamlTargetCatalogue()


def _accelerated_target(row: Row) -> HardwareSpec:
    text = f"{row['device']} {row['accelerator']}".lower()
    for pattern, name in ACCELERATED:
        if re.search(pattern, text):
            runtime = Runtime(name=row["runtime"], version=row["runtime_version"])
            return replace(_catalogue().get(name), runtime=runtime)
    raise LookupError(f"no target has the {row['accelerator']} of {row['device']}")


def _processor(row: Row) -> HardwareSpec:
    """Return the target of a row that runs on processor cores, built from its own columns."""
    text = f"{row['processor']} ".lower().replace("\u2011", "-")
    text = re.sub(r"^\d+x ", "", text).replace("cortex ", "cortex-")
    if not text.strip():
        text = row["device"].lower()
    found = [
        (match.start(), re.sub(pattern, core, match.group()))
        for pattern, core in CORES
        if (match := re.search(pattern, text))
    ]
    known = _known_board(row["device"])
    if not found and known is None:
        raise LookupError(f"no emulator of {row['processor'] or row['device']}")
    clock = number(row["clock_mhz"])
    partial: dict[str, Any] = {
        "core": min(found)[1] if found else known.core if known else "",
        "clock_mhz": clock or (known.clock_mhz if known else None),
        "core_count": int(number(row["threads"]) or 1),
        "runtime": {"name": row["runtime"] or "not stated", "version": row["runtime_version"]},
    }
    if known is not None and known.core == partial["core"]:
        partial["isa_features"] = known.isa_features
        partial["memory"] = {
            name: getattr(known.memory, name)
            for name in ("cache_bytes", "ram_bandwidth_mb_s")
            if f"memory.{name}" not in known.assumed_fields
        }
    if re.search(r"celeron|atom", row["device"].lower()):
        partial["isa_features"] = ["sse4.2"]
    return _catalogue().complete(partial)


@cache
def _known_board(device: str) -> HardwareSpec | None:
    text = re.sub(r"[^a-z0-9]+", "-", device.lower().replace("+", " plus"))
    names = sorted((s.name for s in _catalogue().list()), key=len, reverse=True)
    found = [n for n in names if text.startswith(n) or n.startswith(f"{text.strip('-')}-")]
    return _catalogue().get(found[0]) if found and text.strip("-") else None


def _network(row: Row, tables: Mapping[str, LayerTable]) -> NetworkProfile | None:
    for key in (row["layers_key"], row["model"], row["model"].split(" ", maxsplit=1)[0]):
        if key in tables:
            return _whole(tables[key].profile)
    name = re.sub(r" (int8|fp32|fp16)$", "", row["model"])
    return known_network(
        name.lower() if name.lower().startswith(("mobilenet", "person")) else name,
        row["input_shape"],
        number(row["macs"]) or 0.0,
        number(row["params"]) or 0.0,
        by_shape=row["group"] == "esp",
    )


def _whole(profile: NetworkProfile) -> NetworkProfile:
    """Return the network without the operators that compilers fold away."""
    kept = [op for op in profile.operators if op.op_type not in ("Shape", "Pack")]
    return replace(profile, operators=tuple(kept))
