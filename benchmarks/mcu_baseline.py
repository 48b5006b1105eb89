"""The published baseline fits of microcontroller latency (F2 and F4), for scores on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from benchmarks.mcu_fitting import Sample
from scipy.optimize import nnls

FloatArray = npt.NDArray[np.float64]

RIDGE = 0.02
ROUNDS = 12


def _features(sample: Sample, kind: str) -> list[float]:
    work = {term: amount for (term, _), amount in sample.work.items()}

    def get(*names: str) -> float:
        return sum(work.get(name, 0.0) for name in names)

    if kind == "F2":
        return [
            get("conv_mac", "pointwise_mac", "dense_mac"),
            get("depthwise_mac"),
            get("layer"),
        ]
    return [
        get("conv_mac"),
        get("pointwise_mac"),
        get("depthwise_mac"),
        get("dense_mac"),
        get("conv_output", "depthwise_output", "elementwise", "pool", "reduce", "copy"),
        get("layer"),
    ]


def _runtime(sample: Sample) -> str:
    return "/".join(sample.path[:2]) + ("/time" if sample.path[-1].endswith("time") else "")


def baseline_held_out(
    samples: Sequence[Sample], group: Mapping[int, str], kind: str
) -> list[float]:
    """Return relative errors of every sample predicted without its group.

    cycles = runtime factor x (sum of non-negative cycles per unit of the core x features), relative
    least squares with a light ridge, factors and prices found in turns; unknown runtimes take 1.
    """
    errors: list[float] = []
    for key in sorted(set(group.values())):
        inside = [s for i, s in enumerate(samples) if group[i] != key]
        outside = [s for i, s in enumerate(samples) if group[i] == key]
        prices, factors = _fit(inside, kind)
        for sample in outside:
            price = prices.get(sample.row.core)
            if price is None:
                price = np.mean(list(prices.values()), axis=0)
            cycles = factors.get(_runtime(sample), 1.0) * float(
                price @ np.array(_features(sample, kind))
            )
            errors.append(max(cycles, 1.0) / sample.cycles - 1)
    return errors


def _fit(samples: Sequence[Sample], kind: str) -> tuple[dict[str, FloatArray], dict[str, float]]:
    matrix = np.array([_features(s, kind) for s in samples])
    cycles = np.array([s.cycles for s in samples])
    relative = matrix / cycles[:, None]
    scale = np.array([np.median(c[c > 0]) if (c > 0).any() else 1.0 for c in relative.T])
    cores = sorted({s.row.core for s in samples})
    runtimes = sorted({_runtime(s) for s in samples})
    factors = dict.fromkeys(runtimes, 1.0)
    prices: dict[str, FloatArray] = {}
    for _ in range(ROUNDS):
        for core in cores:
            rows = [i for i, s in enumerate(samples) if s.row.core == core]
            factor = np.array([factors[_runtime(samples[i])] for i in rows])
            relative = matrix[rows] * (factor / cycles[rows])[:, None] / scale
            ridge = RIDGE * np.eye(matrix.shape[1]) * np.sqrt(len(rows))
            solution, _ = nnls(
                np.vstack([relative, ridge]),
                np.concatenate([np.ones(len(rows)), np.zeros(matrix.shape[1])]),
            )
            prices[core] = solution / scale
        for runtime in runtimes:
            chosen = [i for i, s in enumerate(samples) if _runtime(s) == runtime]
            predicted = np.array([matrix[i] @ prices[samples[i].row.core] for i in chosen])
            ratio = predicted / cycles[chosen]
            if (ratio > 0).all():
                factors[runtime] = float(ratio.sum() / (ratio**2).sum())
        mean = float(np.exp(np.mean([np.log(f) for f in factors.values()])))
        factors = {name: f / mean for name, f in factors.items()}
    return prices, factors
