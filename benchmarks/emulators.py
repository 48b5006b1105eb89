"""Scores the emulators on tables of measured devices.

python benchmarks/emulators.py --rows RESULTS.csv --layers LAYERS.csv
    [--device-rows DEVICES.csv] [--more-layers LAYERS.csv] [--json]

Boards that are not in the catalogue are built from the row's own columns. Latency, energy, RAM and flash
are compared wherever the row has a figure and the layers or the products of its network are known; the
rest is counted by reason. Rows that the coefficients were fitted to are among the scores when the files
hold them ("known" tells); scores of rows left out are those of fit_mcu_emulator.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import Comparison, summarise
from benchmarks.layer_tables import read_layer_tables
from benchmarks.mcu_fitting import table_for
from benchmarks.measured_rows import MeasuredRow, device_of, read_devices, read_mlperf
from benchmarks.other_devices import other_devices
from benchmarks.roofline_interval import fit_interval

from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.mcu_latency import board_of
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.layer_table import LayerTable

DOCS = Path(__file__).resolve().parents[1] / "docs" / "emulators.md"


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
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write the scores of other devices to docs/emulators.md",
    )
    arguments = parser.parse_args()
    if not (arguments.rows or arguments.device_rows):
        parser.error("there is nothing to score: give --rows, --device-rows or both")
    for path in (
        arguments.rows,
        arguments.device_rows,
        arguments.layers,
        arguments.more_layers,
    ):
        if path and not path.is_file():
            parser.error(f"there is no file {path}")
    comparisons, skipped = compare(
        arguments.rows,
        arguments.device_rows,
        [p for p in (arguments.layers, arguments.more_layers) if p],
    )
    summary = summarise(comparisons)
    if arguments.publish:
        publish(summary, interval_line(comparisons))
    if arguments.json:
        print(json.dumps({"scores": summary, "rows_not_scored": dict(skipped)}, indent=2))
    else:
        print_tables(summary)
        for reason, rows in skipped.most_common():
            print(f"not scored: {rows} rows, {reason}")


def compare(
    rows: Path | None, device_rows: Path | None, layers: Sequence[Path]
) -> tuple[list[Comparison], Counter[str]]:
    """Return all comparisons, and how many rows were not compared by reason."""
    tables = read_layer_tables(layers)
    skipped: Counter[str] = Counter()
    comparisons: list[Comparison] = []
    if rows:
        comparisons += microcontrollers(read_mlperf(rows), tables, skipped)
    if device_rows:
        measured = read_devices(device_rows, clocks=_clocks_by_silicon())
        comparisons += microcontrollers(measured, tables, skipped)
        comparisons += other_devices(device_rows, tables, skipped)
    return comparisons, skipped


def _clocks_by_silicon() -> dict[str, float]:
    """Return the clock of the catalogue's boards by silicon, for rows that state none."""
    return {
        device_of(spec.display_name): spec.clock_mhz
        for spec in YamlTargetCatalogue().list()
        if spec.core.startswith("cortex-m")
    }


def target_of(row: MeasuredRow) -> HardwareSpec:
    """Return the row's target: its own core, clock, memories, supply and runtime.

    What the emulator knows of the board's speed and power it finds by the board's name.
    """
    features = [] if row.core == "cortex-m0+" else ["dsp", "fpu"]
    if row.core in ("cortex-m55", "cortex-m85"):
        features.append("mve")
    partial: dict[str, Any] = {
        "name": board_of(row.board)[:60].strip("-") or "board",
        "display_name": row.board or row.device,
        "core": row.core,
        "clock_mhz": row.clock_mhz,
        "memory": {"ram_bytes": row.ram_bytes, "flash_bytes": row.flash_bytes},
        "runtime": {"name": row.runtime, "version": row.runtime_version},
        "isa_features": features,
        "power": {"supply_v": row.supply_v},
    }
    return YamlTargetCatalogue().complete(partial)


def microcontrollers(
    rows: Iterable[MeasuredRow], tables: Mapping[str, LayerTable], skipped: Counter[str]
) -> list[Comparison]:
    """Return the comparisons of Cortex-M rows whose layers are known."""
    emulator = McuEmulator()
    comparisons = []
    for row in rows:
        table = table_for(row, tables)
        if row.accelerator:
            skipped["microcontroller with an accelerator that no target describes"] += 1
            continue
        if table is None:
            skipped[f"{row.group}: the layers of the network are not known"] += 1
            continue
        profile = table.profile
        if row.is_float:
            profile = profile.at_precision(weight_bits=32, activation_bits=32)
        target = target_of(row)
        if not emulator.supports(target):
            skipped[f"no emulator of {row.core}"] += 1
            continue
        estimate = emulator.estimate(profile, target)
        compiled = not row.runtime.startswith("TFLM")
        # Streaming rows hold the feature extraction besides the network.
        latency = "streaming_latency_ms" if row.model.startswith("sww") else "latency_ms"
        figures = (
            (latency, estimate.latency_ms, row.latency_ms),
            ("energy_mj", estimate.energy_mj, row.energy_mj),
            ("activation_ram_bytes", estimate.peak_ram_bytes, row.activation_bytes),
            ("flash_bytes", estimate.flash_bytes, row.weights_flash_bytes if compiled else None),
        )
        comparisons += [
            Comparison(
                quantity=quantity,
                core=row.core,
                group=row.group,
                board=row.board,
                model=row.model,
                known=estimate.provenance.split("; ")[1],
                estimate=interval,
                measured=measured,
                float32=row.is_float,
            )
            for quantity, interval, measured in figures
            if measured
        ]
    return comparisons


def interval_line(comparisons: Sequence[Comparison]) -> str:
    """Return what the rows of Linux processors say of the roofline's intervals."""
    fit = fit_interval(comparisons)
    return (
        f"Intervals of `roofline`, from {fit.row_count} rows of {fit.device_count} devices: a factor of "
        f"{fit.factor:.2f} either way, beside what assumed figures add, covers 90 % of the rows of a device "
        f"unlike these. That of the other devices covers {fit.left_out_coverage:.0%} of the rows left out."
    )


def publish(summary: Sequence[Mapping[str, Any]], interval: str) -> None:
    """Replace the table of other devices in the page on emulators."""
    lines = [
        "| | rows | median error | p90 error | within 10 % | within 25 % | bias | 90 % interval covers |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {entry['value']} | {entry['n']} | {entry['median_ape']:.0%} | {entry['p90_ape']:.0%} | "
        f"{entry['within_10']:.0%} | {entry['within_25']:.0%} | {entry['bias']:+.0%} | "
        f"{entry['coverage']:.0%} |"
        for by in ("platform", "group", "core")
        for entry in summary
        if entry["quantity"] == "latency_ms"
        and entry["by"] == by
        and not entry["value"].lower().startswith("cortex-m")
        and entry["value"] not in ("mlperf", "stm32_zoo", "dippmatt")
    ]
    begin, end = "<!-- others:begin -->", "<!-- others:end -->"
    head, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    table = "\n".join(lines)
    DOCS.write_text(f"{head}{begin}\n\n{table}\n\n{interval}\n\n{end}{tail}", encoding="utf-8")


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
