"""The cost of a network as Vela compiled it: its own figures, and the core for what it leaves there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tightfit_service.adapters.emulators.layer_shares import Row, share_rows
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.partitions import transfer_ms
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.tflite_operators import CoreWork, left_on_core
from tightfit_service.adapters.emulators.vela_report import VelaReport, waiting_mw
from tightfit_service.domain.cost import CostEstimate, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.quantities import Interval

LATENCY_LOG_WIDTH = math.log(1.5)
"""Vela's documentation calls its cycles an estimate and gives no error; no boards were at hand to measure it."""
CORE_LOG_WIDTH = math.log(2.0)
"""Of operators left to the core, which are rarely those that the core's emulator was fitted to."""
ENERGY_LOG_WIDTH = math.log(2.5)
CONFIDENCE = 0.9
_PREFIX = "vela"


def cost_of(
    report: VelaReport,
    target: HardwareSpec,
    *,
    core: McuEmulator | RooflineEmulator | None,
    layers: Sequence[OperatorCost],
    compiler: str,
) -> CostEstimate:
    """Return the cost of a compiled file.

    Args:
        report: What Vela made of it.
        target: What it was compiled for.
        core: Costs the operators that stay on the core; None where there is no model of it.
        layers: Of the network, by an emulator: they give the names, and the shares of what Vela's rows
            do not tell apart.
        compiler: Name and version.
    """
    left = left_on_core(report.compiled)
    rows = [*report.rows, *_core_rows(left, target, core)]
    crossing_ms = _crossing_ms(left, target)
    on_npu, on_core = report.latency_ms, sum(r.latency_ms for r in rows[len(report.rows) :])
    energy = sum(row.energy_mj for row in rows) + crossing_ms * waiting_mw(target) / 1e3
    ratio = math.exp(ENERGY_LOG_WIDTH)
    shared = share_rows(rows, layers, prefix=_PREFIX)
    return CostEstimate(
        latency_ms=_latency(on_npu, on_core + crossing_ms),
        energy_mj=Interval.relative(energy, low_ratio=1 / ratio, high_ratio=ratio),
        peak_ram_bytes=Interval.exact(report.ram_bytes),
        flash_bytes=Interval.exact(float(len(report.compiled))),
        macs=report.macs + sum(operator.macs for operator in left.operators),
        layers=shared.layers,
        peak_node=shared.peak_node,
        provenance=(
            f"{compiler}: cycles and memory that Arm's compiler gives for the file, from the clock, RAM "
            "and bandwidths of the target; 90 % latency intervals are assumed to be a factor of "
            f"{math.exp(LATENCY_LOG_WIDTH):.1f} either way"
        ),
        confidence=CONFIDENCE,
        warnings=_warnings(left, target, core, on_core),
        compiler=compiler,
    )


def _core_rows(
    left: CoreWork, target: HardwareSpec, core: McuEmulator | RooflineEmulator | None
) -> list[Row]:
    found = []
    for operator in left.operators:
        cost = None if core is None else core.operator_cost(operator, target)
        found.append(
            Row(
                op_type=operator.op_type,
                kind=operator.kind,
                macs=operator.macs,
                latency_ms=0.0 if cost is None else cost.latency_ms,
                energy_mj=0.0 if cost is None else cost.energy_mj,
            )
        )
    return found


def _crossing_ms(left: CoreWork, target: HardwareSpec) -> float:
    """Return the time of changes between Ethos-U and the core: caches are written back and read again."""
    assert target.accelerator is not None
    return sum(transfer_ms(target.accelerator, count) for count in left.crossing_bytes)


def _latency(on_npu: float, on_core: float) -> Interval:
    npu, core = math.exp(LATENCY_LOG_WIDTH), math.exp(CORE_LOG_WIDTH)
    return Interval(
        value=on_npu + on_core,
        low=on_npu / npu + on_core / core,
        high=on_npu * npu + on_core * core,
    )


def _warnings(
    left: CoreWork,
    target: HardwareSpec,
    core: McuEmulator | RooflineEmulator | None,
    on_core_ms: float,
) -> tuple[str, ...]:
    count = len(left.operators)
    if not count:
        return ()
    names = ", ".join(dict.fromkeys(operator.op_type for operator in left.operators))
    time = f"for {on_core_ms:.3g} ms by its emulator"
    if core is None:
        time = "whose time is not in the latency, for there is no model of it"
    noun = "operator runs" if count == 1 else "operators run"
    return (f"{count} {noun} on the {target.core} and not on Ethos-U, {time}: {names}",)
