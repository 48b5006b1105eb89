"""Fits the power of microcontroller boards to the energies of MLPerf Tiny submissions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.measured_rows import MeasuredRow

from tightfit_service.adapters.emulators.mcu_latency import runtime_path
from tightfit_service.adapters.emulators.mcu_power import (
    CLASS_MA_PER_MHZ,
    PowerModel,
    effective_volts,
    power_key,
)

CLASS_LOG_SD = 0.4
"""How far the mean of a core's boards may be from the figure of data sheets."""
BOARD_LOG_SD = 0.25
"""How far boards of one core are from each other."""


@dataclass(frozen=True, kw_only=True)
class PowerRow:
    """The mean power of one measured network.

    Attributes:
        log_rate: Log of milliamperes per MHz behind the board's regulator.
    """

    row: MeasuredRow
    board: str
    setup: str
    supply_v: float
    log_rate: float


def power_rows(rows: Sequence[MeasuredRow]) -> list[PowerRow]:
    """Return the rows that run on the processor alone with a power and, on that board, a supply.

    Rows that do not state their supply are taken at the one that is most often stated for the board.
    """
    measured = [r for r in rows if r.power_mw and r.latency_ms and not r.accelerator]
    stated: dict[str, list[float]] = defaultdict(list)
    for row in measured:
        if row.supply_v:
            stated[power_key(row.board)].append(row.supply_v)
    found = []
    for row in measured:
        board = power_key(row.board)
        volts = row.supply_v or (
            max(stated[board], key=stated[board].count) if board in stated else 0
        )
        if not volts or not row.power_mw:
            continue
        path = runtime_path(row.runtime, row.runtime_version)
        found.append(
            PowerRow(
                row=row,
                board=board,
                setup=f"{board}+{path[min(1, len(path) - 1)]}",
                supply_v=volts,
                log_rate=math.log(row.power_mw / row.clock_mhz / effective_volts(row.board, volts)),
            )
        )
    return found


def fit_power(rows: Sequence[PowerRow]) -> PowerModel:
    """Return the mean rate per board and runtime, per board, and per core.

    A core's rate lies between the figure of data sheets and the boards of that core, each as precise as
    CLASS_LOG_SD and BOARD_LOG_SD say.
    """
    setups = _means(rows, lambda r: r.setup)
    boards = _means(rows, lambda r: r.board)
    core_of = {r.board: r.row.core for r in rows}
    cores = {}
    for core, typical in CLASS_MA_PER_MHZ.items():
        own = [rate for board, rate in boards.items() if core_of[board] == core]
        precision = 1 / CLASS_LOG_SD**2 + len(own) / BOARD_LOG_SD**2
        cores[core] = (math.log(typical) / CLASS_LOG_SD**2 + sum(own) / BOARD_LOG_SD**2) / precision
    supplies = {
        board: max((r.supply_v for r in rows if r.board == board), key=_count_of(rows, board))
        for board in boards
    }
    return PowerModel(setups=setups, boards=boards, cores=cores, supplies=supplies, log_sd={})


def _count_of(rows: Sequence[PowerRow], board: str) -> Callable[[float], int]:
    return lambda volts: sum(r.board == board and r.supply_v == volts for r in rows)


def _means(rows: Sequence[PowerRow], key: Callable[[PowerRow], str]) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row.log_rate)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(groups.items())}


@dataclass(frozen=True, kw_only=True)
class PowerMiss:
    """A row whose power was predicted without it.

    Attributes:
        log_error: Log of predicted over measured.
    """

    row: MeasuredRow
    log_error: float


def power_misses(rows: Sequence[PowerRow]) -> Mapping[str, list[PowerMiss]]:
    """Return the misses of models left out on `known` boards and runtimes, and of boards `unseen`."""
    known: list[PowerMiss] = []
    unseen: list[PowerMiss] = []
    for row in rows:
        model = fit_power([r for r in rows if r.row.model != row.row.model])
        if row.setup in model.setups:
            miss = model.setups[row.setup] - row.log_rate
            known.append(PowerMiss(row=row.row, log_error=miss))
        # All rows of a chip go out together, with and without its step-down converter.
        elsewhere = fit_power([r for r in rows if r.row.device != row.row.device])
        miss = elsewhere.cores[row.row.core] - row.log_rate
        unseen.append(PowerMiss(row=row.row, log_error=miss))
    return {"known": known, "unseen": unseen}


def spread_of(misses: Mapping[str, Sequence[PowerMiss]]) -> dict[str, float]:
    """Return standard deviations of log power whose normal 90 % interval holds 90 % of the misses."""
    known, unseen = (
        float(np.percentile([abs(m.log_error) for m in misses[kind]], 90)) / 1.645
        for kind in ("known", "unseen")
    )
    # Few boards have energy rows, so the spread over boards is not taken to be below that of the fit.
    return {"known": round(known, 3), "assumed": round(max(BOARD_LOG_SD, unseen), 3)}


def plain_power(
    model: PowerModel, log_sd: Mapping[str, float], width_scale: Mapping[str, float]
) -> dict[str, Any]:
    """Return the model as the coefficients file has it."""
    return {
        "setups": dict(model.setups),
        "boards": dict(model.boards),
        "cores": {core: round(rate, 4) for core, rate in model.cores.items()},
        "supplies": dict(model.supplies),
        "log_sd": dict(log_sd),
        "width_scale": dict(width_scale),
    }
