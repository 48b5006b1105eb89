"""Tells by the RAM that X-CUBE-AI reports for public models when its planner puts outputs in place.

What its generated code shows (scratch, pads, fused pooling) is taken as given; the rules that it does not
show are chosen among a few, always on other families of networks than those that are scored.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.arena_reports import FLOAT_BITS, REPORTS, Report
from benchmarks.mcu_fitting import table_for
from benchmarks.measured_rows import MeasuredRow

from tightfit_service.adapters.emulators.mcu_latency import release_of, runtime_path
from tightfit_service.adapters.emulators.memory_plan import (
    ArenaStyle,
    memory_points,
    x_cube_ai_float_style,
    x_cube_ai_style,
)
from tightfit_service.domain.layer_table import LayerTable
from tightfit_service.domain.network import NetworkProfile

FloatArray = npt.NDArray[np.float64]

IN_PLACE: Sequence[tuple[str, ...]] = (
    (),
    ("depthwise", "pointwise"),
    ("depthwise", "pointwise", "strided"),
    ("conv", "depthwise", "pointwise", "strided"),
)
"""Kinds of windowed operators that may be in place, from those that reread least of their input."""
GROWTH_LIMITS = (1.0, 2.0, 4.0)
"""Never larger than the input; a 1x1 convolution that doubles the channels; anything but an expansion."""
STYLES = ("x-cube-ai", "x-cube-ai-10")
"""Releases before 10, and those from 10 on, whose planner leaves gaps: one network with two heads takes 450
and 431 KiB."""
LOSS_LIMIT = 0.5
"""Log error beyond which a row pulls no further: misprints, other options of the compiler."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the planner of a release puts in place, as `x_cube_ai_style` takes it."""

    in_place: tuple[str, ...]
    growth_limit: float
    pads_convolutions: bool

    def style(self) -> ArenaStyle:
        """Return the arena style of these rules."""
        return x_cube_ai_style(**self.plain())

    def plain(self) -> dict[str, Any]:
        """Return the rules as the coefficients keep them."""
        return {
            "in_place": list(self.in_place),
            "growth_limit": self.growth_limit,
            "pads_convolutions": self.pads_convolutions,
        }


CHOICES = tuple(
    Rules(in_place=kinds, growth_limit=limit, pads_convolutions=pads)
    for kinds, limit, pads in itertools.product(IN_PLACE, GROWTH_LIMITS, (True, False))
    # Without anything in place the limit says nothing.
    if kinds or limit == GROWTH_LIMITS[0]
)


@dataclass(frozen=True, kw_only=True)
class RamRow:
    """The activation RAM reported for a network, and what it would be by each of CHOICES, in bytes."""

    style: str
    model: str
    family: str
    network: NetworkProfile
    activation_bytes: float
    planned: FloatArray = field(repr=False)

    def losses(self) -> FloatArray:
        """Return the log error by each of CHOICES, none beyond LOSS_LIMIT."""
        errors: FloatArray = np.abs(np.log(self.planned / self.activation_bytes))
        return np.minimum(errors, LOSS_LIMIT)


def ram_rows(rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable]) -> list[RamRow]:
    """Return the int8 rows with activation RAM, each network and figure once."""
    found: dict[tuple[str, str, float], RamRow] = {}
    plans: dict[str, FloatArray] = {}
    for row, table in _with_ram(rows, tables, is_float=False):
        profile, reported = table.profile, row.activation_bytes or 0.0
        inputs = sum(math.prod(profile.tensors[n]) for n in profile.inputs)
        if reported >= 4 * inputs > 2**19:
            # Compiled with a float32 input of a size that hides everything else.
            continue
        release = release_of(runtime_path(row.runtime, row.runtime_version))
        style = STYLES[1] if release >= 10 else STYLES[0]
        if row.model not in plans:
            plans[row.model] = np.array([planned_bytes(profile, r.style()) for r in CHOICES])
        found[style, row.model, reported] = RamRow(
            style=style,
            model=row.model,
            family=row.family,
            network=profile,
            activation_bytes=reported,
            planned=plans[row.model],
        )
    return list(found.values())


def _with_ram(
    rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable], *, is_float: bool
) -> Iterator[tuple[MeasuredRow, LayerTable]]:
    for row in rows:
        table = table_for(row, tables)
        if table is None or not row.activation_bytes or row.is_float != is_float or row.accelerator:
            continue
        yield row, table


