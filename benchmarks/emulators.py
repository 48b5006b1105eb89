"""Scores the emulators on tables of measured devices.

python benchmarks/emulators.py --rows RESULTS.csv --layers LAYERS.csv
    [--device-rows DEVICES.csv] [--more-layers LAYERS.csv] [--json]

Rows of accelerators are left out. Boards that are not in the catalogue are built from the row's own columns. Latency, energy, RAM and flash
are compared wherever the row has a figure and the network's layers are known; rows of Linux processors
are compared by their products alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.layer_tables import LayerTable, number, read_layer_tables, read_rows
from benchmarks.mcu_fitting import table_for
from benchmarks.measured_rows import MeasuredRow, read_devices, read_mlperf

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.mcu_latency import board_of
from tightfit_service.adapters.emulators.roofline import CORES, RooflineEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.domain.quantities import Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One estimated figure beside the measured one."""

    quantity: str
    core: str
    group: str
    board: str
    model: str
    estimate: Interval
    measured: float
    float32: bool = False

    @property
    def error(self) -> float:
        """Estimate over measurement, minus one."""
        return self.estimate.value / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the interval holds the measurement."""
        return self.estimate.low <= self.measured <= self.estimate.high


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, help="table in the form of mlperf_tiny_results.csv")
    parser.add_argument(
        "--device-rows", type=Path, help="table in the form of device_benchmarks.csv"
    )
    parser.add_argument("--layers", type=Path, required=True)
    parser.add_argument("--more-layers", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    paths = [p for p in (arguments.layers, arguments.more_layers) if p]
    tables = read_layer_tables(paths)
    comparisons: list[Comparison] = []
    if arguments.rows:
        comparisons += microcontrollers(read_mlperf(arguments.rows), tables)
    if arguments.device_rows:
        comparisons += microcontrollers(read_devices(arguments.device_rows), tables)
        comparisons += processors(arguments.device_rows)
    summary = summarise(comparisons)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        print_tables(summary)


def target_of(row: MeasuredRow, boards: Mapping[str, HardwareSpec]) -> HardwareSpec:
    """Return the row's target: its own clock, memories and runtime, and the board's power if known."""
    partial: dict[str, Any] = {
        "name": board_of(row.board)[:60] or "board",
        "display_name": row.board,
        "core": row.core,
        "clock_mhz": row.clock_mhz,
        "memory": {"ram_bytes": row.ram_bytes, "flash_bytes": row.flash_bytes},
        "runtime": {"name": row.runtime, "version": row.runtime_version},
        "isa_features": [] if row.core == "cortex-m0+" else ["dsp", "fpu"],
    }
    known = boards.get(row.board.lower())
    if known is not None and known.power.active_mw:
        supply = row.supply_v or known.power.supply_v
        # Regulators of these parts are linear: the current is that of the clock, whatever the supply.
        volts = supply / known.power.supply_v if supply and known.power.supply_v else 1.0
        partial["power"] = {
            "active_mw": known.power.active_mw * volts * row.clock_mhz / known.clock_mhz,
            "supply_v": supply,
        }
    elif row.supply_v:
        partial["power"] = {"supply_v": row.supply_v}
    return YamlTargetCatalogue().complete(partial)


def microcontrollers(
    rows: Iterable[MeasuredRow], tables: Mapping[str, LayerTable]
) -> list[Comparison]:
    """Return the comparisons of Cortex-M rows whose layers are known."""
    emulator = McuEmulator()
    boards = {spec.display_name.lower(): spec for spec in YamlTargetCatalogue().list()}
    comparisons = []
    for row in rows:
        table = table_for(row, tables)
        if table is None or row.accelerator:
            continue
        profile = table.profile
        if row.is_float:
            profile = profile.at_precision(weight_bits=32, activation_bits=32)
        target = target_of(row, boards)
        if not emulator.supports(target):
            continue
        estimate = emulator.estimate(profile, target)
        compiled = not row.runtime.startswith("TFLM")
        # Streaming rows hold the feature extraction besides the network.
        group = "mlperf-streaming" if row.model.startswith("sww") else row.group
        figures = (
            ("latency_ms", estimate.latency_ms, row.latency_ms),
            ("energy_mj", estimate.energy_mj, row.energy_mj),
            ("activation_ram_bytes", estimate.peak_ram_bytes, row.activation_bytes),
            ("flash_bytes", estimate.flash_bytes, row.weights_flash_bytes if compiled else None),
        )
        comparisons += [
            Comparison(
                quantity=quantity,
                core=row.core,
                group=group,
                board=row.board,
                model=row.model,
                estimate=interval,
                measured=measured,
                float32=row.is_float,
            )
            for quantity, interval, measured in figures
            if measured
        ]
    return comparisons


def processors(path: Path) -> list[Comparison]:
    """Return the latency comparisons of CPU rows of Linux devices whose products are known.

    Their layers are not in the tables: each network is one convolution of its products and weights.
    """
    emulator, catalogue = RooflineEmulator(), YamlTargetCatalogue()
    described = {spec.core for spec in catalogue.list()} & set(CORES)
    comparisons = []
    for row in read_rows(path):
        core = re.sub(r"^\d+x ", "", row["processor"].lower().replace("\u2011", "-")).split("+")[0]
        macs, clock, latency = (number(row[k]) for k in ("macs", "clock_mhz", "latency_ms"))
        if core not in described or row["accelerator"] or not macs or not clock or not latency:
            continue
        threads = number(row["threads"]) or 1.0
        target = catalogue.complete(
            {
                "core": core,
                "clock_mhz": clock,
                "core_count": int(threads),
                "runtime": {"name": row["runtime"], "version": row["runtime_version"]},
            }
        )
        bits = 8 if "int8" in row["precision"] else 32
        estimate = emulator.estimate(
            _one_convolution(int(macs), int(number(row["params"]) or 0), bits), target
        )
        comparisons.append(
            Comparison(
                quantity="latency_ms",
                core=core,
                group=row["group"],
                board=row["device"],
                model=row["model"],
                estimate=estimate.latency_ms,
                measured=latency,
                float32=bits == 32,
            )
        )
    return comparisons


def _one_convolution(macs: int, params: int, bits: int) -> NetworkProfile:
    operator = Operator(
        node="all",
        kind=OperatorKind.CONV,
        op_type="Conv",
        inputs=("input",),
        outputs=("output",),
        macs=macs,
        weight_count=params,
        weight_bits=bits,
        activation_bits=bits,
    )
    return NetworkProfile(
        operators=(operator,),
        tensors={"input": (1,), "output": (1,)},
        inputs=("input",),
        outputs=("output",),
    )


def summarise(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return one entry of scores per quantity as a whole and by core, group and board."""
    keys: Mapping[str, Callable[[Comparison], str]] = {
        "all": lambda _: "",
        "core": lambda c: c.core,
        "group": lambda c: c.group,
        "board": lambda c: c.board,
        "number_format": lambda c: "float32" if c.float32 else "int8",
    }
    summary: list[dict[str, Any]] = []
    for quantity in dict.fromkeys(c.quantity for c in comparisons):
        chosen = [c for c in comparisons if c.quantity == quantity]
        for by, key in keys.items():
            summary.extend(
                {"quantity": quantity, "by": by, "value": value}
                | _scores([c for c in chosen if key(c) == value])
                for value in sorted({key(c) for c in chosen})
            )
    return summary


