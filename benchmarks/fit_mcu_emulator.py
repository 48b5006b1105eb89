"""Fits the microcontroller emulator to published measurements and writes its coefficients and its scores.

python benchmarks/fit_mcu_emulator.py --data DIR [--check]

DIR holds mlperf_tiny_results.csv, mlperf_tiny_layers.csv, device_benchmarks.csv and stm32_zoo_layers.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arena_fitting import (
    FloatPlan,
    Pairs,
    RamRow,
    arena_scores,
    fit_styles,
    float_plans,
    held_out_plans,
    ram_rows,
)
from benchmarks.layer_tables import read_layer_tables
from benchmarks.mcu_baseline import baseline_held_out
from benchmarks.mcu_fitting import (
    Prediction,
    Sample,
    comparison_samples,
    fit,
    held_out,
    predict,
    samples_of,
    with_priors,
)
from benchmarks.measured_rows import MeasuredRow, read_devices, read_mlperf
from benchmarks.power_fitting import (
    PowerMiss,
    fit_power,
    plain_power,
    power_misses,
    power_rows,
    spread_of,
)

from tightfit_service.adapters.emulators.mcu import COEFFICIENTS, NORMAL_90, half_width_at
from tightfit_service.adapters.emulators.mcu_latency import LogPrices
from tightfit_service.domain.layer_table import LayerTable

DOCS = Path(__file__).resolve().parents[1] / "docs" / "emulators.md"
SCORED_CORES = frozenset({"cortex-m4", "cortex-m7", "cortex-m33"})
FITTED = "fitted to 235 rows of MLPerf Tiny v0.5 to v1.3 and the STM32 model zoo"


def main() -> None:
    """Fit, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="print the scores, write nothing")
    arguments = parser.parse_args()
    rows, tables = read_data(arguments.data)
    samples = samples_of(rows, tables)
    extra = comparison_samples(rows, tables)
    prices = with_priors(fit([*samples, *extra]))
    tests = {
        "in-sample": [predict(prices, sample) for sample in samples],
        "leave one device out": held_out(samples, by(samples, lambda s: s.row.device), extra=extra),
        "leave one model out": held_out(samples, by(samples, lambda s: s.row.model), extra=extra),
        "leave one model family out": held_out(
            samples, by(samples, lambda s: s.row.family), extra=extra
        ),
    }
    half_width, coverage = calibrate(tests)
    ram = ram_rows(rows, tables)
    plans = held_out_plans(ram)
    floats = float_plans(rows, tables)
    styles, ram_ratios, ram_coverage = fit_styles(ram, plans, floats)
    report = latency_report(tests, samples) + calibration_report(half_width, coverage)
    report += ram_report(ram, styles, plans, floats, ram_coverage)
    powers = power_rows(rows)
    misses = power_misses(powers)
    scales, energy_lines = energy_report(misses, tests, half_width)
    report += energy_lines
    print("\n".join(report))
    if arguments.check:
        return
    document = {
        "fitted": FITTED.replace("235", str(len(samples))),
        "log_factors": {k: round(v, 4) for k, v in sorted(prices.means.items())},
        "prior_sd": dict(prices.prior_sd),
        "noise_sd": prices.noise_sd,
        "learned_permille": compact(prices),
        "half_width": half_width,
        "coverage": coverage,
        "arena_styles": styles,
        "ram_ratios": ram_ratios,
        "power": plain_power(fit_power(powers), spread_of(misses), scales),
    }
    COEFFICIENTS.write_text(one_line_per_entry(document), encoding="utf-8")
    write_docs(report)


def read_data(folder: Path) -> tuple[list[MeasuredRow], dict[str, LayerTable]]:
    """Return the measured rows and the layer tables of a data folder."""
    tables = read_layer_tables([folder / "mlperf_tiny_layers.csv", folder / "stm32_zoo_layers.csv"])
    rows = read_mlperf(folder / "mlperf_tiny_results.csv")
    rows += read_devices(folder / "device_benchmarks.csv")
    return rows, tables


def by(samples: Sequence[Sample], key: Callable[[Sample], str]) -> dict[int, str]:
    """Return the group of every sample."""
    return {i: key(sample) for i, sample in enumerate(samples)}


def is_scored(sample: Sample) -> bool:
    """Whether a row belongs to the set that the published baseline was scored on."""
    return not sample.row.is_float and sample.row.core in SCORED_CORES


Knots = list[list[float]]


