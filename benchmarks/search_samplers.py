"""Compares samplers on real trials: accuracy lost by the best model that fits, after 1, 2, 4, ... trials.

    python benchmarks/search_samplers.py [--model FILE --arrays FILE.npz --scale X] [--target NAME]
        [--latency-share X] [--trials N] [--seeds N] [--epochs X] [--output FILE.json]

Every sampler gets the same network, the same limit (a share of the int8 model's latency by estimate)
and the same number of trials. A trial prunes to the widths proposed, keeping the most important units,
recovers for a few epochs with distillation, and is scored on images that are not trained on. Costs are
estimates, the same for all, so that every proposal fits and only accuracy tells samplers apart. The
default model is examples/digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tightfit_service import bootstrap
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.samplers.optuna_samplers import Nsga2Sampler, TpeSampler
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.costs.costing import CostModel, ProblemBuilder, select_emulator
from tightfit_service.application.ports import (
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.application.work.sensitivity import most_important
from tightfit_service.domain.budget import Budget, Constraint, Objective, Quantity
from tightfit_service.domain.dataset import Preprocess
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass
from tightfit_service.search.problem import CompressionProblem
from tightfit_service.search.samplers import (
    Kept,
    MilpSampler,
    RandomSampler,
    Sampler,
    TrialOutcome,
    assignment_key,
)
from tightfit_service.search.sensitivity import SensitivityModel

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
SELECTION_COUNT = 200
REPORTED_TRIALS = (1, 2, 4, 8, 16, 32, 64)

Importance = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The network with its data, and what a trial of given widths loses."""

    graph: bytes
    problem: CompressionProblem
    importance: Importance
    train: Samples
    selection: Samples
    epochs: float
    trainer: TorchTrainer
    cache_dir: Path

    def accuracy(self, graph: bytes) -> float:
        """Return the accuracy on the selection set."""
        return OnnxRuntimeEvaluator().evaluate(graph, self.selection).value

    def pruned(self, kept: Kept) -> bytes:
        """Return the graph with the most important units kept, and recovered."""
        keep = {
            group: most_important(self.importance[group], count) for group, count in kept.items()
        }
        result = self.trainer.recover(
            StructuredPruningPass().apply(self.graph, keep),
            teachers=Teachers(original=self.graph),
            data=TrainingData(train=self.train, selection=self.selection),
            settings=RecoverySettings(epochs=self.epochs, seed=0),
            cache_dir=self.cache_dir,
            on_progress=lambda _share, _message: None,
        )
        return result.graph