def _scores(comparisons: Sequence[Comparison]) -> dict[str, float]:
    errors = np.array([c.error for c in comparisons])
    return {
        "n": len(comparisons),
        "median_ape": round(float(np.median(np.abs(errors))), 4),
        "p90_ape": round(float(np.percentile(np.abs(errors), 90)), 4),
        "within_10": round(float(np.mean(np.abs(errors) <= 0.10)), 4),
        "within_25": round(float(np.mean(np.abs(errors) <= 0.25)), 4),
        "bias": round(float(np.median(errors)), 4),
        "coverage": round(float(np.mean([c.covered for c in comparisons])), 4),
        "median_width": round(
            float(
                np.median(
                    [math.sqrt(c.estimate.high / max(c.estimate.low, 1e-12)) for c in comparisons]
                )
            )
            - 1,
            4,
        ),
    }


def print_tables(summary: Sequence[Mapping[str, Any]]) -> None:
    """Print the scores as one table per quantity."""
    for quantity in dict.fromkeys(entry["quantity"] for entry in summary):
        print(f"\n{quantity}")
        print(
            f"{'by':14s}{'':40s}{'n':>5s} {'median':>7s} {'p90':>7s} {'<=10%':>6s} {'<=25%':>6s}"
            f" {'bias':>7s} {'cover':>6s} {'+-':>6s}"
        )
        for entry in summary:
            if entry["quantity"] == quantity:
                print(
                    f"{entry['by']:14s}{entry['value'][:38]:40s}{entry['n']:5d} "
                    f"{entry['median_ape']:7.1%} {entry['p90_ape']:7.1%} {entry['within_10']:6.0%} "
                    f"{entry['within_25']:6.0%} {entry['bias']:+7.1%} {entry['coverage']:6.0%} "
                    f"{entry['median_width']:6.0%}"
                )


if __name__ == "__main__":
    main()