def calibrate(
    tests: Mapping[str, Sequence[Prediction]],
) -> tuple[dict[str, Knots], dict[str, float]]:
    """Return, by what is known of a target, half widths of log latency over predicted deviations.

    Conformal quantiles of held-out residuals, in bins of the predicted standard deviation (V. Vovk,
    "Conditional validity of inductive conformal predictors", 2012), made monotone. A known board and
    runtime is judged on models left out, the rest on devices left out. The coverage is measured by
    splitting off each group once more: the widths come from the other groups.
    """
    known = [p for p in tests["leave one model out"] if is_scored(p.sample)]
    unknown = [p for p in tests["leave one device out"] if is_scored(p.sample)]
    half_width, coverage = {}, {}
    keys: dict[str, Callable[[Prediction], str]] = {
        "board_and_runtime": lambda p: p.sample.row.model,
        "core": lambda p: p.sample.row.device,
    }
    for name, predictions in (("board_and_runtime", known), ("core", unknown)):
        group = keys[name]
        half_width[name] = knots_of(predictions)
        hits = 0
        for key in {group(p) for p in predictions}:
            knots = knots_of([p for p in predictions if group(p) != key])
            inside = [p for p in predictions if group(p) == key]
            hits += sum(abs(p.log_error) <= half_width_at(knots, p.log_sd) for p in inside)
        coverage[name] = round(hits / len(predictions), 3)
    half_width["board"] = half_width["core"]
    coverage["board"] = coverage["core"]
    return half_width, coverage