def read_samples(arrays: Path, scale: float, seed: int) -> tuple[Samples, Samples, Samples]:
    """Return training, selection (held out of training) and evaluation samples."""
    preprocess = Preprocess(scale=scale)
    with np.load(arrays) as content:
        order = np.random.default_rng(seed).permutation(len(content["train_x"]))
        whole = Samples(
            stored=content["train_x"],
            labels=content["train_y"],
            preprocess=preprocess,
            name="train",
        )
        evaluation = Samples(
            stored=content["test_x"], labels=content["test_y"], preprocess=preprocess, name="test"
        )
    count = min(max(SELECTION_COUNT, len(order) // 10), 2000)
    return whole.take(order[count:]), whole.take(order[:count], name="selection"), evaluation


def samplers(
    problem: CompressionProblem, importance: Importance
) -> dict[str, Callable[[int], Sampler]]:
    """Return how each sampler is made from a seed."""
    model = SensitivityModel.from_importance(importance)
    return {
        "milp": lambda seed: MilpSampler(problem, model, seed=seed),
        "random": lambda seed: RandomSampler(problem, seed=seed),
        "tpe": lambda seed: TpeSampler(problem, seed=seed),
        "nsga2": lambda seed: Nsga2Sampler(problem, seed=seed, population_size=8),
    }


def run(
    sampler: Sampler, loss_of: Callable[[Kept], float], trial_count: int
) -> tuple[list[float], float]:
    """Return the least loss after each trial, and the seconds that asking and telling took."""
    best: list[float] = []
    spent = 0.0
    for _ in range(trial_count):
        start = time.perf_counter()
        kept = sampler.ask()
        spent += time.perf_counter() - start
        if kept is None:
            best.append(best[-1] if best else 1.0)
            continue
        loss = loss_of(kept)
        start = time.perf_counter()
        sampler.tell(kept, TrialOutcome(accuracy_loss=loss))
        spent += time.perf_counter() - start
        best.append(min(loss, *best[-1:]) if best else loss)
    return best, spent


def make_bench(options: argparse.Namespace, cache_dir: Path) -> Bench:
    """Import the model, price it on the target, and set up the problem."""
    graph = OnnxImporter().import_model(options.model.read_bytes()).graph
    profile = OnnxGraphInspector().profile(graph)
    space = StructuredPruningPass().space(graph)
    target = bootstrap.catalogue().get(options.target)
    costs = CostModel(
        emulator=select_emulator(bootstrap.emulators(), target),
        target=target,
        telemetry=PrometheusTelemetry(),
    )
    builder = ProblemBuilder(
        costs=costs, profile=profile, space=space, number_format=NumberFormat.INT8
    )
    train, selection, _ = read_samples(options.arrays, options.scale, seed=0)
    trainer = TorchTrainer(threads=options.threads)
    importance = trainer.importance(graph, space, train, seed=0)
    model = SensitivityModel.from_importance(importance)
    whole = costs.estimate(profile, NumberFormat.INT8).latency_ms.value
    problem = builder.build(
        losses={
            group: [model.loss(group, level) for level in levels]
            for group, levels in builder.group_levels().items()
        },
        budget=Budget(
            constraints=(
                Constraint(
                    quantity=Quantity.LATENCY, limit=round(options.latency_share * whole, 6)
                ),
            )
        ),
        objective=Objective(),
        max_loss=None,
        margins={},
    )
    return Bench(
        graph=graph,
        problem=problem,
        importance=importance,
        train=train,
        selection=selection,
        epochs=options.epochs,
        trainer=trainer,
        cache_dir=cache_dir,
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which network is pruned, for which target, and how it is retrained."""
    parser.add_argument("--model", type=Path, default=EXAMPLE / "digits.onnx")
    parser.add_argument("--arrays", type=Path, default=EXAMPLE / "digits.npz")
    parser.add_argument("--scale", type=float, default=1 / 16)
    parser.add_argument("--target", default="nucleo-h7a3zi-q")
    parser.add_argument("--latency-share", type=float, default=0.1)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)


def main() -> None:
    """Run all samplers and print the table."""
    parser = argparse.ArgumentParser(description="Compare samplers on real trials.")
    add_model_arguments(parser)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        bench = make_bench(options, Path(cache))
        reference = bench.accuracy(bench.graph)
        seen: dict[tuple[tuple[str, int], ...], float] = {}

        def loss_of(kept: Kept) -> float:
            key = assignment_key(kept)
            if key not in seen:
                seen[key] = reference - bench.accuracy(bench.pruned(kept))
            return seen[key]

        results: dict[str, dict[str, list[float]]] = {}
        for name, make in samplers(bench.problem, bench.importance).items():
            runs = [run(make(seed), loss_of, options.trials) for seed in range(options.seeds)]
            results[name] = {
                "mean_best_loss": [
                    statistics.mean(best[index] for best, _ in runs)
                    for index in range(options.trials)
                ],
                "sampler_seconds_per_trial": [spent / options.trials for _, spent in runs],
            }
            print_row(name, results[name], options.trials)
    if options.output:
        options.output.write_text(
            json.dumps({"reference_accuracy": reference, "samplers": results}, indent=2)
        )


def print_row(name: str, result: Mapping[str, Sequence[float]], trial_count: int) -> None:
    """Print the mean loss in points after a few numbers of trials."""
    columns = [
        f"after {count}: {100 * result['mean_best_loss'][count - 1]:5.1f}"
        for count in REPORTED_TRIALS
        if count <= trial_count
    ]
    seconds = statistics.mean(result["sampler_seconds_per_trial"])
    print(f"{name:8s} points lost {'  '.join(columns)}  ({seconds:.2f} s per proposal)", flush=True)


if __name__ == "__main__":
    main()
