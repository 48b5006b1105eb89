"""What Arm's Vela writes beside a compiled file: its figures for the network and per operator, read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.adapters.emulators.accelerated import PICOJOULES_PER_MAC
from tightfit_service.adapters.emulators.layer_shares import Row
from tightfit_service.adapters.emulators.operator_names import kind_of_name
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec

KIB = 1024
WAITING_MW = 20.0
"""Of the rest of a microcontroller while Ethos-U works, where the target does not say."""


@dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela made of a file.

    Attributes:
        compiled: The file with Ethos-U's command stream in place of the operators that it runs.
        latency_ms: Time on the NPU; operators left to the core are not in it.
        ram_bytes: Arena in the memory that is shared with the core.
        flash_bytes: Weights and command stream as compiled.
        macs: Multiply-accumulates of one inference.
        rows: Operators on the NPU in the order in which they run.
    """

    compiled: bytes
    latency_ms: float
    ram_bytes: float
    flash_bytes: float
    macs: int
    rows: tuple[Row, ...]


def read_report(folder: Path, compiled: bytes, target: HardwareSpec) -> VelaReport:
    """Return what Vela wrote into a folder about `model.tflite`.

    Raises:
        InvalidModelError: The tables are not those of the versions of Vela that are known here.
        UnsupportedError: No operator runs on Ethos-U.
    """
    try:
        (summary_path,) = folder.glob("model_summary_*.csv")
        return _report(
            compiled,
            _table(summary_path)[0],
            _table(folder / "model_per-layer.csv"),
            target,
        )
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise InvalidModelError(
            f"the tables that Vela wrote beside the compiled file cannot be read: {error!r}",
            field="model",
            remedy="report it with the version of Vela",
        ) from error


def energy_mj(macs: int, latency_ms: float, target: HardwareSpec) -> float:
    """Return what the device uses while Ethos-U works."""
    if target.power.accelerator_mw is not None:
        return latency_ms * target.power.accelerator_mw / 1e3
    return macs * PICOJOULES_PER_MAC * 1e-9 + latency_ms * waiting_mw(target) / 1e3


def waiting_mw(target: HardwareSpec) -> float:
    """Return the power of what waits."""
    return target.power.idle_mw or WAITING_MW


def _report(
    compiled: bytes,
    summary: Mapping[str, str],
    table: list[dict[str, str]],
    target: HardwareSpec,
) -> VelaReport:
    accelerator = target.accelerator
    clock_mhz = (accelerator.clock_mhz if accelerator else None) or target.clock_mhz
    rows = tuple(_row(line, clock_mhz, target) for line in table if _is_on_npu(line))
    if not rows:
        raise UnsupportedError(
            "no operator of the model runs on Ethos-U",
            field="model",
            remedy="quantize it to int8; Ethos-U computes in 8- and 16-bit integers",
        )
    return VelaReport(
        compiled=compiled,
        latency_ms=float(summary["inference_time"]) * 1e3,
        ram_bytes=float(summary["sram_memory_used"]) * KIB,
        flash_bytes=float(summary["off_chip_flash_memory_used"]) * KIB,
        macs=round(float(summary["nn_macs"])),
        rows=rows,
    )


def _row(line: Mapping[str, str], clock_mhz: float, target: HardwareSpec) -> Row:
    name = line["Original Operator"].strip()
    macs = round(float(line["MAC Count"] or 0))
    latency = float(line["Op Cycles"] or 0) / (clock_mhz * 1e3)
    return Row(
        op_type=name,
        kind=kind_of_name(name),
        macs=macs,
        latency_ms=latency,
        energy_mj=energy_mj(macs, latency, target),
        staging_bytes=float(line["Staging Usage"] or 0),
    )


def _is_on_npu(line: Mapping[str, str]) -> bool:
    return line["Target"].strip().upper() == "NPU"


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
