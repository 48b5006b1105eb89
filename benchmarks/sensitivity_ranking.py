"""Scores the sensitivity model: how well it ranks random widths by the accuracy they really lose.

    python benchmarks/sensitivity_ranking.py [--model FILE --arrays FILE.npz --scale X]
        [--trials N] [--epochs X] [--seen N]

Random widths are pruned, recovered and scored as in search_samplers.py. Printed for several settings of
the model: the rank correlation of predicted with measured loss before any trial is known, and on the
rest of the trials after some were observed (mean over random choices of these).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.search_samplers import Bench, add_model_arguments, make_bench

from tightfit_service.search import sensitivity
from tightfit_service.search.samplers import Kept
from tightfit_service.search.sensitivity import SensitivityModel

EXPONENTS = (0.0, 0.25, 0.5, 1.0)
RIDGES = (0.15, 0.5, 1.5)
REPEATS = 15

Trials = Sequence[tuple[Kept, float]]


def random_widths(bench: Bench, rng: np.random.Generator) -> dict[str, int]:
    """Return widths scattered over orders of magnitude about a common share."""
    share = rng.uniform(0.08, 0.7)
    return {
        group: int(np.clip(round(len(scores) * share * rng.lognormal(0.0, 0.8)), 1, len(scores)))
        for group, scores in bench.importance.items()
    }


def rank_correlation(model: SensitivityModel, trials: Trials) -> float:
    """Return Spearman's coefficient of predicted and measured losses."""
    predicted = [model.predict(kept) for kept, _ in trials]
    return float(spearmanr(predicted, [loss for _, loss in trials]).statistic)


def after_seeing(model: SensitivityModel, trials: Trials, count: int) -> float:
    """Return the mean rank correlation on the trials that were not observed."""
    rng = np.random.default_rng(0)
    results = []
    for _ in range(REPEATS):
        order = rng.permutation(len(trials))
        corrected = model
        for index in order[:count]:
            corrected = corrected.observe(*trials[index])
        results.append(rank_correlation(corrected, [trials[index] for index in order[count:]]))
    return statistics.mean(results)


def main() -> None:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description="Score the sensitivity model.")
    add_model_arguments(parser)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seen", type=int, default=6)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as cache:
        bench = make_bench(options, Path(cache))
        reference = bench.accuracy(bench.graph)
        trials: list[tuple[Kept, float]] = []
        for _ in range(options.trials):
            kept = random_widths(bench, rng)
            trials.append((kept, reference - bench.accuracy(bench.pruned(kept))))
    default_exponent, default_ridge = sensitivity.IMPORTANCE_EXPONENT, sensitivity._FACTOR_PRIOR  # noqa: SLF001  # what is being varied
    for exponent in EXPONENTS:
        sensitivity.IMPORTANCE_EXPONENT = exponent
        model = SensitivityModel.from_importance(bench.importance)
        print(f"exponent {exponent}: before any trial {rank_correlation(model, trials):.3f}")
    sensitivity.IMPORTANCE_EXPONENT = default_exponent
    model = SensitivityModel.from_importance(bench.importance)
    for ridge in RIDGES:
        sensitivity._FACTOR_PRIOR = ridge  # noqa: SLF001  # what is being varied
        after = after_seeing(model, trials, options.seen)
        print(f"ridge {ridge}: after {options.seen} trials {after:.3f}")
    sensitivity._FACTOR_PRIOR = default_ridge  # noqa: SLF001  # as it was


if __name__ == "__main__":
    main()
