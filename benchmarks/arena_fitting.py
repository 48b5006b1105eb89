"""Fits how X-CUBE-AI lays out its activation arena to the RAM that it reports for public models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.layer_tables import LayerTable
from benchmarks.mcu_fitting import table_for
from benchmarks.measured_rows import MeasuredRow
from scipy.optimize import minimize

from tightfit_service.adapters.emulators.mcu_latency import runtime_path
from tightfit_service.adapters.emulators.memory_plan import ArenaStyle, memory_points
from tightfit_service.domain.network import NetworkProfile

FloatArray = npt.NDArray[np.float64]

PARAMETERS = ("conv", "pointwise", "depthwise", "pool", "patch_ratio", "row_ratio", "constant")
STARTS = ((0.01, 0.02, 0.01, 0.01, 27.0, 5.5, 370.0), (0.4, 0.4, 0.9, 0.4, 14.0, 3.3, 2000.0))


@dataclass(frozen=True, kw_only=True)
class RamRow:
    """The activation RAM reported for a network."""

    style: str
    model: str
    family: str
    network: NetworkProfile
    activation_bytes: float
    plan: FloatArray


def ram_rows(rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable]) -> list[RamRow]:
    """Return the int8 rows with activation RAM, each network and figure once."""
    found: dict[tuple[str, str, float], RamRow] = {}
    for row in rows:
        table = table_for(row, tables)
        if table is None or not row.activation_bytes or row.is_float or row.accelerator:
            continue
        inputs = sum(math.prod(table.profile.tensors[n]) for n in table.profile.inputs)
        if row.activation_bytes >= 4 * inputs > 2**19:
            # Compiled with a float32 input of a size that hides everything else.
            continue
        path = runtime_path(row.runtime, row.runtime_version)
        release = float(path[1].split("/")[1]) if len(path) > 1 else 0.0
        style = "x-cube-ai-10" if release >= 10 else "x-cube-ai"
        found[style, row.model, row.activation_bytes] = RamRow(
            style=style,
            model=row.model,
            family=row.family,
            network=table.profile,
            activation_bytes=row.activation_bytes,
            plan=_linear(table.profile),
        )
    return list(found.values())


def style_of(values: Sequence[float]) -> ArenaStyle:
    """Return the arena style of a parameter vector in the order of PARAMETERS."""
    positive = [round(abs(float(v)), 3) for v in values]
    return ArenaStyle(
        kept_share={
            **{name: min(1.0, v) for name, v in zip(PARAMETERS[:4], positive[:4], strict=True)},
            "elementwise": 0.0,
        },
        patch_ratio=positive[4],
        row_ratio=positive[5],
        constant_bytes=positive[6],
    )


def planned_bytes(network: NetworkProfile, style: ArenaStyle) -> float:
    """Return the peak of the planned arena."""
    return max(p.fixed_bytes + sum(p.tensor_bytes.values()) for p in memory_points(network, style))


def _linear(network: NetworkProfile) -> FloatArray:
    """Return the planned bytes of every memory point as a linear function: base, then PARAMETERS.

    One plan per parameter set to 1, the others 0; which tensor is the smaller does not depend on them.
    """
    columns = []
    for i in range(-1, len(PARAMETERS)):
        values = [1.0 if i == j else 0.0 for j in range(len(PARAMETERS))]
        points = memory_points(network, style_of(values))
        columns.append([p.fixed_bytes + sum(p.tensor_bytes.values()) for p in points])
    matrix = np.array(columns).T
    matrix[:, 1:] -= matrix[:, :1]
    return matrix


def _fit(rows: Sequence[RamRow], starts: Sequence[Sequence[float]] = STARTS) -> ArenaStyle:
    measured = np.array([r.activation_bytes for r in rows])

    def loss(values: FloatArray) -> float:
        vector = np.concatenate([[1.0], np.minimum(np.abs(values[:4]), 1.0), np.abs(values[4:])])
        planned = np.array([(r.plan @ vector).max() for r in rows])
        errors = np.minimum(np.abs(np.log(planned / measured)), 0.5)
        return float(errors.mean()) + 1e-3 * float(np.abs(values[:4]).sum())

    results = [
        minimize(loss, start, method="Nelder-Mead", options={"maxfev": 1500}) for start in starts
    ]
    return style_of(min(results, key=lambda r: r.fun).x)


def _plain(style: ArenaStyle) -> dict[str, Any]:
    return {
        "kept_share": dict(style.kept_share),
        "patch_ratio": style.patch_ratio,
        "row_ratio": style.row_ratio,
        "constant_bytes": style.constant_bytes,
    }


def fit_styles(
    rows: Sequence[RamRow], held_out: Mapping[str, Sequence[tuple[RamRow, float]]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Return the fitted styles, and per style the ratios that bound 90 % of held-out rows."""
    styles = {name: _plain(_fit([r for r in rows if r.style == name])) for name in held_out}
    ratios: dict[str, list[float]] = {"tflm": [0.9, 1.25]}
    for name, pairs in held_out.items():
        measured = [r.activation_bytes / planned for r, planned in pairs]
        ratios[name] = [
            round(min(0.98, float(np.quantile(measured, 0.05))), 3),
            round(max(1.02, float(np.quantile(measured, 0.95))), 3),
        ]
    return styles, ratios


def held_out_plans(rows: Sequence[RamRow]) -> dict[str, list[tuple[RamRow, float]]]:
    """Return per style every row with its planned bytes by a fit that has not seen its family."""
    plans: dict[str, list[tuple[RamRow, float]]] = {}
    for style in sorted({r.style for r in rows}):
        inside = [r for r in rows if r.style == style]
        plans[style] = []
        for family in sorted({r.family for r in inside}):
            fitted = _fit([r for r in inside if r.family != family], STARTS[:1])
            plans[style] += [
                (row, planned_bytes(row.network, fitted)) for row in inside if row.family == family
            ]
    return plans


def arena_scores(
    rows: Sequence[RamRow],
    styles: Mapping[str, Mapping[str, Any]],
    held_out: Mapping[str, Sequence[tuple[RamRow, float]]],
) -> Iterator[tuple[str, str, list[float]]]:
    """Yield (test, fit, relative errors) for the naive peak, in-sample and families left out."""
    naive = ArenaStyle(patch_ratio=0.0, fuses_pad=False)
    yield (
        "no fit",
        "peak of live tensors",
        [planned_bytes(r.network, naive) / r.activation_bytes - 1 for r in rows],
    )
    for name, style in styles.items():
        fitted = ArenaStyle(**style)
        inside = [r for r in rows if r.style == name]
        errors = [planned_bytes(r.network, fitted) / r.activation_bytes - 1 for r in inside]
        yield "in-sample", name, errors
        errors = [planned / r.activation_bytes - 1 for r, planned in held_out[name]]
        yield "leave one model family out", name, errors