def planned_bytes(network: NetworkProfile, style: ArenaStyle) -> float:
    """Return the peak of the planned arena."""
    return max(p.bytes_in_use for p in memory_points(network, style))


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The choice that rows tell, and the gaps of releases from 10 on."""

    choice: int
    fragmentation: Mapping[str, float]

    @classmethod
    def of(cls, rows: Sequence[RamRow]) -> _Fit:
        older = [row.losses() for row in rows if row.style == STYLES[0]]
        choice = int(np.argmin(np.mean(older, axis=0)))
        ratios = [r.activation_bytes / r.planned[choice] for r in rows if r.style == STYLES[1]]
        gaps = max(float(np.median(ratios)), 1.0) if ratios else 1.0
        return cls(choice=choice, fragmentation={STYLES[0]: 1.0, STYLES[1]: round(gaps, 3)})

    def planned(self, row: RamRow) -> float:
        """Return the planned bytes of a row."""
        return float(row.planned[self.choice]) * self.fragmentation[row.style]

    def plain(self, style: str) -> dict[str, Any]:
        """Return the style as the coefficients keep it."""
        return {**CHOICES[self.choice].plain(), "fragmentation": self.fragmentation[style]}


MODEL_ZOO = "model zoo"
REPORTS_TOLD = "public reports that told the rules"
REPORTS_LATER = "public reports read afterwards"


@dataclass(frozen=True, kw_only=True)
class FloatPlan:
    """The activation RAM reported for a network in float32, and what it is planned as, in bytes."""

    source: str
    family: str
    activation_bytes: float
    planned: float


Pairs = Sequence[tuple[RamRow, float]]
"""Rows with their planned bytes."""
Ratios = Sequence[tuple[str, float]]
"""Families of networks with reported over planned bytes."""


def fit_styles(
    rows: Sequence[RamRow], held_out: Mapping[str, Pairs], floats: Sequence[FloatPlan]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]], dict[str, float]]:
    """Return the chosen rules, the ratios that bound 90 % of held-out rows, and their coverage.

    The rows of all releases tell the ratios together. The coverage is that of ratios taken from the
    other families.
    """
    fit = _Fit.of(rows)
    styles = {name: fit.plain(name) for name in STYLES}
    together = [
        (row.family, row.activation_bytes / plan)
        for pairs in held_out.values()
        for row, plan in pairs
    ]
    pools: dict[str, Ratios] = {
        **dict.fromkeys(STYLES, together),
        "float32": [(plan.family, plan.activation_bytes / plan.planned) for plan in floats],
    }
    ratios: dict[str, list[float]] = {"tflm": [0.9, 1.25]}
    coverage = {}
    for name, pool in pools.items():
        ratios[name] = ratios_of(pool)
        hits = 0
        for family in {family for family, _ in pool}:
            low, high = ratios_of([item for item in pool if item[0] != family])
            hits += sum(low <= ratio <= high for key, ratio in pool if key == family)
        coverage[name] = round(hits / len(pool), 3)
    return styles, ratios, coverage


def ratios_of(pairs: Ratios) -> list[float]:
    """Return the ratios of reported over planned bytes between which 90 % of networks lie.

    Quantiles in which every family of networks counts alike: what comes next is likely to be of another
    one. With one family more beyond either end, as conformal bounds have it, nothing of a dozen families would
    be left out, and 97 % of held-out rows covered.
    """
    rows_of = Counter(family for family, _ in pairs)
    ratios = [(ratio, 1 / rows_of[family]) for family, ratio in pairs]
    total = float(len(rows_of))

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
    """Return per style every row with its planned bytes by rules chosen without its family."""
    plans: dict[str, list[tuple[RamRow, float]]] = {style: [] for style in STYLES}
    for family in sorted({r.family for r in rows}):
        fit = _Fit.of([r for r in rows if r.family != family])
        for row in rows:
            if row.family == family:
                plans[row.style].append((row, fit.planned(row)))
    return plans


def float_plans(rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable]) -> list[FloatPlan]:
    """Return the float32 rows, each network and figure once, and the public reports, planned.

    Nothing is fitted: the rules are those of the reports.
    """
    found: dict[tuple[str, float], FloatPlan] = {}
    for row, table in _with_ram(rows, tables, is_float=True):
        reported = row.activation_bytes or 0.0
        network = table.profile.at_precision(weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS)
        release = release_of(runtime_path(row.runtime, row.runtime_version))
        found[row.model, reported] = FloatPlan(
            source=MODEL_ZOO,
            family=row.family,
            activation_bytes=reported,
            planned=planned_bytes(network, x_cube_ai_float_style(release)),
        )
    return [*found.values(), *(_of_report(report) for report in REPORTS)]


def _of_report(report: Report) -> FloatPlan:
    return FloatPlan(
        source=REPORTS_TOLD if report.told else REPORTS_LATER,
        family=report.family,
        activation_bytes=report.activation_bytes,
        planned=planned_bytes(report.network, x_cube_ai_float_style(report.release)),
    )


def arena_scores(
    rows: Sequence[RamRow],
    styles: Mapping[str, Mapping[str, Any]],
    held_out: Mapping[str, Pairs],
    floats: Sequence[FloatPlan],
) -> Iterator[tuple[str, str, list[float]]]:
    """Yield (test, fit, relative errors) for the naive peak, in-sample, families left out and float32."""
    naive = ArenaStyle(fuses_pad=False)
    yield (
        "no fit",
        "peak of live tensors",
        [planned_bytes(r.network, naive) / r.activation_bytes - 1 for r in rows],
    )
    for name, style in styles.items():
        chosen = x_cube_ai_style(**style)
        inside = [r for r in rows if r.style == name]
        errors = [planned_bytes(r.network, chosen) / r.activation_bytes - 1 for r in inside]
        yield "in-sample", name, errors
        yield "leave one model family out", name, _errors(held_out[name])
    together = [pair for pairs in held_out.values() for pair in pairs]
    yield "leave one model family out", "all int8", _errors(together)
    for source in dict.fromkeys(plan.source for plan in floats):
        errors = [p.planned / p.activation_bytes - 1 for p in floats if p.source == source]
        yield f"float32, {source}", "x-cube-ai, none fitted", errors


def _errors(pairs: Pairs) -> list[float]:
    return [planned / row.activation_bytes - 1 for row, planned in pairs]