def knots_of(predictions: Sequence[Prediction], bins: int = 4) -> Knots:
    """Return (predicted deviation, half width) knots: 90 % quantiles in bins of equal size."""
    ordered = sorted(predictions, key=lambda p: p.log_sd)
    knots: Knots = []
    for i in range(bins):
        part = ordered[i * len(ordered) // bins : (i + 1) * len(ordered) // bins]
        errors = sorted(abs(p.log_error) for p in part)
        rank = min(math.ceil(0.9 * (len(errors) + 1)) - 1, len(errors) - 1)
        floor = knots[-1][1] if knots else 0.0
        middle = part[len(part) // 2].log_sd
        knots.append([round(middle, 4), round(max(errors[rank], floor), 4)])
    return knots


def score_line(name: str, fit_name: str, errors: Sequence[float]) -> str:
    """Return one row of the table of scores; `errors` are predicted over measured, minus one."""
    size = np.abs(np.asarray(errors))
    return (
        f"| {name} | {fit_name} | {len(size)} | {np.median(size):.1%} | "
        f"{np.percentile(size, 90):.1%} | {np.mean(size <= 0.1):.0%} | {np.mean(size <= 0.25):.0%} | "
        f"{np.median(errors):+.1%} |"
    )


def latency_report(
    tests: Mapping[str, Sequence[Prediction]], samples: Sequence[Sample]
) -> list[str]:
    """Return the table of latency scores beside the baseline fits on the same rows."""
    lines = [
        "### Latency, int8, Cortex-M4, M7 and M33",
        "",
        "| test | fit | rows | median error | p90 error | within 10 % | within 25 % | bias |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    scored = [s for s in samples if is_scored(s)]
    keys: dict[str, Callable[[Sample], str]] = {
        "leave one device out": lambda s: s.row.device,
        "leave one model out": lambda s: s.row.model,
        "leave one model family out": lambda s: s.row.family,
    }
    for name, predictions in tests.items():
        errors = [math.exp(p.log_error) - 1 for p in predictions if is_scored(p.sample)]
        lines.append(score_line(name, "tightfit", errors))
        if name in keys:
            for features in ("F2", "F4"):
                errors = baseline_held_out(scored, by(scored, keys[name]), features)
                lines.append(score_line(name, f"baseline {features}", errors))
    lines += ["", "Device left out, per core and per device:", ""]
    lines += [
        "| group | rows | median error | p90 error | within 10 % | within 25 % | bias |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    out = [p for p in tests["leave one device out"] if is_scored(p.sample)]
    columns: tuple[Callable[[Prediction], str], ...] = (
        lambda p: p.sample.row.core,
        lambda p: p.sample.row.device,
    )
    for key in columns:
        for group in sorted({key(p) for p in out}):
            errors = [math.exp(p.log_error) - 1 for p in out if key(p) == group]
            lines.append(score_line(group, "", errors).replace("|  |", "|", 1))
    return [*lines, ""]


def calibration_report(half_width: Mapping[str, Knots], coverage: Mapping[str, float]) -> list[str]:
    """Return the table of interval widths and measured coverage."""
    lines = [
        "### Intervals of latency",
        "",
        "| what is known of the target | half width at predicted deviation | measured coverage |",
        "| --- | --- | --- |",
    ]
    for name in ("board_and_runtime", "core"):
        widths = ", ".join(f"{math.expm1(w):.0%} at {d:.2f}" for d, w in half_width[name])
        lines.append(f"| {name.replace('_', ' ')} | {widths} | {coverage[name]:.0%} |")
    return [*lines, ""]


def ram_report(
    rows: Sequence[RamRow],
    styles: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Pairs],
    floats: Sequence[FloatPlan],
    coverage: Mapping[str, float],
) -> list[str]:
    """Return the scores of the planned arena against reported activation RAM."""
    lines = [
        "### Peak RAM against the activation RAM that X-CUBE-AI reports",
        "",
        "| test | fit | rows | median error | p90 error | within 10 % | within 25 % | bias |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, fit_name, errors in arena_scores(rows, styles, plans, floats):
        lines.append(score_line(name, fit_name, errors))
    stated = ", ".join(f"{name} {share:.0%}" for name, share in coverage.items())
    return [*lines, "", f"90 % intervals cover, of families left out: {stated}.", ""]


def energy_report(
    misses: Mapping[str, Sequence[PowerMiss]],
    tests: Mapping[str, Sequence[Prediction]],
    half_width: Mapping[str, Knots],
) -> tuple[dict[str, float], list[str]]:
    """Return the scales of energy's widths, and the scores of power alone and of energy.

    Latency is predicted as well, by the model that has not seen the row's network or device. Coverage is
    that of scales taken from the other networks or devices.
    """
    lines = [
        "### Power and energy",
        "",
        "| test | what | rows | median error | p90 error | within 10 % | within 25 % | bias |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    spread = spread_of(misses)
    covered, scales = [], {}
    lent: list[float] = []
    for kind, test, knowledge, name in (
        ("known", "leave one model out", "board_and_runtime", "board and runtime known"),
        ("unseen", "leave one device out", "core", "board not known"),
    ):
        power = [math.exp(m.log_error) - 1 for m in misses[kind]]
        lines.append(score_line(f"{test}, {name}", "power", power))
        predicted = {p.sample.row: p for p in tests[test]}
        pairs = [(m, predicted[m.row]) for m in misses[kind] if m.row in predicted]
        energy = [m.log_error + p.log_error for m, p in pairs]
        lines.append(score_line(f"{test}, {name}", "energy", [math.expm1(e) for e in energy]))
        level = "known" if kind == "known" else "assumed"
        ratios = [
            (
                m.row.model if kind == "known" else m.row.device,
                abs(energy_miss)
                / math.hypot(
                    half_width_at(half_width[knowledge], p.log_sd), NORMAL_90 * spread[level]
                ),
            )
            for energy_miss, (m, p) in zip(energy, pairs, strict=True)
        ]
        # Four chips do not tell a quantile over chips: the rows of known boards lend theirs.
        scales[level] = ninetieth([ratio for _, ratio in ratios] + lent)
        inside = [
            ratio <= ninetieth([other for key, other in ratios if key != group] + lent)
            for group, ratio in ratios
        ]
        lent = [ratio for _, ratio in ratios]
        covered.append(f"{np.mean(inside):.0%} ({name})")
    return scales, [*lines, "", f"90 % intervals of energy cover {', '.join(covered)}.", ""]


def ninetieth(values: Sequence[float]) -> float:
    """Return the value that 90 % of what comes next is below (conformal quantile)."""
    ordered = sorted(values)
    rank = min(math.ceil(0.9 * (len(ordered) + 1)), len(ordered)) - 1
    return round(ordered[rank], 3)


def compact(prices: LogPrices) -> dict[str, list[int]]:
    """Return what was learned per parameter in thousandths; parameters that no row touched are left out."""
    rounded = {
        name: np.round(vector * 1000).astype(int).tolist()
        for name, vector in sorted(prices.learned.items())
    }
    return {name: vector for name, vector in rounded.items() if any(vector)}


def one_line_per_entry(document: Mapping[str, object]) -> str:
    """Return the document as JSON with one line per entry of its second level."""
    parts = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            inner = ",\n".join(
                f"    {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
                for k, v in value.items()
            )
            parts.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_docs(report: Sequence[str]) -> None:
    """Replace the part of docs/emulators.md between its markers."""
    begin, end = "<!-- scores:begin -->", "<!-- scores:end -->"
    text = DOCS.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    DOCS.write_text(
        f"{head}{begin}\n\n" + "\n".join(report).strip() + f"\n\n{end}{tail}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
