"""Fits how X-CUBE-AI lays out its activation arena to the RAM that it reports for public models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.mcu_fitting import table_for
from benchmarks.measured_rows import MeasuredRow
from scipy.optimize import minimize

from tightfit_service.adapters.emulators.mcu_latency import runtime_path
from tightfit_service.adapters.emulators.memory_plan import ArenaStyle, memory_points
from tightfit_service.domain.layer_table import LayerTable
from tightfit_service.domain.network import NetworkProfile

FloatArray = npt.NDArray[np.float64]

PARAMETERS = ("patch_ratio", "row_ratio", "constant_bytes")
STARTS = ((4.0, 1.0, 500.0), (4.0, 6.0, 500.0), (30.0, 1.0, 500.0), (30.0, 6.0, 500.0))
"""From CMSIS-NN's scratch and one row of each side to eight times as much."""
IN_PLACE: Mapping[str, float] = dict.fromkeys(
    ("conv", "pointwise", "depthwise", "pool", "elementwise"), 0.0
)
"""X-CUBE-AI lets outputs grow over the inputs that are consumed. That is taken as given: when shares
were fitted too, leaving out a family changed them more than the rows of other families could tell."""
PENALTY = 0.03
"""Pull per unit of log ratio of releases from 10 on, which have few rows, to the fit of the older ones."""
STYLES = ("x-cube-ai", "x-cube-ai-10")
LOSS_LIMIT = 0.5
"""Log error beyond which a row pulls no further: misprints, other options of the compiler."""


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
    return _measured_ram(rows, tables, is_float=False)


def _measured_ram(
    rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable], *, is_float: bool
) -> list[RamRow]:
    found: dict[tuple[str, str, float], RamRow] = {}
    for row in rows:
        table = table_for(row, tables)
        if table is None or not row.activation_bytes or row.is_float != is_float or row.accelerator:
            continue
        inputs = sum(math.prod(table.profile.tensors[n]) for n in table.profile.inputs)
        if not is_float and row.activation_bytes >= 4 * inputs > 2**19:
            # Compiled with a float32 input of a size that hides everything else.
            continue
        profile = table.profile
        if is_float:
            profile = profile.at_precision(weight_bits=32, activation_bits=32)
        path = runtime_path(row.runtime, row.runtime_version)
        release = float(path[1].split("/")[1]) if len(path) > 1 else 0.0
        style = STYLES[1] if release >= 10 else STYLES[0]
        found[style, row.model, row.activation_bytes] = RamRow(
            style=style,
            model=row.model,
            family=row.family,
            network=profile,
            activation_bytes=row.activation_bytes,
            plan=_linear(profile),
        )
    return list(found.values())


