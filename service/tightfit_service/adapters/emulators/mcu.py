"""The emulator of microcontrollers: calibrated latency and energy, planned RAM, counted flash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tightfit_service.adapters.emulators import flash, memory_plan
from tightfit_service.adapters.emulators.mcu_latency import (
    FLOAT_BITS,
    LogPrices,
    Setup,
    known_levels_of,
    release_of,
    runtime_path,
    setup_of,
)
from tightfit_service.adapters.emulators.mcu_power import PowerModel
from tightfit_service.adapters.emulators.mcu_work import work_of
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.network import NetworkProfile, Operator
from tightfit_service.domain.quantities import Interval

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

CACHE_ENTRIES = 1_024
COEFFICIENTS = Path(__file__).with_name("mcu_coefficients.json")

CONFIDENCE = 0.9
ASSUMED_LATENCY_SD: Mapping[str, float] = {
    "clock_mhz": 0.3,
    "runtime": 0.35,
    "core": 0.5,
    "isa_features": 0.1,
}
"""What a field that was taken from the core's class adds to the standard deviation of log latency:
clocks within a class spread by about a third; runtimes by 3x to 7x from end to end."""
WIDE_ACTIVATION_FACTOR = 1.5
"""Cycles of 16-bit over 8-bit activations: half as many products fit a SIMD register, without widening."""
NORMAL_90 = 1.645
OTHER_PLANNER_RATIO = 0.25
"""Least share of what TFLM's planner needs that another was seen to get by with: TinyEngine's peak SRAM is 0.26 to
0.57 of that of TFLM with CMSIS-NN over eight networks on the STM32H743 (mit-han-lab/tinyengine, README)."""
_PLANNED = frozenset({"tflm", "x-cube-ai"})
"""Families of runtimes whose placing of tensors is modelled; others are planned as TFLM."""
SMALL_REST_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class _Coefficients:
    """The fitted numbers of `mcu_coefficients.json`."""

    prices: LogPrices
    half_width: Mapping[str, Sequence[Sequence[float]]]
    """Half widths of log latency that cover 90 % of held-out rows, over predicted deviations."""
    coverage: Mapping[str, float]
    styles: Mapping[str, memory_plan.ArenaStyle]
    ram_ratios: Mapping[str, tuple[float, float]]
    power: PowerModel
    fitted: str

    @classmethod
    def read(cls, path: Path) -> _Coefficients:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            prices=LogPrices(
                means=document["log_factors"],
                prior_sd=document["prior_sd"],
                learned={k: np.array(v) / 1000 for k, v in document["learned_permille"].items()},
                noise_sd=document["noise_sd"],
            ),
            half_width=document["half_width"],
            coverage=document["coverage"],
            styles={
                "tflm": memory_plan.TFLM_STYLE,
                **{
                    k: memory_plan.x_cube_ai_style(**v) for k, v in document["arena_styles"].items()
                },
            },
            ram_ratios={k: (v[0], v[1]) for k, v in document["ram_ratios"].items()},
            power=PowerModel(**document["power"]),
            fitted=document["fitted"],
        )


@dataclass(frozen=True, kw_only=True)
class McuEmulator:
    """Emulator of Cortex-M class targets (port `Emulator`). Stateless but for caches of fitted prices.

    Latency is a sum over operators of work amounts times cycles per unit; the prices are products of
    factors for the core, the runtime and its release, and the board, fitted on published measurements
    (MLPerf Tiny results, STM32 model zoo) by `benchmarks/fit_mcu_emulator.py`.
    """

    coefficients_path: Path = COEFFICIENTS
    name: str = "mcu"
    _price_cache: dict[tuple[Setup, bool, bool], Mapping[str, float]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _setup_cache: dict[tuple[str, str, str, str], Setup] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def _fitted(self) -> _Coefficients:
        return _Coefficients.read(self.coefficients_path)

    @cached_property
    def _levels(self) -> frozenset[str]:
        return known_levels_of(self._fitted.prices.means)

    def supports(self, target: HardwareSpec) -> bool:
        """Whether the target is a Cortex-M of a known class without an accelerator that runs the network."""
        return self.runs_core(target) and target.accelerator is None

    def runs_core(self, target: HardwareSpec) -> bool:
        """Whether the core is of a known class, whatever is beside it."""
        return f"core:{target.core}" in self._fitted.prices.means

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the cost of one operator; latency in ms, energy in mJ."""
        cycles = sum(self._cycles(operator, target).values())
        latency_ms = cycles / (target.clock_mhz * 1e3)
        return OperatorCost(
            node=operator.node,
            op_type=operator.op_type,
            macs=operator.macs,
            latency_ms=latency_ms,
            energy_mj=latency_ms * self._power_mw(target) / 1e3,
            weight_bytes=self._operator_flash(operator, target),
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return the arena in use per operator that runs, in bytes."""
        return memory_plan.memory_points(network, self._arena_style(network, target))

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the cost of a network.

        For runtimes that keep the model file in flash (TFLM), `file_bytes` is the flash exactly.
        Otherwise flash is the constants that the runtime's compiler keeps.
        """
        layers = tuple(self.operator_cost(op, target) for op in network.operators)
        latency = sum(layer.latency_ms for layer in layers)
        setup = self._setup(target)
        cycles: dict[tuple[str, bool], float] = {}
        for operator in network.operators:
            is_float = operator.activation_bits >= FLOAT_BITS
            for term, count in self._cycles(operator, target).items():
                cycles[term, is_float] = cycles.get((term, is_float), 0.0) + count
        knowledge = self._knowledge(setup)
        fitted = self._fitted
        latency_sd = math.hypot(
            fitted.prices.log_sd(setup, cycles),
            *(ASSUMED_LATENCY_SD.get(name, 0.0) for name in target.assumed_fields),
        )
        width = half_width_at(fitted.half_width[knowledge], latency_sd)
        energy_width = fitted.power.energy_width(target, width)
        points = self.memory_points(network, target)
        peak = max(points, key=lambda point: point.bytes_in_use)
        low, high = self._ram_ratios(target, is_float=_is_float(network))
        flash_interval = self._flash(network, target, file_bytes)
        return CostEstimate(
            latency_ms=_log_interval(latency, width),
            energy_mj=_log_interval(sum(layer.energy_mj for layer in layers), energy_width),
            peak_ram_bytes=Interval.relative(peak.bytes_in_use, low_ratio=low, high_ratio=high),
            flash_bytes=flash_interval,
            macs=network.macs,
            layers=layers,
            peak_node=peak.node,
            provenance=(
                f"calibrated microcontroller model ({fitted.fitted}); {_KNOWLEDGE_TEXT[knowledge]}; "
                f"90 % latency intervals covered {fitted.coverage[knowledge]:.0%} of held-out rows"
            ),
            confidence=CONFIDENCE,
            warnings=self._warnings(network, target, setup, flash_interval),
        )

    def _cycles(self, operator: Operator, target: HardwareSpec) -> dict[str, float]:
        is_float = operator.activation_bits >= FLOAT_BITS
        prices = self._prices(target, is_float=is_float)
        wide = 1.0 if operator.activation_bits in (8, FLOAT_BITS) else WIDE_ACTIVATION_FACTOR
        amounts = work_of(operator, target.channel_multiple)
        return {term: prices[term] * amount * wide for term, amount in amounts.items()}

    def _prices(self, target: HardwareSpec, *, is_float: bool) -> Mapping[str, float]:
        """Return cycles per unit of work; float prices were measured on cores with an FPU (but for M0+)."""
        in_software = is_float and "fpu" not in target.isa_features and target.core != "cortex-m0+"
        key = (self._setup(target), is_float, in_software)
        prices = self._price_cache.get(key)
        if prices is None:
            factor = SOFT_FLOAT_FACTOR if in_software else 1.0
            fitted = self._fitted.prices.prices(key[0], is_float=is_float)
            prices = {term: price * factor for term, price in fitted.items()}
            _remember(self._price_cache, key, prices)
        return prices

    def _setup(self, target: HardwareSpec) -> Setup:
        key = (target.core, target.display_name, target.runtime.name, target.runtime.version)
        setup = self._setup_cache.get(key)
        if setup is None:
            setup = setup_of(target, self._levels)
            _remember(self._setup_cache, key, setup)
        return setup

    def _knowledge(self, setup: Setup) -> str:
        means = self._fitted.prices.means
        place = f"{setup.board}+{setup.runtime[-1]}"
        if f"setup:{place}" in means:
            return "board_and_runtime"
        return "board" if f"board:{setup.board}" in means else "core"

    def _style(self, target: HardwareSpec) -> str:
        path = self._setup(target).runtime
        if path[0] == "x-cube-ai":
            return "x-cube-ai-10" if release_of(path) >= 10 else "x-cube-ai"
        return "tflm"

    def _arena_style(self, network: NetworkProfile, target: HardwareSpec) -> memory_plan.ArenaStyle:
        style = self._style(target)
        if style == "tflm" or not _is_float(network):
            return self._fitted.styles[style]
        # the release itself, not the nearest whose latency was measured: planners change between them
        path = runtime_path(target.runtime.name, target.runtime.version)
        return memory_plan.x_cube_ai_float_style(release_of(path))

    def _has_own_planner(self, target: HardwareSpec) -> bool:
        return self._setup(target).runtime[0] not in _PLANNED

    def _ram_ratios(self, target: HardwareSpec, *, is_float: bool) -> tuple[float, float]:
        """Return the bounds of peak RAM over the plan."""
        style = self._style(target)
        ratios = self._fitted.ram_ratios
        low, high = ratios["float32" if is_float and style != "tflm" else style]
        return (OTHER_PLANNER_RATIO, high) if self._has_own_planner(target) else (low, high)

    def _keeps_file(self, target: HardwareSpec) -> bool:
        return self._setup(target).runtime[0] == "tflm"

    def _operator_flash(self, operator: Operator, target: HardwareSpec) -> int:
        if self._keeps_file(target):
            return flash.flatbuffer_bytes(operator)
        return flash.constant_bytes(operator)

    def _flash(
        self, network: NetworkProfile, target: HardwareSpec, file_bytes: int | None
    ) -> Interval:
        keeps_file = self._keeps_file(target)
        if keeps_file and file_bytes is not None:
            return Interval.exact(float(file_bytes))
        counted = sum(self._operator_flash(op, target) for op in network.operators)
        counted += flash.other_constant_bytes(network)
        if keeps_file:
            return Interval.relative(float(counted), low_ratio=0.85, high_ratio=1.15)
        # Weights flash of compiled networks in the STM32 model zoo: the median is the constants exactly.
        return Interval.relative(float(counted), low_ratio=0.95, high_ratio=1.06)

    def _power_mw(self, target: HardwareSpec) -> float:
        return self._fitted.power.active_mw(target, self._setup(target).runtime)

    def _warnings(
        self,
        network: NetworkProfile,
        target: HardwareSpec,
        setup: Setup,
        flash_interval: Interval,
    ) -> tuple[str, ...]:
        warnings = []
        if not any(f"runtime:{level}" in self._fitted.prices.means for level in setup.runtime):
            warnings.append(
                f"no measurement of the runtime {target.runtime.name!r} was in the fit: "
                "its speed is assumed to be that of a typical runtime, and the intervals are wide"
            )
        if self._has_own_planner(target):
            warnings.append(
                f"how {target.runtime.name} places tensors in RAM is not modelled: they are planned as "
                "TensorFlow Lite for Microcontrollers does, and may need down to a quarter of that"
            )
        if target.memory.flash_bytes - flash_interval.high < SMALL_REST_BYTES:
            warnings.append(
                "flash_bytes counts the model only; the runtime's code (typically 30 to 120 KiB) "
                "and your application need room beside it"
            )
        is_float = any(op.activation_bits >= FLOAT_BITS for op in network.operators)
        if is_float and "fpu" not in target.isa_features:
            warnings.append(
                f"{target.name} has no floating-point unit: float32 operators run in software"
            )
        return tuple(warnings)


SOFT_FLOAT_FACTOR = 6.0
"""Soft-float over hardware float32: 25 to 60 cycles per library call (Arm run-time ABI) against 5 to 10
for the load, multiply-accumulate and loop of the same product with an FPU."""
_KNOWLEDGE_TEXT: Mapping[str, str] = {
    "board_and_runtime": "this board with this runtime was in the fit",
    "board": "this board was in the fit with another runtime",
    "core": "the board was not in the fit, its core class was",
}


def _is_float(network: NetworkProfile) -> bool:
    """Whether all of it is in float32."""
    return all(op.activation_bits >= FLOAT_BITS for op in network.operators)


def _remember(cache: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Store a value; targets come from users, so a full cache is emptied."""
    if len(cache) >= CACHE_ENTRIES:
        cache.clear()
    cache[key] = value


def half_width_at(knots: Sequence[Sequence[float]], deviation: float) -> float:
    """Return the half width of log latency at a predicted deviation; beyond the knots in proportion."""
    deviations = [knot[0] for knot in knots]
    widths = [knot[1] for knot in knots]
    if deviation > deviations[-1]:
        # What was never seen is not narrower than a normal distribution of that deviation.
        return max(widths[-1], NORMAL_90 * deviation)
    return float(np.interp(deviation, deviations, widths))


def _log_interval(value: float, log_half_width: float) -> Interval:
    ratio = math.exp(log_half_width)
    return Interval.relative(value, low_ratio=1 / ratio, high_ratio=ratio)