def style_of(values: Sequence[float] | FloatArray) -> ArenaStyle:
    """Return the arena style of a parameter vector in the order of PARAMETERS."""
    patch, row, constant = (round(abs(float(v)), 3) for v in values)
    return ArenaStyle(
        kept_share=IN_PLACE, patch_ratio=patch, row_ratio=row, constant_bytes=constant
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


@dataclass(frozen=True, kw_only=True)
class _Plans:
    """The plans of rows stacked, so that one product gives all peaks."""

    points: FloatArray
    first: npt.NDArray[np.int64]
    measured: FloatArray

    @classmethod
    def of(cls, rows: Sequence[RamRow]) -> _Plans:
        return cls(
            points=np.vstack([r.plan for r in rows]),
            first=np.cumsum([0, *(len(r.plan) for r in rows[:-1])]),
            measured=np.array([r.activation_bytes for r in rows]),
        )

    def peaks(self, values: FloatArray) -> FloatArray:
        """Return the planned bytes of every row."""
        peaks: FloatArray = np.maximum.reduceat(
            self.points @ np.concatenate([[1.0], np.abs(values)]), self.first
        )
        return peaks

    def loss(self, values: FloatArray) -> float:
        """Return the mean log error, no row counting beyond LOSS_LIMIT."""
        errors = np.abs(np.log(self.peaks(values) / self.measured))
        return float(np.minimum(errors, LOSS_LIMIT).mean())


def _fit(rows: Sequence[RamRow], centre: FloatArray | None = None) -> FloatArray:
    """Return the parameters of rows, pulled to `centre` where there is one."""
    plans = _Plans.of(rows)

    def loss(values: FloatArray) -> float:
        if centre is None:
            return plans.loss(values)
        away = np.log((np.abs(values) + 1) / (centre + 1))
        return plans.loss(values) + PENALTY * float(np.abs(away).sum())

    starts = [np.array(start) for start in STARTS] + ([] if centre is None else [centre])
    found = [
        minimize(loss, start, method="Nelder-Mead", options={"maxfev": 400}) for start in starts
    ]
    best: FloatArray = min(found, key=lambda result: float(result.fun)).x
    return np.abs(best)


def _fit_both(rows: Sequence[RamRow]) -> dict[str, FloatArray]:
    """Return the parameters per style: that of releases from 10 on has few rows and leans on the older."""
    older = _fit([r for r in rows if r.style == STYLES[0]])
    newer = [r for r in rows if r.style == STYLES[1]]
    return {STYLES[0]: older, STYLES[1]: _fit(newer, older) if newer else older}


def _plain(style: ArenaStyle) -> dict[str, Any]:
    return {
        "kept_share": dict(style.kept_share),
        "patch_ratio": style.patch_ratio,
        "row_ratio": style.row_ratio,
        "constant_bytes": style.constant_bytes,
    }


Pairs = Sequence[tuple[RamRow, float]]
"""Rows with their planned bytes."""


def fit_styles(
    rows: Sequence[RamRow], held_out: Mapping[str, Pairs], floats: Pairs
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]], dict[str, float]]:
    """Return the fitted styles, the ratios that bound 90 % of held-out rows, and their coverage.

    The rows of all releases tell the ratios together. The coverage is that of ratios taken from the
    other families.
    """
    styles = {name: _plain(style_of(values)) for name, values in _fit_both(rows).items()}
    together = [pair for pairs in held_out.values() for pair in pairs]
    pools: dict[str, Pairs] = {**dict.fromkeys(STYLES, together), "float32": [*together, *floats]}
    ratios: dict[str, list[float]] = {"tflm": [0.9, 1.25]}
    coverage = {}
    for name, pool in pools.items():
        ratios[name] = ratios_of(pool)
        hits = 0
        for family in {row.family for row, _ in pool}:
            low, high = ratios_of([p for p in pool if p[0].family != family])
            hits += sum(
                low <= row.activation_bytes / planned <= high
                for row, planned in pool
                if row.family == family
            )
        coverage[name] = round(hits / len(pool), 3)
    return styles, ratios, coverage


def ratios_of(pairs: Pairs) -> list[float]:
    """Return the ratios of reported over planned bytes between which 90 % of networks lie.

    Conformal quantiles in which every family of networks counts alike: what comes next is likely to be
    of another one.
    """
    rows_of = Counter(row.family for row, _ in pairs)
    ratios = [(row.activation_bytes / plan, 1 / rows_of[row.family]) for row, plan in pairs]
    # One more family, of which nothing is known, stands beyond either end.
    total = len(rows_of) + 1.0

    def bound(ordered: Sequence[tuple[float, float]]) -> float:
        below = total
        for value, weight in ordered:
            below -= weight
            if below <= 0.05 * total:
                return value
        return ordered[-1][0]

    low = bound(sorted(ratios, reverse=True))
    high = bound(sorted(ratios))
    return [round(min(0.98, low), 3), round(max(1.02, high), 3)]


def held_out_plans(rows: Sequence[RamRow]) -> dict[str, list[tuple[RamRow, float]]]:
    """Return per style every row with its planned bytes by a fit that has not seen its family."""
    plans: dict[str, list[tuple[RamRow, float]]] = {style: [] for style in STYLES}
    for family in sorted({r.family for r in rows}):
        fitted = _fit_both([r for r in rows if r.family != family])
        for row in rows:
            if row.family == family:
                planned = planned_bytes(row.network, style_of(fitted[row.style]))
                plans[row.style].append((row, planned))
    return plans


def float_plans(
    rows: Sequence[MeasuredRow],
    tables: Mapping[str, LayerTable],
) -> list[tuple[RamRow, float]]:
    """Return the float32 rows with planned bytes: nothing was fitted to them but what int8 rows gave."""
    found = _measured_ram(rows, tables, is_float=True)
    fitted = _fit_both(ram_rows(rows, tables))
    return [(r, planned_bytes(r.network, style_of(fitted[r.style]))) for r in found]


def arena_scores(
    rows: Sequence[RamRow],
    styles: Mapping[str, Mapping[str, Any]],
    held_out: Mapping[str, Pairs],
    floats: Pairs,
) -> Iterator[tuple[str, str, list[float]]]:
    """Yield (test, fit, relative errors) for the naive peak, in-sample, families left out and float32."""
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
        yield "leave one model family out", name, _errors(held_out[name])
    together = [pair for pairs in held_out.values() for pair in pairs]
    yield "leave one model family out", "all int8", _errors(together)
    yield "float32, none fitted", "x-cube-ai", _errors(floats)


def _errors(pairs: Pairs) -> list[float]:
    return [planned / row.activation_bytes - 1 for row, planned in pairs]
